"""The table `one-class`: its runs, and the command that makes and shows them."""

import json

import numpy as np
import pytest

from negvae.data import ImageSet
from negvae.paper import one_class, one_class_runs, one_class_show
from tests.cli.test_commands import call
from tests.conftest import blobs


def labeled(name, split="train", **options):
    """Two classes that differ, in a set of ten names."""
    images = blobs(240, (1, 28, 28), seed=len(split)).numpy()
    labels = np.arange(240) % 2
    images[labels == 1] = 255 - images[labels == 1]
    return ImageSet(name, split, images, labels, "here", "0" * 64, ("made up",))


@pytest.fixture
def sets(monkeypatch):
    monkeypatch.setattr(one_class_runs, "load", labeled)


def test_runs_take_the_data_sets_by_turns_and_seed_zero_first():
    profile = one_class.PROFILES["cpu"]
    runs = one_class.runs(profile)
    assert len({run.name for run in runs}) == len(runs) == 2 * 10 * 3
    assert [run.seed for run in runs] == sorted(run.seed for run in runs)
    assert [run.data for run in runs[:4]] == ["fashion-mnist", "cifar10"] * 2
    assert [run.name for run in one_class.runs(profile, ("cifar10-class3",), (1,))] == ["cifar10-class3-seed1"]
    with pytest.raises(ValueError, match="did you mean cifar10-class3"):
        one_class.runs(profile, ("cifar10-clas3",))


def test_the_settings_are_those_of_a_detector_by_default():
    config = one_class.Run("cifar10", 3, 0).config(one_class.PROFILES["cpu"], 5000)
    assert config.transformations != "none"
    assert config.epochs * (4000 // config.batch_size) >= 1000


def test_the_command_goes_on_shows_and_fills_a_page(tmp_path, sets, capsys):
    options = ["one-class", "--profile", "smoke", "--results", str(tmp_path / "results")]
    runs = ["--only", "fashion-mnist-class0", "--only", "fashion-mnist-class1", "--out", str(tmp_path / "work")]
    assert call(capsys, "paper", "run", *options, *runs, "--budget", "0.001")[0] == 3
    code, _, error = call(capsys, "paper", "run", *options, *runs)
    assert code == 0, error
    path = tmp_path / "results" / "one-class-smoke.jsonl"
    content = json.loads(path.read_text().splitlines()[0])
    assert content["name"] == "fashion-mnist-class0-seed0"
    assert 0 <= content["evaluation"]["auc_combined"] <= 1
    assert len(content["quantiles"]["transformations_kl"]["ood"]) == content["evaluation"]["count"] == 120
    assert "transformations are" in content["judgement"]
    before = path.stat().st_mtime_ns
    assert call(capsys, "paper", "run", *options, *runs)[0] == 0
    assert path.stat().st_mtime_ns == before
    page = tmp_path / "page.md"
    page.write_text(f"text\n{one_class_show.BEGIN}\n{one_class_show.END}\nmore\n")
    assert call(capsys, "paper", "show", *options, "--page", page)[0] == 0
    assert "2 of 10" in page.read_text()
    assert "| mean | 2 |" in page.read_text()
    assert "made up" in page.read_text()
    assert len(json.loads(call(capsys, "paper", "show", *options, "--json")[1])) == 2


def test_a_set_without_labels_is_refused(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(
        one_class_runs, "load", lambda *a, **k: ImageSet("x", "train", np.zeros((4, 1, 28, 28)), None, "", "", ())
    )
    code, _, error = call(
        capsys, "paper", "run", "one-class", "--profile", "smoke", "--only", "fashion-mnist-class0",
        "--results", tmp_path, "--out", tmp_path,
    )  # fmt: skip
    assert code == 2
    assert "has no labels" in error
