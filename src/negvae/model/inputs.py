"""Conversion of stored data to the input of the networks, and back."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

FARTHEST = 1e3
"""Largest absolute value of standardized features, which are clipped so that no score overflows."""
_MOST, _SMALLEST = float(np.finfo(np.float64).max), float(np.finfo(np.float64).smallest_subnormal)


class Pixels(nn.Module):
    """The conversion of uint8 intensities, N x C x H x W, to floats in [0, 1].

    >>> Pixels()(torch.tensor([0, 51, 255], dtype=torch.uint8))
    tensor([0.0000, 0.2000, 1.0000])
    """

    stored = "uint8"

    def forward(self, images: Tensor) -> Tensor:
        """Divide intensities by 255."""
        return images.float() / 255  # not in place: torch 2.6 does not export that

    def restore(self, values: Tensor) -> Tensor:
        """Return the uint8 intensities nearest to values in [0, 1]."""
        return values.mul(255).round().clamp(0, 255).to(torch.uint8)


class Features(nn.Module):
    """The standardization of rows of features, N x D x 1 x 1, to mean 0 and standard deviation 1.

    Features may have any unit that float64 can hold. A feature that is constant in the training data has no deviation;
    it is divided by its magnitude if that is below 1, and else left as it is.

    Args:
        size: D, the number of features.
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
        """Measure mean and standard deviation on the training rows (N x D x 1 x 1)."""
        values = rows.double()
        # In units of a power of two, which changes no digit: squares of the values themselves may over- or underflow.
        largest = values.abs().amax(0)
        unit = torch.from_numpy(np.ldexp(1.0, np.frexp(largest.cpu().numpy())[1] - 1)).to(values.device)
        counted = values / unit
        # By equal values: rounding leaves a constant feature a deviation of a few units in the last place.
        varies = values.amax(0) > values.amin(0)
        self.mean.copy_(torch.where(varies, counted.mean(0) * unit, values[0]))
        scale = (counted.std(0, correction=0) * unit).clamp(_SMALLEST, _MOST)
        # A change of a small constant is seen in comparison with it; one of a large constant may be small beside it, as
        # that of a time stamp is.
        step = torch.where(largest > 0, largest.clamp(max=1), torch.ones_like(largest))
        self.scale.copy_(torch.where(varies, scale, step))

    def forward(self, rows: Tensor) -> Tensor:
        """Compute (x - mean) / scale, clipped to [-1000, 1000], in float64."""
        # Halves, which changes no digit: the difference of two of the largest numbers overflows.
        half = (rows.double() * 0.5 - self.mean * 0.5) / self.scale
        return (half * 2).clamp(-FARTHEST, FARTHEST)

    def restore(self, values: Tensor) -> Tensor:
        """Convert standardized values back to the features' own units, in float64; what overflows is cut."""
        half = values.double() * (self.scale * 0.5) + self.mean * 0.5
        return half.clamp(-_MOST / 2, _MOST / 2) * 2
