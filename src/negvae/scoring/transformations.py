"""Whether transformations with priors tell anything about these inliers, judged by inliers alone."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from negvae.model import VAE
from negvae.model.shifted import held_back
from negvae.scoring.compute import over_blocks
from negvae.scoring.passes import Pass, SharedDraws
from negvae.scoring.references import Values, scale
from negvae.scoring.scores import transformations

IMAGES = 1000
"""Largest number of unseen inliers that are measured."""
LEAST_IMAGES = 20
"""Number of unseen inliers below which their scores have no scale."""
LEAST_ACCURACY = 0.5
"""Share of the copies of unseen inliers that must be told apart: below it, most of the transformations are none."""


@dataclass(frozen=True)
class Judgement:
    """What the encoder of transformations makes of inliers that it was not trained on.

    Attributes:
        images: number of these inliers.
        accuracy: share of their transformed copies whose own prior is the nearest; 0 without any.
        scale: scale of their scores (`negvae.scoring.references.scale`); None without any.
    """

    images: int
    accuracy: float
    scale: Values | None

    @property
    def counts(self) -> bool:
        """Return whether the score "transformations" is one of those that "combined" is made of."""
        return self.images >= LEAST_IMAGES and self.accuracy >= LEAST_ACCURACY

    def describe(self) -> str:
        """Describe the judgement in one line.

        >>> Judgement(100, 0.25, None).describe()
        'transformations are left out of combined: 25% of the copies of 100 unseen inliers are told apart'
        """
        what = "are part of combined" if self.counts else "are left out of combined"
        why = f"{self.accuracy:.0%} of the copies of {self.images:,} unseen inliers are told apart"
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
    unseen = training[held_back(training)][:IMAGES]
    if not len(unseen):
        return Judgement(0, 0.0, None)
    functions = {"score": transformations, "right": _right}
    found = over_blocks(model, unseen, functions, draws=SharedDraws(), precision=precision)
    return Judgement(len(unseen), float(found["right"].mean()), scale(found["score"].numpy()))


def _right(x: Pass) -> Tensor:
    """Return the share of each image's copies whose own prior is the nearest (N)."""
    nearest = x.transformed_divergences.argmin(2)
    return (nearest == torch.arange(nearest.shape[1], device=nearest.device)).double().mean(1)
