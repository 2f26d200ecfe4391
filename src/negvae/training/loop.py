"""The one training loop: every objective, every source of negatives."""

from __future__ import annotations

import json
import math
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.optim import Adam, Optimizer, RMSprop

from negvae.config import RunConfig
from negvae.files import write_text
from negvae.model import VAE, build_vae
from negvae.negatives import NegativeSource
from negvae.precision import autocast, resolve_device, resolve_precision
from negvae.training.checkpoint import FILE, Progress, load_checkpoint, save_checkpoint
from negvae.training.objectives import Losses, train_step

METRICS = "metrics.jsonl"
STEPS_PER_READING = 25
"""Losses are read from the device, checked and shown once in so many steps, so that a GPU need not wait."""


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
    resume: bool = False,
    budget: float | None = None,
    checkpoint_seconds: float = 60.0,
    watch: Callable[[Reading], None] | None = None,
    after_epoch: Callable[[VAE, int], dict[str, Any]] | None = None,
) -> TrainingResult:
    """Train the model that `config` describes.

    Args:
        config: the run; its `data` and `negatives` were resolved by the caller into the next two.
        images: inliers, uint8, N x C x H x W; moved to the training device whole.
        source: of negatives, its images already on that device; None for the baseline VAE.
        directory: where metrics.jsonl and the checkpoint go; None keeps everything in memory.
        resume: go on from the directory's checkpoint, if it has one, exactly as if never stopped.
        budget: seconds after which to stop with a checkpoint.
        checkpoint_seconds: between checkpoints; there is always one after an epoch.
        watch: called every few steps.
        after_epoch: called with the model in evaluation mode and the number of epochs completed; the plain values
            it returns join the epoch's row. It must draw from no generator but its own, or resume is not exact.

    Returns:
        The trained model and its history; SIGINT and SIGTERM end the call early, with a checkpoint.

    Raises:
        ValueError: images are not uint8 N x C x H x W, fewer than two, or not what the network is made for;
            the checkpoint is damaged.
        TrainingDivergedError: a loss is not finite; names the step and the last good checkpoint.
    """
    if images.dtype != torch.uint8 or images.dim() != 4:
        raise ValueError(
            f"training images are {images.dtype} with shape {tuple(images.shape)}: expected uint8, N x C x H x W"
        )
    if len(images) < 2:
        raise ValueError(f"{len(images)} training images are too few: at least 2 are needed")
    device = resolve_device(config.device)
    precision = resolve_precision(config.precision, device)
    channels, height, width = images.shape[1:]
    model = build_vae(config, (channels, height, width)).to(device)
    optimizers = {
        "encoder": _optimizer(config, list(model.encoder.parameters())),
        "decoder": _optimizer(config, model.generator_parameters()),
    }
    # Its seed differs from the weights': the same numbers must not appear as weights and as noise.
    randomness = torch.Generator(device).manual_seed(config.seed + 0x5EED)
    epoch_start = randomness.get_state()
    progress, history = Progress(), []
    if directory is not None:
        directory.mkdir(parents=True, exist_ok=True)
        restored = load_checkpoint(directory, model, optimizers) if resume else None
        if restored is not None:
            progress, generators = restored
            epoch_start = generators["epoch_start"]
            history = read_metrics(directory)[: progress.epoch]
            progress.finished = progress.epoch >= config.epochs
            _write_metrics(directory, history)
            randomness.set_state(generators["now"])
        else:
            _write_metrics(directory, [])

    data = images.to(device)
    batch = min(config.batch_size, len(data))
    steps = len(data) // batch
    names = Losses._fields
    started = last_save = time.monotonic()
    before, before_epoch = progress.seconds, progress.epoch_seconds
    aside = 0.0  # seconds of this sitting spent in after_epoch, which are not training
    pending: list[Tensor] = []

    def save() -> None:
        nonlocal last_save
        if directory is not None:
            states = {"now": randomness.get_state(), "epoch_start": epoch_start}
            save_checkpoint(directory, model, optimizers, states, progress)
        last_save = time.monotonic()

    def read_losses() -> None:
        """Bring the pending losses to the host, check them and add them up in the order of the steps."""
        if not pending:
            return
        first = progress.step - len(pending)
        for offset, values in enumerate(torch.stack(pending).tolist()):
            if not all(math.isfinite(value) for value in values):
                raise TrainingDivergedError(
                    _divergence(first + offset + 1, progress.epoch, dict(zip(names, values, strict=True)), directory)
                )
            for name, value in zip(names, values, strict=True):
                progress.sums[name] = progress.sums.get(name, 0.0) + value
        pending.clear()

    def reading(row: dict[str, Any] | None = None) -> Reading:
        done = max(progress.step, 1)
        seconds = max(progress.epoch_seconds, 1e-9)
        left = (config.epochs - progress.epoch) * steps - progress.step
        return Reading(
            epoch=progress.epoch + 1, epochs=config.epochs, step=progress.step, steps=steps,
            losses={name: total / done for name, total in progress.sums.items()},
            images_per_second=done * batch / seconds, seconds_left=left * seconds / done, row=row,
        )  # fmt: skip

    stopped_by = "finished"
    model.train()
    with _signals() as caught:
        while progress.epoch < config.epochs:
            # The order is derived anew from the state at the epoch's start, so a checkpoint need not hold it.
            now = randomness.get_state()
            randomness.set_state(epoch_start)
            order = torch.randperm(len(data), generator=randomness, device=device)
            if progress.step:
                randomness.set_state(now)
            epoch_began = time.monotonic()
            while progress.step < steps:
                rows = order[progress.step * batch : (progress.step + 1) * batch]
                positives = data[rows].float().div_(255)
                with autocast(precision, device):
                    negatives = source.sample(positives, model, randomness) if source is not None else None
                    target = model.likelihood.target(positives, randomness)
                    shape = (batch, config.latent_size)
                    noise = torch.randn(shape, generator=randomness, device=device)
                    losses = train_step(
                        model, optimizers["encoder"], optimizers["decoder"], positives, target, negatives, noise,
                        config.negative_weight,
                    )  # fmt: skip
                pending.append(torch.stack([part.float() for part in losses]))
                progress.step += 1
                clock = time.monotonic()
                progress.seconds = before + clock - started - aside
                progress.epoch_seconds = before_epoch + clock - epoch_began
                spent = budget is not None and clock - started >= budget
                due = directory is not None and clock - last_save >= checkpoint_seconds
                if len(pending) == STEPS_PER_READING or spent or due or caught or progress.step == steps:
                    read_losses()
                    if watch is not None and progress.step < steps:
                        watch(reading())
                if caught or spent:
                    stopped_by = caught[0] if caught else "budget"
                    break
                if due and progress.step < steps:
                    save()
            if progress.step == steps:
                row = _row(progress, config, steps * batch, model)
                if after_epoch is not None:
                    began = time.monotonic()
                    model.eval()
                    row |= after_epoch(model, progress.epoch + 1)
                    model.train()
                    aside += time.monotonic() - began
                history.append(row)
                if directory is not None:
                    _append_metrics(directory, row)
                if watch is not None:
                    watch(reading(row))
                progress = replace(progress, epoch=progress.epoch + 1, step=0, sums={}, epoch_seconds=0.0)
                progress.finished = progress.epoch == config.epochs
                before_epoch = 0.0
                epoch_start = randomness.get_state()
                save()
                if progress.finished:
                    stopped_by = "finished"
            else:  # only a stop leaves an epoch early
                save()
            if stopped_by != "finished":
                break
    model.eval()
    return TrainingResult(model, progress, stopped_by, history)


def read_metrics(directory: Path) -> list[dict[str, Any]]:
    """The rows of a run's metrics.jsonl, one for each epoch; a half-written last line is left out."""
    rows = []
    path = directory / METRICS
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            break
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


def _optimizer(config: RunConfig, parameters: list[torch.nn.Parameter]) -> Optimizer:
    if config.optimizer == "adam":
        return Adam(parameters, lr=config.learning_rate, betas=(0.9, 0.999), foreach=True)
    # The decay and epsilon of the framework in which the authors worked.
    return RMSprop(parameters, lr=config.learning_rate, alpha=0.9, eps=1e-10, foreach=True)


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
