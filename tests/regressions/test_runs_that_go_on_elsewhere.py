"""Regressions: runs that were killed, have lost a file, or are looked at on another machine."""

import dataclasses
import json

import numpy as np
import pytest
from PIL import Image

from negvae.config import preset
from negvae.model import build_vae
from negvae.runs.artifact import CALIBRATION, load_artifact, read_section, write_section
from negvae.runs.calibrate import calibrate_run
from negvae.runs.defects import evaluate_defects
from negvae.runs.provenance import provenance
from negvae.runs.train import resumed_config, run
from negvae.scoring.scorer import Scorer
from tests.cli.test_commands import call
from tests.conftest import blobs

SHAPE = (1, 28, 28)
QUICK = {"batch_size": 16, "precision": "float32", "device": "cpu"}


@pytest.fixture
def images(tmp_path):
    """A file of inliers and one of outliers."""
    np.save(tmp_path / "in.npy", blobs(100, SHAPE).numpy())
    np.save(tmp_path / "out.npy", (255 - blobs(20, SHAPE)).numpy())
    return tmp_path


class KilledError(Exception):
    """Stands for the signal that ends a process."""


def test_a_run_that_goes_on_to_more_epochs_says_so_in_its_folder_before_it_is_killed(images, capsys):
    config, out = preset("gray", str(images / "in.npy"), epochs=1, **QUICK), images / "run"
    run(config, out)
    before = read_section(out, "run")
    assert load_artifact(out, "cpu").finished

    def kill(progress, *rest):
        raise KilledError

    with pytest.raises(KilledError):
        run(dataclasses.replace(config, epochs=3), out, resume=True, checkpoint_seconds=0, after_epoch=kill)
    assert read_section(out, "run") == {**before, "epochs": 3}
    assert not load_artifact(out, "cpu").finished  # its weights are those of before
    assert resumed_config(out, {}).epochs == 3
    code, text, error = call(capsys, "train", "--out", out, "--resume")
    assert (code, error) == (0, "")
    assert "finished 3 epochs" in text


def test_a_folder_that_says_less_epochs_than_the_run_has_had_is_one_line(images, capsys):
    config, out = preset("gray", str(images / "in.npy"), epochs=2, **QUICK), images / "run"
    run(config, out)
    text = (out / "config.yaml").read_text()
    (out / "config.yaml").write_text(text.replace("epochs: 2", "epochs: 1"))
    code, _, error = call(capsys, "train", "--out", out, "--resume")
    assert (code, error.count("\n")) == (2, 1)
    assert "has had 2 epochs: --resume goes on to more, not to 1" in error
    assert load_artifact(out, "cpu").epochs == 2


def spoil(path, how):
    """Lose or damage a file."""
    if how == "lost":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:40])


@pytest.mark.parametrize("how", ["lost", "damaged"])
def test_a_calibration_that_is_lost_or_damaged_is_made_anew_by_its_own_rule(images, how):
    config, out = preset("gray", str(images / "in.npy"), epochs=1, calibration=0.5, **QUICK), images / "run"
    run(dataclasses.replace(config, target_fpr=0.2, confidence=0.9), out)
    spoil(out / CALIBRATION, how)
    found = calibrate_run(out, device="cpu")
    assert (found.target_fpr, found.confidence) == (0.2, 0.9)
    calibrate_run(out, score="kl", target_fpr=0.3, device="cpu")
    spoil(out / CALIBRATION, how)
    found = calibrate_run(out, device="cpu")
    assert (found.score, found.target_fpr, found.confidence) == ("kl", 0.3, None)


def test_the_rule_of_the_training_holds_where_config_yaml_tells_of_no_calibration(images, capsys):
    config, out = preset("gray", str(images / "in.npy"), epochs=1, calibration=0.5, **QUICK), images / "run"
    run(dataclasses.replace(config, target_fpr=0.2, confidence=0.9), out)
    (out / CALIBRATION).unlink()
    write_section(out, "calibration", {"target_fpr": "a fifth"})
    code, _, error = call(capsys, "calibrate", out)
    assert (code, error.count("\n")) == (2, 1)
    assert "config.yaml: calibration.target_fpr is 'a fifth': it must be a number" in error
    write_section(out, "calibration", {})
    found = calibrate_run(out, device="cpu")
    assert (found.target_fpr, found.confidence) == (0.2, 0.9)
    (out / CALIBRATION).unlink()
    write_section(out, "calibration", {"target_fpr": None, "contamination": 0.1})
    found = calibrate_run(out, device="cpu")
    assert (found.target_fpr, found.contamination) == (None, 0.1)


def of_another_machine(out):
    """Let a run seem to have been trained on a device, and in a precision, that are not here."""
    text = (out / "config.yaml").read_text()
    text = text.replace("device: cpu", "device: cuda:99").replace("precision: float32", "precision: bfloat16", 1)
    (out / "config.yaml").write_text(text)


def test_a_run_of_another_machine_is_evaluated_exported_and_reported_on_here(images, capsys, monkeypatch):
    config, out = preset("gray", str(images / "in.npy"), epochs=1, calibration=0.5, **QUICK), images / "run"
    run(config, out)
    of_another_machine(out)
    monkeypatch.setattr("negvae.device.runs_bfloat16", lambda device: False)
    for command in (
        ["evaluate", out, "--ood", images / "out.npy", "--device", "cpu"],
        ["report", out, images / "out.npy", "--out", images / "page.html", "--device", "cpu"],
        ["export", out, "--out", images / "model.onnx"],
    ):
        code, _, error = call(capsys, *command)
        assert code == 0, error
    written = json.loads((out / "evaluation.json").read_text())["provenance"]
    assert (written["precision"], written["run"]["device"]) == ("float32", "cuda:99")


def test_defects_are_evaluated_on_another_machine(images):
    for number, image in enumerate(blobs(60, SHAPE)):
        kind = "train/good" if number < 40 else "test/good" if number < 50 else "test/dark"
        (images / "set" / kind).mkdir(parents=True, exist_ok=True)
        values = image[0].numpy() if kind != "test/dark" else 255 - image[0].numpy()
        Image.fromarray(values).save(images / "set" / kind / f"{number:03}.png")
    run(preset("gray", str(images / "set"), epochs=1, calibration=0.5, **QUICK), images / "run", heatmaps=False)
    of_another_machine(images / "run")
    assert evaluate_defects(images / "run", device="cpu")["provenance"]["precision"] == "float32"


def test_what_is_written_names_the_precision_of_the_scores():
    rows = preset("features", "rows", **QUICK)
    scorer = Scorer(build_vae(rows, (3, 1, 1)).double())
    assert provenance(rows, scorer)["precision"] == "float64"
    assert provenance(rows)["precision"] == "float32"
