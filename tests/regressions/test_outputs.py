"""Regressions: files that the shell has opened stay whole, and what others have made is neither deleted nor undone."""

import dataclasses
import os
import subprocess
import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pyarrow import csv

from negvae.data.formats.folder import LeftOut, walk
from negvae.files import beside, replacing, temporary_folder
from negvae.paper import demo
from negvae.runs import score as scoring
from negvae.runs import train as training
from negvae.runs.artifact import load_artifact, read_section
from negvae.runs.calibrate import calibrate_run
from negvae.training.patches import DivergedError
from tests.cli.test_commands import call
from tests.conftest import blobs, small_run

WRITE = (
    "import sys; from pathlib import Path; from negvae.files import write_text; write_text(Path(sys.argv[1]), 'new\\n')"
)
needs_descriptors = pytest.mark.skipif(not os.path.exists("/dev/fd/1"), reason="no /dev/fd here")


def shell(command, tmp_path):
    """Run a command line in which $W PATH writes a line to a path."""
    words = {"W": f'{sys.executable} -c "{WRITE}"'}
    line = command.replace("$W", words["W"])
    return subprocess.run(["bash", "-c", line], cwd=tmp_path, capture_output=True, text=True, timeout=120)


@needs_descriptors
@pytest.mark.parametrize("place", ["/dev/stdout", "/dev/fd/1", "/proc/self/fd/1", "link"])
def test_what_the_shell_had_written_before_stays(tmp_path, place):
    (tmp_path / "link").symlink_to("/dev/stdout")
    if not os.path.exists(place) and place.startswith("/"):
        pytest.skip(f"no {place} here")
    (tmp_path / "all.csv").write_text("old\n")
    done = shell(f"(echo first; $W {place}; echo last) >> all.csv", tmp_path)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "all.csv").read_text() == "old\nfirst\nnew\nlast\n"
    assert shell(f"$W {place} | cat", tmp_path).stdout == "new\n"


@needs_descriptors
def test_a_pipe_of_the_shell_is_written_to(tmp_path):
    assert shell("$W >(cat > copy); $W /dev/fd/9 9> nine; sleep 0.3", tmp_path).returncode == 0
    assert (tmp_path / "nine").read_text() == "new\n"
    with pytest.raises(OSError, match="/dev/fd/99"), replacing("/dev/fd/99") as temporary:
        temporary.write_text("x")


def test_rows_that_wait_for_their_decision_lie_where_renaming_is_possible_or_beside_nothing(tmp_path):
    assert beside(tmp_path / "scores.csv") == tmp_path.resolve()
    assert beside("/dev/null") == beside(None) != tmp_path
    assert scoring.beside is beside


def test_a_run_that_goes_on_leaves_out_the_maps_that_were_ruled_out(tmp_path, monkeypatch):
    trained = []
    monkeypatch.setattr(
        training, "_heatmaps", lambda c, i, directory, *a: (trained.append(directory.name), (None, ""))[1]
    )
    np.save(tmp_path / "x.npy", blobs(40, (1, 28, 28)).numpy())
    monkeypatch.setattr(training, "wants_heatmaps", lambda config: True)
    config = small_run("gray", negatives="none", epochs=1, calibration=0.2)
    config = dataclasses.replace(config, data=str(tmp_path / "x.npy"))
    for name, asked in (("without", False), ("with", True), ("open", None)):
        training.run(config, tmp_path / name, heatmaps=asked)
        training.run(config, tmp_path / name, resume=True)
        assert read_section(tmp_path / name, "asked") == ({} if asked is None else {"heatmaps": asked})
    training.run(config, tmp_path / "without", resume=True, heatmaps=True)
    training.run(config, tmp_path / "without", resume=True)
    assert trained == ["with", "with", "open", "open", "without", "without"]


def test_heat_maps_that_diverge_cost_no_model(tmp_path, monkeypatch):
    def diverge(*args, **options):
        raise DivergedError("training the heat maps diverged within 100 steps")

    np.save(tmp_path / "in.npy", blobs(60, (1, 28, 28)).numpy())
    config = dataclasses.replace(small_run(epochs=1, calibration=0.5), data=str(tmp_path / "in.npy"))
    monkeypatch.setattr(training, "fit_heatmaps", diverge)
    lines = []
    training.run(config, tmp_path / "run", heatmaps=True, log=lines.append)
    assert any("the run is kept without heat maps" in line for line in lines)
    assert load_artifact(tmp_path / "run", "cpu").calibration is not None


def test_a_run_that_goes_on_keeps_the_calibration_of_the_user_unless_a_step_is_trained(tmp_path):
    np.save(tmp_path / "x.npy", blobs(60, (1, 28, 28)).numpy())
    np.save(tmp_path / "new.npy", blobs(50, (1, 28, 28), 1).numpy())
    config = dataclasses.replace(small_run("gray", negatives="none", epochs=1), data=str(tmp_path / "x.npy"))
    for number, share in enumerate((0.4, 0.0)):
        place, texts = tmp_path / f"run-{number}", []
        held = dataclasses.replace(config, calibration=share)
        training.run(held, place)
        calibrate_run(place, str(tmp_path / "new.npy"), score="kl", target_fpr=0.1)
        before = load_artifact(place).calibration
        training.run(held, place, resume=True, log=texts.append)
        after = load_artifact(place).calibration
        assert after.describe() == before.describe()
        assert {name: scores.tolist() for name, scores in after.scores.items()} == {
            name: scores.tolist() for name, scores in before.scores.items()
        }
        assert texts[-1] == f"calibration: kept, since no step was trained: {before.describe()}"
        training.run(dataclasses.replace(held, epochs=2), place, resume=True, log=texts.append)
        assert (
            "calibration: the earlier one is of the model before this training, and is "
            + ("measured anew by the run's own rule" if share else f"removed: run `negvae calibrate {place}`")
            in texts
        )
        assert (load_artifact(place).calibration is None) == (not share)


def finished(place, text="of the demo"):
    with demo._replaced(place) as folder:
        (folder / "config.yaml").write_text(text)
    assert sorted(entry.name for entry in place.iterdir()) == [".negvae-demo", "config.yaml"]


def stopped(place):
    """Leave what a demo leaves whose process is killed: its temporary folder, under the number of a dead process."""
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    with demo._replaced(place) as folder:
        left = folder.with_name(folder.name.replace(f"-{os.getpid()}-", f"-{ended.pid}-"))
        left.mkdir()
        (left / "config.yaml").write_text("half")
    return left


def test_a_demo_takes_the_place_of_an_earlier_one(tmp_path):
    demo._take(tmp_path)
    place = tmp_path / "none"
    finished(place)
    finished(place, "of the next")
    assert (place / "config.yaml").read_text() == "of the next"
    with pytest.raises(KeyError), demo._replaced(place):
        raise KeyError  # a demo that fails leaves the one before
    assert (place / "config.yaml").read_text() == "of the next"
    left = stopped(tmp_path / "augmented")
    finished(tmp_path / "augmented")
    assert not left.exists()
    assert sorted(entry.name for entry in tmp_path.iterdir()) == [".negvae-demo", "augmented", "none"]


@pytest.mark.parametrize("what", ["further", "notes", "own", "unmarked", "folder", "link"])
def test_a_demo_deletes_only_what_is_as_a_demo_left_it(tmp_path, what):
    out = tmp_path / "out"
    demo._take(out)
    place, config = out / "none", out / "none/config.yaml"
    finished(place)
    if what == "further":  # the demo's run was trained further, under the same names
        config.write_text("100 epochs more")
    elif what == "notes":
        (place / "notes.txt").write_text("a person's")
    elif what == "own":  # another run in a folder that a demo of an earlier version marked with names alone
        (place / ".negvae-demo").write_text("config.yaml")
    elif what == "unmarked":
        (place / ".negvae-demo").unlink()
    elif what == "folder":
        config.unlink()
        (config / "deep").mkdir(parents=True)
    else:
        place.rename(tmp_path / "elsewhere")
        place.symlink_to(tmp_path / "elsewhere")
    before = sorted(str(path) for path in tmp_path.rglob("*"))
    message = r"none (holds (config\.yaml|notes\.txt), which|is no folder that a demo made)"
    with pytest.raises(ValueError, match=message), demo._replaced(place):
        pytest.fail("it trained")
    assert sorted(str(path) for path in tmp_path.rglob("*")) == before


def test_what_comes_while_a_demo_trains_stays(tmp_path):
    demo._take(tmp_path)
    place = tmp_path / "none"
    finished(place)
    with pytest.raises(ValueError, match=r"notes\.txt, which no demo made"), demo._replaced(place):
        (place / "notes.txt").write_text("a person's")
    assert (place / "notes.txt").exists()
    assert (place / "config.yaml").exists()


def test_errors_name_the_output_and_not_its_temporary_file(tmp_path, monkeypatch):
    path = tmp_path / "missing/scores.csv"
    with pytest.raises(FileNotFoundError) as caught, replacing(path):
        pass
    assert caught.value.filename == str(path)

    def refused(source, target):
        raise PermissionError(1, "Operation not permitted", str(source), None, str(target))

    monkeypatch.setattr(os, "replace", refused)
    path = tmp_path / "scores.csv"
    with pytest.raises(PermissionError) as caught, replacing(path):
        pass
    assert (caught.value.filename, caught.value.filename2) == (str(path), None)


def test_the_output_that_is_being_written_is_no_input_that_was_left_out(tmp_path):
    (tmp_path / ".hidden.tmp").touch()
    with replacing(tmp_path / "scores.parquet"), temporary_folder(tmp_path, "negvae-rows"):
        left_out = LeftOut()
        assert list(walk(str(tmp_path), (".png",), left_out)) == []
    assert left_out.first == [str(tmp_path / ".hidden.tmp")]


def test_an_output_in_the_scored_folder_replaces_an_earlier_output_and_no_table_of_the_user(tmp_path, capsys):
    rows = np.random.default_rng(0).normal(size=(80, 2))
    np.save(tmp_path / "good.npy", rows)
    call(capsys, "train", "--data", tmp_path / "good.npy", "--out", tmp_path / "run", "--device", "cpu", "--epochs", 1)
    folder = tmp_path / "in"
    folder.mkdir()
    table = pa.table({"a": rows[:, 0], "b": rows[:, 1]})
    pq.write_table(table, folder / "b.parquet")
    csv.write_csv(table, folder / "b.csv")
    before = {path: path.read_bytes() for path in folder.iterdir()}
    for out in before:
        for source in (folder, f"{folder}/*"):
            code, text, error = call(capsys, "score", tmp_path / "run", source, "--out", out)
            assert (code, text) == (2, "")
            assert error.strip() == (
                f"negvae: --out {out} is among the files to score, and no earlier output of `negvae score`: take"
                " another file"
            )
    assert {path: path.read_bytes() for path in folder.iterdir()} == before
    for name in ("s.csv", "s.parquet", "s.jsonl"):  # the second time, the file is there
        (folder / name).touch()
        for _ in range(2):
            assert call(capsys, "score", tmp_path / "run", f"{folder}/*", "--out", folder / name)[0] == 0
        (folder / name).unlink()
