"""Heat maps of a run: kept, written as pictures, exported, shown on the page, and measured by masks of defects."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from negvae import NegVAEDetector
from negvae.data.batches import Batch
from negvae.data.formats import decode_image
from negvae.data.photos import read_header, read_photo
from negvae.decoding import Decoding
from negvae.runs import heatmaps
from negvae.runs.artifact import load_artifact
from negvae.runs.pictures import MapWriter, palette
from negvae.scoring.heatmaps import Heatmaps
from negvae.training import patches
from tests.cli.test_commands import call
from tests.conftest import blobs

SIDE = 24


@pytest.fixture(autouse=True)
def _few_steps(monkeypatch):
    monkeypatch.setattr(patches, "STEPS", 60)


def opened(path):
    with open(path, "rb") as file:
        return Image.open(file).copy()


@pytest.fixture
def folder(tmp_path):
    """A folder in the layout of MVTec AD: squares on blobs, masks twice as large as the images."""
    root = tmp_path / "bottles"
    names = {"train/good": (80, 0), "test/good": (8, 1), "test/square": (6, 2), "test/unmarked": (1, 3)}
    for name, (count, seed) in names.items():
        (root / name).mkdir(parents=True)
        for index, image in enumerate(blobs(count, (1, SIDE, SIDE), seed).numpy()):
            pixels = image[0].copy()
            if "good" not in name:
                pixels[2 : 8 + index, 3:9] = 255
            Image.fromarray(pixels).save(root / name / f"{index:03}.png")
    (root / "ground_truth/square").mkdir(parents=True)
    for index in range(6):
        mask = np.zeros((2 * SIDE, 2 * SIDE), np.uint8)
        mask[4 : 2 * (8 + index), 6:18] = 255
        Image.fromarray(mask).save(root / f"ground_truth/square/{index:03}_mask.png")
    return root


def test_from_a_folder_to_maps(capsys, folder, tmp_path):
    run, maps = tmp_path / "run", tmp_path / "maps"
    plain = ["train", "--data", folder, "--epochs", "1", "--preset", "general", "--device", "cpu"]
    code, log, _ = call(capsys, *plain, "--out", run, "--heatmaps")
    assert code == 0
    assert "80 images" in log
    assert (run / heatmaps.FILE).exists()

    code, table, _ = call(capsys, "evaluate", run, "--device", "cpu")
    assert code == 0
    found = json.loads((run / "evaluation.json").read_text())
    assert found["kinds"].keys() == {"square", "unmarked", "all"}
    assert found["kinds"]["all"]["images"] == 7
    assert found["kinds"]["square"]["auroc_defects"] > 0.8
    assert found["pixel_auroc"] > 0.85
    assert 0 < found["pro"] <= 1
    assert found["without_mask"] == 1
    assert "1 image has no mask in ground_truth, and is left out" in table
    code, _, error = call(capsys, "evaluate", run, "--limit", "3")
    assert (code, error.count("\n")) == (2, 1)
    assert "--limit goes with --ood" in error
    assert f"{found['pixel_auroc']:.3f}" in table

    # Other names in capitals are the same to some file systems; an image of another size has a map of its own size.
    (folder / "test/good/000.PNG").write_bytes((folder / "test/good/000.png").read_bytes())
    opened(folder / "test/good/001.png").resize((50, 36)).save(folder / "test/good/wide.png")
    out = tmp_path / "scores.jsonl"
    options = ["--heatmaps", maps, "--out", out, "--score", "defects", "--resize", "--device", "cpu"]
    code, _, log = call(capsys, "score", run, folder / "test", *options)
    assert code == 0
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert len({row["heatmap"].lower() for row in rows}) == len(rows) == 17
    assert {path.name for path in maps.iterdir()} == {row["heatmap"] for row in rows}
    assert all(0 < row["p_value"] <= 1 for row in rows)
    assert opened(maps / "wide.png").size == (50, 36)
    square = next(row["heatmap"] for row in rows if row["path"].endswith("square/005.png"))
    picture = opened(maps / square)
    levels = np.asarray(picture)
    artifact = load_artifact(run, "cpu")
    image = np.asarray(opened(folder / "test/square/005.png"))[None, None]
    wanted = artifact.maps()(torch.from_numpy(image.copy()))[0]
    assert np.abs(levels / 255 * 6 - wanted.clip(0, 6)).max() <= 0.5 * 6 / 255 + 1e-6
    assert np.array_equal(np.asarray(picture.convert("RGB")), palette()[levels])
    code, _, error = call(capsys, "score", run, folder / "test", "--heatmaps", maps, "--out", out)
    assert code == 2
    assert "not empty" in error

    page = tmp_path / "page.html"
    assert call(capsys, "report", run, folder / "test/square", "--out", page, "--device", "cpu")[0] == 0
    assert page.read_text().count("Where, from 0") >= 2


def test_detector_keeps_maps_and_says_when_it_cannot(tmp_path):
    images = blobs(60, (1, SIDE, 20)).numpy()
    detector = NegVAEDetector(epochs=1, preset="general", device="cpu", target_fpr=None).fit(images)
    detector.save(tmp_path / "without")
    with pytest.raises(ValueError, match="heatmaps=True"):
        NegVAEDetector.load(tmp_path / "without", "cpu").heatmap(images)
    with pytest.raises(ValueError, match="heatmaps=True"):
        detector.ood_score(images, "defects")
    found = detector.heatmap(images[:5])
    assert found.shape == (5, SIDE, 20)
    detector.save(tmp_path / "with")
    loaded = NegVAEDetector.load(tmp_path / "with", "cpu")
    assert np.array_equal(loaded.heatmap(images[:5]), found)
    wanted = load_artifact(tmp_path / "with", "cpu").maps().image_scores(torch.from_numpy(images))
    assert np.allclose(loaded.ood_score(images, "defects"), wanted)

    content = (tmp_path / "with" / heatmaps.FILE).read_bytes()
    (tmp_path / "with" / heatmaps.FILE).write_bytes(content[:-100])
    with pytest.raises(ValueError, match="cannot be read"):
        NegVAEDetector.load(tmp_path / "with", "cpu")


def test_defects_may_decide_and_the_graph_has_the_maps(tmp_path):
    pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    from negvae.data.batches import Batch
    from negvae.runs.export import export_onnx, run_onnx_maps
    from negvae.service.onnx_model import load_onnx

    images = blobs(60, (3, 20, SIDE)).numpy()
    options = {"epochs": 1, "preset": "general", "device": "cpu", "target_fpr": 0.2}
    detector = NegVAEDetector(heatmaps=True, decision_score="defects", **options).fit(images)
    broken = images.copy()
    broken[:, :, 3:10, 3:10] = 255
    assert (detector.predict(broken) == -1).mean() > 0.8
    detector.save(tmp_path / "run")
    with pytest.raises(ValueError, match="cannot be exported"):
        export_onnx(tmp_path / "run")
    written = export_onnx(tmp_path / "run", score="kl")
    both = np.concatenate([images, broken])
    assert np.abs(run_onnx_maps(written.path, both) - detector.heatmap(both)).max() < 1e-3
    served, rows = load_onnx(written.path, 1), np.arange(0, 120, 3)
    batch = Batch(["x"] * 120, [None] * 120, [""] * 120, both)
    assert served.offers == {"heatmap"}
    found = np.stack(served.look(batch, rows, ["heatmap"])["heatmap"])
    assert np.abs(found - detector.heatmap(both[rows])).max() < 1e-3
    with pytest.raises(ValueError, match="gives no position"):
        served.look(batch, rows, ["heatmap", "position"])


def test_maps_need_held_out_images(capsys, tmp_path):
    np.save(tmp_path / "in.npy", blobs(40, (1, SIDE, SIDE)).numpy())
    asked = ["train", "--data", tmp_path / "in.npy", "--out", tmp_path / "run", "--calibration", "0", "--heatmaps"]
    code, _, error = call(capsys, *asked)
    assert code == 2
    assert "held out" in error
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("fit", ["pad", "crop"])
def test_maps_lie_over_the_image_and_not_over_its_border(capsys, tmp_path, monkeypatch, fit):
    """The maps are replaced by the brightness of the model's inputs, so that it is known what they should show."""
    root, sizes = tmp_path / "plates", [(48, 24), (24, 48)]  # height, width
    for name, count in {"ground_truth/square": 0, "train/good": 40, "test/good": 4, "test/square": 4}.items():
        (root / name).mkdir(parents=True)
        for index in range(count):
            pixels = np.random.default_rng(index).integers(20, 60, sizes[index % 2]).astype(np.uint8)
            if name == "test/square":
                pixels[14:22, 14:22] = 255
                Image.fromarray((pixels == 255).astype(np.uint8)).save(root / f"ground_truth/square/{index}_mask.png")
            Image.fromarray(pixels).save(root / name / f"{index}.png")
    run = tmp_path / "run"
    options = ["--preset", "general", "--epochs", "1", "--fit", fit, "--side", "24", "--device", "cpu"]
    assert call(capsys, "train", "--data", root, "--out", run, *options)[0] == 0
    monkeypatch.setattr(Heatmaps, "__call__", lambda self, stored: stored[:, 0].numpy() * (6 / 255))

    assert call(capsys, "evaluate", run, "--device", "cpu")[0] == 0
    assert json.loads((run / "evaluation.json").read_text())["pixel_auroc"] > 0.99

    out = tmp_path / "scores.jsonl"
    options = ["--out", out, "--heatmaps", tmp_path / "maps", "--device", "cpu"]
    assert call(capsys, "score", run, root / "test" / "square", *options)[0] == 0
    for row in map(json.loads, out.read_text().splitlines()):
        seen, image = (np.asarray(opened(path)) for path in (tmp_path / "maps" / row["heatmap"], row["path"]))
        assert seen.shape == image.shape
        assert seen[16:20, 16:20].mean() > 200
        cut = np.s_[:8] if image.shape[0] == 48 else np.s_[:, :8]  # what the model did not see is not conspicuous
        assert (seen[cut] == 0).all() if fit == "crop" else (seen[cut] > 0).all()


def test_the_map_of_a_tiff_of_many_channels_has_its_name_and_size(tmp_path):
    path, image = tmp_path / "deep.tif", np.zeros((6, 30, 40), np.uint8)
    pytest.importorskip("tifffile").imwrite(path, image, photometric="minisblack", planarconfig="separate")
    decoding = Decoding(fit="tile", height=16, width=16, channels=6, longest=24)
    tiles, plan = read_photo(str(path), str(path), decoding)
    writer = MapWriter(tmp_path / "maps", lambda stored: stored[:, 0].numpy(), decoding=decoding)
    assert writer.write(Batch([str(path)], [0], [""], tiles, [plan]), np.array([0])) == ["deep.png"]
    assert opened(tmp_path / "maps" / "deep.png").size == (40, 30)


def test_the_map_of_an_image_in_a_store_has_its_name_and_size(tmp_path):
    Image.new("L", (40, 30)).save(tmp_path / "a #1.png")
    uri = f"local://{tmp_path}/a #1.png"  # a store of fsspec, whose URIs do not stand for paths
    writer = MapWriter(tmp_path / "maps", lambda stored: stored[:, 0].numpy())
    assert writer.write(Batch([uri], [0], [""], np.zeros((1, 1, 16, 16), np.uint8)), np.array([0])) == ["a #1.png"]
    assert opened(tmp_path / "maps" / "a #1.png").size == (40, 30)


@pytest.mark.parametrize("colored", [True, False])
def test_a_map_that_lies_among_photos_is_not_taken_for_one(tmp_path, colored):
    writer = MapWriter(tmp_path / "maps", lambda images: np.zeros((len(images), 28, 28)))
    writer.colored = colored
    (name,) = writer.write(Batch(["a.npy"], [0], [""], np.zeros((1, 1, 28, 28), np.uint8)), np.array([0]))
    path = str(tmp_path / "maps" / name)
    decoding = Decoding(fit="resize", height=16, width=16, channels=1)
    for read in (decode_image, read_header, lambda source, where: read_photo(source, where, decoding)):
        with pytest.raises(ValueError, match=r"png: a heat map that negvae wrote and no photo: keep such maps in a"):
            read(path, path)
