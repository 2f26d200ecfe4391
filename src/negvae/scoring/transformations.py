"""How unusual the codes of an image's transformed copies are, and whether that says anything about these inliers.

Each transformation t has a prior N(mu_t, I), and the codes of the inliers' copies fall around its mean, but not as the
prior has it: some copies look like those of another transformation (an S upside down is an S), and some directions are
hardly used. So the score takes, in place of each prior, the Gaussian N(m_t, C_t) that fits the codes of training
images' copies best, with a tenth of the prior's own covariance I mixed in: the aggregate posterior (Hoffman & Johnson
2016), as far as a Gaussian has it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from negvae.model import VAE
from negvae.model.shifted import held_back
from negvae.scoring.compute import over_blocks
from negvae.scoring.passes import Pass, SharedDraws
from negvae.scoring.references import References, Values, scale
from negvae.scoring.table import Fit

RIDGE = 0.1
"""Share of the prior's covariance in each fitted one."""
IMAGES = 1000
"""Largest number of unseen inliers that are measured."""
LEAST_IMAGES = 20
"""Number of unseen inliers below which their scores have no scale."""
LEAST_ACCURACY = 0.5
"""Share of the copies of unseen inliers that must be told apart: below it, most of the transformations are none."""


def transformations(x: Pass) -> Tensor:
    """Return the sum over transformations t of the squared Mahalanobis distance from N(m_t, C_t) (N)."""
    return distance(statistics(x), x.fitted("transformations"))


def transformations_kl(x: Pass) -> Tensor:
    """Return the sum over transformations t of KL(q(z|t(x)) || prior_t) in nats (N).

    It is the loss of the encoder of transformations (`negvae.model.shifted`), for one image: with the identity alone it
    would be a KL to N(0, I).
    """
    return x.transformed_divergences.diagonal(dim1=1, dim2=2).sum(1)


def statistics(x: Pass) -> Tensor:
    """Return the posterior means of each image's T copies (N x T x L, float64)."""
    return x.transformed_means


def fit(codes: ArrayLike) -> Values:
    """Fit a Gaussian to the codes of each transformation.

    Args:
        codes: statistics of N training images, N x T x L.

    Returns:
        T x (1 + L) x L numbers: for each transformation the mean, then a matrix that whitens.
    """
    values = np.asarray(codes, np.float64)
    identity, fitted = np.eye(values.shape[2]), []
    for part in values.transpose(1, 0, 2):
        mean = part.mean(0)
        covariance = (part - mean).T @ (part - mean) / len(part)
        root = np.linalg.cholesky((1 - RIDGE) * covariance + RIDGE * identity)
        fitted.append(np.vstack([mean, np.linalg.inv(root).T]))
    return np.ascontiguousarray(fitted)


def distance(codes: Tensor, fitted: Tensor) -> Tensor:
    """Return the summed squared Mahalanobis distances of codes (N x T x L) from those that `fit` was given (N)."""
    centered = codes - fitted[:, 0]
    # Not a matrix product, which may round an image's distance differently in another place of its batch.
    return (centered.unsqueeze(3) * fitted[:, 1:]).sum(2).square().sum((1, 2))


def is_fitted(values: Values) -> bool:
    """Return whether an array has the form that `fit` gives."""
    return values.ndim == 3 and values.shape[1] == values.shape[2] + 1 and bool(np.isfinite(values).all())


DENSITY = Fit(statistics=statistics, fit=fit, distance=distance, is_fitted=is_fitted)


@dataclass(frozen=True)
class Judgement:
    """What the encoder of transformations makes of inliers that it was not trained on.

    Attributes:
        images: number of these inliers.
        accuracy: share of their transformed copies whose own prior is the nearest; 0 without any.
        scales: scale of their scores (`negvae.scoring.references.scale`) by the score's name; none without any.
    """

    images: int
    accuracy: float
    scales: Mapping[str, Values]

    @property
    def counts(self) -> bool:
        """Return whether the scores of the transformations are among those that "combined" is made of."""
        return self.images >= LEAST_IMAGES and self.accuracy >= LEAST_ACCURACY

    def describe(self) -> str:
        """Describe the judgement in one line.

        >>> Judgement(100, 0.25, {}).describe()
        'transformations are left out of combined: 25% of the copies of 100 unseen inliers are told apart'
        """
        what = "are part of combined" if self.counts else "are left out of combined"
        why = f"{self.accuracy:.0%} of the copies of {self.images:,} unseen inliers are told apart"
        if self.images < LEAST_IMAGES:
            why = f"{self.images} unseen inliers are fewer than {LEAST_IMAGES}"
        return f"transformations {what}: {why}"


def judge(model: VAE, training: Tensor, references: References, precision: str) -> Judgement:
    """Measure the encoder of transformations on the training images that it has not seen.

    Args:
        model: trained VAE with transformations, in evaluation mode.
        training: stored training images, uint8, N x C x H x W, or a part of them.
        references: statistics of training images, to which the score "transformations" is fitted.
        precision: precision of the networks.

    Returns:
        The judgement.
    """
    unseen = training[held_back(training)][:IMAGES]
    if not len(unseen):
        return Judgement(0, 0.0, {})
    functions: dict[str, Callable[[Pass], Tensor]] = {
        "transformations": transformations, "transformations_kl": transformations_kl, "right": _right,
    }  # fmt: skip
    found = over_blocks(model, unseen, functions, draws=SharedDraws(), references=references, precision=precision)
    accuracy = float(found.pop("right").mean())
    return Judgement(len(unseen), accuracy, {name: scale(values.numpy()) for name, values in found.items()})


def _right(x: Pass) -> Tensor:
    """Return the share of each image's copies whose own prior is the nearest (N)."""
    nearest = x.transformed_divergences.argmin(2)
    return (nearest == torch.arange(nearest.shape[1], device=nearest.device)).double().mean(1)
