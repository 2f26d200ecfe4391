"""Regressions: tiles of one color, splits that were mixed up, faults that passed, and what only other systems have."""

import dataclasses
import os
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from negvae import NegVAEDetector
from negvae.config import preset
from negvae.data import folders, load, stores
from negvae.data.batches import InputSpec
from negvae.data.rows import load_rows
from negvae.data.streams import stream
from negvae.decoding import Decoding
from negvae.detector import estimator
from negvae.detector.fitting import _source_of
from negvae.runs.artifact import load_artifact, read_section
from negvae.runs.calibrate import calibrate_run
from negvae.runs.embed import encoder_images
from negvae.runs.evaluate import evaluate_run
from negvae.runs.fingerprints import Fingerprints
from negvae.runs.recorded import SPLIT, WHOLE
from negvae.runs.seen import caution, refuse_seen
from negvae.runs.train import run
from tests.conftest import blobs
from tests.runs.test_groups_of_photos import FAST, TILES, products

RESIZED = Decoding(fit="resize", height=16, width=16, channels=1)


# --- tiles of one color -----


def tiles(count: int, plain: int, seed: int) -> torch.Tensor:
    """Tiles of photos, of which so many are white: the background of each photo."""
    found = torch.from_numpy(np.random.default_rng(seed).integers(0, 256, (count, 3, 8, 8), np.uint8))
    found[:plain] = 255
    return found


def test_white_tiles_are_no_inliers_that_were_trained_on():
    trained = Fingerprints.of(tiles(90, 20, 0), tiles(40, 16, 1))
    assert trained.repeats == 0
    assert caution(trained) == ""
    refuse_seen(tiles(40, 22, 2), trained, "new")
    mixed = torch.cat([tiles(40, 22, 2), tiles(90, 20, 0)[20:50]])  # 30 of these were
    with pytest.raises(ValueError, match="new: 30 of these 70 are inliers that the model was trained on"):
        refuse_seen(mixed, trained, "new")
    rows = torch.ones(20, 1, 1, 1, dtype=torch.float64)  # a row of one number is no tile of one color
    assert Fingerprints.of(rows, rows).repeats == 1


@pytest.mark.parametrize("rule", ["max", "top", "mean"])
def test_tiled_photos_drift_to_lower_bpd_too(rule, tmp_path, monkeypatch):
    """The largest of an image's tiles lies above the mean of all tiles, also where nothing has moved."""
    place = products(tmp_path / "in", 24)
    options = {
        "preset": "general",
        "negatives": "none",
        "network": "pyramid",
        "epochs": 1,
        "device": "cpu",
        "target_fpr": 0.2,
    }
    detector = NegVAEDetector(**options).fit(str(place))
    assert detector.config_.images is not None
    random = np.random.default_rng(0)
    held_out = np.sort(random.normal(5, 0.3, 200))
    scores = dict.fromkeys(detector.calibration_.scores, held_out) | {"bpd": held_out}
    detector.calibration_ = dataclasses.replace(detector.calibration_, scores=scores, tiles=rule)
    assert abs(detector.calibration_.reference.scales["bpd"][3] - 5) > 0.5
    for shift, alarm in ((-0.5, True), (0, False), (0.5, True)):
        batch = random.normal(5 + shift, 0.3, 100)
        monkeypatch.setattr(detector, "_scores", lambda X, names, batch=batch: (dict.fromkeys(names, batch), None))
        assert detector.drift(None).alarm is alarm, shift


# --- faults that passed -----


def test_a_photo_that_could_not_be_read_once_is_read_again(tmp_path, monkeypatch):
    files = []
    for number in range(12):
        files.append(str(tmp_path / f"{number:02d}.png"))
        Image.fromarray(np.full((20, 20 + number), 10 * number, np.uint8)).save(files[-1])
    monkeypatch.setenv("NEGVAE_CACHE", str(tmp_path / "cache"))
    read = folders.read_photo

    def faulty(source, *rest):
        if source == files[3]:
            raise OSError("a network that was not there")
        return read(source, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(folders, "read_photo", faulty)
        assert list(folders.read_photos(files, RESIZED, "F").broken) == [files[3]]
        assert list(folders.read_photos(files, RESIZED, "F").broken) == [files[3]]
    found = folders.read_photos(files, RESIZED, "F")
    assert not found.broken
    assert len(found.inputs) == 12


def test_every_broken_image_of_a_packed_file_counts(tmp_path):
    good = tmp_path / "a.png"
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(good)
    images = [good.read_bytes() if row % 5 < 2 else b"broken" for row in range(50)]
    pq.write_table(pa.table({"image": images}), tmp_path / "set.parquet")
    encoder = type("Encoder", (), {"shape": (3, 8, 8), "upright": False})()
    broken = {}
    with pytest.raises(ValueError, match="30 of 50 images cannot be read"):
        list(encoder_images(str(tmp_path / "set.parquet"), encoder, None, "train", 0.1, broken))
    assert len(broken) == 30
    assert f"{tmp_path / 'set.parquet'}, row 2" in broken
    Path(tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "b.png").write_bytes(b"broken")
    good.rename(tmp_path / "folder" / "a.png")
    list(encoder_images(str(tmp_path / "folder"), encoder, None, "train", 0.5, broken := {}))
    assert list(broken) == [str(tmp_path / "folder" / "b.png")]


def test_a_named_set_that_does_not_fit_is_an_error_among_the_other_rows(tmp_path):
    for number in range(20):
        Image.fromarray(np.zeros((20, 20), np.uint8)).save(tmp_path / f"{number:02d}.png")
    batches = stream([str(tmp_path), "uniform-noise", str(tmp_path)], InputSpec((1, 20, 20)))
    errors = [error for batch in batches for error in batch.errors]
    assert len(errors) == 41
    assert [row for row, error in enumerate(errors) if error] == [20]
    assert "the model takes 20 x 20" in errors[20]


# --- splits and scores that were mixed up -----


def test_rows_for_tests_come_from_the_test_part_of_an_npz_file(tmp_path):
    random = np.random.default_rng(0)
    np.save(tmp_path / "in.npy", random.normal(size=(80, 3)))
    np.savez(tmp_path / "both.npz", x_train=random.normal(size=(30, 3)), x_test=random.normal(9, size=(20, 3)))
    assert len(load_rows(tmp_path / "both.npz")) == 30
    assert len(load_rows(tmp_path / "both.npz", split="test")) == 20
    NegVAEDetector(epochs=1, device="cpu", target_fpr=0.2).fit(str(tmp_path / "in.npy")).save(tmp_path / "run")
    np.save(tmp_path / "new.npy", random.normal(size=(40, 3)))
    found = evaluate_run(tmp_path / "run", [str(tmp_path / "both.npz")], data=str(tmp_path / "new.npy"))
    assert "20 rows" in str(found)


def test_calibration_does_not_replace_a_score_that_is_not_registered_here(tmp_path, monkeypatch):
    np.save(tmp_path / "in.npy", blobs(60, (1, 28, 28)).numpy())
    config = preset("general", str(tmp_path / "in.npy"), **FAST, calibration=0.4, negatives="none")
    run(config, tmp_path / "run")
    config_file = tmp_path / "run" / "config.yaml"
    text = config_file.read_text()
    assert f"score: {read_section(tmp_path / 'run', 'calibration')['score']}\n" in text
    score = read_section(tmp_path / "run", "calibration")["score"]
    config_file.write_text(text.replace(f"score: {score}\n", "score: mine\n"))
    (tmp_path / "run" / "calibration.safetensors").unlink()
    with pytest.raises(ValueError, match="'mine', which is not registered here"):
        calibrate_run(tmp_path / "run", target_fpr=0.2, device="cpu")
    assert calibrate_run(tmp_path / "run", target_fpr=0.2, score="kl", device="cpu").score == "kl"


def test_a_photo_run_that_held_out_nothing_is_calibrated_by_groups(tmp_path, monkeypatch):
    monkeypatch.setenv("NEGVAE_CACHE", str(tmp_path / "cache"))
    for part, seed in (("train", 0), ("test", 1)):
        products(tmp_path / "in" / part, 12, seed)
    config = preset("unsupervised", str(tmp_path / "in"), **FAST, **TILES, calibration=0.0)
    run(config, tmp_path / "run")
    calibrate_run(tmp_path / "run", groups="folders", target_fpr=0.2, device="cpu")
    assert set(load_artifact(tmp_path / "run", "cpu").calibrated().thresholds) == {"dark", "light"}


def test_all_images_of_a_folder_that_was_loaded_are_known_as_all(tmp_path):
    for number in range(10):
        Image.fromarray(np.full((8, 8), number, np.uint8)).save(tmp_path / f"{number}.png")
    assert _source_of(load(str(tmp_path))) == WHOLE
    (tmp_path / "named").mkdir()
    for part in ("train", "test"):
        (tmp_path / "named" / part).mkdir()
        Image.fromarray(np.zeros((8, 8), np.uint8)).save(tmp_path / "named" / part / "a.png")
    assert _source_of(load(str(tmp_path / "named"), "train")) == SPLIT


def test_row_numbers_that_went_through_pandas_twice_are_no_feature(tmp_path):
    pd.DataFrame(np.ones((5, 2)), columns=["a", "b"]).to_csv(tmp_path / "once.csv")
    pd.read_csv(tmp_path / "once.csv").to_csv(tmp_path / "twice.csv", index=False)
    with pytest.raises(ValueError, match="column 0 is called Unnamed: 0: the row numbers of pandas are no feature"):
        load_rows(tmp_path / "twice.csv")


# --- other systems -----


def windows():
    """Return the module os with the name that it has on Windows."""
    return SimpleNamespace(**{**vars(os), "name": "nt"})


def test_a_file_uri_of_windows_has_a_drive(monkeypatch):
    assert stores.local_path("file:///C:/photos%201") == "/C:/photos 1"
    monkeypatch.setattr(stores, "os", windows())
    assert stores.local_path("file:///C:/photos%201") == "C:/photos 1"
    assert stores.local_path("file:///photos") == "/photos"


def test_windows_decodes_anew_beside_pixels_that_are_mapped(tmp_path, monkeypatch):
    files = [str(tmp_path / "a.png"), str(tmp_path / "b.png")]
    for file in files:
        Image.fromarray(np.zeros((20, 20), np.uint8)).save(file)
    monkeypatch.setenv("NEGVAE_CACHE", str(tmp_path / "cache"))
    written = folders._decoded_to

    def mapped(entry, *rest):
        if entry is not None:
            raise PermissionError(13, "Permission denied", str(entry))
        return written(entry, *rest)

    monkeypatch.setattr(folders, "_decoded_to", mapped)
    with pytest.raises(PermissionError):
        folders.read_photos(files, RESIZED, "F")
    monkeypatch.setattr(folders, "os", windows())
    assert len(folders.read_photos(files, RESIZED, "F").inputs) == 2


def test_a_copy_of_a_detector_takes_its_device_where_it_is(monkeypatch):
    detector = NegVAEDetector(device="cuda:1")
    assert detector._device_here() == "auto"
    monkeypatch.setattr(estimator, "resolve_device", lambda name: torch.device(name))
    assert detector._device_here() == "cuda:1"
    assert NegVAEDetector(device="cpu")._device_here() == "cpu"
