"""The one training loop: every objective, every source of negatives."""

from __future__ import annotations

import json
import math
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from negvae.config import RunConfig
from negvae.device import resolve_device
from negvae.fast.graph import CapturedSteps
from negvae.files import write_text
from negvae.model import VAE
from negvae.negatives import NegativeSource
from negvae.training.checkpoint import FILE, Progress, load_checkpoint, save_checkpoint
from negvae.training.objectives import Losses
from negvae.training.step import Session
from negvae.training.workers import Peers

METRICS = "metrics.jsonl"
STEPS_PER_READING = 25
"""On a CPU, losses are checked and shown once in so many steps; on a GPU once in an epoch."""


AfterEpoch = Callable[[VAE, RunConfig, int], dict[str, Any]]


class TrainingDivergedError(ValueError):
    """A loss became infinite or not a number."""


@dataclass(frozen=True)
class Reading:
    """What the loop tells whoever watches, every few steps.

    Attributes:
        epoch: the current one, from 1.
        epochs: of the whole run.
        step: steps taken in this epoch.
        steps: in an epoch.
        losses: means over this epoch so far, in nats per image.
        images_per_second: over this epoch so far.
        seconds_left: estimated for the rest of the run.
        row: the line that metrics.jsonl gets, where the epoch has just ended.
    """

    epoch: int
    epochs: int
    step: int
    steps: int
    losses: dict[str, float]
    images_per_second: float
    seconds_left: float
    row: dict[str, Any] | None = None

    def describe(self) -> str:
        """One line for people."""
        minutes, seconds = divmod(int(self.seconds_left), 60)
        left = f", {minutes}:{seconds:02d} left" if self.seconds_left >= 1 else ""
        return f"epoch {self.epoch}/{self.epochs} step {self.step}/{self.steps}: {self.losses_and_rate()}{left}"

    def losses_and_rate(self) -> str:
        """The losses that are not zero, in nats per image, and the speed."""
        shown = {"reconstruction": "rec", "kl": "KL", "negative_kl": "neg KL", "generator_kl": "gen KL"}
        parts = [f"{shown[name]} {value:.1f}" for name, value in self.losses.items() if value]
        return f"{' '.join(parts)} nats, {self.images_per_second:.0f} images/s"


@dataclass(frozen=True)
class TrainingResult:
    """What a call of `train` leaves.

    Attributes:
        model: in evaluation mode, on the training device.
        progress: how far it came.
        stopped_by: "finished", "budget", or the signal's name.
        history: the rows of metrics.jsonl, one for each epoch.
    """

    model: VAE
    progress: Progress
    stopped_by: str
    history: list[dict[str, Any]]


def train(
    config: RunConfig,
    images: Tensor,
    source: NegativeSource | None = None,
    *,
    directory: Path | None = None,
    **options: Any,
) -> TrainingResult:
    """Train the model that `config` describes: `train_seeds` with one seed, and the same options."""
    return train_seeds([config], images, source, directories=[directory], **options)[0]


def train_seeds(
    configs: Sequence[RunConfig],
    images: Tensor,
    source: NegativeSource | None = None,
    *,
    directories: Sequence[Path | None] | None = None,
    resume: bool = False,
    budget: float | None = None,
    checkpoint_seconds: float = 60.0,
    watch: Callable[[Reading], None] | None = None,
    after_epoch: AfterEpoch | None = None,
    told: Callable[[], str] = lambda: "",
    peers: Peers | None = None,
) -> list[TrainingResult]:
    """Train the models that `configs` describe, which differ in their seeds only, side by side.

    Each comes out as if trained alone. On a GPU they fill the device together (`negvae.fast.graph`) and an
    epoch runs without waiting for the host, so stops and readings come between epochs; on a CPU they take turns.

    Args:
        configs: the runs; their `data` and `negatives` were resolved by the caller into the next two.
        images: inliers, uint8, N x C x H x W (network mlp: rows of features, floats, N x D x 1 x 1); moved to the
            training device whole.
        source: of negatives, its images already on that device; None for the baseline VAE.
        directories: where each run's metrics.jsonl and checkpoint go; None keeps everything in memory.
        resume: go on from the directories' checkpoints, if they have any, exactly as if never stopped.
        budget: seconds after which to stop with a checkpoint.
        checkpoint_seconds: between checkpoints; there is always one after an epoch.
        watch: called every few steps; its losses are means over the seeds, its row the first seed's.
        after_epoch: called with each model in evaluation mode, its run and the number of epochs completed; the plain
            values it returns join the epoch's row. It must draw from no generator but its own, or resume is not exact.
        told: asked after every step whether to stop, with a checkpoint: the reason, or "" to go on.
        peers: the workers that call this alike and train together (`negvae.training.workers`); None where there is one.

    Returns:
        The trained models and their histories; SIGINT and SIGTERM end the call early, with a checkpoint.

    Raises:
        ValueError: images are not uint8 N x C x H x W (or rows of features), fewer than two, or not what the
            network is made for; a checkpoint is damaged; the configs differ in more than the seed, or their
            checkpoints in their place.
        TrainingDivergedError: a loss is not finite; names the step and the last good checkpoint.
    """
    config = configs[0]
    features = config.network == "mlp"
    if not (images.is_floating_point() if features else images.dtype == torch.uint8) or images.dim() != 4:
        if features:
            raise ValueError(f"network mlp takes rows of features, floats N x D x 1 x 1, not {images.dtype} images")
        raise ValueError(
            f"training images are {images.dtype} with shape {tuple(images.shape)}: expected uint8, N x C x H x W"
        )
    if len(images) < 2:
        raise ValueError(f"{len(images)} training images are too few: at least 2 are needed")
    if len({replace(each, seed=0) for each in configs}) > 1 or len({each.seed for each in configs}) < len(configs):
        raise ValueError("runs trained together must differ in their seeds, and in nothing else")
    device = resolve_device(config.device)
    data = images.to(device)
    writes = peers is None or peers.rank == 0
    folders = directories if directories is not None else [None] * len(configs)
    runs = [
        _Run(Session(each, data, source, peers), folder, writes) for each, folder in zip(configs, folders, strict=True)
    ]
    for run in runs:
        run.open(resume)
    if len({(run.progress.epoch, run.progress.step) for run in runs}) > 1:
        raise ValueError("these runs stand at different steps: train them one by one until they are level")
    session, progress = runs[0].session, runs[0].progress
    if peers is not None:
        _refuse_unequal(peers, session, progress)
    graph = device.type == "cuda" and peers is None
    step = CapturedSteps([run.session for run in runs], device).step if graph else None
    steps_per_reading = STEPS_PER_READING if step is None else runs[0].session.steps
    clock = _Clock(runs)
    last_save = time.monotonic()
    stopped_by = "finished"
    with _signals() as caught:
        while runs[0].progress.epoch < config.epochs:
            for run in runs:
                run.begin_epoch()
            taken, steps = runs[0].progress.step, runs[0].session.steps
            read = taken
            while taken < steps:
                if step is not None:
                    step()
                else:
                    for run in runs:
                        run.session.step()
                taken += 1
                # A device that works ahead of the host is not to be waited for: its clock is read with its losses.
                ahead = step is not None and taken < steps
                spent = not ahead and budget is not None and clock.elapsed() >= budget
                due = not ahead and time.monotonic() - last_save >= checkpoint_seconds
                if reason := told():
                    caught.append(reason)
                stop = not ahead and (bool(caught) or spent)
                if peers is not None:
                    stop, due = peers.any(stop, due)
                if taken - read == steps_per_reading or stop or due or taken == steps:
                    read = taken
                    for run in runs:
                        run.read_losses(taken)
                    clock.read()
                    if watch is not None and taken < steps:
                        watch(_reading(runs))
                if stop:
                    stopped_by = caught[0] if caught else "budget"
                    break
                if due and taken < steps:
                    for run in runs:
                        run.save()
                    last_save = time.monotonic()
            if taken == steps:
                rows = [run.end_epoch(after_epoch) for run in runs]
                if watch is not None:
                    watch(_reading(runs, rows[0]))
                for run in runs:
                    run.next_epoch()
                clock.next_epoch()
                if runs[0].progress.finished:
                    stopped_by = "finished"
            for run in runs:
                run.save()
            last_save = time.monotonic()
            if stopped_by != "finished":
                break
    for run in runs:
        run.session.close()
    return [TrainingResult(run.session.model, run.progress, stopped_by, run.history) for run in runs]


def _refuse_unequal(peers: Peers, session: Session, progress: Progress) -> None:
    """Check that the workers do the same thing."""
    if peers.size > session.batch:
        raise ValueError(f"{peers.size} workers for batches of {session.batch} images: take fewer workers")
    kind = float(session.data.device.type == "cuda"), float(session.precision == "bfloat16")
    if not peers.agree(*kind):
        raise ValueError("the workers compute on different devices or in different precision: give both")
    if not peers.agree(progress.epoch, progress.step, len(session.data)):
        raise ValueError("the workers found different checkpoints: the run's folder must be one that all nodes share")


class _Run:
    """A session with its place, its history and its files."""

    def __init__(self, session: Session, directory: Path | None, writes: bool) -> None:
        self.session, self.directory, self.writes = session, directory, writes and directory is not None
        self.progress = Progress()
        self.history: list[dict[str, Any]] = []
        self.epoch_start = session.randomness.get_state()

    def open(self, resume: bool) -> None:
        """Start anew, or where the checkpoint left off."""
        if self.directory is None:
            return
        self.directory.mkdir(parents=True, exist_ok=True)
        session, restored = self.session, None
        if resume:
            with session.exact():
                restored = load_checkpoint(self.directory, session.model, session.optimizers)
        if restored is not None:
            self.progress, generators = restored
            self.epoch_start = generators["epoch_start"]
            session.randomness.set_state(generators["now"])
            self.history = read_metrics(self.directory)[: self.progress.epoch]
            self.progress.finished = self.progress.epoch >= session.config.epochs
        if self.writes:
            _write_metrics(self.directory, self.history)

    def begin_epoch(self) -> None:
        self.session.begin_epoch(self.epoch_start, self.progress.step)

    def read_losses(self, taken: int) -> None:
        """Bring the losses since the last reading to the host, check them and add them up in the order of the steps."""
        first = self.progress.step
        trace = self.session.trace[first:taken]
        self.session.average(trace)
        for offset, values in enumerate(trace.tolist()):
            losses = dict(zip(Losses._fields, values, strict=True))
            if not all(math.isfinite(value) for value in values):
                raise TrainingDivergedError(
                    _divergence(first + offset + 1, self.progress.epoch, losses, self.directory)
                )
            for name, value in losses.items():
                self.progress.sums[name] = self.progress.sums.get(name, 0.0) + value
        self.progress.step = taken

    def end_epoch(self, after: AfterEpoch | None) -> dict[str, Any]:
        """Add the epoch's row to the history and to metrics.jsonl."""
        session = self.session
        row = _row(self.progress, session.config, session.steps * session.batch, session.model)
        if after is not None:
            with session.exact():
                row |= after(session.model, session.config, self.progress.epoch + 1)
        self.history.append(row)
        if self.writes and self.directory is not None:
            _append_metrics(self.directory, row)
        return row

    def next_epoch(self) -> None:
        progress = self.progress
        self.progress = replace(progress, epoch=progress.epoch + 1, step=0, sums={}, epoch_seconds=0.0)
        self.progress.finished = self.progress.epoch == self.session.config.epochs
        self.epoch_start = self.session.randomness.get_state()

    def save(self) -> None:
        """Write the checkpoint."""
        if not self.writes or self.directory is None:
            return
        session = self.session
        states = {"now": session.randomness.get_state(), "epoch_start": self.epoch_start}
        with session.exact():
            save_checkpoint(self.directory, session.model, session.optimizers, states, self.progress)


class _Clock:
    """Time spent in training, added up over sittings in each run's progress."""

    def __init__(self, runs: Sequence[_Run]) -> None:
        self.runs = runs
        self.begin = self.start = self.epoch_start = self.last = time.monotonic()
        self.before = [run.progress.seconds for run in runs]
        self.before_epoch = [run.progress.epoch_seconds for run in runs]

    def elapsed(self) -> float:
        """Seconds of this sitting, all told."""
        return time.monotonic() - self.begin

    def read(self) -> None:
        now = self.last = time.monotonic()
        for run, before, before_epoch in zip(self.runs, self.before, self.before_epoch, strict=True):
            run.progress.seconds = before + now - self.start
            run.progress.epoch_seconds = before_epoch + now - self.epoch_start

    def next_epoch(self) -> None:
        """Count on from here; what lay between the last reading and now was not training."""
        now = time.monotonic()
        self.start += now - self.last
        self.epoch_start = self.last = now
        self.before_epoch = [0.0] * len(self.runs)


def _reading(runs: Sequence[_Run], row: dict[str, Any] | None = None) -> Reading:
    """What a watcher is told: means over the runs."""
    progress, session = runs[0].progress, runs[0].session
    epochs, done = session.config.epochs, max(progress.step, 1)
    seconds = max(progress.epoch_seconds, 1e-9)
    left = (epochs - progress.epoch) * session.steps - progress.step
    means = {name: sum(run.progress.sums.get(name, 0.0) for run in runs) / done / len(runs) for name in progress.sums}
    return Reading(
        epoch=progress.epoch + 1, epochs=epochs, step=progress.step, steps=session.steps, losses=means,
        images_per_second=len(runs) * done * session.batch / seconds, seconds_left=left * seconds / done, row=row,
    )  # fmt: skip


def read_metrics(directory: Path) -> list[dict[str, Any]]:
    """The rows of a run's metrics.jsonl, one for each epoch, as far as they are whole."""
    rows = []
    path = directory / METRICS
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines() if path.exists() else []:
        try:
            row = json.loads(line)
        except json.JSONDecodeError:
            break
        if not (isinstance(row, dict) and {"epoch", "nats_per_dim", "seconds"} <= row.keys()):
            break
        rows.append(row)
    return rows


def _write_metrics(directory: Path, rows: list[dict[str, Any]]) -> None:
    write_text(directory / METRICS, "".join(json.dumps(row) + "\n" for row in rows))


def _append_metrics(directory: Path, row: dict[str, Any]) -> None:
    with (directory / METRICS).open("a", encoding="utf-8") as file:
        file.write(json.dumps(row) + "\n")


def _row(progress: Progress, config: RunConfig, images: int, model: VAE) -> dict[str, Any]:
    """One line of metrics.jsonl: means over the epoch, in nats per image unless named otherwise."""
    means = {name: total / progress.step for name, total in progress.sums.items()}
    row: dict[str, Any] = {"epoch": progress.epoch + 1, **means}
    row["nats_per_dim"] = (means["reconstruction"] + means["kl"]) / model.dimensions
    if config.learn_sigma:
        row["sigma"] = float(model.likelihood.log_sigma.detach().exp())  # type: ignore[operator]
    row["images_per_second"] = round(images / progress.epoch_seconds, 1)
    row["seconds"] = round(progress.seconds, 3)
    return row


def _divergence(step: int, epoch: int, losses: dict[str, float], directory: Path | None) -> str:
    bad = ", ".join(f"{name} {value}" for name, value in losses.items() if not math.isfinite(value))
    text = f"training diverged at step {step} of epoch {epoch + 1}: {bad}"
    if directory is not None and (directory / FILE).exists():
        return f"{text}; the last good checkpoint is {directory / FILE}; try a lower learning rate"
    return f"{text}; no checkpoint had been written; try a lower learning rate"


@contextmanager
def _signals() -> Iterator[list[str]]:
    """Collect SIGINT and SIGTERM instead of dying of them; a second one ends the program as usual."""
    caught: list[str] = []
    if threading.current_thread() is not threading.main_thread():
        yield caught
        return
    previous = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def handle(number: int, frame: object) -> None:
        caught.append(signal.Signals(number).name)
        signal.signal(number, previous[signal.Signals(number)])

    for number in previous:
        signal.signal(number, handle)
    try:
        yield caught
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
