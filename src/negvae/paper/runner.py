"""Runs behind the tables: resumable, several at once, each leaving one line in the table of results.

Workers share no queue: each walks through the same list of runs and takes the first that is neither
finished nor locked. So two commands side by side work like two workers of one command.
"""

from __future__ import annotations

import math
import multiprocessing
import os
import queue
import signal
import statistics
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from rich.console import Console
from torch import Tensor

from negvae.config import RunConfig
from negvae.data import ImageSet, load
from negvae.device import resolve_device
from negvae.files import locked
from negvae.model import VAE
from negvae.negatives import auxiliary_names
from negvae.paper.board import Event, runs_progress
from negvae.paper.profiles import PROFILES, Profile
from negvae.paper.published import OOD, ROWS, Setting
from negvae.paper.results import PICTURES, order_statistics, run_name, table_of
from negvae.paper.store import Result, same_run, up_to_date
from negvae.paper.unsupervised import ood_sets
from negvae.paper.unsupervised_runs import ensemble_size, evaluate, evenly, fitted, has_lower_seeds
from negvae.report.samples import pictures, write_strips
from negvae.runs.artifact import CONFIG, read_config
from negvae.runs.provenance import provenance
from negvae.runs.sets import describe
from negvae.runs.train import run_seeds
from negvae.scoring.comparison import Comparison, compare
from negvae.training.checkpoint import FILE as CHECKPOINT
from negvae.training.checkpoint import read_progress
from negvae.training.history import read_metrics
from negvae.training.loop import TrainingResult
from negvae.training.reporting import ProgressUpdate
from negvae.training.run import TrainingDivergedError
from negvae.version import source_commit

SHOWN = 8
"""Number of pictures of each kind kept for seed 0."""
CURVE = ("auc_bpd", "auc_kl", "auc_prior_ratio", "nats_per_dim_test", "nats_per_dim_ood")


@dataclass(frozen=True)
class Plan:
    """Runs that `negvae paper run` has to carry out, and the folders for them.

    Attributes:
        profile: key of `PROFILES`.
        runs: settings and seeds of the runs, in the order in which they are taken.
        results: folder of result files, in which each profile has a table of its name.
        work: folder of the runs' own folders, with models and checkpoints.
        device: device to train on, in the notation of `RunConfig.device`.
    """

    profile: str
    runs: tuple[tuple[Setting, int], ...]
    results: Path
    work: Path
    device: str = "auto"

    @property
    def recipe(self) -> Profile:
        """Profile that `profile` names."""
        return PROFILES[self.profile]

    def missing(self) -> list[tuple[Setting, int]]:
        """Return the runs that have no result, or one that was made with other settings."""
        return [key for key in self.runs if self.finished(*key) is None]

    def groups(self) -> list[tuple[Setting, list[int]]]:
        """Group the runs that are trained together: on a GPU all seeds of one setting, to fill it; else single runs.

        Runs that hold out inliers for calibration are single runs everywhere, as each has its own training images.
        """
        fills = resolve_device(self.device).type == "cuda"
        groups: list[tuple[Setting, list[int]]] = []
        together: dict[Setting, list[int]] = {}
        for setting, seed in self.runs:
            if setting in together:
                together[setting].append(seed)
                continue
            groups.append((setting, [seed]))
            if fills and not self.recipe.config(setting, seed).calibration:
                together[setting] = groups[-1][1]
        return groups

    def finished(self, setting: Setting, seed: int) -> Result | None:
        """Return the up-to-date result of a run; None if there is none."""
        table = table_of(self.results, self.recipe)
        figures = () if setting.variant else ROWS
        return up_to_date(table, run_name(setting, seed), self.recipe.config(setting, seed), figures)


Tell = Callable[[Event], None]


@dataclass
class Outcome:
    """Outcome of a command.

    Attributes:
        stopped_by: reason for the end: "finished", "budget", or a signal's name.
        done: number of runs with a result, earlier ones included.
        left: number of runs without a result.
        diverged: names of runs whose training diverged in this command.
        failed: messages of runs that ended with an error, by name.
        busy: names of runs without a result that another process had locked.
    """

    stopped_by: str = "finished"
    done: int = 0
    left: int = 0
    diverged: list[str] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)
    busy: list[str] = field(default_factory=list)


Workers = Callable[[Plan, float | None, Tell], None]


def run_plan(
    plan: Plan, *, jobs: int = 1, budget: float | None = None, workers: Workers | None = None, console: Console
) -> Outcome:
    """Carry out all runs of a plan that have no result yet.

    Args:
        plan: runs to carry out.
        jobs: number of worker processes, which share the threads of torch; with one, this process does the work.
        budget: seconds for the whole command, after which every worker stops with a checkpoint.
        workers: function that carries out the runs in place of this machine's processes, as many at once as `jobs`; it
            is called like `work`.
        console: console for live progress.

    Returns:
        The outcome; SIGINT and SIGTERM end the command early, with checkpoints.

    Raises:
        ValueError: if `jobs` is below 1, `budget` is not above 0, or a result is damaged.
    """
    if jobs < 1:
        raise ValueError(f"--jobs is {jobs}: it must be at least 1")
    if budget is not None and not budget > 0:
        raise ValueError(f"--budget is {budget:g}: it must be above 0 seconds")
    deadline = None if budget is None else time.monotonic() + budget
    outcome, missing = Outcome(), plan.missing()
    jobs = min(jobs, max(len(missing), 1))
    names = {run_name(*key): key[0] for key in plan.runs}
    earlier = {run_name(*key): _seconds(content) for key in plan.runs if (content := plan.finished(*key)) is not None}
    with runs_progress(console, names, earlier, jobs) as show:

        def tell(event: Event) -> None:
            if event.kind == "diverged":
                outcome.diverged.append(event.run)
            elif event.kind == "failed":
                outcome.failed[event.run] = event.text
            elif event.kind == "busy":
                outcome.busy.append(event.run)
            elif event.kind == "stopped":
                outcome.stopped_by = event.text
            show(event)

        try:
            with sigterm_interrupts():
                if missing and workers is not None:
                    workers(plan, deadline, tell)
                elif missing and jobs == 1:
                    work(plan, deadline, tell)
                elif missing:
                    _work_together(plan, jobs, deadline, tell)
                _complete_ensembles(plan, deadline, tell)
        except KeyboardInterrupt as signaled:
            outcome.stopped_by = str(signaled) or "SIGINT"
    left = {run_name(*key) for key in plan.missing()}
    outcome.left, outcome.done = len(left), len(plan.runs) - len(left)
    if left and outcome.stopped_by == "finished" and deadline is not None and time.monotonic() >= deadline:
        outcome.stopped_by = "budget"
    outcome.busy = [name for name in dict.fromkeys(outcome.busy) if name in left]
    return outcome


def _complete_ensembles(plan: Plan, deadline: float | None, tell: Tell) -> None:
    """Evaluate runs again whose scores of ensembles had to wait for runs of lower seeds, which are finished now."""
    for setting, seed in plan.runs:
        if not setting.variant or (size := ensemble_size(setting, seed)) == 1:
            continue
        if deadline is not None and time.monotonic() >= deadline:
            return
        name = run_name(setting, seed)
        directory = plan.work / plan.profile / name
        with locked(plan.work / plan.profile / f"{name}.lock") as mine:
            content = plan.finished(setting, seed) if mine else None
            if content is None or content["status"] != "finished" or content.get("ensemble", 1) == size:
                continue
            if has_lower_seeds(directory):
                tell(Event("say", "", text=f"{name}: evaluated again, with the models of all lower seeds"))
                sets = _test_sets(plan, setting, lambda text: tell(Event("say", "", text=text)))
                measured = evaluate(setting, directory, sets.inliers, sets.others, plan.recipe.evaluation_limit)
                table_of(plan.results, plan.recipe).put(name, content | measured)


def _seconds(content: Result) -> float | None:
    """Return the seconds that a run took, by which the time of others is judged; None where its result lacks them."""
    seconds = content["provenance"].get("wall_seconds")
    return float(seconds) if isinstance(seconds, int | float) and 0 <= seconds < math.inf else None


def work(plan: Plan, deadline: float | None, tell: Tell, should_stop: Callable[[], str] = lambda: "") -> None:
    """Walk through the runs of a plan and carry out each that is neither finished nor locked.

    Args:
        plan: runs to carry out.
        deadline: time to stop, on the clock of `time.monotonic`; None for no limit.
        tell: function that receives the events.
        should_stop: function that returns the reason to stop, empty to go on; `negvae.training.loop.train_seeds` calls
            it.
    """
    commit = source_commit()  # of the code in memory: the checkout may move on during a night
    for setting, seeds in plan.groups():
        if deadline is not None and time.monotonic() >= deadline:
            return
        with ExitStack() as locks:
            mine = []
            for seed in seeds:
                name = run_name(setting, seed)
                if plan.finished(setting, seed) is not None:
                    continue
                if not locks.enter_context(locked(plan.work / plan.profile / f"{name}.lock")):
                    tell(Event("busy", name))
                elif plan.finished(setting, seed) is None:  # else by whoever held the lock a moment ago
                    mine.append(seed)
            for level in _level(plan, setting, mine, tell):
                names = [run_name(setting, seed) for seed in level]
                try:
                    stopped = _carry_out(plan, setting, level, deadline, tell, should_stop, commit)
                except Exception as error:  # one run's missing data or memory must not end a night of others
                    for name in names:
                        tell(Event("failed", name, text=f"{type(error).__name__}: {' '.join(str(error).split())}"))
                    continue
                if stopped is not None:
                    tell(Event("stopped", names[0], text=stopped))
                    return


def _level(plan: Plan, setting: Setting, seeds: Sequence[int], tell: Tell) -> list[list[int]]:
    """Group the seeds of one setting by the step that they have reached: only equal ones can be trained together."""
    places: dict[tuple[int, int], list[int]] = {}
    for seed in seeds:
        directory = plan.work / plan.profile / run_name(setting, seed)
        try:
            set_aside_other_run(
                directory,
                plan.recipe.config(setting, seed, plan.device),
                lambda text: tell(Event("say", "", text=text)),
            )
            progress = read_progress(directory)
        except (ValueError, OSError) as error:  # one damaged folder must not end a night of others
            tell(Event("failed", run_name(setting, seed), text=" ".join(str(error).split())))
            continue
        places.setdefault((progress.epoch, progress.step), []).append(seed)
    return list(places.values())


def _carry_out(
    plan: Plan,
    setting: Setting,
    seeds: Sequence[int],
    deadline: float | None,
    tell: Tell,
    should_stop: Callable[[], str],
    commit: str,
) -> str | None:
    """Train and evaluate runs of one setting and write their results; return the reason if training stopped early."""
    began = time.monotonic()
    configs = [plan.recipe.config(setting, seed, plan.device) for seed in seeds]
    names = [run_name(setting, seed) for seed in seeds]
    directories = [plan.work / plan.profile / name for name in names]
    for name in names:
        tell(Event("started", name))

    def say(text: str) -> None:
        tell(Event("say", "", text=text))

    def on_progress(update: ProgressUpdate) -> None:
        for name in names:
            tell(Event("progress", name, update))

    sets = _test_sets(plan, setting, say)
    try:
        results: list[TrainingResult | TrainingDivergedError] = list(
            run_seeds(
                configs, directories, resume=True, on_progress=on_progress, should_stop=should_stop,
                after_epoch=None if setting.variant else _curve(plan, sets), log=say,
                budget=None if deadline is None else max(deadline - time.monotonic(), 1e-3),
            )
        )  # fmt: skip
    except TrainingDivergedError as error:
        if len(seeds) > 1:  # which of them it was, and how the others fare, shows one by one
            for seed in seeds:
                if (stopped := _carry_out(plan, setting, [seed], deadline, tell, should_stop, commit)) is not None:
                    return stopped
            return None
        results = [error]
    for config, directory, result in zip(configs, directories, results, strict=True):
        if isinstance(result, TrainingResult) and not result.progress.finished:
            return result.stopped_by
        content = _content(plan, setting, config, directory, result, sets.inliers, sets.others)
        if not setting.variant:
            content["curve_images"] = min(map(len, _few(plan, sets)))
        content["provenance"]["commit"] = commit
        wall = max(time.monotonic() - began, content["provenance"]["train_seconds"]) / len(seeds)
        content["provenance"]["wall_seconds"] = round(wall, 1)
        table_of(plan.results, plan.recipe).put(run_name(setting, config.seed), content)
        (directory / CHECKPOINT).unlink(missing_ok=True)  # the model itself stays, for `negvae evaluate`
        kind: Literal["finished", "diverged"] = "finished" if content["status"] == "finished" else "diverged"
        tell(Event(kind, run_name(setting, config.seed), text=str(round(wall, 1))))
    return None


class _TestSets(NamedTuple):
    """Test sets of a setting.

    Attributes:
        inliers: test set of the inliers.
        others: out-of-distribution sets by name, of the inliers' shape.
    """

    inliers: ImageSet
    others: dict[str, ImageSet]


def _test_sets(plan: Plan, setting: Setting, log: Callable[[str], None]) -> _TestSets:
    limit = plan.recipe.evaluation_limit
    test = load(setting.data, "test", limit=limit, disjoint_from_train=True, log=log)
    others = {
        name: fitted(load(name, "test", limit=limit, shape=test.shape, log=log), test.shape)
        for name in (ood_sets(setting.data) if setting.variant else (OOD[setting.data],))
    }
    return _TestSets(test, others)


def _few(plan: Plan, sets: _TestSets) -> tuple[Tensor, Tensor]:
    """Return the inliers and the images of the first other set that curves over the epochs are measured on."""
    first = next(iter(sets.others.values()))
    inliers, outliers = (
        evenly(torch.from_numpy(images.images), plan.recipe.curve_images) for images in (sets.inliers, first)
    )
    return inliers, outliers


def _curve(plan: Plan, sets: _TestSets) -> Callable[[VAE, RunConfig, int], dict[str, Any]]:
    """Make the function that measures a model after each epoch; not for variants, lest OOD sets guide their choice."""
    (inliers, outliers), name = _few(plan, sets), next(iter(sets.others))

    def after_epoch(model: VAE, config: RunConfig, epoch: int) -> dict[str, Any]:
        try:
            row = compare(model, inliers, {name: outliers}, seed=config.seed)[0].row()
        except ValueError:  # scores that are not numbers: the curve has a gap there
            return {}
        return {key: row[key] for key in CURVE}

    return after_epoch


def _content(
    plan: Plan,
    setting: Setting,
    config: RunConfig,
    directory: Path,
    trained: TrainingResult | TrainingDivergedError,
    test: ImageSet,
    others: dict[str, ImageSet],
) -> Result:
    """Return a run's result, to which the caller adds entries on its command; write the pictures of seed 0."""
    content: Result = {"run": setting.name, "profile": plan.profile, "seed": config.seed, "status": "finished",
                       "config": config.to_dict()}  # fmt: skip
    history, seconds = read_metrics(directory), 0.0
    try:
        if isinstance(trained, TrainingDivergedError):
            raise trained
        history, seconds = trained.history, trained.progress.seconds
        if setting.variant:
            content |= evaluate(setting, directory, test, others, plan.recipe.evaluation_limit)
        else:
            content |= _evaluation(trained, config, test, others)
        if config.seed == 0:
            shown = [evenly(torch.from_numpy(s.images), SHOWN) for s in (test, next(iter(others.values())))]
            strips = pictures(trained.model, config, shown[0], shown[1], SHOWN)
            content["pictures"] = {"captions": list(strips), "count": len(strips["Inliers"])}
            write_strips(directory / PICTURES, strips)
    except (TrainingDivergedError, _NoFigures) as error:
        content |= {"status": "diverged", "error": str(error).partition("; the last good checkpoint")[0]}
        seconds = seconds or (history[-1]["seconds"] if history else 0.0)
    described = read_config(directory)[2]["data"]
    content |= {
        "curve": history,
        "data": {**described, "test": describe(test), **{f"ood {name}": describe(s) for name, s in others.items()}},
        "notes": _notes(config, test, *others.values()),
        "provenance": {
            **provenance(config),
            "train_seconds": round(seconds, 1),
            "images_per_second": round(statistics.harmonic_mean(r["images_per_second"] for r in history), 1)
            if history
            else None,
        },
    }
    return content


class _NoFigures(ValueError):
    """Error that the trained model's scores are not numbers."""


def _evaluation(
    result: TrainingResult, config: RunConfig, test: ImageSet, others: dict[str, ImageSet]
) -> dict[str, Any]:
    """Return the last epoch's figures and score quantiles, by OOD set."""
    outliers = {name: torch.from_numpy(images.images) for name, images in others.items()}
    try:
        comparisons = compare(result.model, torch.from_numpy(test.images), outliers, seed=config.seed)
    except ValueError as error:
        raise _NoFigures(f"after training: {error}") from None
    return {
        "evaluation": {comparison.ood: comparison.row() for comparison in comparisons},
        "quantiles": {comparison.ood: _quantiles(comparison) for comparison in comparisons},
    }


def _quantiles(comparison: Comparison) -> dict[str, dict[str, list[float]]]:
    sides = {"inliers": comparison.inlier_scores, "ood": comparison.ood_scores}
    return {
        score: {side: order_statistics(scores[score].double().numpy()) for side, scores in sides.items()}
        for score in ("bpd", "kl")
    }


def _notes(config: RunConfig, *tests: ImageSet) -> list[str]:
    """Return the notes on partial, stand-in and unchecked data of all parts, each once."""
    train = load(config.data, "train", limit=config.limit, disjoint_from_train=True)
    auxiliary = [load(name, "train", shape=train.shape) for name in auxiliary_names(config.negatives)]
    return list(dict.fromkeys(note for images in (train, *tests, *auxiliary) for note in images.notes))


def set_aside_other_run(directory: Path, config: RunConfig, log: Callable[[str], None]) -> None:
    """Rename the folder of a run whose settings have changed since, or are not known; nothing is deleted.

    Args:
        directory: folder of the run, which need not exist.
        config: configuration of the run now asked for.
        log: called with a line if the folder is renamed.

    Raises:
        ValueError: if the folder cannot be read, such as that of a later version's run.
    """
    if (directory / CONFIG).exists():
        if same_run(read_config(directory)[0].to_dict(), config, str(directory / CONFIG)):
            return
        why = "was made with other settings"
    elif (directory / CHECKPOINT).exists():
        why = f"has no {CONFIG} that says with which settings it was made"
    else:
        return
    number = 1
    while (aside := directory.with_name(f"{directory.name}.before-{number}")).exists():
        number += 1
    directory.rename(aside)
    log(f"{directory.name} {why}: it is kept as {aside}")


def _work_together(plan: Plan, jobs: int, deadline: float | None, tell: Tell) -> None:
    """Let worker processes do the work and pass on their events; SIGINT and SIGTERM stop them all."""
    context = multiprocessing.get_context("spawn")
    events: Any = context.Queue()
    threads = max(1, torch.get_num_threads() // jobs)
    arguments = (plan, deadline, threads, events, os.getpid())
    workers = [context.Process(target=_worker, args=arguments, daemon=True) for _ in range(jobs)]

    def drain(wait: float) -> None:
        try:
            while True:
                tell(events.get(timeout=wait))
        except queue.Empty:
            pass

    try:
        for worker in workers:
            worker.start()
        while any(worker.is_alive() for worker in workers):
            drain(0.5)
    except KeyboardInterrupt:
        # A worker that the terminal's SIGINT has reached too takes this second, different signal calmly.
        for worker in workers:
            if worker.is_alive():
                worker.terminate()
        while any(worker.is_alive() for worker in workers):
            drain(0.5)
        raise
    finally:
        drain(0.1)
    for worker in workers:
        if worker.exitcode:
            reason = signal.Signals(-worker.exitcode).name if worker.exitcode < 0 else f"exit code {worker.exitcode}"
            tell(Event("failed", f"worker {worker.pid}", text=f"ended by {reason}; its run has its checkpoint"))


@contextmanager
def sigterm_interrupts() -> Iterator[None]:
    """Let SIGTERM raise KeyboardInterrupt("SIGTERM"), as SIGINT does; change nothing outside the main thread."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(number: int, frame: object) -> None:
        raise KeyboardInterrupt("SIGTERM")

    previous = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)


def _worker(plan: Plan, deadline: float | None, threads: int, events: Any, parent: int) -> None:
    """Run a worker process: carry out runs until none is left, and stop with a checkpoint if the parent ends."""
    torch.set_num_threads(threads)

    def tell(event: Event) -> None:
        if os.getppid() != parent:  # whoever started it is gone: stop with a checkpoint, free the lock
            events.cancel_join_thread()
            os.kill(os.getpid(), signal.SIGTERM)
        events.put(event)

    with suppress(KeyboardInterrupt), sigterm_interrupts():
        work(plan, deadline, tell)
    for number in (signal.SIGINT, signal.SIGTERM):  # they must not cut off what is on its way to the parent
        signal.signal(number, signal.SIG_IGN)
