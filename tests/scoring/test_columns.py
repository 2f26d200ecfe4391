"""Which columns of a row are unusual: by themselves, or by the relations between columns."""

import tracemalloc

import numpy as np
import pytest

from negvae import NegVAEDetector
from negvae.scoring.columns import column_surprise
from negvae.scoring.neighbors import fit_neighbors


@pytest.fixture(scope="module", params=[400, 20])
def detector(request):
    return NegVAEDetector(epochs=1, device="cpu", target_fpr=None).fit(correlated(request.param, 0))


def correlated(count, seed, columns=30):
    rows = np.random.default_rng(seed).normal(5, 2, (count, columns))
    rows[:, 1] = rows[:, 0] + 0.1 * (rows[:, 1] - 5)
    return rows


def test_the_column_that_is_far_out_is_named(detector):
    rows = correlated(40, 1)
    rows[np.arange(40), np.arange(40) % 28 + 2] += 25
    found = detector.heatmap(rows)
    assert found.shape == (40, 30)
    assert (found[:, 2:].argmax(1) == np.arange(40) % 28).all()


def test_a_broken_relation_is_named():
    detector = NegVAEDetector(epochs=1, device="cpu").fit(correlated(400, 0, 5))
    rows = correlated(40, 1, 5)
    rows[:, 1] = rows[::-1, 0].copy()
    apart = np.abs(rows[:, 1] - rows[:, 0]) > 1.5
    top = np.sort(detector.heatmap(rows)[apart].argsort(1)[:, -2:], 1)
    assert (top == [0, 1]).all(1).mean() > 0.95


@pytest.mark.parametrize("columns", [5, 100])
def test_two_means_one_in_a_hundred_inliers_however_many_columns_there_are(columns):
    mixing = np.random.default_rng(0).normal(size=(columns, columns))
    usual, fresh = (np.random.default_rng(seed).normal(size=(300, columns)) @ mixing for seed in (1, 2))
    found = NegVAEDetector(epochs=1, device="cpu").fit(usual)
    for rows in (usual, fresh):
        assert (found.heatmap(rows) > 2).mean() == pytest.approx(0.01, abs=0.007)


def test_many_columns_need_no_matrix_of_columns_by_columns():
    columns = 3000
    usual = np.random.default_rng(0).normal(size=(40, columns))
    fitted, _ = fit_neighbors(usual[:30], usual[30:])
    tracemalloc.start()
    found = column_surprise(usual[:3], fitted)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert np.isfinite(found).all()
    assert peak < 8 * columns**2
