"""Trials of outputs: what the shell opened stays whole, and nothing that others made is deleted or made undone."""

import dataclasses
import os
import subprocess
import sys

import numpy as np
import pytest

from negvae.files import beside, replacing
from negvae.paper import demo
from negvae.runs import score as scoring
from negvae.runs import train as training
from negvae.runs.artifact import read_section
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
    wanted = []
    monkeypatch.setattr(
        training, "_held_against", lambda c, r, i, heatmaps, *a: wanted.append(heatmaps) or (None, None)
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
    assert wanted == [False, False, True, True, True, True, True, True]


def test_a_demo_deletes_only_what_a_demo_made(tmp_path):
    demo._take(tmp_path)
    place = tmp_path / "none"
    with demo._emptied(place):
        place.mkdir()
        (place / "config.yaml").write_text("of the demo")
    with demo._emptied(place):  # the next demo
        assert not place.exists()
        place.mkdir()
        (place / "config.yaml").write_text("of the demo")
    stopped = demo._emptied(place)
    stopped.__enter__()
    place.mkdir()
    (place / "config.yaml").write_text("half")
    with demo._emptied(place):  # what was stopped is the demo's own, too
        place.mkdir()
        (place / "config.yaml").write_text("of the demo")
    (place / "notes.txt").write_text("a person's")
    with pytest.raises(ValueError, match=r"none holds notes\.txt, which no demo made"), demo._emptied(place):
        pass
    assert (place / "notes.txt").exists()
    (place / ".negvae-demo").unlink()
    (place / "notes.txt").unlink()
    with pytest.raises(ValueError, match=r"none holds config\.yaml, which no demo made"), demo._emptied(place):
        pass
