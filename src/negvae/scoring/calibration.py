"""From scores to decisions: conformal p-values, thresholds and false-discovery control. Needs NumPy and SciPy only.

Everything rests on scores of inliers that the model was not trained on. Where a new image is one more inlier,
its score is as likely to take any rank among theirs as any other: that alone makes the p-values valid, whatever
the score and however few the inliers (Bates et al., "Testing for outliers with conformal p-values", 2023).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from numbers import Real
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from negvae.messages import counted
from negvae.scoring.certificates import (
    CONFIDENCE,
    Bounds,
    certified_rank,
    certified_threshold,
    check_rate,
    fpr_bounds,
    least_certified,
)
from negvae.scoring.groups import group_thresholds, largest_by_group, threshold_of
from negvae.scoring.references import References, Values

TARGET_FPR = 0.05
"""The rate of false alarms that thresholds are set for where nobody asks for another."""


def p_values(calibration: ArrayLike, scores: ArrayLike) -> Values:
    """Return conformal p-values (Bates et al. 2023, equation 2): (1 + #{calibration >= s}) / (n + 1).

    Under the null "this image is one more inlier", P(p <= a) <= a for every a. The smallest is 1 / (n + 1).

    Args:
        calibration: n scores of held-out inliers, larger meaning more out-of-distribution.
        scores: m scores to judge.

    Returns:
        m values in (0, 1].

    Raises:
        ValueError: if there are no calibration scores, or a score is not a number.

    >>> p_values([1.0, 2.0, 3.0], [2.5, 4.0]).tolist()
    [0.5, 0.25]
    """
    held_out = _sorted(calibration)
    values = _numbers(scores, "scores")
    at_least = len(held_out) - np.searchsorted(held_out, values, side="left")
    return (1 + at_least) / (len(held_out) + 1)


def fpr_threshold(calibration: ArrayLike, target_fpr: float) -> float:
    """Return the threshold above which a fresh inlier falls with a probability of at most `target_fpr`.

    It is the k-th largest of the n held-out scores, k = floor(target_fpr (n + 1)): "score > threshold" is the
    same decision as "p-value <= target_fpr", and valid at this n, not only in the limit.

    Args:
        calibration: n scores of held-out inliers.
        target_fpr: false-positive rate, above 0 and below 1.

    Returns:
        The threshold; only a score strictly above it is called an outlier.

    Raises:
        ValueError: if the rate is out of range, or n is too small to guarantee it; the message gives the least n.

    >>> fpr_threshold(range(99), target_fpr=0.05)
    94.0
    """
    check_rate("target_fpr", target_fpr)
    held_out = _sorted(calibration)
    rank = average_rank(len(held_out), target_fpr)
    if rank < 1:
        raise ValueError(
            f"target_fpr {target_fpr:g} needs at least {least_held_out(target_fpr)} held-out inliers, there are"
            f" {len(held_out)}: ask for a higher rate, hold out more, or give more data"
        )
    return float(held_out[-rank])


def average_rank(held_out: int, target_fpr: float) -> int:
    """Return the k for which the k-th largest held-out score is the threshold of a rate that holds on average.

    >>> average_rank(99, 0.29)  # 0.29 * 100 is below 29 in floating point
    29
    """
    return min(math.floor(target_fpr * (held_out + 1) + 1e-9), held_out)


def least_held_out(target_fpr: float) -> int:
    """Return how many held-out inliers a guaranteed rate takes: p-values go down to 1 / (n + 1) only.

    >>> least_held_out(0.01)
    99
    """
    return math.ceil(1 / target_fpr - 1e-9) - 1


def contamination_threshold(scores: ArrayLike, contamination: float = 0.0) -> float:
    """Return the threshold that flags the share `contamination` of `scores`; at 0 it lies just above them all.

    Args:
        scores: scores of the data that is thought to hold this share of outliers.
        contamination: share of outliers, from 0 (clean data, the usual case) to 0.5.

    Returns:
        The threshold; only a score strictly above it is called an outlier.

    Raises:
        ValueError: if the share is out of range, or there are no scores.
    """
    if not 0 <= contamination <= 0.5:
        raise ValueError(f"contamination is {contamination}: it must lie between 0 (clean data) and 0.5")
    ordered = _sorted(scores)
    if contamination:
        # Nothing lies halfway to an infinite score; the lower of its two neighbors flags the same scores.
        method: Literal["linear", "lower"] = "linear" if np.isfinite(ordered).all() else "lower"
        return float(np.percentile(ordered, 100 * (1 - contamination), method=method))
    highest = ordered[-1]
    if np.isinf(highest):
        return float(highest)
    # A margin far below any difference that matters keeps rounding from flagging the largest of them.
    return float(highest + 1e-5 * max(highest - np.median(ordered), 1e-3 * abs(highest), 1e-12))


def benjamini_hochberg(p: ArrayLike, fdr: float) -> NDArray[np.bool_]:
    """Decide which of a batch to call outliers, with an expected share of inliers among them of at most `fdr`.

    Benjamini & Hochberg (1995). Conformal p-values of one calibration set depend on one another, in the way
    under which the procedure still controls the rate (Bates et al. 2023, theorem 2).

    Args:
        p: m p-values.
        fdr: false-discovery rate, above 0 and below 1.

    Returns:
        m decisions.

    Raises:
        ValueError: if the rate is out of range, or a value is not a p-value.

    >>> benjamini_hochberg([0.01, 0.5], fdr=0.05).tolist()
    [True, False]
    """
    check_rate("fdr", fdr)
    values = _numbers(p, "p-values")
    if values.size and not (values.min() >= 0 and values.max() <= 1):
        raise ValueError("p-values must lie within 0 and 1")
    levels, counts = np.unique(values, return_counts=True)
    return values <= discovery_level(levels, counts, fdr)


def discovery_level(levels: ArrayLike, counts: ArrayLike, fdr: float) -> float:
    """Return the Benjamini-Hochberg cut-off, from how often each p-value occurs; -1 if nothing is to be called.

    Conformal p-values take n + 1 levels only, so a stream of any length needs no more memory than this.

    Args:
        levels: distinct p-values, ascending.
        counts: number of occurrences of each level.
        fdr: false-discovery rate, above 0 and below 1.

    Returns:
        The largest p-value that is called an outlier, or -1.

    Raises:
        ValueError: if the rate is out of range.
    """
    check_rate("fdr", fdr)
    values, below = np.asarray(levels, np.float64), np.cumsum(counts)
    if not values.size or not below[-1]:
        return -1.0
    called = values <= fdr * below / below[-1] * (1 + 1e-12)
    return float(values[called][-1]) if called.any() else -1.0


@dataclass(frozen=True)
class Calibration:
    """Scores of held-out inliers, and the decision drawn from them.

    Attributes:
        scores: n scores of held-out inliers by the score's name, each ascending.
        score: name of the score by which decisions are taken.
        threshold: decision threshold; an image with a larger score is called an outlier.
        target_fpr: false-positive rate that the threshold was set for; None if it was set by a contamination.
        contamination: share of outliers in the data that the threshold was set for; 0 for clean data.
        reference: statistics of training images, for the scores that are measured against them.
        precision: precision in which the scores were computed: "float32", "bfloat16" or "int8". New scores must be
            computed in the same: scores of another precision have another distribution, and their ranks among these
            mean less.
        rounding: arrays that define the networks in int8, by name (see `negvae.fast.int8_decoder.QuantizedNetworks`);
            None if the scores are of another precision.
        confidence: confidence with which the threshold's rate is at most `target_fpr` (see
            `negvae.scoring.certificates`); None if the rate holds on average over held-out sets.
        groups: for inliers in groups, such as products: by the score's name, the scores of each group's held-out
            inliers, each ascending. `scores` holds all groups together.
        thresholds: threshold of each group, by the group's name.
        small: groups that have too few held-out inliers for the rate; their thresholds lie above all of their scores.
        columns: for rows of features: the values of up to 1,000 held-out inliers, each column sorted ascending by
            itself, for `drift` to compare with; None for images.
        tiles: rule of `negvae.scoring.tiles` by which the scores of an image's tiles became one; "" if an image is not
            tiled.
        joined: whether the held-out rows of features are reference rows of the score "neighbors" too. Its p-values are
            valid, but the held-out scores depend on one another (see `negvae.scoring.neighbors`), so that nothing is
            certified.
        trimmed: share of the least usual data that was left out before inliers were held out. Held-out inliers are then
            more usual than new ones, so that more of these than stated are called; nothing is certified.
    """

    scores: dict[str, Values]
    score: str
    threshold: float
    target_fpr: float | None = None
    contamination: float = 0.0
    reference: References = field(default_factory=References)
    precision: str = "float32"
    rounding: dict[str, NDArray[Any]] | None = None
    confidence: float | None = None
    groups: dict[str, dict[str, Values]] = field(default_factory=dict)
    thresholds: dict[str, float] = field(default_factory=dict)
    small: tuple[str, ...] = ()
    columns: Values | None = None
    tiles: str = ""
    joined: bool = False
    trimmed: float = 0.0

    def __post_init__(self) -> None:
        """Take numbers of NumPy as Python's, which the files of a folder can hold."""
        for name in ("threshold", "target_fpr", "contamination", "confidence", "trimmed"):
            if (value := getattr(self, name)) is None:
                continue
            if not isinstance(value, Real):
                raise ValueError(f"{name} is {value!r}: it must be a number")
            object.__setattr__(self, name, float(value))

    @property
    def cut(self) -> float:
        """Return the score above which an image of any group is an outlier: the threshold, or the groups' highest."""
        return max(self.thresholds.values(), default=self.threshold)

    @property
    def size(self) -> int:
        """Return the number of held-out inliers."""
        return len(self.scores[self.score])

    @property
    def false_alarm_rate(self) -> float:
        """Return the share of fresh inliers that is called outlying: (1 + #{held-out > threshold}) / (n + 1).

        If the threshold is the k-th largest held-out score, that is k / (n + 1); with equal scores fewer may lie above
        it than k - 1, and k counts. With groups, it is the mean over the held-out inliers of this share within their
        group. The rate is at most this if the data was clean, about this if the threshold comes from a contamination or
        data was left out by `trim`.
        """
        parts = self.groups[self.score].items() if self.thresholds else [("", self.scores[self.score])]
        rates = [
            max(1 + int((scores > self.thresholds.get(name, self.threshold)).sum()), self._rank(len(scores)))
            / (len(scores) + 1)
            for name, scores in parts
        ]
        return float(np.average(rates, weights=[len(scores) for _, scores in parts]))

    @property
    def bounds_rate(self) -> bool:
        """Return whether `false_alarm_rate` is an upper bound on average, and not a rate that is about right."""
        return not (self.contamination or self.trimmed)

    @property
    def uncertified(self) -> str:
        """Return why no rate of false alarms is certified; "" if one is."""
        if self.contamination:
            return "the threshold was set by a share of the data (contamination)"
        if self.trimmed:
            return (
                f"the least usual {self.trimmed:g} of the data were left out (trim) before inliers were held out;"
                " recalibrate on clean inliers that were not in it"
            )
        if self.joined and self.score == "neighbors":
            return (
                "the held-out rows are reference rows too, so that their scores depend on one another; give a"
                " confidence where the model is fitted or calibrated, or calibrate on inliers that were not in the"
                " training data"
            )
        return ""

    def certifiable(self) -> Values:
        """Return the held-out scores that statements with a confidence rest on.

        Returns:
            The scores, ascending.

        Raises:
            ValueError: if none can be made; the message says why.
        """
        if self.uncertified:
            raise ValueError(f"no rate is certified: {self.uncertified}")
        return self.scores[self.score]

    def fpr_bounds(self, confidence: float = CONFIDENCE) -> Bounds:
        """Return bounds on the rate of false alarms of the threshold, or thresholds, as set.

        With groups, each image is decided by the threshold of its group. The bounds are then the lowest and the highest
        of those of the groups, each at a confidence of 1 - (1 - confidence) / number of groups, so that all hold
        together (Bonferroni): they hold for inliers of these groups in any mixture.

        Args:
            confidence: confidence of each bound, above 0 and below 1.

        Returns:
            The share of held-out inliers that are called, with a lower and an upper bound on the true rate.

        Raises:
            ValueError: if the confidence is out of range, or nothing is certified (see `uncertified`).
        """
        check_rate("confidence", confidence)
        scores = self.certifiable()
        if not self.thresholds:
            return fpr_bounds(scores, self.threshold, confidence, self._rank(len(scores)))
        bounds = list(self.group_bounds(1 - (1 - confidence) / len(self.thresholds)).values())
        rate = sum(each.rate * each.held_out for each in bounds) / self.size
        return Bounds(rate, min(each.low for each in bounds), max(each.high for each in bounds), confidence, self.size)

    def group_bounds(self, confidence: float = CONFIDENCE) -> dict[str, Bounds]:
        """Return bounds on the rate of false alarms within each group; each bound has the confidence by itself.

        Args:
            confidence: confidence of each bound, above 0 and below 1.

        Returns:
            The bounds by the group's name; empty without groups.

        Raises:
            ValueError: if nothing is certified (see `uncertified`).
        """
        self.certifiable()
        held_out = self.groups.get(self.score, {})
        return {
            name: fpr_bounds(scores, self.thresholds[name], confidence, self._rank(len(scores)))
            for name, scores in held_out.items()
        }

    def _rank(self, held_out: int) -> int:
        """Return the k for which the rule takes the k-th largest held-out score; 1 where it takes more than any."""
        if self.target_fpr is None or held_out < least_held_out(self.target_fpr):
            return 1
        if self.confidence is None:
            return average_rank(held_out, self.target_fpr)
        if held_out < least_certified(self.target_fpr, self.confidence):
            return 1
        return certified_rank(held_out, self.target_fpr, self.confidence)

    def certificate(self) -> dict[str, Any]:
        """Return what is certified about the rate of false alarms, as plain values for files and services.

        Returns:
            "at_most", the upper bound on the rate of the threshold, which holds with "confidence", and "held_out", the
            number of inliers that it rests on; with groups also "groups", with "threshold", "held_out" and "at_most"
            of each, which hold with the same confidence for each by itself, where the first "at_most" is for all in
            any mixture. Empty if nothing is certified (see `uncertified`).
        """
        if self.uncertified:
            return {}
        confidence = self.confidence or CONFIDENCE
        bounds = self.fpr_bounds(confidence)
        found = {"at_most": bounds.high, "confidence": bounds.confidence, "held_out": bounds.held_out}
        groups = {
            name: {"threshold": self.thresholds[name], "held_out": each.held_out, "at_most": each.high}
            for name, each in self.group_bounds(confidence).items()
        }
        return {**found, "groups": groups} if groups else found

    def p_values(self, scores: ArrayLike, groups: Sequence[str] | None = None) -> Values:
        """Return conformal p-values of decision scores, as the function `p_values` defines them.

        Args:
            scores: m decision scores.
            groups: group of each image, or "" for an image of unknown group, which takes the largest p-value over all
                groups; None if no group is known.

        Returns:
            m values in (0, 1].

        Raises:
            ValueError: if a group was not calibrated.
        """
        if self._by_group(groups):
            return largest_by_group(self.groups[self.score], scores, groups, p_values)
        return p_values(self.scores[self.score], scores)

    def is_outlier(self, scores: ArrayLike, groups: Sequence[str] | None = None) -> NDArray[np.bool_]:
        """Return which decision scores lie above the threshold; the arguments are those of `p_values`."""
        values = np.asarray(scores, np.float64)
        if self._by_group(groups):
            return values > threshold_of(self.thresholds, groups, len(values))
        return values > self.threshold

    def _by_group(self, groups: Sequence[str] | None) -> bool:
        if groups is not None and not self.groups:
            raise ValueError("this model is calibrated without groups: calibrate it with groups, or leave them out")
        return bool(self.groups)

    def threshold_for(self, scores: ArrayLike) -> float:
        """Return the threshold that the calibration's rule draws from the scores of held-out inliers.

        Args:
            scores: n scores of held-out inliers.

        Returns:
            The threshold; only a score strictly above it is called an outlier.

        Raises:
            ValueError: if there are too few scores for the rate.
        """
        if self.target_fpr is None:
            return contamination_threshold(scores, self.contamination)
        if self.confidence is None:
            return fpr_threshold(scores, self.target_fpr)
        return certified_threshold(scores, self.target_fpr, self.confidence)

    def decide_by(
        self, score: str | None = None, target_fpr: float | None = None, confidence: float | None = None
    ) -> Calibration:
        """Return the same held-out inliers with another decision score or false-positive rate.

        Args:
            score: name of another of the calibrated scores; None to keep the present one.
            target_fpr: false-positive rate of the new threshold; None to keep the present rule.
            confidence: confidence with which the rate is to hold; None keeps the present one, unless a rate is given,
                which then holds on average.

        Returns:
            A new calibration; this one is unchanged.

        Raises:
            ValueError: if the score was not calibrated, the rate cannot be guaranteed, a confidence is given without a
                rate, or none can be certified (see `uncertified`).
        """
        name = score or self.score
        if name not in self.scores:
            known = ", ".join(self.scores)
            raise ValueError(f"score {name} was not calibrated; calibrated are: {known} (negvae calibrate adds one)")
        if name == self.score and target_fpr is None and confidence is None:
            return self
        rate = self.target_fpr if target_fpr is None else target_fpr
        if rate is None and confidence is not None:
            raise ValueError("a confidence is that of a rate: give target_fpr with it")
        sure = confidence if target_fpr is not None or confidence is not None else self.confidence
        contamination = 0.0 if rate is not None else self.contamination
        rule = replace(self, score=name, target_fpr=rate, contamination=contamination, confidence=sure)
        if sure is not None:
            rule.certifiable()
        return rule.with_thresholds()

    def with_thresholds(self) -> Calibration:
        """Return the same rule with the thresholds it draws from the held-out scores, for all and for each group."""
        changed = replace(self, threshold=self.threshold_for(self.scores[self.score]))
        return changed.with_groups(self.groups) if self.groups else changed

    def with_groups(self, groups: dict[str, dict[str, Values]]) -> Calibration:
        """Return the same calibration with the scores of each group, by the score's name, and a threshold for each."""
        grouped = replace(self, groups=groups)
        thresholds, small = group_thresholds(groups[self.score], self.threshold_for, contamination_threshold)
        return replace(grouped, thresholds=thresholds, small=small)

    def describe(self) -> str:
        """Describe the decision in one line: score, threshold, how it was chosen, and the rate that follows."""
        sure = "" if self.confidence is None else f" with {self.confidence:.4g} confidence"
        rule = f"contamination {self.contamination:g};" if self.contamination else "above all of"
        if self.target_fpr is not None:
            rule = f"target FPR {self.target_fpr:g}{sure};"
        bound = "at most" if self.bounds_rate else "about"
        by_group = f"; {len(self.thresholds)} groups, each with its own threshold" if self.thresholds else ""
        by_group += f", too small for the rate: {', '.join(self.small)}" if self.small else ""
        return (
            f"{self.score} > {self.cut:.6g} ({rule} {counted(self.size, 'held-out inlier')},"
            f" false alarms {bound} {self.false_alarm_rate:.3g} on average{by_group})"
        )


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
