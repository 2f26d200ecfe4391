"""Regressions: config files, watched folders, encoders of images, cleaning, detectors of several models."""

import csv
import io
import json
import os
import pickle
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from negvae import NegVAEClassifier, NegVAEDetector
from negvae.config import RunConfig
from negvae.data import load
from negvae.data.embedding import load_encoder
from negvae.detector.cleaning import clean, rows_of
from negvae.detector.crossconformal import CrossConformalDetector
from negvae.files import from_json
from negvae.negatives import parse
from negvae.runs.parts import score_to_folder
from negvae.runs.score import score_files
from negvae.runs.watch import PIPE, watch
from negvae.scoring.metrics import auroc
from negvae.scoring.monitor import Monitor
from negvae.scoring.weighted import density_ratio, weighted_p_values
from negvae.training.history import read_metrics
from tests.conftest import blobs

QUICK = {"epochs": 1, "device": "cpu"}


@pytest.fixture(scope="module")
def rows():
    return np.random.default_rng(0).normal(size=(60, 3))


@pytest.fixture(scope="module")
def fitted(rows):
    return NegVAEDetector(target_fpr=0.2, **QUICK).fit(rows)


@pytest.fixture(scope="module")
def saved(fitted, tmp_path_factory):
    place = tmp_path_factory.mktemp("later") / "run"
    fitted.save(place)
    return place


# --- hostile text -----


def aliases(depth: int) -> str:
    """YAML of a few hundred bytes that stands for 9 to the power of `depth` values."""
    parts = ["&a [x, x, x, x, x, x, x, x, x]"]
    for before, name in zip("abcdefghi", "bcdefghij"[: depth - 1], strict=False):
        parts.append(f"&{name} [{', '.join([f'*{before}'] * 9)}]")
    return f"[{', '.join(parts)}]"


@pytest.mark.parametrize(("text", "words"), [
    ("- " * 1500, "nested too deeply"),
    (f"data: x\nepochs: {aliases(9)}", "more than 100,000 values"),
    ("data: x\nepochs: &a [*a]", "or itself"),
    ("data: x\nlearning_rate: 1" + "0" * 400, "below 2"),
    ("data: x\nseed: 99999999999999999999999", "below 2"),
    ("data: x\nseed: 2001-99-99", "month must be"),
])  # fmt: skip
def test_a_config_that_is_made_to_break_the_reader_is_one_line(text, words):
    with pytest.raises(ValueError, match=words) as caught:
        RunConfig.from_yaml(text, "run.yaml")
    assert len(str(caught.value)) < 300


def test_json_that_is_nested_without_end_is_a_value_error(tmp_path):
    with pytest.raises(ValueError, match="nested too deeply"):
        from_json("[" * 100_000)
    (tmp_path / "metrics.jsonl").write_text("[" * 100_000)
    assert read_metrics(tmp_path) == []


def test_names_that_no_system_takes_as_paths_are_unknown_names():
    for text in ("(" * 5000, "a\0b"):
        assert len(parse(text)) == 1
        with pytest.raises(ValueError, match="unknown data set"):
            load(text)
    with pytest.raises(FileNotFoundError, match="no such file"):
        load("~no-such-user/images")


# --- a watch -----


@pytest.fixture
def watched(saved, tmp_path, rows):
    (tmp_path / "in").mkdir()
    np.save(tmp_path / "in" / "a.npy", rows[:4])
    watch(saved, str(tmp_path / "in"), tmp_path / "out", once=True, settle=0)
    return tmp_path / "out"


def test_names_that_are_not_utf_8_do_not_stop_a_watch_of_a_pipe(saved, tmp_path, monkeypatch, rows):
    names = [b"gone-\xff.npy", b"there.npy"]
    np.save(tmp_path / "there.npy", rows[:2])
    lines = b"".join(os.fsencode(tmp_path) + b"/" + name + b"\n" for name in names)
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(lines), encoding="utf-8"))
    done = watch(saved, PIPE, tmp_path / "out")
    assert (done.rows, done.errors) == (3, 1)


@pytest.mark.parametrize("line", [b"no JSON\n", b"[]\n", b'{"path": "a"}\n', b"[" * 100_000 + b"\n"])
def test_damaged_rows_of_a_watch_are_named(watched, saved, tmp_path, line):
    state = json.loads((watched / "state.json").read_text())
    (watched / "rows.jsonl").write_bytes(line)
    (watched / "state.json").write_text(json.dumps({**state, "length": len(line)}))
    with pytest.raises(ValueError, match=r"rows\.jsonl: line 1 is damaged"):
        watch(saved, str(tmp_path / "in"), watched, once=True, settle=0)


@pytest.mark.parametrize("change", [
    {"length": -1}, {"length": "9"}, {"rows": "many"}, {"errors": None}, {"latest": [1]}, {"monitor": []},
])  # fmt: skip
def test_a_damaged_state_of_a_watch_is_named(watched, saved, tmp_path, change):
    state = json.loads((watched / "state.json").read_text())
    (watched / "state.json").write_text(json.dumps({**state, **change}))
    with pytest.raises(ValueError, match=r"state\.json"):
        watch(saved, str(tmp_path / "in"), watched, once=True, settle=0)


def test_a_state_of_a_stream_that_could_not_go_on_is_refused(fitted, rows):
    good = Monitor.start(fitted.calibration_)
    good.update([1.0, 2.0])
    state = json.loads(json.dumps(good.state()))
    for name in state:
        for value in (None, "x", [], {}, -1, 0.5, [[1], [1, 2]]):
            try:
                Monitor.restore(fitted.calibration_, {**state, name: value}).update([1.0])
            except ValueError as error:
                assert "\n" not in str(error)  # noqa: PT017 - what is accepted must go on
    for name in state["martingale"]:
        for value in (None, "x", [], {}, -1, [float("nan")] * 9):
            try:
                Monitor.restore(fitted.calibration_, {**state, "martingale": {**state["martingale"], name: value}})
            except ValueError as error:
                assert "\n" not in str(error)  # noqa: PT017


def test_a_damaged_manifest_is_named(saved, tmp_path, rows):
    np.save(tmp_path / "a.npy", rows[:4])
    (tmp_path / "out").mkdir()
    for text in ('{"settings": 3}', "[" * 100_000):
        (tmp_path / "out" / "_manifest.json").write_text(text)
        with pytest.raises(ValueError, match=r"manifest\.json: damaged"):
            score_to_folder(saved, [str(tmp_path / "a.npy")], str(tmp_path / "out"), resume=True)


# --- encoders -----


def overflowing(path: Path) -> Path:
    """An encoder, whose embedding of an image with a black first pixel is infinite."""
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    from onnx import TensorProto, helper

    image = helper.make_tensor_value_info("image", TensorProto.UINT8, ["n", 1, 8, 8])
    nodes = [
        helper.make_node("Cast", ["image"], ["numbers"], to=TensorProto.FLOAT),
        helper.make_node("Flatten", ["numbers"], ["flat"]),
        helper.make_node("Reciprocal", ["flat"], ["row"]),
    ]
    result = helper.make_tensor_value_info("row", TensorProto.FLOAT, ["n", 64])
    model = helper.make_model(helper.make_graph(nodes, "encoder", [image], [result]),
                              opset_imports=[helper.make_opsetid("", 17)], ir_version=8)  # fmt: skip
    onnx.save(model, path)
    return path


def test_an_image_without_a_finite_embedding_is_a_row_with_an_error(tmp_path):
    from negvae.config import preset
    from negvae.runs.train import run

    images = np.random.default_rng(0).integers(1, 256, (45, 1, 8, 8), np.uint8)
    np.save(tmp_path / "in.npy", images)
    encoder = str(overflowing(tmp_path / "encoder.onnx"))
    run(preset("features", str(tmp_path / "in.npy"), embed=encoder, epochs=1, device="cpu"), tmp_path / "run")
    (tmp_path / "new").mkdir()
    for number, image in enumerate([images[0], images[1] * 0, images[2]]):
        Image.fromarray(image[0]).save(tmp_path / "new" / f"{number}.png")
    summary = score_files(tmp_path / "run", [str(tmp_path / "new")], tmp_path / "scores.csv")
    assert (summary.rows, summary.errors) == (3, 1)
    lines = list(csv.DictReader((tmp_path / "scores.csv").read_text().splitlines()))
    assert ["not finite" in line["error"] for line in lines] == [False, True, False]
    done = watch(tmp_path / "run", str(tmp_path / "new"), tmp_path / "watch", once=True, settle=0)
    assert (done.rows, done.errors) == (3, 1)


def test_an_encoder_reads_no_weights_from_elsewhere(tmp_path):
    onnx = pytest.importorskip("onnx")
    from onnx import TensorProto, helper

    (tmp_path / "secret").write_bytes(b"0" * 64)
    (tmp_path / "models").mkdir()
    os.mkfifo(tmp_path / "models" / "pipe")
    for place in ("../secret", str(tmp_path / "secret"), "/dev/zero", "pipe", "."):
        weights = helper.make_tensor("w", TensorProto.FLOAT, [1], [1.0])
        weights.ClearField("float_data")
        weights.data_location = TensorProto.EXTERNAL
        weights.external_data.add(key="location", value=place)
        model = helper.make_model(helper.make_graph([], "encoder", [], [], [weights]))
        (tmp_path / "models" / "a.onnx").write_bytes(model.SerializeToString())
        with pytest.raises(ValueError, match="which is no file in its folder"):
            load_encoder(tmp_path / "models" / "a.onnx")
    assert onnx


# --- cleaning -----


def written(folder: Path, images, names) -> None:
    folder.mkdir(parents=True)
    for name, image in zip(names, images, strict=True):
        Image.fromarray(image[0]).save(os.fsencode(folder) + b"/" + name, "PNG")


def test_a_list_names_the_files_that_were_ranked(tmp_path):
    """Of a folder with parts, the files of the part that is read; the first ones by name lie in the other."""
    images = blobs(12, (1, 16, 16)).numpy()
    for part, own in (("train", images[:8]), ("test", images[8:])):
        written(tmp_path / "in" / part, own, [b"%d.png" % number for number in range(len(own))])
    for limit in (None, 4):
        found, places, _ = rows_of(str(tmp_path / "in"), limit)
        assert len(found) == (limit or 8)
        for image, (path, _) in zip(found, places, strict=True):
            assert np.array_equal(np.asarray(Image.open(path)), image[0]), path


def test_a_list_holds_names_that_are_not_utf_8_and_its_place_is_tried_first(tmp_path, monkeypatch):
    written(tmp_path / "in", blobs(6, (1, 16, 16)).numpy(), [b"%d-\xff.png" % number for number in range(6)])
    judged = []

    def judge(make, data, *rest):
        from negvae.detector.cleaning import CrossFitted

        judged.append(len(data))
        return CrossFitted(np.ones(len(data)), np.zeros(len(data)), np.zeros(len(data), int))

    monkeypatch.setattr("negvae.detector.cleaning.cross_fit", judge)
    (tmp_path / "list.csv").mkdir()
    with pytest.raises(IsADirectoryError):
        clean(str(tmp_path / "in"), tmp_path / "list.csv", log=lambda text: None)
    assert judged == []
    (tmp_path / "list.csv").rmdir()
    clean(str(tmp_path / "in"), tmp_path / "list.csv", log=lambda text: None)
    lines = list(csv.DictReader((tmp_path / "list.csv").read_text(encoding="utf-8").splitlines()))
    assert Path(lines[0]["path"]).name == r"0-\xff.png"


# --- detectors of several models -----


def test_a_part_of_the_folds_does_not_pass_as_the_whole(fitted, rows, tmp_path):
    crossed = CrossConformalDetector(fitted, folds=2, target_fpr=0.2)
    crossed.detectors_, crossed.n_inliers_, crossed.n_features_in_ = [fitted, fitted], 60, 3
    crossed.save(tmp_path / "kept")
    assert CrossConformalDetector.load(tmp_path / "kept").p_values(rows[:2]).shape == (2,)
    (tmp_path / "kept" / "fold-001").rename(tmp_path / "aside")
    with pytest.raises(ValueError, match="the 2 folds that were saved"):
        CrossConformalDetector.load(tmp_path / "kept")
    (tmp_path / "aside").rename(tmp_path / "kept" / "fold-001")
    (tmp_path / "kept" / "folds.json").write_text('{"format": 99, "weights": []}')
    with pytest.raises(ValueError, match=r"format is 99, .*upgrade"):
        CrossConformalDetector.load(tmp_path / "kept")
    (tmp_path / "kept" / "folds.json").unlink()  # saving was stopped before its end
    with pytest.raises(ValueError, match="did not come to its end"):
        CrossConformalDetector.load(tmp_path / "kept")


def test_labels_that_do_not_fit_the_rows_are_refused(rows):
    for labels in (np.zeros(50), np.zeros((60, 1)), 0):
        with pytest.raises(ValueError, match="one for each row"):
            NegVAEClassifier(NegVAEDetector(**QUICK)).fit(rows, labels)


def test_a_classifier_of_a_detector_without_held_out_inliers_is_refused(fitted):
    bare = pickle.loads(pickle.dumps(fitted))
    bare.calibration_ = None
    with pytest.raises(ValueError, match="not calibrated"):
        NegVAEClassifier.of(bare)


@pytest.mark.parametrize("data", [(row for row in np.zeros((40, 3))), iter([[0.0]])])
def test_data_that_can_be_read_once_is_refused(fitted, data):
    with pytest.raises(TypeError, match="give a list"):
        fitted.predict(data)
    with pytest.raises(TypeError, match="give a list"):
        CrossConformalDetector(fitted).fit(data)


def test_items_of_a_dataset_that_differ_are_named(fitted):
    class Items(torch.utils.data.Dataset):
        def __init__(self, items):
            self.items = items

        def __len__(self):
            return len(self.items)

        def __getitem__(self, index):
            return self.items[index]

    with pytest.raises(ValueError, match=r"item 1 of Items has shape \(2,\)"):
        fitted.predict(Items([torch.zeros(3), torch.zeros(2)]))
    with pytest.raises(ValueError, match="item 1 of Items is empty"):
        fitted.predict(Items([(torch.zeros(3),), ()]))
    loader = torch.utils.data.DataLoader(Items([torch.zeros(3), torch.zeros(2)]), batch_size=1)
    with pytest.raises(ValueError, match="batch 1 of DataLoader"):
        fitted.predict(loader)


# --- statistics -----


def test_outliers_far_out_are_found_at_another_place():
    """The odds of "new" grow without bound along a line; weights that did so gave p = 1 to whatever lies far out."""
    random = np.random.default_rng(0)
    old, new = random.normal(size=(300, 2)), random.normal(size=(300, 2)) + 0.5
    ratio = density_ratio(old, new)
    far = np.array([[50.0, 50.0], [-50.0, -50.0], [1e6, 1e6]])
    assert (ratio(far) <= max(ratio(old).max(), ratio(new).max())).all()
    scores = np.abs(old).sum(1)
    p = weighted_p_values(scores, ratio(old), np.abs(far).sum(1), ratio(far))
    assert (p < 0.1).all()


def test_weighted_p_values_are_never_above_one():
    random = np.random.default_rng(0)
    for _ in range(200):
        weights = random.uniform(0, 1, 37)
        assert weighted_p_values(np.zeros(37), weights, [0.0], [0.0])[0] <= 1


def test_an_interval_from_a_single_score_is_wide():
    area, (low, high) = auroc([0.5], np.linspace(0, 1, 400))
    assert area == pytest.approx(0.5, abs=0.01)
    assert low < 0.1
    assert high > 0.9
    assert auroc([1.0], [1.0])[1] != (0.5, 0.5)
