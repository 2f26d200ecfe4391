"""Nodes and drivers that die in the middle of a job: every row once, and the right result. `make test-cluster`."""

import json
import os
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from rich.console import Console

from negvae.config import RunConfig
from negvae.paper.runner import run_plan
from negvae.runs.artifact import load_artifact
from negvae.runs.score import score_files
from negvae.runs.train import run
from tests.cluster.work import BASELINE, figures, paper_plan, parts, score, write_paper_sets
from tests.conftest import blobs, small_run

pytest.importorskip("ray")
pytestmark = [pytest.mark.cluster, pytest.mark.filterwarnings("ignore"), pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def many(tmp_path_factory, model):
    """An input of 3,000 images, and the rows that one machine gives for it."""
    place = tmp_path_factory.mktemp("many")
    np.save(place / "many.npy", np.random.default_rng(0).integers(0, 256, (3000, 1, 28, 28), np.uint8))
    score_files(model, [str(place / "many.npy")], place / "one.parquet", precision="float32")
    return str(place / "many.npy"), pq.read_table(place / "one.parquet")


def check_rows(out, wanted):
    found = pq.read_table(out)
    assert found["index"].to_pylist() == wanted["index"].to_pylist()
    np.testing.assert_allclose(found["combined"].to_numpy(), wanted["combined"].to_numpy(), rtol=1e-5)
    manifest = json.loads((out / "_manifest.json").read_text())
    assert (manifest["state"], manifest["rows"]) == ("complete", len(wanted))
    assert [part["file"] for part in manifest["parts"]] == [path.name for path in parts(out)]
    assert not list(out.glob(".*"))


def test_scoring_outlives_a_node(nodes, model, many, tmp_path):
    nodes.fill()
    inputs, wanted = many
    killed, said = [], []

    def watch(rows):
        if rows > 400 and not killed:
            killed.append(rows)
            nodes.kill()

    summary = score(
        nodes, model, [inputs], tmp_path / "out", shard_rows=100, precision="float32", watch=watch, say=said.append
    )
    assert killed
    assert killed[0] < 3000
    assert summary.rows == 3000
    check_rows(tmp_path / "out", wanted)
    assert any("a worker was lost at part-" in text for text in said)


def test_a_killed_driver_goes_on(nodes, model, many, tmp_path):
    nodes.fill()
    inputs, wanted = many
    out = tmp_path / "out"
    python = [sys.executable, "-c", "from negvae.cli import main; main()"]
    options = ["--out", str(out), "--cluster", nodes.address, "--shard-rows", "100", "--precision", "float32"]
    command = [*python, "score", str(model), inputs, *options]
    driver = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    until(lambda: len(parts(out)) >= 5)
    driver.send_signal(signal.SIGKILL)
    driver.wait()
    kept = {path: path.stat().st_mtime_ns for path in parts(out)}
    assert 5 <= len(kept) < 30
    assert json.loads((out / "_manifest.json").read_text())["state"] == "begun"
    code = subprocess.run([*command, "--resume"], capture_output=True, text=True, check=False)
    assert code.returncode == 0, code.stderr
    check_rows(out, wanted)
    assert {path: path.stat().st_mtime_ns for path in kept} == kept


def test_training_outlives_a_node(nodes, tmp_path, monkeypatch):
    from negvae.cluster.train import Team

    monkeypatch.setenv("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", "20")  # for as many workers as before
    nodes.fill()
    np.save(tmp_path / "in.npy", blobs(400, (1, 28, 28)).numpy())
    # Not generated negatives: adversaries let a rounding difference of 1e-7 grow to a percent in 15 epochs.
    config = small_run(epochs=15, batch_size=20, negatives="added-noise", learning_rate=1e-4)
    config = RunConfig.from_dict({**config.to_dict(), "data": str(tmp_path / "in.npy")})
    alone = run(config, tmp_path / "alone")
    killed, said = [], []

    def on_progress(update):
        if update.epoch > 3 and not killed:
            killed.append(update.epoch)
            nodes.kill()

    team = Team(2, nodes.address, say=said.append)
    result = run(config, tmp_path / "shared", trainer=team, on_progress=on_progress, checkpoint_seconds=2.0)
    assert killed
    assert said[0] == "training on 2 workers"
    assert said[1] == "training on 1 worker again, from the last checkpoint"
    assert (result.stopped_by, len(result.history)) == ("finished", 15)
    for row, expected in zip(result.history, alone.history, strict=True):
        for name in ("reconstruction", "kl", "negative_kl", "generator_kl"):
            assert row[name] == pytest.approx(expected[name], rel=0.01)
    mine, whole = (load_artifact(tmp_path / name).model.parameters() for name in ("shared", "alone"))
    weights = [torch.cat([p.flatten() for p in each]) for each in (mine, whole)]
    assert (weights[0] - weights[1]).norm() < 0.01 * weights[1].norm()


def test_the_papers_runs_outlive_a_node(nodes, tmp_path, monkeypatch):
    from negvae.cluster.paper import Tasks

    nodes.fill()
    monkeypatch.setenv("NEGVAE_DATA", str(write_paper_sets(tmp_path / "data", 4000)))
    one, many = (paper_plan(tmp_path / name, "cpu", seeds=2) for name in ("one", "many"))
    checkpoints = [many.work / "cpu" / f"{BASELINE.name}-seed{seed}" / "checkpoint.safetensors" for seed in (0, 1)]
    killer = threading.Thread(target=lambda: (until(lambda: all(p.exists() for p in checkpoints)), nodes.kill()))
    killer.start()
    with open(tmp_path / "log", "w") as log:
        outcome = run_plan(many, workers=Tasks(nodes.address), console=Console(file=log, width=200))
    killer.join()
    assert (outcome.stopped_by, outcome.done, outcome.left, outcome.failed) == ("finished", 2, 0, {})
    assert "its worker was lost; another one goes on from its checkpoint" in (tmp_path / "log").read_text()
    with open(os.devnull, "w") as nowhere:
        run_plan(one, console=Console(file=nowhere))
    for seed in (0, 1):
        assert figures(many, seed) == figures(one, seed)


def until(true, seconds=300):
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end
        time.sleep(0.05)
