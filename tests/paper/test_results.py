import math

import pytest
import scipy.stats

from negvae.paper.profiles import PROFILES
from negvae.paper.published import cells, settings
from negvae.paper.results import Figure, collect, table_of
from negvae.paper.store import same_run, up_to_date
from tests.paper.conftest import fake_result

RUN = "fashion-mnist-bernoulli-none"
CELL = cells()["table3/bernoulli/none"]
SMOKE = PROFILES["smoke"]


def test_means_and_spreads_over_seeds(tmp_path):
    for seed, area in enumerate((0.4, 0.5, 0.6)):
        fake_result(tmp_path, SMOKE, RUN, seed, (area, 0.5, 0.3, 0.4))
    result = collect(CELL, SMOKE, tmp_path)
    assert result.seeds == [0, 1, 2]
    figure = result.figures["auc_bpd"]
    assert (figure.mean, figure.std) == (pytest.approx(0.5), pytest.approx(0.1))  # n - 1 in the denominator
    assert figure.difference == pytest.approx(0.04)
    assert result.notes == ["fashion-mnist train: a stand-in & 50% of it"]


def test_one_seed_has_no_spread(tmp_path):
    fake_result(tmp_path, SMOKE, RUN, 1)
    result = collect(CELL, SMOKE, tmp_path)
    assert result.figures["auc_kl"].std is None
    assert result.seeds == [1]


def test_combined_spread():
    assert Figure("auc_bpd", 0.5, 0.03, 0.46, 0.04).combined_spread == pytest.approx(math.sqrt(0.0025 + 0.00005))
    rounded = math.sqrt(2) * 0.005
    assert Figure("auc_bpd", 1 - rounded + 1e-9, 0.0, 1.0, 0.0).within
    assert not Figure("auc_bpd", 1 - rounded - 1e-9, 0.0, 1.0, 0.0).within
    unpublished = Figure("auc_bpd", 0.5, 0.1, None, None)
    assert (unpublished.difference, unpublished.combined_spread, unpublished.within) == (None, None, None)


def test_what_does_not_count(tmp_path):
    fake_result(tmp_path, SMOKE, RUN, 0)
    config = {**SMOKE.config(CELL.setting, 1).to_dict(), "learning_rate": 0.5}
    fake_result(tmp_path, SMOKE, RUN, 1, config=config)
    fake_result(tmp_path, SMOKE, RUN, 2, status="diverged", evaluation={})
    fake_result(tmp_path, SMOKE, "fashion-mnist-bernoulli-generated", 0)
    result = collect(CELL, SMOKE, tmp_path)
    assert (result.seeds, result.outdated, result.diverged) == ([0], (1,), (2,))


def test_no_results(tmp_path):
    result = collect(CELL, SMOKE, tmp_path)
    assert (result.results, result.figures) == ((), {})


def test_numbers_that_json_lacks(tmp_path):
    fake_result(tmp_path, SMOKE, RUN, 0, (0.5, 0.5, 0.3, math.inf))
    fake_result(tmp_path, SMOKE, RUN, 1)
    assert table_of(tmp_path, SMOKE).get(f"{RUN}-seed0")["evaluation"]["mnist"]["nats_per_dim_ood"] == "inf"
    figure = collect(CELL, SMOKE, tmp_path).figures["nats_per_dim_ood"]
    assert figure.mean == math.inf
    assert math.isnan(figure.std)
    assert figure.within is False


def test_up_to_date(tmp_path):
    config = SMOKE.config(settings()[RUN], 0)
    fake_result(tmp_path, SMOKE, RUN, 0)
    table, name = table_of(tmp_path, SMOKE), f"{RUN}-seed0"
    assert up_to_date(table, name, config)["seed"] == 0
    assert up_to_date(table, name, SMOKE.config(settings()[RUN], 0, "cpu")) is not None  # the device is no setting
    assert up_to_date(table, name, SMOKE.config(settings()[RUN], 1)) is None
    assert up_to_date(table, "none", config) is None
    stored = config.to_dict()
    del stored["negative_weight"]  # as in a file from before the field existed
    assert same_run(stored, config, "here")


def test_welch_interval_by_hand():
    """Ours 1, 2, 3 against five runs of mean 4 and spread 1: t of 4.34 degrees of freedom times sqrt(1/3 + 1/5)."""
    figure = Figure("auc_bpd", 2.0, 1.0, 4.0, 1.0, (1.0, 2.0, 3.0))
    low, high = figure.welch
    assert (low + high) / 2 == pytest.approx(-2)
    expected = scipy.stats.ttest_ind_from_stats(2.0, 1.0, 3, 4.0, 1.0, 5, equal_var=False)
    half = scipy.stats.t.ppf(0.975, 4.339) * math.sqrt(1 / 3 + 1 / 5)
    assert high - low == pytest.approx(2 * half, rel=1e-3)
    assert (low < 0 < high) == (expected.pvalue > 0.05)
    assert Figure("auc_bpd", 2.0, None, 4.0, 1.0, (2.0,)).welch is None
    assert Figure("auc_bpd", 2.0, 0.0, 4.0, 0.0, (2.0, 2.0)).welch == (-2, -2)
