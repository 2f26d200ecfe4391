"""How far the code of an image lies from the nearest codes of training images.

The codes of training images are kept in the saved folder, up to `IMAGES` of them. They are drawn on by
"latent_neighbors" and "transformations_neighbors" alike; `negvae.scoring.neighbors` is about rows of features.
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
NEIGHBORS = 5
"""The distance to this nearest code of a training image counts.

An image that was trained on is its own nearest neighbor, and a few outliers of one kind are near each other.
"""


def latent_neighbors(x: Pass) -> Tensor:
    """Return the distance from the mean of q(z|x) to the `NEIGHBORS`th nearest one of a training image (N)."""
    return to_nearest(means(x), x.fitted("latent_neighbors"))


def means(x: Pass) -> Tensor:
    """Return the mean of q(z|x) as the one code of each image (N x 1 x L)."""
    return x.posterior.mean.unsqueeze(1)


def keep(statistics: ArrayLike) -> Values:
    """Return the codes of up to `IMAGES` training images, evenly taken, one below the other.

    Args:
        statistics: V codes of each of N training images, N x V x K.

    Returns:
        The array that `to_nearest` takes, with V rows of K numbers for each image.
    """
    values = spread_rows(np.asarray(statistics, np.float64), IMAGES)
    return np.ascontiguousarray(values.reshape(-1, values.shape[2]))


def to_nearest(statistics: Tensor, kept: Tensor) -> Tensor:
    """Return the mean distance (N) of V codes of an image (N x V x K, float64) to the `NEIGHBORS`th nearest kept ones.

    If fewer are kept, the distance to the farthest counts.
    """
    squared = torch.zeros(*statistics.shape[:2], len(kept), dtype=torch.float64, device=statistics.device)
    # One number after the other: a matrix product may round differently in another place of its batch, and all
    # differences at once take K times the memory.
    for mine, theirs in zip(statistics.unbind(2), kept.unbind(1), strict=True):
        squared = squared + (mine.unsqueeze(2) - theirs).square()
    count = min(NEIGHBORS, len(kept))
    nearest, _ = squared.topk(count, dim=2, largest=False, sorted=True)
    return nearest[:, :, count - 1].sqrt().mean(1)


def are_kept(values: Values) -> bool:
    """Return whether an array has the form that `keep` gives."""
    return values.ndim == 2 and min(values.shape) > 0 and bool(np.isfinite(values).all())


NEAREST = Fit(statistics=means, fit=keep, distance=to_nearest, is_fitted=are_kept)
