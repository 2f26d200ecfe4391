"""One run from names to a folder: load the data, check the negatives, train, keep the result."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from negvae.config import SCORE_PRECISIONS, RunConfig
from negvae.data import ImageSet, is_path, load, names
from negvae.device import resolve_device, resolve_precision
from negvae.fast.int8 import QuantizedEncoder, quantize
from negvae.model import VAE
from negvae.negatives import SOURCES, auxiliary_names, build_source, refuse_overlap
from negvae.registry import choose
from negvae.runs.artifact import (
    CONFIG,
    WEIGHTS,
    load_artifact,
    read_config,
    save_artifact,
    save_calibration,
    write_config,
)
from negvae.runs.provenance import provenance
from negvae.scoring.calibration import TARGET_FPR, Calibration, least_held_out
from negvae.scoring.scorer import CALIBRATED, REFERENCE_IMAGES, Scorer, calibrate
from negvae.scoring.scores import compute_scores
from negvae.training.checkpoint import FILE as CHECKPOINT
from negvae.training.loop import TrainingResult, train_seeds

Say = Callable[[str], None]
LEAST_STEPS = 1000
"""Fewer training steps than that leave most models unfinished."""


def describe(images: ImageSet) -> str:
    """One line on a set: size, split, origin, the start of its pixel hash, and its caveats."""
    caveats = "".join(f"; {note}" for note in images.notes)
    return (
        f"{images.name} {images.split}, {len(images.images):,} images from {images.origin},"
        f" sha256 {images.sha256[:16]}{caveats}"
    )


def run(config: RunConfig, directory: Path, **options: Any) -> TrainingResult:
    """Carry out the run that `config` describes and leave an artifact in `directory`: `run_seeds` with one seed."""
    return run_seeds([config], [directory], **options)[0]


def run_seeds(
    configs: Sequence[RunConfig],
    directories: Sequence[Path],
    *,
    resume: bool = False,
    say: Say = lambda text: None,
    trainer: Callable[..., list[TrainingResult]] = train_seeds,
    **options: Any,
) -> list[TrainingResult]:
    """Carry out runs that differ in their seeds only, side by side, and leave an artifact of each.

    Args:
        configs: the runs; `data` and auxiliary negatives are loaded by name or path, once.
        directories: of the runs, new or empty unless `resume`.
        resume: go on from the directories' checkpoints, or start where they have none.
        say: told what is loaded, one line each.
        trainer: what trains; called as `negvae.training.loop.train_seeds` is.
        options: `budget`, `checkpoint_seconds`, `on_progress` and `after_epoch` of `negvae.training.loop.train_seeds`.

    Returns:
        What the loop returned; the artifacts hold the weights at that point.

    Raises:
        FileNotFoundError: data that is not there.
        ValueError: negatives that overlap the inliers or have another shape; a folder that holds another run;
            several runs that each hold out inliers of their own.
    """
    config = configs[0]
    if config.calibration and len(configs) > 1:
        raise ValueError("runs that hold out inliers for calibration cannot be trained together: each has its own")
    device = resolve_device(config.device)
    resolve_precision(config.precision, device)  # refused before anything is loaded or written
    for each, directory in zip(configs, directories, strict=True):
        _check_directory(each, directory, resume)
    for name in auxiliary_names(config.negatives):
        if not is_path(name):
            choose("source of negatives (and no such path)", name, [*SOURCES, *names()])
    inliers = load(config.data, "train", limit=config.limit, disjoint_from_train=True, log=say)
    say(f"inliers: {describe(inliers)}")
    images = torch.from_numpy(inliers.images)
    data = {"inliers": describe(inliers)}

    def load_auxiliary(name: str) -> Tensor:
        if name == config.data:
            raise ValueError(f"negatives {name} are the inliers themselves: choose another data set")
        auxiliary = load(name, "train", shape=inliers.shape, log=say)
        say(f"negatives: {describe(auxiliary)}")
        negatives = torch.from_numpy(auxiliary.images)
        refuse_overlap(images, negatives, config.data, name)
        data[f"negatives {name}"] = describe(auxiliary)
        return negatives.to(device)

    source = build_source(config.negatives, load_auxiliary)
    origins: list[dict[str, Any]] = [{**provenance(each), "data": data} for each in configs]
    for each, directory, origin in zip(configs, directories, origins, strict=True):
        if not (resume and (directory / CHECKPOINT).exists()):
            write_config(directory, each, inliers.shape, origin)
    images, held_out = hold_out(images, config.calibration, config.seed)
    an_epoch = len(images) // min(config.batch_size, len(images))
    if an_epoch * config.epochs < LEAST_STEPS // 4:
        enough = math.ceil(LEAST_STEPS / an_epoch)
        say(f"{an_epoch * config.epochs} training steps are few: {enough} epochs make them {an_epoch * enough:,}")
    results = trainer(configs, images, source, directories=directories, resume=resume, **options)
    for each, directory, origin, result in zip(configs, directories, origins, results, strict=True):
        calibration = None
        if len(held_out):
            rate = TARGET_FPR if len(held_out) >= least_held_out(TARGET_FPR) else None
            calibration = calibrated(each, result, images, held_out, target_fpr=rate)
            say(f"calibrated: {calibration.describe()}")
        save_artifact(directory, each, result, origin, calibration)
    return results


def hold_out(images: Tensor, fraction: float, seed: int) -> tuple[Tensor, Tensor]:
    """Divide inliers into those to train on and those to calibrate on.

    Args:
        images: N of anything.
        fraction: to hold out; above 0 it takes one image at least.
        seed: the same seed gives the same division.

    Raises:
        ValueError: fewer than 2 would be left to train on.
    """
    if not fraction:
        return images, images[:0]
    count = max(round(fraction * len(images)), 1)
    if len(images) - count < 2:
        raise ValueError(
            f"holding out {fraction:g} of {len(images)} inliers for calibration leaves fewer than 2 to train on"
        )
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed + 0xCA11B))
    return images[order[count:].sort().values], images[order[:count].sort().values]


def calibrated(
    config: RunConfig,
    result: TrainingResult,
    images: Tensor,
    held_out: Tensor,
    **options: Any,
) -> Calibration:
    """Calibrate a model that has just been trained; see `negvae.scoring.scorer.calibrate` for the options.

    The scores are computed in float32 whatever the training was done in, since every processor computes in it: the
    folder gives the same decisions on a machine without bfloat16.
    """
    return calibrate(Scorer(result.model), images, held_out, components=score_components(config), **options)


def calibrate_run(
    directory: Path,
    data: str | None = None,
    *,
    score: str | None = None,
    target_fpr: float = TARGET_FPR,
    precision: str = "float32",
    limit: int | None = None,
    device: str = "auto",
    say: Say = lambda text: None,
) -> Calibration:
    """Calibrate a trained model on inliers that it was not trained on, and keep the result in its folder.

    Args:
        directory: of the run.
        data: inliers, by name (test split) or path; None for what the run held out, or where it held out
            nothing, the test split of its data set.
        score: the decision score; None for "auto", in int8 for "kl".
        target_fpr: false-positive rate of the threshold.
        precision: in which scores are computed from then on: "float32", the default, which every processor has;
            "bfloat16"; or "int8", for scores of the encoder alone, on a CPU.
        limit: use the first so many inliers.
        device: see `negvae.runs.artifact.load_artifact`.
        say: told what is loaded.

    Raises:
        FileNotFoundError: the run or its data is not there.
        ValueError: images of another shape, or too few for the rate; another precision, or int8 for a model, a
            score or a machine that it is not for.
    """
    choose("precision", precision, SCORE_PRECISIONS)
    artifact = load_artifact(directory, device, calibration=False)
    config, shape = artifact.config, artifact.model.shape
    if artifact.model.takes_features:
        raise ValueError(f"{directory} takes rows of features: NegVAEDetector.fit calibrates it, with its data")
    inliers = load(config.data, "train", limit=config.limit, shape=shape, disjoint_from_train=True, log=say)
    training, held_out = hold_out(torch.from_numpy(inliers.images), config.calibration, config.seed)
    if data is not None or not len(held_out):
        found = load(data or config.data, "test", shape=shape, disjoint_from_train=data in (None, config.data), log=say)
        say(f"calibration: {describe(found)}")
        held_out = torch.from_numpy(found.images)
    else:
        say(f"calibration: the {len(held_out):,} images of {config.data} that the run held out")
    held_out = held_out[:limit]
    # Evenly taken, as `calibrate` would; the threshold then looks at held-out inliers and at this sample.
    training = training[:: max(len(training) // REFERENCE_IMAGES, 1)][:REFERENCE_IMAGES]
    scorer = Scorer(artifact.model)
    if precision == "bfloat16":
        scorer = Scorer(artifact.model, precision=resolve_precision(precision, artifact.model.device))
    if precision == "int8":
        quantized = quantize(artifact.model.encoder, training)
        scorer = Scorer(artifact.model, quantized=quantized)
        score = score or "kl"
        scorer.check([score])
        say(f"int8: {_rounding(artifact.model, quantized, held_out[:REFERENCE_IMAGES])}")
    calibration = calibrate(
        scorer, training, held_out,
        score=score or "auto", names=CALIBRATED, components=score_components(config), target_fpr=target_fpr,
    )  # fmt: skip
    save_calibration(directory, calibration)
    return calibration


def _rounding(model: VAE, quantized: QuantizedEncoder, images: Tensor) -> str:
    """How far int8 moves the KL of inliers: one line."""
    exact, rounded = (
        compute_scores(model, images, ["kl"], precision="float32", quantized=encoder)["kl"]
        for encoder in (None, quantized)
    )
    error = float((rounded - exact).square().mean().sqrt() / exact.std(correction=0).clamp_min(1e-12))
    return f"the KL of held-out inliers differs from float32's by {error:.2g} of its standard deviation (rms)"


def score_components(config: RunConfig) -> tuple[str, ...]:
    """What "auto" is made of: without negatives nothing was sent to the second prior, so it tells nothing."""
    scores = ("bpd", "kl") if config.network == "mlp" else ("dose",)
    return scores if config.negatives == "none" else (*scores, "prior_ratio")


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


def trained_on(config: RunConfig) -> list[str]:
    """Names or paths of the sets that served as negatives."""
    return auxiliary_names(config.negatives)


def _check_directory(config: RunConfig, directory: Path, resume: bool) -> None:
    if directory.exists() and not directory.is_dir():
        raise ValueError(f"{directory} is a file: --out takes a folder")
    if not resume and any((directory / name).exists() for name in (CONFIG, CHECKPOINT, WEIGHTS)):
        raise ValueError(f"{directory} already holds a run: add --resume to go on with it, or take another folder")
    if not resume and directory.is_dir() and any(directory.iterdir()):
        raise ValueError(f"{directory} is not empty: take a new folder")
