"""Regressions: what workers, seeds, merged tables and single requests could change for others."""

import dataclasses
import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from rich.console import Console

from negvae.config import preset
from negvae.model import build_vae
from negvae.model.shifted import _MANY, HELD_BACK, held_back
from negvae.negatives import AddedNoise, Generated, Mixture, NegativeBatch, UniformNoise, reads_model
from negvae.paper import published, runner
from negvae.paper import unsupervised as beyond
from negvae.paper.profiles import PROFILES
from negvae.paper.results import run_name, table_of
from negvae.paper.runner import Plan, run_plan
from negvae.paper.store import ResultTable
from negvae.runs.artifact import load_artifact
from negvae.runs.calibrate import calibrate_run
from negvae.runs.train import run
from negvae.training.loop import train
from negvae.training.shifted import ShiftLearner
from tests.conftest import blobs, small_run
from tests.paper.conftest import gray_sets  # noqa: F401
from tests.service.conftest import live, models  # noqa: F401
from tests.training.test_shifted import corners

SHAPE = (1, 28, 28)


# --- workers -----


class OfTheModel:
    """Negatives that depend on the model's weights, of a kind that the library does not know."""

    adversarial = False

    def sample(self, positives, model, generator, rows=slice(None)):
        codes = torch.randn(len(positives), model.latent_size, generator=generator)
        with torch.no_grad():
            return NegativeBatch(model.generate(codes[rows].to(positives.dtype)).clamp(0, 1))


def test_negatives_that_read_the_model_are_drawn_from_its_present_weights(monkeypatch):
    monkeypatch.setattr("negvae.training.team.LEAST_ROWS", 1)
    config = small_run("pyramid", epochs=3, learning_rate=1e-2)
    alone, together = (train(config, blobs(24, SHAPE), OfTheModel(), workers=count) for count in (1, 2))
    for row, expected in zip(together.history, alone.history, strict=True):
        assert row["negative_kl"] == pytest.approx(expected["negative_kl"], rel=0.02)


def test_a_source_says_whether_it_reads_the_model():
    plain = Mixture((AddedNoise(), UniformNoise()), (1.0, 1.0))
    assert not reads_model(plain)
    assert reads_model(Mixture((plain, Generated()), (1.0, 1.0)))
    assert reads_model(Mixture((plain, OfTheModel()), (1.0, 1.0)))


# --- memory of trainings with transformations -----

GROWTH = """
import resource, torch
from negvae.fast.memory import keep_freed_memory
from negvae.model.shifted import trained_on
keep_freed_memory()
images = torch.randint(0, 256, (30_000, 3, 32, 32), dtype=torch.uint8)
trained_on(images[:300])
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
trained_on(images)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024 / images.numel())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the unit of ru_maxrss is another elsewhere")
def test_choosing_the_images_held_back_takes_less_memory_than_they_do():
    done = subprocess.run([sys.executable, "-c", GROWTH], capture_output=True, text=True, check=True)
    assert float(done.stdout) < 1.5


def test_the_images_held_back_are_those_of_the_formula():
    images = blobs(600, (3, 8, 8))
    weights = torch.arange(1, images[0].numel() + 1).square_().remainder_(_MANY)
    sums = (images.flatten(1).long() * weights).sum(1)
    assert torch.equal(held_back(images), sums.remainder(_MANY).remainder(HELD_BACK) == 0)


def test_learners_share_the_images():
    config = preset("unsupervised", "d", epochs=1, transformations="turns", network="pyramid", device="cpu")
    images = blobs(40, (1, 16, 16))
    learner = ShiftLearner(config, build_vae(config, (1, 16, 16)), images, "float32")
    assert learner.data.data_ptr() == images.data_ptr()
    assert torch.equal(learner.rows, (~held_back(images)).nonzero().flatten())


# --- calibration -----


def test_another_rate_leaves_the_score_of_many_images_as_it_is(tmp_path, monkeypatch):
    monkeypatch.setattr("negvae.scoring.transformations.MOST_OF_ONE_KIND", 80)
    for module in ("scoring.scorer", "runs.calibrate"):
        monkeypatch.setattr(f"negvae.{module}.REFERENCE_IMAGES", 60)
    monkeypatch.setattr("negvae.training.shifted.PASSES", 15)
    np.save(tmp_path / "in.npy", corners(400).numpy())
    config = preset("unsupervised", str(tmp_path / "in.npy"), epochs=1, network="pyramid", transformations="turns",
                    batch_size=16, calibration=0.3, device="cpu", precision="float32")  # fmt: skip
    run(config, tmp_path / "run")
    before = load_artifact(tmp_path / "run").calibrated()
    after = calibrate_run(tmp_path / "run", target_fpr=0.2)
    assert before.reference.summed
    assert after.reference.summed
    assert after.threshold < before.threshold
    for name, scores in before.scores.items():
        np.testing.assert_array_equal(after.scores[name], scores, err_msg=name)


# --- the table beyond -----


def variants(tmp_path, seeds=2):
    settings = beyond.settings(("fashion-mnist-unsupervised",))
    runs = tuple((setting, seed) for seed in range(seeds) for setting in settings)
    return Plan("smoke", runs, tmp_path / "results", tmp_path / "work", "cpu")


def test_runs_that_hold_out_inliers_are_single_runs_on_a_gpu_too(tmp_path, monkeypatch):
    monkeypatch.setattr(runner, "resolve_device", lambda device: torch.device("cuda"))
    assert [seeds for _, seeds in variants(tmp_path).groups()] == [[0], [1]]
    plain = next(iter(published.settings().values()))
    plan = dataclasses.replace(variants(tmp_path), runs=tuple((plain, seed) for seed in range(3)))
    assert plan.groups() == [(plain, [0, 1, 2])]


@pytest.mark.usefixtures("gray_sets")
def test_an_ensemble_is_of_all_lower_seeds_in_whatever_order_they_finish(tmp_path, monkeypatch):
    monkeypatch.setattr(beyond, "OTHERS", ("uniform-noise",))
    plan = variants(tmp_path)
    later = dataclasses.replace(plan, runs=plan.runs[1:])
    assert run_plan(later, console=Console(quiet=True)).done == 1
    name = run_name(*plan.runs[1])

    def result():
        return table_of(plan.results, PROFILES["smoke"]).get(name)

    first = result()
    assert first["ensemble"] == 1
    assert "auc_combined, ensemble" not in first["evaluation"]["uniform-noise"]
    stopped = run_plan(plan, budget=0.001, console=Console(quiet=True))
    assert stopped.left == 1
    assert result() == first  # seed 0 is not finished
    assert run_plan(plan, console=Console(quiet=True)).done == 2
    assert result()["ensemble"] == 2
    assert "auc_combined, ensemble" in result()["evaluation"]["uniform-noise"]
    same = ("auc_combined", "auc_dose", "count")
    for key in same:
        assert result()["evaluation"]["uniform-noise"][key] == first["evaluation"]["uniform-noise"][key]


def test_two_results_of_one_name_in_merged_tables_are_refused_by_their_lines(tmp_path):
    table = ResultTable(tmp_path / "cpu.jsonl")
    lines = [{"name": f"a-seed{seed}", "config": {}, "status": "finished", "seed": seed} for seed in (0, 1)]
    other = {**lines[0], "status": "diverged"}
    table.path.write_text("".join(json.dumps(line) + "\n" for line in (*lines, lines[0])))
    assert table.seeds("a") == [0, 1]  # the same twice is no matter
    table.path.write_text("".join(json.dumps(line) + "\n" for line in (*lines, other)))
    with pytest.raises(ValueError, match="lines 1 and 3 are different results of a-seed0; remove one"):
        table.get("a-seed1")
    with pytest.raises(ValueError, match="remove one"):
        table.put("a-seed1", lines[1])
    assert len(table.path.read_text().splitlines()) == 3


# --- the service -----


def test_requests_about_the_repository_are_small(live):  # noqa: F811
    body = b'{"ready": true, "x": [' + b"1," * 100_000 + b"1]}"
    status, answer = live.ask("POST", "/v2/repository/index", body)[:2]
    assert status == 413
    assert b"at most 4,096" in answer
    assert live.ask("POST", "/v2/repository/index", b'{"ready": true}')[0] == 200
