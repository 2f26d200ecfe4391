"""The one training loop, for every objective and every source of negatives."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from negvae.config import RunConfig
from negvae.device import own_state, resolve_device
from negvae.fast.graph import CapturedSteps
from negvae.model import VAE
from negvae.negatives import NegativeSource, check_source
from negvae.parts import NETWORKS, network_entry
from negvae.training.checkpoint import CHECKPOINT_SECONDS, Progress
from negvae.training.choice import (
    OPERATORS,
    Choice,
    WorkerWatch,
    check_workers,
    choose_workers,
    obstacle,
    ways_to_work,
    worded,
)
from negvae.training.reporting import Clock, OnProgress, ProgressUpdate
from negvae.training.run import AfterEpoch, TrainingRun
from negvae.training.step import Learner
from negvae.training.stopping import BUDGET, StopConditions
from negvae.training.workers import Peers

STEPS_PER_UPDATE = 25
"""The number of steps after which losses are checked and shown on a CPU; on a GPU they are once in an epoch."""


@dataclass(frozen=True)
class TrainingResult:
    """The result of training one model.

    Attributes:
        model: the trained VAE, in evaluation mode, on the training device.
        progress: progress of the run when training ended.
        stopped_by: reason why training ended: "finished", "budget", the name of a signal, or what the caller's
            `should_stop` returned.
        history: rows of metrics.jsonl, one for each epoch.
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
    """Train the model that `config` describes.

    Further options are those of `negvae.training.loop.train_seeds`, such as `resume`, `budget` and `on_progress`.

    Args:
        config: configuration of the run; `images` and `source` replace its `data` and `negatives`.
        images: inliers, uint8, N x C x H x W, or rows of features, floats, N x D x 1 x 1.
        source: source of negatives; None for a plain VAE.
        directory: folder for metrics.jsonl and the checkpoint; None keeps everything in memory.

    Returns:
        The trained model, how far it came, and its losses of each epoch in nats per image.

    Raises:
        ValueError: if the images do not fit the network, or a checkpoint is damaged.
        TypeError: if `source` is no source of negatives.
        TrainingDivergedError: if a loss is not finite.

    >>> from negvae.config import preset
    >>> rows = torch.randn(64, 4, 1, 1, generator=torch.Generator().manual_seed(0))
    >>> result = train(preset("features", "rows", epochs=2, batch_size=16, device="cpu"), rows)
    >>> result.stopped_by, [row["epoch"] for row in result.history]
    ('finished', [1, 2])
    """
    return train_seeds([config], images, source, directories=[directory], **options)[0]


@own_state()
def train_seeds(
    configs: Sequence[RunConfig],
    images: Tensor,
    source: NegativeSource | None = None,
    *,
    directories: Sequence[Path | None] | None = None,
    resume: bool = False,
    budget: float | None = None,
    checkpoint_seconds: float = CHECKPOINT_SECONDS,
    on_progress: OnProgress | None = None,
    after_epoch: AfterEpoch | None = None,
    should_stop: Callable[[], str] = lambda: "",
    peers: Peers | None = None,
    workers: int | None = None,
    log: Callable[[str], None] = lambda text: None,
) -> list[TrainingResult]:
    """Train the models that `configs` describe, which differ in their seeds only, side by side.

    Each model comes out as if it were trained alone. On a GPU they fill the device together (`negvae.fast.graph`) and
    an epoch runs without waiting for the host, so that stops and updates come between epochs; on a CPU they take turns.

    Args:
        configs: configurations of the runs; `images` and `source` replace their `data` and `negatives`.
        images: inliers, uint8, N x C x H x W (for a network of features, rows of floats, N x D x 1 x 1); all of them
            are moved to the training device.
        source: source of negatives, whose images are on the training device already; None for the baseline VAE.
        directories: folder of each run for its metrics.jsonl and checkpoint; None keeps everything in memory.
        resume: whether to continue from the folders' checkpoints, if there are any, exactly as if never stopped.
        budget: number of seconds after which to stop with a checkpoint; None for no limit.
        checkpoint_seconds: number of seconds between checkpoints; each epoch ends with one in any case.
        on_progress: called every few steps; its losses are means over the seeds, its row is that of the first seed.
        after_epoch: called with each model in evaluation mode, its configuration and the number of completed epochs;
            the plain values that it returns are added to the epoch's row. It must draw from no generator but its own,
            because resumption would not be exact otherwise.
        should_stop: called after every step; returns the reason to stop, with a checkpoint, or "" to go on.
        peers: connection to the other workers that make the same call to train together (`negvae.training.workers`);
            None if there is one worker.
        workers: number of threads of this process that share each batch on a CPU, from 1 to the number of images in a
            batch. The result is that of one worker but for rounding, and the same bits for the same number. None goes
            on with the number of the checkpoint, or chooses one by a short measurement if the run is long enough.
        log: called with the line that says how many workers were chosen.

    Returns:
        The trained models and their histories; SIGINT and SIGTERM end the call early, with a checkpoint.

    Raises:
        ValueError: if images are not uint8 N x C x H x W (or rows of features), are fewer than two or do not fit the
            network; if a checkpoint is damaged; if `workers` cannot share a batch; or if the configurations differ in
            more than the seed, or their checkpoints in the number of steps.
        TypeError: if `workers` is not a whole number, or `source` no source of negatives.
        TrainingDivergedError: if a loss is not finite; the message names the step and the last good checkpoint.
    """
    _check(configs, images)
    if source is not None:
        check_source(source)
    device = resolve_device(configs[0].device)
    check_workers(workers, device.type, min(configs[0].batch_size, len(images)))
    runs = _open(configs, images, source, directories, resume, peers)
    ways = _share_among(runs, workers, source, log) if peers is None and device.type == "cpu" else []
    if (shifted := runs[0].learner.shifted) is not None and not runs[0].progress.finished:
        log(shifted.describe())
    watch = WorkerWatch([run.learner for run in runs], ways, runs[0].learner.workers or OPERATORS, log)
    try:
        reason = _steps(runs, peers, watch, should_stop, budget, checkpoint_seconds, on_progress, after_epoch)
    finally:
        for run in runs:
            run.learner.close()
    ending = "finished" if all(run.progress.finished for run in runs) else reason
    return [TrainingResult(run.learner.model, run.progress, ending, run.history.rows) for run in runs]


def _steps(
    runs: Sequence[TrainingRun], peers: Peers | None, watch: WorkerWatch, should_stop: Callable[[], str],
    budget: float | None, checkpoint_seconds: float, on_progress: OnProgress | None, after_epoch: AfterEpoch | None,
) -> str:  # fmt: skip
    """Take the runs' steps until they are finished or have to stop; return the reason, or ""."""
    learners, steps = [run.learner for run in runs], runs[0].learner.steps
    device = learners[0].data.device
    captured = device.type == "cuda" and peers is None
    take_step = CapturedSteps(learners, device).step if captured else lambda: _in_turn(learners)
    steps_per_update = steps if captured else STEPS_PER_UPDATE
    clock, since_saved, reason = Clock(), Clock(), ""
    with StopConditions(should_stop, budget) as stop:
        while not reason and runs[0].progress.epoch < learners[0].config.epochs:
            for run in runs:
                run.begin_epoch()
            taken = runs[0].progress.step
            while not reason and taken < steps:
                take_step()
                taken += 1
                reason, due = stop.reason(), since_saved.seconds() >= checkpoint_seconds
                if captured and taken < steps:  # a device that works ahead of the host is not to be waited for
                    reason, due = "", False
                if peers is not None:
                    stopping, due = peers.any(bool(reason), due)
                    reason = (reason or BUDGET) if stopping else ""
                if not (reason or due or taken == steps or taken - runs[0].progress.step == steps_per_update):
                    continue
                since = taken - runs[0].progress.step
                for run in runs:
                    run.read_losses(taken)
                seconds = clock.lap()
                if (changed := watch.look(seconds, since)) is not None:
                    for run in runs:
                        run.progress.workers, run.progress.otherwise = changed, 0
                for run in runs:
                    run.add_time(seconds)
                if on_progress is not None and taken < steps:
                    on_progress(_update(runs))
                if due and not reason and taken < steps:
                    _save(runs, since_saved)
                clock.lap()  # what has passed since the losses were read was not training
            if taken == steps:
                rows = [run.end_epoch(after_epoch) for run in runs]
                if on_progress is not None:
                    on_progress(_update(runs, rows[0]))
                for run in runs:
                    run.next_epoch()
            _save(runs, since_saved)
            clock.lap()  # and neither was this
        alone = peers is None or peers.rank == 0  # no batch is shared here: others would train the same once more
        for run in runs if alone else ():
            save = partial(_save_due, runs, since_saved, checkpoint_seconds)
            reason = reason or run.train_shifts(stop.reason, save, on_progress)
            if run.learner.shifted is not None:
                _save(runs, since_saved)
    return reason


def _share_among(
    runs: Sequence[TrainingRun], workers: int | None, source: NegativeSource | None, log: Callable[[str], None]
) -> list[int]:
    """Set the number of workers of runs on a CPU; return the numbers that they may change between."""
    progress, learner = runs[0].progress, runs[0].learner
    choice = Choice(workers, "")
    if workers is None and 0 < progress.workers <= torch.get_num_threads():
        choice = Choice(progress.workers, "as before")
    elif workers is None and progress.otherwise:
        choice = Choice(None, "as before", otherwise=progress.otherwise)
    elif workers is None:
        left = (learner.config.epochs - progress.epoch) * learner.steps - progress.step
        choice = choose_workers(lambda: Learner(learner.config, learner.data, source), learner, left)
    if choice.workers is not None:
        if reason := obstacle(learner, choice.workers):
            raise ValueError(f"{choice.workers} workers cannot share these batches: {reason}; take fewer workers")
        for run in runs:
            run.learner.share_among(choice.workers)
    if choice.workers is not None or choice.otherwise:
        for run in runs:
            run.progress.workers, run.progress.otherwise = choice.workers or 0, choice.otherwise
        one = worded(OPERATORS if choice.workers is None else choice.workers)
        log(f"training with {one}{f' ({choice.how})' if choice.how else ''}")
    return [] if workers is not None else ways_to_work(choice, learner)


def _open(
    configs: Sequence[RunConfig], images: Tensor, source: NegativeSource | None,
    directories: Sequence[Path | None] | None, resume: bool, peers: Peers | None,
) -> list[TrainingRun]:  # fmt: skip
    """Return the runs, each at its start or at its checkpoint."""
    data = images.to(resolve_device(configs[0].device))
    folders = [None] * len(configs) if directories is None else directories
    writes = peers is None or peers.rank == 0
    runs = [
        TrainingRun(Learner(config, data, source, peers), folder, resume=resume, writes=writes)
        for config, folder in zip(configs, folders, strict=True)
    ]
    _check_places(runs, peers)
    return runs


def _in_turn(learners: Sequence[Learner]) -> None:
    for learner in learners:
        learner.step()


def _save(runs: Sequence[TrainingRun], since_saved: Clock) -> None:
    for run in runs:
        run.save()
    since_saved.lap()


def _save_due(runs: Sequence[TrainingRun], since_saved: Clock, checkpoint_seconds: float) -> None:
    if since_saved.seconds() >= checkpoint_seconds:
        _save(runs, since_saved)


def _check(configs: Sequence[RunConfig], images: Tensor) -> None:
    """Refuse images that cannot be trained on, and runs that cannot be trained together."""
    features = configs[0].takes_features
    if not (images.is_floating_point() if features else images.dtype == torch.uint8) or images.dim() != 4:
        if features:
            raise ValueError(f"this network takes rows of features, floats N x D x 1 x 1, not {images.dtype} images")
        if images.is_floating_point() and images.shape[2:] == (1, 1):
            raise ValueError(_not_for_rows(configs[0]))
        raise ValueError(
            f"training images are {images.dtype} with shape {tuple(images.shape)}: expected uint8, N x C x H x W,"
            f" since network {network_entry(configs[0].network).name} takes images"
        )
    if len(images) < 2:
        what = "rows" if features else "images"
        raise ValueError(f"too few training {what}, {len(images)}: at least 2 are needed")
    if len({replace(each, seed=0) for each in configs}) > 1 or len({each.seed for each in configs}) < len(configs):
        raise ValueError("runs trained together must differ in their seeds, and in nothing else")


def _not_for_rows(config: RunConfig) -> str:
    """Return why rows of features cannot train a network that takes images, and what would do."""
    name = network_entry(config.network).name
    if isinstance(config.network, str):
        fit = ", ".join(each.name for each in NETWORKS.entries() if each.takes == "features")
        return f"network {name} takes images, and these are rows of features: take another network ({fit})"
    return (
        f"network {name} takes images, as one that is not registered does, and these are rows of features: register it"
        f' for rows, negvae.register_network(NAME, takes="features")({name}), and give its name'
    )


def _check_places(runs: Sequence[TrainingRun], peers: Peers | None) -> None:
    """Refuse runs that are not at the same step, and workers that do not train the same run."""
    if len({(run.progress.epoch, run.progress.step) for run in runs}) > 1:
        raise ValueError("these runs stand at different steps: train them one by one until they are level")
    if peers is None:
        return
    learner, progress = runs[0].learner, runs[0].progress
    if peers.size > learner.batch:
        raise ValueError(f"{peers.size} workers for batches of {learner.batch} images: take fewer workers")
    if reason := obstacle(learner, peers.size):
        raise ValueError(f"{peers.size} workers cannot share these batches: {reason}; take fewer workers")
    kind = float(learner.data.device.type == "cuda"), float(learner.precision == "bfloat16")
    if not peers.agree(*kind):
        raise ValueError("the workers compute on different devices or in different precision: give both")
    if not peers.agree(progress.epoch, progress.step, len(learner.data)):
        raise ValueError("the workers found different checkpoints: the run's folder must be one that all nodes share")


def _update(runs: Sequence[TrainingRun], row: dict[str, Any] | None = None) -> ProgressUpdate:
    """Return an update for `on_progress`, with means over the runs."""
    progress, learner = runs[0].progress, runs[0].learner
    epochs, done = learner.config.epochs, max(progress.step, 1)
    seconds = max(progress.epoch_seconds, 1e-9)
    left = (epochs - progress.epoch) * learner.steps - progress.step
    means = {name: sum(run.progress.sums.get(name, 0.0) for run in runs) / done / len(runs) for name in progress.sums}
    return ProgressUpdate(
        epoch=progress.epoch + 1, epochs=epochs, step=progress.step, steps=learner.steps, losses=means,
        images_per_second=len(runs) * done * learner.batch / seconds, seconds_left=left * seconds / done, row=row,
    )  # fmt: skip
