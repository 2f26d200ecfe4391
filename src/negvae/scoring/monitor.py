"""The state kept of a watched stream of scores, and the decision on each score. Needs NumPy and SciPy only.

The state does not grow with the stream, but for a number for each alarm of a change, and goes to plain values and back,
so that a stream can be watched across restarts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from numbers import Integral
from typing import Any, Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

from negvae.files import need
from negvae.scoring.calibration import Calibration, p_values
from negvae.scoring.certificates import check_rate
from negvae.scoring.martingale import OnlineRanks, TestMartingale, bets

Floats = NDArray[np.float64]

FORMAT = 1
"""Of the state."""
HISTORY = 400
"""Points of the wealth's course that are kept; with twice as many, every second one is dropped."""


class OnlineTest(Protocol):
    """The interface of one procedure of the library online-fdr."""

    def test_one(self, p_val: float, /) -> bool:
        """Return whether the next p-value is a discovery."""

    def snapshot(self) -> dict[str, Any]:
        """Return all that is needed to continue, as plain values."""


@dataclass(frozen=True)
class Judged:
    """The decisions on some scores, in their order.

    Attributes:
        p_values: conformal p-values among the held-out inliers, or with a window among the latest scores.
        outliers: whether each score is called an outlier by the calibration's rule.
        discoveries: whether each score is a discovery of the online procedure; all False without a procedure.
        changes: positions at which the test martingale reported a change of the stream.
        wealth: wealth of the martingale after each score; at an alarm, the wealth that the alarm was reached with.
        seen: number of scores of the stream before these.
    """

    p_values: Floats
    outliers: NDArray[np.bool_]
    discoveries: NDArray[np.bool_]
    changes: tuple[int, ...]
    wealth: Floats
    seen: int = 0


@dataclass
class Monitor:
    """A watch over the decision scores of a stream.

    Attributes:
        calibration: held-out scores, threshold and rule.
        ranks: ranks that give the martingale its p-values.
        martingale: test for a change of the stream.
        online: procedure of online false-discovery control; None for none.
        fdr: false-discovery rate of the online procedure.
        window: number of the latest scores that p-values and threshold are taken from; 0 for the held-out ones always.
        latest: latest scores, the oldest first, if there is a window.
        random: random generator that breaks ties.
        seen: number of scores so far.
        outliers: number of scores called outliers so far.
        discoveries: number of discoveries so far.
        changes: number of scores after which each alarm of the martingale came.
        history: pairs (number of scores so far, wealth), one every `every` scores.
        every: number of scores between two entries of `history`.
    """

    calibration: Calibration
    ranks: OnlineRanks
    martingale: TestMartingale
    online: OnlineTest | None = None
    fdr: float | None = None
    window: int = 0
    latest: Floats = field(default_factory=lambda: np.empty(0))
    random: np.random.Generator = field(default_factory=lambda: np.random.default_rng(0))
    seen: int = 0
    outliers: int = 0
    discoveries: int = 0
    changes: list[int] = field(default_factory=list)
    history: list[tuple[int, float]] = field(default_factory=list)
    every: int = 1

    @classmethod
    def start(
        cls,
        calibration: Calibration,
        *,
        alarm_rate: float = 0.01,
        fdr: float | None = None,
        window: int = 0,
        seed: int = 0,
    ) -> Monitor:
        """Watch a stream from its beginning.

        Args:
            calibration: calibration of the detector.
            alarm_rate: probability of a false alarm about a change, from one start of the martingale to the next.
            fdr: false-discovery rate of the online procedure, LOND; None for no procedure.
            window: number of the latest scores to take p-values and threshold from; 0 for the held-out ones.
            seed: seed of the random numbers that break ties.

        Returns:
            A monitor that has seen no score.

        Raises:
            ValueError: if a rate is out of range, or the window is too small for the calibration's rate.
            ImportError: if `fdr` is given and the extra "watch" is not installed.
        """
        if not isinstance(window, Integral) or window < 0:
            raise ValueError(f"window is {window!r}: it must be a number of scores, or 0 for none")
        random = np.random.default_rng(seed)
        held_out = calibration.scores[calibration.score]
        latest = random.permutation(held_out)[-window:] if window else np.empty(0)
        if window:
            calibration.threshold_for(np.zeros(window))  # refuses a window that is too small for the rate
        return cls(
            calibration, OnlineRanks.of(held_out, random), TestMartingale(alarm_rate), _procedure(fdr),
            None if fdr is None else float(fdr), int(window), latest, random,
        )  # fmt: skip

    def update(self, scores: ArrayLike, groups: Sequence[str] | None = None) -> Judged:
        """Judge the next scores of the stream, in their order.

        Args:
            scores: m decision scores, larger meaning more out-of-distribution.
            groups: group of each image, or "" for an unknown one, as in `Calibration.p_values`; the martingale looks at
                all groups together, and assumes that their mixture is that of the held-out inliers.

        Returns:
            The decisions on these scores.

        Raises:
            ValueError: if a group was not calibrated, or there are both groups and a window.
        """
        if groups is not None and self.window:
            raise ValueError("a window is of all groups together: watch without a window, or without groups")
        values = np.asarray(scores, np.float64).reshape(-1)
        values = np.where(np.isnan(values), np.inf, values)
        before_these = self.seen
        p, called = self._decide(values, groups)
        discovered = np.zeros(len(values), bool)
        if self.online is not None:
            ranked = p if not self.window else self.calibration.p_values(values)
            discovered = np.array([self.online.test_one(float(each)) for each in ranked], bool)
        changes, wealth = [], np.empty(len(values))
        for index, payoffs in enumerate(bets(self.ranks.p_values(values, self.random))):
            self.seen += 1
            before = self.martingale.starts
            alarmed = self.martingale.bet(payoffs)
            wealth[index] = 1 / self.martingale.alarm_rate if alarmed else self.martingale.wealth
            if self.martingale.starts > before:
                changes.append(index)
                self.changes.append(self.seen)
            self._remember(float(wealth[index]))
        self.outliers += int(called.sum())
        self.discoveries += int(discovered.sum())
        return Judged(p, called, discovered, tuple(changes), wealth, before_these)

    @property
    def uncertified(self) -> str:
        """Return why no rate of false alarms is certified for the stream; "" if one is."""
        if self.window:
            return f"the threshold follows the latest {self.window:,} rows of the stream"
        return self.calibration.uncertified

    @property
    def _held_out(self) -> Floats:
        return self.calibration.scores[self.calibration.score]

    def _decide(self, values: Floats, groups: Sequence[str] | None) -> tuple[Floats, NDArray[np.bool_]]:
        """Return p-values and decisions; with a window, each score is judged by those before it and then joins them."""
        if not self.window:
            return self.calibration.p_values(values, groups), self.calibration.is_outlier(values, groups)
        p, called = np.empty(len(values)), np.empty(len(values), bool)
        for index, value in enumerate(values):
            p[index] = p_values(self.latest, [value])[0]
            called[index] = value > self.calibration.threshold_for(self.latest)
            self.latest = np.append(self.latest, value)[-self.window :]
        return p, called

    def _remember(self, wealth: float) -> None:
        if self.seen % self.every == 0 or wealth >= 1 / self.martingale.alarm_rate:
            self.history.append((self.seen, wealth))
        if len(self.history) >= 2 * HISTORY:
            self.history = self.history[::2]
            self.every *= 2

    def can_discover(self) -> bool:
        """Return whether the next score could be a discovery, however large it is.

        The level of the online procedure shrinks as the stream goes on without discoveries, and no p-value is below
        1 / (n + 1), where n held-out inliers are those of the score's group, if there are groups: the next score is
        taken to be of the largest. With few held-out inliers, nothing can be discovered from some time on.
        """
        if self.online is None:
            return False
        trial = _procedure(self.fdr, self.online.snapshot())
        assert trial is not None
        sizes = [len(scores) for scores in self.calibration.groups.get(self.calibration.score, {}).values()]
        # A window goes without groups: the p-value is then the largest over all groups.
        most = len(self._held_out) if not sizes else min(sizes) if self.window else max(sizes)
        return trial.test_one(1 / (most + 1))

    def state(self) -> dict[str, Any]:
        """Return what `restore` needs to continue, as plain values for JSON."""
        return {
            "format": FORMAT,
            "held_out": len(self._held_out),
            "weights": self.ranks.weights.tolist(),
            "ties": self.ranks.ties.tolist(),
            "martingale": self.martingale.state(),
            "online": None if self.online is None else self.online.snapshot(),
            "fdr": self.fdr,
            "window": self.window,
            "latest": self.latest.tolist(),
            "random": self.random.bit_generator.state,
            "seen": self.seen,
            "outliers": self.outliers,
            "discoveries": self.discoveries,
            "changes": self.changes,
            "history": self.history,
            "every": self.every,
        }

    @classmethod
    def restore(cls, calibration: Calibration, state: dict[str, Any]) -> Monitor:
        """Continue from a saved state.

        Args:
            calibration: calibration that the stream was watched with.
            state: state that `state` returned.

        Returns:
            A monitor that continues the stream.

        Raises:
            ValueError: if the state is of another calibration or of a later version, or a part of it is missing.
            ImportError: if the state is of an online procedure and the extra "watch" is not installed.
        """
        try:
            if state["format"] > FORMAT:
                raise ValueError(f"its format is {state['format']}: upgrade negvae")
            edges = np.sort(calibration.scores[calibration.score])
            if len(edges) != state["held_out"]:
                raise ValueError(f"it is of {state['held_out']} held-out inliers, the calibration has {len(edges)}")
            made = cls._restored(calibration, edges, state)
        except (KeyError, TypeError, AttributeError, OverflowError) as error:
            raise ValueError(f"the state of the stream is damaged ({' '.join(str(error).split())[:120]})") from None
        if fault := made._fault():
            raise ValueError(f"the state of the stream is damaged ({fault})")
        return made

    @classmethod
    def _restored(cls, calibration: Calibration, edges: Floats, state: dict[str, Any]) -> Monitor:
        random = np.random.default_rng()
        random.bit_generator.state = state["random"]
        martingale = {**state["martingale"], "accounts": np.array(state["martingale"]["accounts"], np.float64)}
        ranks = OnlineRanks(edges, np.array(state["ties"], np.float64), np.array(state["weights"], np.int64))
        return cls(
            calibration, ranks, TestMartingale(**martingale),
            _procedure(state["fdr"], state["online"]), state["fdr"], state["window"],
            np.array(state["latest"], np.float64), random, state["seen"], state["outliers"], state["discoveries"],
            list(state["changes"]), [(int(at), float(wealth)) for at, wealth in state["history"]], state["every"],
        )  # fmt: skip

    def _fault(self) -> str:
        """Return what is wrong with a restored state; empty if nothing is, so that the next score can be judged."""
        martingale, ranks = self.martingale, self.ranks
        counts = [self.seen, self.outliers, self.discoveries, self.window, martingale.steps, *self.changes]
        if not all(isinstance(count, int) for count in (*counts, self.every, martingale.starts)):
            return "a count is no whole number"
        if min(*counts, self.every - 1, martingale.starts - 1) < 0 or not isinstance(martingale.peak, int | float):
            return "a count is negative, or the peak no number"
        if ranks.ties.shape != ranks.edges.shape or ranks.weights.shape != (len(ranks.edges) + 1,):
            return "not a weight for each gap between held-out inliers"
        if (ranks.weights < 1).any() or ranks.weights.sum(dtype=np.float64) > 2**62:
            return "a weight is no count"
        accounts, fresh = martingale.accounts, TestMartingale(martingale.alarm_rate).accounts
        if accounts.shape != fresh.shape or not np.isfinite(accounts).all() or (accounts < 0).any():
            return "the accounts of the martingale are no amounts"
        if self.latest.ndim != 1 or (self.window and not self.latest.size):
            return "the latest scores are none"
        return ""


def _procedure(fdr: float | None, snapshot: dict[str, Any] | None = None) -> OnlineTest | None:
    """Create LOND of the library online-fdr, new or restored from a snapshot.

    Conformal p-values of one held-out set depend on one another, in the positive way (PRDS) under which LOND controls
    the false-discovery rate at every time (Javanmard and Montanari 2015; Zrnic, Ramdas and Jordan, "Asynchronous online
    testing of multiple hypotheses", 2021); of LORD, SAFFRON and ADDIS that is known for independent p-values only.
    """
    if fdr is None:
        return None
    check_rate("fdr", fdr)
    procedure = need("online_fdr.p_values", "watch").Lond
    made: OnlineTest = procedure(alpha=float(fdr)) if snapshot is None else procedure.from_snapshot(snapshot)
    return made
