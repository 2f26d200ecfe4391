"""What version 0.1 saved loads: a run's folder, a pickled detector, a checkpoint in the middle of an epoch.

The files are in version-0.1/, made by commit b45981d from 80 images of spots (in.npy) and 60 rows of normal numbers.
"""

import json
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
import yaml

from negvae import NegVAEDetector
from negvae.cli.train import _read
from negvae.runs.artifact import load_artifact
from negvae.runs.calibrate import calibrate_run
from negvae.runs.train import resumed_config, run
from tests.conftest import blobs

SAVED = Path(__file__).parent / "version-0.1"
EXPECTED = json.loads((SAVED / "expected.json").read_text())


def test_a_run_and_its_decisions():
    detector = NegVAEDetector.load(SAVED / "run", device="cpu")
    images = blobs(6, (1, 16, 16), 5).numpy()
    for score, values in EXPECTED["images"].items():
        np.testing.assert_allclose(detector.ood_score(images, score), values, rtol=1e-4)
    assert detector.calibration_.threshold == EXPECTED["threshold"]
    np.testing.assert_allclose(detector.p_values(images), EXPECTED["p"], atol=1 / 17)


def test_names_of_today_take_the_place_of_former_ones(tmp_path, monkeypatch):
    shutil.copytree(SAVED, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    assert yaml.safe_load(Path("run/config.yaml").read_text())["run"]["network"] == "auto"
    assert load_artifact("run", "cpu").config.network == "pyramid"
    assert _read(Path("run/config.yaml"))["network"] == "pyramid"
    threshold = calibrate_run(Path("run"), target_fpr=0.1, device="cpu").threshold  # which writes config.yaml anew
    assert yaml.safe_load(Path("run/config.yaml").read_text())["run"]["network"] == "pyramid"
    assert load_artifact("run", "cpu").calibration.threshold == threshold
    # A name of one's own may be "auto" again: only files of former formats are translated.
    Path("fields.yaml").write_text("network: auto")
    assert _read(Path("fields.yaml")) == {"network": "auto"}


def test_a_pickled_detector():
    rows = np.random.default_rng(0).normal(size=(60, 5))[:6]
    detector = pickle.loads((SAVED / "rows.pickle").read_bytes())
    for score, values in EXPECTED["rows"].items():
        np.testing.assert_allclose(detector.ood_score(rows, score), values, rtol=1e-5)
    np.testing.assert_allclose(detector.p_values(rows), EXPECTED["rows_p"])
    assert detector.preset in (None, "features")


def test_a_run_that_was_stopped_goes_on(tmp_path, monkeypatch):
    shutil.copytree(SAVED, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    before = [json.loads(line) for line in Path("stopped/metrics.jsonl").read_text().splitlines()]
    config = resumed_config(Path("stopped"), {"epochs": 4})
    result = run(config, Path("stopped"), resume=True)
    assert result.stopped_by == "finished"
    assert [row["epoch"] for row in result.history] == [1, 2, 3, 4]
    assert result.history[: len(before)] == before
    assert result.history[-1]["nats_per_dim"] == pytest.approx(before[-1]["nats_per_dim"], rel=0.5)
