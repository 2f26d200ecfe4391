"""Which columns make a row of features out-of-distribution.

A column is asked two questions, as the score "neighbors" asks a row (`negvae.scoring.neighbors`): how far it lies from
the center, and how far from what the other columns let expect. For a Gaussian with precision matrix P, the second is

    (z_j - E[z_j | the others]) / sd(z_j | the others) = (P z)_j / sqrt(P_jj)

(Lauritzen 1996, section 5.1). Each distance becomes a tail probability among the reference rows, whose tail is
exponential beyond their 95% quantile, so that columns far out keep their order. The larger of the two counts.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray

from negvae.scoring.neighbors import Neighbors, Values, larger_tail, tail_of, whiten


def column_surprise(rows: Values, fitted: Neighbors) -> NDArray[np.float64]:
    """Compute how unusual each column of each row is.

    Args:
        rows: standardized rows (N x D).
        fitted: measurements of inliers.

    Returns:
        -log10 of the tail probability of each column, N x D: 3 means one in a thousand inliers.
    """
    whitening = whiten(np.eye(rows.shape[1]), fitted.basis, fitted.damping, fitted.unit)
    precise = np.sqrt(np.square(whitening).sum(1))

    def distances(weighted: Values) -> tuple[Values, Values]:
        return np.abs(weighted), np.abs(weighted @ whitening @ whitening) / precise

    reference = fitted.rows if len(fitted.rows) else np.linalg.solve(whitening, fitted.whitened.T).T
    own, theirs = distances(rows * fitted.weights), distances(reference)
    result = np.empty_like(rows, np.float64)
    for column in range(rows.shape[1]):
        tails, excess = zip(*(tail_of(np.sort(space[:, column])) for space in theirs), strict=True)
        of_column = [torch.from_numpy(np.ascontiguousarray(space[:, column])) for space in own]
        found = larger_tail(of_column, torch.from_numpy(np.array(tails)), torch.tensor(excess, dtype=torch.float64))
        result[:, column] = found.numpy() / math.log(10)
    return result
