"""What is promised with a probability: p-values, thresholds and intervals, by simulation."""

from __future__ import annotations

import math

import numpy as np

from benchmarks.torture.count import Count
from negvae.scoring.calibration import benjamini_hochberg, fpr_threshold, p_values
from negvae.scoring.metrics import detection_metrics


def torture(count: Count, times: int) -> None:
    """Draw calibration sets and fresh inliers so many times; the bounds leave five standard errors to chance."""
    draw = np.random.default_rng(0)
    for held_out in (19, 60, 99):
        for ties in (False, True):
            valid(count, draw, times, held_out, ties)
    discoveries(count, draw, times)
    intervals(count, draw, max(times // 10, 20))


def scores(draw: np.random.Generator, shape: tuple[int, ...], ties: bool) -> np.ndarray:
    """Exchangeable scores; with ties, of a few values only."""
    values = draw.gamma(2.0, size=shape)
    return np.round(values) if ties else values


def excess(found: float, promised: float, times: int) -> float:
    """By how many standard errors a rate lies above what was promised."""
    return (found - promised) / math.sqrt(promised * (1 - promised) / times)


def valid(count: Count, draw: np.random.Generator, times: int, held_out: int, ties: bool) -> None:
    """P(p <= a) <= a, and the threshold alarms at no more than the asked rate."""
    for rate in (0.05, 0.1, 0.3):
        alarms = small = 0
        for _ in range(times):
            calibration, fresh = scores(draw, (held_out,), ties), scores(draw, (1,), ties)
            small += int(p_values(calibration, fresh)[0] <= rate)
            alarms += int(fresh[0] > fpr_threshold(calibration, rate))
        for what, number in (("p-values", small), ("threshold", alarms)):
            far = excess(number / times, rate, times)
            fault = [f"{what} at {rate}: {number / times:.4f} ({far:.1f} standard errors)"] if far > 5 else []
            if what == "p-values" and not ties and abs(far) > 5 and (rate * (held_out + 1)) % 1 == 0:
                fault = [f"p-values at {rate} are not exact: {number / times:.4f}"]
            count.add(f"{what}, {held_out} held out{', with ties' if ties else ''}", fault, times)


def discoveries(count: Count, draw: np.random.Generator, times: int) -> None:
    """Of what Benjamini-Hochberg calls, at most the asked share are inliers on average."""
    shares = []
    for _ in range(max(times // 10, 50)):
        calibration = draw.normal(size=200)
        batch = np.concatenate([draw.normal(size=40), draw.normal(4, size=10)])
        called = benjamini_hochberg(p_values(calibration, batch), 0.2)
        shares.append(called[:40].sum() / max(called.sum(), 1))
    mean, error = float(np.mean(shares)), float(np.std(shares) / math.sqrt(len(shares)))
    fault = [f"false discoveries {mean:.3f} at 0.2"] if mean > 0.2 + 5 * error else []
    count.add("false-discovery rate", fault, len(shares))


def intervals(count: Count, draw: np.random.Generator, times: int) -> None:
    """The 95% interval of an AUROC holds the true one at least nine times in ten."""
    true = 0.5 * (1 + math.erf(1.0 / 2))  # of N(0, 1) against N(1, 1): Phi(1 / sqrt(2))
    inside = 0
    for _ in range(times):
        found = detection_metrics(draw.normal(size=80), draw.normal(1, size=80))
        low, high = found.auroc_ci
        inside += int(low <= true <= high)
    count.add("AUROC intervals", [f"cover {inside / times:.3f}"] if inside < 0.9 * times else [], times)
