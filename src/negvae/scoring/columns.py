"""Which columns make a row of features out-of-distribution.

A column is asked two questions, as the score "neighbors" asks a row (`negvae.scoring.neighbors`): how far it lies from
the center, and how far from what the other columns let expect. For a Gaussian with precision matrix P, the second is

    (z_j - E[z_j | the others]) / sd(z_j | the others) = (P z)_j / sqrt(P_jj)

(Lauritzen 1996, section 5.1). Each distance becomes a tail probability among the reference rows, whose tail is
exponential beyond their 95% quantile, so that columns far out keep their order. Twice the smaller probability counts,
since there are two.

P is measured on the reference rows, which therefore lie closer to what it lets expect than new rows do. So a reference
row, and a row that is a copy of one, is measured by the P of the others: with u = P z, N rows and g = z' P z / N,

    u without z = u / (1 - g),   P_jj without z = P_jj + u_j^2 / (N (1 - g))             (Sherman & Morrison 1950)
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from negvae.scoring.neighbors import LEAST_LEFT, Neighbors, Values, has_copy, larger_tail, tail_of, whiten

_DISTANCES = 1 << 21
"""The largest number of distances between rows and reference rows that are in memory at once."""


def column_surprise(rows: Values, fitted: Neighbors) -> NDArray[np.float64]:
    """Compute how unusual each column of each row is.

    Args:
        rows: standardized rows (N x D).
        fitted: measurements of inliers.

    Returns:
        -log10 of the tail probability of each column, N x D: 3 means one in a thousand inliers, 0 a usual value.
    """
    reference = fitted.rows if len(fitted.rows) else _unwhitened(fitted)
    share = np.full((len(reference), 1), 1 / len(reference))
    theirs = np.abs(reference), _from_the_others(fitted.whitened, fitted, share)
    tails = [_tails([space[:, column] for space in theirs]) for column in range(rows.shape[1])]
    result = np.empty_like(rows, np.float64)
    block = max(_DISTANCES // len(reference), 1)
    for start in range(0, len(rows), block):
        weighted = rows[start : start + block] * fitted.weights
        whitened = whiten(weighted, fitted.basis, fitted.damping, fitted.unit)
        among = has_copy(torch.from_numpy(whitened), torch.from_numpy(fitted.whitened)).numpy()
        own = np.abs(weighted), _from_the_others(whitened, fitted, np.where(among, 1 / len(reference), 0.0))
        for column, (knots, excess) in enumerate(tails):
            of_column = [torch.from_numpy(np.ascontiguousarray(space[:, column])) for space in own]
            found = larger_tail(of_column, knots, excess).numpy()
            result[start : start + block, column] = np.maximum(found - math.log(2), 0.0) / math.log(10)
    return result


def _tails(distances: Sequence[Values]) -> tuple[Tensor, Tensor]:
    """Return the tails of a column's distances among reference rows in each space, as `larger_tail` takes them."""
    knots, excess = zip(*(tail_of(np.sort(space)) for space in distances), strict=True)
    return torch.from_numpy(np.array(knots)), torch.tensor(excess, dtype=torch.float64)


# The square root of P is (I - V diag(damping) V') / unit. It is not made: with 20,000 columns it takes 3 GB.


def _unwhitened(fitted: Neighbors) -> Values:
    """Return the reference rows before they were whitened, where only the whitened ones are kept (R x D)."""
    grown = fitted.damping / (1 - fitted.damping)
    rows: Values = (fitted.whitened + ((fitted.whitened @ fitted.basis) * grown) @ fitted.basis.T) * fitted.unit
    return rows


def _precisions(fitted: Neighbors) -> Values:
    """Return the diagonal of P (D)."""
    squared = np.square(fitted.basis)
    beside = np.maximum(1 - squared.sum(1), 0) if squared.shape[1] < len(squared) else 0.0  # outside the span of V
    precisions: Values = (squared @ np.square(1 - fitted.damping) + beside) / np.square(fitted.unit)
    return precisions


def _from_the_others(whitened: Values, fitted: Neighbors, share: Values) -> Values:
    """Return how far each column lies from what the other columns let expect, in standard deviations (N x D).

    Args:
        whitened: weighted rows, whitened (N x D).
        fitted: measurements of inliers.
        share: 1 / N of a row that is among the N rows that P was measured on, and is left out of it; else 0 (N x 1).

    Returns:
        N x D distances.
    """
    unlike = whiten(whitened, fitted.basis, fitted.damping, fitted.unit)  # u
    left = np.maximum(1 - share * np.square(whitened).sum(1, keepdims=True), LEAST_LEFT)
    precision = _precisions(fitted) + share * np.square(unlike) / left
    distances: Values = np.abs(unlike) / left / np.sqrt(precision)
    return distances
