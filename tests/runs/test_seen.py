"""Inliers that were trained on are refused as held-out ones, wherever they lie and however the model was fitted."""

import json
import shutil

import numpy as np
import pytest
import torch

from negvae import NegVAEDetector
from negvae.runs import fingerprints
from negvae.runs.fingerprints import TRAINED, Fingerprints, read_fingerprints
from tests.cli.test_commands import call
from tests.conftest import blobs

OPTIONS = {"epochs": 1, "target_fpr": 0.2, "device": "cpu", "precision": "float32"}


@pytest.fixture(scope="module")
def fitted(tmp_path_factory):
    """A detector of images in memory, in a folder, with the images beside it."""
    place = tmp_path_factory.mktemp("seen")
    images = blobs(60, (1, 28, 28)).numpy()
    NegVAEDetector(**OPTIONS).fit(images).save(place / "run")
    np.save(place / "x.npy", images)
    np.save(place / "new.npy", blobs(60, (1, 28, 28), seed=5).numpy())
    np.save(place / "others.npy", blobs(20, (1, 28, 28), seed=6).numpy())
    return place


@pytest.mark.parametrize("command", ["calibrate", "evaluate"])
def test_data_that_was_in_memory_is_known_as_a_file(fitted, tmp_path, command, capsys):
    more = ["--ood", fitted / "others.npy"] if command == "evaluate" else []
    code, _, error = call(capsys, command, fitted / "run", "--data", fitted / "x.npy", *more)
    assert code == 2
    assert "x.npy is what the model was trained on" in error
    np.save(tmp_path / "part.npy", np.load(fitted / "x.npy")[5:])
    code, _, error = call(capsys, command, fitted / "run", "--data", tmp_path / "part.npy", *more)
    assert code == 2
    assert "of these 55 are inliers that the model was trained on" in error
    assert call(capsys, command, fitted / "run", "--data", fitted / "new.npy", *more)[0] == 0
    shutil.copytree(fitted / "run", tmp_path / "earlier")
    (tmp_path / "earlier" / TRAINED).unlink()  # as an earlier version wrote it: then the whole is known, and no part
    code, _, error = call(capsys, command, tmp_path / "earlier", "--data", fitted / "x.npy", *more)
    assert code == 2
    assert "is what the model was trained on" in error


@pytest.mark.parametrize("command", ["calibrate", "evaluate"])
def test_data_that_was_moved_is_known(tmp_path, command, capsys):
    np.save(tmp_path / "x.npy", blobs(60, (1, 28, 28)).numpy())
    assert call(capsys, "train", "--data", tmp_path / "x.npy", "--out", tmp_path / "run", "--epochs", 1)[0] == 0
    (tmp_path / "x.npy").rename(tmp_path / "moved.npy")
    np.save(tmp_path / "others.npy", blobs(20, (1, 28, 28), seed=6).numpy())
    more = ["--ood", tmp_path / "others.npy"] if command == "evaluate" else []
    code, _, error = call(capsys, command, tmp_path / "run", "--data", tmp_path / "moved.npy", *more)
    assert code == 2
    assert "trained on" in error


def test_rows_with_one_more_are_known_after_a_move(tmp_path, capsys):
    rows = np.random.default_rng(0).normal(size=(120, 4))
    np.save(tmp_path / "rows.npy", rows)
    train = ["--preset", "features", "--data", tmp_path / "rows.npy", "--out", tmp_path / "run", "--epochs", 1]
    assert call(capsys, "train", *train)[0] == 0
    (tmp_path / "rows.npy").unlink()
    np.save(tmp_path / "moved.npy", np.vstack([rows, rows[:1] + 1]))
    code, _, error = call(capsys, "calibrate", tmp_path / "run", "--data", tmp_path / "moved.npy")
    assert code == 2
    assert "trained on" in error


def test_recalibration_on_what_was_fitted_is_refused():
    images, rows = blobs(60, (1, 28, 28)).numpy(), np.random.default_rng(0).normal(size=(120, 4))
    fresh = {"images": blobs(40, (1, 28, 28), seed=5).numpy(), "rows": np.random.default_rng(1).normal(size=(40, 4))}
    for given, new in ((images, fresh["images"]), (rows, fresh["rows"])):
        detector = NegVAEDetector(**OPTIONS).fit(given)
        before = detector.calibration_.threshold
        with pytest.raises(ValueError, match="trained on"):
            detector.recalibrate(given)
        assert detector.calibration_.threshold == before
        assert detector.recalibrate(new).calibration_.size == 40


def test_of_many_inliers_a_share_is_compared_and_stands_for_the_rest(monkeypatch, tmp_path):
    monkeypatch.setattr(fingerprints, "KEPT", 200)
    images = torch.randint(0, 256, (2000, 1, 4, 4), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    kept = Fingerprints.of(images[:1000], torch.cat([images[:100], images[1000:1100]]))
    assert len(kept.hashes) == 200
    assert kept.repeats == pytest.approx(0.5, abs=0.2)
    assert kept.share_of(images[:1000]) == 1
    assert kept.share_of(images[1000:]) == 0
    assert kept.share_of(images[500:1500]) == pytest.approx(0.5, abs=0.15)
    kept.write(tmp_path)
    again = read_fingerprints(tmp_path)
    assert (again.hashes == kept.hashes).all()
    assert again.repeats == kept.repeats


def test_a_folder_without_them_is_of_an_earlier_version_and_a_damaged_file_is_refused(fitted, tmp_path, capsys):
    assert read_fingerprints(tmp_path) is None
    (tmp_path / TRAINED).write_bytes(b"x" * 100)
    with pytest.raises(ValueError, match=r"trained\.safetensors: damaged"):
        read_fingerprints(tmp_path)
    assert "trained" not in json.loads((fitted / "run" / "inliers.json").read_text())
