"""The three jobs on a cluster of several nodes give what one machine gives."""

import dataclasses
import os
import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from rich.console import Console

from negvae import registry
from negvae.paper.runner import run_plan
from negvae.parts import TRANSFORMATIONS
from negvae.runs.artifact import load_artifact
from negvae.runs.score import score_files
from negvae.runs.train import run
from negvae.scoring.table import SCORES
from tests.cluster.work import figures, paper_plan, parts, score, write_paper_sets
from tests.conftest import blobs, small_run

ray = pytest.importorskip("ray")
pytestmark = [pytest.mark.ray, pytest.mark.filterwarnings("ignore"), pytest.mark.timeout(600)]


@pytest.fixture
def mixed(tmp_path):
    """Images of every kind, with some that cannot be read."""
    root = tmp_path / "mixed"
    root.mkdir()
    images = blobs(60, (1, 28, 28), 5)[:, 0].numpy()
    for index in range(20):
        Image.fromarray(images[index]).save(root / f"a{index:02d}.png")
    (root / "a03.png").write_bytes(b"broken")
    Image.fromarray(images[0]).resize((9, 9)).save(root / "a05.png")
    np.save(root / "b.npy", images)
    floats = images / np.float32(255)
    floats[7] = np.nan
    np.save(root / "c.npy", floats)
    (root / "d.npy").write_bytes((root / "b.npy").read_bytes()[:20_000])
    encoded = [(root / f"a{index:02d}.png").read_bytes() for index in range(20)]
    pq.write_table(pa.table({"image": encoded}), root / "e.parquet", row_group_size=5)
    return root


def test_scores_are_those_of_one_machine(nodes, model, mixed, tmp_path):
    one, inputs = tmp_path / "one.parquet", [str(mixed), str(mixed / "b.npy")]
    options = {"names": ["combined", "bpd", "kl"], "precision": "float32"}
    alone = score_files(model, inputs, one, batch_size=16, **options)
    out, seen = tmp_path / "out", []
    summary = score(nodes, model, inputs, out, shard_rows=24, on_rows=seen.append, **options)
    assert (summary.rows, summary.errors, summary.outliers) == (alone.rows, alone.errors, alone.outliers)
    assert summary.errors == 2 + 1 + 1 + 2
    wanted, found = pq.read_table(one), pq.read_table(out)
    assert found.schema.equals(wanted.schema)
    for name in ("path", "index", "is_outlier", "error"):
        assert found[name].to_pylist() == wanted[name].to_pylist()
    for name in ("combined", "bpd", "kl", "p_value"):
        assert found[name].to_pylist() == wanted[name].to_pylist()
    assert len(parts(out)) > 6
    assert seen == sorted(seen)
    # Finished: resuming finds everything there and touches nothing.
    before = {path: path.stat().st_mtime_ns for path in parts(out)}
    again = score(nodes, model, inputs, out, shard_rows=24, resume=True, **options)
    assert dataclasses.replace(again, seconds=0, earlier=0) == dataclasses.replace(summary, seconds=0)
    assert again.earlier == summary.rows - summary.errors
    assert {path: path.stat().st_mtime_ns for path in parts(out)} == before
    # Through a store's interface, into one.
    stored = score(nodes, model, [mixed.as_uri()], (tmp_path / "stored").as_uri(), shard_rows=50, **options)
    assert stored.rows == summary.rows - 60
    found = pq.read_table(tmp_path / "stored")
    assert found["combined"].to_pylist() == wanted["combined"].to_pylist()[: stored.rows]
    refused = [
        ({}, "add --resume"),
        ({"resume": True, "shard_rows": 25}, "was begun with shard_rows 24, not 25"),
        ({"resume": True, "names": ["kl"]}, "was begun with scores"),
    ]
    for changed, message in refused:
        with pytest.raises(ValueError, match=message):
            score(nodes, model, inputs, out, **{"shard_rows": 24, **options, **changed})
    with pytest.raises(ValueError, match="was begun with inputs"):
        score(nodes, model, inputs[:1], out, shard_rows=24, resume=True, **options)
    # The same folders with other files in them.
    Image.fromarray(blobs(1, (1, 28, 28))[0, 0].numpy()).save(mixed / "a00a.png")
    with pytest.raises(ValueError, match="holds other images than the inputs now have there"):
        score(nodes, model, inputs, out, shard_rows=24, resume=True, **options)


def test_two_workers_train_what_one_process_trains(nodes, tmp_path):
    from negvae.cluster.train import Team

    np.save(tmp_path / "in.npy", blobs(48, (1, 28, 28)).numpy())
    np.save(tmp_path / "others.npy", (255 - blobs(30, (1, 28, 28), 1)).numpy())
    config = small_run(epochs=3, batch_size=12, calibration=0.25, learning_rate=1e-4)
    others = tmp_path / "others.npy"
    negatives = f"0.3*{others}+0.2*zoomed:{others}+0.5*generated"
    config = dataclasses.replace(config, data=str(tmp_path / "in.npy"), negatives=negatives)
    alone = run(config, tmp_path / "alone")
    said, updates = [], []
    team = Team(2, nodes.address, log=said.append)
    first = dataclasses.replace(config, epochs=2)
    run(first, tmp_path / "shared", trainer=team, on_progress=updates.append)
    assert said == ["training on 2 workers"]
    assert updates[-1].row["epoch"] == 2
    result = run(config, tmp_path / "shared", resume=True)  # one process, without Ray, goes on with it
    assert result.stopped_by == "finished"
    assert [row["epoch"] for row in result.history] == [1, 2, 3]
    for row, expected in zip(result.history, alone.history, strict=True):
        for name in ("reconstruction", "kl", "negative_kl", "generator_kl"):
            # Equal but for rounding (tests/training/test_workers.py), which Adam lets grow from step to step.
            assert row[name] == pytest.approx(expected[name], rel=2e-3)
    mine, whole = (load_artifact(tmp_path / name) for name in ("shared", "alone"))
    # Not of "combined": the Gaussian that "dose" fits to 36 images makes much of little.
    np.testing.assert_allclose(mine.calibration.scores["kl"], whole.calibration.scores["kl"], rtol=1e-2)
    weights = [torch.cat([p.flatten() for p in each.model.parameters()]) for each in (mine, whole)]
    assert (weights[0] - weights[1]).norm() < 0.01 * weights[1].norm()
    assert not (tmp_path / "shared" / ".ray").exists()


def test_runs_of_the_paper_are_tasks(nodes, tmp_path, monkeypatch):
    from negvae.cluster.paper import Tasks

    monkeypatch.setenv("NEGVAE_DATA", str(write_paper_sets(tmp_path / "data", 128)))
    with open(os.devnull, "w") as nowhere:
        one, many = (paper_plan(tmp_path / name, "smoke", seeds=2) for name in ("one", "many"))
        run_plan(one, console=Console(file=nowhere))
        outcome = run_plan(many, workers=Tasks(nodes.address), console=Console(file=nowhere))
    assert (outcome.stopped_by, outcome.done, outcome.left, outcome.failed) == ("finished", 2, 0, {})
    for seed in (0, 1):
        assert figures(many, seed) == figures(one, seed)


FAULTY = """
import negvae


@negvae.register_score("faulty-there", unit="none")
def score(x):
    return {}["missing"]


@negvae.register_transformation("faulty-there")
def change(images, generator):
    return {}["missing"]
"""


@pytest.fixture
def plugin(tmp_path, monkeypatch):
    """An installed package whose parts end with a KeyError; Ray's workers find it where the command runs."""
    (tmp_path / "negvae_faulty_there.py").write_text(FAULTY)
    facts = tmp_path / "negvae_faulty_there-1.0.dist-info"
    facts.mkdir()
    (facts / "METADATA").write_text("Name: negvae-faulty-there\nVersion: 1.0\n")
    (facts / "entry_points.txt").write_text("[negvae]\nfaulty = negvae_faulty_there\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.chdir(tmp_path)
    for table in (SCORES, TRANSFORMATIONS):  # what is registered in this process is forgotten afterwards
        monkeypatch.setattr(table, "_entries", dict(table._entries))
    registry._import_plugins.cache_clear()
    yield "negvae_faulty_there.py"
    sys.modules.pop("negvae_faulty_there", None)
    registry._import_plugins.cache_clear()


def test_an_error_in_a_plugin_is_told_once_with_its_place(nodes, model, plugin, tmp_path):
    from negvae.cluster.train import Team

    place = rf"KeyError: 'missing' \(in \w+, .*{plugin}, line %d, on node "
    np.save(tmp_path / "in.npy", blobs(48, (1, 28, 28)).numpy())
    with pytest.raises(ValueError, match="^part-0000000.parquet failed: " + place % 7):
        score(nodes, model, [str(tmp_path / "in.npy")], tmp_path / "out", names=["faulty-there"])
    assert not parts(tmp_path / "out")
    said = []
    config = small_run(epochs=1, batch_size=12, calibration=0.25, negatives="augmented:faulty-there")
    config = dataclasses.replace(config, data=str(tmp_path / "in.npy"))
    with pytest.raises(ValueError, match="^" + place % 12):
        run(config, tmp_path / "run", trainer=Team(2, nodes.address, log=said.append))
    assert said == ["training on 2 workers"]  # and not again, as after the loss of a worker
    assert not (tmp_path / "run").exists()
