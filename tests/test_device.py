"""A folder travels: what a processor lacks is said in one line, and decisions do not rest on it."""

import dataclasses
import json

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.numpy import save_file

from negvae import device as precisions
from negvae.checksums import CHECKSUM
from negvae.device import computes_in_bfloat16, resolve_precision, runs_bfloat16
from negvae.runs import artifact as artifacts
from negvae.runs.artifact import load_artifact, save_calibration
from negvae.runs.calibrate import calibrate_run
from negvae.runs.train import run
from tests.cli.test_commands import call
from tests.conftest import needs_bfloat16, small_run

CPU = torch.device("cpu")


@pytest.fixture
def no_bfloat16(monkeypatch):
    """A processor whose kernels refuse bfloat16, as those without AVX-512 do."""
    for module in (precisions, artifacts):
        monkeypatch.setattr(module, "runs_bfloat16", lambda device: False)


@pytest.fixture
def folder(tmp_path, blob_files):
    config = dataclasses.replace(small_run(epochs=1, batch_size=16, calibration=0.5), data=str(blob_files["in"]))
    run(config, tmp_path / "run")
    return tmp_path / "run"


def test_capabilities_are_tried_and_auto_rests_on_them(monkeypatch):
    assert isinstance(runs_bfloat16(CPU), bool)
    assert runs_bfloat16(CPU) or not computes_in_bfloat16(CPU)
    monkeypatch.setattr(precisions, "computes_in_bfloat16", lambda device: False)
    assert resolve_precision("auto", CPU) == "float32"
    monkeypatch.setattr(precisions, "computes_in_bfloat16", lambda device: True)
    assert resolve_precision("auto", CPU) == "bfloat16"


@pytest.mark.usefixtures("no_bfloat16")
def test_training_in_bfloat16_is_refused_before_anything_is_written(tmp_path, blob_files, capsys):
    code, _, said = call(
        capsys, "train", "--data", blob_files["in"], "--precision", "bfloat16", "--out", tmp_path / "new"
    )
    said = " ".join(said.split())
    assert code == 2
    assert "precision bfloat16 is not available here" in said
    assert "use float32, or auto" in said
    assert "Traceback" not in said
    assert not (tmp_path / "new").exists()


def test_decisions_are_calibrated_in_float32_whatever_training_was_done_in(folder):
    artifact = load_artifact(folder)
    assert artifact.calibration.precision == "float32"
    assert artifact.scorer().precision == artifact.scorer("float32").precision == "float32"
    with pytest.raises(ValueError, match=r"calibrated in float32, not in bfloat16: `negvae calibrate .* --precision"):
        artifact.scorer("bfloat16")


@needs_bfloat16
def test_bfloat16_is_calibrated_as_what_it_is(folder, blob_files):
    exact = load_artifact(folder).calibration
    rounded = calibrate_run(folder, str(blob_files["out"]), precision="bfloat16")
    artifact = load_artifact(folder)
    assert rounded.precision == artifact.calibration.precision == artifact.scorer().precision == "bfloat16"
    assert not np.array_equal(rounded.scores["kl"], exact.scores["kl"])


@pytest.mark.usefixtures("no_bfloat16")
def test_a_calibration_in_bfloat16_is_refused_where_there_is_none_and_made_anew(folder, blob_files, capsys):
    rounded = dataclasses.replace(load_artifact(folder).calibration, precision="bfloat16")
    save_calibration(folder, rounded)
    code, _, said = call(capsys, "score", folder, blob_files["in"])
    said = " ".join(said.split())
    assert code == 2
    assert "calibrated in bfloat16, which this machine does not run" in said
    assert f"`negvae calibrate {folder}`" in said
    assert calibrate_run(folder, str(blob_files["out"])).precision == "float32"
    assert load_artifact(folder).scorer().precision == "float32"


def test_version_0_1_scored_as_it_trained(folder):
    """Its files do not name the precision; the facts on the machine do."""
    config, shape, provenance = artifacts.read_config(folder)
    kept = load_artifact(folder).calibration
    for noted, expected in (("bfloat16", "bfloat16"), ("float32", "float32")):
        artifacts.write_config(folder, config, shape, {**provenance, "precision": noted})
        save_calibration(folder, kept)
        path = folder / artifacts.CALIBRATION
        with safe_open(path, "np") as file:
            tensors, header = {name: file.get_tensor(name) for name in file.keys()}, file.metadata()  # noqa: SIM118
        rule = json.loads(header["rule"])
        del rule["precision"], header[CHECKSUM]
        save_file(tensors, path, {**header, "rule": json.dumps(rule)})
        assert load_artifact(folder).calibration.precision == expected
