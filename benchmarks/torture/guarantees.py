"""What is promised with a probability: p-values, thresholds and intervals, by simulation."""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import partial

import numpy as np

from benchmarks.torture.count import Count
from negvae.scoring.calibration import benjamini_hochberg, fpr_threshold, p_values
from negvae.scoring.certificates import certified_threshold, fpr_bounds
from negvae.scoring.crossconformal import cross_bound, cross_p_values, fold_numbers, twice_mean_p_values
from negvae.scoring.martingale import OnlineRanks, TestMartingale
from negvae.scoring.metrics import auroc
from negvae.scoring.weighted import weighted_p_values


def torture(count: Count, times: int) -> None:
    """Draw calibration sets and fresh inliers so many times; the bounds leave five standard errors to chance."""
    for held_out in (19, 60, 99):
        for ties in (False, True):
            for rate in (0.05, 0.1, 0.3):
                kind = f"p-values and thresholds, {held_out} held out{', with ties' if ties else ''}"
                count.trial(kind, rate, partial(valid, times, held_out, ties, rate), 2 * times)
    few = max(times // 10, 50)
    count.trial("false-discovery rate", "", partial(discoveries, few), few)
    for weight in (2, 4):
        count.trial("p-values with weights", weight, partial(weighted, times, weight), times)
    for held_out in (45, 99, 200):
        for ties in (False, True):
            count.trial("certified thresholds", (held_out, ties), partial(certified, times, held_out, ties), times)
            count.trial("bounds on false alarms", (held_out, ties), partial(bounded, few, held_out, ties), few)
    for folds in (3, 20):
        count.trial("cross-conformal p-values", folds, partial(crossed, few, folds), few)
    for held_out in (20, 300):
        streams = max(few // 4, 20)
        count.trial("false alarms of the martingale", held_out, partial(alarms, streams, held_out), streams)
    for size in (80, 300):
        for shift in (0.3, 1.0, 3.0):
            count.trial("intervals of AUROC", (size, shift), partial(intervals, few, size, shift), few)


def generator(*what: object) -> np.random.Generator:
    """Random numbers of their own for each trial, so that a run may stop between two of them."""
    return np.random.default_rng(list(repr(what).encode()))


def scores(draw: np.random.Generator, shape: tuple[int, ...], ties: bool) -> np.ndarray:
    """Exchangeable scores; with ties, of a few values only."""
    values = draw.gamma(2.0, size=shape)
    return np.round(values) if ties else values


def excess(found: float, promised: float, times: int) -> float:
    """By how many standard errors a rate lies above what was promised."""
    return (found - promised) / math.sqrt(promised * (1 - promised) / times)


def valid(times: int, held_out: int, ties: bool, rate: float) -> Iterator[str]:
    """P(p <= a) <= a, and the threshold alarms at no more than the asked rate; without ties, exactly at it."""
    draw = generator("valid", held_out, ties, rate)
    alarms = small = 0
    for _ in range(times):
        calibration, fresh = scores(draw, (held_out,), ties), scores(draw, (1,), ties)
        small += int(p_values(calibration, fresh)[0] <= rate)
        alarms += int(fresh[0] > fpr_threshold(calibration, rate))
    for what, number in (("p-values", small), ("threshold", alarms)):
        far = excess(number / times, rate, times)
        exact = not ties and (rate * (held_out + 1)) % 1 == 0
        if far > 5 or (exact and far < -5):
            yield f"{what} at {rate}: {number / times:.4f} ({far:.1f} standard errors)"


def discoveries(times: int) -> list[str]:
    """Of what Benjamini-Hochberg calls, at most the asked share are inliers on average."""
    draw, shares = generator("discoveries"), []
    for _ in range(times):
        calibration = draw.normal(size=200)
        batch = np.concatenate([draw.normal(size=40), draw.normal(4, size=10)])
        called = benjamini_hochberg(p_values(calibration, batch), 0.2)
        shares.append(called[:40].sum() / max(called.sum(), 1))
    mean, error = float(np.mean(shares)), float(np.std(shares) / math.sqrt(len(shares)))
    return [f"false discoveries {mean:.3f} at 0.2"] if mean > 0.2 + 5 * error else []


def weighted(times: int, weight: float) -> Iterator[str]:
    """Inliers of a place where half of the values are so many times as frequent: P(p <= a) <= a with those weights."""
    draw, rate = generator("weighted", weight), 0.1
    weights = np.array([1.0, weight])
    small = 0
    for _ in range(times):
        kinds = draw.integers(2, size=60)
        fresh = int(draw.uniform() < weight / (1 + weight))
        held_out = draw.normal(size=60) + 2 * kinds
        score = draw.normal(size=1) + 2 * fresh
        small += int(weighted_p_values(held_out, weights[kinds], score, weights[[fresh]])[0] <= rate)
    if excess(small / times, rate, times) > 5:
        yield f"p-values at {rate} with weight {weight}: {small / times:.4f}"


def certified(times: int, held_out: int, ties: bool) -> Iterator[str]:
    """The true rate above a certified threshold is at most the asked one, in all but the stated share of draws."""
    draw, rate, confidence = generator("certified", held_out, ties), 0.1, 0.9
    broken = 0
    for _ in range(times):
        threshold = certified_threshold(scores(draw, (held_out,), ties), rate, confidence)
        broken += int(above(threshold, ties) > rate)
    if excess(broken / times, 1 - confidence, times) > 5:
        yield f"the rate is above {rate} in {broken / times:.4f} of draws"


def bounded(times: int, held_out: int, ties: bool) -> Iterator[str]:
    """The interval for the rate of false alarms of a threshold holds the true one."""
    draw, confidence = generator("bounded", held_out, ties), 0.9
    outside = 0
    for _ in range(times):
        calibration = scores(draw, (held_out,), ties)
        threshold = fpr_threshold(calibration, 0.1)
        found = fpr_bounds(calibration, threshold, confidence)
        outside += int(above(threshold, ties) > found.high)
    if excess(outside / times, 1 - confidence, times) > 5:
        yield f"the true rate is above the bound in {outside / times:.4f} of draws"


def above(threshold: float, ties: bool) -> float:
    """The chance that a fresh score lies above a threshold: of the gamma distribution of `scores`."""
    edge = math.floor(threshold) + 0.5 if ties else threshold
    return (1 + edge) * math.exp(-edge)


def crossed(times: int, folds: int) -> Iterator[str]:
    """P(p <= a) is at most the bound, and with twice the mean at most a, where a fold's model is the others' mean."""
    draw, rate, count = generator("crossed", folds), 0.2, 60
    small = twice = 0
    for _ in range(times):
        rows, fresh, own = draw.normal(size=count), draw.normal(), fold_numbers(count, folds)
        centers = [rows[own != fold].mean() for fold in range(folds)]
        held_out = [np.abs(rows[own == fold] - centers[fold]) for fold in range(folds)]
        judged = np.array([[abs(fresh - center)] for center in centers])
        small += int(cross_p_values(held_out, judged)[0] <= rate)
        twice += int(twice_mean_p_values(held_out, judged)[0] <= rate)
    for what, number, bound in (("cross", small, cross_bound(rate, count, folds)), ("twice the mean", twice, rate)):
        if excess(number / times, bound, times) > 5:
            yield f"{what}: {number / times:.4f}, promised {bound:.4f}"


def alarms(times: int, held_out: int) -> Iterator[str]:
    """Streams of 400 inliers, each with held-out inliers of its own: at most the asked share of them ever alarms."""
    draw, rate = generator("alarms", held_out), 0.1
    alarmed = 0
    for _ in range(times):
        ranks, test = OnlineRanks.of(draw.normal(size=held_out), draw), TestMartingale(rate)
        alarmed += any(test.update(ranks.p_value(float(score), draw)) for score in draw.normal(size=400))
    if excess(alarmed / times, rate, times) > 5:
        yield f"{alarmed / times:.4f} of streams alarm at {rate}"


def intervals(times: int, size: int, shift: float) -> Iterator[str]:
    """The 95% interval of an AUROC holds the true one at least nine times in ten, as far as so many draws can tell."""
    draw, inside = generator("intervals", size, shift), 0
    true = 0.5 * (1 + math.erf(shift / 2))  # of N(0, 1) against N(shift, 1): Phi(shift / sqrt(2))
    for _ in range(times):
        low, high = auroc(draw.normal(size=size), draw.normal(shift, size=size))[1]
        inside += int(low <= true <= high)
    if excess(1 - inside / times, 0.1, times) > 5:
        yield f"{inside / times:.3f} of intervals hold the true one, of {size} and {size} scores {shift} apart"
