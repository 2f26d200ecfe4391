"""Thresholds and bounds that hold with a stated confidence. Needs NumPy and SciPy only.

A conformal p-value is valid on average over held-out sets. The statements here hold for the held-out set at hand, with
a probability, the confidence, that is taken over the draw of that set. They rest on one fact: for independent inliers
with a continuous score, the probability that a fresh one lies above the k-th largest of n held-out scores has the
distribution Beta(k, n + 1 - k), whatever the score (Vovk, "Conditional validity of inductive conformal predictors",
2012, proposition 2a; Bates et al., "Testing for outliers with conformal p-values", 2023, section 3). Ties between
scores make that probability smaller only, since an alarm takes a score strictly above the threshold.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from numbers import Real

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import betainc, betaincc, betainccinv, betaincinv, gammaln

Floats = NDArray[np.float64]

CONFIDENCE = 0.95
"""The confidence of bounds where nobody asks for another."""
SIMULATIONS = 4_000
"""Draws behind a simultaneous bound. The bound counts them, so that it holds exactly for any number of them."""
MOST_CONFIDENT = 0.9999
"""The largest confidence of a simultaneous bound; the draws that it takes grow without limit."""
_DENSE = 24
_GRID = 1.2
"""Simultaneous bounds look at every one of the first cuts, and then at cuts that are further apart by this factor."""


@dataclass(frozen=True)
class Bounds:
    """An interval for a rate of false alarms.

    Attributes:
        rate: share of the held-out inliers above the threshold.
        low: lower bound; the true rate lies below it with a probability of at most 1 - confidence.
        high: upper bound; the true rate lies above it with a probability of at most 1 - confidence.
        confidence: confidence of each bound by itself; both hold together with at least 2 confidence - 1.
        held_out: number of inliers that the bounds rest on.
    """

    rate: float
    low: float
    high: float
    confidence: float
    held_out: int


def certified_rank(held_out: int, target_fpr: float, confidence: float = CONFIDENCE) -> int:
    """Return the largest k for which the k-th largest held-out score is a threshold with a certificate.

    P(rate of false alarms <= target_fpr) = I(target_fpr; k, n + 1 - k), the distribution function of
    Beta(k, n + 1 - k), falls as k grows; k is the last at which it is at least `confidence`.

    Args:
        held_out: number n of held-out inliers.
        target_fpr: rate of false alarms to certify, above 0 and below 1.
        confidence: probability over held-out sets, above 0 and below 1.

    Returns:
        k, from 1 to n.

    Raises:
        ValueError: if an argument is out of range, or n is too small; the message gives the least n.

    >>> certified_rank(299, target_fpr=0.01, confidence=0.95)
    1
    """
    _check_rates(target_fpr, confidence)
    ranks = np.arange(1, held_out + 1)
    certain = betainc(ranks, held_out + 1 - ranks, target_fpr) >= confidence - 1e-12 if held_out else np.zeros(0, bool)
    if not certain.any():
        raise ValueError(
            f"target_fpr {target_fpr:g} with confidence {confidence:g} needs at least"
            f" {least_certified(target_fpr, confidence)} held-out inliers, there are {held_out}: hold out more, give"
            " more data, or ask for a higher rate or a lower confidence"
        )
    return int(certain.sum())


def least_certified(target_fpr: float, confidence: float = CONFIDENCE) -> int:
    """Return how many held-out inliers a certified rate takes: the smallest n with 1 - (1 - rate)^n >= confidence.

    Args:
        target_fpr: rate of false alarms to certify, above 0 and below 1.
        confidence: probability over held-out sets, above 0 and below 1.

    Returns:
        n, such as 299 for a rate of 1% at 95%.

    Raises:
        ValueError: if an argument is out of range.

    >>> least_certified(0.01, confidence=0.95)
    299
    """
    _check_rates(target_fpr, confidence)
    return math.ceil(math.log1p(-confidence) / math.log1p(-target_fpr) - 1e-9)


def certified_threshold(held_out: ArrayLike, target_fpr: float, confidence: float = CONFIDENCE) -> float:
    """Return the threshold above which fresh inliers fall at a rate of at most `target_fpr`, with this confidence.

    Args:
        held_out: n scores of held-out inliers, larger meaning more out-of-distribution.
        target_fpr: rate of false alarms to certify, above 0 and below 1.
        confidence: probability over held-out sets, above 0 and below 1.

    Returns:
        The k-th largest held-out score, k by `certified_rank`; an alarm is a score strictly above it.

    Raises:
        ValueError: if a rate or confidence is out of range, there are too few scores, or a score is not a number.
    """
    scores = np.sort(_numbers(held_out))
    return float(scores[-certified_rank(len(scores), target_fpr, confidence)])


def fpr_bounds(
    held_out: ArrayLike, threshold: float, confidence: float = CONFIDENCE, rank: int | None = None
) -> Bounds:
    """Return bounds on the rate of false alarms of a threshold that is already set.

    The number x of n held-out inliers above a threshold that does not depend on them is binomial, and the bounds are
    Clopper and Pearson's (1934): quantiles of Beta(x + 1, n - x) and Beta(x, n + 1 - x). They also hold where the
    threshold is the k-th largest of the same held-out scores and k was fixed beforehand, as by `certified_rank` or by
    a target rate: the upper bound is then the quantile of Beta(k, n + 1 - k). Unless scores are equal, x is k - 1, and
    the two are one. They do not hold for a threshold that was chosen by looking at the held-out scores in another way:
    see `simultaneous_fpr_bounds`.

    Args:
        held_out: n scores of held-out inliers.
        threshold: decision threshold; an alarm is a score strictly above it.
        confidence: confidence of each bound, above 0 and below 1.
        rank: k, if the threshold is the k-th largest held-out score. None if it is not, or k is not known: the upper
            bound then takes the largest k that it may be, which differs if several scores equal the threshold.

    Returns:
        The share of held-out inliers above the threshold, with its lower and upper bound.

    Raises:
        ValueError: if an argument is out of range, or there is no score.
    """
    check_rate("confidence", confidence)
    scores = _numbers(held_out)
    count = len(scores)
    if not count:
        raise ValueError("bounds need at least one held-out inlier")
    above = int((scores > threshold).sum())
    low = float(betaincinv(above, count + 1 - above, 1 - confidence)) if above else 0.0
    # With equal scores fewer may lie above the k-th largest than k - 1, and how many depends on where it fell.
    most = max(above, (int((scores >= threshold).sum()) if rank is None else rank) - 1)
    high = float(betaincinv(most + 1, count - most, confidence)) if most < count else 1.0
    return Bounds(above / count, low, high, confidence, count)


@lru_cache(maxsize=16)
def simultaneous_fpr_bounds(held_out: int, confidence: float = CONFIDENCE) -> Floats:
    """Return upper bounds on the false-alarm rates of all n thresholds at once, for a choice made afterwards.

    With probability `confidence`, every fresh-inlier rate above the k-th largest held-out score is at most the k-th
    value. Each is the quantile of its Beta(k, n + 1 - k) at one common level, which is set by simulating the joint
    distribution of the rates: that of the order statistics of n uniform numbers. Bates et al. (2023, section 3.2)
    call p-values that are adjusted so calibration-conditional: given the held-out set, they are independent and
    larger than uniform ones.

    Args:
        held_out: number n of held-out inliers, at least 1.
        confidence: probability that all bounds hold, above 0 and at most `MOST_CONFIDENT`.

    Returns:
        n upper bounds, ascending; the k-th belongs to the k-th largest held-out score.

    Raises:
        ValueError: if an argument is out of range.
    """
    check_rate("confidence", confidence)
    if held_out < 1:
        raise ValueError("bounds need at least one held-out inlier")
    cuts = _cuts(held_out)
    rates = _drawn_rates(cuts, held_out, confidence, np.random.default_rng(0))
    # The chance that the rate above this cut is at least what was drawn.
    level = _level(betaincc(cuts, held_out + 1 - cuts, rates), confidence)
    bounds = betainccinv(cuts, held_out + 1 - cuts, level)
    result = np.asarray(bounds[np.searchsorted(cuts, np.arange(1, held_out + 1))], np.float64)
    result.flags.writeable = False  # later calls get the same array
    return result


def conditional_p_values(held_out: ArrayLike, scores: ArrayLike, confidence: float = CONFIDENCE) -> Floats:
    """Return p-values that hold, with `confidence`, for the held-out set at hand (Bates et al. 2023, theorem 3).

    With that probability over the held-out set, P(p <= a | held-out set) <= a for every a, and p-values of different
    images are independent given that set, as procedures that look at one image after another require.

    Args:
        held_out: n scores of held-out inliers.
        scores: m scores to judge.
        confidence: probability over held-out sets, above 0 and at most `MOST_CONFIDENT`.

    Returns:
        m values; the smallest possible is the bound of the first threshold, and 1 is the value of a score that no
        held-out score is below.

    Raises:
        ValueError: if there are no held-out scores, one of all scores is not a number, or the confidence is out of
            range.
    """
    ordered = np.sort(_numbers(held_out))
    bounds = np.append(simultaneous_fpr_bounds(len(ordered), confidence), 1.0)
    at_least = len(ordered) - np.searchsorted(ordered, _numbers(scores), side="left")
    return np.asarray(bounds[at_least], np.float64)


def false_discovery_bounds(held_out: ArrayLike, scores: ArrayLike, confidence: float = CONFIDENCE) -> Floats:
    """Return upper bounds on the share of inliers among what is called an outlier, for every cut of a batch at once.

    With probability `confidence` over the held-out set and the batch together: whichever score s of the batch is
    taken as the cut, also after seeing all of them, the share of inliers among the images with scores of at least s
    is at most the bound. The number of a batch's inliers at or above the k-th largest held-out score is beta-binomial
    at most, whatever the score; the bounds of all k share one level, which is set by simulation of their joint
    distribution (the idea of Gazin, Blanchard and Roquain, "Transductive conformal inference with adaptive scores",
    2024, with beta-binomial in place of uniform bands). Bounds between cuts follow by counting: a cut that calls r
    more calls at most r more inliers.

    Args:
        held_out: n scores of held-out inliers, independent of the batch.
        scores: m scores of a batch, of which any part may be outliers.
        confidence: probability that all bounds hold, above 0 and at most `MOST_CONFIDENT`.

    Returns:
        m bounds within [0, 1], in the order of the scores: the bound for calling everything that scores at least as
        high.

    Raises:
        ValueError: if an argument is out of range, or a score is not a number.
    """
    check_rate("confidence", confidence)
    ordered, batch = np.sort(_numbers(held_out)), _numbers(scores)
    if not len(ordered):
        raise ValueError("bounds need at least one held-out inlier")
    if not len(batch):
        return np.zeros(0)
    levels, inverse, counts = np.unique(-batch, return_inverse=True, return_counts=True)  # the most extreme first
    called = np.cumsum(counts)
    # What scores at least s lies strictly above the first held-out score, from the top, that is below s.
    cut = len(ordered) - np.searchsorted(ordered, -levels, side="left")
    inliers = np.append(false_alarm_counts(len(ordered), len(batch), confidence), len(batch))[cut]
    inliers = np.minimum(np.minimum.accumulate(np.minimum(inliers - called, 0)) + called, len(batch))
    inliers = np.minimum.accumulate(inliers[::-1])[::-1]
    return np.asarray((inliers / called)[inverse], np.float64)


@lru_cache(maxsize=16)
def false_alarm_counts(held_out: int, batch: int, confidence: float = CONFIDENCE) -> NDArray[np.int64]:
    """Return how many of a batch's inliers lie above each held-out score at most, all bounds holding at once.

    Args:
        held_out: number n of held-out inliers, at least 1.
        batch: number m of images in the batch; fewer inliers among them are fewer alarms.
        confidence: probability that all bounds hold, above 0 and at most `MOST_CONFIDENT`.

    Returns:
        n counts, ascending; the k-th belongs to the k-th largest held-out score.

    Raises:
        ValueError: if the confidence is out of range.
    """
    random = np.random.default_rng(0)
    cuts = _cuts(held_out)
    rates = _drawn_rates(cuts, held_out, confidence, random)
    chances = np.empty_like(rates)
    tables = []
    above, passed = np.zeros(len(rates), np.int64), np.zeros(len(rates))
    for index, cut in enumerate(cuts):
        share = np.clip((rates[:, index] - passed) / np.maximum(1 - passed, 1e-300), 0, 1)
        above = above + random.binomial(batch - above, share)
        passed = rates[:, index]
        tables.append(_beta_binomial_tail(batch, int(cut), held_out + 1 - int(cut)))
        chances[:, index] = tables[-1][above]
    level = _level(chances, confidence)
    most = np.array([int((table >= level).sum()) - 1 for table in tables])
    result = most[np.searchsorted(cuts, np.arange(1, held_out + 1))]
    result.flags.writeable = False  # later calls get the same array
    return result


def _beta_binomial_tail(trials: int, a: int, b: int) -> Floats:
    """Return P(X >= x) for x = 0, ..., `trials`, of X ~ BetaBinomial(trials, a, b)."""
    x = np.arange(trials + 1)
    log = gammaln(x + a) - gammaln(x + 1) + gammaln(trials - x + b) - gammaln(trials - x + 1)
    mass = np.exp(log - log.max())
    return np.asarray(np.cumsum(mass[::-1])[::-1] / mass.sum(), np.float64)


def _cuts(held_out: int) -> NDArray[np.int64]:
    """Return the ranks that a simultaneous bound looks at: all of the first, then some; the last is n."""
    cuts = [*range(1, min(_DENSE, held_out) + 1)]
    while cuts[-1] < held_out:
        cuts.append(min(math.ceil(cuts[-1] * _GRID), held_out))
    return np.array(cuts)


def _drawn_rates(cuts: NDArray[np.int64], held_out: int, confidence: float, random: np.random.Generator) -> Floats:
    """Draw the rates above the held-out scores of these ranks: order statistics of n uniform numbers."""
    if confidence > MOST_CONFIDENT:
        raise ValueError(f"confidence is {confidence}: bounds for all cuts at once take at most {MOST_CONFIDENT}")
    draws = max(SIMULATIONS, math.ceil(20 / (1 - confidence)))
    steps = np.diff(cuts, prepend=0, append=held_out + 1)
    sums = np.cumsum(random.gamma(steps, size=(draws, len(steps))), axis=1)
    return np.asarray(sums[:, :-1] / sums[:, -1:], np.float64)


def _level(chances: Floats, confidence: float) -> float:
    """Find the level that the smallest chance of a fresh draw lies below with a probability of at most 1 - confidence.

    It is an order statistic of the draws, so that the statement holds for any number of them: the fresh one is as
    likely to take any rank among them as any other.

    Args:
        chances: chance of each draw (rows) at each cut (columns).
        confidence: confidence of the bound.

    Returns:
        The level.
    """
    smallest = np.sort(chances.min(1))
    return float(smallest[math.floor((1 - confidence) * (len(smallest) + 1) + 1e-9) - 1])


def check_rate(name: str, value: object) -> None:
    """Refuse a rate or a confidence that is no number between 0 and 1.

    Args:
        name: name of the argument, with which the message begins.
        value: the rate.

    Raises:
        ValueError: if it is no such number.

    >>> check_rate("fdr", "high")
    Traceback (most recent call last):
    ValueError: fdr is 'high': it must lie between 0 and 1
    """
    if not isinstance(value, Real) or not 0 < float(value) < 1:
        shown = value if isinstance(value, Real) else repr(value)
        raise ValueError(f"{name} is {shown}: it must lie between 0 and 1")


def _check_rates(target_fpr: float, confidence: float) -> None:
    check_rate("target_fpr", target_fpr)
    check_rate("confidence", confidence)


def _numbers(values: ArrayLike) -> Floats:
    array = np.asarray(values, np.float64).reshape(-1)
    if np.isnan(array).any():
        raise ValueError(f"{int(np.isnan(array).sum())} of the scores are not numbers")
    return array
