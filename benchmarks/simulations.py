"""Simulations of what docs/guarantees.md states: each gives rows of a rate, what bounds it, and its standard error.

Every function takes how many trials to run, so that the tests run the same ones with fewer. A rate of 5% that was 10%
above its bound (5.5%) is three standard errors away from 17,000 independent trials on.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import numpy as np
from scipy.stats import betabinom, norm, poisson

from negvae.scoring.calibration import p_values
from negvae.scoring.certificates import (
    certified_rank,
    false_discovery_bounds,
    least_certified,
    simultaneous_fpr_bounds,
)
from negvae.scoring.crossconformal import cross_bound, cross_p_values, fold_numbers, twice_mean_p_values
from negvae.scoring.groups import largest_by_group
from negvae.scoring.martingale import OnlineRanks, TestMartingale, step
from negvae.scoring.weighted import density_ratio, weighted_p_values


@dataclass(frozen=True)
class Row:
    """One line of the table.

    Attributes:
        what: Was simulated.
        rate: That came out.
        error: Standard error of it.
        bound: What the rate is promised not to exceed; None where nothing is promised.
        note: Further figures.
    """

    what: str
    rate: float
    error: float
    bound: float | None = None
    note: str = ""

    def holds(self, errors: float = 4.0) -> bool:
        """Whether the rate lies within its bound, as far as the trials can tell."""
        return self.bound is None or self.rate <= self.bound + errors * self.error + 1e-12


def share(hits: np.ndarray) -> tuple[float, float]:
    """The mean of what independent trials gave, and its standard error (no less than that of a few hits)."""
    values = np.asarray(hits, np.float64)
    mean = float(values.mean())
    return mean, float(max(values.std() / np.sqrt(len(values)), 1 / len(values)))


def certificates(trials: int, sizes: tuple[int, ...] = (100, 300, 1_000, 10_000), seed: int = 0) -> list[Row]:
    """How often the true rate of a certified threshold exceeds the target; normal scores, and rounded ones."""
    random = np.random.default_rng(seed)
    rows = []
    for size in sizes:
        target = 0.01 if size >= least_certified(0.01) else 0.05
        rank = certified_rank(size, target)
        exact, tied = np.empty(trials), np.empty(trials)
        for start in range(0, trials, chunk := max(1, 4_000_000 // size)):
            count = min(chunk, trials - start)
            scores = random.standard_normal((count, size))
            thresholds = np.partition(scores, size - rank, axis=1)[:, size - rank]
            exact[start : start + count] = norm.sf(thresholds)
            # Rounding keeps the order, so the k-th largest rounded score is the k-th largest, rounded.
            rounded = np.round(thresholds, 1)
            tied[start : start + count] = norm.sf(rounded + 0.05)  # P(a fresh rounded score is larger)
        name = f"certificate {target:.0%} at 95%, n = {size:,}"
        mean = f"mean false-alarm rate {exact.mean():.4f}, k = {rank}"
        rows.append(Row(f"{name}: rate above the target", *share(exact > target), 0.05, mean))
        rows.append(
            Row(
                f"{name}, scores rounded to 0.1",
                *share(tied > target),
                0.05,
                f"mean false-alarm rate {tied.mean():.4f}",
            )
        )
    return rows


def every_cut(trials: int, size: int = 500, batch: int = 300, seed: int = 1) -> list[Row]:
    """How often a bound that is meant for every cut fails at any of them."""
    random = np.random.default_rng(seed)
    bounds = simultaneous_fpr_bounds(size)
    uniform = np.sort(random.uniform(size=(trials, size)), axis=1)
    rows = [Row(f"false-alarm bounds of all {size} cuts at once: any fails", *share((uniform > bounds).any(1)), 0.05)]
    for outliers in (0, batch // 3):
        fails = np.empty(trials, bool)
        shown = np.empty(trials)
        for trial in range(trials):
            held_out = random.standard_normal(size)
            scores = random.standard_normal(batch)
            scores[:outliers] += 4
            bound = false_discovery_bounds(held_out, scores)
            order = np.argsort(-scores)
            inliers = np.cumsum(order >= outliers) / np.arange(1, batch + 1)
            fails[trial] = (inliers > bound[order] + 1e-9).any()
            shown[trial] = bound[order][max(outliers - 1, 0)]
        note = f"mean bound on the {outliers} highest: {shown.mean():.2f}" if outliers else ""
        name = f"share of false discoveries, n = {size}, {outliers} outliers in {batch}: the bound fails at any cut"
        rows.append(Row(name, *share(fails), 0.05, note))
    return rows


def marginal_and_groups(trials: int, seed: int = 2) -> list[Row]:
    """The rates at which p-values are at most 5%, over held-out sets: all inliers, within groups, and ties."""
    random = np.random.default_rng(seed)
    sizes, spreads, level = {"a": 60, "b": 40}, {"a": 1.0, "b": 3.0}, 0.05
    hits: dict[str, list[bool]] = {
        name: [] for name in ("pooled a", "pooled b", "a", "b", "unknown a", "unknown b", "tied")
    }
    for _ in range(trials):
        groups = {name: spreads[name] * random.standard_normal(size) for name, size in sizes.items()}
        everything = np.concatenate(list(groups.values()))
        for name, spread in spreads.items():
            fresh = spread * random.standard_normal(1)
            hits[f"pooled {name}"].append(p_values(everything, fresh)[0] <= level)
            hits[name].append(largest_by_group(groups, fresh, [name], p_values)[0] <= level)
            hits[f"unknown {name}"].append(largest_by_group(groups, fresh, None, p_values)[0] <= level)
        tied = poisson.rvs(3, size=100, random_state=random)
        hits["tied"].append(p_values(tied[1:], tied[:1])[0] <= level)
    names = {
        "a": "group a (n = 60), within the group", "b": "group b (n = 40, three times as wide), within the group",
        "unknown a": "group a, group not given", "unknown b": "group b, group not given",
        "tied": "scores from a Poisson distribution of mean 3, n = 99",
    }  # fmt: skip
    rows = [Row(f"p <= 5%: {names[name]}", *share(np.array(hits[name])), level) for name in names]
    for name in ("pooled a", "pooled b"):
        rows.append(Row(f"p <= 5%: group {name[-1]}, all groups pooled", *share(np.array(hits[name]))))
    return rows


def distances(training: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Squared Mahalanobis distances of T x m x d points from T x n x d training sets, with a little ridge."""
    mean = training.mean(1, keepdims=True)
    centered = training - mean
    covariance = centered.transpose(0, 2, 1) @ centered / training.shape[1] + 1e-3 * np.eye(training.shape[2])
    moved = points - mean
    return (moved * np.linalg.solve(covariance, moved.transpose(0, 2, 1)).transpose(0, 2, 1)).sum(2)


def cross_conformal(trials: int, size: int = 60, features: int = 10, seed: int = 3) -> list[Row]:
    """Rates and power of cross-conformal p-values beside a held-out fifth, Mahalanobis distance, few rows."""
    random = np.random.default_rng(seed)
    level, fresh = 0.1, 20
    data = random.standard_normal((trials, size, features))
    inliers = random.standard_normal((trials, fresh, features))
    outliers = random.standard_normal((trials, fresh, features)) + 1.0
    points = np.concatenate([inliers, outliers], axis=1)

    def row(name: str, p: np.ndarray, bound: float) -> Row:
        hits = p <= level
        power, error = share(hits[:, fresh:].mean(1))
        rate = share(hits[:, :fresh].mean(1))
        return Row(f"p <= 10%, n = {size}: {name}", *rate, bound, f"outliers found {power:.3f} (s.e. {error:.3f})")

    fifth = size // 5
    held_out, scores = distances(data[:, fifth:], data[:, :fifth]), distances(data[:, fifth:], points)
    split = (1 + (held_out[:, :, None] >= scores[:, None, :]).sum(1)) / (fifth + 1)
    rows = [row("a fifth held out", split, level)]
    for folds in (5, 10, size):
        number = fold_numbers(size, folds)
        held, judged = [], []
        for fold in range(folds):
            rest = data[:, number != fold]
            held.append(distances(rest, data[:, number == fold]))
            judged.append(distances(rest, points))
        stacked = np.array(judged)
        p = np.array([cross_p_values([part[t] for part in held], stacked[:, t]) for t in range(trials)])
        kind = "jackknife+" if folds == size else f"cross-conformal, {folds} folds"
        rows.append(row(kind, p, cross_bound(level, size, folds)))
        if folds < size:  # one inlier in a fold has p-values of 1/2 and 1 only
            p = np.array([twice_mean_p_values([part[t] for part in held], stacked[:, t]) for t in range(trials)])
            rows.append(row(f"twice the mean, {folds} folds", p, level))
    return rows


def alarmed(p: np.ndarray, rate: float) -> np.ndarray:
    """For streams side by side (streams x steps of p-values): the step of the first alarm, or -1."""
    accounts = np.zeros((len(p), len(TestMartingale().accounts)))
    first = np.full(len(p), -1)
    for at in range(p.shape[1]):
        accounts = step(accounts, at, p[:, at])
        hit = (accounts.sum(1) + 1 / (at + 2) >= 1 / rate) & (first < 0)
        first[hit] = at
    return first


def ranks_of(scores: np.ndarray, size: int, random: np.random.Generator) -> np.ndarray:
    """The monitor's p-values of one stream, of which the first `size` scores are the held-out ones."""
    ranks = OnlineRanks.of(scores[:size], random)
    return np.array([ranks.p_value(float(score), random) for score in scores[size:]])


def martingale(streams: int, steps: int = 2_000, ranked: int = 200, seed: int = 4) -> list[Row]:
    """False alarms while nothing changes, over whole streams, and the time to an alarm after a change."""
    random = np.random.default_rng(seed)
    rate = 0.05
    quiet = random.uniform(size=(streams, steps))
    rows = [Row(f"martingale, uniform p-values: any alarm in {steps:,} steps", *share(alarmed(quiet, rate) >= 0), rate)]
    size = 200
    scores = random.standard_normal((ranked, size + steps))
    online = np.array([ranks_of(row, size, random) for row in scores])
    name = f"martingale, {size} held out, {steps:,} steps: any alarm"
    rows.append(Row(f"{name}, ranks online", *share(alarmed(online, rate) >= 0), rate))
    tied = np.array([ranks_of(np.round(row), size, random) for row in scores])
    rows.append(Row(f"{name}, ranks online, scores rounded to 1", *share(alarmed(tied, rate) >= 0), rate))
    fixed = np.array([p_values(row[:size], row[size:]) - random.uniform(size=steps) / (size + 1) for row in scores])
    rows.append(Row(f"{name}, ranks among the held out alone", *share(alarmed(fixed, rate) >= 0)))
    for shift in (0.5, 1.0, 2.0):
        for before in (0, 1_000):
            count = min(ranked, 200)
            moved = random.standard_normal((count, 1_000 + before + 1_000))
            moved[:, 1_000 + before :] += shift
            p = np.array([ranks_of(row, 1_000, random) for row in moved])
            first = alarmed(p, 0.01)
            delay = np.where(first < 0, np.inf, first - before + 1)[(first < 0) | (first >= before)]
            middle, late = np.quantile(delay, (0.5, 0.9), method="higher")
            found = share(np.isfinite(delay))
            note = f"median {middle:.0f} steps, 90% within {late:.0f}"
            name = f"alarm within 1,000 steps of a shift by {shift:g} s.d. after {before:,} quiet ones (rate 1%)"
            rows.append(Row(name, *found, None, note))
    return rows


def online_fdr(streams: int, steps: int = 500, seed: int = 5) -> list[Row]:
    """LOND on conformal p-values of one held-out set for each stream: false discoveries, and outliers found."""
    from online_fdr.p_values import Lond

    random = np.random.default_rng(seed)
    rows = []
    for size, outlying in ((2_000, 0.0), (2_000, 0.1), (10_000, 0.02), (10_000, 0.1)):
        false, power = np.empty(streams), []
        for stream in range(streams):
            strange = random.uniform(size=steps) < outlying
            p = p_values(random.standard_normal(size), random.standard_normal(steps) + 5 * strange)
            procedure = Lond(alpha=0.1)
            called = np.array([procedure.test_one(float(each)) for each in p])
            false[stream] = (called & ~strange).sum() / max(called.sum(), 1)
            power.append((called & strange).sum() / max(strange.sum(), 1))
        note = f"outliers found {np.mean(power):.2f}" if outlying else ""
        name = f"online FDR 10%, {size:,} held out, {outlying:.0%} outliers in {steps}: share of false discoveries"
        rows.append(Row(name, *share(false), 0.1, note))
    return rows


def covariate_shift(trials: int, fits: int = 2_000, size: int = 200, seed: int = 6) -> list[Row]:
    """Held-out inliers from N(0, 1), fresh ones from N(0.8, 1); the score follows the covariate."""
    random = np.random.default_rng(seed)
    shift, level = 0.8, 0.1
    hits: dict[str, list[bool]] = {"none": [], "known": [], "estimated": []}
    for trial in range(trials):
        x, new = random.standard_normal(size), random.standard_normal(1) + shift
        noise = random.standard_normal(size + 1)
        scores, score = x + noise[:-1], new + noise[-1:]
        hits["none"].append(p_values(scores, score)[0] <= level)
        known = weighted_p_values(scores, np.exp(shift * x), score, np.exp(shift * new))
        hits["known"].append(known[0] <= level)
        if trial < fits:  # each is a regression
            others = random.standard_normal((100, 1)) + shift
            ratio = density_ratio(x[:, None], others)
            estimated = weighted_p_values(scores, ratio(x[:, None]), score, ratio(new[:, None]))
            hits["estimated"].append(estimated[0] <= level)
    rows = [Row("p <= 10% under a shift of 0.8 s.d.: weights known", *share(np.array(hits["known"])), level)]
    rows.append(Row("the same, weights estimated from 100 new inliers", *share(np.array(hits["estimated"]))))
    rows.append(Row("the same, no weights", *share(np.array(hits["none"]))))
    return rows


def plain_average(trials: int, size: int = 100, seed: int = 7) -> list[Row]:
    """What certificates are for: the plain threshold of 5%, detector by detector."""
    random = np.random.default_rng(seed)
    rank = int(0.05 * (size + 1))
    rates = random.beta(rank, size + 1 - rank, size=trials)
    low, high = np.quantile(rates, (0.05, 0.95))
    mean = betabinom.mean(1, rank, size + 1 - rank)
    note = f"the middle 90% of detectors alarm at {low:.3f} to {high:.3f}"
    return [
        Row(f"plain threshold of 5%, n = {size}: mean false-alarm rate (exact {mean:.4f})", *share(rates), 0.05, note)
    ]


def all_simulations(scale: float = 1.0) -> dict[str, list[Row]]:
    """Every simulation, by name; `scale` is of the number of trials."""

    def of(trials: int) -> int:
        return max(int(scale * trials), 20)

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return {
            "certificates": certificates(of(20_000)),
            "plain threshold": plain_average(of(200_000)),
            "every cut": every_cut(of(4_000)),
            "marginal rates and groups": marginal_and_groups(of(20_000)),
            "cross-conformal": [*cross_conformal(of(2_000)), *cross_conformal(of(1_000), size=200)],
            "martingale": martingale(of(20_000), ranked=of(400)),
            "online FDR": online_fdr(of(1_000)),
            "covariate shift": covariate_shift(of(20_000)),
        }
