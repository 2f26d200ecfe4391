"""Calibrate a model: p-values and a threshold from inliers that it was not trained on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from negvae.config import SCORE_PRECISIONS, RunConfig
from negvae.data import load
from negvae.data.formats.folder import IMAGE_ENDINGS, walk
from negvae.device import resolve_precision
from negvae.fast.int8 import QuantizedEncoder, quantize
from negvae.model import VAE
from negvae.registry import choose
from negvae.runs.artifact import Artifact, load_artifact, read_section, save_calibration
from negvae.runs.recorded import MEMORY, Recorded, read_recorded
from negvae.runs.resolve import Log, describe, load_inliers, load_test_set, silent
from negvae.scoring.calibration import TARGET_FPR, Calibration, least_held_out
from negvae.scoring.compute import compute_scores
from negvae.scoring.groups import GROUPS
from negvae.scoring.heatmaps import Heatmaps
from negvae.scoring.references import References
from negvae.scoring.scorer import REFERENCE_IMAGES, Scorer, calibrate
from negvae.scoring.table import SCORES
from negvae.training.loop import TrainingResult


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
    folder then gives the same decisions on a machine without bfloat16.
    """
    scorer = Scorer(result.model, References(heatmaps=heatmaps))
    return calibrate(scorer, images, held_out, components=score_components(config), **options)


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
    device: str = "auto",
    log: Log = silent,
) -> Calibration:
    """Calibrate a trained model on inliers that it was not trained on, and save the result in its folder.

    What is not specified stays as in the present calibration: the decision score and the rule for the threshold.

    Args:
        directory: folder of the run.
        data: inliers, by name (test split) or path; None for those that the run held out, or, if it held out none, for
            the test split of its data set.
        score: decision score; None for the present one, or, if there is none, `negvae.scoring.scorer.default_score` (in
            int8 "kl").
        target_fpr: false-positive rate of the threshold; None for the present rule, or 0.05 if there is none.
        confidence: confidence with which the rate holds; None for the present one, or, if there is none, for a rate
            that holds on average over held-out sets.
        groups: "folders" sets p-values and a threshold for each subfolder of `data`; None for all inliers together.
        precision: precision of the scores from then on: "float32", which every processor supports; "bfloat16"; or
            "int8", for scores of the encoder alone, on a CPU.
        limit: maximum number of inliers; the first ones are used. None for all.
        device: device to compute on: "auto", "cpu", "cuda" or "cuda:N".
        log: called with each line that the user should see.

    Returns:
        The new calibration.

    Raises:
        FileNotFoundError: if the run or its data does not exist.
        ValueError: if the images have another shape or are too few for the rate; if the run may have been trained on
            the data; or if the precision is unknown or not available for this model, score or machine.
    """
    choose("precision", precision, SCORE_PRECISIONS)
    artifact = _open(directory, device)
    before, config = artifact.calibration, artifact.config
    if artifact.model.takes_features:
        raise ValueError(f"{directory} takes rows of features: NegVAEDetector.fit calibrates it, with its data")
    training, held_out = _inliers(artifact, data, log)
    labels = None
    if groups is not None:
        choose("groups", groups, GROUPS)
        labels = _subfolders(data)[:limit]
    held_out = held_out[:limit]
    known = References(heatmaps=artifact.heatmaps)
    scorer, present = Scorer(artifact.model, known), before.score if before else None
    if precision == "bfloat16":
        scorer = Scorer(artifact.model, known, precision=resolve_precision(precision, artifact.model.device))
    if precision == "int8":
        if training is None:
            raise ValueError(f"{directory} was fitted on data in memory, which is not kept: int8 is rounded by it")
        quantized = quantize(artifact.model.encoder, training)
        scorer = Scorer(artifact.model, quantized=quantized)
        score = score or (present if present and not SCORES[present].needs else "kl")
        scorer.check([score])
        log(f"int8: {_rounding(artifact.model, quantized, held_out[:REFERENCE_IMAGES])}")
    calibration = calibrate(
        scorer, training, held_out,
        score=score or present, components=score_components(config), groups=labels,
        references=before.reference if before and training is None else None,
        **_rule(artifact, target_fpr, confidence, len(held_out)),
    )  # fmt: skip
    if calibration.small:
        log(f"too few held-out inliers for the rate: {', '.join(calibration.small)}; their thresholds lie above all")
    save_calibration(directory, calibration)
    return calibration


def _subfolders(data: str | None) -> list[str]:
    """Return the subfolder of each image of a folder, in the order in which the folder is loaded.

    Raises:
        ValueError: if there is no folder, or an image lies in no subfolder.
    """
    place = Path(data or "").expanduser()
    if data is None or not place.is_dir():
        raise ValueError(
            "groups folders takes a folder of inliers with a subfolder for each group: name it with --data"
        )
    below = [Path(file).relative_to(place).parts for file in walk(str(place), IMAGE_ENDINGS)]
    if loose := [parts[0] for parts in below if len(parts) == 1]:
        raise ValueError(f"{place}: {loose[0]} lies in no subfolder, and groups folders takes one for each group")
    return [parts[0] for parts in below]


def _open(directory: Path, device: str) -> Artifact:
    """Load the artifact, without its calibration if that is damaged."""
    try:
        return load_artifact(directory, device)
    except (ValueError, FileNotFoundError):
        return load_artifact(directory, device, calibration=False)


def _inliers(artifact: Artifact, data: str | None, log: Log) -> tuple[Tensor | None, Tensor]:
    """Return up to `REFERENCE_IMAGES` training images (None if they were in memory), and the held-out inliers."""
    config, shape = artifact.config, artifact.model.shape
    recorded = read_recorded(artifact.directory, artifact.provenance)
    training: Tensor | None = None
    # With other inliers named, those of the training give scales and rounding only, for which a changed few do.
    known = recorded if data is None else Recorded(source=recorded.source)
    try:
        inliers = load_inliers(config, shape=shape, recorded=known, log=log)
        training, held_out = inliers.training, inliers.held_out
        # Evenly taken, as `calibrate` would; the threshold then looks at held-out inliers and at this sample.
        training = training[:: max(len(training) // REFERENCE_IMAGES, 1)][:REFERENCE_IMAGES]
    except (ValueError, FileNotFoundError):
        if data is None or artifact.calibration is None or not artifact.calibration.reference.scales:
            raise
    if data is None and len(held_out):
        log(f"calibration: the {len(held_out):,} images of {config.data} that the run held out")
        return training, held_out
    if data is None or (data == config.data and recorded.source != MEMORY):
        found = load_test_set(config, shape=shape, recorded=recorded, log=log)
    else:
        found = load(data, "test", shape=shape, log=log)
    log(f"calibration: {describe(found)}")
    return training, torch.from_numpy(found.images)


def _rule(artifact: Artifact, target_fpr: float | None, confidence: float | None, held_out: int) -> dict[str, Any]:
    """Return how to set the threshold: by the requested rate, else by the present rule."""
    before = artifact.calibration
    sure = confidence if confidence is not None or before is None else before.confidence
    if target_fpr is not None or before is None:
        return {"target_fpr": TARGET_FPR if target_fpr is None else target_fpr, "confidence": sure}
    if before.target_fpr is not None:
        return {"target_fpr": before.target_fpr, "confidence": sure}
    if confidence is not None:
        return {"target_fpr": TARGET_FPR, "confidence": confidence}
    if before.contamination:
        return {"target_fpr": None, "contamination": before.contamination}
    # Either nobody wanted a rate, or the held-out inliers were too few for the one that was wanted.
    parameters = read_section(artifact.directory, "detector").get("parameters") or {}
    wanted = parameters.get("target_fpr", TARGET_FPR)
    return {"target_fpr": None if wanted is None or held_out < least_held_out(wanted) else wanted}


def _rounding(model: VAE, quantized: QuantizedEncoder, images: Tensor) -> str:
    """Describe in one line how much int8 changes the KL divergence of inliers."""
    exact, rounded = (
        compute_scores(model, images, ["kl"], precision="float32", quantized=encoder)["kl"]
        for encoder in (None, quantized)
    )
    error = float((rounded - exact).square().mean().sqrt() / exact.std(correction=0).clamp_min(1e-12))
    return f"the KL of held-out inliers differs from float32's by {error:.2g} of its standard deviation (rms)"


def score_components(config: RunConfig) -> tuple[str, ...]:
    """Return the scores that "combined" is made of; without negatives, "prior_ratio" is left out as uninformative."""
    scores = ("bpd", "kl") if config.takes_features else ("dose",)
    return scores if config.negatives == "none" else (*scores, "prior_ratio")
