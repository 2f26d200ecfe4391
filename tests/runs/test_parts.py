"""`negvae score` into a folder of parts on one machine, and inputs that once ended a whole job."""

import dataclasses
import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from negvae import files
from negvae.runs import parts
from negvae.runs.parts import MANIFEST, score_to_folder
from negvae.runs.score import Summary, score_files
from negvae.runs.train import run
from tests.cli.test_commands import call
from tests.conftest import blobs, calibrated_run, small_run

SHAPE = (1, 28, 28)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return calibrated_run(tmp_path_factory.mktemp("model"))


@pytest.fixture
def inbox(tmp_path):
    folder = tmp_path / "inbox"
    folder.mkdir()
    images = blobs(30, SHAPE, 3)[:, 0].numpy()
    for index in range(10):
        Image.fromarray(images[index]).save(folder / f"a{index}.png")
    (folder / "a3.png").write_bytes(b"broken")
    np.save(folder / "b.npy", images)
    (folder / "notes.txt").write_text("x")
    return folder


def test_parts_are_the_rows_of_one_file(model, inbox, tmp_path):
    score_files(model, [str(inbox)], tmp_path / "one.parquet", names=["kl", "bpd"])
    said, seen = [], []
    summary = score_to_folder(
        model, [str(inbox)], str(tmp_path / "out"), names=["kl", "bpd"], shard_rows=8, on_rows=seen.append,
        log=said.append,
    )  # fmt: skip
    one, many = (pq.read_table(tmp_path / name) for name in ("one.parquet", "out"))
    assert many.schema.remove_metadata() == one.schema.remove_metadata()
    assert many.to_pylist() == one.to_pylist()
    assert (summary.rows, summary.errors) == (40, 1)
    assert seen[-1] == 40
    assert any("1 left out (.txt 1" in line for line in said)
    manifest = json.loads((tmp_path / "out" / MANIFEST).read_text())
    assert manifest["state"] == "complete"
    assert manifest["left_out"] == {".txt": 1}
    assert len(manifest["parts"]) == len(list((tmp_path / "out").glob("part-*.parquet"))) == 6


def test_a_broken_job_goes_on_and_makes_no_part_twice(model, inbox, tmp_path, monkeypatch):
    out = tmp_path / "out"
    options = {"names": ["kl"], "shard_rows": 8}
    score_to_folder(model, [str(inbox)], str(tmp_path / "whole"), **options)
    real, made = parts.score_part, []

    def until_the_third(*arguments, **more):
        if len(made) == 3:
            raise KeyboardInterrupt
        made.append(1)
        return real(*arguments, **more)

    monkeypatch.setattr(parts, "score_part", until_the_third)
    with pytest.raises(KeyboardInterrupt):
        score_to_folder(model, [str(inbox)], str(out), **options)
    before = {path.name: path.stat().st_mtime_ns for path in out.glob("part-*")}
    assert len(before) == 3
    with pytest.raises(ValueError, match="--resume"):
        score_to_folder(model, [str(inbox)], str(out), **options)
    monkeypatch.setattr(parts, "score_part", real)
    with pytest.raises(ValueError, match="shard_rows 8, not 9"):
        score_to_folder(model, [str(inbox)], str(out), names=["kl"], shard_rows=9, resume=True)
    done = score_to_folder(model, [str(inbox)], str(out), resume=True, **options)
    earlier = sum(pq.read_table(out / name, columns=["error"])["error"].null_count for name in before)
    assert 0 < done.earlier == earlier < done.rows - done.errors
    assert {name: (out / name).stat().st_mtime_ns for name in before} == before
    assert pq.read_table(out).to_pylist() == pq.read_table(tmp_path / "whole").to_pylist()
    (inbox / "a0.png").unlink()
    with pytest.raises(ValueError, match="other images than the inputs now have"):
        score_to_folder(model, [str(inbox)], str(out), resume=True, **options)


def test_the_rate_is_that_of_this_call_in_the_units_of_the_inputs():
    done = Summary(1000, 10, 3, 2.0, earlier=590, unit="rows")
    assert done.describe() == "990 scored (590 of them before), 3 outliers, 10 errors, 2.0 s (200 rows/s)"
    assert Summary(1000, 0, None, 2.0).describe() == "1,000 scored, 0 errors, 2.0 s (500 images/s)"


def test_the_command_line_writes_parts_into_folders(model, inbox, tmp_path, capsys):
    out = inbox / "out"  # inside of what is read
    code, _, error = call(capsys, "score", model, inbox, "--out", f"{out}/", "--shard-rows", "16")
    assert code == 0, error
    code, _, error = call(capsys, "score", model, inbox, "--out", out, "--shard-rows", "16", "--resume")
    assert code == 0, error
    assert pq.read_table(out).num_rows == 40
    code, _, error = call(capsys, "score", model, inbox, "--out", out, "--fdr", "0.1")
    assert (code, error.count("\n")) == (2, 1)
    for _ in range(2):  # its own output lies beside its inputs
        shutil.rmtree(out, ignore_errors=True)
        assert call(capsys, "score", model, inbox, "--out", inbox / "scores.parquet")[0] == 0
        assert pq.read_table(inbox / "scores.parquet").num_rows == 40


@pytest.mark.parametrize("form", ["parquet", "csv", "jsonl"])
def test_a_name_that_is_not_utf8_is_one_row(model, inbox, tmp_path, capsys, form):
    os.rename(inbox / "a1.png", os.fsencode(inbox) + b"/caf\xe9.png")
    os.rename(inbox / "a3.png", os.fsencode(inbox) + b"/broken\xff.png")
    out = tmp_path / f"scores.{form}"
    code, _, error = call(capsys, "score", model, inbox, "--out", out)
    assert code == 0, error
    if form == "parquet":
        table = pq.read_table(out).to_pylist()
        assert len(table) == 40
        by_name = {os.path.basename(row["path"]): row["error"] for row in table}
        assert by_name["caf\\xe9.png"] is None
        assert by_name["broken\\xff.png"]
    else:
        assert "caf" in out.read_text(encoding="utf-8")


def test_a_run_whose_folder_is_not_utf8_is_trained_and_goes_on(tmp_path):
    folder = os.fsdecode(os.fsencode(tmp_path) + b"/f\xfcnf")
    os.mkdir(folder)
    for number, image in enumerate(blobs(20, SHAPE)):
        Image.fromarray(image[0].numpy()).save(os.path.join(folder, f"{number}.png"))
    config = dataclasses.replace(small_run(epochs=1, calibration=0.2), data=folder)
    run(config, tmp_path / "run")
    longer = dataclasses.replace(config, epochs=2)
    assert run(longer, tmp_path / "run", resume=True).stopped_by == "finished"
    assert "f\\xfcnf" in (tmp_path / "run" / "MODEL_CARD.md").read_text(encoding="utf-8")


def test_a_job_of_errors_alone_does_not_end_well(model, tmp_path, capsys):
    (tmp_path / "in").mkdir()
    for name in ("a.png", "b.png"):
        (tmp_path / "in" / name).write_bytes(b"junk")
    for out in (tmp_path / "scores.csv", f"{tmp_path}/parts/"):
        code, _, error = call(capsys, "score", model, tmp_path / "in", "--out", out)
        assert code == 1
        assert "not a single row could be scored" in error
    assert (tmp_path / "scores.csv").exists()


def test_an_actor_that_cannot_load_says_so_whatever_it_meets(monkeypatch, tmp_path):
    from negvae.cluster import score as cluster

    monkeypatch.setattr(cluster, "enter", lambda *a, **o: None)
    for error in (MemoryError("no memory"), PermissionError(13, "Permission denied", "weights"), RuntimeError("cuda")):

        def fails(*arguments, error=error, **options):
            raise error

        monkeypatch.setattr(cluster, "open_scoring", fails)
        actor = cluster.Actor({}, [], str(tmp_path), str(tmp_path), {"batch_size": 1}, 1)
        assert str(error) in actor.ready()


def test_workers_that_die_while_loading_are_not_replaced_for_ever(monkeypatch):
    from negvae.cluster import score as cluster

    class Died(Exception):
        pass

    class Ray:
        exceptions = type("exceptions", (), {"RayTaskError": KeyError})
        started = 0

        def remote(self, **options):
            def new(*arguments):
                self.started += 1
                assert self.started < 20, "workers are started for ever"
                ready = type("ready", (), {"remote": staticmethod(lambda: object())})
                return type("actor", (), {"ready": ready})

            return lambda kind: type("handle", (), {"remote": staticmethod(new)})

        def wait(self, refs, **options):
            return refs[:1], refs[1:]

        def get(self, ref):
            raise Died("out of memory")

        def kill(self, actor):
            pass

    monkeypatch.setattr(cluster, "lost_errors", lambda ray: (Died,))
    monkeypatch.setattr(cluster, "worker_capacity", lambda *a: 1)
    with pytest.raises(ValueError, match=r"lost while they loaded the model.*out of memory"):
        list(cluster._scored(Ray(), iter([("part", "digest", ())]), (), 1, 0, lambda text: None))


@pytest.mark.parametrize("place", ["path", "uri"])
def test_what_has_changed_between_two_starts_is_noticed(model, inbox, tmp_path, place):
    out, source = tmp_path / "out", inbox.as_uri() if place == "uri" else str(inbox)
    to = out.as_uri() if place == "uri" else str(out)
    score_to_folder(model, [source], to, names=["kl"], shard_rows=4)
    (out / "part-0000001.parquet").unlink()
    (out / ".part-0000001.parquet.0123abcd.tmp").write_bytes(b"half")  # of a process that was killed
    score_to_folder(model, [source], to, names=["kl"], shard_rows=4, resume=True)
    Image.fromarray(255 - blobs(1, SHAPE, 8)[0, 0].numpy()).save(inbox / "a1.png")
    with pytest.raises(ValueError, match=r"part-0000000\.parquet holds other images"):
        score_to_folder(model, [source], to, names=["kl"], shard_rows=4, resume=True)


def test_a_job_that_was_killed_while_it_began_begins_again(model, inbox, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    killed = subprocess.Popen([sys.executable, "-c", ""])
    killed.wait()
    left = out / f".{MANIFEST}.{files._machine()}-{killed.pid}-0123abcd.tmp"
    left.write_text('{"state": ')
    score_to_folder(model, [str(inbox)], str(out), names=["kl"], resume=True)
    assert json.loads((out / MANIFEST).read_text())["state"] == "complete"
    assert not left.exists()
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "letter.txt").write_text("x")
    with pytest.raises(ValueError, match="did not begin it"):
        score_to_folder(model, [str(inbox)], str(tmp_path / "other"), names=["kl"], resume=True)


def test_an_empty_folder_leaves_nothing_behind(model, inbox, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    command = ["score", str(model), str(tmp_path / "empty"), "--out", f"{tmp_path}/parts/"]
    code, _, said = call(capsys, *command)
    assert (code, "images to score" in said) == (2, True)
    assert not (tmp_path / "parts").exists()
    Image.fromarray(np.zeros((28, 28), np.uint8)).save(tmp_path / "empty" / "a.png")
    assert call(capsys, *command)[0] == 0
