"""Scores that are measured against what training images score: "combined", "typicality" and that of a batch."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from negvae.scoring.calibration import average_rank
from negvae.scoring.certificates import check_rate
from negvae.scoring.passes import Pass
from negvae.scoring.references import References

TWO_SIDED = ("bpd",)
"""A likelihood far above the inliers' is as atypical as one far below; a small KL is what inliers have."""


ADDED = (("transformations_kl", "transformations_distance"), ("latent_neighbors",))
"""Scores that count with transformations: "combined" adds the largest of each group and, damped, the others."""


def combined(x: Pass) -> Tensor:
    """Return several scores in one, each on the training images' scale (N): the library's default score.

    Every score's distance from the training median is divided by the distance at which the most extreme
    5% of the training images begin. The largest of these ratios is the score, so 1 means "at the edge of
    the usual" in at least one respect: scores detect different outliers, and the largest is high if any one is.
    With transformations, the largest of each group of scores in `ADDED` and, damped, the largest of the others are
    added, or all of the others if `x.references.summed`: outliers that are near the inliers are a little unusual in
    most respects, and a ratio of a hundred should not drown the rest. More inliers then have a score above 1. "bpd"
    counts on both sides. The scales are those of training images alone, and `x.references` lists the scores.
    """
    references = x.references
    if not references.components:
        raise ValueError("score combined was not measured on training images: run `negvae calibrate` first")
    ratios = {name: ratio(name, x.score(name), x.scale(name)) for name in references.components}
    return combine(ratios, summed=references.summed)


def ratio(name: str, scores: Tensor, scale: Sequence[float]) -> Tensor:
    """Return how unusual scores are: their distance from the median in units of that of the most extreme 5%.

    Args:
        name: name of the score; one of `TWO_SIDED` counts on both sides.
        scores: N scores.
        scale: 5% quantile, median and 95% quantile of training images' scores, and further numbers.

    Returns:
        N numbers; 1 is where the most extreme 5% of the training images begin.
    """
    low, median, high = scale[:3]
    distance = scores - median
    tiny = 1e-9 * max(abs(median), 1e-9)
    above = distance / max(high - median, tiny)
    return torch.maximum(above, -distance / max(median - low, tiny)) if name in TWO_SIDED else above


def combine(ratios: Mapping[str, Tensor], *, summed: bool = False) -> Tensor:
    """Return "combined" by the ratios of the scores that it is made of.

    Args:
        ratios: ratio of each score (N each), by the score's name.
        summed: whether scores that are not in `ADDED` are added up beside those that are; else the largest counts.

    Returns:
        N numbers.
    """
    rest, terms = dict(ratios), list[Tensor]()
    for group in ADDED:
        if found := [rest.pop(name) for name in group if name in rest]:
            terms.append(torch.stack(found).amax(0))
    others = list(rest.values())
    if not terms:
        return torch.stack(others).amax(0)
    if others:
        terms += map(damped, others if summed else [torch.stack(others).amax(0)])
    return torch.stack(terms).sum(0)


def damped(ratio: Tensor) -> Tensor:
    """Return sqrt(1 + ratio) - 1 (N), and the same with the other sign below 0: about half of it near 0.

    >>> damped(torch.tensor([-8.0, 0.0, 3.0, 99.0]))
    tensor([-2.,  0.,  1.,  9.])
    """
    return ratio.sign() * ((1 + ratio.abs()).sqrt() - 1)


def typicality(x: Pass) -> Tensor:
    """Return |bpd - mean bpd of the training images| (N): Nalisnick et al. (2019), with batches of one image.

    "Detecting out-of-distribution inputs to deep generative models using typicality", equation 6; the ELBO
    stands in for the likelihood.
    """
    return (x.score("bpd") - x.scale("bpd")[3]).abs()


def batch_typicality(bpd: ArrayLike, references: References, center: float | None = None) -> float:
    """Return |mean bpd of a batch - mean bpd of the training images|: typicality of M images together.

    Args:
        bpd: bits per dimension of each image of the batch (M).
        references: statistics of the training images.
        center: mean bpd that stands in for that of the training images; None for theirs.

    Returns:
        The distance in bits per dimension.

    Raises:
        ValueError: if the batch is empty.
    """
    values = np.asarray(bpd, np.float64)
    if not values.size:
        raise ValueError("an empty batch has no typicality")
    return float(abs(values.mean() - (references.scales["bpd"][3] if center is None else center)))


def batch_typicality_threshold(
    held_out_bpd: ArrayLike,
    batch_bpd: ArrayLike,
    references: References,
    target_fpr: float = 0.01,
    *,
    center: float | None = None,
    repeats: int = 2000,
    generator: np.random.Generator | None = None,
) -> float:
    """Return the `batch_typicality` that a batch of inliers exceeds with a probability of at most `target_fpr`.

    It is a quantile over batches of the same size that are drawn without replacement from the held-out inliers and the
    batch together, a permutation test: if all are inliers, the batch is as good as drawn so itself. So the rate holds
    for every number of held-out inliers and every distribution, on average over held-out sets and batches. The
    bootstrap of Nalisnick et al. (2019, section 3.1) takes the held-out inliers for the distribution itself, and alarms
    too often where they are few.

    Args:
        held_out_bpd: bits per dimension of inliers that were not trained on.
        batch_bpd: bits per dimension of the batch.
        references: statistics of the training images.
        target_fpr: rate of false alarms, above 0 and below 1.
        center: as for `batch_typicality`; it may depend on the held-out inliers and the batch together.
        repeats: number of batches that are drawn.
        generator: random generator that draws the batches; one seeded with 0 if left out.

    Returns:
        The threshold in bits per dimension; infinite where `repeats` is too few for the rate.

    Raises:
        ValueError: if the rate is out of range, or there are no scores.
    """
    held_out, batch = np.asarray(held_out_bpd, np.float64), np.asarray(batch_bpd, np.float64)
    check_rate("target_fpr", target_fpr)
    if not held_out.size or not batch.size:
        raise ValueError("a threshold needs held-out scores, and batches of at least 1 image")
    draw = generator or np.random.default_rng(0)
    values, rank = np.concatenate([held_out, batch]), average_rank(repeats, target_fpr)
    if not rank:
        return math.inf
    rows = (draw.choice(len(values), len(batch), replace=False, shuffle=False) for _ in range(repeats))
    means = np.array([values[chosen].mean() for chosen in rows])
    usual = references.scales["bpd"][3] if center is None else center
    return float(np.sort(np.abs(means - usual))[-rank])
