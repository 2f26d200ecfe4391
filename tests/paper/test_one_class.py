"""The table `one-class`: its runs, and the command that makes and shows them."""

import dataclasses
import json

import numpy as np
import pytest
import torch

from negvae.config import preset
from negvae.data import ImageSet, SetStatus
from negvae.paper import one_class, one_class_runs, one_class_show
from negvae.paper.runner import set_aside_other_run
from negvae.runs.resolve import fields_left_open, fill_in
from tests.cli.test_commands import call
from tests.conftest import blobs


def labeled(name, split="train", shape=(1, 28, 28), **options):
    """Two classes that differ, in a set of ten names."""
    if name == "cifar100":
        raise FileNotFoundError("cifar100: not here")
    shape = (3, 32, 32) if name in ("cifar10", "imagenet32") else shape
    images = blobs(240, shape, seed=len(split) + len(name)).numpy()
    labels = np.arange(240) % 2
    images[labels == 1] = 255 - images[labels == 1]
    return ImageSet(name, split, images, labels, "here", "0" * 64, ("made up",))


@pytest.fixture
def sets(monkeypatch):
    monkeypatch.setattr(one_class_runs, "load", labeled)


def test_runs_take_the_data_sets_by_turns_and_seed_zero_first():
    profile = one_class.PROFILES["cpu"]
    runs = one_class.runs(profile)
    assert len({run.name for run in runs}) == len(runs) == (2 * 10 + 4) * 3
    assert [run.seed for run in runs] == sorted(run.seed for run in runs)
    assert [run.data for run in runs[:4]] == ["fashion-mnist", "cifar10"] * 2
    assert [run.name for run in one_class.runs(profile, ("cifar10-class3",), (1,))] == ["cifar10-class3-seed1"]
    with pytest.raises(ValueError, match="did you mean cifar10-class3"):
        one_class.runs(profile, ("cifar10-clas3",))


def test_the_settings_are_those_of_a_detector_by_default():
    run = one_class.Run("cifar10", 3, 0)
    left_open = fields_left_open("unsupervised", [])
    wanted = fill_in(preset("unsupervised", run.inliers, seed=0), 4000, left_open)
    assert run.config(one_class.PROFILES["cpu"], 5000) == wanted
    assert wanted.transformations == "turns"


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


def test_whole_sets_are_tested_against_others_and_their_own_images_resampled(tmp_path, sets, capsys):
    options = ["one-class", "--profile", "smoke", "--results", tmp_path / "results"]
    runs = ["--only", "cifar10-whole", "--only", "mnist-whole", "--out", tmp_path / "work"]
    code, out, error = call(capsys, "paper", "run", *options, *runs)
    assert code == 0, error
    assert "without cifar100, which is not at hand" in out + error
    lines = (tmp_path / "results" / "one-class-smoke.jsonl").read_text().splitlines()
    found = {one["name"]: one for one in map(json.loads, lines)}
    near = found["cifar10-whole-seed0"]["evaluation"]
    assert list(near) == [
        "transformed inliers", "svhn", "kmnist", "emnist-letters", "uniform-noise", "imagenet32", "resampled",
        "resampled, JPEG",
    ]  # fmt: skip
    ways = ["combined, all others added", "combined, the largest other added"]
    assert all({f"auc_{way}" for way in ways} < set(areas) for areas in near.values())
    assert abs(near["resampled"]["auc_kl"] - 0.5) < 0.2
    assert list(found["mnist-whole-seed0"]["evaluation"])[1:3] == ["fashion-mnist", "kmnist"]
    shown = json.loads(call(capsys, "paper", "show", *options, "--json")[1])
    assert len(shown) == 2
    sheet = one_class_show.whole(one_class_show.gather(one_class.PROFILES["smoke"], tmp_path / "results"))
    assert [line[:4] for line in list(sheet.rows)[:2]] == [
        ("mnist", "transformed inliers", "1", "-"), ("mnist", "fashion-mnist", "1", "1"),
    ]  # fmt: skip
    assert {line[-2] for line in sheet.rows if line[1] in ("imagenet32", "resampled")} == {"-"}


def test_a_whole_set_is_tested_again_once_a_further_set_is_at_hand(tmp_path, sets, capsys, monkeypatch):
    options = ["one-class", "--profile", "smoke", "--results", tmp_path / "results"]
    again = ["paper", "run", *options, "--only", "cifar10-whole", "--out", tmp_path / "work"]
    assert call(capsys, *again)[0] == 0
    path = tmp_path / "results" / "one-class-smoke.jsonl"
    before = path.stat().st_mtime_ns
    assert call(capsys, *again)[0] == 0
    assert path.stat().st_mtime_ns == before
    status = SetStatus("cifar100", "test", "complete", 240, 10_000, "here")
    monkeypatch.setattr(one_class_runs, "list_sets", lambda: [status])
    monkeypatch.setattr(one_class_runs, "load", lambda name, *given, **more: labeled(
        "cifar10" if name == "cifar100" else name, *given, **more
    ))  # fmt: skip
    code, out, error = call(capsys, *again)
    assert code == 0, error
    assert "cifar10-whole-seed0: once more, since cifar100 is at hand now" in out + error
    sheet = one_class_show.whole(one_class_show.gather(one_class.PROFILES["smoke"], tmp_path / "results"))
    (row,) = [line for line in sheet.rows if line[1] == "cifar100"]
    assert row[-1] == "CSI 0.89, LPath 0.62, DoSE 0.57"
    after = path.stat().st_mtime_ns
    assert call(capsys, *again)[0] == 0
    assert path.stat().st_mtime_ns == after


def test_what_each_score_adds_is_measured_in_the_same_models(tmp_path, sets, capsys, monkeypatch):
    monkeypatch.setattr("negvae.scoring.transformations.LEAST_GAIN", 0)
    monkeypatch.setattr("negvae.scoring.transformations.LEAST_IMAGES", 1)
    monkeypatch.setattr("negvae.scoring.transformations.LEAST_AUROC", 1.01)
    options = ["one-class", "--profile", "smoke", "--results", tmp_path / "results"]
    runs = ["--only", "fashion-mnist-class0", "--only", "fashion-mnist-class1", "--out", tmp_path / "work"]
    assert call(capsys, "paper", "run", *options, *runs)[0] == 0
    found = one_class_show.gather(one_class.PROFILES["smoke"], tmp_path / "results")
    areas = [found["fashion-mnist"][label][0]["evaluation"] for label in (0, 1)]
    gains = [one["auc_combined"] - one["auc_combined, without dose"] for one in areas]
    error = abs(gains[0] - gains[1]) / 2
    rows = {line[0]: line[1:] for line in one_class_show.additions(found).rows}
    assert rows["dose"] == (f"{sum(gains) / 2:+.4f} ({error:.4f})", "2", "-", "0")
    assert {"transformations_kl", "prior_ratio"} < set(rows)
    assert "latent_neighbors" not in rows  # no AUROC is above 1
    ends = found["fashion-mnist"][0][0]["quantiles"]
    assert one_class.BEFORE in ends
    assert "combined, without dose" not in ends


def test_resampling_keeps_images_of_one_color_and_smooths_noise():
    plain = torch.full((2, 3, 8, 8), 90, dtype=torch.uint8)
    assert one_class_runs.resampled(plain, jpeg=False).equal(plain)
    noise = torch.randint(0, 256, (2, 1, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    smooth = one_class_runs.resampled(noise, jpeg=False)
    assert smooth.shape == noise.shape
    assert smooth.float().std() < noise.float().std()
    assert not one_class_runs.resampled(noise, jpeg=True).equal(smooth)


def test_a_set_without_labels_is_refused(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(
        one_class_runs, "load", lambda *a, **k: ImageSet("x", "train", np.zeros((4, 1, 28, 28)), None, "", "", ())
    )
    code, output, _ = call(
        capsys, "paper", "run", "one-class", "--profile", "smoke", "--only", "fashion-mnist-class0",
        "--results", tmp_path, "--out", tmp_path,
    )  # fmt: skip
    assert code == 1
    assert "fashion-mnist-class0-seed0 failed: ValueError" in " ".join(output.split())
    assert "has no labels" in " ".join(output.split())


def test_a_run_that_fails_does_not_end_the_others(tmp_path, monkeypatch, capsys):
    def load(name, *given, **options):
        if name == "fashion-mnist":
            raise FileNotFoundError("fashion-mnist: not here")
        return labeled(name, *given, **options)

    monkeypatch.setattr(one_class_runs, "load", load)
    code, output, _ = call(
        capsys, "paper", "run", "one-class", "--profile", "smoke", "--only", "fashion-mnist-class0",
        "--only", "cifar10-class0", "--seeds", 1, "--results", tmp_path / "results", "--out", tmp_path / "work",
    )  # fmt: skip
    assert code == 1
    assert "fashion-mnist-class0-seed0 failed: FileNotFoundError: fashion-mnist: not here" in " ".join(output.split())
    assert "1 of 2 runs have a result" in " ".join(output.split())


def test_a_mean_just_below_its_goal_has_not_reached_it(monkeypatch):
    area = one_class.GOALS["cifar10"] - 0.0004
    content = {"evaluation": {"auc_combined": area}}
    found = {data: {label: [content] for label in range(10)} for data in one_class.DATA}
    row = next(row for row in one_class_show.means(found).rows if row[0] == "cifar10")
    assert row[1:3] == ("0.86", "0.860")
    assert row[5] == "no"


def test_a_checkpoint_of_other_settings_is_set_aside_and_not_recorded(tmp_path, sets, capsys, monkeypatch):
    options = ["one-class", "--profile", "smoke", "--results", tmp_path / "results"]
    command = ["paper", "run", *options, "--only", "fashion-mnist-class0", "--out", tmp_path / "work"]
    assert call(capsys, *command)[0] == 0
    place = tmp_path / "work" / "one-class"
    before = (place / "fashion-mnist-class0-seed0" / "checkpoint.safetensors").read_bytes()
    smoke = one_class.PROFILES["smoke"]
    other = dataclasses.replace(smoke, fields={**smoke.fields, "learning_rate": 0.01})
    monkeypatch.setitem(one_class.PROFILES, "smoke", other)
    code, out, error = call(capsys, *command)
    assert code == 0, error
    assert "fashion-mnist-class0-seed0 was made with other settings" in " ".join((out + error).split())
    assert (place / "fashion-mnist-class0-seed0.before-1" / "checkpoint.safetensors").read_bytes() == before
    assert (place / "fashion-mnist-class0-seed0" / "checkpoint.safetensors").read_bytes() != before
    (line,) = (tmp_path / "results" / "one-class-smoke.jsonl").read_text().splitlines()
    assert json.loads(line)["config"]["learning_rate"] == 0.01


def test_a_checkpoint_whose_settings_are_not_known_is_set_aside(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "checkpoint.safetensors").touch()
    lines = []
    set_aside_other_run(tmp_path / "run", preset("gray", "mnist"), lines.append)
    assert (tmp_path / "run.before-1" / "checkpoint.safetensors").exists()
    assert lines == [
        f"run has no config.yaml that says with which settings it was made: it is kept as {tmp_path / 'run.before-1'}"
    ]
