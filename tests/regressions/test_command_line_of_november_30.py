"""Regressions: empty names, standard input that does not end, links that lead nowhere, and places to write to."""

import io
import os
import shutil
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from negvae.report import page
from negvae.runs import calibrate, evaluate, graph
from negvae.runs.parts import Parts
from negvae.runs.sets import load_as_stored
from negvae.runs.watch import PIPE, prometheus, watch
from tests import processes
from tests.cli.test_commands import call
from tests.conftest import blobs, calibrated_run

WAITS = """
import os, time
from negvae.runs.watch import _piped
found = []
reading, writing = os.pipe()
os.dup2(reading, 0)
os.write(writing, b"a.png\\n")
for places in _piped(set(), lambda: bool(found)):
    found += places
    time.sleep(0.2)  # until the next path is waited for
print(found)
"""


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return calibrated_run(tmp_path_factory.mktemp("run"))


@pytest.fixture
def images(tmp_path):
    np.save(tmp_path / "new.npy", blobs(3, (1, 28, 28), 1).numpy())
    return str(tmp_path / "new.npy")


def test_parts_are_not_written_to_the_root_where_a_variable_of_the_shell_is_not_set(capsys, model, images, monkeypatch):
    monkeypatch.setattr(Parts, "open", lambda *_: pytest.fail("begins a folder"))
    code, _, error = call(capsys, "score", model, images, "--out", "")
    assert (code, error.splitlines()[-1]) == (2, "negvae: --out is empty or /: name a folder for the parts")


def test_a_watch_of_a_pipe_ends_in_order_while_it_waits_for_a_path(tmp_path):
    (tmp_path / "waits.py").write_text(WAITS)
    done = processes.run([], script=tmp_path / "waits.py")
    assert (done.returncode, done.stdout, done.stderr) == (0, "[('a.png', 0)]\n", "")


def test_a_watch_of_standard_input_that_is_closed_ends(model, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "stdin", None)
    assert watch(model, PIPE, tmp_path / "out").rows == 0


def test_names_that_are_joined_by_zeros_do_not_stop_a_watch_of_a_pipe(model, images, tmp_path, monkeypatch):
    lines = f"a.png\0b.png\0\n{images}\n".encode()
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(lines), encoding="utf-8"))
    watched = watch(model, PIPE, tmp_path / "out")
    assert (watched.rows, watched.errors) == (4, 1)


def test_names_that_are_not_utf_8_are_no_unknown_escapes_in_metrics(model, tmp_path):
    folder = os.fsdecode(os.fsencode(tmp_path) + b"/in-\xff")
    try:
        os.mkdir(folder)
    except OSError:
        pytest.skip("this file system takes names in UTF-8 only")
    watched = watch(model, folder, tmp_path / "out", once=True)
    assert rb"in-\\xff" in (tmp_path / "out" / "metrics.prom").read_bytes()
    assert r"in-\\xff" in prometheus(watched)


@pytest.mark.parametrize(("command", "name", "module", "work"), [
    ("report RUN NEW --out PLACE", "page.html", page, "examine"),
    ("evaluate RUN --ood NEW", "evaluation.json", evaluate, "compare"),
    ("calibrate RUN", "calibration.safetensors", calibrate, "calibrate"),
])  # fmt: skip
def test_a_place_that_cannot_be_written_to_is_known_before_the_work(
    capsys, model, tmp_path, images, monkeypatch, command, name, module, work
):
    run = shutil.copytree(model, tmp_path / "run")
    monkeypatch.setattr(module, work, lambda *_, **__: pytest.fail("works in vain"))
    place = (tmp_path if module is page else run) / name
    if place.exists():
        place.unlink()
    place.mkdir()
    words = {"RUN": str(run), "NEW": images, "PLACE": str(place)}
    code, _, error = call(capsys, *[words.get(word, word) for word in command.split()])
    assert (code, error.splitlines()[-1]) == (2, f"negvae: {place}: is a directory")
    assert not list(place.parent.glob(".*.tmp"))


def test_a_link_to_itself_does_not_stop_a_watch(model, tmp_path):
    (tmp_path / "in").mkdir()
    np.save(tmp_path / "in" / "a.npy", blobs(2, (1, 28, 28)).numpy())
    (tmp_path / "in" / "loop.png").symlink_to("loop.png")
    assert watch(model, str(tmp_path / "in"), tmp_path / "out", once=True, settle=0).rows == 2


def test_a_watch_leaves_nothing_in_a_folder_that_it_refuses(model, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match="is not empty"):
        watch(model, str(tmp_path), tmp_path, once=True)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_a_model_of_triton_is_not_written_into_the_folder_of_its_run(capsys, model):
    before = sorted(path.name for path in model.iterdir())
    code, _, error = call(capsys, "export", model, "--triton", model.parent)
    assert (code, error.count("\n")) == (2, 1)
    assert "holds the run itself" in error
    assert sorted(path.name for path in model.iterdir()) == before


def test_what_cannot_be_exported_is_said_with_the_reason_and_not_with_the_step(monkeypatch, tmp_path):
    def fails(*_):
        raise RuntimeError("This is step 1/3 of exporting") from NotImplementedError()

    monkeypatch.setattr(graph, "_traced", fails)
    with pytest.raises(ValueError, match=r"\(NotImplementedError\)"):
        graph.write_graph(nn.Identity(), torch.zeros(2), tmp_path / "a.onnx", {}, len, input_name="images")


def test_images_of_16_bits_among_others_of_one_size_are_named(tmp_path):
    for number, image in enumerate(blobs(4, (1, 28, 28)).numpy()[:, 0]):
        Image.fromarray(image if number else image.astype(np.uint16) * 257).save(tmp_path / f"{number}.png")
    with pytest.raises(ValueError, match=r"0\.png: .* more than 8 bits; convert"):
        load_as_stored(str(tmp_path), "test")


def test_ctrl_c_before_the_options_are_read_is_no_traceback(capsys, monkeypatch):
    def interrupted(**_):
        raise KeyboardInterrupt

    monkeypatch.setattr("negvae.cli.app.app", interrupted)
    assert call(capsys, "cite") == (130, "", "")
