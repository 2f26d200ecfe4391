"""A test of whether a stream has changed, one observation after another. Needs NumPy only.

Two parts. `OnlineRanks` turns the scores of a stream into p-values that are independent and uniform while the stream is
exchangeable with the held-out inliers: each score is ranked among the held-out ones and all earlier ones of the stream,
with ties broken at random (Vovk, Nouretdinov and Gammerman, "Testing exchangeability on-line", 2003). P-values against
a fixed held-out set are not: the chance deviations of that set appear in all of them, and any test detects these in a
long stream.

`TestMartingale` bets against that uniformity. Its wealth is a nonnegative martingale that starts at 1, so that the
probability that it ever reaches 1 / a is at most a while nothing has changed (Ville's inequality). After an alarm it
starts anew with wealth 1; the p-values go on, so each new start has the same guarantee, whatever came before.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from negvae.scoring.certificates import check_rate

Floats = NDArray[np.float64]

JUMP = 0.01
"""The share of all accounts that is spread over all bets at each step, so that the best bet may change."""
_POWERS = (0.25, 0.5)
_SLOPES = (1.9, 1.0, -1.0, -1.9)
_BENDS = (0.9, -0.9)
_TOGETHER = 256
"""Scores that are ranked together: the work for their ranks among each other grows with the square."""


@dataclass
class OnlineRanks:
    """P-values of a stream's scores among all before them, from state of a fixed size.

    The held-out scores divide the line into n + 1 gaps. Under exchangeability a score falls into a gap with a
    probability in proportion to 1 + the number of earlier scores in it (a Polya urn), and where it falls within the gap
    is as if drawn uniformly. So counts by gap are all that needs to be kept of the stream, and nothing is lost: the
    p-values are exactly uniform and independent, however long the stream and however few the held-out inliers.

    Attributes:
        edges: n scores of held-out inliers, ascending.
        ties: number drawn uniformly for each edge, ascending among equal edges; it orders equal scores.
        weights: 1 + the number of earlier scores of the stream in each of the n + 1 gaps.
    """

    edges: Floats
    ties: Floats
    weights: NDArray[np.int64]

    @classmethod
    def of(cls, held_out: ArrayLike, random: np.random.Generator) -> OnlineRanks:
        """Start from the scores of held-out inliers, of any number from 0.

        Args:
            held_out: n scores of held-out inliers.
            random: random generator that draws the order of ties.

        Returns:
            Ranks that no score of a stream has been counted in.

        Raises:
            ValueError: if a score is not a number.
        """
        scores = np.asarray(held_out, np.float64).reshape(-1)
        if np.isnan(scores).any():
            raise ValueError("a held-out score is not a number")
        ties = random.uniform(size=len(scores))
        order = np.lexsort((ties, scores))
        return cls(scores[order], ties[order], np.ones(len(scores) + 1, np.int64))

    def p_value(self, score: float, random: np.random.Generator) -> float:
        """Return the smoothed p-value of the next score; see `p_values`."""
        return float(self.p_values([score], random)[0])

    def p_values(self, scores: ArrayLike, random: np.random.Generator) -> Floats:
        """Return the smoothed p-values of the next scores of the stream, and count these scores from then on.

        Args:
            scores: m scores in their order, larger meaning more out-of-distribution; NaN counts as the largest of all.
            random: random generator that breaks ties and places each score within its gap.

        Returns:
            m numbers in (0, 1), small if few scores before are as large.
        """
        values = np.asarray(scores, np.float64).reshape(-1)
        values = np.where(np.isnan(values), np.inf, values)
        parts = [self._next(values[start : start + _TOGETHER], random) for start in range(0, len(values), _TOGETHER)]
        return np.concatenate([np.empty(0), *parts])

    def _next(self, values: Floats, random: np.random.Generator) -> Floats:
        """Return the p-values of a few scores: the ranks among those before them, and among each other."""
        tie, within = random.uniform(size=(len(values), 2)).T
        gap = np.searchsorted(self.edges, values, side="left")
        last = np.searchsorted(self.edges, values, side="right")
        for row in np.flatnonzero(last > gap):
            gap[row] += np.searchsorted(self.ties[gap[row] : last[row]], tie[row])
        sums = self.weights.cumsum()
        earlier = np.tri(len(values), k=-1, dtype=bool)
        above = sums[-1] - sums[gap] + (earlier & (gap[None] > gap[:, None])).sum(1)
        own = self.weights[gap] + (earlier & (gap[None] == gap[:, None])).sum(1)
        total = sums[-1] + np.arange(len(values))
        np.add.at(self.weights, gap, 1)
        return np.asarray((above + (1 - within) * own) / total, np.float64)


@dataclass
class TestMartingale:
    """Wealth from bets against uniform p-values.

    The bets are densities on [0, 1]: a constant; powers k p^(k - 1), for a few very small p-values; slopes, for
    p-values that are smaller, or larger, than before; bends, for p-values that lie more, or less, in the middle. The
    money is in one account for each bet and in a reserve. At step t the reserve goes from 1 / t to 1 / (t + 1), and
    what leaves it is spread over all bets (a mixture over the time of the change); a share `JUMP` of all accounts is
    spread as well (the simple jumper of Vovk, Gammerman and Shafer, "Algorithmic learning in a random world", 2nd
    edition, 2022, section 8.2). So a change after t quiet steps costs about 2 log t more to find than one at the
    start, and not a multiple of t.

    Attributes:
        alarm_rate: upper bound on the probability that a start without a change after it ever leads to an alarm.
        accounts: money of each bet.
        steps: number of p-values since the last start.
        starts: number of starts; each alarm starts the martingale anew.
        peak: largest wealth since the last start.
    """

    __test__ = False  # pytest collects classes whose names begin with Test

    alarm_rate: float = 0.01
    accounts: Floats = field(default_factory=lambda: np.zeros(1 + len(_POWERS) + len(_SLOPES) + len(_BENDS)))
    steps: int = 0
    starts: int = 1
    peak: float = 1.0

    def __post_init__(self) -> None:
        """Refuse a rate that is out of range, and take NumPy's numbers as Python's, which JSON can hold."""
        check_rate("alarm_rate", self.alarm_rate)
        self.alarm_rate = float(self.alarm_rate)
        self.accounts = np.asarray(self.accounts, np.float64)
        self._money = float(np.add.reduce(self.accounts))  # kept, since to add it up takes as long as to bet

    @property
    def wealth(self) -> float:
        """Return the money in all accounts and in the reserve: 1 at the start."""
        return self._money + 1 / (self.steps + 1)

    def update(self, p: float) -> bool:
        """Bet on the next p-value.

        Args:
            p: next p-value, uniform on [0, 1] and independent of those before it while nothing has changed.

        Returns:
            Whether the wealth has reached 1 / `alarm_rate`; the martingale has then started anew.
        """
        return self.bet(bets(p))

    def bet(self, payoffs: Floats) -> bool:
        """Take the payoffs of the next p-value, as `bets` gives them; see `update` for what is returned."""
        accounts = paid(self.accounts, self._money, self.steps, payoffs)
        self.accounts, self.steps, self._money = accounts, self.steps + 1, float(np.add.reduce(accounts))
        wealth = self.wealth
        self.peak = max(self.peak, wealth)
        if wealth < 1 / self.alarm_rate:
            return False
        self.accounts, self.steps, self.peak, self._money = np.zeros_like(accounts), 0, 1.0, 0.0
        self.starts += 1
        return True

    def state(self) -> dict[str, Any]:
        """Return what `TestMartingale(**state)` needs to continue, as plain values."""
        return {
            "alarm_rate": self.alarm_rate,
            "accounts": self.accounts.tolist(),
            "steps": self.steps,
            "starts": self.starts,
            "peak": self.peak,
        }


def bets(p: ArrayLike) -> Floats:
    """Return the payoff of each bet: densities on [0, 1] at p.

    Args:
        p: p-values, an array of any shape.

    Returns:
        The same shape with an axis of the bets added at the end.
    """
    values = np.clip(np.asarray(p, np.float64), 1e-12, 1)[..., None]
    powers, slopes, bends = map(np.array, (_POWERS, _SLOPES, _BENDS))
    middle = values - 0.5
    return np.concatenate(
        [
            np.ones_like(values),
            powers * values ** (powers - 1),
            1 - slopes * middle,
            1 + bends * (6 * middle**2 - 0.5),
        ],
        axis=-1,
    )


def step(accounts: Floats, steps: int, p: Floats) -> Floats:
    """Return the accounts after one more p-value; a pure function, for one stream or for many side by side.

    Args:
        accounts: money of each bet, ... x bets.
        steps: number of steps taken before this one.
        p: p-values, of the shape of the accounts without their last axis.

    Returns:
        The new accounts, ... x bets.
    """
    return paid(accounts, accounts.sum(-1, keepdims=True), steps, bets(p))


def paid(accounts: Floats, money: float | Floats, steps: int, payoffs: Floats) -> Floats:
    """Return the accounts after a step.

    Args:
        accounts: money of each bet, ... x bets.
        money: their sum, a number for one stream or ... x 1.
        steps: number of steps taken before this one.
        payoffs: payoffs of the bets, ... x bets.

    Returns:
        The new accounts, ... x bets.
    """
    from_reserve = 1 / (steps + 1) - 1 / (steps + 2)
    spread = (JUMP * money + from_reserve) / accounts.shape[-1]
    return np.asarray(((1 - JUMP) * accounts + spread) * payoffs, np.float64)
