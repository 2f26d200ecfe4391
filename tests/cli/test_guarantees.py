"""--confidence, --groups and `negvae watch` from outside."""

import csv
import json
import os
import shutil
import signal
import threading
import time

import numpy as np
import pytest
from PIL import Image

from negvae import NegVAEDetector
from negvae.runs.artifact import load_artifact, read_section
from tests.cli.test_commands import call
from tests.conftest import blobs
from tests.runs.test_watch import QUICK


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder of a model, and one of images in two subfolders."""
    place = tmp_path_factory.mktemp("guarantees")
    # From a file, since `negvae calibrate` looks for the data that the run was trained on.
    np.save(place / "inliers.npy", blobs(240, (1, 28, 28)).numpy())
    detector = NegVAEDetector("none", decision_score="kl", target_fpr=0.1, calibration_fraction=0.5, **QUICK)
    detector.fit(str(place / "inliers.npy")).save(place / "model")
    for seed, name in enumerate(("left", "right")):
        (place / "products" / name).mkdir(parents=True)
        for number, image in enumerate(blobs(60, (1, 28, 28), 10 + seed).numpy() // (1 + seed)):
            Image.fromarray(image[0]).save(place / "products" / name / f"{number:02d}.png")
    return place


@pytest.fixture
def model(trained, tmp_path):
    return shutil.copytree(trained / "model", tmp_path / "model")


def test_a_certificate_at_the_command_line(capsys, trained, model, tmp_path):
    inputs = [trained / "products" / "left"]
    code, _, error = call(capsys, "score", model, *inputs, "--target-fpr", "0.01", "--confidence", "0.95")
    assert (code, error.count("\n")) == (2, 1)
    assert "needs at least 299 held-out inliers, there are 120" in error
    out = tmp_path / "scores.csv"
    rule = ["--target-fpr", "0.1", "--confidence", "0.9"]
    code, _, error = call(capsys, "score", model, *inputs, *rule, "--out", out)
    assert code == 0
    assert "target FPR 0.1 with 0.9 confidence" in error
    threshold = load_artifact(model, "cpu").calibration.decide_by(target_fpr=0.1, confidence=0.9).threshold
    with out.open() as lines:
        found = list(csv.DictReader(lines))
    assert [row["is_outlier"] == "true" for row in found] == [float(row["kl"]) > threshold for row in found]
    code, _, error = call(capsys, "score", model, *inputs, "--confidence", "1.5", "--out", out)
    assert (code, error.count("\n")) == (2, 1)


def test_groups_are_the_folders_above_a_file(capsys, trained, model, tmp_path):
    data = ["--data", trained / "products"]
    code, _, error = call(capsys, "score", model, trained / "products", "--groups", "folders")
    assert (code, error.count("\n")) == (2, 1)
    assert "calibrated without groups" in error
    code, _, error = call(capsys, "calibrate", model, "--groups", "folders")
    assert (code, error.count("\n")) == (2, 1)
    assert "name it with --data" in error
    code, text, _ = call(
        capsys, "calibrate", model, *data, "--score", "kl", "--target-fpr", "0.1", "--groups", "folders"
    )
    assert code == 0
    assert "2 groups, each with its own threshold" in text
    calibration = load_artifact(model, "cpu").calibration
    assert list(calibration.thresholds) == ["left", "right"]
    assert calibration.thresholds["left"] != calibration.thresholds["right"]
    other = tmp_path / "in" / "left" / "deeper"
    other.mkdir(parents=True)
    shutil.copy(trained / "products" / "right" / "00.png", other / "a.png")
    shutil.copy(trained / "products" / "right" / "00.png", tmp_path / "in" / "b.png")
    code, _, _ = call(capsys, "score", model, tmp_path / "in", "--groups", "folders", "--out", tmp_path / "o.jsonl")
    assert code == 0
    rows = [json.loads(line) for line in (tmp_path / "o.jsonl").read_text().splitlines()]
    score = rows[0]["kl"]
    expected = {"a.png": ["left"], "b.png": [""]}
    for row in rows:
        assert row["p_value"] == calibration.p_values([score], expected[os.path.basename(row["path"])])[0]
    code, _, _ = call(
        capsys, "score", model, tmp_path / "in", "--groups", "folders", "--fdr", "0.5", "--out", tmp_path / "o.csv"
    )
    assert code == 0
    card = (model / "MODEL_CARD.md").read_text()
    assert "- Group right: threshold" in card
    code, text, _ = call(
        capsys, "watch", model, tmp_path / "in", "--once", "--settle", "0", "--groups", "folders",
        "--out", tmp_path / "watch",
    )  # fmt: skip
    assert code == 0
    watched = [json.loads(line) for line in (tmp_path / "watch" / "rows.jsonl").read_text().splitlines()]
    assert {row["path"]: row["p_value"] for row in watched} == {row["path"]: row["p_value"] for row in rows}


def test_groups_and_certificates_in_an_exported_file(capsys, trained, model):
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    from negvae.runs.export import run_onnx

    call(capsys, "calibrate", model, "--data", trained / "products", "--score", "kl", "--groups", "folders",
         "--target-fpr", "0.2", "--confidence", "0.8")  # fmt: skip
    code, _, error = call(capsys, "export", model)
    assert (code, error) == (0, "")
    calibration = load_artifact(model, "cpu").calibration
    metadata = {each.key: each.value for each in onnx.load(model / "model.onnx").metadata_props}
    assert float(metadata["false_alarm_bound"]) == calibration.fpr_bounds(0.8).high
    assert all(each.high <= 0.2 for each in calibration.group_bounds(0.8).values())
    assert metadata["false_alarm_bound_confidence"] == "0.8"
    certificate = calibration.certificate()
    assert certificate["at_most"] == calibration.fpr_bounds(0.8).high
    assert certificate["groups"]["left"]["at_most"] == calibration.group_bounds(0.8)["left"].high
    assert read_section(model, "calibration")["groups"] == certificate["groups"]
    assert json.loads(metadata["group_thresholds"]) == calibration.thresholds
    score, p, called = run_onnx(model / "model.onnx", blobs(30, (1, 28, 28), 50).numpy())
    np.testing.assert_array_equal(p, calibration.p_values(score))
    np.testing.assert_array_equal(called, calibration.is_outlier(score))


def test_a_report_says_the_certificate(capsys, trained, model, tmp_path):
    code, _, _ = call(capsys, "report", model, trained / "products" / "left", "--out", tmp_path / "r.html",
                      "--target-fpr", "0.1", "--confidence", "0.9")  # fmt: skip
    assert code == 0
    page = (tmp_path / "r.html").read_text()
    assert "target FPR 0.1 with 0.9 confidence" in page
    high = load_artifact(model, "cpu").calibration.decide_by(target_fpr=0.1, confidence=0.9).fpr_bounds(0.9).high
    assert f"at most {high:.2%} with 0.9 confidence" in page


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_a_watch_in_order(capsys, trained, model, tmp_path, number):
    before = signal.getsignal(number)
    state = tmp_path / "watch" / "state.json"

    def end() -> None:
        while not (state.exists() and json.loads(state.read_text())["rows"]):
            time.sleep(0.02)
        os.kill(os.getpid(), number)

    threading.Thread(target=end, daemon=True).start()
    code, _, error = call(
        capsys, "watch", model, trained / "products" / "left", "--settle", "0", "--out", tmp_path / "watch"
    )
    assert code == 0
    assert "60 scored" in error
    assert "the watch has ended" in (tmp_path / "watch" / "index.html").read_text()
    assert signal.getsignal(number) == before
