"""Measurements of a run of the table `beyond`: scores on every out-of-distribution set, and on the proxies."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from negvae.data import ImageSet, load
from negvae.paper import unsupervised as beyond
from negvae.paper.proxies import PROXIES
from negvae.paper.published import Setting
from negvae.paper.results import order_statistics
from negvae.runs.artifact import Artifact, load_artifact
from negvae.runs.division import hold_out
from negvae.scoring.metrics import auroc
from negvae.scoring.scorer import Scorer

MEASURED = ("combined", "dose", "prior_ratio", "kl", "bpd", "typicality", "input_complexity")
"""Scores that are measured on test sets; on the VAE without negatives `likelihood_regret` and `waic` too."""
TEST_IMAGES = 5000
"""Number of images of each test set that are scored at most, at even distances."""
REGRET_IMAGES = 200
PROXY_IMAGES = 1000

ScoreArrays = Mapping[str, NDArray[np.float32]]


def evaluate(
    setting: Setting, directory: Path, test: ImageSet, others: Mapping[str, ImageSet], limit: int | None
) -> dict[str, Any]:
    """Score the inlier test set and all out-of-distribution sets, and the proxies made of inliers that were held out.

    Args:
        setting: setting of the run.
        directory: folder of the run, named after its seed; the finished runs of all lower seeds in the folders beside
            it are its ensemble, and if one is missing it has none.
        test: test set of the inliers.
        others: out-of-distribution sets by name, of the run's image shape.
        limit: largest number of images for the proxies and for `likelihood_regret`; None for `PROXY_IMAGES` and
            `REGRET_IMAGES`.

    Returns:
        Entries of the result: "evaluation" (by set: AUROC of every score, with intervals), "quantiles" (by set and
        score: order statistics of both sides), "proxies" (by proxy and score: AUROC), "nats_per_dim_test",
        "false_alarms" (share of the test set that is classified as outliers at the calibrated threshold),
        "ensemble" (models behind "waic" and "combined, ensemble") and "score_seconds".
    """
    began = time.monotonic()
    artifact = load_artifact(directory, "cpu")
    calibration = artifact.calibration
    assert calibration is not None  # the preset holds inliers out
    scorer = artifact.scorer()
    names = tuple(name for name in MEASURED if name != "prior_ratio" or setting.negatives != "none")
    others_like_it = _lower_seeds(artifact) if ensemble_size(setting, artifact.config.seed) > 1 else ()
    if others_like_it and setting.variant == beyond.PLAIN:
        names, scorer = (*names, "waic"), replace(scorer, ensemble=tuple(each.model for each in others_like_it))

    def measured(images: Tensor) -> ScoreArrays:
        chosen = evenly(images, TEST_IMAGES)
        scores = dict(scorer(chosen, names))
        if others_like_it and setting.variant == beyond.MAIN:
            further = [each.scorer()(chosen, ["combined"])["combined"] for each in others_like_it]
            scores[beyond.ENSEMBLE] = np.mean([scores["combined"], *further], axis=0)
        if setting.variant == beyond.PLAIN and artifact.config.seed == 0:
            scores |= scorer(evenly(images, min(limit or REGRET_IMAGES, REGRET_IMAGES)), ["likelihood_regret"])
        return scores

    inliers = measured(torch.from_numpy(test.images))
    outliers = {name: measured(torch.from_numpy(images.images)) for name, images in others.items()}
    content: dict[str, Any] = {
        "evaluation": {
            name: _areas(inliers, outliers[name]) | {"count": min(len(images.images), TEST_IMAGES)}
            for name, images in others.items()
        },
        "quantiles": {name: _quantiles(inliers, scores) for name, scores in outliers.items()},
        "nats_per_dim_test": float(inliers["bpd"].astype(np.float64).mean() * math.log(2)),
        "false_alarms": float(calibration.is_outlier(inliers[calibration.score]).mean()),
        "target_fpr": calibration.target_fpr,
        "ensemble": 1 + len(others_like_it),
    }
    content["proxies"] = _proxies(artifact, scorer, limit)
    content["score_seconds"] = round(time.monotonic() - began, 1)
    return content


def ensemble_size(setting: Setting, seed: int) -> int:
    """Return the number of models that the scores of ensembles of a run are computed with: of its seed and all lower.

    Args:
        setting: setting of the run.
        seed: seed of the run.

    Returns:
        The number; 1 for a run that has no such scores.
    """
    return 1 if beyond.VARIANTS[setting.variant].ablation else 1 + seed


def has_lower_seeds(directory: Path) -> bool:
    """Return whether the finished runs of all lower seeds lie beside a finished run's folder, as its ensemble."""
    try:
        artifact = load_artifact(directory, "cpu")
    except (FileNotFoundError, ValueError):
        return False
    return artifact.finished and len(_lower_seeds(artifact)) == artifact.config.seed


def evenly(images: Tensor, count: int) -> Tensor:
    """Return at most so many images, at even distances, since some test sets come sorted by class.

    >>> evenly(torch.arange(10), 4)
    tensor([0, 3, 6, 9])
    """
    return images[torch.linspace(0, len(images) - 1, min(count, len(images))).round().long()]


def fitted(images: ImageSet, shape: tuple[int, int, int]) -> ImageSet:
    """Return a set in another shape: gray images are framed with black and repeated over the channels.

    Args:
        images: set to fit into the shape.
        shape: channels, height and width of the new images.

    Returns:
        The set itself if it has the shape, else a new one with a note on the change.

    Raises:
        ValueError: if the images are in color or larger than the shape.
    """
    channels, height, width = shape
    if images.shape == shape:
        return images
    count, given, rows, columns = images.images.shape
    if given != 1 or rows > height or columns > width:
        raise ValueError(f"{images.name} has images of {given}x{rows}x{columns}, which do not fit into {shape}")
    framed = np.zeros((count, 1, height, width), np.uint8)
    top, start = (height - rows) // 2, (width - columns) // 2
    framed[:, :, top : top + rows, start : start + columns] = images.images
    note = f"{images.name}: framed with black to {height}x{width}, gray in {channels} channels"
    return replace(images, images=framed.repeat(channels, 1), notes=(*images.notes, note))


def _proxies(artifact: Artifact, scorer: Scorer, limit: int | None) -> dict[str, dict[str, float]]:
    """Return the AUROC of held-out inliers against proxies made of other held-out inliers, by proxy and score."""
    config = artifact.config
    inliers = load(config.data, "train", limit=config.limit, disjoint_from_train=True, fetch=False)
    held_out = hold_out(torch.from_numpy(inliers.images), config.calibration, config.seed)[1]
    names = [
        name
        for name in ("combined", "dose", "prior_ratio", "kl")
        if name != "prior_ratio" or config.negatives != "none"
    ]
    return against_proxies(held_out, lambda images: scorer(images, names), limit)


def against_proxies(
    held_out: Tensor, scored: Callable[[Tensor], ScoreArrays], limit: int | None = None
) -> dict[str, dict[str, float]]:
    """Measure how well scores tell held-out inliers from proxies made of other held-out inliers.

    Args:
        held_out: inliers that the model was not trained on, uint8, N x C x H x W.
        scored: function that returns the scores of images, by name.
        limit: largest number of images on either side; None for `PROXY_IMAGES`.

    Returns:
        AUROC by proxy and score.
    """
    half = min(len(held_out) // 2, limit or PROXY_IMAGES, PROXY_IMAGES)
    # By turns, since a set sorted by class would make outliers of the second half.
    chosen = evenly(held_out, 2 * half)
    kept, made_strange = chosen[0::2], chosen[1::2].float() / 255
    usual = scored(kept)
    randomness = torch.Generator().manual_seed(0)
    areas = {}
    for name, proxy in PROXIES.items():
        scores = scored((proxy(made_strange, randomness) * 255).round().byte())
        areas[name] = {score: round(auroc(usual[score], scores[score])[0], 5) for score in usual}
    return areas


def _quantiles(inliers: ScoreArrays, outliers: ScoreArrays) -> dict[str, dict[str, list[float]]]:
    sides = {"inliers": inliers, "ood": outliers}
    return {name: {side: order_statistics(scores[name]) for side, scores in sides.items()} for name in inliers}


def _areas(inliers: ScoreArrays, outliers: ScoreArrays) -> dict[str, Any]:
    areas: dict[str, Any] = {}
    for name, scores in inliers.items():
        area, interval = auroc(scores, outliers[name])
        areas[f"auc_{name}"] = area
        areas[f"auc_{name}_ci"] = list(interval)
    return areas


def _lower_seeds(artifact: Artifact) -> tuple[Artifact, ...]:
    """Load the same run's models of all lower seeds; none if one is missing, not finished or of another run."""
    stem, _, seed = artifact.directory.name.rpartition("seed")
    found = []
    for lower in range(int(seed)):
        try:
            other = load_artifact(artifact.directory.with_name(f"{stem}seed{lower}"), "cpu")
        except (FileNotFoundError, ValueError):
            return ()
        if not other.finished or replace(other.config, seed=artifact.config.seed) != artifact.config:
            return ()
        found.append(other)
    return tuple(found)
