"""How well a score separates outliers from inliers. The outliers are the positives throughout."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from scipy.stats import beta, norm, rankdata
from sklearn.metrics import average_precision_score

from negvae.scoring.certificates import check_rate
from negvae.scoring.references import Values

FEW, RARE = 50, 3
"""With fewer scores than the first of either set, or where less than the second of min(n, m) pairs are out of order,
DeLong's interval holds the true AUROC less often than it says: what would vary most is missing from the sample."""


@dataclass(frozen=True)
class Detection:
    """Detection quality of one score on one pair of sets.

    Attributes:
        auroc: probability that an outlier scores above an inlier, ties counting one half.
        auroc_ci: 95% confidence interval of the AUROC; see `auroc`.
        aupr_out: average precision with the outliers as positives.
        aupr_in: average precision with the inliers as positives (scores negated).
        fpr_at_95_tpr: share of inliers flagged at a threshold that flags 95% of the outliers.
        inliers: number of inliers.
        outliers: number of outliers.
    """

    auroc: float
    auroc_ci: tuple[float, float]
    aupr_out: float
    aupr_in: float
    fpr_at_95_tpr: float
    inliers: int
    outliers: int

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return {**asdict(self), "auroc_ci": list(self.auroc_ci)}


def detection_metrics(inliers: ArrayLike, outliers: ArrayLike) -> Detection:
    """Compute all metrics of a score, larger meaning more out-of-distribution.

    Args:
        inliers: n scores of inliers.
        outliers: m scores of outliers.

    Returns:
        The metrics of the score on these two sets.

    Raises:
        ValueError: if either set is empty or holds NaN. Infinite scores are accepted: they rank last.
    """
    low, high = _scores(inliers, "inliers"), _scores(outliers, "outliers")
    area, interval = auroc(low, high)
    labels = np.concatenate([np.zeros(len(low)), np.ones(len(high))])
    # Ranks keep the order and the ties, and let infinite scores through.
    ranks = rankdata(np.concatenate([low, high]))
    return Detection(
        auroc=area,
        auroc_ci=interval,
        aupr_out=float(average_precision_score(labels, ranks)),
        aupr_in=float(average_precision_score(1 - labels, -ranks)),
        fpr_at_95_tpr=fpr_at_tpr(low, high),
        inliers=len(low),
        outliers=len(high),
    )


def auroc(inliers: ArrayLike, outliers: ArrayLike, level: float = 0.95) -> tuple[float, tuple[float, float]]:
    """Compute the exact AUROC and its interval by DeLong et al. (1988), on the logit scale.

    If the sets separate perfectly, or all scores are equal, DeLong's variance is zero, whatever the sample size. It
    often comes out too small from fewer than 50 scores of either set, or where so few are out of order that less than
    3 of min(n, m) pairs would be. The interval then is the exact binomial one (Clopper and Pearson) for min(n, m)
    independent pairs of which this share is in order, which is valid though wide.

    Args:
        inliers: n scores of inliers.
        outliers: m scores of outliers.
        level: confidence level of the interval, above 0 and below 1.

    Returns:
        The area, and the interval's two ends.

    Raises:
        ValueError: if either set is empty or holds NaN, or the level is out of range.
    """
    check_rate("level", level)
    low, high = _scores(inliers, "inliers"), _scores(outliers, "outliers")
    n, m = len(low), len(high)
    ranks = rankdata(np.concatenate([low, high]))
    # Placements: for each score, the share of the other set that it beats.
    of_outliers = (ranks[n:] - rankdata(high)) / n
    of_inliers = 1 - (ranks[:n] - rankdata(low)) / m
    area = float(of_outliers.mean())
    pairs = min(n, m)
    disordered = min(area, 1 - area) * pairs
    if pairs < FEW or disordered < RARE or np.ptp(of_outliers) == np.ptp(of_inliers) == 0:
        below, above = area * pairs, (1 - area) * pairs
        low_end = float(beta.ppf((1 - level) / 2, below, above + 1)) if below else 0.0
        high_end = float(beta.ppf((1 + level) / 2, below + 1, above)) if above else 1.0
        return area, (low_end, high_end)
    variance = sum(float(np.var(p, ddof=1)) / len(p) for p in (of_outliers, of_inliers))
    half = norm.ppf((1 + level) / 2) * math.sqrt(variance) / (area * (1 - area))
    center = math.log(area / (1 - area))
    low_end, high_end = (_logistic(center + sign * half) for sign in (-1, 1))
    return area, (low_end, high_end)


def fpr_at_tpr(inliers: ArrayLike, outliers: ArrayLike, tpr: float = 0.95) -> float:
    """Return the share of inliers at or above the highest threshold that flags at least `tpr` of the outliers.

    Args:
        inliers: n scores of inliers.
        outliers: m scores of outliers.
        tpr: true-positive rate, above 0 and at most 1.

    Returns:
        The false-positive rate.

    Raises:
        ValueError: if either set is empty or holds NaN, or the rate is out of range.

    >>> fpr_at_tpr([0.0, 1.0, 2.0, 3.0], [2.5, 4.0], tpr=1.0)
    0.25
    """
    if not 0 < tpr <= 1:
        raise ValueError(f"tpr is {tpr}: it must lie above 0, and be at most 1")
    low, high = _scores(inliers, "inliers"), _scores(outliers, "outliers")
    rank = max(math.ceil(tpr * len(high) - 1e-9), 1)  # 0.55 * 100 is above 55 in floating point
    threshold = np.sort(high)[::-1][rank - 1]
    return float((low >= threshold).mean())


def roc_curve(inliers: ArrayLike, outliers: ArrayLike) -> tuple[Values, Values]:
    """Return false-positive and true-positive rates from (0, 0) to (1, 1), one point for each distinct score."""
    low, high = _scores(inliers, "inliers"), _scores(outliers, "outliers")
    thresholds = np.unique(np.concatenate([low, high]))[::-1]
    rates = [(len(s) - np.searchsorted(np.sort(s), thresholds, side="left")) / len(s) for s in (low, high)]
    return np.concatenate([[0.0], rates[0]]), np.concatenate([[0.0], rates[1]])


def _logistic(x: float) -> float:
    return 1 / (1 + math.exp(-x)) if x >= 0 else math.exp(x) / (1 + math.exp(x))


def _scores(values: ArrayLike, what: str) -> Values:
    array = np.asarray(values, np.float64).reshape(-1)
    if not array.size:
        raise ValueError(f"no scores of {what}: at least one is needed")
    if np.isnan(array).any():
        raise ValueError(f"{int(np.isnan(array).sum())} scores of {what} are not numbers")
    return array
