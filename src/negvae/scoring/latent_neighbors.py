"""How far the code of an image lies from the nearest codes of training images, of which saved folders keep some.

Rows of features have a score of their own: `negvae.scoring.neighbors`.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from negvae.scoring.passes import Pass
from negvae.scoring.references import Values
from negvae.scoring.table import Fit
from negvae.spacing import spread_rows

IMAGES = 1000
"""Largest number of training images whose codes are kept."""
SHARE, LEAST = 0.02, 5
"""The distance to so near a code counts: to this share of the kept codes, and to so many of them at least.

An image that was trained on is its own nearest neighbor, and outliers among the training images that are of one kind
are near each other.
"""
COPY = 1e-11
"""Two codes are the same where their squared distance is less than this share of their squared lengths."""
RIDGE = 0.1
"""Share of the mean variance that is added to all variances, so that codes of little variance do not dominate."""


def latent_neighbors(x: Pass) -> Tensor:
    """Return the distance from the mean of q(z|x) to the nearest ones of training images (N).

    It is the radius within which 2% of them lie (`SHARE`), with codes whitened by the covariance of training images'.
    """
    return to_nearest(means(x), x.fitted("latent_neighbors"))


def means(x: Pass) -> Tensor:
    """Return the mean of q(z|x) (N x L)."""
    return x.posterior.mean


def fit(codes: ArrayLike) -> Values:
    """Return the matrix that whitens codes and, below it, the whitened codes of up to `IMAGES` training images.

    Args:
        codes: codes of N training images (N x L), from which R are taken, evenly spaced.

    Returns:
        The (L + R) x L array that `to_nearest` takes.
    """
    kept = spread_rows(np.asarray(codes, np.float64), IMAGES)
    matrix = whitener(kept - kept.mean(0), RIDGE)
    return np.concatenate([matrix, kept @ matrix])


def whitener(deviations: Values, ridge: float) -> Values:
    """Return the K x K matrix by which rows of deviations from a mean (N x K) get the identity as covariance.

    Args:
        deviations: deviations of N rows from their means.
        ridge: share of the mean variance that is added to all variances; a small constant is added as well, so that
            directions without any variance stay finite.

    Returns:
        The matrix that rows are multiplied by.
    """
    covariance = deviations.T @ deviations / len(deviations)
    added = ridge * np.trace(covariance) / len(covariance) + 1e-4
    root = np.linalg.cholesky(covariance + added * np.eye(len(covariance)))
    return np.ascontiguousarray(np.linalg.inv(root).T)


def to_nearest(codes: Tensor, fitted: Tensor) -> Tensor:
    """Return the distance (N) within which a share of the codes that `fit` keeps lie about each code (N x L, float64).

    If fewer than `LEAST` are kept, it is the distance to the farthest.
    """
    matrix, kept = fitted[: codes.shape[1]], fitted[codes.shape[1] :]
    whitened = codes @ matrix
    lengths = whitened.square().sum(1, keepdim=True) + kept.square().sum(1)
    squared = lengths - 2 * (whitened @ kept.T)
    # A code's distance to its own copy is a rounding error, which would depend on the place in the batch.
    squared = torch.where(squared < COPY * lengths, 0.0, squared)
    count = min(max(round(SHARE * len(kept)), LEAST), len(kept))
    return squared.topk(count, dim=1, largest=False).values[:, count - 1].sqrt()


def is_fitted(values: Values) -> bool:
    """Return whether an array has the form that `fit` gives."""
    return values.ndim == 2 and len(values) > values.shape[1] > 0 and bool(np.isfinite(values).all())


NEAREST = Fit(statistics=means, fit=fit, distance=to_nearest, is_fitted=is_fitted)
