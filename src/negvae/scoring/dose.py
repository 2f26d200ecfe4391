"""Density of states: how usual an image's statistics under the model are, all of them together.

Morningstar et al., "Density of states estimation for out-of-distribution detection", 2021: an image may have a usual
likelihood and still be unusual in what the likelihood is made of. The statistics here are those of one pass of a VAE
over an image, and how well a lossless coder predicts its pixels (Serra et al. 2020, on input complexity): few
pixels are hard to predict in a drawing, and none is easy in a photograph. Their density is a Gaussian fitted to
training images, so the score is a squared Mahalanobis distance.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor
from torch.nn.functional import pad

from negvae.scoring.passes import Pass
from negvae.scoring.references import Values
from negvae.scoring.table import Fit

COLUMNS = (
    "log KL(q(z|x) || N(0, I))",
    "log of the nats that reconstruction loses against the best possible output",
    "bits per dimension",
    "code length",
    "share of pixels predicted exactly",
    "log mean prediction error",
)
"""Of `statistics` for images; rows of features have the first three."""

_LEAST = 1e-3
"""Nats below which two images are alike: keeps logarithms finite."""


def dose(x: Pass) -> Tensor:
    """Return the squared Mahalanobis distance of an image's statistics from those of training images (N)."""
    return distance(statistics(x), x.fitted("dose"))


def statistics(x: Pass) -> Tensor:
    """Measure the statistics `COLUMNS` of each image (N x 6, or N x 3 for rows of features; float64)."""
    drawn = x.sampled()
    lost = x.model.likelihood.excess(drawn.output, drawn.target)
    columns = [(x.kl.clamp_min(0) + _LEAST).log(), (lost.clamp_min(0) + _LEAST).log(), x.bits_per_dim]
    if not x.model.takes_features:
        columns += predictive_code(x.images)
    return torch.stack([column.double() for column in columns], 1)


def predictive_code(images: Tensor) -> list[Tensor]:
    """Return a predictive coder's code length, share of exact predictions and log mean error (N each).

    Each pixel is predicted from its left, upper and upper left neighbors by the median predictor of LOCO-I
    (Weinberger et al. 2000, the coder of JPEG-LS). The code length is the mean of log2(1 + |error|), errors in
    intensity steps: bits per dimension up to the coder's constants, in a few sums that a graph can hold.

    Args:
        images: images with intensities in [0, 1], N x C x H x W.

    Returns:
        Three tensors of N values each, in the order above.
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


def fit(statistics: ArrayLike) -> Values:
    """Fit a Gaussian to training images' statistics: their mean (first row), then a matrix that whitens them.

    Args:
        statistics: statistics of N training images, N x K.

    Returns:
        The (1 + K) x K array that `distance` takes.
    """
    values = np.asarray(statistics, np.float64)
    mean = values.mean(0)
    scale = values.std(0) + 1e-6 * (1 + np.abs(mean))
    # The ridge keeps statistics that say the same, or always the same, from counting twice or without bounds.
    correlation = np.cov((values - mean) / scale, rowvar=False, bias=True).reshape(len(mean), -1)
    root = np.linalg.cholesky(correlation + 1e-3 * np.eye(len(mean)))
    whitening = np.linalg.solve(root, np.diag(1 / scale)).T
    return np.ascontiguousarray(np.vstack([mean, whitening]))


def distance(statistics: Tensor, fitted: Tensor) -> Tensor:
    """Return the squared Mahalanobis distance of statistics (N x K, float64) from those that `fit` was given (N)."""
    centered, whitening = statistics - fitted[0], fitted[1:]
    # Not a matrix product, which may round an image's distance differently in another place of its batch.
    return (centered.unsqueeze(2) * whitening).sum(1).square().sum(1)


def is_fitted(values: Values) -> bool:
    """Return whether an array has the form that `fit` gives."""
    return values.ndim == 2 and values.shape[0] == values.shape[1] + 1 and bool(np.isfinite(values).all())


DENSITY = Fit(statistics=statistics, fit=fit, distance=distance, is_fitted=is_fitted)
