"""Scores that are measured against what training images score: "auto" and "typicality". Needs NumPy only."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import ArrayLike, NDArray

Scores = NDArray[np.float64]

TWO_SIDED = ("bpd",)
"""A likelihood far above the inliers' is as atypical as one far below; a small KL is what inliers have."""


STATISTICS = "statistics"
"""What "dose" is made of: in what a pass gives, the columns; among references, what `negvae.scoring.dose.fit` gives."""


def auto_components(references: Mapping[str, Scores]) -> list[str]:
    """The scores that `auto` is the largest of: all that are referred to; with "dose", which holds them, not "bpd"."""
    left_out = {STATISTICS, "bpd"} if "dose" in references else {STATISTICS}
    return [name for name in references if name not in left_out]


def reference(scores: ArrayLike) -> Scores:
    """What `auto` and `typicality` need of the training images' scores: 5% quantile, median, 95% quantile, mean."""
    values = np.asarray(scores, np.float64)
    return np.array([*np.quantile(values, (0.05, 0.5, 0.95)), values.mean()])


def auto(scores: Mapping[str, ArrayLike], references: Mapping[str, Scores]) -> Scores:
    """The library's own choice of score: the most conspicuous of several, each on the training images' scale.

    Every score's distance from the training median is divided by the distance at which the most extreme
    5% of the training images begin; the largest of these ratios is the score, so 1 means "at the edge of
    the usual" in one respect at least. Scores fail on different strangers, and what any of them sees, this sees.
    "bpd" counts on both sides. Nothing but training images goes into it; which scores, `references` says.

    Args:
        scores: N values for each of `auto_components`.
        references: `reference` of the training images, by score.

    Returns:
        N values, larger = more out-of-distribution.
    """
    ratios = []
    for name in auto_components(references):
        low, median, high, _ = references[name]
        distance = np.asarray(scores[name], np.float64) - median
        tiny = 1e-9 * max(abs(median), 1e-9)
        ratio = distance / max(high - median, tiny)
        if name in TWO_SIDED:
            ratio = np.maximum(ratio, -distance / max(median - low, tiny))
        ratios.append(ratio)
    result: Scores = np.max(ratios, axis=0)
    return result


def typicality(bpd: ArrayLike, references: Mapping[str, Scores]) -> Scores:
    """|bpd - mean bpd of the training images| (N): Nalisnick et al. (2019), with batches of one image.

    "Detecting out-of-distribution inputs to deep generative models using typicality", equation 6; the ELBO
    stands in for the likelihood.
    """
    distance: Scores = np.abs(np.asarray(bpd, np.float64) - references["bpd"][3])
    return distance


def batch_typicality(bpd: ArrayLike, references: Mapping[str, Scores]) -> float:
    """|mean bpd of a batch - mean bpd of the training images|: the same for M images that came together.

    Args:
        bpd: of the batch (M).
        references: `reference` of the training images, by score.

    Raises:
        ValueError: the batch is empty.
    """
    values = np.asarray(bpd, np.float64)
    if not values.size:
        raise ValueError("an empty batch has no typicality")
    return float(abs(values.mean() - references["bpd"][3]))


def batch_typicality_threshold(
    held_out_bpd: ArrayLike,
    references: Mapping[str, Scores],
    size: int,
    target_fpr: float = 0.01,
    *,
    repeats: int = 2000,
    generator: np.random.Generator | None = None,
) -> float:
    """The `batch_typicality` that a batch of `size` inliers exceeds with a probability of `target_fpr`.

    The quantile over batches drawn with replacement from held-out inliers (Nalisnick et al. 2019, section 3.1).
    The held-out inliers are drawn anew for every batch, too: where they are not many more than a batch has images,
    their own mean is as uncertain as the batch's, and leaving that out would raise false alarms.

    Args:
        held_out_bpd: of inliers that were not trained on.
        references: as of `batch_typicality`.
        size: images in a batch, from 1.
        target_fpr: rate of false alarms, above 0 and below 1.
        repeats: bootstrap batches.
        generator: draws the batches; seeded with 0 if left out.

    Raises:
        ValueError: an argument is out of range.
    """
    values = np.asarray(held_out_bpd, np.float64)
    if size < 1 or not 0 < target_fpr < 1 or not values.size:
        raise ValueError("a threshold needs held-out scores, batches of at least 1 image and a rate between 0 and 1")
    draw = generator or np.random.default_rng(0)
    count = len(values)
    rows = (draw.integers(count, size=count)[draw.integers(count, size=size)] for _ in range(repeats))
    means = np.array([values[chosen].mean() for chosen in rows])
    return float(np.quantile(np.abs(means - references["bpd"][3]), 1 - target_fpr))
