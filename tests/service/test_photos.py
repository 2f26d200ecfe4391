"""Photos of any size over HTTP: tiled models, 16 bits, many channels, encoders, and images without a score."""

import io
import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
from benchmarks.serve import encoded, infer_body
from PIL import Image

from negvae.config import preset
from negvae.runs.artifact import load_artifact
from negvae.runs.export import export_onnx
from negvae.runs.train import run
from negvae.service import run_model, uploads
from tests.data.test_embedding import write_encoder
from tests.runs.test_folders import FAST, photos
from tests.service.conftest import served
from tests.service.test_service import rows_of_cli, score


@pytest.fixture(scope="module")
def trained(tmp_path_factory, tiled):
    """Runs of tiled photos, of tiled images of 16 bits and 5 channels, and of photos with an encoder."""
    place = tmp_path_factory.mktemp("photos")
    tifffile = pytest.importorskip("tifffile")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NEGVAE_CACHE", str(place / "cache"))
        shutil.copytree(tiled / "in", place / "in")
        shutil.copytree(tiled / "run", place / "tiles")
        photos(place / "new", 6, seed=1, bright=60)
        (place / "new" / "broken.png").write_bytes(b"broken")
        draw = np.random.default_rng(0)
        for name, count in (("deep", 20), ("deep-new", 3)):
            (place / name).mkdir()
            for number in range(count):
                image = draw.integers(0, 4000, (20 + number % 3 * 9, 24, 5), np.uint16)
                tifffile.imwrite(place / name / f"{number:02d}.tif", image, planarconfig="contig")
        write_encoder(place / "encoder.onnx")
        run(preset("unsupervised", str(place / "deep"), **FAST), place / "deep-tiles", heatmaps=False)
        options = {"embed": str(place / "encoder.onnx"), "epochs": 1, "device": "cpu"}
        run(preset("features", str(place / "in"), **options), place / "rows")
        export_onnx(place / "tiles", place / "tiles.onnx")
    return place


@pytest.fixture(scope="module")
def live(trained):
    models = ("tiles", "deep-tiles", "rows", "tiles.onnx")
    with served({name.replace(".onnx", "-onnx"): trained / name for name in models}, max_queue=300) as running:
        yield running


def files_of(folder):
    return [(path.name, path.read_bytes()) for path in sorted(folder.iterdir())]


@pytest.mark.parametrize(("model", "folder"), [("tiles", "new"), ("deep-tiles", "deep-new"), ("rows", "new")])
def test_photos_score_as_the_command_line_does_to_the_last_digit(live, trained, capsys, monkeypatch, model, folder):
    monkeypatch.setattr("sys.argv", [])
    wanted = rows_of_cli(capsys, trained / model, trained / folder)
    status, answer = score(live, model, files_of(trained / folder))
    assert status == 200
    for row, image in zip(wanted, answer["images"], strict=True):
        assert [row[answer["score"]], row["p_value"], row["is_outlier"]] == [
            image["score"], image["p_value"], image["is_outlier"],
        ]  # fmt: skip
        assert (row["error"] is None) == (image["error"] is None)
    if model == "tiles":
        exported = score(live, "tiles-onnx", files_of(trained / folder))[1]["images"]
        pairs = [(a["score"], b["score"]) for a, b in zip(answer["images"], exported, strict=True) if not a["error"]]
        np.testing.assert_allclose(*zip(*pairs, strict=True), rtol=1e-3)
        assert len(pairs) == 6


def test_the_protocol_takes_tiled_images_of_any_size(live, trained, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("sys.argv", [])
    metadata = json.loads(live.ask("GET", "/v2/models/tiles")[1])
    assert metadata["inputs"] == [{"name": "images", "datatype": "UINT8", "shape": [-1, 3, -1, -1]}]
    images = np.random.default_rng(3).integers(0, 256, (2, 3, 20, 37), np.uint8)
    np.save(tmp_path / "images.npy", images)
    wanted = [row["combined"] for row in rows_of_cli(capsys, trained / "tiles", tmp_path / "images.npy")]
    body, headers = infer_body(images)
    headers_json = {
        "inputs": [{"name": "images", "shape": [2, 3, 20, 37], "datatype": "UINT8", "data": images.tolist()}]
    }
    for asked in ((body, headers), (json.dumps(headers_json).encode(), {})):
        status, answer = live.ask("POST", "/v2/models/tiles/infer", *asked)
        assert status == 200
    assert json.loads(answer)["outputs"][0]["data"] == wanted
    status, answer = live.ask("POST", "/v2/models/tiles/infer", *infer_body(images[:, :1]))
    assert (status, b"this model takes N x 3 x H x W" in answer) == (400, True)
    status, answer = live.ask("POST", "/v2/models/tiles/infer", *infer_body(np.zeros((1, 3, 300, 300), np.uint8)))
    assert (status, b"tiles; at most 300 may wait" in answer) == (413, True)
    status, answer = live.ask("POST", "/v2/models/tiles/infer", *infer_body(np.zeros((1, 3, 1, 100_000), np.uint8)))
    assert (status, b"enlarged to the size of a tile" in answer) == (413, True)


def test_files_that_would_take_much_memory_are_refused_before_they_are_decoded(live):
    narrow, large, middle, small = (io.BytesIO() for _ in range(4))
    Image.new("L", (200, 200)).save(middle, "PNG")
    Image.new("L", (20, 30)).save(small, "PNG")
    Image.new("L", (100_000, 1)).save(narrow, "PNG")
    Image.new("L", (400, 400)).save(large, "PNG")
    status, answer = score(live, "tiles", [("narrow.png", narrow.getvalue())])
    assert (status, "enlarged to the size of a tile" in answer["images"][0]["error"]) == (200, True)
    status, answer = score(live, "tiles", [("large.png", large.getvalue()), ("small.png", small.getvalue())])
    assert (status, answer["images"][1]["error"]) == (200, None)
    assert "is 400 x 400, which makes" in answer["images"][0]["error"]
    assert "at most 300 may wait (max_queue)" in answer["images"][0]["error"]
    status, answer = score(live, "tiles", [("middle.png", middle.getvalue())] * 2)
    assert (status, "more than 300 tiles" in answer["error"]) == (413, True)


def test_pictures_of_tiled_photos_are_whole(trained, monkeypatch):
    maps = lambda images: images[:, 0].numpy() / 255.0  # noqa: E731 - a stand-in
    monkeypatch.setattr(run_model, "load_artifact", lambda path: replace(load_artifact(path), heatmaps=maps))
    monkeypatch.setattr(uploads, "SIDE", 100)
    large = io.BytesIO()
    Image.new("RGB", (150, 20), (9, 99, 199)).save(large, "PNG")
    with served({"tiles": trained / "tiles"}) as live:
        options = "&include=heatmap&include=reconstruction"
        files = [*files_of(trained / "new")[:2], ("large.png", large.getvalue())]
        status, answer = score(live, "tiles", files, options)
        assert score(live, "tiles", files, "&include=position")[0] == 422
    assert status == 200
    sizes = [Image.open(io.BytesIO(content)).size for _, content in files[:2]]
    for image, size in zip(answer["images"], [*sizes, (100, 13)], strict=True):
        for name in ("input", "reconstruction", "heatmap"):
            assert opened(image[name]).size == size, name
    given = np.asarray(Image.open(io.BytesIO(files[0][1])))
    np.testing.assert_array_equal(np.asarray(opened(answer["images"][0]["input"])), given)


def opened(uri):
    import base64

    return Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2])))


def test_an_image_without_a_score_ends_no_other_request(trained, monkeypatch):
    draw = np.random.default_rng(4)
    images = draw.integers(0, 256, (12, 3, 8, 8), np.uint8)
    bad = images[5]
    with served({"rows": trained / "rows"}) as live:
        encoder = live.service.slots["rows"].model._encoder
        embed, sizes = type(encoder).embed, []

        def broken(encoder, images):
            sizes.append(len(images))
            rows = embed(encoder, images)
            rows[(images == bad).all((1, 2, 3))] = np.nan
            return rows

        monkeypatch.setattr(type(encoder), "embed", broken)
        files = [(f"{number}.png", encoded(image)) for number, image in enumerate(images)]
        found = score(live, "rows", files)[1]["images"]
        assert [image["error"] for image in found if image["error"]] == [
            no_score := live.service.slots["rows"].model.no_score
        ]
        assert found[5]["score"] is None
        assert no_score == "its embedding by encoder.onnx is not finite"
