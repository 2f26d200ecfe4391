"""Regressions: data that were trained on or have changed, and outputs that are inputs; each once went unnoticed."""

import os
import shutil
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from negvae import NegVAEDetector
from negvae.data.formats.encoded import decode_image
from negvae.files import state_of
from negvae.runs.calibrate import calibrate_run
from negvae.runs.evaluate import evaluate_run
from tests.cli.test_commands import call
from tests.conftest import blobs

IMAGES, FRESH = blobs(120, (1, 28, 28)).numpy(), blobs(60, (1, 28, 28), seed=1).numpy()
OPTIONS = {"epochs": 1, "batch_size": 16, "precision": "float32", "device": "cpu", "target_fpr": 0.4}
FAST = ("--epochs", "1", "--batch-size", "16", "--device", "cpu", "--no-heatmaps", "--workers", "1")


def train(capsys, data, out, *options):
    code, _, error = call(capsys, "train", "--data", data, "--out", out, *FAST, *options)
    assert code == 0, error
    return error


# --- what was trained on -----


def test_a_test_split_that_was_trained_on_is_refused(tmp_path, capsys):
    np.savez(tmp_path / "both.npz", x_train=IMAGES, x_test=IMAGES[:50])
    np.save(tmp_path / "ood.npy", 255 - FRESH)
    train(capsys, tmp_path / "both.npz", tmp_path / "run")
    with pytest.raises(ValueError, match=r"the test split of .*both\.npz: \d+ of these 50 are inliers"):
        evaluate_run(tmp_path / "run", [str(tmp_path / "ood.npy")])
    train(capsys, tmp_path / "both.npz", tmp_path / "none", "--calibration", "0")
    with pytest.raises(ValueError, match=r"the test split of .*both\.npz: 50 of these 50 are inliers"):
        calibrate_run(tmp_path / "none")


def test_held_out_inliers_that_were_trained_on_are_refused():
    with pytest.raises(ValueError, match="calibration: 120 of these 120 are inliers"):
        NegVAEDetector(**OPTIONS).fit(IMAGES, calibration=IMAGES)


def test_copies_among_the_inliers_are_warned_of(tmp_path, capsys):
    rows = np.random.default_rng(0).normal(size=(60, 4))
    with pytest.warns(UserWarning, match="held-out inliers are copies of ones that are trained on"):
        NegVAEDetector(target_fpr=0.4, epochs=1).fit(np.repeat(rows, 4, 0))
    np.save(tmp_path / "rows.npy", np.repeat(rows, 4, 0))
    code, out, error = call(capsys, "train", "--data", tmp_path / "rows.npy", "--out", tmp_path / "run", "--epochs", 1)
    assert code == 0
    assert "held-out inliers are copies" in out + error


# --- what has changed -----


def test_a_fit_that_fails_leaves_the_fitted_detector_as_it_was():
    table = pd.DataFrame(np.random.default_rng(0).normal(size=(80, 3)) * [1, 10, 100], columns=["a", "b", "c"])
    detector = NegVAEDetector(target_fpr=0.4, epochs=1).fit(table)
    before = detector.ood_score(table)
    with pytest.raises(ValueError, match="column 0"):
        detector.fit(table[["c", "b", "a"]], calibration=table)
    assert detector.ood_score(table).tolist() == before.tolist()
    with pytest.raises(ValueError, match="feature names"):
        detector.predict(table[["c", "b", "a"]])
    with pytest.raises(ValueError, match="network"):
        NegVAEDetector(network="none such").fit(table)


def test_a_run_goes_on_with_the_same_negatives_only(tmp_path, capsys):
    np.save(tmp_path / "in.npy", IMAGES)
    np.save(tmp_path / "negatives.npy", 255 - IMAGES)
    train(capsys, tmp_path / "in.npy", tmp_path / "run", "--negatives", tmp_path / "negatives.npy")
    np.save(tmp_path / "negatives.npy", 255 - FRESH)
    code, _, error = call(capsys, "train", "--out", tmp_path / "run", "--resume", "--epochs", "2")
    assert code == 2
    assert "negatives" in error
    assert "have changed since" in error


def test_sets_are_known_by_their_content(tmp_path, capsys):
    for name, images in (("in", IMAGES), ("negatives", 255 - IMAGES), ("other", 255 - FRESH)):
        np.save(tmp_path / f"{name}.npy", images)
    shutil.copy(tmp_path / "negatives.npy", tmp_path / "copy.npy")
    shutil.copy(tmp_path / "in.npy", tmp_path / "again.npy")
    train(capsys, tmp_path / "in.npy", tmp_path / "run", "--negatives", tmp_path / "negatives.npy")
    np.save(tmp_path / "fresh.npy", FRESH)
    sets = [str(tmp_path / f"{name}.npy") for name in ("negatives", "copy", "other")]
    rows = evaluate_run(tmp_path / "run", sets, data=str(tmp_path / "fresh.npy"))["rows"]
    assert [row["served_as_negatives"] for row in rows] == [True, True, False]
    with pytest.raises(ValueError, match=r"again\.npy: \d+ of these 120 are inliers"):
        evaluate_run(tmp_path / "run", [str(tmp_path / "again.npy")], data=str(tmp_path / "fresh.npy"))


# --- outputs -----


@pytest.mark.parametrize("name", ["metrics.jsonl", "broken.tsv", "weights.safetensors", "README.md"])
def test_resuming_in_a_folder_without_a_run_touches_nothing(tmp_path, capsys, name):
    np.save(tmp_path / "in.npy", IMAGES)
    out = tmp_path / "mine"
    out.mkdir()
    (out / name).write_text("mine")
    code, _, error = call(capsys, "train", "--data", tmp_path / "in.npy", "--out", out, "--resume", *FAST)
    assert code == 2, error
    assert "no run to go on with" in error
    assert [(entry.name, entry.read_text()) for entry in out.iterdir()] == [(name, "mine")]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    place = tmp_path_factory.mktemp("place")
    np.save(place / "in.npy", FRESH)
    NegVAEDetector(**OPTIONS).fit(IMAGES).save(place / "run")
    rows = np.random.default_rng(0).normal(size=(60, 2))
    pd.DataFrame(rows, columns=["a", "b"]).to_csv(place / "rows.csv", index=False)
    NegVAEDetector(target_fpr=0.4, epochs=1).fit(str(place / "rows.csv")).save(place / "of-rows")
    return place


@pytest.mark.parametrize(
    ("command", "out", "words"),
    [
        (["clean", "rows.csv"], "rows.csv", "which is read"),
        (["report", "run", "in.npy"], "in.npy", "which is read"),
        (["report", "run", "in.npy"], "link.npy", "does not end in .html"),
        (["report", "run", "in.npy"], "run/weights.safetensors", "is a file of the run"),
        (["export", "run"], "run/weights.safetensors", "is a file of the run"),
        (["export", "run"], "other.npy", "does not end in .onnx"),
        (["score", "run", "in.npy", "--format", "csv"], "run/config.yaml", "is a file of the run"),
        (["score", "of-rows", "rows.csv"], "rows.csv", "which is read"),
    ],
)
def test_no_output_takes_the_place_of_what_is_read(place, capsys, monkeypatch, command, out, words):
    monkeypatch.chdir(place)
    np.save(place / "other.npy", FRESH)
    if not (place / "link.npy").exists():
        (place / "link.npy").symlink_to("other.npy")
    before = {path: path.read_bytes() for path in place.rglob("*") if path.is_file()}
    code, _, error = call(capsys, *command, "--out", out)
    assert (code, error.count("\n")) == (2, 1), error
    assert words in error
    assert before == {path: path.read_bytes() for path in place.rglob("*") if path.is_file()}


def test_outputs_take_the_place_of_earlier_ones(place, capsys, monkeypatch):
    monkeypatch.chdir(place)
    for _ in range(2):
        assert call(capsys, "score", "run", "in.npy", "--out", "scores.csv")[0] == 0
        assert call(capsys, "report", "run", "in.npy", "--out", "page.html")[0] == 0
        assert call(capsys, "clean", "rows.csv", "--out", "list.csv", "--epochs", "1", "--folds", "2")[0] == 0


def test_parts_of_files_that_changed_are_no_parts(place, capsys, monkeypatch):
    monkeypatch.chdir(place)
    np.save("a.npy", FRESH[:20])
    np.save("b.npy", FRESH[20:])
    options = ["score", "run", "a.npy", "b.npy", "--out", "parts/", "--shard-rows", "20"]
    assert call(capsys, *options)[0] == 0
    min((place / "parts").glob("part-*2.parquet")).unlink()
    np.save("a.npy", 255 - FRESH[:20])
    code, _, error = call(capsys, *options, "--resume")
    assert code == 2
    assert "holds other images" in error


# --- tables -----


def test_an_empty_line_of_a_table_of_one_column_is_a_missing_value(place, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    pd.DataFrame({"a": np.random.default_rng(0).normal(size=60)}).to_csv("one.csv", index=False)
    NegVAEDetector(target_fpr=0.4, epochs=1).fit("one.csv").save("run")
    (tmp_path / "gap.csv").write_text("a\n0.1\n\n0.2\n50\n")
    _, out, error = call(capsys, "score", "run", "gap.csv", "--format", "csv")
    lines = out.splitlines()
    assert len(lines) == 5, error
    assert "NaN" in lines[2]
    assert ",True," in lines[4].replace("true", "True")


def test_a_table_without_names_is_refused(tmp_path, capsys):
    np.savetxt(tmp_path / "bare.csv", np.random.default_rng(0).normal(size=(60, 2)), delimiter=",")
    code, _, error = call(capsys, "train", "--data", tmp_path / "bare.csv", "--out", tmp_path / "run")
    assert code == 2
    assert "its first line holds the names of the columns, and these are numbers" in error


def test_columns_that_are_called_by_numbers_keep_their_order():
    table = pd.DataFrame(np.random.default_rng(0).normal(size=(60, 3)) * [1, 10, 100])
    detector = NegVAEDetector(target_fpr=0.4, epochs=1).fit(table)
    with pytest.raises(ValueError, match="column 0 of X is '2', of the inliers '0'"):
        detector.predict(table[[2, 1, 0]])
    assert len(detector.predict(table.rename(columns={0: 7, 1: 8, 2: 9}))) == 60


def test_unknown_groups_are_counted(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    table = pd.DataFrame(np.random.default_rng(0).normal(size=(120, 2)), columns=["a", "b"])
    table.assign(g=[1, 2] * 60).to_csv("train.csv", index=False)
    table.assign(g=[1.5, 2.5] * 60).to_csv("new.csv", index=False)
    NegVAEDetector(target_fpr=0.4, epochs=1).fit("train.csv", groups="g").save("run")
    code, out, error = call(capsys, "score", "run", "new.csv", "--groups", "g", "--out", "s.csv")
    assert code == 0, error
    assert "120 rows have a group that was not calibrated ('1.5', '2.5')" in (out + error).replace("\n", " ")


def test_a_table_is_read_no_further_than_its_limit(tmp_path, monkeypatch):
    from negvae.data import rows as reading

    read = []
    monkeypatch.setattr(reading.tables, "numbers", lambda *_: (read.append(1) or np.zeros((10, 2)) for _ in range(99)))
    (tmp_path / "t.csv").write_text("a,b\n")
    assert reading.load_rows(tmp_path / "t.csv", 25).shape == (25, 2)
    assert len(read) == 4  # the fourth is not kept
    monkeypatch.setattr(reading, "need_memory", lambda shape, *_: (_ for _ in ()).throw(MemoryError(shape)))
    with pytest.raises(MemoryError):
        reading.load_rows(tmp_path / "t.csv")


# --- images, watches and streams of messages -----


def test_a_jpeg_of_very_many_scans_is_refused(tmp_path):
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8))
    image.save(tmp_path / "usual.jpg", progressive=True)
    usual = (tmp_path / "usual.jpg").read_bytes()
    last = usual.rindex(b"\xff\xda")
    decode_image(usual, "usual")
    with pytest.raises(ValueError, match=r"many: a JPEG of \d+ scans; at most 100"):
        decode_image(usual[:-2] + usual[last:-2] * 120 + usual[-2:], "many")


def test_pixels_of_another_file_of_the_same_size_and_time_are_decoded(tmp_path):
    path = tmp_path / "a.bmp"
    Image.fromarray(IMAGES[0, 0]).save(path)
    os.utime(path, ns=(0, 0))
    before = state_of(path)
    Image.fromarray(255 - IMAGES[0, 0]).save(tmp_path / "b.bmp")
    os.replace(tmp_path / "b.bmp", path)
    os.utime(path, ns=(0, 0))
    assert before[:2] == state_of(path)[:2]
    assert before != state_of(path)


def test_a_watch_goes_on_with_its_own_folder_only(place, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("a", "b"):
        os.mkdir(name)
        Image.fromarray(FRESH[0, 0]).save(f"{name}/1.png")
    watch = ["watch", place / "run"]
    assert call(capsys, *watch, "a", "--out", "w", "--once", "--settle", "0")[0] == 0
    for other in ("b", tmp_path / "a"):
        code, _, error = call(capsys, *watch, other, "--out", "w", "--once", "--settle", "0")
        assert code == 2
        assert "w watches a: name it in the same way" in error
    assert call(capsys, *watch, "a", "--out", "w", "--once", "--settle", "0")[0] == 0


@pytest.mark.skipif(os.name == "nt", reason="closes descriptors as a shell of Unix does")
def test_closed_streams_end_no_command(place, tmp_path):
    program = f"{sys.executable} -c 'from negvae.cli import main; main()'"
    command = f"{program} score {place / 'run'} {place / 'in.npy'} --out {tmp_path / 's.csv'}"
    for closed in (">&-", ">&- 2>&-"):
        done = subprocess.run(["sh", "-c", f"{command} {closed}"], stderr=subprocess.PIPE, text=True)
        assert (done.returncode, "Error" in done.stderr) == (0, False), done.stderr
        assert len((tmp_path / "s.csv").read_text().splitlines()) == len(FRESH) + 1
        (tmp_path / "s.csv").unlink()


def test_a_part_for_testing_is_not_left_out_of_a_list_without_a_word(tmp_path, capsys):
    for part, images in (("train", IMAGES), ("test", FRESH[:3])):
        (tmp_path / "set" / part).mkdir(parents=True)
        for number, image in enumerate(images[:40, 0]):
            Image.fromarray(image).save(tmp_path / "set" / part / f"{number}.png")
    options = ["--out", tmp_path / "list.csv", "--epochs", "1", "--folds", "2"]
    code, out, error = call(capsys, "clean", tmp_path / "set", *options)
    assert code == 0, error
    assert "the 3 images of its part for testing are left out" in (out + error).replace("\n", " ")
    _, out, error = call(capsys, "clean", tmp_path / "set" / "train", *options)
    assert "left out" not in out + error


def test_names_that_a_terminal_would_obey_are_shown_as_codes(tmp_path, capsys):
    code, _, error = call(capsys, "score", tmp_path / "no\x1b[2Jrun", "x.png")
    assert code == 2
    assert "\\x1b[2Jrun" in error
    assert "\x1b" not in error
