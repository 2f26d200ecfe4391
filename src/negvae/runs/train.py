"""Train a model as its configuration says, and write its run folder."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch

from negvae.config import RunConfig, as_field
from negvae.data import is_path
from negvae.device import own_state
from negvae.files import home, refuse_used, replacing
from negvae.messages import Log, silent
from negvae.runs.artifact import (
    CONFIG,
    LOCK,
    WEIGHTS,
    Artifact,
    alone,
    load_artifact,
    read_config,
    read_section,
    save_artifact,
    write_config,
    write_section,
)
from negvae.runs.calibrate import calibrated
from negvae.runs.fingerprints import TRAINED, Fingerprints
from negvae.runs.folders import BROKEN, write_skipped
from negvae.runs.heatmaps import fit_heatmaps, load_heatmaps
from negvae.runs.patches import fit_patches, save_patches
from negvae.runs.provenance import provenance
from negvae.runs.recorded import INLIERS, MEMORY, Recorded, difference, file_hashes, read_recorded, write_recorded
from negvae.runs.resolve import ResolvedRun, resolve
from negvae.runs.seen import caution
from negvae.runs.sets import Inliers
from negvae.scoring.calibration import TARGET_FPR, Calibration, least_held_out
from negvae.scoring.heatmaps import Heatmaps
from negvae.training.checkpoint import CHECKPOINT_SECONDS, read_progress
from negvae.training.checkpoint import FILE as CHECKPOINT
from negvae.training.history import METRICS
from negvae.training.loop import TrainingResult, train_seeds
from negvae.training.patches import DivergedError, StoppedError
from negvae.training.reporting import Clock
from negvae.training.run import TrainingDivergedError
from negvae.training.stopping import StopConditions

ASKED = "asked"
"""Section of config.yaml with what the user asked for beside the run's configuration."""
_FILES = (CONFIG, INLIERS, TRAINED, METRICS, BROKEN)
"""What a run writes into its folder before its first step."""


def run(config: RunConfig, directory: Path, **options: Any) -> TrainingResult:
    """Train the run that `config` describes and write an artifact to `directory`: `run_seeds` with one seed."""
    return run_seeds([config], [directory], **options)[0]


@own_state()
def run_seeds(
    configs: Sequence[RunConfig],
    directories: Sequence[Path],
    *,
    resume: bool = False,
    log: Log = silent,
    left_open: Collection[str] = (),
    heatmaps: bool | None = None,
    trainer: Callable[..., list[TrainingResult]] = train_seeds,
    **options: Any,
) -> list[TrainingResult]:
    """Train runs that differ only in their seeds, side by side, and write an artifact of each.

    Further options are `budget`, `checkpoint_seconds`, `on_progress`, `after_epoch` and `workers` of
    `negvae.training.loop.train_seeds`.

    Args:
        configs: configurations of the runs; their data and auxiliary negatives are loaded once, by name or path.
        directories: folders of the runs, new or empty unless `resume`.
        resume: whether to continue from the folders' checkpoints, or to start runs that have none.
        log: called with each line that the user should see.
        left_open: names of the fields that the user did not set (see `negvae.runs.resolve.fill_in`); the run's folder
            records their values.
        heatmaps: whether to train maps of where an image is out-of-distribution, which takes a few minutes more; they
            need inliers that are held out for calibration. None: for a folder of images, yes.
        trainer: function that trains, with the signature of `negvae.training.loop.train_seeds`.

    Returns:
        The results of the training loop; the artifacts hold the weights at that point.

    Raises:
        FileNotFoundError: if the data do not exist.
        ValueError: if negatives overlap the inliers or have another shape; if a folder holds another run; if several
            runs hold out inliers each; or if the data have changed since a run to resume was started.
    """
    config = configs[0]
    if config.calibration and len(configs) > 1:
        raise ValueError("runs that hold out inliers for calibration cannot be trained together: each has its own")
    if heatmaps:
        _refuse_heatmaps(config)
    with ExitStack() as held:
        for directory in directories:
            _check_directory(directory, resume)
            held.enter_context(_alone(directory, resume))
        return _run_alone(configs, directories, resume, log, left_open, heatmaps, trainer, options)


def _run_alone(
    configs: Sequence[RunConfig],
    directories: Sequence[Path],
    resume: bool,
    log: Log,
    left_open: Collection[str],
    heatmaps: bool | None,
    trainer: Callable[..., list[TrainingResult]],
    options: dict[str, Any],
) -> list[TrainingResult]:
    """Train runs whose folders no other process writes to; see `run_seeds`."""
    config = configs[0]
    anew = bool(heatmaps)
    if heatmaps is None and resume and (directories[0] / CONFIG).exists():
        heatmaps = read_section(directories[0], ASKED).get("heatmaps")
    wanted = wants_heatmaps(config) if heatmaps is None else heatmaps
    resolved = resolve(config, log, left_open)
    inliers = resolved.inliers
    clock = Clock()
    filled = {name: getattr(resolved.config, name) for name in (*left_open, "images")}
    configs = [dataclasses.replace(each, **filled) for each in configs]
    origins: list[dict[str, Any]] = [{**provenance(each), **resolved.facts} for each in configs]
    earlier = [_earlier(directory) if resume else None for directory in directories]
    with _left_as_before(directories):
        for each, directory, origin in zip(configs, directories, origins, strict=True):
            directory.mkdir(parents=True, exist_ok=True)
            if resume and (directory / CHECKPOINT).exists():
                _refuse_other_data(directory, config, resolved)
                # At once: should the process be killed, the folder says how far the run was to go.
                write_section(directory, "run", {**read_section(directory, "run"), "epochs": each.epochs})
            else:
                write_config(directory, each, inliers.shape, origin)
                _write_wanted(directory, heatmaps)
                recorded = _recorded(each, resolved)
                if recorded.trained is not None and (text := caution(recorded.trained)):
                    log(f"warning: {text}")
                write_recorded(directory, recorded)
                write_skipped(directory, inliers.skipped)
        more = options | ({"log": log} if trainer is train_seeds else {"auxiliary": resolved.auxiliary})
        results = trainer(configs, inliers.training, resolved.source, directories=directories, resume=resume, **more)
    for number, (each, directory, origin) in enumerate(zip(configs, directories, origins, strict=True)):
        result = results[number]
        # Maps are of the same images, whatever became of the model since: a run that goes on keeps them.
        maps = load_heatmaps(directory, inliers.shape, result.model.device) if resume and not anew else None
        due = wanted and maps is None and len(inliers.held_out) and result.progress.finished
        if due:
            maps, reason = _heatmaps(each, inliers, directory, clock, options, log)
            results[number] = result = dataclasses.replace(result, stopped_by=reason or result.stopped_by)
        before = _calibration_before(earlier[number], result, inliers, bool(anew or (due and maps)), log)
        calibration = before or _held_against(each, result, inliers, maps, log)
        save_artifact(directory, each, result, origin, calibration, maps)
        _write_wanted(directory, heatmaps)
        _write_of_rows(directory, each, inliers)
    return results


def _refuse_heatmaps(config: RunConfig) -> None:
    """Refuse heat maps of a run that cannot have any."""
    if config.takes_features or not config.calibration:
        raise ValueError(
            "heat maps are of images, and are calibrated by inliers that are held out: leave --heatmaps out, or take a"
            " network for images and a --calibration above 0"
        )


def _write_wanted(directory: Path, heatmaps: bool | None) -> None:
    """Keep what the user has asked for: a run that goes on trains heat maps, or leaves them out, as it was begun."""
    if heatmaps is not None:
        write_section(directory, ASKED, {"heatmaps": heatmaps})


def _write_of_rows(directory: Path, config: RunConfig, inliers: Inliers) -> None:
    """Write what runs on rows of features have beside the model: an encoder's patches, and the names of columns."""
    count = len(inliers.training) + len(inliers.held_out)
    if (bank := fit_patches(config, inliers.held_out_rows, count)) is not None:
        save_patches(directory, bank)
    if inliers.columns is not None:
        write_section(directory, "detector", {"feature_names": list(inliers.columns)})


def wants_heatmaps(config: RunConfig) -> bool:
    """Return whether a run trains heat maps where the user left it open: on a folder of images, with inliers held out.

    >>> wants_heatmaps(RunConfig(data="fashion-mnist"))
    False
    """
    folder = is_path(config.data) and home(config.data).is_dir()
    return bool(config.calibration) and not config.takes_features and folder


def _heatmaps(
    config: RunConfig, inliers: Inliers, directory: Path, since: Clock, options: dict[str, Any], log: Log
) -> tuple[Heatmaps | None, str]:
    """Train heat maps, from their checkpoint on if there is one; return None and why if they had to stop."""
    budget = options.get("budget")
    left = None if budget is None else max(budget - since.seconds(), 0.0)
    with StopConditions(lambda: "", left) as stop:
        try:
            return fit_heatmaps(
                inliers.training, inliers.held_out, seed=config.seed, precision=config.precision,
                device=config.device, log=log, should_stop=stop.reason, directory=directory,
                checkpoint_seconds=options.get("checkpoint_seconds", CHECKPOINT_SECONDS),
            ), ""  # fmt: skip
        except StoppedError as stopped:
            log(f"heat maps: stopped at step {stopped.step:,}")
            return None, stopped.reason
        except DivergedError as diverged:  # the model is trained, and is not to be lost with them
            log(f"warning: {diverged}: the run is kept without heat maps")
            return None, ""


def _earlier(directory: Path) -> Artifact | None:
    """Return what an earlier stretch of training has left in the run's folder; None if that cannot be read."""
    try:
        return load_artifact(directory, "cpu")
    except (ValueError, FileNotFoundError):
        return None


def _calibration_before(
    earlier: Artifact | None, result: TrainingResult, inliers: Inliers, new_maps: bool, log: Log
) -> Calibration | None:
    """Return the calibration in the folder, which may be the user's, if it is of these very weights and maps."""
    if earlier is None or earlier.calibration is None:
        return None
    now = result.model.state_dict()
    before = earlier.model.state_dict()
    if not new_maps and all(torch.equal(values.float(), now[name].cpu().float()) for name, values in before.items()):
        log(f"calibration: kept, since no step was trained: {earlier.calibration.describe()}")
        return earlier.calibration
    becomes = f"is removed: run `{earlier.calibrate_command()}`"
    if len(inliers.held_out):
        becomes = "is measured anew by the run's own rule"
    log(f"calibration: the earlier one is of the model before this training, and {becomes}")
    return None


def _held_against(
    config: RunConfig, result: TrainingResult, inliers: Inliers, maps: Heatmaps | None, log: Log
) -> Calibration | None:
    """Return the calibration by the held-out inliers; None if none are held out."""
    if not len(inliers.held_out):
        return None
    rate = TARGET_FPR if inliers.held_out_images >= least_held_out(TARGET_FPR) else None
    rate = (config.target_fpr or TARGET_FPR) if config.confidence else (config.target_fpr or rate)
    calibration = calibrated(
        config, result, inliers.training, inliers.held_out, maps, target_fpr=rate, confidence=config.confidence,
        groups=inliers.groups, owners=inliers.owners, log=log,
    )  # fmt: skip
    if rate is None:
        log(
            f"target_fpr {TARGET_FPR:g} needs {least_held_out(TARGET_FPR)} held-out inliers, there are"
            f" {inliers.held_out_images}: the threshold lies above all of the data; give more, or ask for a higher rate"
        )
    log(f"calibrated: {calibration.describe()}")
    if inliers.absent:
        log(inliers.absent)
    return calibration


def resumed_config(directory: Path, asked: dict[str, Any]) -> RunConfig:
    """Return the configuration of a run to resume.

    Args:
        directory: folder of the run.
        asked: fields that the user set again; all but `epochs` must equal those of the run.

    Returns:
        The configuration of the run, with the number of epochs that was asked for.

    Raises:
        FileNotFoundError: if there is no run in the folder.
        ValueError: if a field differs or has a value of the wrong kind; the message names it. If the run has a model
            and no checkpoint.
    """
    config, _, origin = read_config(directory)
    if read_recorded(directory, origin).source == MEMORY:
        raise ValueError(f"{directory} was fitted to data in memory, which is not kept: it has no training to resume")
    if (directory / WEIGHTS).exists() and not (directory / CHECKPOINT).exists():
        raise ValueError(
            f"{directory} holds a trained model, and no {CHECKPOINT} that its training could go on from: take another"
            " --out, or delete the folder to train anew"
        )
    asked = {name: as_field(name, value) for name, value in asked.items()}
    epochs = asked.get("epochs", config.epochs)
    if epochs < (done := read_progress(directory).epoch):
        raise ValueError(f"{directory} has had {done} epochs: --resume goes on to more, not to {epochs}")
    for name, value in asked.items():
        if name != "epochs" and value != (begun := getattr(config, name)) and not _same_place(value, begun):
            raise ValueError(
                f"{directory} was started with {name} {getattr(config, name)}, not {value}:"
                " leave the option out, or take another --out"
            )
    return dataclasses.replace(config, epochs=epochs)


def _same_place(one: Any, other: Any) -> bool:
    """Return whether two texts are paths of one file or folder."""
    try:
        return os.path.samefile(one, other)
    except (OSError, TypeError, ValueError):
        return False


def _recorded(config: RunConfig, resolved: ResolvedRun) -> Recorded:
    """Return the inliers that a run's folder records."""
    inliers = resolved.inliers
    trained = Fingerprints.of(inliers.training, inliers.held_out)
    return Recorded(inliers.sha256, held_out=inliers.held_out_rows, files=file_hashes(config.data), trained=trained)


@contextmanager
def _left_as_before(directories: Sequence[Path]) -> Iterator[None]:
    """Take back what a run has written into its folders if it ends with an error before its first checkpoint."""
    new = [directory for directory in directories if not (directory / CONFIG).exists()]
    earlier = {path: path.read_bytes() for directory in directories if (path := directory / CONFIG).exists()}
    made = [directory for directory in new if not directory.exists()]
    before = {directory / name for directory in new for name in _FILES if (directory / name).exists()}
    try:
        yield
    except TrainingDivergedError:  # it has begun
        raise
    except Exception as error:  # of anybody's part, too
        if isinstance(error, ValueError | TypeError | ImportError):  # refused; others may come after many steps
            for path, content in earlier.items():
                if path.read_bytes() != content:  # else nothing is written, as the folder may be read-only
                    with replacing(path) as temporary:
                        temporary.write_bytes(content)
        for directory in new:
            if not directory.is_dir() or (directory / CHECKPOINT).exists():
                continue
            for name in _FILES:
                if directory / name not in before:
                    (directory / name).unlink(missing_ok=True)
            if directory in made and directory.is_dir() and not any(directory.iterdir()):
                directory.rmdir()
        raise


def _refuse_other_data(directory: Path, config: RunConfig, resolved: ResolvedRun) -> None:
    """Refuse to resume a run with images or negatives other than those that it was started with."""
    origin = read_config(directory)[2]
    known = read_recorded(directory, origin)
    if known.sha256 is not None and known.sha256 != resolved.inliers.sha256:
        where = difference(known, config.data)
        raise ValueError(
            f"{config.data} has changed since {directory} was started{' (' + where + ')' if where else ''}: --resume"
            " goes on with the same images only; take another --out to start anew"
        )
    hashes, before = resolved.facts["data_sha256"], origin.get("data_sha256", {})
    for role, found in hashes.items():
        if role.startswith("negatives ") and before.get(role, found) != found:
            raise ValueError(
                f"{role} have changed since {directory} was started: --resume goes on with the same negatives only;"
                " take another --out to start anew"
            )


@contextmanager
def _alone(directory: Path, resume: bool) -> Iterator[None]:
    """Keep other trainings out of a run's folder, and leave no folder behind in which nothing was written."""
    new = not directory.exists()
    try:
        with alone(directory, ", or take another folder"):
            if not resume:
                _refuse_run(directory)  # that another process has begun and ended meanwhile
            yield
    finally:
        if new and directory.is_dir() and not any(directory.iterdir()):
            directory.rmdir()


def _refuse_run(directory: Path) -> None:
    if any((directory / name).exists() for name in (CONFIG, CHECKPOINT, WEIGHTS)):
        raise ValueError(f"{directory} already holds a run: add --resume to go on with it, or take another folder")


def _check_directory(directory: Path, resume: bool) -> None:
    if directory.exists() and not directory.is_dir():
        raise ValueError(f"{directory} is a file: --out takes a folder")
    if not resume:
        _refuse_run(directory)
        refuse_used(directory, LOCK)
        return
    run = any((directory / name).exists() for name in (CONFIG, CHECKPOINT)) or not directory.exists()
    if not run and any(not entry.name.startswith(".") for entry in directory.iterdir()):  # hidden: half a config
        raise ValueError(f"{directory} holds no run to go on with, and is not empty: take a new folder")
