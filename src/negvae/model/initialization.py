"""How weights are drawn: one function for each scheme, and the walk over a network's layers."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import nn

from negvae.model.networks import PosteriorHead
from negvae.parts import INITIALIZATIONS

Layer = nn.Conv2d | nn.ConvTranspose2d | nn.Linear
"""What the schemes know."""
Norm = nn.BatchNorm1d | nn.BatchNorm2d | nn.GroupNorm | nn.LayerNorm | nn.InstanceNorm2d
"""What starts as the identity in all of them."""
Initialize = Callable[[Layer, torch.Generator], None]
"""Draws a layer's weight, and its bias where that is not to stay zero."""


def initialize(module: nn.Module, scheme: str, generator: torch.Generator) -> None:
    """Draw every weight of `module` anew from `generator`; norms start as the identity, biases at zero.

    A layer that the schemes do not know sets its own parameters and buffers in a method `initialize(generator)`.

    Args:
        module: network to initialize in place.
        scheme: one of `negvae.parts.INITIALIZATIONS`.
        generator: source of randomness, on the CPU.

    Raises:
        ValueError: a layer has parameters or buffers that nothing here knows.
    """
    draw = INITIALIZATIONS[scheme].load()
    for layer in module.modules():
        if isinstance(layer, Layer):
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
            draw(layer, generator)
        elif isinstance(layer, Norm):
            layer.reset_parameters()
        elif any(True for _ in (*layer.parameters(recurse=False), *layer.buffers(recurse=False))):
            own = getattr(layer, "initialize", None)
            if own is None:
                raise ValueError(
                    f"initialization {scheme} does not know the layer {type(layer).__name__}, which has parameters or"
                    " buffers: give it a method initialize(generator) that sets them"
                )
            own(generator)


def normal(layer: Layer, generator: torch.Generator) -> None:
    """Draw a convolution and its bias from N(0, 0.02), a standard deviation of 0.141; a linear layer as `glorot` does.

    The gray networks of Rosca et al. (2018), appendix K.
    """
    if isinstance(layer, nn.Linear):
        glorot(layer, generator)
        return
    nn.init.normal_(layer.weight, 0, math.sqrt(0.02), generator=generator)
    if layer.bias is not None:
        nn.init.normal_(layer.bias, 0, math.sqrt(0.02), generator=generator)


def glorot(layer: Layer, generator: torch.Generator) -> None:
    """Draw a weight Glorot uniform: the default of the authors' framework, for the color networks."""
    # The posterior's two heads share one layer, but each is initialized as its own.
    for part in layer.weight.chunk(2) if isinstance(layer, PosteriorHead) else (layer.weight,):
        nn.init.xavier_uniform_(part, generator=generator)


def he(layer: Layer, generator: torch.Generator) -> None:
    """Draw a weight He normal, for ReLU layers; a tenth of it for the posterior's head.

    So it starts near the prior: with full-size heads, exp(log-variance) can overflow in the first steps.
    """
    nn.init.normal_(layer.weight, 0, math.sqrt(2 / _inputs_per_output(layer)), generator=generator)
    if isinstance(layer, PosteriorHead):
        with torch.no_grad():
            layer.weight.mul_(0.1)


def _inputs_per_output(layer: Layer) -> float:
    """How many inputs reach one output unit, on average where strides make it uneven."""
    if isinstance(layer, nn.Linear):
        return layer.in_features
    taps = math.prod(layer.kernel_size) * layer.in_channels
    return taps / math.prod(layer.stride) if isinstance(layer, nn.ConvTranspose2d) else taps
