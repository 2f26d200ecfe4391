import re

import numpy as np
import pytest
from rich.console import Console

from negvae.config import RunConfig, preset
from negvae.data import ImageSet
from negvae.negatives import build_source
from negvae.paper import unsupervised as beyond
from negvae.paper import unsupervised_runs as beyond_runs
from negvae.paper import unsupervised_show as beyond_show
from negvae.paper.profiles import PROFILES, planned
from negvae.paper.proxies import PROXIES
from negvae.paper.results import run_name, table_of
from negvae.paper.runner import Plan, run_plan
from negvae.paper.unsupervised_runs import fitted
from negvae.report import tables
from negvae.runs.artifact import load_artifact
from negvae.runs.train import run
from tests.cli.test_commands import call


def test_runs_differ_and_have_negatives_that_exist():
    settings = beyond.settings()
    assert len({setting.name for setting in settings}) == len(settings)
    for setting in settings:
        config = PROFILES["cpu"].config(setting, 1)
        assert isinstance(config, RunConfig)
        assert config.negatives == setting.negatives
        build_source(config.negatives, None)
    configs = {str(PROFILES["cpu"].config(setting).to_dict()) for setting in settings}
    assert len(configs) == len(settings)


def test_seeds_are_five_on_gray_and_three_on_color_and_in_the_ablation():
    runs = planned(beyond.settings(), None, PROFILES["cpu"])
    count = {setting.name: sum(each is setting for each, _ in runs) for setting, _ in runs}
    assert count["fashion-mnist-unsupervised"] == count["mnist-plain"] == 5
    assert count["cifar10-unsupervised"] == 3
    assert count["cifar10-shift-8"] == count["fashion-mnist-shift-8"] == 3
    assert [seed for _, seed in runs] == sorted(seed for _, seed in runs)
    assert {seed for _, seed in planned(beyond.settings(), "2,", PROFILES["cpu"])} == {2}


def test_unknown_run_is_refused():
    with pytest.raises(ValueError, match="did you mean mnist-plain"):
        beyond.settings(("mnist-plane",))


def test_gray_sets_are_framed_for_color_models():
    gray = ImageSet("g", "test", np.full((2, 1, 28, 28), 7, np.uint8), None, "here", "0", ())
    color = fitted(gray, (3, 32, 32))
    assert color.images.shape == (2, 3, 32, 32)
    assert color.images[:, :, 2:30, 2:30].min() == 7
    assert color.images.sum() == gray.images.sum() * 3
    assert "framed" in color.notes[-1]
    with pytest.raises(ValueError, match="do not fit"):
        fitted(color, (1, 28, 28))


@pytest.fixture
def plan(tmp_path, gray_sets, monkeypatch):
    monkeypatch.setattr(beyond, "OTHERS", ("uniform-noise",))
    monkeypatch.setattr("negvae.scoring.regret.STEPS", 2)  # thirty take most of this file's time
    runs = tuple(
        planned(beyond.settings(("fashion-mnist-unsupervised", "fashion-mnist-plain")), "2", PROFILES["smoke"])
    )
    return Plan("smoke", runs, tmp_path / "results", tmp_path / "work", "cpu")


def test_halves_of_a_sorted_set_are_alike(tmp_path, monkeypatch):
    """Held-out inliers that come sorted by class are not out-of-distribution to one another."""
    images = np.concatenate([np.full((60, 1, 28, 28), level, np.uint8) for level in (0, 80, 160, 240)])
    np.save(tmp_path / "sorted.npy", images)
    config = preset("unsupervised", str(tmp_path / "sorted.npy"), epochs=1, batch_size=16)
    run(config, tmp_path / "run")
    artifact = load_artifact(tmp_path / "run")
    monkeypatch.setattr(beyond_runs, "PROXIES", {"the same": lambda images, generator: images})
    areas = beyond_runs._proxies(artifact, artifact.scorer(), None)["the same"]
    assert areas["kl"] == pytest.approx(0.5, abs=0.1)


def test_a_run_is_tested_against_every_set_and_proxy(plan):
    outcome = run_plan(plan, console=Console(quiet=True))
    assert outcome.done == 4, outcome
    main, plain = (
        table_of(plan.results, plan.recipe).get(run_name(beyond.make("fashion-mnist", v), 1))
        for v in (beyond.MAIN, beyond.PLAIN)
    )
    assert list(main["evaluation"]) == ["mnist", *beyond.OTHERS]
    assert {"auc_combined", "auc_dose", "auc_prior_ratio", "auc_input_complexity"} <= main["evaluation"]["mnist"].keys()
    assert main["evaluation"]["uniform-noise"]["auc_combined"] > 0.9
    assert list(main["proxies"]) == list(PROXIES)
    assert "auc_prior_ratio" not in plain["evaluation"]["mnist"]
    assert main["ensemble"] == plain["ensemble"] == 2
    kept = main["quantiles"]["uniform-noise"]["dose"]
    assert kept["inliers"] == sorted(kept["inliers"])
    assert kept["ood"][0] > kept["inliers"][0]
    assert 0.9 < main["evaluation"]["uniform-noise"]["auc_combined, ensemble"] <= 1
    assert "auc_waic" in plain["evaluation"]["uniform-noise"]
    assert "auc_combined, ensemble" not in plain["evaluation"]["uniform-noise"]
    assert all("auc_bpd" not in row for row in main["curve"])  # no outlier is looked at while training
    found = beyond_show.gather(plan.recipe, plan.results)
    goal = beyond_show.goals(found).rows[0]
    assert goal[:2] == ("fashion-mnist > mnist", "0.88 (0.07)")
    seeds = [
        table_of(plan.results, plan.recipe).get(run_name(beyond.make("fashion-mnist", beyond.MAIN), s)) for s in (0, 1)
    ]
    assert goal[3] == str(beyond_show.spread([each["evaluation"]["mnist"]["auc_combined"] for each in seeds]))
    for sheet in beyond_show.sheets(found):
        assert tables.terminal(sheet).row_count == len(sheet.rows)
        assert tables.markdown(sheet).count("\n|") == len(sheet.rows) + 2
    entries = beyond_show.as_json(found, plan.recipe)
    assert entries[0]["ours"]["seeds"] == [0, 1]
    assert entries[2]["ours"] is None


@pytest.mark.parametrize("text", ["{", "[]", '{"areas": {"cifar10 > svhn": 0.9}}'])
def test_a_damaged_file_of_the_coder_is_named(text, tmp_path, capsys):
    (tmp_path / "coder.json").write_text(text)
    code, _, error = call(capsys, "paper", "show", "beyond", "--results", tmp_path)
    assert code == 2
    assert "coder.json: not a result of `python benchmarks/coder.py`; remove it" in error


def test_pages_get_their_tables(capsys, tmp_path):
    begin, end = beyond_show.BEGIN, beyond_show.END
    (tmp_path / "coder.json").write_text('{"areas": {"cifar10 > svhn": {"auroc": 0.9192}}}')
    page, readme = tmp_path / "page.md", tmp_path / "readme.md"
    page.write_text(f"above\n{begin}\nold\n{end}\nbelow\n")
    readme.write_text(f"{beyond_show.GOALS_BEGIN}\nold\n{beyond_show.GOALS_END}\n")
    for path in (page, readme):
        assert call(capsys, "paper", "show", "beyond", "--results", tmp_path, "--page", path)[0] == 0
        assert "old" not in path.read_text()
        assert "| fashion-mnist > mnist | 0.88 (0.07) | 0.99, spread < 0.005 | - |" in path.read_text()
        assert re.search(r"\| cifar10 > svhn \|.* \| 0\.919 \|\n", path.read_text())
    assert page.read_text().startswith("above\n")
    assert "LPath-1M" in page.read_text()
    assert "LPath-1M" not in readme.read_text()
    (tmp_path / "bare.md").write_text("nothing")
    for name, message in (("bare.md", "has no place for the table"), ("none.md", "is not there")):
        code, _, error = call(capsys, "paper", "show", "beyond", "--results", tmp_path, "--page", tmp_path / name)
        assert code == 2
        assert message in error
    code, _, error = call(capsys, "paper", "show", "beyond", "--results", tmp_path, "--json", "--page", page)
    assert code == 2
    assert "--page does not go with --json" in error
