"""How far the codes of an image's transformed copies lie from their priors, and whether inliers' copies differ at all.

Each transformation t has a prior N(mu_t, I) (`negvae.model.shifted`). Whether the encoder can tell the transformations
of these inliers is measured on inliers that it was not trained on.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from negvae.model import VAE
from negvae.model.shifted import held_back
from negvae.scoring.compute import over_blocks
from negvae.scoring.passes import Pass, SharedDraws
from negvae.scoring.references import Values, scale
from negvae.spacing import evenly_spaced

IMAGES = 1000
"""Largest number of unseen inliers that are measured."""
LEAST_IMAGES = 20
"""Number of unseen inliers below which their scores have no scale."""
LEAST_GAIN = 1.2
"""Least ratio of the share of copies that are told apart to that by chance; below it, the transformations are none."""


def transformations_kl(x: Pass) -> Tensor:
    """Return the sum over transformations t of KL(q(z|t(x)) || prior_t) in nats (N).

    It is the loss of the encoder of transformations (`negvae.model.shifted`), for one image and as the mean over its
    views: with the identity alone it would be a KL to N(0, I).
    """
    return x.transformed_divergences.diagonal(dim1=1, dim2=2).sum(1)


@dataclass(frozen=True)
class Judgement:
    """What the encoder of transformations makes of inliers that it was not trained on.

    Attributes:
        images: number of these inliers.
        accuracy: share of their transformed copies whose own prior is the nearest; 0 without any.
        chance: that share by chance.
        scales: scale of their score (`negvae.scoring.references.scale`) by the score's name; none without any.
    """

    images: int
    accuracy: float
    chance: float
    scales: Mapping[str, Values]

    @property
    def counts(self) -> bool:
        """Return whether the scores of the transformations are among those that "combined" is made of."""
        return self.images >= LEAST_IMAGES and self.accuracy >= LEAST_GAIN * self.chance

    def describe(self) -> str:
        """Describe the judgement in one line.

        >>> Judgement(9, 0.27, 0.25, {}).describe()
        'transformations are left out of combined: 9 unseen inliers are fewer than 20'
        """
        what = "are part of combined" if self.counts else "are left out of combined"
        told_apart = f"{self.accuracy:.0%} of the copies of {self.images:,} unseen inliers are told apart"
        why = f"{told_apart} ({self.chance:.0%} by chance)"
        if self.images < LEAST_IMAGES:
            why = f"{self.images} unseen inliers are fewer than {LEAST_IMAGES}"
        return f"transformations {what}: {why}"


def judge(model: VAE, training: Tensor, precision: str) -> Judgement:
    """Measure the encoder of transformations on the training images that it has not seen.

    Args:
        model: trained VAE with transformations, in evaluation mode.
        training: stored training images, uint8, N x C x H x W, or a part of them.
        precision: precision of the networks.

    Returns:
        The judgement.
    """
    assert model.shifted is not None
    chance, rows = 1 / model.shifted.priors.count, held_back(training).nonzero().flatten()
    unseen = training[rows[evenly_spaced(len(rows), IMAGES)]]
    if not len(unseen):
        return Judgement(0, 0.0, chance, {})
    functions: dict[str, Callable[[Pass], Tensor]] = {"transformations_kl": transformations_kl, "right": _right}
    found = over_blocks(model, unseen, functions, draws=SharedDraws(), precision=precision)
    accuracy = float(found.pop("right").mean())
    return Judgement(len(unseen), accuracy, chance, {name: scale(values.numpy()) for name, values in found.items()})


def _right(x: Pass) -> Tensor:
    """Return the share of each image's copies whose own prior is the nearest (N)."""
    nearest = x.transformed_divergences.argmin(2)
    return (nearest == torch.arange(nearest.shape[1], device=nearest.device)).double().mean(1)
