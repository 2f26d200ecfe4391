"""Train what a description says, and leave a folder."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from negvae.config import RunConfig
from negvae.runs.artifact import (
    CONFIG,
    WEIGHTS,
    read_config,
    save_artifact,
    trained_sha256,
    write_config,
)
from negvae.runs.calibrate import calibrated
from negvae.runs.provenance import provenance
from negvae.runs.resolve import Log, ResolvedRun, resolve, silent
from negvae.scoring.calibration import TARGET_FPR, least_held_out
from negvae.training.checkpoint import FILE as CHECKPOINT
from negvae.training.loop import TrainingResult, train_seeds

LEAST_STEPS = 1000
"""Fewer training steps than that leave most models unfinished."""


def run(config: RunConfig, directory: Path, **options: Any) -> TrainingResult:
    """Carry out the run that `config` describes and leave an artifact in `directory`: `run_seeds` with one seed."""
    return run_seeds([config], [directory], **options)[0]


def run_seeds(
    configs: Sequence[RunConfig],
    directories: Sequence[Path],
    *,
    resume: bool = False,
    log: Log = silent,
    trainer: Callable[..., list[TrainingResult]] = train_seeds,
    **options: Any,
) -> list[TrainingResult]:
    """Carry out runs that differ in their seeds only, side by side, and leave an artifact of each.

    Args:
        configs: the runs; `data` and auxiliary negatives are loaded by name or path, once.
        directories: of the runs, new or empty unless `resume`.
        resume: go on from the directories' checkpoints, or start where they have none.
        log: is called with one line on each set that is loaded.
        trainer: what trains; called as `negvae.training.loop.train_seeds` is.
        options: `budget`, `checkpoint_seconds`, `on_progress` and `after_epoch` of `negvae.training.loop.train_seeds`.

    Returns:
        What the loop returned; the artifacts hold the weights at that point.

    Raises:
        FileNotFoundError: data that is not there.
        ValueError: negatives that overlap the inliers or have another shape; a folder that holds another run;
            several runs that each hold out inliers of their own; data that changed since a run to resume was
            started.
    """
    config = configs[0]
    if config.calibration and len(configs) > 1:
        raise ValueError("runs that hold out inliers for calibration cannot be trained together: each has its own")
    for each, directory in zip(configs, directories, strict=True):
        _check_directory(each, directory, resume)
    resolved = resolve(config, log)
    inliers = resolved.inliers
    origins: list[dict[str, Any]] = [{**provenance(each), **resolved.facts} for each in configs]
    for each, directory, origin in zip(configs, directories, origins, strict=True):
        if resume and (directory / CHECKPOINT).exists():
            _refuse_other_data(directory, config, resolved)
        else:
            write_config(directory, each, inliers.shape, origin)
    _warn_of_few_steps(config, len(inliers.training), log)
    results = trainer(
        configs, inliers.training, resolved.source, directories=directories, resume=resume, **options
    )  # fmt: skip
    for each, directory, origin, result in zip(configs, directories, origins, results, strict=True):
        calibration = None
        if len(inliers.held_out):
            rate = TARGET_FPR if len(inliers.held_out) >= least_held_out(TARGET_FPR) else None
            calibration = calibrated(each, result, inliers.training, inliers.held_out, target_fpr=rate)
            log(f"calibrated: {calibration.describe()}")
        save_artifact(directory, each, result, origin, calibration)
    return results


def resumed_config(directory: Path, asked: dict[str, Any]) -> RunConfig:
    """The description of the run to go on with.

    Args:
        directory: of the run.
        asked: fields the user named again; all but `epochs` must be as they were.

    Raises:
        FileNotFoundError: there is no run.
        ValueError: a field differs; the message names it.
    """
    config, _, _ = read_config(directory)
    for name, value in asked.items():
        if name != "epochs" and value != getattr(config, name):
            raise ValueError(
                f"{directory} was started with {name} {getattr(config, name)}, not {value}:"
                " leave the option out, or take another --out"
            )
    return dataclasses.replace(config, epochs=asked.get("epochs", config.epochs))


def _refuse_other_data(directory: Path, config: RunConfig, resolved: ResolvedRun) -> None:
    """Refuse to go on with other images than those that a run was started with."""
    known = trained_sha256(read_config(directory)[2])
    if known is not None and known != resolved.inliers.sha256:
        raise ValueError(
            f"{config.data} has changed since {directory} was started: --resume goes on with the same images only;"
            " take another --out to start anew"
        )


def _warn_of_few_steps(config: RunConfig, images: int, log: Log) -> None:
    an_epoch = images // min(config.batch_size, images)
    if an_epoch * config.epochs < LEAST_STEPS // 4:
        enough = math.ceil(LEAST_STEPS / an_epoch)
        log(f"{an_epoch * config.epochs} training steps are few: {enough} epochs make them {an_epoch * enough:,}")


def _check_directory(config: RunConfig, directory: Path, resume: bool) -> None:
    if directory.exists() and not directory.is_dir():
        raise ValueError(f"{directory} is a file: --out takes a folder")
    if not resume and any((directory / name).exists() for name in (CONFIG, CHECKPOINT, WEIGHTS)):
        raise ValueError(f"{directory} already holds a run: add --resume to go on with it, or take another folder")
    if not resume and directory.is_dir() and any(directory.iterdir()):
        raise ValueError(f"{directory} is not empty: take a new folder")
