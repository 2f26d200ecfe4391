"""A run on a folder of photos of several sizes, from training to the exported file, by the same decoding."""

import dataclasses
import json
from contextlib import ExitStack

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from negvae import NegVAEDetector
from negvae.config import preset
from negvae.data.photos import read_photo
from negvae.report.page import write_report
from negvae.runs.artifact import load_artifact, read_config
from negvae.runs.calibrate import calibrate_run
from negvae.runs.evaluate import evaluate_run
from negvae.runs.export import run_onnx
from negvae.runs.recorded import read_recorded
from negvae.runs.score import score_files
from negvae.runs.sets import load_inliers
from negvae.runs.train import run
from negvae.runs.triton import export_triton

FAST = dict(
    network="pyramid", latent_size=2, epochs=1, batch_size=16, precision="float32", device="cpu", fit="tile", side=16
)


def photos(folder, count, seed=0, bright=0):
    folder.mkdir()
    random = np.random.default_rng(seed)
    for number in range(count):
        coarse = random.integers(0, 160, (3, 3, 3), np.uint8) + np.uint8(bright)
        size = [(20, 40), (36, 24), (16, 16)][number % 3]
        made = Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC)
        made.save(folder / f"{number:02d}.{'jpg' if number % 2 else 'png'}")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    place = tmp_path_factory.mktemp("photos")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NEGVAE_CACHE", str(place / "cache"))
        photos(place / "in", 60)
        photos(place / "out", 12, seed=1, bright=95)
        (place / "in" / "20.png").write_bytes(b"broken")
        (place / "in" / "notes.txt").write_text("text")
        lines = []
        run(preset("unsupervised", str(place / "in"), **FAST), place / "run", log=lines.append, heatmaps=False)
        (place / "lines").write_text("\n".join(lines))
    return place


@pytest.fixture(scope="module")
def artifact(place):
    return load_artifact(place / "run", "cpu")


def test_what_was_found_and_chosen_is_said_and_kept(place, artifact):
    config = read_config(place / "run")[0]
    assert (config.images.fit, config.images.shape) == ("tile", (3, 16, 16))
    assert "48 photos, 16x16 to" not in (place / "lines").read_text()  # one of 48 is broken
    assert "48 of 60 images; the other 12 are kept for negvae evaluate" in (place / "lines").read_text()
    assert (
        "47 photos, 16x16 to 36x24: 16x16 tiles of images reduced to at most 48 pixels, 3 channels; 1 broken"
        in (place / "lines").read_text()
    )
    left_out = (place / "run" / "broken.tsv").read_text().splitlines()
    assert [line.split("\t")[0].rsplit("/", 1)[1] for line in left_out[1:]] == ["20.png", "notes.txt"]
    assert artifact.calibration.tiles in ("mean", "top", "max")


def test_inliers_are_held_out_by_image(place, artifact):
    recorded = read_recorded(place / "run", artifact.provenance)
    inliers = load_inliers(artifact.config, recorded=recorded)
    assert inliers.held_out_images == artifact.calibration.size <= len(recorded.held_out) == 10
    assert len(inliers.held_out) > 10
    files = sorted(path for path in (place / "in").iterdir() if path.suffix != ".txt")
    files = [str(file) for row, file in enumerate(files) if row % 5 != 4]
    kept = [files[row] for row in recorded.held_out if "20.png" not in files[row]]
    wanted = np.concatenate([read_photo(file, file, artifact.config.images)[0] for file in kept])
    np.testing.assert_array_equal(inliers.held_out.numpy(), wanted)


def test_calibrating_again_changes_nothing(place, artifact):
    again = calibrate_run(place / "run", device="cpu")
    assert again.tiles == artifact.calibration.tiles
    for name, scores in artifact.calibration.scores.items():
        np.testing.assert_array_equal(again.scores[name], scores)
    fewer = calibrate_run(place / "run", str(place / "out"), limit=5, target_fpr=0.4, device="cpu")
    assert fewer.size == 5
    calibrate_run(place / "run", target_fpr=0.2, device="cpu")


def test_an_image_has_one_score_wherever_it_is_asked_for(place, artifact):
    done = score_files(place / "run", [str(place / "in")], place / "rows.parquet", device="cpu")
    assert (done.rows, done.errors) == (60, 1)
    rows = {row["path"]: row for row in pq.read_table(place / "rows.parquet").to_pylist()}
    good = [path for path, row in rows.items() if row["error"] is None]
    detector = NegVAEDetector.load(place / "run", device="cpu")
    by_file = detector.ood_score(good)
    np.testing.assert_array_equal(by_file, [rows[path]["combined"] for path in good])
    np.testing.assert_array_equal(detector.p_values(good), [rows[path]["p_value"] for path in good])
    with ExitStack() as stack:
        opened = [stack.enter_context(Image.open(path)) for path in good[:5]]
        np.testing.assert_array_equal(detector.ood_score(opened), by_file[:5])
    assert detector.transform(good).shape == (59, 2)
    with pytest.raises(ValueError, match=r"20\.png"):
        detector.ood_score(str(place / "in"))


def test_evaluation_and_report_are_by_image(place):
    content = evaluate_run(place / "run", [str(place / "out")], device="cpu")
    assert content["rows"][0]["auc_kl"] == pytest.approx(content["rows"][0]["metrics"]["kl"]["auroc"])
    assert "12 photos" in content["data"]["test"]
    assert "12 photos" in content["data"][f"ood {place / 'out'}"]
    found = write_report(place / "run", [str(place / "out")], place / "page.html", device="cpu", top=3)
    assert (found.rows, found.failed) == (12, 0)
    assert (place / "page.html").stat().st_size > 10_000


def test_exported_file_takes_the_tiles_of_one_image(place, artifact):
    pytest.importorskip("onnxruntime")
    onnx = pytest.importorskip("onnx")
    written = export_triton(place / "run", place / "models")
    file = place / "out" / "00.png"
    tiles, _ = read_photo(str(file), "x", artifact.config.images)
    score, p_value, called = run_onnx(written.path, tiles)
    assert score.shape == p_value.shape == called.shape == (1,)
    wanted = NegVAEDetector.load(place / "run", device="cpu").ood_score([str(file)])
    np.testing.assert_allclose(score, wanted, rtol=1e-3)
    facts = {entry.key: entry.value for entry in onnx.load(written.path).metadata_props}
    assert json.loads(facts["images"])["fit"] == "tile"
    assert "tiles of one image" in facts["tiles"]
    described = (written.path.parents[1] / "config.pbtxt").read_text()
    assert "max_batch_size: 0" in described
    assert "dims: [ -1, 3, 16, 16 ]" in described
    assert "dynamic_batching" not in described


@pytest.mark.parametrize(
    ("options", "words"),
    # The tiles that are held out would be enough for this rate, and the images are not.
    [({"target_fpr": 0.05, "confidence": 0.5}, "needs at least 14"), ({"groups": "folders"}, "lies in no subfolder")],
)
def test_a_rule_that_the_held_out_images_cannot_show_is_refused_before_training(place, tmp_path, options, words):
    def trainer(*arguments, **more):
        raise AssertionError("training has begun")

    config = preset("unsupervised", str(place / "in"), **{**FAST, **options})
    with pytest.raises(ValueError, match=words):
        run(config, tmp_path / "run", trainer=trainer)
    assert not (tmp_path / "run").exists()


def test_a_folder_that_has_changed_is_refused(place, artifact, tmp_path):
    import shutil

    shutil.copytree(place / "in", tmp_path / "in")
    recorded = read_recorded(place / "run", artifact.provenance)
    moved = preset("unsupervised", str(tmp_path / "in"), images=artifact.config.images, **FAST)
    assert len(load_inliers(moved, recorded=recorded).held_out)
    Image.new("RGB", (30, 30)).save(tmp_path / "in" / "00.png")
    with pytest.raises(ValueError, match="has changed since the run was trained"):
        load_inliers(moved, recorded=recorded)


def test_equal_images_with_a_broken_one_are_taken_as_they_are(tmp_path):
    (tmp_path / "in").mkdir()
    random = np.random.default_rng(0)
    images = random.integers(0, 256, (30, 16, 18), np.uint8)
    for number, image in enumerate(images):
        Image.fromarray(image).save(tmp_path / "in" / f"{number:02d}.png")
    whole = (tmp_path / "in" / "07.png").read_bytes()
    (tmp_path / "in" / "07.png").write_bytes(whole[:200])  # its header is in order
    config = preset("unsupervised", str(tmp_path / "in"), network="pyramid")
    inliers = load_inliers(config)
    assert inliers.images.fit == "exact"
    left = [number for number in range(30) if number % 5 != 4 and number != 7]
    both = torch.cat([inliers.training, inliers.held_out])[:, 0].numpy()
    assert sorted(image.tobytes() for image in both) == sorted(images[number].tobytes() for number in left)
    assert list(inliers.skipped) == [str(tmp_path / "in" / "07.png")]


def equal_photos(folder, count, seed):
    random = np.random.default_rng(seed)
    for number in range(count):
        place = folder / ("even" if number % 2 == 0 else "odd")
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(random.integers(0, 256, (16, 16), np.uint8)).save(place / f"{number:02d}.png")


def test_a_broken_file_of_another_set_stops_no_run_that_takes_images_as_they_are(tmp_path):
    for seed, name in enumerate(("in", "new", "out")):
        equal_photos(tmp_path / name, 40, seed)
    for name in ("new", "out"):
        (tmp_path / name / "even" / "02.png").write_bytes(b"broken")
    lines, options = [], {**FAST, "fit": None, "side": None, "groups": "folders"}
    config = preset("unsupervised", str(tmp_path / "in"), **{**options, "negatives": f"auxiliary:{tmp_path / 'out'}"})
    with pytest.raises(ValueError, match="out: 1 of 40 images cannot be read, more than 0%"):
        run(dataclasses.replace(config, max_broken=0.0), tmp_path / "none", heatmaps=False)
    run(config, tmp_path / "run", log=lines.append, heatmaps=False)
    assert read_config(tmp_path / "run")[0].images is None
    calibrate_run(tmp_path / "run", str(tmp_path / "new"), groups="folders", device="cpu", log=lines.append)
    assert [line.endswith("; 1 broken") for line in lines if line.startswith(("negatives:", "calibration:"))] == [1, 1]
    groups = load_artifact(tmp_path / "run", "cpu").calibration.groups["combined"]
    assert {name: len(scores) for name, scores in groups.items()} == {"even": 19, "odd": 20}
    content = evaluate_run(tmp_path / "run", [str(tmp_path / "out")], data=str(tmp_path / "new"), device="cpu")
    assert all("39 photos" in each and each.endswith("; 1 broken") for each in content["data"].values())
    for place in (tmp_path / "out" / "odd").iterdir():
        place.write_bytes(b"broken")
    with pytest.raises(ValueError, match="21 of 40 images cannot be read, more than 10%"):
        evaluate_run(tmp_path / "run", [str(tmp_path / "out")], data=str(tmp_path / "new"), device="cpu")


def test_a_broken_test_image_of_the_run_stops_no_evaluation(tmp_path):
    for seed, name in enumerate(("in/train", "in/test", "out")):
        equal_photos(tmp_path / name, 40, seed)
    (tmp_path / "in" / "test" / "even" / "02.png").write_bytes(b"broken")
    run(preset("unsupervised", str(tmp_path / "in"), **{**FAST, "fit": None, "side": None}), tmp_path / "run")
    assert read_config(tmp_path / "run")[0].images is None
    content = evaluate_run(tmp_path / "run", [str(tmp_path / "out")], device="cpu")
    assert "39 photos" in content["data"]["test"]
    assert content["data"]["test"].endswith("; 1 broken")


def test_equal_images_stored_on_their_side_are_trained_on_and_scored_upright(tmp_path):
    for name in ("upright", "turned"):
        (tmp_path / name).mkdir()
    exif, random = Image.Exif(), np.random.default_rng(0)
    exif[0x0112] = 6
    for number in range(20):
        image = Image.fromarray(random.integers(0, 256, (16, 18), np.uint8))
        image.save(tmp_path / "upright" / f"{number:02d}.png")
        stored = image.transpose(Image.Transpose.ROTATE_90) if number % 2 else image
        stored.save(tmp_path / "turned" / f"{number:02d}.png", exif=exif if number % 2 else None)
    upright, turned = (
        load_inliers(preset("unsupervised", str(tmp_path / name), network="pyramid")) for name in ("upright", "turned")
    )
    assert (upright.images, turned.images.fit) == (None, "exact")
    assert torch.equal(upright.training, turned.training)
    assert torch.equal(upright.held_out, turned.held_out)
    options = dict(network="pyramid", latent_size=2, epochs=1, batch_size=16, device="cpu", target_fpr=None)
    detector = NegVAEDetector(**options).fit(str(tmp_path / "turned"))
    scores = [detector.ood_score(str(tmp_path / name)) for name in ("upright", "turned")]
    np.testing.assert_array_equal(*scores)


def test_detector_is_fitted_on_paths_and_on_a_folder(place, tmp_path, monkeypatch):
    monkeypatch.setenv("NEGVAE_CACHE", str(place / "cache"))
    options = dict(network="pyramid", latent_size=2, epochs=1, batch_size=16, device="cpu", target_fpr=None)
    photos(tmp_path / "large", 5, seed=5)
    for path in (tmp_path / "large").iterdir():
        Image.open(path).resize((170 + int(path.stem), 130)).save(path)
    paths = sorted(map(str, (tmp_path / "large").iterdir()))
    by_paths = NegVAEDetector(**options).fit(paths)
    assert by_paths.config_.images.tiled
    by_folder = NegVAEDetector(**options).fit(str(tmp_path / "large"))
    np.testing.assert_array_equal(by_paths.ood_score(paths), by_folder.ood_score(paths))
    by_folder.save(tmp_path / "saved")
    again = NegVAEDetector.load(tmp_path / "saved", device="cpu")
    np.testing.assert_array_equal(again.predict(paths), by_folder.predict(paths))
