"""Initialization of weights: one function for each scheme, and what applies a scheme to a network without memory."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import nn
from torch.nn.utils.parametrize import ParametrizationList

from negvae.model.networks import PosteriorHead
from negvae.model.reparametrized import learned_weight
from negvae.parts import INITIALIZATIONS

Layer = nn.Conv2d | nn.ConvTranspose2d | nn.Linear
"""Layers that the schemes initialize."""
Norm = nn.BatchNorm1d | nn.BatchNorm2d | nn.GroupNorm | nn.LayerNorm | nn.InstanceNorm2d
"""Layers that start as the identity in all schemes."""
WEIGHTS = {"weight", "bias"}
"""What the schemes set in a layer."""
STATISTICS = {"running_mean", "running_var", "num_batches_tracked"}
"""What is set in norms besides."""
Initialize = Callable[[Layer, torch.Generator], None]
"""A function that draws a layer's weight, and its bias if that does not stay zero."""


def give_storage(network: nn.Module) -> None:
    """Give parameters and buffers memory on the CPU, in float32, in place; their values are then arbitrary.

    torch gives a parameter that stands in several places one of its own in each; here it stays one.
    """
    places: dict[nn.Parameter, list[str]] = {}
    for place, parameter in network.named_parameters(remove_duplicate=False):
        places.setdefault(parameter, []).append(place)
    network.float().to_empty(device="cpu")
    for first, *others in places.values():
        for layer, _, name in (other.rpartition(".") for other in others):
            setattr(network.get_submodule(layer), name, network.get_parameter(first))


def initialize(module: nn.Module, scheme: str, generator: torch.Generator) -> None:
    """Draw every weight of `module` anew from `generator`; norms start as the identity, biases at zero.

    If a layer's weight is computed from a learned weight, the learned one is drawn. A layer with a method
    `initialize(generator)` then sets its own parameters and buffers with it, all that the schemes do not know at least.

    Args:
        module: network to initialize in place.
        scheme: name of the scheme in `negvae.parts.INITIALIZATIONS`.
        generator: source of randomness, on the CPU.

    Raises:
        ValueError: if a layer has parameters or buffers that are not those of torch's own convolutions, linear layers
            and norms, and no method `initialize`.
    """
    draw = INITIALIZATIONS[scheme].load()
    for layer in module.modules():
        if isinstance(layer, ParametrizationList):
            continue  # what it holds was drawn with the layer that it is of
        known = WEIGHTS if isinstance(layer, Layer) else WEIGHTS | STATISTICS if isinstance(layer, Norm) else set()
        owned = {name for name, _ in (*layer.named_parameters(recurse=False), *layer.named_buffers(recurse=False))}
        own = getattr(layer, "initialize", None)
        if own is None and (unknown := owned - known):
            raise ValueError(
                f"initialization {scheme} does not know the layer {type(layer).__name__}, which has parameters or"
                f" buffers ({', '.join(sorted(unknown))}): give it a method initialize(generator) that sets them"
            )
        if isinstance(layer, Layer):
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
            draw(layer, generator)
        elif isinstance(layer, Norm):
            layer.reset_parameters()
        if own is not None and (known or owned):
            own(generator)


def normal(layer: Layer, generator: torch.Generator) -> None:
    """Draw a convolution and its bias from N(0, 0.02), a standard deviation of 0.141; a linear layer as `glorot` does.

    This is the scheme of the gray networks of Rosca et al. (2018), appendix K; 0.02 is the variance.
    """
    if isinstance(layer, nn.Linear):
        glorot(layer, generator)
        return
    nn.init.normal_(learned_weight(layer), 0, math.sqrt(0.02), generator=generator)
    if layer.bias is not None:
        nn.init.normal_(layer.bias, 0, math.sqrt(0.02), generator=generator)


def glorot(layer: Layer, generator: torch.Generator) -> None:
    """Draw a weight from the Glorot uniform distribution, the default of the authors' framework.

    This is the scheme of the color networks.
    """
    # The posterior's two heads share one layer, but each is initialized as its own.
    weight = learned_weight(layer)
    for part in weight.chunk(2) if isinstance(layer, PosteriorHead) else (weight,):
        nn.init.xavier_uniform_(part, generator=generator)


def he(layer: Layer, generator: torch.Generator) -> None:
    """Draw a weight from the He normal distribution, for ReLU layers, scaled by 0.1 for the posterior's head.

    The smaller head starts the posterior near the prior; otherwise exp(log-variance) can overflow in the first steps.
    """
    nn.init.normal_(learned_weight(layer), 0, math.sqrt(2 / _inputs_per_output(layer)), generator=generator)
    if isinstance(layer, PosteriorHead):
        with torch.no_grad():
            layer.weight.mul_(0.1)


def _inputs_per_output(layer: Layer) -> float:
    """Return how many inputs reach one output unit, on average if strides make it uneven."""
    if isinstance(layer, nn.Linear):
        return layer.in_features
    taps = math.prod(layer.kernel_size) * layer.in_channels
    return taps / math.prod(layer.stride) if isinstance(layer, nn.ConvTranspose2d) else taps
