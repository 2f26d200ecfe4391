"""One run in training: its learner, its place in the epochs, its history and its files."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor

from negvae.config import RunConfig
from negvae.model import VAE
from negvae.parts import described
from negvae.training.checkpoint import (
    FILE,
    Progress,
    check_mark,
    digest,
    load_checkpoint,
    restore_generator,
    save_checkpoint,
)
from negvae.training.history import History, epoch_row, read_metrics
from negvae.training.objectives import Losses
from negvae.training.reporting import Clock, ProgressUpdate
from negvae.training.shifted import train_shifts
from negvae.training.step import Learner

FIXED = (
    "negatives", "likelihood", "sigma", "learn_sigma", "network", "initialization", "latent_size", "negative_shift",
    "negative_weight", "transformations", "update", "optimizer", "schedule", "batch_size", "seed", "precision",
)  # fmt: skip
"""Fields of a run's configuration with whose values alone it goes on from its checkpoint. Not the learning rate: after
a divergence, a lower one may go on from the last good checkpoint."""
AfterEpoch = Callable[[VAE, RunConfig, int], dict[str, Any]]
"""A function of a model in evaluation mode, its configuration and the completed epochs, whose values join the row."""


class TrainingDivergedError(ValueError):
    """The error that a loss became infinite or not a number."""


class TrainingRun:
    """A learner that is trained epoch by epoch, with its progress, history and files.

    Args:
        learner: model in training, with its data.
        directory: folder for metrics.jsonl and the checkpoint; None keeps everything in memory.
        resume: whether to continue from the folder's checkpoint, if it has one.
        writes: whether this process writes the files; of several workers, only the first one does.

    Attributes:
        progress: progress of the run.
        history: rows of metrics.jsonl, one for each epoch.

    Raises:
        ValueError: if the checkpoint is damaged, or belongs to another model or to a run with other data or settings.
    """

    def __init__(self, learner: Learner, directory: Path | None, *, resume: bool, writes: bool) -> None:
        self.learner, self.directory = learner, directory
        self.progress = Progress()
        self._epoch_start = learner.randomness.get_state()
        self._mark = _mark(learner.config, learner.data)
        rows = self._restore(directory) if resume and directory is not None else []
        self._folder = directory if writes else None
        if self._folder is not None:
            self._folder.mkdir(parents=True, exist_ok=True)
        self.history = History(rows, self._folder)

    def _restore(self, directory: Path) -> list[dict[str, Any]]:
        """Restore the checkpoint, if there is one, and return the rows of the epochs before it."""
        learner = self.learner
        check_mark(directory, FILE, self._mark)
        with learner.exact():
            restored = load_checkpoint(directory, learner.model, learner.optimizers)
        if restored is None:
            return []
        self.progress, generators = restored
        self._restore_shifts(generators, directory / FILE)
        self.progress.finished = self.progress.epoch >= learner.config.epochs and self._shifts_done()
        for name in ("epoch_start", "now"):
            restore_generator(learner.randomness, generators, name, directory / FILE)
        self._epoch_start = generators["epoch_start"]
        return read_metrics(directory)[: self.progress.epoch]

    def _restore_shifts(self, generators: dict[str, Tensor], path: Path) -> None:
        """Go to the encoder of transformations' place, which is its start if the run has become longer."""
        shifted, (taken, of) = self.learner.shifted, self.progress.shift_steps
        if shifted is None:
            return
        if "shifted" in generators and of == shifted.steps:
            shifted.taken = taken
            restore_generator(shifted.randomness, generators, "shifted", path)
        elif taken:
            shifted.restart()
        self.progress.shift_steps = shifted.taken, shifted.steps

    def _shifts_done(self) -> bool:
        shifted = self.learner.shifted
        return shifted is None or shifted.taken >= shifted.steps

    def train_shifts(
        self, reason: Callable[[], str], save: Callable[[], None], on_progress: Callable[[ProgressUpdate], None] | None
    ) -> str:
        """Train the encoder of transformations, once all epochs are completed.

        Args:
            reason: called after every step; returns the reason to stop, or "" to go on.
            save: called every few steps to save a checkpoint if one is due.
            on_progress: called every few steps.

        Returns:
            The reason why training stopped; "" if it is finished.

        Raises:
            TrainingDivergedError: if the loss is not finite.
        """
        shifted, clock, epochs = self.learner.shifted, Clock(), self.learner.config.epochs
        if shifted is None:
            return ""
        first, began = shifted.taken, self.progress.seconds

        def report(loss: float) -> None:
            self.add_time(clock.lap())
            self.progress.shift_steps = shifted.taken, shifted.steps
            pace = (shifted.taken - first) / max(self.progress.seconds - began, 1e-9)
            if on_progress is not None:
                losses, rate = {"transformation_kl": loss}, pace * shifted.batch
                left = (shifted.steps - shifted.taken) / pace
                on_progress(ProgressUpdate(epochs, epochs, shifted.taken, shifted.steps, losses, rate, left))
            save()
            clock.lap()  # neither is training

        try:
            stopped = train_shifts(shifted, reason=reason, report=report)
        except ValueError as error:
            raise TrainingDivergedError(str(error)) from None
        self.progress.epoch_seconds = 0.0
        self.progress.finished = self._shifts_done()
        return stopped

    def begin_epoch(self) -> None:
        """Draw the order of the epoch's images and go to the run's place in it."""
        self.learner.begin_epoch(self._epoch_start, self.progress.step, self.progress.epoch)

    def read_losses(self, taken: int) -> None:
        """Copy the losses since the last call to the host, check them and add them up in the order of the steps.

        Args:
            taken: number of steps of the epoch taken so far.

        Raises:
            TrainingDivergedError: if a loss is not finite.
        """
        first = self.progress.step
        self.learner.finish()
        trace = self.learner.trace[first:taken]
        self.learner.average(trace)
        for offset, values in enumerate(trace.tolist()):
            losses = dict(zip(Losses._fields, values, strict=True))
            if not all(math.isfinite(value) for value in values):
                bad = ", ".join(f"{name} {value}" for name, value in losses.items() if not math.isfinite(value))
                raise TrainingDivergedError(self._divergence(first + offset + 1, bad))
            for name, value in losses.items():
                self.progress.sums[name] = self.progress.sums.get(name, 0.0) + value
        self.progress.step = taken

    def add_time(self, seconds: float) -> None:
        """Count seconds of training."""
        self.progress.seconds += seconds
        self.progress.epoch_seconds += seconds

    def end_epoch(self, after: AfterEpoch | None) -> dict[str, Any]:
        """Add the epoch's row to the history and return it.

        Args:
            after: called with the model and the number of completed epochs; its values are added to the row.

        Returns:
            The row.

        Raises:
            TrainingDivergedError: if the weights are not finite.
        """
        self._check_weights()
        learner = self.learner
        row = epoch_row(self.progress, learner.config, learner.steps * learner.batch, learner.model)
        if after is not None:
            with learner.exact():
                row |= after(learner.model, learner.config, self.progress.epoch + 1)
        self.history.append(row)
        return row

    def next_epoch(self) -> None:
        """Go to the start of the next epoch."""
        epoch = self.progress.epoch + 1
        finished = epoch == self.learner.config.epochs and self._shifts_done()
        self.progress = replace(self.progress, epoch=epoch, step=0, sums={}, epoch_seconds=0.0, finished=finished)
        self._epoch_start = self.learner.randomness.get_state()

    def save(self) -> None:
        """Write the checkpoint, if there is a folder.

        Raises:
            TrainingDivergedError: if the weights are not finite.
        """
        self._check_weights()
        if self._folder is None:
            return
        learner = self.learner
        states = {"now": learner.randomness.get_state(), "epoch_start": self._epoch_start}
        if learner.shifted is not None:
            states["shifted"] = learner.shifted.randomness.get_state()
        with learner.exact():
            save_checkpoint(self._folder, learner.model, learner.optimizers, states, self.progress, mark=self._mark)

    def _check_weights(self) -> None:
        """Refuse weights that the last update spoiled, which no loss has shown yet."""
        if not self.learner.finite:
            raise TrainingDivergedError(self._divergence(self.progress.step, "the weights are not finite numbers"))

    def _divergence(self, step: int, bad: str) -> str:
        text = f"training diverged at step {step} of epoch {self.progress.epoch + 1}: {bad}"
        if self.directory is not None and (self.directory / FILE).exists():
            return f"{text}; the last good checkpoint is {self.directory / FILE}; try a lower learning rate"
        return f"{text}; no checkpoint had been written; try a lower learning rate"


def _mark(config: RunConfig, data: Tensor) -> dict[str, Any]:
    """Return the plain values that tell a run from those that cannot go on from its checkpoint."""
    values = {name: getattr(config, name) for name in FIXED}
    values |= {name: described(values[name]) for name in ("likelihood", "network") if not isinstance(values[name], str)}
    return {**values, "training data": digest(data)}
