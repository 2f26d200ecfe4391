"""Regressions: outputs that are full, are special files, or cannot be written."""

import dataclasses
import gc
import os
import stat
import sys
import threading
import warnings
from pathlib import Path

import numpy as np
import pytest

from negvae import cli
from negvae.runs.train import run
from tests.cli.test_commands import call
from tests.conftest import blobs, small_run

SHAPE = (1, 28, 28)
FULL = "/dev/full"
needs_full = pytest.mark.skipif(not os.path.exists(FULL), reason="this system has no /dev/full")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    place = tmp_path_factory.mktemp("place")
    np.save(place / "in.npy", blobs(60, SHAPE).numpy())
    np.save(place / "out.npy", (255 - blobs(20, SHAPE)).numpy())
    run(dataclasses.replace(small_run(epochs=1, calibration=0.4), data=str(place / "in.npy")), place / "run")
    return place


def commands(place):
    """Every command that computes or shows something, with arguments that work."""
    model, data = place / "run", place / "in.npy"
    return {
        "score": ["score", model, data], "score csv": ["score", model, data, "--format", "csv"],
        "evaluate": ["evaluate", model, "--ood", place / "out.npy"], "calibrate": ["calibrate", model],
        "report": ["report", model, data, "--out", place / "r.html"],
        "data list": ["data", "list"], "paper list": ["paper", "list"], "paper show": ["paper", "show", "table1"],
        "paper json": ["paper", "show", "all", "--json"], "help": ["train", "--help"], "version": ["--version"],
    }  # fmt: skip


@needs_full
@pytest.mark.parametrize("name", list(commands(Path())))
def test_a_full_disk_behind_standard_output_is_one_line(place, name, capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["negvae", *map(str, commands(place)[name])])
    with open(FULL, "w") as full, monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", full)
        with pytest.raises(SystemExit) as stop:
            cli.main()
    error = capsys.readouterr().err
    assert "Traceback" not in error
    if name != "report":  # whose standard output is empty
        assert stop.value.code == 2, error
        lines = [line for line in error.splitlines() if line.startswith("negvae:")]
        assert len(lines) == 1
        assert "no space left" in lines[0].lower()


@needs_full
@pytest.mark.parametrize("command", ["score", "report", "export"])
def test_a_full_device_as_output_is_one_line_and_stays_a_device(place, capsys, command):
    inputs = [] if command == "export" else [place / "in.npy"]
    more = ["--format", "csv"] if command == "score" else []
    filters = list(warnings.filters)
    code, _, error = call(capsys, command, place / "run", *inputs, "--out", FULL, *more)
    assert code == 2
    assert "no space left" in error.lower()
    assert "Traceback" not in error
    assert stat.S_ISCHR(os.stat(FULL).st_mode)
    gc.collect()
    assert warnings.filters == filters  # of the host program


def test_special_outputs_are_written_through(place, tmp_path, capsys):
    model, data = place / "run", place / "in.npy"
    pipe, content = tmp_path / "pipe", []
    os.mkfifo(pipe)
    reader = threading.Thread(target=lambda: content.append(pipe.read_text()))
    reader.start()
    assert call(capsys, "score", model, data, "--format", "csv", "--out", pipe)[0] == 0
    reader.join(30)
    assert content[0].count("\n") == 61
    assert stat.S_ISFIFO(pipe.stat().st_mode)
    target, link = tmp_path / "old.csv", tmp_path / "link.csv"
    target.write_text("old")
    target.chmod(0o600)
    link.symlink_to(target)
    assert call(capsys, "score", model, data, "--out", link)[0] == 0
    assert link.is_symlink()
    assert target.read_text().count("\n") == 61
    assert stat.S_IMODE(target.stat().st_mode) == 0o600
    assert call(capsys, "report", model, data, "--out", "/dev/null")[0] == 0
    assert stat.S_ISCHR(os.stat("/dev/null").st_mode)


@pytest.mark.skipif(os.name == "nt", reason="permissions are those of POSIX")
@pytest.mark.parametrize("command", ["score", "report", "train", "calibrate", "evaluate"])
def test_outputs_that_may_not_be_written_are_one_line(place, tmp_path, capsys, command):
    model, data, out = place / "run", place / "in.npy", tmp_path / "closed" / "out.csv"
    for folder in (place, model, tmp_path, *tmp_path.parents):
        if folder.stat().st_uid == os.geteuid() and folder != folder.parent:
            folder.chmod(folder.stat().st_mode | 0o055)
    arguments = {
        "score": [model, data, "--out", out], "report": [model, data, "--out", out],
        "train": ["--data", data, "--out", out, "--preset", "gray", "--epochs", "1"], "calibrate": [model],
        "evaluate": [model, "--ood", place / "out.npy"],
    }[command]  # fmt: skip
    if command == "evaluate":  # root's own Python may be closed to others: what it imports late comes now
        assert call(capsys, command, *arguments)[0] == 0
    out.parent.mkdir()
    out.parent.chmod(0o555)
    kept = model.stat().st_mode
    model.chmod(0o555)
    if os.geteuid() == 0:
        os.seteuid(65534)
    try:
        code, _, error = call(capsys, command, *arguments)
    finally:
        os.seteuid(os.getuid())
        model.chmod(kept)
        out.parent.chmod(0o755)
    assert code == 2, error
    assert "permission denied" in error.lower()
    assert "Traceback" not in error
    assert os.listdir(out.parent) == []
