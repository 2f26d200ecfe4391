"""Regressions: tiles, heat maps, trackers, tables of groups, detectors of other models' scores, Triton."""

import dataclasses
import os
import subprocess
import sys
import types
import warnings
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from safetensors.numpy import load_file, save_file

from negvae import ScoreDetector
from negvae.checksums import CHECKSUM
from negvae.config import preset
from negvae.data import streams
from negvae.data.batches import Batch, InputSpec
from negvae.data.fit import fit_photo
from negvae.data.rows import load_rows
from negvae.data.streams import stream
from negvae.decoding import Decoding
from negvae.files import write_text
from negvae.runs.calibrate import calibrate_run
from negvae.runs.evaluate import evaluate_run
from negvae.runs.pictures import MapWriter
from negvae.runs.train import run
from negvae.runs.triton import export_triton
from negvae.runs.watch import watch
from negvae.training import tracking
from tests.conftest import blobs, small_run
from tests.training.test_tracking import ROWS

TILES = Decoding(fit="tile", height=64, width=64, channels=1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder of 40 images, and a run that was trained on it."""
    place = tmp_path_factory.mktemp("newest")
    (place / "photos").mkdir()
    for number, image in enumerate(blobs(40, (1, 28, 28))[:, 0].numpy()):
        Image.fromarray(image).save(place / "photos" / f"{number:02d}.png")
    config = small_run("gray", initialization="he", epochs=1, calibration=0.25)
    run(dataclasses.replace(config, data=str(place / "photos")), place / "run")
    return place


@pytest.mark.parametrize("fit", ["tile", "crop"])
def test_a_narrow_image_is_an_error_and_not_gigabytes(fit, tmp_path):
    """Two million pixels in a row, enlarged to the height of a tile, are eight thousand million."""
    decoding = dataclasses.replace(TILES, fit=fit)
    for shape in ((1, 1, 2_000_000), (1, 2_000_000, 1)):
        with pytest.raises(ValueError, match=r"enlarged to cover 64 x 64 it would have 8,192,000,000 pixels"):
            fit_photo(np.zeros(shape, np.uint8), decoding)
    Image.fromarray(np.zeros((1, 2_000_000), np.uint8)).save(tmp_path / "a.png")
    Image.fromarray(np.zeros((8, 400), np.uint8)).save(tmp_path / "b.png")  # narrow, and no harm
    (batch,) = stream([str(tmp_path)], InputSpec(TILES.shape, decoding=decoding))
    assert ["enlarged to cover" in error for error in batch.errors] == [True, False]
    assert batch.errors[1] == ""


def test_a_batch_of_many_tiles_ends_early_and_holds_every_row(monkeypatch, tmp_path):
    for number in range(9):
        Image.fromarray(np.full((200, 200 + number), number, np.uint8)).save(tmp_path / f"{number}.png")
    spec = InputSpec(TILES.shape, decoding=TILES)
    whole = list(stream([str(tmp_path)], spec))
    monkeypatch.setattr(streams, "_HEAVY", 100_000)
    parts = list(stream([str(tmp_path)], spec))
    assert len(parts) > len(whole)
    assert max(part.images.nbytes for part in parts) < max(each.images.nbytes for each in whole)
    assert [path for part in parts for path in part.paths] == [path for each in whole for path in each.paths]
    np.testing.assert_array_equal(*(np.concatenate([each.images for each in found]) for found in (parts, whole)))
    assert [plan for part in parts for plan in part.tilings] == [plan for each in whole for plan in each.tilings]


@pytest.mark.parametrize("length", [60, 82])
def test_a_name_as_long_as_the_file_system_takes(length, tmp_path):
    """Names are measured in bytes, of which these characters have three."""
    name = "\u5199" * length
    write_text(tmp_path / f"{name}.csv", "whole")
    assert (tmp_path / f"{name}.csv").read_text() == "whole"
    image = blobs(1, (1, 28, 28)).numpy()
    writer = MapWriter(tmp_path / "maps", lambda images: np.zeros((len(images), 28, 28)))
    for folder in "ab":
        path = tmp_path / folder / f"{name}.png"
        path.parent.mkdir()
        Image.fromarray(image[0, 0]).save(path)
        writer.write(Batch([str(path)], [0], [""], image), np.array([0]))
    assert len(list((tmp_path / "maps").iterdir())) == 2


class Counted(set):
    """A set that counts how often it is asked."""

    asked = 0

    def __contains__(self, item):
        self.asked += 1
        return super().__contains__(item)


def test_many_maps_take_as_many_times_as_long(tmp_path, monkeypatch):
    """Before, the folder was read for each map, and each number of a name was tried for each image of that name."""
    place, scan, scans = tmp_path / "maps", os.scandir, []
    die = "import os, pathlib, sys, negvae.files as f\nwith f.replacing(pathlib.Path(sys.argv[1])): os._exit(1)"
    place.mkdir()
    subprocess.run([sys.executable, "-c", die, str(place / "gone.png")], check=False)
    assert len(os.listdir(place)) == 1
    monkeypatch.setattr(os, "scandir", lambda path: scans.append(path) or scan(path))
    writer = MapWriter(place, lambda images: np.zeros((len(images), 28, 28)))
    assert os.listdir(place) == []
    writer._used = used = Counted()
    stems = ["a", "a-2", "a", "A", "a", "A-2", *["a"] * 40]
    images = blobs(1, (1, 28, 28)).numpy().repeat(len(stems), 0)
    paths = [f"{number}/{stem}.png" for number, stem in enumerate(stems)]
    names = writer.write(Batch(paths, [None] * len(stems), [""] * len(stems), images), np.arange(len(stems)))
    assert names[:7] == ["a.png", "a-2.png", "a-3.png", "A-4.png", "a-5.png", "A-2-2.png", "a-6.png"]
    assert sorted(names) == sorted(os.listdir(place))
    assert len(scans) == 1
    assert used.asked < 3 * len(stems)


def test_a_failed_export_leaves_no_model_that_triton_would_load(folder, tmp_path):
    config = small_run("gray", epochs=1, calibration=0.0)
    run(dataclasses.replace(config, data=str(folder / "photos")), tmp_path / "plain")
    (tmp_path / "models" / "other").mkdir(parents=True)
    with pytest.raises(ValueError, match="calibrat"):
        export_triton(tmp_path / "plain", tmp_path / "models")
    assert [path.name for path in (tmp_path / "models").iterdir()] == ["other"]
    with pytest.raises(ValueError, match="calibrat"):
        export_triton(tmp_path / "plain", tmp_path / "new")
    assert not (tmp_path / "new").exists()


class Tracker:
    """A tracker that fails at one of its calls."""

    def __init__(self, where):
        self.where, self.calls = where, []

    def __enter__(self):
        return self.call("begin") or self.record

    def __exit__(self, *error):
        self.call("end")

    def record(self, update):
        self.call("record")

    def call(self, name):
        self.calls.append(name)
        if name == self.where:
            raise ConnectionError("the server is gone\nand more lines")


@pytest.mark.parametrize("where", ["record", "end"])
def test_training_outlives_a_tracker_that_fails(where, monkeypatch, tmp_path):
    failing, seen = Tracker(where), []
    monkeypatch.setitem(tracking.TRACKERS, "mlflow", lambda fields, directory: failing)

    def train():
        with tracking.tracked(["mlflow"], {}, tmp_path, seen.append) as record:
            for update in ROWS:
                record(update)

    with pytest.warns(
        UserWarning, match=r"^tracker mlflow failed \(the server is gone\): training goes on without it$"
    ):
        train()
    assert seen == ROWS
    assert failing.calls == (["begin", "record", "end"] if where == "record" else ["begin", "record", "record", "end"])


def test_a_tracker_that_cannot_begin_is_one_line_and_an_error_of_training_stays_its_own(monkeypatch, tmp_path):
    monkeypatch.setitem(tracking.TRACKERS, "mlflow", lambda fields, directory: Tracker("begin"))
    with (
        pytest.raises(ValueError, match=r"^tracker mlflow does not begin: the server is gone$"),
        tracking.tracked(["mlflow"], {}, tmp_path, print),
    ):
        pass
    ending = Tracker("end")
    monkeypatch.setitem(tracking.TRACKERS, "mlflow", lambda fields, directory: ending)
    with pytest.raises(KeyError, match="own"), tracking.tracked(["mlflow"], {}, tmp_path, print):
        raise KeyError("own")
    assert ending.calls == ["begin", "end"]


def test_whole_numbers_beyond_two_to_the_53rd_are_features_too(tmp_path):
    """Times in nanoseconds, and identifiers: a Parquet file refused what CSV and .npy files round."""
    values = [2**60 + 1, -(2**62) - 1, 7]
    table = pa.table({"time": pa.array(values, pa.int64()), "id": pa.array([2**64 - 1, 0, 1], pa.uint64())})
    pq.write_table(table, tmp_path / "rows.parquet")
    (tmp_path / "rows.csv").write_text(f"time,id\n{values[0]},{2**64 - 1}\n{values[1]},0\n7,1\n")
    expected = np.array([values, [2**64 - 1, 0, 1]], object).T.astype(np.float64)
    for name in ("rows.parquet", "rows.csv"):
        np.testing.assert_array_equal(load_rows(tmp_path / name), expected)


@pytest.mark.parametrize("seconds", [{"interval": float("nan")}, {"settle": float("nan")}, {"interval": 0.0}])
def test_seconds_that_are_no_number_are_refused(seconds, folder, tmp_path):
    with pytest.raises(ValueError, match=r"above 0 seconds|must be 0 seconds or more"):
        watch(folder / "run", str(folder / "photos"), tmp_path / "out", once=True, **seconds)


def two(batch):
    return torch.stack([batch[:, 0], -batch[:, 1]], 1)


@pytest.fixture
def saved(tmp_path):
    """A detector whose names of scores and groups have dots, saved."""
    rows = torch.randn(400, 2, generator=torch.Generator().manual_seed(0)) * torch.tensor([1.0, 50.0])
    groups = ["x.y", "y"] * 200
    detector = ScoreDetector(two, names=["s", "s.x"], target_fpr=0.1).fit(rows, groups=groups)
    detector.save(tmp_path / "saved")
    return detector, tmp_path / "saved"


def test_scores_of_groups_are_kept_apart_whatever_their_names(saved):
    detector, place = saved
    again = ScoreDetector.load(place, two)
    assert again.calibration_.thresholds == detector.calibration_.thresholds
    for score, groups in detector.calibration_.groups.items():
        for name, values in groups.items():
            np.testing.assert_array_equal(again.calibration_.groups[score][name], values)


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("held_out.s", lambda values: values[::-1]),
        ("held_out.s", lambda values: np.full_like(values, np.nan)),
        ("held_out.s", lambda values: values[:5]),
        ("group.0.largest", lambda values: values[:0]),
        ("scales", lambda values: values[:, :1]),
        ("scales", lambda values: values * np.inf),
    ],
)
def test_a_damaged_detector_is_refused_and_does_not_decide(name, change, saved):
    _, place = saved
    (file,) = place.iterdir()
    arrays, header = load_file(file), types.SimpleNamespace()
    with pytest.MonkeyPatch.context():
        from safetensors import safe_open

        with safe_open(file, "np") as opened:
            header = opened.metadata()
    del header[CHECKSUM]  # which would tell it first
    with np.errstate(invalid="ignore"):
        arrays[name] = np.ascontiguousarray(change(arrays[name]))
    save_file(arrays, file, header)
    with pytest.raises(ValueError, match=r"damaged, or not of a ScoreDetector"):
        ScoreDetector.load(place, two)


def test_calibrating_on_a_copy_of_what_was_trained_on_is_refused(folder, tmp_path):
    """The same files in another folder, one of them left out: the detector has seen three of four."""
    (tmp_path / "copy").mkdir()
    for path in sorted((folder / "photos").iterdir())[1:]:
        (tmp_path / "copy" / f"new-{path.name}").write_bytes(path.read_bytes())
    message = "23 of these 39 are inliers that the model was trained on"  # others it held out, or left for tests
    with pytest.raises(ValueError, match=message):
        calibrate_run(folder / "run", str(tmp_path / "copy"))
    with pytest.raises(ValueError, match=message):
        evaluate_run(folder / "run", ["uniform-noise"], data=str(tmp_path / "copy"))
    rows = np.random.default_rng(0).normal(size=(60, 3))
    np.save(tmp_path / "rows.npy", rows)
    np.save(tmp_path / "fewer.npy", rows[::-1][:50])
    np.save(tmp_path / "new.npy", np.concatenate([rows[:2], rows[:48] + 1e-9]))
    config = preset("features", str(tmp_path / "rows.npy"), epochs=1, target_fpr=0.2, device="cpu")
    run(config, tmp_path / "table", left_open=["calibration"])
    with pytest.raises(ValueError, match=r"fewer\.npy: \d+ of these 50 are inliers that the model was trained on"):
        calibrate_run(tmp_path / "table", str(tmp_path / "fewer.npy"))
    assert calibrate_run(tmp_path / "table", str(tmp_path / "new.npy")).size == 50


def test_a_map_of_a_file_that_has_gone_is_no_error(tmp_path):
    """It is scored already; its own size is then not known."""
    writer = MapWriter(tmp_path / "maps", lambda images: np.zeros((len(images), 28, 28)))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        names = writer.write(Batch([str(Path("gone.png"))], [0], [""], blobs(1, (1, 28, 28)).numpy()), np.array([0]))
    assert names == ["gone-0.png"]
