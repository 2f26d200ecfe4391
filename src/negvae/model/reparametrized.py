"""Layers whose weight is computed from a learned one: divided by its spectral norm, or scaled for each channel."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize
from torch.nn.utils import parametrize


class ChannelScale(nn.Module):
    """The product of a convolution's weight and one learned factor for each output channel, initially 1.

    Args:
        filters: number of output channels.
    """

    def __init__(self, filters: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.empty(filters))

    def initialize(self, generator: torch.Generator) -> None:
        """Set all factors to 1, so that the weight is unchanged."""
        nn.init.ones_(self.scale)

    def forward(self, weight: Tensor) -> Tensor:
        """Compute the layer's weight from the learned one (both outputs x inputs x height x width)."""
        return weight * self.scale.view(-1, 1, 1, 1)


class SpectralNorm(nn.Module):
    """A convolution's weight divided by an estimate of its largest singular value, as a matrix of outputs by inputs.

    Miyato et al., "Spectral normalization for generative adversarial networks", 2018: each time the layer is applied in
    training, one power iteration improves the estimate of the left singular vector of the largest value; in evaluation
    mode the stored vector does not change. The gradient treats both singular vectors as constants. Torch's own version
    (torch.nn.utils.parametrizations) is not used, because it draws its vectors from the global random state and runs
    power iterations on a weight that is not yet initialized.

    Args:
        filters: number of output channels.
    """

    def __init__(self, filters: int) -> None:
        super().__init__()
        self.vector: Tensor
        self.register_buffer("vector", torch.empty(filters))

    def initialize(self, generator: torch.Generator) -> None:
        """Draw the first vector from the standard normal distribution, as the authors of the paper did."""
        self.vector.normal_(generator=generator)

    def forward(self, weight: Tensor) -> Tensor:
        """Compute the layer's weight from the learned one (both outputs x inputs x height x width)."""
        with torch.autocast(weight.device.type, enabled=False):
            matrix = weight.flatten(1)
            with torch.no_grad():
                right = normalize(matrix.t() @ self.vector, dim=0)
                left = normalize(matrix @ right, dim=0)
                if self.training:
                    self.vector.copy_(left)
            return weight / (left @ (matrix @ right))


def channel_scaled(layer: nn.Conv2d) -> nn.Conv2d:
    """Add a learned factor for each output channel to a convolution, and return it."""
    parametrize.register_parametrization(layer, "weight", ChannelScale(layer.out_channels))
    return layer


def spectrally_normalized(layer: nn.Conv2d) -> nn.Conv2d:
    """Make a convolution divide its weight by its spectral norm (see `SpectralNorm`), and return it."""
    # Unsafe: torch's check would compute a weight, of which there is none yet.
    parametrize.register_parametrization(layer, "weight", SpectralNorm(layer.out_channels), unsafe=True)
    return layer


def learned_weight(layer: nn.Conv2d | nn.ConvTranspose2d | nn.Linear) -> Tensor:
    """Return the parameter that a layer's weight is computed from, or the weight itself if it is not computed.

    Args:
        layer: convolution or linear layer.

    Returns:
        The parameter, of the weight's shape.

    Raises:
        ValueError: if it is computed from several parameters, as torch's weight norm does.
    """
    if not parametrize.is_parametrized(layer, "weight"):
        return layer.weight
    original = getattr(layer.parametrizations["weight"], "original", None)  # type: ignore[index]
    if not isinstance(original, Tensor):
        raise ValueError(
            f"the weight of a {type(layer).__name__} is computed from several parameters, for which there is no"
            " initialization: compute it from one"
        )
    return original
