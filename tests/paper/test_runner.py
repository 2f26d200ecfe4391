import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from filelock import FileLock
from rich.console import Console

from negvae.data.fetch import failed
from negvae.paper import runner
from negvae.paper.published import settings
from negvae.paper.results import PICTURES, run_name, table_of
from negvae.paper.runner import Plan, run_plan
from negvae.report.samples import read_strips
from negvae.training.checkpoint import FILE as CHECKPOINT
from tests.cli.test_commands import call

BASELINE, GENERATED = (settings()[f"fashion-mnist-bernoulli-{name}"] for name in ("none", "generated"))
LETTERS = settings()["fashion-mnist-bernoulli-emnist-letters"]


@pytest.fixture
def plan(tmp_path, gray_sets):
    def make(*runs, folder="a"):
        return Plan("smoke", runs or ((BASELINE, 0),), tmp_path / folder / "results", tmp_path / folder / "work", "cpu")

    return make


@pytest.fixture
def console():
    with open(os.devnull, "w") as nowhere:
        yield Console(file=nowhere)


def content(plan, setting=BASELINE, seed=0):
    return table_of(plan.results, plan.recipe).get(run_name(setting, seed))


def figures(plan, setting=BASELINE, seed=0):
    """What must not depend on interruptions: everything but times."""
    result = content(plan, setting, seed)
    curve = [{k: v for k, v in row.items() if k not in ("seconds", "images_per_second")} for row in result["curve"]]
    return {name: result[name] for name in ("evaluation", "quantiles", "data", "notes")} | {"curve": curve}


def test_a_run_leaves_one_line_in_the_table(plan, smoke, console):
    smoke(gray={"epochs": 2})
    plan = plan((GENERATED, 0), (GENERATED, 1))
    outcome = run_plan(plan, console=console)
    assert (outcome.stopped_by, outcome.done, outcome.left, outcome.failed) == ("finished", 2, 0, {})
    result = content(plan, GENERATED)
    assert (result["run"], result["seed"], result["status"]) == ("fashion-mnist-bernoulli-generated", 0, "finished")
    row = result["evaluation"]["mnist"]
    assert row["auc_bpd_ci"][0] <= row["auc_bpd"] <= row["auc_bpd_ci"][1]
    assert row["metrics"]["kl"]["inliers"] == row["metrics"]["kl"]["outliers"] == 40
    assert [each["epoch"] for each in result["curve"]] == [1, 2]
    assert {"auc_bpd", "auc_kl", "auc_prior_ratio", "nats_per_dim_test", "nats_per_dim_ood", "reconstruction"} <= (
        result["curve"][0].keys()
    )
    # All test images are on the curve here, so it ends at the last epoch's figures.
    assert result["curve"][1]["auc_kl"] == pytest.approx(row["auc_kl"])
    low = result["quantiles"]["mnist"]["kl"]["inliers"]
    assert len(low) == 40
    assert low == sorted(low)
    assert any("partial, 96 of 60,000" in note for note in result["notes"])
    assert {"commit", "device", "train_seconds", "wall_seconds", "images_per_second"} <= result["provenance"].keys()
    own = plan.work / "smoke" / "fashion-mnist-bernoulli-generated-seed0"
    strips = read_strips(own / PICTURES, result["pictures"]["captions"], 8)
    assert list(strips)[-1] == "Negatives"
    assert len(list(plan.work.rglob(PICTURES))) == 1
    assert [path.name for path in plan.results.iterdir() if not path.name.startswith(".")] == ["smoke.jsonl"]
    assert not list(plan.work.rglob(CHECKPOINT))
    assert len(list(plan.work.rglob("weights.safetensors"))) == 2


def test_the_commit_is_that_of_the_code_in_memory(plan, smoke, console, monkeypatch):
    commits = iter(["at start", "later"])
    monkeypatch.setattr(runner, "source_commit", lambda: next(commits))
    plan = plan((BASELINE, 0), (BASELINE, 1))
    run_plan(plan, console=console)
    assert [content(plan, seed=seed)["provenance"]["commit"] for seed in (0, 1)] == ["at start"] * 2


def test_pictures_and_curve_see_a_set_that_is_sorted_by_class():
    images = runner.torch.arange(100)
    assert runner.evenly(images, 5).tolist() == [0, 25, 50, 74, 99]
    assert runner.evenly(images, 1000).tolist() == list(range(100))


def test_finished_runs_are_never_repeated(plan, smoke, console, monkeypatch):
    plan = plan()
    run_plan(plan, console=console)
    monkeypatch.setattr(runner, "run_seeds", lambda *_, **__: pytest.fail("trained again"))
    assert run_plan(plan, console=console).done == 1


def test_other_settings_are_made_anew(plan, smoke, console):
    plan = plan()
    run_plan(plan, console=console)
    smoke(gray={"learning_rate": 0.002})
    assert len(plan.missing()) == 1
    assert run_plan(plan, console=console).done == 1
    assert content(plan)["config"]["learning_rate"] == 0.002


@pytest.mark.parametrize("at", ["training", "between epochs", "evaluation"])
def test_interrupted_equals_unbroken(plan, smoke, console, monkeypatch, at):
    smoke(gray={"epochs": 3})
    unbroken, broken = plan((GENERATED, 0), folder="a"), plan((GENERATED, 0), folder="b")
    run_plan(unbroken, console=console)

    def die(*arguments, **options):
        raise KeyboardInterrupt

    real_run, real_compare, calls = runner.run_seeds, runner.compare, []

    def compare(*arguments, **options):
        calls.append(1)
        return real_compare(*arguments, **options) if len(calls) == 1 else die()

    with monkeypatch.context() as patch:
        if at == "training":
            patch.setattr(runner, "run_seeds", lambda *a, **o: real_run(*a, **{**o, "budget": 1e-9}))
        elif at == "evaluation":
            patch.setattr(runner, "_evaluation", die)
        else:
            patch.setattr(runner, "compare", compare)
        outcome = run_plan(broken, console=console)
    assert outcome.stopped_by == ("budget" if at == "training" else "SIGINT")
    assert (outcome.done, outcome.left) == (0, 1)
    assert content(broken, GENERATED) is None
    assert list(broken.work.rglob(CHECKPOINT))
    assert run_plan(broken, console=console).done == 1
    assert figures(broken, GENERATED) == figures(unbroken, GENERATED)


def test_budget(plan, smoke, console):
    plan = plan((BASELINE, 0), (BASELINE, 1))
    outcome = run_plan(plan, budget=1e-9, console=console)
    assert (outcome.stopped_by, outcome.done, outcome.left) == ("budget", 0, 2)
    with pytest.raises(ValueError, match="--budget is 0"):
        run_plan(plan, budget=0, console=console)
    with pytest.raises(ValueError, match="--jobs is 0"):
        run_plan(plan, jobs=0, console=console)


def test_a_run_of_another_process_is_left_alone(plan, smoke, console):
    plan = plan((BASELINE, 0), (BASELINE, 1))
    lock = plan.work / "smoke" / "fashion-mnist-bernoulli-none-seed0.lock"
    lock.parent.mkdir(parents=True)
    with FileLock(lock):
        outcome = run_plan(plan, console=console)
    assert (outcome.busy, outcome.done, outcome.left) == (["fashion-mnist-bernoulli-none-seed0"], 1, 1)
    # The lock file of a process that is gone holds no one up.
    assert run_plan(plan, console=console).left == 0


def test_a_diverged_run_is_a_result(plan, smoke, console, monkeypatch):
    smoke(gray={"learning_rate": 1e30, "epochs": 2})
    plan = plan((BASELINE, 0), (GENERATED, 0))
    outcome = run_plan(plan, console=console)
    assert outcome.diverged == ["fashion-mnist-bernoulli-none-seed0", "fashion-mnist-bernoulli-generated-seed0"]
    assert (outcome.done, outcome.failed) == (2, {})
    result = content(plan)
    assert result["status"] == "diverged"
    assert "training diverged at step" in result["error"]
    assert "evaluation" not in result
    monkeypatch.setattr(runner, "run_seeds", lambda *_, **__: pytest.fail("trained again"))
    assert run_plan(plan, console=console).left == 0


def test_scores_that_are_not_numbers_are_a_divergence_too(plan, smoke, console, monkeypatch):
    def compare(*arguments, **options):
        raise ValueError("3 scores of inliers are not numbers")

    monkeypatch.setattr(runner, "compare", compare)
    plan = plan()
    assert run_plan(plan, console=console).done == 1
    result = content(plan)
    assert (result["status"], result["error"]) == ("diverged", "after training: 3 scores of inliers are not numbers")
    assert "auc_bpd" not in result["curve"][0]  # the curve has a gap


def test_one_run_s_missing_data_does_not_stop_the_others(plan, smoke, console, monkeypatch):
    monkeypatch.setitem(failed, "emnist-letters", "offline")
    plan = plan((LETTERS, 0), (BASELINE, 0))
    outcome = run_plan(plan, console=console)
    assert outcome.done == 1
    assert list(outcome.failed) == ["fashion-mnist-bernoulli-emnist-letters-seed0"]
    assert "FileNotFoundError: emnist-letters (train) was not found" in next(iter(outcome.failed.values()))


def test_two_workers_share_the_runs(plan, tmp_path):
    # Worker processes see the profile as it is, and find the sets through the environment.
    plan = plan((BASELINE, 0), (GENERATED, 0), (BASELINE, 1))
    with (tmp_path / "log").open("w") as log:
        outcome = run_plan(plan, jobs=2, console=Console(file=log, width=160))
    assert (outcome.stopped_by, outcome.done, outcome.failed, outcome.busy) == ("finished", 3, {}, [])
    assert (tmp_path / "log").read_text().count(": finished in") == 3  # each once
    np.testing.assert_allclose(content(plan)["curve"][0]["epoch"], 1)


def test_killed_at_any_moment_the_same_command_goes_on(plan, tmp_path):
    """The command line, killed outright after its first result, and stopped with SIGINT when it has finished."""
    plan = plan()
    command = [
        sys.executable, "-c", "from negvae.cli import main; main()", "paper", "run", "table1", "--profile", "smoke",
        "--device", "cpu", "--results", str(plan.results), "--out", str(plan.work),
    ]  # fmt: skip
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    first = table_of(plan.results, plan.recipe).path
    deadline = time.monotonic() + 120
    while not first.exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    process.kill()
    assert process.wait() in (-signal.SIGKILL, 0)
    before = set(first.read_bytes().splitlines())
    assert before
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "4 of 4 runs are in" in done.stdout
    lines = first.read_bytes().splitlines()
    assert len(lines) == 4
    assert before <= set(lines)
    assert all(json.loads(line)["status"] == "finished" for line in lines)


def test_exit_code_of_a_spent_budget(plan, capsys):
    plan = plan()
    options = ["--profile", "smoke", "--results", plan.results, "--out", plan.work, "--only", BASELINE.name]
    code, out, _ = call(capsys, "paper", "run", "table3", *options, "--budget", "1e-9")
    assert code == 3
    assert "1 are left (the budget of 1e-09 s is used up); the same command goes on with them" in out
    code, out, _ = call(capsys, "paper", "run", "table3", *options)
    assert code == 0
    assert "1 of 1 runs are in" in out
