"""`negvae score` and `negvae calibrate`: streamed scores are the scores, whatever the form of the output."""

import dataclasses
import json
import os
import shutil

import numpy as np
import pyarrow.csv
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from negvae import NegVAEDetector
from negvae.fast.int8 import multiplies_integers
from negvae.runs.artifact import CALIBRATION, load_artifact, save_calibration
from negvae.runs.calibrate import calibrate_run
from negvae.runs.division import hold_out
from negvae.runs.score import score_files
from negvae.runs.train import run
from negvae.scoring import Scorer, benjamini_hochberg
from tests import processes
from tests.cli.test_commands import call
from tests.conftest import blobs, small_run


def run_on(path, **overrides):
    return dataclasses.replace(small_run("gray", initialization="he", **overrides), data=str(path))


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run on 150 blobs that held out 30, and a file with 40 more blobs and 20 negatives of blobs."""
    place = tmp_path_factory.mktemp("trained")
    np.save(place / "in.npy", blobs(150, (1, 28, 28)).numpy())
    mixed = torch.cat([blobs(40, (1, 28, 28), 1), 255 - blobs(20, (1, 28, 28), 2)])
    np.save(place / "mixed.npy", mixed.numpy())
    config = run_on(place / "in.npy", calibration=0.25, negatives="augmented")
    run(config, place / "run")
    return place / "run", place / "mixed.npy", mixed


def rows_of(path):
    if path.suffix == ".parquet":
        return pq.read_table(path).to_pylist()
    if path.suffix == ".csv":
        return pyarrow.csv.read_csv(path).to_pylist()
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.parametrize("form", ["parquet", "csv", "jsonl"])
def test_rows_are_the_scores(trained, tmp_path, form):
    directory, path, images = trained
    out = tmp_path / f"scores.{form}"
    seen = []
    summary = score_files(
        directory,
        [str(path)],
        out,
        names=["combined", "kl", "bpd"],
        precision="float32",
        batch_size=25,
        on_rows=seen.append,
    )
    artifact = load_artifact(directory)
    expected = artifact.scorer("float32")(images, ["combined", "kl", "bpd"])
    rows = rows_of(out)
    assert list(rows[0]) == ["path", "index", "combined", "kl", "bpd", "p_value", "is_outlier", "error"]
    assert [row["index"] for row in rows] == list(range(60))
    for name, values in expected.items():
        np.testing.assert_allclose([row[name] for row in rows], values, rtol=1e-4)
    scores = np.array([row["combined"] for row in rows])
    np.testing.assert_allclose(
        [row["p_value"] for row in rows], artifact.calibration.p_values(scores.astype(np.float32))
    )
    assert [row["is_outlier"] for row in rows] == artifact.calibration.is_outlier(scores).tolist()
    assert (summary.rows, summary.errors, summary.outliers) == (60, 0, sum(row["is_outlier"] for row in rows))
    assert seen == sorted(seen)
    assert seen[-1] == 60
    assert os.listdir(tmp_path) == [out.name]


def test_another_rate_another_score_and_false_discoveries(trained, tmp_path):
    directory, path, _ = trained
    calibration = load_artifact(directory).calibration
    score_files(
        directory, [str(path)], tmp_path / "a.csv", names=["kl", "combined"], target_fpr=0.2, precision="float32"
    )
    rows = rows_of(tmp_path / "a.csv")
    assert [r["is_outlier"] for r in rows] == [r["p_value"] <= 0.2 for r in rows]
    np.testing.assert_allclose(
        [r["p_value"] for r in rows], calibration.decide_by("kl").p_values(np.float32([r["kl"] for r in rows]))
    )
    for form in ("parquet", "jsonl"):
        out = tmp_path / f"b.{form}"
        summary = score_files(directory, [str(path)], out, fdr=0.3, precision="float32", batch_size=16)
        rows = rows_of(out)
        expected = benjamini_hochberg([r["p_value"] for r in rows], 0.3)
        assert [r["is_outlier"] for r in rows] == expected.tolist()
        assert (summary.rows, summary.outliers) == (60, expected.sum())
    assert sorted(os.listdir(tmp_path)) == ["a.csv", "b.jsonl", "b.parquet"]


def test_errors_are_rows_with_nulls(trained, tmp_path):
    directory, path, _ = trained
    photos = tmp_path / "photos"
    photos.mkdir()
    Image.fromarray(np.load(path)[0, 0]).save(photos / "a.png")
    (photos / "b.png").write_text("no")
    for form in ("parquet", "csv", "jsonl"):
        out = tmp_path / f"s.{form}"
        summary = score_files(directory, [str(photos), str(path)], out, names=["kl"])
        good, bad, *rest = rows_of(out)
        assert good["kl"] > 0
        assert not good["error"]
        assert [bad[name] for name in ("kl", "p_value", "is_outlier")] == [None] * 3
        assert "not a readable image" in bad["error"]
        assert len(rest) == 60
        assert summary.errors == 1
    only = score_files(directory, [str(photos / "b.png")], tmp_path / "only.parquet", names=["kl"])
    assert (only.rows, only.errors) == (1, 1)
    assert rows_of(tmp_path / "only.parquet")[0]["kl"] is None


def test_the_command_prints_rows_and_says_what_it_decided(trained):
    directory, path, _ = trained
    done = processes.run(["score", directory, path])
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert [row["index"] for row in rows] == list(range(60))
    assert "outliers: combined >" in done.stderr
    assert "60 scored" in done.stderr.splitlines()[-1]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["RUN", "none.npy"], "no such file"),
        (["RUN", "MIXED", "--out", "x.txt"], ".parquet"),
        (["RUN", "MIXED", "--format", "parquet"], "--out"),
        (["RUN", "MIXED", "--score", "klm"], "did you mean kl"),
        (["RUN", "MIXED", "--score", "waic"], "ensemble"),
        (["RUN", "MIXED", "--fdr", "0.1"], "--out"),
        (["RUN", "MIXED", "--target-fpr", "0.001"], "999 held-out"),
        (["RUN", "MIXED", "--score", "iwae", "--target-fpr", "0.1"], "iwae was not calibrated"),
        (["RUN", "EMPTY", "--out", "x.csv"], "no images"),
        (["RUN", "MIXED", "--out", "no/such/place.csv"], "no such folder"),
        (["RUN", "MIXED", "--max-pixels", "0"], "max pixels"),
        (["EMPTY", "MIXED"], "not a negvae run"),
    ],
)
def test_bad_input_is_one_line(trained, capsys, tmp_path, monkeypatch, arguments, words):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    names = {"RUN": trained[0], "MIXED": trained[1], "EMPTY": tmp_path / "empty"}
    code, _, error = call(capsys, "score", *(names.get(a, a) for a in arguments))
    assert code == 2
    assert words in error.splitlines()[-1]
    assert os.listdir(tmp_path) == ["empty"]


def test_what_is_held_out_is_not_trained_on():
    images = torch.arange(100)
    training, held_out = hold_out(images, 0.2, 7)
    assert (len(training), len(held_out)) == (80, 20)
    assert sorted([*training.tolist(), *held_out.tolist()]) == list(range(100))
    assert torch.equal(hold_out(images, 0.2, 7)[1], held_out)
    assert not torch.equal(hold_out(images, 0.2, 8)[1], held_out)
    assert [len(part) for part in hold_out(images, 0, 7)] == [100, 0]
    assert [len(part) for part in hold_out(images, 0.001, 7)] == [99, 1]
    with pytest.raises(ValueError, match="fewer than 2"):
        hold_out(images[:3], 0.9, 7)


def test_calibrate_afterwards_and_anew(capsys, blob_files, tmp_path):
    directory = tmp_path / "run"
    run(run_on(blob_files["in"], epochs=1), directory)
    assert load_artifact(directory).calibration is None
    out = tmp_path / "s.csv"
    said = []
    score_files(directory, [str(blob_files["in"])], out, log=said.append)
    assert "negvae calibrate" in said[0]
    row = rows_of(out)[0]
    assert row["kl"] > 0
    assert row["p_value"] is None or row["p_value"] == ""
    # Without a held-out part, the run's own test split: every fifth of these 60 images.
    calibration = calibrate_run(directory, target_fpr=0.2)
    assert (calibration.size, calibration.score, calibration.target_fpr) == (12, "combined", 0.2)
    assert list(calibration.reference.scales) == ["bpd", "dose"]  # no negatives, no prior ratio
    assert list(calibration.reference.fitted) == ["dose"]
    loaded = load_artifact(directory).calibration
    for name, scores in calibration.scores.items():
        np.testing.assert_array_equal(loaded.scores[name], scores)
    assert loaded.describe() == calibration.describe()
    code, text, _ = call(capsys, "calibrate", directory, "--data", blob_files["out"], "--score", "kl")
    assert code == 0
    assert "kl >" in text
    card = (directory / "MODEL_CARD.md").read_text()
    assert card.count("## Score and threshold") == 1
    assert "60 inliers that the model was not trained on" in card
    assert "held_out: 60" in (directory / "config.yaml").read_text()
    code, _, error = call(capsys, "calibrate", directory, "--target-fpr", "0.01")
    assert code == 2
    assert "99 held-out" in error


@pytest.mark.skipif(not multiplies_integers(), reason="no exact 8-bit convolution here")
def test_calibrated_in_int8_it_scores_in_int8(trained, capsys, tmp_path, monkeypatch):
    _, path, images = trained
    directory = tmp_path / "run"
    shutil.copytree(trained[0], directory)
    code, _, error = call(capsys, "score", directory, path, "--precision", "int8")
    assert code == 2
    assert "--precision int8" in error
    assert error.count("\n") == 1
    monkeypatch.setattr("negvae.runs.score.LONG", -1.0)
    code, text, error = call(capsys, "score", directory, path, "--out", tmp_path / "slow.csv")
    assert code == 0
    assert "int8 may be quicker here" in " ".join((text + error).split())
    code, text, _ = call(capsys, "calibrate", directory, "--precision", "int8", "--target-fpr", "0.2", "--score", "kl")
    assert code == 0
    assert "kl > " in text
    assert "differs from float32's by" in " ".join(text.split())
    artifact = load_artifact(directory)
    calibration = artifact.calibration
    assert {"combined", "dose", "bpd", "kl", "prior_ratio", "latent_norm"} <= set(calibration.scores)
    expected = artifact.scorer()(images, ["kl"])["kl"]
    exact = Scorer(artifact.model)(images, ["kl"])["kl"]
    inliers = slice(0, 40)
    assert 0 < np.abs(expected - exact)[inliers].max() < 0.1 * exact[inliers].std()
    assert expected[40:].min() > 2 * expected[inliers].max()  # outliers far beyond the ranges stay strange
    found = []
    for size, options in ((7, []), (40, ["--precision", "int8"])):
        out = tmp_path / f"{size}.jsonl"
        assert call(capsys, "score", directory, path, "--out", out, "--batch-size", size, *options)[0] == 0
        found.append(rows_of(out))
    assert found[0] == found[1]
    np.testing.assert_array_equal(np.float32([row["kl"] for row in found[0]]), expected)
    np.testing.assert_allclose([row["p_value"] for row in found[0]], calibration.p_values(expected))
    np.testing.assert_array_equal(NegVAEDetector.load(directory).ood_score(images.numpy()), expected)
    decided = artifact.scorer()(images, ["combined"])["combined"]
    assert decided[40:].min() > decided[inliers].max()
    np.testing.assert_array_equal(NegVAEDetector.load(directory).ood_score(images.numpy()), expected)
    # Folders of earlier versions have the encoder's integers alone.
    own = {name: values for name, values in calibration.rounding.items() if not name.startswith("decoder.")}
    save_calibration(directory, dataclasses.replace(calibration, rounding=own))
    np.testing.assert_array_equal(load_artifact(directory).scorer()(images, ["kl"])["kl"], expected)
    code, _, error = call(capsys, "score", directory, path, "--score", "combined")
    assert code == 2
    assert "score combined needs the decoder" in error
    assert error.count("\n") == 1
    code, _, error = call(capsys, "score", directory, path, "--precision", "float32")
    assert code == 2
    assert "int8" in error
    broken = {**calibration.rounding, "kernel.0": calibration.rounding["kernel.0"][:4]}
    save_calibration(directory, dataclasses.replace(calibration, rounding=broken))
    code, _, error = call(capsys, "score", directory, path)
    assert code == 2
    assert "not of this model" in error
    assert call(capsys, "calibrate", directory)[0] == 0
    assert load_artifact(directory).calibration.rounding is None


def test_one_outlier_and_one_error_are_counted_in_the_singular(trained, tmp_path, capsys):
    (tmp_path / "new").mkdir()
    noise = np.random.default_rng(0).integers(0, 256, (28, 28)).astype(np.uint8)
    Image.fromarray(noise).save(tmp_path / "new" / "noise.png")
    (tmp_path / "new" / "broken.png").write_bytes(b"not an image")
    for command, place in (("score", "scores.csv"), ("report", "page.html")):
        code, _, error = call(capsys, command, trained[0], tmp_path / "new", "--out", tmp_path / place)
        assert code == 0
        assert "1 scored, 1 outlier, 1 error" in error
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert "The 1 row with the highest" in page
    assert "1 rows" not in page


def test_a_damaged_calibration_is_refused(trained, tmp_path):
    directory = tmp_path / "copy"
    directory.mkdir()
    for path in trained[0].iterdir():
        (directory / path.name).write_bytes(path.read_bytes())
    whole = (directory / CALIBRATION).read_bytes()
    for damaged in (
        whole[:40],
        whole.replace(b"threshold", b"treshhold"),
        whole.replace(b"held_out.kl", b"held_out.kk"),
    ):
        (directory / CALIBRATION).write_bytes(damaged)
        with pytest.raises(ValueError, match="damaged"):
            load_artifact(directory)


def test_rows_of_features_are_scored_from_files(tmp_path):
    rows = np.random.default_rng(0).normal(size=(120, 3))
    detector = NegVAEDetector(epochs=2).fit(rows)
    detector.save(tmp_path / "kept")
    np.save(tmp_path / "rows.npy", rows[:40])
    score_files(tmp_path / "kept", [str(tmp_path / "rows.npy")], tmp_path / "s.csv")
    written = rows_of(tmp_path / "s.csv")
    np.testing.assert_allclose([row["neighbors"] for row in written], detector.ood_score(rows[:40]), rtol=1e-6)
    assert [row["is_outlier"] for row in written] == (detector.predict(rows[:40]) == -1).tolist()


def test_a_table_with_text_far_down_says_which_rows_are_not_scored(capsys, tmp_path):
    """Before, the rows after the last whole block were missing in the output, and "1 errors" was all that was said."""
    rows = np.random.default_rng(0).normal(size=(120, 2))
    NegVAEDetector(epochs=2).fit(rows).save(tmp_path / "kept")
    table = tmp_path / "late.csv"
    table.write_text("a,z\n" + "".join(f"1.{'0' * 60},{row}\n" for row in range(20_000)) + "1,t\n1,2\n")
    code, _, error = call(capsys, "score", tmp_path / "kept", table, "--out", tmp_path / "s.csv")
    written = rows_of(tmp_path / "s.csv")
    count = len(written) - 1
    told = f"; no row of this table from row {count} on is scored"
    assert (code, 0 < count < 20_000) == (0, True)
    assert [row["index"] for row in written] == list(range(count + 1))
    assert [bool(row["error"]) for row in written] == [False] * count + [True]
    assert written[-1]["error"].startswith("column 'z' holds 't', and features are numbers")
    assert written[-1]["error"].endswith(told)
    assert error.replace("\n", " ").rstrip().endswith(told)
