"""Layers whose weight is computed from a learned one: divided by its spectral norm, or scaled for each channel."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize
from torch.nn.utils import parametrize


class ChannelScale(nn.Module):
    """A convolution's weight times one learned factor for each output channel, 1 at first.

    Args:
        filters: output channels.
    """

    def __init__(self, filters: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.empty(filters))

    def initialize(self, generator: torch.Generator) -> None:
        """Start as the identity."""
        nn.init.ones_(self.scale)

    def forward(self, weight: Tensor) -> Tensor:
        """The layer's weight, given the learned one (both outputs x inputs x height x width)."""
        return weight * self.scale.view(-1, 1, 1, 1)


class SpectralNorm(nn.Module):
    """A convolution's weight, as a matrix of outputs by inputs, divided by an estimate of its largest singular value.

    Miyato et al., "Spectral normalization for generative adversarial networks", 2018: each time the layer is applied in
    training, one power iteration brings the left singular vector nearer to the largest value's; in evaluation mode
    the vector stays. The gradient takes both singular vectors as given. Torch's own (torch.nn.utils.parametrizations)
    starts its vectors from the global random state, by power iterations on a weight that is yet to be drawn.

    Args:
        filters: output channels.
    """

    def __init__(self, filters: int) -> None:
        super().__init__()
        self.vector: Tensor
        self.register_buffer("vector", torch.empty(filters))

    def initialize(self, generator: torch.Generator) -> None:
        """Draw the first vector, as the authors of the paper did: standard normal."""
        self.vector.normal_(generator=generator)

    def forward(self, weight: Tensor) -> Tensor:
        """The layer's weight, given the learned one (both outputs x inputs x height x width)."""
        with torch.autocast(weight.device.type, enabled=False):
            matrix = weight.flatten(1)
            with torch.no_grad():
                right = normalize(matrix.t() @ self.vector, dim=0)
                left = normalize(matrix @ right, dim=0)
                if self.training:
                    self.vector.copy_(left)
            return weight / (left @ (matrix @ right))


def channel_scaled(layer: nn.Conv2d) -> nn.Conv2d:
    """The convolution with a learned factor on each of its output channels."""
    parametrize.register_parametrization(layer, "weight", ChannelScale(layer.out_channels))
    return layer


def spectrally_normalized(layer: nn.Conv2d) -> nn.Conv2d:
    """The convolution with its weight divided by its spectral norm; see `SpectralNorm`."""
    # Unsafe: torch's check would compute a weight, of which there is none yet.
    parametrize.register_parametrization(layer, "weight", SpectralNorm(layer.out_channels), unsafe=True)
    return layer


def learned_weight(layer: nn.Conv2d | nn.ConvTranspose2d | nn.Linear) -> Tensor:
    """The parameter behind a layer's weight; the weight itself where it is not computed from another."""
    if not parametrize.is_parametrized(layer, "weight"):
        return layer.weight
    original: Tensor = layer.parametrizations["weight"].original  # type: ignore[index,union-attr]
    return original
