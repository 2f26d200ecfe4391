"""Layers whose weight is computed from a learned one: divided by its spectral norm, or scaled for each channel."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize
from torch.nn.utils import parametrizations, parametrize

FIRST_ITERATIONS = 15
"""Power iterations before the first step; each step of training adds one."""


class ChannelScale(nn.Module):
    """A convolution's weight times one learned factor for each output channel, 1 at first.

    Args:
        filters: output channels.
    """

    def __init__(self, filters: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.empty(filters))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Start as the identity."""
        nn.init.ones_(self.scale)

    def forward(self, weight: Tensor) -> Tensor:
        """The layer's weight, given the learned one (both outputs x inputs x height x width)."""
        return weight * self.scale.view(-1, 1, 1, 1)


def channel_scaled(layer: nn.Conv2d) -> nn.Conv2d:
    """The convolution with a learned factor on each of its output channels."""
    parametrize.register_parametrization(layer, "weight", ChannelScale(layer.out_channels))
    return layer


def spectrally_normalized(layer: nn.Conv2d) -> nn.Conv2d:
    """The convolution with its weight, as a matrix of outputs by inputs, divided by its largest singular value.

    Miyato et al., "Spectral normalization for generative adversarial networks", 2018: one power iteration each time
    the layer is applied in training mode; none in evaluation mode.
    """
    parametrizations.spectral_norm(layer)
    return layer


def learned_weight(layer: nn.Conv2d | nn.ConvTranspose2d | nn.Linear) -> Tensor:
    """The parameter behind a layer's weight; the weight itself where it is not computed from another."""
    if not parametrize.is_parametrized(layer, "weight"):
        return layer.weight
    original: Tensor = layer.parametrizations["weight"].original  # type: ignore[index,union-attr]
    return original


@torch.no_grad()
def restart(layer: nn.Module, generator: torch.Generator) -> None:
    """Start what belongs to a computed weight anew, its learned weight being drawn: factors of 1, singular vectors.

    Args:
        layer: any; nothing is done to one whose weight is not computed.
        generator: of the first vectors of the power iteration, on the CPU.
    """
    if not parametrize.is_parametrized(layer, "weight"):
        return
    for step in layer.parametrizations["weight"]:  # type: ignore[index]
        if isinstance(step, ChannelScale):
            step.reset_parameters()
        else:
            for vector in (step._u, step._v):
                vector.copy_(normalize(torch.randn(vector.shape, generator=generator), dim=0))
    training = layer.training
    layer.train()
    for _ in range(FIRST_ITERATIONS):
        layer.weight  # noqa: B018 - computing it is a power iteration
    layer.train(training)
