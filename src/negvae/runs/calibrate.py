"""Calibrate a model: p-values and a threshold from inliers that it was not trained on."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from negvae.config import SCORE_PRECISIONS, RunConfig
from negvae.data.formats.base import check_limit
from negvae.decoding import Decoding
from negvae.device import own_state, resolve_precision
from negvae.files import require_writable
from negvae.messages import Log, counted, quoted, silent
from negvae.registry import choose
from negvae.runs import embed as embedding
from negvae.runs.artifact import (
    CALIBRATION,
    CONFIG,
    Artifact,
    alone,
    check_registered,
    load_artifact,
    read_config,
    read_section,
    save_calibration,
)
from negvae.runs.folders import load_fitted
from negvae.runs.groups import groups_of_files, inlier_groups
from negvae.runs.heatmaps import save_heatmaps
from negvae.runs.recorded import MEMORY, Recorded, read_recorded
from negvae.runs.seen import refuse_inliers_of, refuse_test_split
from negvae.runs.sets import load_as_stored, load_inliers, load_test_photos, load_test_set
from negvae.scoring.calibration import TARGET_FPR, Calibration, least_held_out
from negvae.scoring.drift import columns_of
from negvae.scoring.heatmaps import Heatmaps
from negvae.scoring.quantization import moved, quantize_model, try_int8
from negvae.scoring.references import References
from negvae.scoring.scorer import REFERENCE_IMAGES, Scorer, calibrate
from negvae.scoring.table import SCORES
from negvae.scoring.tiles import Owners
from negvae.training.loop import TrainingResult

_RULE = ("target_fpr", "confidence", "contamination")
"""Fields of a calibration that say how its threshold is set."""


def calibrated(
    config: RunConfig,
    result: TrainingResult,
    images: Tensor,
    held_out: Tensor,
    heatmaps: Heatmaps | None = None,
    **options: Any,
) -> Calibration:
    """Calibrate a newly trained model; see `negvae.scoring.scorer.calibrate` for the options.

    The scores are computed in float32 whatever the precision of the training, because every processor supports it: the
    folder then gives the same decisions on a machine without bfloat16. A model of rows of features is left in float64,
    in which it is scored.
    """
    if result.model.takes_features:
        result.model.double()
    scorer = Scorer(result.model, References(heatmaps=heatmaps))
    found = calibrate(scorer, images, held_out, components=score_components(config), **options)
    return with_columns(found, held_out)


def with_columns(calibration: Calibration, held_out: Tensor) -> Calibration:
    """Return the calibration with the held-out values of each column if the inliers are rows of features."""
    if not held_out.is_floating_point():
        return calibration
    return dataclasses.replace(calibration, columns=columns_of(held_out.flatten(1)))


@own_state()
def calibrate_run(
    directory: Path,
    data: str | None = None,
    *,
    score: str | None = None,
    target_fpr: float | None = None,
    confidence: float | None = None,
    groups: str | None = None,
    precision: str = "float32",
    limit: int | None = None,
    embed: Path | str | None = None,
    device: str = "auto",
    log: Log = silent,
) -> Calibration:
    """Calibrate a trained model on inliers that it was not trained on, and save the result in its folder.

    The heat maps of the folder, if it has any, are calibrated by the same inliers.

    What is not specified stays as in the present calibration: the decision score and the rule for the threshold. If
    that calibration is lost or damaged, config.yaml still tells of both.

    Args:
        directory: folder of the run.
        data: inliers, by name (test split) or path; None for those that the run held out, or, if it held out none, for
            the test split of its data set. For a model of rows of features, a file of rows, or, if it was trained with
            an encoder, images; these replace the held-out rows, and the rows that distances are measured to stay.
        score: decision score; None for the present one, or, if there is none, `negvae.scoring.scorer.default_score` (in
            int8 without a decoder "kl").
        target_fpr: false-positive rate of the threshold; None for the present rule, or, if there is none, for that of
            the training, or 0.05.
        confidence: confidence with which the rate holds. None for the present one, or that of the training; with a
            `target_fpr`, or if there is neither, for a rate that holds on average over held-out sets.
        groups: "folders" sets p-values and a threshold for each subfolder of `data`, and any other text for each value
            of this column of a CSV or Parquet file; None for the groups of the run, or, with `data`, for all inliers
            together.
        precision: precision of the scores from then on: "float32", which every processor supports; "bfloat16"; or
            "int8", on a CPU, for networks of plain convolutions (without the decoder's, for scores of the encoder).
        limit: maximum number of inliers; the first ones are used. None for all.
        embed: present path of the encoder that the model was trained with; None for the path at the time of training.
        device: device to compute on: "auto", "cpu", "cuda" or "cuda:N".
        log: called with each line that the user should see.

    Returns:
        The new calibration.

    Raises:
        FileNotFoundError: if the run or its data does not exist.
        OSError: if the run's folder cannot be written to, which is found out first.
        ValueError: if the images have another shape or are too few for the rate; if the run may have been trained on
            the data; if another process trains or calibrates the run; or if the precision is unknown or not available
            for this model, score or machine.
    """
    choose("precision", precision, SCORE_PRECISIONS)
    check_limit(limit)
    read_config(directory)  # which says what is wrong with a folder that is no run, before a lock is made in it
    require_writable(directory / CALIBRATION)
    data = data and os.path.expanduser(data)  # as in config.data
    with alone(directory, " until it has ended"):
        artifact = _open(directory, device)
        before, config = artifact.calibration, artifact.config
        groups = config.groups if data is None and groups is None else groups
        training, held_out, labels, owners = _training_and_held_out(
            artifact, data, groups, precision, limit, embed, log
        )
        earlier = _before(artifact, wants_score=score is None)
        count = len(held_out) if owners is None else len(set(owners.held_out))
        rule = _rule(artifact, earlier, target_fpr, confidence, count)
        trimmed = _trimmed(artifact, rule.get("confidence")) if data is None else 0.0
        if trimmed and before is not None:
            training = None  # of all rows, with those that were left out; the present measurements are without them
        scorer = _scorer(artifact, precision, training)
        present = earlier["score"]
        if scorer.quantized is not None and scorer.quantized.decode is None:
            score = score or (present if present and not SCORES[present].needs else "kl")
            scorer.check([score])
        calibration = calibrate(
            scorer, training, held_out,
            score=score or present, components=score_components(config), groups=labels,
            references=before.reference if before and training is None else None, log=log,
            owners=owners, rule=before.tiles if before and training is None else None,
            **rule,
        )  # fmt: skip
        if calibration.small:
            log(
                f"too few held-out inliers for the rate: {', '.join(calibration.small)}; their thresholds lie above all"
            )
        calibration = dataclasses.replace(with_columns(calibration, held_out), trimmed=trimmed)
        calibration = _saved(artifact.recalibrated(calibration, held_out))
        if precision == "int8":
            log(f"int8: {_rounding(scorer, calibration, held_out[:REFERENCE_IMAGES])}")
        elif training is not None and labels is None:
            rate = calibration.target_fpr or TARGET_FPR
            tried = try_int8(scorer, training, held_out, calibration.score, score_components(config), rate)
            if tried is not None and tried.holds:
                log(f"{tried.describe()}: negvae calibrate {quoted(directory)} --precision int8")
        return calibration


def _saved(artifact: Artifact) -> Calibration:
    """Write the calibration of an artifact and its heat maps, and return the calibration."""
    calibration = artifact.calibrated()
    save_calibration(artifact.directory, calibration)
    if artifact.heatmaps is not None:
        save_heatmaps(artifact.directory, artifact.heatmaps)
    return calibration


def _training_and_held_out(
    artifact: Artifact,
    data: str | None,
    groups: str | None,
    precision: str,
    limit: int | None,
    embed: Path | str | None,
    log: Log,
) -> tuple[Tensor | None, Tensor, list[str] | None, Owners | None]:
    """Return the training data, the held-out inliers, their groups and, of tiles, which image each belongs to."""
    if artifact.model.takes_features:
        if precision != "float32":
            raise ValueError(
                f"{artifact.directory} takes rows of features, which are scored in float64: leave out {precision}"
            )
        training, held_out, labels = _feature_inliers(artifact, data, groups, embed, log)
        owners = None
    else:
        if embed is not None:
            raise ValueError(f"{artifact.directory} was trained without an encoder: leave out --embed")
        training, held_out, labels, owners = _inliers(artifact, data, groups, log, limit)
    if artifact.config.images is None:
        held_out, labels = held_out[:limit], None if labels is None else labels[:limit]
    return training, held_out, labels, owners


def _scorer(artifact: Artifact, precision: str, training: Tensor | None) -> Scorer:
    """Return a scorer in a precision; int8 is rounded by images of the training."""
    model, known = artifact.model, References(heatmaps=artifact.heatmaps)
    if precision == "bfloat16":
        return Scorer(model, known, precision=resolve_precision(precision, model.device))
    if precision == "float32":
        return Scorer(model, known)
    if training is None:
        raise ValueError(f"{artifact.directory} was fitted on data in memory, which is not kept: int8 is rounded by it")
    return Scorer(model, quantized=quantize_model(model, training))


def _open(directory: Path, device: str) -> Artifact:
    """Load the artifact, without its calibration if that is damaged."""
    try:
        return load_artifact(directory, device)
    except (ValueError, FileNotFoundError):
        return load_artifact(directory, device, calibration=False)


def _inliers(
    artifact: Artifact, data: str | None, groups: str | None, log: Log, limit: int | None
) -> tuple[Tensor | None, Tensor, list[str] | None, Owners | None]:
    """Return the training images (None if they were in memory), held-out inliers and groups.

    For tiled images these are tiles, with the images that they belong to.
    """
    if artifact.config.images is not None:
        return _photos(artifact, artifact.config.images, data, groups, log, limit)
    config, shape = artifact.config, artifact.model.shape
    recorded = read_recorded(artifact.directory, artifact.provenance)
    training: Tensor | None = None
    # With other inliers named, those of the training give scales and rounding only, for which a changed few do.
    known = recorded if data is None else Recorded(source=recorded.source)
    if config.calibration:
        config = dataclasses.replace(config, groups=groups if data is None else None)
    try:
        inliers = load_inliers(config, shape=shape, recorded=known, log=log)
        training, held_out = inliers.training, inliers.held_out
    except (ValueError, FileNotFoundError):
        if data is None or artifact.calibration is None or not artifact.calibration.reference.scales:
            raise
    if data is None and len(held_out):
        log(f"calibration: the {counted(len(held_out), 'image')} of {config.data} that the run held out")
        return training, held_out, None if inliers.groups is None else list(inliers.groups), None
    own = data is None or (data == config.data and recorded.source != MEMORY)
    if own:
        found = load_test_set(config, shape=shape, recorded=recorded, log=log)
        refuse_test_split(artifact, found.inputs)
    else:
        found = load_as_stored(str(data), "test", shape=shape, max_broken=config.max_broken, log=log)
        refuse_inliers_of(artifact, found.inputs, found.sha256, f"--data {data}")
    labels = None
    if groups is not None and found.files:
        labels = groups_of_files(data or config.data, groups, found.files)
    elif groups is not None:
        labels = inlier_groups(data or config.data, groups, "test", disjoint=own)
    log(f"calibration: {found.description}")
    return training, found.inputs, labels, None


def _feature_inliers(
    artifact: Artifact, data: str | None, groups: str | None, embed: Path | str | None, log: Log
) -> tuple[Tensor | None, Tensor, list[str] | None]:
    """Return training rows (None to keep the measurements of the present calibration), held-out rows and groups."""
    recorded = read_recorded(artifact.directory, artifact.provenance)
    config = artifact.config if embed is None else dataclasses.replace(artifact.config, embed=str(embed))
    columns = embedding.columns_of(artifact)  # one of which may name the groups now
    if data is None:
        if config.calibration:
            config = dataclasses.replace(config, groups=groups)
        inliers = load_inliers(config, recorded=recorded, columns=columns, log=log)
        if not len(inliers.held_out):
            raise ValueError(f"{artifact.directory} held out no rows: name inliers that are new to it with --data")
        log(f"calibration: the {counted(len(inliers.held_out), 'row')} of {config.data} that the run held out")
        return inliers.training, inliers.held_out, None if inliers.groups is None else list(inliers.groups)
    encoder = embedding.encoder_of(artifact, embed)
    found = embedding.read_feature_rows(
        data, encoder, columns=columns, groups=groups, split="test", max_broken=config.max_broken
    )
    artifact.model.check(found.rows)
    refuse_inliers_of(artifact, found.rows, found.sha256, f"--data {data}")
    log(f"calibration: {found.description}")
    before = artifact.calibration
    kept = before is not None and before.reference.neighbors is not None
    training = None if kept else load_inliers(config, recorded=recorded, columns=columns, log=log).training
    return training, found.rows, None if found.groups is None else list(found.groups)


def _photos(
    artifact: Artifact, decoding: Decoding, data: str | None, groups: str | None, log: Log, limit: int | None
) -> tuple[Tensor | None, Tensor, list[str] | None, Owners | None]:
    """Return what `_inliers` does, of a run whose data is a folder of photos."""
    config = artifact.config
    if config.calibration:
        config = dataclasses.replace(config, groups=groups if data is None else None)
    recorded = read_recorded(artifact.directory, artifact.provenance)
    training: Tensor | None = None
    of_training = np.empty(0, np.int64)
    try:
        inliers = load_inliers(config, recorded=recorded, log=log)
    except (ValueError, FileNotFoundError):
        if data is None or artifact.calibration is None or not artifact.calibration.reference.scales:
            raise
        inliers = None
    if inliers is not None:
        training = inliers.training
        of_training = np.arange(len(training)) if inliers.owners is None else inliers.owners.training
    if data is None and inliers is not None and len(inliers.held_out):
        held_out = inliers.held_out
        owners = np.arange(len(held_out)) if inliers.owners is None else inliers.owners.held_out
        labels = None if inliers.groups is None else list(inliers.groups)
        log(f"calibration: the {counted(inliers.held_out_images, 'image')} of {config.data} that the run held out")
    else:
        if data is None or (data == config.data and recorded.source != MEMORY):
            found = load_test_photos(config, recorded=recorded, log=log)
            refuse_test_split(artifact, found.inputs)
        else:
            found = load_fitted(data, "test", decoding, max_broken=config.max_broken, log=log)
            refuse_inliers_of(artifact, found.inputs, found.sha256, f"--data {data}")
        log(f"calibration: {found.description}")
        held_out, owners = found.inputs, found.owners
        labels = None if groups is None else groups_of_files(data or config.data, groups, found.files)
    kept = slice(None) if limit is None else slice(int(np.searchsorted(owners, limit)))
    labels = None if labels is None else labels[:limit]
    return training, held_out[kept], labels, Owners(of_training, owners[kept]) if decoding.tiled else None


def _before(artifact: Artifact, *, wants_score: bool) -> dict[str, Any]:
    """Return the score and the rule of the present calibration, or else those that the folder tells of.

    Of a calibration that is lost or damaged, config.yaml still has them; without one, it has the rule that was asked
    for in training. `wants_score` says that the score is to decide again.

    Raises:
        ValueError: if a number of the rule in config.yaml is none, or the score that is wanted is not registered here.
    """
    if (present := artifact.calibration) is not None:
        return {"score": present.score, **{name: getattr(present, name) for name in _RULE}}
    config, described = artifact.config, read_section(artifact.directory, "calibration")
    if not described:
        return {"score": None, "target_fpr": config.target_fpr or TARGET_FPR, "confidence": config.confidence}
    for name in _RULE:
        if not isinstance(value := described.get(name), int | float | None):
            raise ValueError(f"{artifact.directory / CONFIG}: calibration.{name} is {value!r}: it must be a number")
    score = described.get("score")
    if wants_score and score is not None:
        check_registered(artifact.directory, str(score))
    return {**described, "score": score if score in SCORES else None}


def _trimmed(artifact: Artifact, confidence: float | None) -> float:
    """Return the share of the data that a detector's `trim` left out before it held out inliers.

    Raises:
        ValueError: if there is one, and the rule for the threshold has a confidence.
    """
    parameters = read_section(artifact.directory, "detector").get("parameters") or {}
    share = parameters.get("trim") or 0.0 if artifact.config.calibration else 0.0  # else all were given as clean
    if share and confidence is not None:
        raise ValueError(
            f"{artifact.directory} left out the least usual {share:g} of its data (trim) before inliers were held out,"
            " which may hold outliers: for a confidence, name clean inliers with --data"
        )
    return float(share)


def _rule(
    artifact: Artifact, before: dict[str, Any], target_fpr: float | None, confidence: float | None, held_out: int
) -> dict[str, Any]:
    """Return how to set the threshold: by the requested rate, else by the rule before."""
    if target_fpr is not None:
        return {"target_fpr": target_fpr, "confidence": confidence}
    if before.get("target_fpr") is not None:
        sure = before.get("confidence") if confidence is None else confidence
        return {"target_fpr": before["target_fpr"], "confidence": sure}
    if confidence is not None:
        return {"target_fpr": TARGET_FPR, "confidence": confidence}
    if before.get("contamination"):
        return {"target_fpr": None, "contamination": before["contamination"]}
    # Either nobody wanted a rate, or the held-out inliers were too few for the one that was wanted.
    parameters = read_section(artifact.directory, "detector").get("parameters") or {}
    wanted = parameters.get("target_fpr", TARGET_FPR)
    return {"target_fpr": None if wanted is None or held_out < least_held_out(wanted) else wanted}


def _rounding(scorer: Scorer, calibration: Calibration, images: Tensor) -> str:
    """Describe in one line how much int8 changes the decision score of inliers, measured by the same references."""
    exact, rounded = (Scorer(scorer.model, calibration.reference, quantized=each) for each in (None, scorer.quantized))
    error, name = moved(exact, rounded, images, calibration.score), calibration.score
    return f"the {name} of held-out inliers differs from float32's by {error:.2g} of its standard deviation (rms)"


def score_components(config: RunConfig) -> tuple[str, ...]:
    """Return the scores that "combined" is made of; without negatives, "prior_ratio" is left out as uninformative."""
    scores = ("bpd", "kl") if config.takes_features else ("dose",)
    return scores if config.negatives == "none" else (*scores, "prior_ratio")
