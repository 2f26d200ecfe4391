"""Conformal p-values where the inliers of a new place differ from the held-out ones. Needs NumPy and scikit-learn.

Held-out inliers come from P, those of the new place from Q. Where Q has a density ratio w = dQ/dP, weighting the
held-out inliers by w makes the p-values of inliers from Q valid (Tibshirani et al., "Conformal prediction under
covariate shift", 2019, lemma 3; Jin and Candes, "Model-free selective inference under covariate shift via weighted
conformal p-values", 2023). The ratio is known in simulations only. Estimated, it makes the p-values approximate, and
where the new place has inliers unlike any that were held out there is no such ratio at all; `Overlap` says how far the
weights carry.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]

LEAST_EFFECTIVE = 30.0
LARGEST_SHARE = 0.1


@dataclass(frozen=True)
class Overlap:
    """The extent to which weighted held-out inliers represent those of a new place.

    Attributes:
        held_out: number of held-out inliers.
        effective: (sum w)^2 / sum w^2, the number of equally weighted inliers that would be as informative.
        largest_share: share of the largest weight of a held-out inlier in the sum of all weights.
        smallest_p: smallest p-value that a typical inlier of the new place could get: its own weight (the median
            one there) as a share of the sum.
        uncovered: share of the new inliers whose weight lies above those of all held-out ones.
    """

    held_out: int
    effective: float
    largest_share: float
    smallest_p: float
    uncovered: float

    @property
    def holds(self) -> bool:
        """Return whether nothing measured here speaks against the weights."""
        return not self.concerns()

    def concerns(self) -> list[str]:
        """List what speaks against the weights, one line each; empty if nothing does."""
        lines = []
        if self.effective < LEAST_EFFECTIVE:
            lines.append(
                f"the weights leave {self.effective:.1f} effective held-out inliers of {self.held_out:,}: hold out"
                " inliers that are more like those of the new place, or recalibrate with the new ones"
            )
        if self.largest_share > LARGEST_SHARE:
            lines.append(f"one held-out inlier carries {self.largest_share:.0%} of the weight: p-values hang on it")
        if self.uncovered > 0.05:
            lines.append(
                f"{self.uncovered:.0%} of the new inliers are unlike all held-out ones: for them weighted p-values"
                " cannot hold; recalibrate with new inliers"
            )
        return lines


def weighted_p_values(
    held_out: ArrayLike, held_out_weights: ArrayLike, scores: ArrayLike, weights: ArrayLike
) -> Floats:
    """Return weighted conformal p-values: (sum_i w_i 1{s_i >= s} + w) / (sum_i w_i + w).

    With w in proportion to dQ/dP, P(p <= a) <= a for an inlier from Q, ties included; with all weights equal these are
    the p-values of `negvae.scoring.calibration.p_values`.

    Args:
        held_out: n scores of held-out inliers.
        held_out_weights: weight of each held-out inlier, at least 0.
        scores: m scores to judge.
        weights: weight of each image to judge, at least 0.

    Returns:
        m values in [0, 1].

    Raises:
        ValueError: if a score is NaN, a weight is negative or not finite, all held-out weights are 0, or there are not
            as many weights as scores.
    """
    known, known_weights = _pair(held_out, held_out_weights, "held-out scores")
    values, own = _pair(scores, weights, "scores")
    if not known_weights.sum() > 0:
        raise ValueError("all held-out weights are 0: no held-out inlier is like those of the new place")
    order = np.argsort(known, kind="stable")
    # above[i]: the weight of the held-out scores from the i-th on.
    above = np.append(np.cumsum(known_weights[order][::-1])[::-1], 0.0)
    heavier = above[np.searchsorted(known[order], values, side="left")]
    return np.asarray((heavier + own) / (above[0] + own), np.float64)  # the sum in the same order: never above 1


def density_ratio(held_out: ArrayLike, new: ArrayLike) -> Callable[[ArrayLike], Floats]:
    """Estimate dQ/dP by a logistic regression that separates new inliers from held-out ones.

    The estimate is the odds of "new", divided by the ratio of the sample sizes. It is steadier if there are few
    features in comparison with the number of new inliers; the regression is shrunk (ridge), so that uninformative
    features lead to weights near 1. No weight lies outside the range of those of the given inliers.

    Args:
        held_out: n x d features of held-out inliers, such as latent codes or scores.
        new: m x d features of inliers from the new place; they must be inliers, since the weights make typical
            whatever they contain.

    Returns:
        A function from k x d features to k weights.

    Raises:
        ValueError: if the features do not have the same columns, or there are fewer than 10 rows of either.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    old, fresh = (np.asarray(rows, np.float64) for rows in (held_out, new))
    if old.ndim != 2 or fresh.ndim != 2 or old.shape[1] != fresh.shape[1]:
        raise ValueError(f"features of {old.shape} and {fresh.shape}: both must be N x d, with the same d")
    if min(len(old), len(fresh)) < 10:
        raise ValueError(f"{len(old)} held-out and {len(fresh)} new inliers: weights need at least 10 of each")
    model = make_pipeline(StandardScaler(), LogisticRegression(C=1.0, max_iter=1000))
    both = np.concatenate([old, fresh])
    model.fit(both, np.repeat([0, 1], [len(old), len(fresh)]))
    known = model.decision_function(both)
    # Beyond what either place has shown the estimate is a guess that grows without bound: the weight of an image far
    # out would be so large that its p-value were 1, and no outlier would ever be found there.
    low, high = max(float(known.min()), -50.0), min(float(known.max()), 50.0)

    def ratio(features: ArrayLike) -> Floats:
        odds = model.decision_function(np.asarray(features, np.float64))
        return np.asarray(np.exp(np.clip(odds, low, high)) * len(old) / len(fresh), np.float64)

    return ratio


def overlap(held_out_weights: ArrayLike, new_weights: ArrayLike) -> Overlap:
    """Measure how far the weights carry.

    Args:
        held_out_weights: weights of the held-out inliers.
        new_weights: weights of the inliers of the new place.

    Returns:
        The measurements, and what speaks against the weights.
    """
    old, new = (np.asarray(values, np.float64) for values in (held_out_weights, new_weights))
    total = float(old.sum())
    if not total > 0:
        return Overlap(len(old), 0.0, 1.0, 1.0, 1.0)
    typical = float(np.median(new))
    return Overlap(
        len(old),
        total**2 / float(np.square(old).sum()),
        float(old.max()) / total,
        typical / (total + typical),
        float((new > old.max()).mean()),
    )


def _pair(scores: ArrayLike, weights: ArrayLike, what: str) -> tuple[Floats, Floats]:
    values, own = (np.asarray(part, np.float64).reshape(-1) for part in (scores, weights))
    if values.shape != own.shape:
        raise ValueError(f"{len(values)} {what} with {len(own)} weights: each needs one")
    if np.isnan(values).any() or not np.isfinite(own).all() or (own < 0).any():
        raise ValueError(f"{what} must be numbers, and their weights finite and at least 0")
    return values, own
