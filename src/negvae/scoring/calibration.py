"""From scores to decisions: conformal p-values, thresholds and false-discovery control. Needs NumPy only.

Everything rests on scores of inliers that the model was not trained on. Where a new image is one more inlier,
its score is as likely to take any rank among theirs as any other: that alone makes the p-values valid, whatever
the score and however few the inliers (Bates et al., "Testing for outliers with conformal p-values", 2021).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from negvae.scoring.references import References, Values

TARGET_FPR = 0.05
"""The rate of false alarms that thresholds are set for where nobody asks for another."""


def p_values(calibration: ArrayLike, scores: ArrayLike) -> Values:
    """Conformal p-values (Bates et al. 2021, equation 2): (1 + #{calibration >= s}) / (n + 1).

    Under the null "this image is one more inlier", P(p <= a) <= a for every a. The smallest is 1 / (n + 1).

    Args:
        calibration: n scores of held-out inliers, larger = more out-of-distribution.
        scores: m scores to judge.

    Returns:
        m values in (0, 1].

    Raises:
        ValueError: no calibration scores, or scores that are not numbers.
    """
    held_out = _sorted(calibration)
    values = _numbers(scores, "scores")
    at_least = len(held_out) - np.searchsorted(held_out, values, side="left")
    return (1 + at_least) / (len(held_out) + 1)


def fpr_threshold(calibration: ArrayLike, target_fpr: float) -> float:
    """The threshold above which a fresh inlier falls with a probability of at most `target_fpr`.

    It is the k-th largest of the n held-out scores, k = floor(target_fpr (n + 1)): "score > threshold" is the
    same decision as "p-value <= target_fpr", and valid at this n, not only in the limit.

    Args:
        calibration: n scores of held-out inliers.
        target_fpr: false-positive rate, above 0 and below 1.

    Raises:
        ValueError: the rate is out of range, or n is too small to promise it; the message says how many it takes.
    """
    if not 0 < target_fpr < 1:
        raise ValueError(f"target_fpr is {target_fpr}: it must lie between 0 and 1")
    held_out = _sorted(calibration)
    rank = math.floor(target_fpr * (len(held_out) + 1) + 1e-9)
    if rank < 1:
        raise ValueError(
            f"target_fpr {target_fpr:g} needs at least {least_held_out(target_fpr)} held-out inliers, there are"
            f" {len(held_out)}: ask for a higher rate, hold out more, or give more data"
        )
    return float(held_out[-rank])


def least_held_out(target_fpr: float) -> int:
    """How many held-out inliers it takes to promise a rate: p-values go down to 1 / (n + 1) only."""
    return math.ceil(1 / target_fpr - 1e-9) - 1


def contamination_threshold(scores: ArrayLike, contamination: float = 0.0) -> float:
    """The threshold that flags the share `contamination` of `scores`; at 0 it lies just above them all.

    Args:
        scores: of the data that is thought to hold this share of outliers.
        contamination: from 0, clean data, the usual case, up to 0.5.

    Raises:
        ValueError: the share is out of range, or there are no scores.
    """
    if not 0 <= contamination <= 0.5:
        raise ValueError(f"contamination is {contamination}: it must lie between 0 (clean data) and 0.5")
    ordered = _sorted(scores)
    if contamination:
        return float(np.percentile(ordered, 100 * (1 - contamination)))
    # A margin far below any difference that matters keeps rounding from flagging the largest of them.
    highest = ordered[-1]
    return float(highest + 1e-5 * max(highest - np.median(ordered), 1e-3 * abs(highest), 1e-12))


def benjamini_hochberg(p: ArrayLike, fdr: float) -> NDArray[np.bool_]:
    """Which of a batch to call outliers, so that at most the share `fdr` of those called is expected to be inliers.

    Benjamini & Hochberg (1995). Conformal p-values of one calibration set depend on one another, in the way
    under which the procedure still controls the rate (Bates et al. 2021, theorem 2).

    Args:
        p: m p-values.
        fdr: false-discovery rate, above 0 and below 1.

    Returns:
        m decisions.

    Raises:
        ValueError: the rate is out of range, or a value is not a p-value.
    """
    _check_fdr(fdr)
    values = _numbers(p, "p-values")
    if values.size and not (values.min() >= 0 and values.max() <= 1):
        raise ValueError("p-values must lie within 0 and 1")
    levels, counts = np.unique(values, return_counts=True)
    return values <= discovery_level(levels, counts, fdr)


def discovery_level(levels: ArrayLike, counts: ArrayLike, fdr: float) -> float:
    """The Benjamini-Hochberg cut-off, from how often each p-value occurs; -1 where nothing is to be called.

    Conformal p-values take n + 1 levels only, so a stream of any length needs no more memory than this.

    Args:
        levels: distinct p-values, ascending.
        counts: of each.
        fdr: false-discovery rate.
    """
    _check_fdr(fdr)
    values, below = np.asarray(levels, np.float64), np.cumsum(counts)
    if not values.size or not below[-1]:
        return -1.0
    called = values <= fdr * below / below[-1] * (1 + 1e-12)
    return float(values[called][-1]) if called.any() else -1.0


@dataclass(frozen=True)
class Calibration:
    """What held-out inliers score, and the decision drawn from it.

    Attributes:
        scores: n scores of held-out inliers by the score's name, each ascending.
        score: the one by which decisions are taken.
        threshold: an image with a larger score is called an outlier.
        target_fpr: the false-positive rate that the threshold was set for; None where it was set by
            contamination.
        contamination: the share of outliers in the data that the threshold was set for; 0 for clean data.
        reference: statistics of training images, for the scores that are measured against them.
        precision: in which the scores were computed: "float32", "bfloat16" or "int8". Others are to be computed in
            the same: scores of another precision have another distribution, and ranks among these say less.
        rounding: where the scores are of the int8 encoder, the numbers that make it, by name
            (see `negvae.fast.int8.QuantizedEncoder`); None where they are not.
    """

    scores: dict[str, Values]
    score: str
    threshold: float
    target_fpr: float | None = None
    contamination: float = 0.0
    reference: References = field(default_factory=References)
    precision: str = "float32"
    rounding: dict[str, NDArray[Any]] | None = None

    @property
    def size(self) -> int:
        """How many inliers were held out."""
        return len(self.scores[self.score])

    @property
    def false_alarm_rate(self) -> float:
        """The share of fresh inliers that is called outlying: (1 + #{held-out > threshold}) / (n + 1).

        At most this, where the threshold comes from clean data; about this, where it was set by a contamination.
        """
        above = int((self.scores[self.score] > self.threshold).sum())
        return (1 + above) / (self.size + 1)

    def p_values(self, scores: ArrayLike) -> Values:
        """Conformal p-values of decision scores (see the function of this name)."""
        return p_values(self.scores[self.score], scores)

    def is_outlier(self, scores: ArrayLike) -> NDArray[np.bool_]:
        """Which decision scores lie above the threshold."""
        return np.asarray(scores, np.float64) > self.threshold

    def decide_by(self, score: str | None = None, target_fpr: float | None = None) -> Calibration:
        """The same held-out inliers with another decision score or false-positive rate.

        Args:
            score: another of `scores`; None to keep it.
            target_fpr: of the new threshold; None to keep the present rule.

        Raises:
            ValueError: the score was not calibrated, or the rate cannot be promised.
        """
        name = score or self.score
        if name not in self.scores:
            known = ", ".join(self.scores)
            raise ValueError(f"score {name} was not calibrated; calibrated are: {known} (negvae calibrate adds one)")
        if name == self.score and target_fpr is None:
            return self
        rate = self.target_fpr if target_fpr is None else target_fpr
        if rate is None:
            threshold = contamination_threshold(self.scores[name], self.contamination)
        else:
            threshold = fpr_threshold(self.scores[name], rate)
        return replace(
            self,
            score=name,
            threshold=threshold,
            target_fpr=rate,
            contamination=0.0 if rate is not None else self.contamination,
        )

    def describe(self) -> str:
        """One line on the decision: score, threshold, how it was chosen, and what rate follows."""
        rule = f"contamination {self.contamination:g}" if self.target_fpr is None else f"target FPR {self.target_fpr:g}"
        bound = "about" if self.contamination else "at most"
        return (
            f"{self.score} > {self.threshold:.6g} ({rule}; {self.size:,} held-out inliers,"
            f" false alarms {bound} {self.false_alarm_rate:.3g})"
        )


def _check_fdr(fdr: float) -> None:
    if not 0 < fdr < 1:
        raise ValueError(f"fdr is {fdr}: it must lie between 0 and 1")


def _numbers(values: ArrayLike, what: str) -> Values:
    array = np.asarray(values, np.float64).reshape(-1)
    if np.isnan(array).any():
        raise ValueError(f"{int(np.isnan(array).sum())} of the {what} are not numbers")
    return array


def _sorted(values: ArrayLike) -> Values:
    array = np.sort(_numbers(values, "calibration scores"))
    if not array.size:
        raise ValueError("no calibration scores: at least one held-out inlier is needed")
    return array
