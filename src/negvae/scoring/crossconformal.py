"""P-values from K fits, each of which leaves out a part: no inlier is only held out. Needs NumPy only.

Every inlier is scored by the one model that it was not trained on, and a new image by all K models. What is promised,
for a fit that treats its training data alike in any order:

- `cross_p_values`: P(p <= a) <= 2 a + min(2 (1 - a) (K - 1) / (n + K), (1 - K / n) / (K + 1)) (Vovk et al.,
  "Cross-conformal predictive distributions", 2018; Barber et al., "Predictive inference with the jackknife+", 2021,
  theorem 4, whose proof compares scores only, and takes folds of one size: the second term counts only where K divides
  n). With K = n, the jackknife+, that is 2 a. In practice the rate is near a:
  the factor 2 is for models that change much when a few inliers are left out.
- `twice_mean_p_values`: P(p <= a) <= a, always. Each fold's own p-values are valid, and twice the mean of valid
  p-values is one, however they depend on one another (Vovk and Wang, "Combining p-values via averaging", 2020).
"""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Integral

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]


def fold_numbers(count: int, folds: int, seed: int = 0) -> NDArray[np.int64]:
    """Return the fold of each of `count` inliers, drawn at random; the folds' sizes differ by 1 at most.

    Args:
        count: number of inliers.
        folds: number K of folds, from 2 to `count`; K = `count` leaves one inlier out at a time.
        seed: seed of the assignment; the same seed gives the same folds.

    Returns:
        `count` numbers from 0 to K - 1.

    Raises:
        ValueError: if the number of folds is out of range.
    """
    if not isinstance(folds, Integral) or not 2 <= folds <= count:
        raise ValueError(f"folds is {folds!r}: it must be a whole number from 2 to the number of inliers, {count}")
    return np.asarray(np.random.default_rng(seed).permutation(np.arange(count) % folds), np.int64)


def cross_p_values(held_out: Sequence[ArrayLike], scores: ArrayLike) -> Floats:
    """Return cross-conformal p-values: (1 + sum over folds of #{scores held out there >= s}) / (n + 1).

    Args:
        held_out: for each of K folds, the scores of its inliers by the model that was not trained on them.
        scores: scores of m new images by each of these models, K x m.

    Returns:
        m values in (0, 1]; the module's docstring states their guarantee.

    Raises:
        ValueError: if the numbers of folds differ, or a fold is empty.

    >>> cross_p_values([[1.0, 2.0], [1.5]], [[1.8], [1.8]]).tolist()
    [0.5]
    """
    counts, sizes = _counts(held_out, scores)
    return np.asarray((1 + counts.sum(0)) / (sizes.sum() + 1), np.float64)


def twice_mean_p_values(held_out: Sequence[ArrayLike], scores: ArrayLike) -> Floats:
    """Return twice the mean of the folds' own p-values, at most 1; the arguments are those of `cross_p_values`."""
    counts, sizes = _counts(held_out, scores)
    # Rounded, so that 2 / 40 computed in parts is no larger than a level of 0.05.
    return np.asarray(np.round(np.minimum(2 * ((1 + counts) / (sizes + 1)[:, None]).mean(0), 1.0), 12), np.float64)


def cross_bound(level: float, inliers: int, folds: int) -> float:
    """Return the upper bound of P(p <= level) of `cross_p_values`, for n inliers in K folds.

    The smaller one of two bounds holds, of which the one by comparing inliers takes folds of equal size.
    """
    averaging = 2 * (1 - level) * (folds - 1) / (inliers + folds)
    if inliers % folds:
        return min(2 * level + averaging, 1.0)
    comparing = (1 - folds / inliers) / (folds + 1)
    return min(2 * level + min(averaging, comparing), 1.0)


def _counts(held_out: Sequence[ArrayLike], scores: ArrayLike) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Count the inliers of each fold that score at least as high as each image (K x m), and each fold's inliers (K)."""
    values = np.asarray(scores, np.float64)
    folds = [np.sort(np.asarray(fold, np.float64)) for fold in held_out]
    if values.ndim != 2 or len(values) != len(folds):
        raise ValueError(f"scores of shape {values.shape} for {len(folds)} folds: they must be folds x images")
    if not all(len(fold) for fold in folds):
        raise ValueError("a fold is empty: every model needs inliers that it was not trained on")
    counts = [len(fold) - np.searchsorted(fold, row, side="left") for fold, row in zip(folds, values, strict=True)]
    return np.array(counts), np.array([len(fold) for fold in folds])
