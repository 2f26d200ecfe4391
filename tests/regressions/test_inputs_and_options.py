"""Inputs that were read in part or twice, parts of a job that went on otherwise, and options that were passed over."""

import json
import shutil
import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from negvae import NegVAEDetector
from negvae.config import preset
from negvae.data import load
from negvae.data.batches import Batch, InputSpec
from negvae.data.folders import choose_decoding, look_at
from negvae.data.formats import DataError
from negvae.data.formats.folder import LeftOut
from negvae.data.load import image_files
from negvae.data.rows import load_rows
from negvae.data.shards import shards
from negvae.data.spans import spans
from negvae.detector.cleaning import clean
from negvae.runs.calibrate import calibrate_run
from negvae.runs.defects import evaluate_defects
from negvae.runs.embed import read_feature_rows
from negvae.runs.folders import write_skipped
from negvae.runs.parts import score_to_folder
from negvae.runs.pictures import MapWriter, own_form
from negvae.runs.score import score_files
from negvae.runs.train import run
from negvae.runs.watch import watch
from negvae.scoring.heatmaps import LARGEST
from negvae.training.checkpoint import FILE as CHECKPOINT
from tests.cli.test_commands import call
from tests.conftest import blobs, calibrated_run

SHAPE = (1, 28, 28)
module = sys.modules["negvae.data.load"]  # in the package, the name is that of the function


def put(folder, images, ending=".png"):
    """Write images to a folder, which is made."""
    folder.mkdir(parents=True, exist_ok=True)
    for place, image in enumerate(images):
        Image.fromarray(image[0] if len(image) == 1 else image.transpose(1, 2, 0)).save(folder / f"{place:02}{ending}")
    return folder


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return calibrated_run(tmp_path_factory.mktemp("model"))


# --- folders with parts -----


def test_embedded_images_are_those_of_the_part_for_training(tmp_path):
    pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    from negvae.data.embedding import load_encoder
    from tests.data.test_embedding import write_encoder

    root = tmp_path / "bottle"
    for below, count, seed in (
        ("train/good", 40, 0),
        ("test/good", 8, 1),
        ("test/bad", 6, 2),
        ("ground_truth/bad", 6, 3),
    ):
        put(root / below, blobs(count, (3, 16, 16), seed).numpy())
    path = write_encoder(tmp_path / "encoder.onnx")
    assert len(read_feature_rows(str(root), load_encoder(path), split="train").rows) == 40
    config = preset("features", str(root), embed=str(path), epochs=1, device="cpu", calibration=0.5)
    run(config, tmp_path / "run")
    kinds = evaluate_defects(tmp_path / "run", root)["kinds"]
    assert {name: each["images"] for name, each in kinds.items()} == {"bad": 6, "all": 6}
    moved = path.rename(tmp_path / "moved.onnx")
    assert evaluate_defects(tmp_path / "run", root, embed=moved)["kinds"] == kinds


def test_embedded_images_of_files_with_parts_are_those_of_one_and_groups_lie_below_the_part(tmp_path):
    pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    from negvae.data.embedding import load_encoder
    from tests.data.test_embedding import write_encoder

    encoder = load_encoder(write_encoder(tmp_path / "encoder.onnx"))
    counts = {"train": 6, "test": 3}
    (tmp_path / "shards").mkdir()
    for split, count in counts.items():
        folder = put(tmp_path / "photos" / split / "kind", blobs(count, (3, 16, 16)).numpy())
        encoded = [path.read_bytes() for path in sorted(folder.iterdir())]
        pq.write_table(pa.table({"image": encoded}), tmp_path / "shards" / f"{split}-0.parquet")
    np.savez(tmp_path / "s.npz", **{f"x_{split}": blobs(count, (3, 16, 16)).numpy() for split, count in counts.items()})
    for split, count in counts.items():
        for name in ("s.npz", "shards"):
            assert len(read_feature_rows(str(tmp_path / name), encoder, split=split).rows) == count
        found = read_feature_rows(str(tmp_path / "photos"), encoder, groups="folders", split=split)
        assert found.groups == ("kind",) * count
    folder = put(tmp_path / "mixed", blobs(4, (3, 16, 16)).numpy())
    for name in "ab":
        np.save(folder / f"{name}.npy", blobs(3, (3, 16, 16)).numpy())
    assert len(read_feature_rows(str(folder), encoder, split="train").rows) == 10
    with pytest.raises(ValueError, match="limit must be at least 1, not -1"):
        read_feature_rows(str(folder), encoder, split="train", limit=-1)


def test_a_folder_is_watched_whatever_set_has_its_name(model, tmp_path, monkeypatch):
    put(tmp_path / "mnist", blobs(3, SHAPE).numpy())
    monkeypatch.chdir(tmp_path)
    for number, name in enumerate(("mnist", "./mnist/")):
        watched = watch(model, name, tmp_path / f"out{number}", once=True, settle=0)
        assert (watched.rows, watched.errors) == (3, 0)
    with pytest.raises(ValueError, match="the folder to watch has an empty name"):
        watch(model, "", tmp_path / "none", once=True)
    assert not (tmp_path / "none").exists()


def test_scores_beside_photos_do_not_hide_them(tmp_path):
    folder = put(tmp_path / "photos", blobs(5, SHAPE).numpy())
    pq.write_table(pa.table({"path": ["x"], "kl": [1.0]}), folder / "scores.parquet")
    assert len(load(folder, "train").images) == 5
    packed = pa.table({"image": [(folder / "00.png").read_bytes()]})
    pq.write_table(packed, folder / "x.parquet")
    with pytest.raises(DataError, match=r"photos: holds images, and so does .*x\.parquet: name that file"):
        load(folder, "train")
    assert len(load(folder / "x.parquet", "train").images) == 1


@pytest.mark.parametrize("names", [("x",), ("train-0", "test-0")])
def test_pictures_of_a_set_of_the_hub_do_not_hide_its_shards(tmp_path, monkeypatch, names):
    shown = put(tmp_path / "hub", blobs(2, SHAPE).numpy())
    put(shown / "assets", blobs(2, SHAPE).numpy())
    (shown / "data").mkdir()
    for name in names:
        pq.write_table(pa.table({"image": [(shown / "00.png").read_bytes()]}), shown / "data" / f"{name}.parquet")
    assert len(load(shown, "train").images) == 1
    flat = put(tmp_path / "flat", blobs(2, SHAPE).numpy())
    shutil.copy(shown / "data" / f"{names[0]}.parquet", flat)
    monkeypatch.setattr(module, "from_hub", lambda text, log, local: (flat, ""))
    assert len(load("hf:owner/name", "train").images) == 1


def test_a_pattern_names_links_that_lead_nowhere_and_says_which_folders_it_skips(tmp_path):
    folder = put(tmp_path / "odd", blobs(1, SHAPE).numpy())
    (folder / "gone.png").symlink_to(tmp_path / "nowhere.png")
    (folder / "folder.png").mkdir()
    skipped = LeftOut()
    assert [span.path for span in spans([str(folder / "*")], skipped)] == [
        str(folder / name) for name in ("00.png", "gone.png")
    ]
    assert skipped.describe().startswith("1 left out (folder 1:")


# --- photos -----


@pytest.mark.parametrize("ending", [".jpg", ".png", ".tif"])
@pytest.mark.parametrize("orientation", [1, 2, 5, 6, 8])
def test_maps_lie_over_images_as_they_are_seen(tmp_path, ending, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / f"x{ending}"
    Image.fromarray(np.zeros((20, 40), np.uint8)).save(path, exif=exif)
    aside = orientation in (5, 6, 8)
    size, left = own_form(str(path))
    assert size == ((40, 20) if aside else (20, 40))
    assert left == (1 if ending == ".tif" else orientation)
    stored = np.zeros((1, 28, 28), np.float32)
    stored[0, :14, :14] = LARGEST  # at the top left of what is stored
    writer = MapWriter(tmp_path / "maps", lambda images: stored, upright=False)
    (name,) = writer.write(Batch([str(path)], [0], [""], np.zeros((1, *SHAPE), np.uint8)), np.array([0]))
    with Image.open(tmp_path / "maps" / name) as drawn:
        found = np.asarray(drawn)
    assert found.shape == size
    corner = {1: (0, 0), 2: (0, 1), 5: (0, 0), 6: (0, 1), 8: (1, 0)}[1 if ending == ".tif" else orientation]
    rows, columns = (slice(None, length // 4) if place == 0 else slice(-(length // 4), None)
                     for place, length in zip(corner, size, strict=True))  # fmt: skip
    assert found[rows, columns].min() > 200
    assert found.astype(int).sum() < 0.4 * found.size * 255


def test_larger_photos_than_those_of_training_are_reduced(tmp_path):
    sources = []
    for place, side in enumerate((150, 170, 160)):
        Image.fromarray(np.zeros((220, side), np.uint8)).save(tmp_path / f"{place}.png")
        sources.append((str(place), str(tmp_path / f"{place}.png")))
    assert choose_decoding(look_at(sources, "x"), None, None, sources).longest == 288


def test_an_image_with_damaged_pixels_does_not_end_cleaning_or_a_fit(tmp_path):
    folder = put(tmp_path / "in", blobs(40, SHAPE).numpy())
    whole = (folder / "07.png").read_bytes()
    (folder / "07.png").write_bytes(whole[: len(whole) // 2])
    said = []
    found = clean(str(folder), tmp_path / "list.csv", folds=2, epochs=1, log=said.append)
    assert found.rows == 39
    assert any("07.png" in line and "it is left out" in line for line in said)
    with pytest.warns(UserWarning, match=r"1 broken file is left out \(.*07\.png"):
        fitted = NegVAEDetector(epochs=1, target_fpr=None, transformations="none").fit(folder)
    assert fitted.calibration_.size == 8


def test_broken_files_are_listed_with_their_reasons_in_one_line_each(tmp_path):
    write_skipped(tmp_path, {"a\tb\nc.png": "cut\noff", "d.png": "hidden"})
    (listed,) = tmp_path.glob("*.tsv")
    assert listed.read_text() == "file\treason\na b c.png\tcut off\nd.png\thidden\n"


# --- parts -----


@pytest.fixture(scope="module")
def tables(tmp_path_factory):
    """A model of rows with groups, and three tables of six rows, the second of which has no column of groups."""
    place = tmp_path_factory.mktemp("tables")
    random = np.random.default_rng(0)
    for name, count in (("good", 120), ("n1", 6), ("n2", 6), ("n3", 6)):
        rows = random.normal(size=(count, 2))
        site = "" if name == "n2" else ",site"
        lines = [f"a,b{site}", *(f"{a},{b}" + (site and f",{'AB'[i % 2]}") for i, (a, b) in enumerate(rows))]
        (place / f"{name}.csv").write_text("\n".join([*lines, ""]))
    config = preset("features", str(place / "good.csv"), groups="site", target_fpr=0.1, epochs=1, device="cpu")
    run(config, place / "model", left_open=["calibration"])
    return place


def test_each_table_of_rows_is_a_shard_that_cannot_be_cut(tables):
    files = [str(tables / f"n{number}.csv") for number in (1, 2, 3)]
    spec = InputSpec((2, 1, 1), features=True)
    assert [[span.path for span in shard] for shard in shards(spans(files, features=True), spec, 6)] == [
        [file] for file in files
    ]


def test_a_resumed_job_is_as_strict_about_groups_as_an_unbroken_one(tables, tmp_path):
    inputs = [str(tables / f"n{number}.csv") for number in (1, 2, 3)]
    options = {"groups": "site", "shard_rows": 1}
    out, said = tmp_path / "out", []
    whole = score_to_folder(tables / "model", inputs, str(out), **options)
    assert (whole.rows, whole.errors) == (18, 6)
    expected = pq.read_table(out).to_pylist()
    parts = sorted(out.glob("part-*.parquet"))
    for part in parts[1:]:
        part.unlink()
    score_to_folder(tables / "model", inputs, str(out), resume=True, **options)
    assert pq.read_table(out).to_pylist() == expected
    with pytest.raises(ValueError, match=r"n2\.csv: has no column 'site'"):
        score_to_folder(tables / "model", inputs[1:], str(tmp_path / "new"), **options)
    (tmp_path / "damaged.csv").write_bytes(b"a,b,site\n\xff\xfe\x00,")
    damaged = [str(tmp_path / "damaged.csv"), *inputs[1:]]
    with pytest.raises(ValueError, match=r"n2\.csv: has no column 'site'"):
        score_to_folder(tables / "model", damaged, str(tmp_path / "newer"), **options)
    (tmp_path / "other.csv").write_text("a,b,site\n0,0,C\n0,1,C\n")
    score_to_folder(tables / "model", [str(tmp_path / "other.csv")], str(tmp_path / "c"), log=said.append, **options)
    assert any("2 rows have a group that was not calibrated ('C')" in line for line in said)


# --- options -----


def test_options_that_would_do_nothing_are_refused(model, tmp_path):
    np.save(tmp_path / "new.npy", blobs(4, SHAPE, 1).numpy())
    inputs, out = [str(tmp_path / "new.npy")], tmp_path / "s.csv"
    with pytest.raises(ValueError, match="goes without target_fpr and confidence"):
        score_files(model, inputs, out, fdr=0.3, confidence=0.5)
    with pytest.raises(ValueError, match=r"ensemble: the scores to write \(kl\) are of one model each; waic is one"):
        score_files(model, inputs, out, names=["kl"], ensemble=[model])
    for limit in (0, -1):
        with pytest.raises(ValueError, match=f"limit must be at least 1, not {limit}"):
            calibrate_run(model, limit=limit)
        with pytest.raises(ValueError, match=f"limit must be at least 1, not {limit}"):
            image_files(tmp_path, "train", limit=limit)
        with pytest.raises(ValueError, match=f"limit must be at least 1, not {limit}"):
            load_rows(tmp_path / "rows.csv", limit)
    assert not out.exists()


def test_a_run_goes_on_under_the_preset_that_it_was_started_with(capsys, tmp_path):
    np.save(tmp_path / "in.npy", blobs(60, SHAPE).numpy())
    start = ("train", "--data", tmp_path / "in.npy", "--out", tmp_path / "run", "--preset", "unsupervised")
    assert call(capsys, *start, "--epochs", 1, "--no-heatmaps")[0] == 0
    code, _, error = call(capsys, *start, "--epochs", 2, "--no-heatmaps", "--resume")
    assert code == 0, error
    before = (tmp_path / "run" / "weights.safetensors").read_bytes()
    code, _, error = call(capsys, *start, "--resume", "--batch-size", 7)
    assert code == 2
    assert "was started with batch_size" in error
    assert json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[-1])["epoch"] == 2
    (tmp_path / "run" / CHECKPOINT).unlink()
    code, _, error = call(capsys, *start, "--epochs", 3, "--resume")
    assert code == 2
    assert "holds a trained model, and no" in error
    assert (tmp_path / "run" / "weights.safetensors").read_bytes() == before
