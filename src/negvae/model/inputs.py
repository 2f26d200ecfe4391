"""From data as it is stored to the numbers that the networks see."""

from __future__ import annotations

import torch
from torch import Tensor, nn

FARTHEST = 1e3
"""Standardized features are clipped here, so that no input makes a score overflow."""


class Pixels(nn.Module):
    """uint8 intensities, N x C x H x W, as floats in [0, 1]."""

    stored = "uint8"

    def forward(self, images: Tensor) -> Tensor:
        """Divide by 255."""
        return images.float() / 255  # not in place: torch 2.6 does not export that

    def restore(self, values: Tensor) -> Tensor:
        """The uint8 intensities nearest to values in [0, 1]."""
        return values.mul(255).round().clamp(0, 255).to(torch.uint8)


class Features(nn.Module):
    """Rows of features of any range, N x D x 1 x 1, standardized to mean 0 and standard deviation 1.

    A feature that is constant in the training data keeps its unit, so that another value of it counts.

    Args:
        size: D.
    """

    stored = "floating-point"

    def __init__(self, size: int) -> None:
        super().__init__()
        self.mean: Tensor
        self.scale: Tensor
        # Double precision: the mean of a time stamp needs more digits than float32 has.
        self.register_buffer("mean", torch.zeros(size, 1, 1, dtype=torch.float64))
        self.register_buffer("scale", torch.ones(size, 1, 1, dtype=torch.float64))

    def measure(self, rows: Tensor) -> None:
        """Take mean and standard deviation from the training rows (N x D x 1 x 1)."""
        values = rows.double()
        mean, scale = values.mean(0), values.std(0, correction=0)
        self.mean.copy_(mean)
        # By equal values: rounding leaves a constant feature a deviation of a few units in the last place.
        varies = values.amax(0) > values.amin(0)
        self.scale.copy_(torch.where(varies & (scale > 0), scale, torch.ones_like(scale)))

    def forward(self, rows: Tensor) -> Tensor:
        """(x - mean) / scale, in float64."""
        return ((rows.double() - self.mean) / self.scale).clamp(-FARTHEST, FARTHEST)

    def restore(self, values: Tensor) -> Tensor:
        """The inverse: standardized values in the features' own units, in float64."""
        return values.double() * self.scale + self.mean
