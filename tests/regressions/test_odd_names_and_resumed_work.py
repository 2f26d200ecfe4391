"""Regressions: odd names, one folder written in two ways, data looked for from elsewhere, broken new inliers."""

import io
import json
import os
import sys

import pyarrow.json
import pyarrow.parquet as pq
import pytest
from PIL import Image

from negvae import NegVAEDetector
from negvae.data.tables import check_columns, column_names
from negvae.runs import parts
from negvae.runs.parts import score_to_folder
from negvae.runs.train import resumed_config
from negvae.runs.watch import PIPE, watch
from tests.cli.test_commands import call
from tests.conftest import blobs, calibrated_run
from tests.runs.test_groups_of_photos import products

SHAPE = (1, 28, 28)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return calibrated_run(tmp_path_factory.mktemp("model"))


def photos(folder, count, seed=0):
    folder.mkdir(parents=True)
    for number, image in enumerate(blobs(count, SHAPE, seed)[:, 0].numpy()):
        Image.fromarray(image).save(folder / f"{number:03d}.png")
    return folder


# --- names -----


def test_rows_of_a_watch_are_json_that_any_reader_takes(model, tmp_path, monkeypatch):
    names = ["odd-\udcff.png", "no/such.png"]
    monkeypatch.setattr(sys, "stdin", io.StringIO("\n".join(names) + "\n"))
    watch(model, PIPE, tmp_path / "out")
    rows = pyarrow.json.read_json(tmp_path / "out" / "rows.jsonl").to_pylist()
    assert [row["path"] for row in rows] == ["odd-\\xff.png", "no/such.png"]
    monkeypatch.setattr(sys, "stdin", io.StringIO("\n".join(names) + "\n"))
    assert watch(model, PIPE, tmp_path / "out").rows == 2  # known by these names when it goes on


@pytest.mark.skipif(os.name == "nt", reason="no name has a line break there")
def test_a_name_with_a_line_break_is_said_in_one_line_and_once(model, tmp_path, capsys):
    folder = photos(tmp_path / "in", 2)
    (folder / "j\n.png").write_bytes(b"junk")
    code, _, error = call(capsys, "score", model, folder, "--out", tmp_path / "out.jsonl")
    assert code == 0
    lines = [line for line in error.splitlines() if "the first error" in line]
    assert len(lines) == 1
    assert "j\\n.png: not a readable image" in " ".join(error.split())
    rows = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [row["error"].startswith("not a readable image") for row in rows if row["error"]] == [True]


# --- tables and archives -----


def test_a_table_without_names_is_one_also_where_values_repeat(tmp_path):
    path = tmp_path / "rows.csv"
    path.write_text("30.0,30.0,1.5\n1.0,2.0,3.0\n")
    for read in (column_names, lambda path: check_columns(path, ("a", "b"))):
        with pytest.raises(ValueError, match="its first line holds the names of the columns, and these are numbers"):
            read(path)
    path.write_text("a,a,b\n1,2,3\n")
    with pytest.raises(ValueError, match="two columns are called 'a'"):
        column_names(path)


# --- going on -----


def test_parts_go_on_with_the_size_that_they_were_begun_with(model, tmp_path, monkeypatch):
    folder, out = photos(tmp_path / "in", 20), tmp_path / "out"
    real, made = parts.score_part, []

    def twice(*arguments, **more):
        if len(made) == 2:
            raise KeyboardInterrupt
        made.append(1)
        return real(*arguments, **more)

    monkeypatch.setattr(parts, "score_part", twice)
    with pytest.raises(KeyboardInterrupt):
        score_to_folder(model, [str(folder)], str(out), names=["kl"], shard_rows=7)
    monkeypatch.setattr(parts, "score_part", real)
    done = score_to_folder(model, [f"{folder}/"], str(out), names=["kl"], resume=True)
    assert (done.rows, done.earlier) == (20, 14)
    assert len(list(out.glob("part-*"))) == 3
    assert pq.read_table(out).num_rows == 20
    with pytest.raises(ValueError, match="begun with shard_rows 7, not 9: give the same"):
        score_to_folder(model, [str(folder)], str(out), names=["kl"], resume=True, shard_rows=9)
    new = score_to_folder(model, [str(folder)], str(tmp_path / "new"), names=["kl"], resume=True)
    assert new.rows == 20
    assert len(list((tmp_path / "new").glob("part-*"))) == 1


def test_a_folder_to_train_on_may_be_written_otherwise(tmp_path, capsys, monkeypatch):
    photos(tmp_path / "in", 40)
    photos(tmp_path / "others", 40, 1)
    monkeypatch.chdir(tmp_path)
    options = ["--preset", "gray", "--out", "run", "--epochs", 1, "--batch-size", 8, "--calibration", 0.2]
    assert call(capsys, "train", "--data", "in/", *options)[0] == 0
    for same in ("in", "./in", str(tmp_path / "in")):
        assert resumed_config(tmp_path / "run", {"data": same}).data == "in/"
    with pytest.raises(ValueError, match="was started with data in/, not others"):
        resumed_config(tmp_path / "run", {"data": "others"})


# --- data that is not where it was -----


def test_training_data_that_is_not_found_from_here_is_named_as_such(tmp_path, capsys, monkeypatch):
    photos(tmp_path / "here" / "in", 60)
    (tmp_path / "there").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    options = ["--preset", "gray", "--epochs", 1, "--batch-size", 8, "--calibration", 0.4]
    assert call(capsys, "train", "--data", "in", "--out", "run", *options)[0] == 0
    monkeypatch.chdir(tmp_path / "there")
    for command in (("calibrate", "../here/run"), ("evaluate", "../here/run", "--ood", "uniform-noise")):
        code, _, error = call(capsys, *command)
        assert code == 2
        said = " ".join(error.split())
        assert "in: the run was trained on this data, and there is no such file or folder, looked for from" in said
        assert "there: run the command where the run was trained, or name inliers with --data" in said
    photos(tmp_path / "there" / "in", 3, 1)
    (tmp_path / "there" / "in" / "000.png").write_bytes(b"junk")
    code, _, error = call(capsys, "calibrate", "../here/run")
    assert code == 2
    assert "in has changed since the run was trained (000.png is another)" in " ".join(error.split())


# --- broken files of new inliers -----


@pytest.mark.parametrize("tiled", [False, True])
def test_new_inliers_may_have_broken_files_as_those_of_the_fit_may(tmp_path, tiled):
    options = dict(network="pyramid", latent_size=2, epochs=1, device="cpu", target_fpr=0.2, calibration_fraction=0.4)
    if tiled:
        old, new = products(tmp_path / "old", 20), products(tmp_path / "new", 20, 1)
    else:
        old, new = photos(tmp_path / "old", 60), tmp_path / "new"
        photos(new / "dark", 20, 1)
        photos(new / "light", 20, 2)
    detector = NegVAEDetector(transformations="none", **options).fit(old)
    assert (detector.config_.images is not None) == tiled
    broken = sorted((new / "dark").iterdir())[5]
    broken.write_bytes(b"junk")
    os.symlink("nowhere.png", new / "dark" / "zz.png")
    with pytest.warns(UserWarning, match="2 broken files are left out"):
        detector.recalibrate(new, groups="folders")
    assert {name: len(values) for name, values in detector.calibration_.groups["combined"].items()} == {
        "dark": 19, "light": 20
    }  # fmt: skip
    with pytest.raises((ValueError, FileNotFoundError), match=broken.name):
        detector.predict(new)
