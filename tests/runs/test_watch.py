"""Watching a folder: rows, state that survives a kill, metrics and the page."""

import io
import json
import os
import subprocess
import sys
import time

import numpy as np
import pytest
from PIL import Image

from negvae import NegVAEDetector
from negvae.report.watch import write_page
from negvae.runs import watch as module
from negvae.runs.watch import PIPE, prometheus, refreshing, watch
from tests.conftest import blobs

QUICK = {"preset": "gray", "optimizer": "adam", "learning_rate": 1e-3, "epochs": 1, "precision": "float32"}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    place = tmp_path_factory.mktemp("watch") / "model"
    inliers = blobs(240, (1, 28, 28)).numpy()
    NegVAEDetector("none", decision_score="kl", target_fpr=0.1, calibration_fraction=0.5, **QUICK).fit(inliers).save(
        place
    )
    return place


def put(folder, images, first=0):
    """Write images in the order of their names and times; each appears whole, with the time that it keeps."""
    folder.mkdir(exist_ok=True)
    now = time.time() - 1_000
    for number, image in enumerate(images, first):
        path = folder / f".{number:04d}.png"
        Image.fromarray(image[0]).save(path)
        os.utime(path, (now + number, now + number))
        path.rename(folder / path.name[1:])


def rows_of(out):
    return [json.loads(line) for line in (out / "rows.jsonl").read_text().splitlines()]


def test_a_folder_is_scored_as_the_detector_scores_it(model, tmp_path):
    images = blobs(30, (1, 28, 28), 3).numpy()
    put(tmp_path / "in", images)
    (tmp_path / "in" / "broken.png").write_bytes(b"no image")
    os.utime(tmp_path / "in" / "broken.png", (1, 1))
    updates = []
    done = watch(model, str(tmp_path / "in"), tmp_path / "out", once=True, settle=0, on_update=updates.append)
    rows = rows_of(tmp_path / "out")
    assert [os.path.basename(row["path"]) for row in rows] == ["broken.png", *(f"{n:04d}.png" for n in range(30))]
    assert rows[0]["error"]
    assert rows[0]["p_value"] is None
    detector = NegVAEDetector.load(model)
    np.testing.assert_array_equal([row["kl"] for row in rows[1:]], detector.ood_score(images))
    np.testing.assert_array_equal([row["p_value"] for row in rows[1:]], detector.p_values(images))
    assert [row["is_outlier"] for row in rows[1:]] == (detector.predict(images) == -1).tolist()
    assert [row["seen"] for row in rows[1:]] == list(range(1, 31))
    assert (done.rows, done.errors, done.monitor.seen) == (31, 1, 30)
    assert len(updates) == 2
    assert "30 scored" in done.describe()


def test_what_is_killed_goes_on_as_if_it_had_not_been(model, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "TURN", 8)
    put(tmp_path / "in", np.r_[blobs(20, (1, 28, 28), 3).numpy(), 255 - blobs(20, (1, 28, 28), 4).numpy()])
    options = {"once": True, "settle": 0}
    watch(model, str(tmp_path / "in"), tmp_path / "whole", **options)
    write_text, commits = module.write_text, []

    def dies(path, text):
        if path.name == "state.json":
            commits.append(path)
            if len(commits) in (2, 5):  # the rows are on the disk, the state that counts them is not
                raise KeyboardInterrupt
        write_text(path, text)

    monkeypatch.setattr(module, "write_text", dies)
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            watch(model, str(tmp_path / "in"), tmp_path / "killed", **options)
    lines = []
    watch(model, str(tmp_path / "in"), tmp_path / "killed", **options, log=lines.append)
    assert any("going on after 8 rows" in line for line in lines)
    assert any("the stream has changed" in line for line in lines)
    assert rows_of(tmp_path / "killed") == rows_of(tmp_path / "whole")
    assert len(rows_of(tmp_path / "whole")) == 40
    states = [json.loads((tmp_path / name / "state.json").read_text()) for name in ("killed", "whole")]
    assert states[0] == states[1]


def test_a_real_kill_loses_nothing_and_counts_nothing_twice(model, tmp_path):
    put(tmp_path / "in", blobs(12, (1, 28, 28), 3).numpy())
    command = [sys.executable, "-c", "from negvae.cli import main; main()", "watch", str(model), str(tmp_path / "in")]
    command += ["--out", str(tmp_path / "out"), "--interval", "0.1", "--settle", "0"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, env={**os.environ, "OMP_NUM_THREADS": "1"})
    try:
        until(lambda: (tmp_path / "out" / "index.html").exists() and (tmp_path / "out" / "state.json").exists())
        put(tmp_path / "in", blobs(12, (1, 28, 28), 5).numpy(), 12)
        until(lambda: json.loads((tmp_path / "out" / "state.json").read_text())["rows"] > 12)
    finally:
        process.kill()
        process.wait()
        process.stderr.close()
    with (tmp_path / "out" / "rows.jsonl").open("a") as rows:
        rows.write('{"path": "half a li')
    watch(model, str(tmp_path / "in"), tmp_path / "out", once=True, settle=0)
    assert [os.path.basename(row["path"]) for row in rows_of(tmp_path / "out")] == [f"{n:04d}.png" for n in range(24)]


def until(reached, seconds=120):
    end = time.monotonic() + seconds
    while not reached():
        assert time.monotonic() < end
        time.sleep(0.05)


def test_files_half_written_wait_and_changed_ones_come_again(model, tmp_path):
    image = blobs(2, (1, 28, 28), 3).numpy()
    put(tmp_path / "in", image[:1])
    fresh = tmp_path / "in" / "fresh.png"
    Image.fromarray(image[1][0]).save(fresh)
    turns = []
    watch(
        model, str(tmp_path / "in"), tmp_path / "out", once=True, settle=0.5, on_update=lambda w: turns.append(w.rows)
    )
    assert turns == [0, 1, 2]  # the fresh one in a turn of its own
    Image.fromarray(255 - image[1][0]).save(fresh)
    done = watch(model, str(tmp_path / "in"), tmp_path / "out", once=True, settle=0)
    assert done.rows == 3
    assert rows_of(tmp_path / "out")[2]["kl"] != rows_of(tmp_path / "out")[1]["kl"]


def test_paths_come_through_a_pipe(model, tmp_path, monkeypatch):
    put(tmp_path / "in", blobs(5, (1, 28, 28), 3).numpy())
    paths = [str(path) for path in sorted((tmp_path / "in").iterdir())]
    monkeypatch.setattr(sys, "stdin", io.StringIO("\n".join([*paths, "", "no/such.png", paths[0]]) + "\n"))
    done = watch(model, PIPE, tmp_path / "out")
    assert (done.rows, done.errors) == (6, 1)
    assert [row["path"] for row in rows_of(tmp_path / "out")] == [*paths, "no/such.png"]


def test_its_own_folder_may_lie_within_the_one_it_watches(model, tmp_path):
    put(tmp_path, blobs(2, (1, 28, 28), 3).numpy())
    assert watch(model, str(tmp_path), tmp_path / "out", once=True, settle=0).rows == 2
    Image.fromarray(blobs(1, (1, 28, 28))[0, 0].numpy()).save(tmp_path / "out" / "own.png")
    assert watch(model, str(tmp_path), tmp_path / "out", once=True, settle=0).rows == 2


def test_metrics_and_page(model, tmp_path):
    put(tmp_path / "in", np.r_[blobs(5, (1, 28, 28), 3).numpy(), 255 - blobs(25, (1, 28, 28), 4).numpy()])
    name = tmp_path / 'a "quoted" one'
    (tmp_path / "in").rename(name)
    done = watch(model, str(name), tmp_path / "out", once=True, settle=0)
    text = (tmp_path / "out" / "metrics.prom").read_text()
    assert text == prometheus(done)
    samples = [line for line in text.splitlines() if not line.startswith("#")]
    assert any(line.startswith("negvae_rows_total{") and line.endswith("} 30") for line in samples)
    assert r"a \"quoted\" one" in text
    assert all(line.count(" ") >= 1 and float(line.rsplit(" ", 1)[1]) >= 0 for line in samples)
    write_page(tmp_path / "out", done)
    page = (tmp_path / "out" / "index.html").read_text()
    assert '<meta http-equiv="refresh" content="5">' in page
    assert "<script" not in page
    assert "http://" not in page.replace("http://www.w3.org", "")
    assert "0029.png" in page
    write_page(tmp_path / "out", done, ended=True)
    assert 'http-equiv="refresh"' not in (tmp_path / "out" / "index.html").read_text()


def test_discoveries_take_the_library(model, tmp_path):
    pytest.importorskip("online_fdr")
    put(tmp_path / "in", blobs(5, (1, 28, 28), 3).numpy())
    done = watch(model, str(tmp_path / "in"), tmp_path / "out", once=True, settle=0, fdr=0.2)
    write_page(tmp_path / "out", done)
    assert "discoveries" in (tmp_path / "out" / "index.html").read_text()
    with pytest.raises(ValueError, match=r"started with fdr 0.2, not None"):
        watch(model, str(tmp_path / "in"), tmp_path / "out", once=True)


def test_what_cannot_be_watched_is_refused_in_one_line(model, tmp_path):
    (tmp_path / "in").mkdir()
    source, out = str(tmp_path / "in"), tmp_path / "out"
    with pytest.raises(FileNotFoundError, match="no such folder to watch"):
        watch(model, str(tmp_path / "none"), out, once=True)
    assert not out.exists()
    with pytest.raises(ValueError, match="interval"):
        watch(model, source, out, interval=0)
    with pytest.raises(ValueError, match="needs at least 598 held-out inliers"):
        watch(model, source, out, target_fpr=0.005, confidence=0.95)
    put(tmp_path / "in", blobs(2, (1, 28, 28), 3).numpy())
    watch(model, source, out, once=True, settle=0)
    with pytest.raises(ValueError, match="another model, calibration or rate"):
        watch(model, source, out, once=True, target_fpr=0.2)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "rows.jsonl").write_text("mine")
    with pytest.raises(ValueError, match=r"is not empty, and holds no state\.json"):
        watch(model, source, tmp_path / "other", once=True)
    assert (tmp_path / "other" / "rows.jsonl").read_text() == "mine"
    (out / "rows.jsonl").write_text("")
    with pytest.raises(ValueError, match="missing"):
        watch(model, source, out, once=True)
    (out / "state.json").write_text("{")
    with pytest.raises(ValueError, match="damaged"):
        watch(model, source, out, once=True)


def test_callbacks_come_at_most_so_often():
    seen = []
    with refreshing(seen.append, 3600) as update:
        for number in range(5):
            update(number)
        assert seen == [0]
    assert seen == [0, 4]


def test_the_page_shows_the_last_of_a_burst_though_nothing_follows(monkeypatch):
    seen, now = [], [100.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    with refreshing(seen.append, 5) as update:
        update(1)
        now[0] += 2
        update(2)
        update(None)
        assert seen == [1]
        now[0] += 4
        update(None)
        update(None)
        assert seen == [1, 2]
    assert seen == [1, 2]


def test_what_is_killed_before_its_first_state_begins_again(model, tmp_path):
    put(tmp_path / "in", blobs(4, (1, 28, 28), 3).numpy())
    out = tmp_path / "out"
    out.mkdir()
    (out / ".state.json.0123abcd-99-0123abcd.tmp").write_text("{")
    (out / "rows.jsonl").touch()
    (out / ".lock").touch()

    def killed(watched):
        assert (out / "state.json").exists()  # from now on a watch goes on
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        watch(model, str(tmp_path / "in"), out, once=True, settle=0, on_update=killed)
    assert watch(model, str(tmp_path / "in"), out, once=True, settle=0).rows == 4
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "rows.jsonl").write_text("a row\n")
    with pytest.raises(ValueError, match="not empty"):
        watch(model, str(tmp_path / "in"), tmp_path / "other", once=True, settle=0)


def test_files_that_change_go_or_cannot_be_read_in_a_backlog_are_left_for_another_look(model, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "TURN", 4)
    images, inbox = blobs(12, (1, 28, 28), 3).numpy(), tmp_path / "in"
    put(inbox, images)
    (inbox / "0009.png").unlink()
    closed = {"0008.png"}

    def refusing(path, *mode):
        if os.path.basename(path) in closed:
            raise PermissionError(13, "Permission denied")
        return open(path, *mode)

    monkeypatch.setattr(module, "open", refusing, raising=False)
    turns, lines = [], []

    def on_update(watched):
        turns.append(watched.rows)
        if len(turns) == 2:  # while the rest of the backlog waits
            (inbox / "0005.png").unlink()
            put(inbox, images[:1], 6)
            os.utime(inbox / "0006.png")

    options = {"once": True, "settle": 0, "interval": 0.1}
    done = watch(model, str(inbox), tmp_path / "out", **options, on_update=on_update, log=lines.append)
    names = [os.path.basename(row["path"]) for row in rows_of(tmp_path / "out")]
    assert sorted(names) == [f"{n:04d}.png" for n in range(12) if n not in (5, 8, 9)]
    assert names[-1] == "0006.png"
    assert (done.errors, done.monitor.seen) == (0, 9)
    (said,) = [line for line in lines if "cannot be read" in line]
    assert "0008.png" in said
    assert "it is left until it can be read" in said
    closed.clear()
    watch(model, str(inbox), tmp_path / "out", **options)
    assert [os.path.basename(row["path"]) for row in rows_of(tmp_path / "out")][9:] == ["0008.png"]


def test_files_that_are_gone_for_a_moment_while_they_are_read_are_not_lost(model, tmp_path, monkeypatch):
    inbox, away = tmp_path / "in", tmp_path / "away"
    put(inbox, blobs(6, (1, 28, 28), 3).numpy())
    reading, times = module.read, []

    def read(*arguments):
        times.append(len(times))
        if len(times) == 1:
            inbox.rename(away)
            yield from reading(*arguments)
            away.rename(inbox)
        else:
            yield from reading(*arguments)

    monkeypatch.setattr(module, "read", read)
    done = watch(model, str(inbox), tmp_path / "out", once=True, settle=0, interval=0.1)
    assert (done.rows, done.errors, done.monitor.seen, len(times)) == (6, 0, 6, 2)


def test_the_page_states_no_rate_with_a_window(model, tmp_path):
    put(tmp_path / "in", blobs(30, (1, 28, 28), 3).numpy())
    for window in (0, 20):
        out = tmp_path / f"out{window}"
        write_page(out, watch(model, str(tmp_path / "in"), out, once=True, settle=0, window=window), ended=True)
        page = (out / "index.html").read_text()
        for text in ("expected, were all of them inliers", "false alarms at most"):
            assert (text in page) == (not window)
        assert ("by the latest 20 rows in place of the held-out inliers" in page) == bool(window)
