"""Which scores and columns differ between the held-out inliers and a batch. Needs NumPy and SciPy only."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import ks_2samp

from negvae.scoring.certificates import check_rate

COLUMN_ROWS = 1_000
"""Held-out rows whose columns are kept to compare with, at most."""
_COLUMN_VALUES = 200_000


def columns_of(rows: ArrayLike) -> NDArray[np.float64]:
    """Sort each column of some held-out rows by itself, ascending, so that no row can be put together again.

    Args:
        rows: n x d numbers; if n exceeds `COLUMN_ROWS`, or n d exceeds 200,000, some rows are drawn, always the same.

    Returns:
        m x d numbers.
    """
    values = np.asarray(rows, np.float64)
    most = min(COLUMN_ROWS, max(_COLUMN_VALUES // values.shape[1], 1))
    chosen = np.random.default_rng(0).permutation(len(values))[:most]
    return np.asarray(np.sort(values[chosen], axis=0), np.float64)


@dataclass(frozen=True)
class Movement:
    """A comparison of one quantity of a batch with that of the held-out inliers.

    Attributes:
        name: name of the score or column.
        p_value: p-value of the two-sample Kolmogorov-Smirnov test, times the number of quantities compared
            (Bonferroni), at most 1.
        higher: probability that a value of the batch exceeds one of the held-out inliers, ties counting half: 0.5
            if neither is higher, 1 if all of the batch is.
        moved: whether the p-value is at most the requested rate of false alarms.
    """

    name: str
    p_value: float
    higher: float
    moved: bool

    def describe(self) -> str:
        """Describe the comparison in one line for people."""
        return f"{self.name}: higher than held out with probability {self.higher:.2f} (p = {self.p_value:.2g})"


def movements(
    held_out: Mapping[str, ArrayLike], batch: Mapping[str, ArrayLike], false_alarms: float
) -> tuple[Movement, ...]:
    """Compare quantities of a batch with those of held-out inliers, one by one.

    For a batch of inliers like those held out, the probability that any quantity is reported as moved is at most
    `false_alarms`: the test is exact for continuous quantities, conservative with ties, and the p-values are corrected
    for their number. The rate is over held-out sets and batches together.

    Args:
        held_out: n values of each quantity of the held-out inliers, by its name, in any order.
        batch: m values of each quantity of the batch, by its name.
        false_alarms: rate of false alarms, above 0 and below 1.

    Returns:
        One entry for each quantity, the smallest p-value first, equal ones by name.

    Raises:
        ValueError: if the rate is out of range.
    """
    check_rate("the rate of false alarms", false_alarms)
    found = []
    for name, values in held_out.items():
        old, new = np.sort(np.asarray(values, np.float64)), np.asarray(batch[name], np.float64)
        p = min(float(ks_2samp(old, new).pvalue) * len(held_out), 1.0)
        below = (np.searchsorted(old, new, "left") + np.searchsorted(old, new, "right")) / 2
        found.append(Movement(name, p, float(below.mean() / len(old)), p <= false_alarms))
    # Equal p-values go by name: a saved folder has its scores in another order.
    return tuple(sorted(found, key=lambda each: (each.p_value, each.name)))
