"""Density of states: how usual an image's statistics under the model are, all of them together.

Morningstar et al., "Density of states estimation for out-of-distribution detection", 2021: an image may have a usual
likelihood and still be unusual in what the likelihood is made of. The statistics here are what one pass of a VAE
tells of an image, and what a lossless coder would make of its pixels (Serra et al. 2020, on input complexity): few
pixels are hard to predict in a drawing, and none is easy in a photograph. Their density is a Gaussian fitted to
training images, so the score is a squared Mahalanobis distance.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor
from torch.nn.functional import pad

STATISTICS = (
    "log KL(q(z|x) || N(0, I))",
    "log of the nats that reconstruction loses against the best possible output",
    "bits per dimension",
    "code length",
    "share of pixels predicted exactly",
    "log mean prediction error",
)
"""The columns of `model_statistics` for images; rows of features have the first three."""

_LEAST = 1e-3
"""Nats below which two images are alike: keeps logarithms finite."""


def model_statistics(images: Tensor, kl: Tensor, loss: Tensor, bits_per_dim: Tensor) -> Tensor:
    """What is measured of each image (N x 6, or N x 3 for rows of features; float64).

    Args:
        images: as the networks see them, N x C x H x W, in [0, 1]; rows of features N x D x 1 x 1.
        kl: KL(q(z|x) || N(0, I)) in nats (N).
        loss: largest log p(x|z) that an output could have minus the one it has, in nats (N).
        bits_per_dim: negative ELBO (N).
    """
    columns = [(kl.clamp_min(0) + _LEAST).log(), (loss.clamp_min(0) + _LEAST).log(), bits_per_dim]
    if images.shape[2:] != (1, 1):
        columns += predictive_code(images)
    return torch.stack([column.double() for column in columns], 1)


def predictive_code(images: Tensor) -> list[Tensor]:
    """What a predictive coder finds in images: code length, share of exact predictions, log mean error (N each).

    Each pixel is predicted from its left, upper and upper left neighbors by the median predictor of LOCO-I
    (Weinberger et al. 2000, the coder of JPEG-LS). The code length is the mean of log2(1 + |error|), errors in
    intensity steps: bits per dimension up to the coder's constants, in a few sums that a graph can hold.

    Args:
        images: N x C x H x W, in [0, 1].
    """
    height, width = images.shape[2:]
    framed = pad(images, (1, 0, 1, 0))
    left, above = framed[:, :, 1:, :width], framed[:, :, :height, 1:]
    corner = framed[:, :, :height, :width]
    low, high = torch.minimum(left, above), torch.maximum(left, above)
    error = (images - (left + above - corner).clamp(low, high)).abs() * 255
    return [
        torch.log2(1 + error).mean((1, 2, 3)),
        (error < 0.5).to(error.dtype).mean((1, 2, 3)),
        (error.mean((1, 2, 3)) + 0.1).log(),
    ]


def fit(statistics: ArrayLike) -> NDArray[np.float64]:
    """The Gaussian of training images' statistics: their mean (first row), then a matrix that whitens them.

    Args:
        statistics: N x K.

    Returns:
        (1 + K) x K, for `dose`.
    """
    values = np.asarray(statistics, np.float64)
    mean = values.mean(0)
    scale = values.std(0) + 1e-6 * (1 + np.abs(mean))
    # The ridge keeps statistics that say the same, or always the same, from counting twice or without bounds.
    correlation = np.cov((values - mean) / scale, rowvar=False, bias=True).reshape(len(mean), -1)
    root = np.linalg.cholesky(correlation + 1e-3 * np.eye(len(mean)))
    whitening = np.linalg.solve(root, np.diag(1 / scale)).T
    return np.ascontiguousarray(np.vstack([mean, whitening]))


def dose(statistics: ArrayLike, fitted: NDArray[np.float64]) -> NDArray[np.float64]:
    """Squared Mahalanobis distance of statistics (N x K) from those that `fit` has seen (N)."""
    centered, whitening = np.asarray(statistics, np.float64) - fitted[0], fitted[1:]
    distance = np.zeros(len(centered))
    # Column by column: a matrix product may round an image's distance differently in other company.
    for column in whitening.T:
        projection = np.zeros(len(centered))
        for statistic, weight in zip(centered.T, column, strict=True):
            projection += statistic * weight
        distance += np.square(projection)
    return distance


def dose_tensor(statistics: Tensor, fitted: NDArray[np.float64]) -> Tensor:
    """`dose` with tensors, for export (N, float64)."""
    table = torch.from_numpy(fitted).to(statistics.device)
    return ((statistics.double() - table[0]) @ table[1:]).square().sum(1)


def describe(fitted: NDArray[np.float64]) -> str:
    """The statistics' means on training images, for people."""
    return "; ".join(f"{name} {mean:.4g}" for name, mean in zip(STATISTICS, fitted[0], strict=False))


def is_fitted(values: NDArray[np.float64]) -> bool:
    """Whether an array has the form that `fit` gives."""
    return values.ndim == 2 and values.shape[0] == values.shape[1] + 1 and bool(np.isfinite(values).all())
