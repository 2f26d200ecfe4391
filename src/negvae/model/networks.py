"""Encoder and decoder networks; `negvae.parts.NETWORKS` lists their names.

An encoder maps images (N x C x H x W) to N x 2L numbers: the posterior's means, then the logarithms of its
variances. A decoder maps codes (N x L) to an output of the image's shape, which the likelihood interprets.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from negvae.messages import first_line
from negvae.parts import NETWORK_ARGUMENTS, network_entry
from negvae.registry import require_arguments

Shape = tuple[int, int, int]


BuildNetworks = Callable[[Shape, int], tuple[nn.Module, nn.Module]]
"""A function that makes (encoder, decoder) for data of shape (C, H, W) and codes of a given size."""


def build_networks(part: str | BuildNetworks, shape: Shape, latent_size: int) -> tuple[nn.Sequential, nn.Sequential]:
    """Make an encoder and a decoder, not yet initialized.

    Args:
        part: name in `negvae.parts.NETWORKS`, or a function that makes both networks.
        shape: shape (C, H, W) of the data.
        latent_size: L, the number of latent dimensions; the encoder gives 2L numbers.

    Returns:
        The encoder and the decoder; copies, if the function did not make its modules just now.

    Raises:
        ValueError: if the networks are not made for data of this shape, have parameters in common, have none to train,
            or have frozen ones whose values would be drawn anew.
        TypeError: if the function takes other arguments, or does not return a pair of networks.

    >>> encoder, decoder = build_networks("gray", (1, 28, 28), latent_size=10)
    >>> encoder(torch.zeros(3, 1, 28, 28)).shape
    torch.Size([3, 20])
    """
    entry = network_entry(part)
    build = entry.load()
    target: object = build
    if isinstance(target, nn.Module) or (isinstance(target, type) and issubclass(target, nn.Module)):
        raise TypeError(f"network {entry.name} is a torch.nn.Module: it must be a function that makes two of them")
    if not isinstance(entry.target, str):  # the library's own take these
        require_arguments(f"network {entry.name}", build, *NETWORK_ARGUMENTS)
    made = build(shape, latent_size)
    if not (isinstance(made, tuple) and len(made) == 2 and all(isinstance(each, nn.Module) for each in made)):
        kinds = [type(each).__name__ for each in made] if isinstance(made, tuple) else [type(made).__name__]
        raise TypeError(
            f"network {entry.name} must make a pair (encoder, decoder) of torch.nn.Module, not {', '.join(kinds)}"
        )
    for what, network in zip(("encoder", "decoder"), made, strict=True):
        if not any(each.requires_grad for each in network.parameters()):
            raise ValueError(
                f"network {entry.name}: the {what} has no parameters with a gradient, so that nothing can be trained"
            )
        if lazy := [name for name, each in network.named_parameters() if is_lazy(each)]:
            raise ValueError(f"network {entry.name}: the {what}'s {lazy[0]} has no size yet: give its layer all sizes")
    names = {parameter: name for name, parameter in made[0].named_parameters()}
    if common := [names[parameter] for parameter in made[1].parameters() if parameter in names]:
        raise ValueError(
            f"network {entry.name}: the encoder's {common[0]} is a parameter of the decoder too: each is trained by"
            " itself, so give each its own"
        )
    for what, network in zip(("encoder", "decoder"), made, strict=True):
        _refuse_frozen(f"network {entry.name}: the {what}", network)
    if not all(each.is_meta for network in made for each in (*network.parameters(), *network.buffers())):
        made = copy.deepcopy(made)  # the modules are the caller's, who may give them to another model too
    encoder, decoder = (each if isinstance(each, nn.Sequential) else nn.Sequential(each) for each in made)
    return encoder, decoder


def _refuse_frozen(what: str, network: nn.Module) -> None:
    """Refuse parameters that are to keep values which they have, and would be drawn with all others.

    Raises:
        ValueError: if there is one in a layer without a method `initialize`; the message names it.
    """
    for place, layer in network.named_modules():
        if hasattr(layer, "initialize"):
            continue
        for name, each in layer.named_parameters(recurse=False):
            if not each.requires_grad and not each.is_meta:
                raise ValueError(
                    f"{what}'s {place + '.' * bool(place)}{name} does not train and has values, which would be drawn"
                    f" anew: give its layer, a {type(layer).__name__}, a method initialize(generator) that sets them"
                )


def _refuse_hidden(what: str, network: nn.Module) -> None:
    """Refuse layers and tensors in attributes where torch does not find them: nothing would train, move or save them.

    Tensors that need no gradient and have values already are left to their owner.

    Raises:
        ValueError: if there is one; the message names the attribute.
    """
    found = {id(each) for each in (*network.modules(), *network.parameters(), *network.buffers())}
    for layer in network.modules():
        for name, value in vars(layer).items():
            if name in ("_parameters", "_buffers", "_modules"):
                continue
            several = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else ()
            for each in (value, *several):
                if id(each) in found:
                    continue
                place = f"{what} keeps {name} of {type(layer).__name__} where torch does not find it: make it"
                if isinstance(each, nn.Module):
                    raise ValueError(f"{place} a torch.nn.ModuleList or ModuleDict")
                if isinstance(each, torch.Tensor) and (each.is_meta or each.requires_grad):
                    raise ValueError(
                        f"{place} a torch.nn.Parameter, or a buffer (register_buffer) if it is not trained, and set it"
                        " in a method initialize(generator)"
                    )


def check_networks(
    name: str, encoder: nn.Module, decoder: nn.Module, shape: Shape, latent_size: int, *, features: bool = False
) -> None:
    """Check on three images, or rows, that networks give what the model expects, and that they can be trained.

    Args:
        name: name of the networks for the message.
        encoder: network that is to map images (N x C x H x W) to N x 2L numbers.
        decoder: network that is to map codes (N x L) to N x C x H x W numbers.
        shape: shape (C, H, W) of the images.
        latent_size: L, the number of latent dimensions.
        features: whether they take rows of features; they are trained in float32 and scored in float64.

    Raises:
        ValueError: if the encoder does not give N x 2L numbers, or the decoder not N x C x H x W; if the numbers are
            not finite, not in the precision of the inputs, or depend on the other inputs of a batch; if a network
            changes its inputs, or keeps layers or tensors where torch does not find them; or if the gradient does not
            reach the parameters, or the codes.
    """
    images = torch.linspace(0, 1, 3 * math.prod(shape), dtype=torch.float32).reshape(3, *shape)
    images = images.contiguous(memory_format=torch.channels_last)  # as in training
    codes = torch.linspace(-1, 1, 3 * latent_size, dtype=torch.float32).reshape(3, latent_size).requires_grad_()
    for what, network, given, wanted in (
        (f"network {name}: the encoder", encoder, images, (2 * latent_size,)),
        (f"network {name}: the decoder", decoder, codes, shape),
    ):
        _check_network(what, network, given, wanted)
        if features:
            _check_network(what, network.double(), given.detach().double().requires_grad_(given.requires_grad), wanted)
            network.float()


def _check_network(what: str, network: nn.Module, given: torch.Tensor, wanted: tuple[int, ...]) -> None:
    """Check what a network gives for N inputs, of the shape `wanted` each, and its gradient."""
    _refuse_hidden(what, network)
    inputs = given.clone()
    untouched = inputs._version
    output = _output(what, network, inputs, wanted)
    if not output.isfinite().all():
        raise ValueError(
            f"{what} gives NaN or infinite numbers: a method initialize(generator) must set all that its layer has"
        )
    if inputs._version != untouched:
        raise ValueError(
            f"{what} changes its inputs, which are used again: let its first layers work on a copy, not in place"
        )
    _check_gradient(what, network, given, output)
    alone = _output(what, network, given[:1].detach(), wanted)
    if (output[:1] - alone).abs().max() > 1e-3 * (output.abs().max() + 1):  # which rounding does not reach
        raise ValueError(
            f"{what} gives an input other numbers alone than in a batch, on which its score would then depend: use"
            " stored statistics when it is not training (a norm's track_running_stats=True), and no random numbers"
        )


def _output(what: str, network: nn.Module, inputs: torch.Tensor, wanted: tuple[int, ...]) -> torch.Tensor:
    """Compute what a network gives when it is not training, and check that it is a tensor as the inputs are."""
    training = network.training
    try:
        with torch.enable_grad():
            output = network.eval()(inputs)
    except Exception as error:  # of anybody's code
        several, kind = "s" * (len(inputs) > 1), "" if inputs.dtype == torch.float32 else " in float64"
        sizes = "x".join(map(str, inputs.shape[1:])) + kind
        raise ValueError(f"{what} fails on {len(inputs)} input{several} of {sizes}: {first_line(error)}") from error
    finally:
        network.train(training)
    expected = "x".join(map(str, wanted))
    if not isinstance(output, torch.Tensor):
        raise ValueError(f"{what} gives a {type(output).__name__}, expected one tensor of shape N x {expected}")
    if tuple(output.shape) != (len(inputs), *wanted):
        of_each = "x".join(map(str, output.shape[1:]))
        given = f"N x {of_each}" if output.shape[:1] == inputs.shape[:1] else f"shape {tuple(output.shape)}"
        raise ValueError(f"{what} gives {given}, expected N x {expected}")
    if output.dtype != inputs.dtype or output.device != inputs.device:
        raise ValueError(
            f"{what} gives {output.dtype} on {output.device} for {inputs.dtype} on {inputs.device}: it must keep both"
        )
    return output


def _check_gradient(what: str, network: nn.Module, given: torch.Tensor, output: torch.Tensor) -> None:
    """Refuse a network in which a parameter gets no gradient, or the inputs where they need one."""
    trained = {name: each for name, each in network.named_parameters() if each.requires_grad}
    reached: dict[str, torch.Tensor | None] = dict.fromkeys(trained)
    wanted = {**trained, **({"its input": given} if given.requires_grad else {})}
    if output.requires_grad:
        gradients = torch.autograd.grad(output.sum(), list(wanted.values()), allow_unused=True)
        reached = dict(zip(wanted, gradients, strict=True))
    if missed := [name for name in wanted if reached.get(name) is None]:
        raise ValueError(
            f"{what} gives {missed[0]} no gradient, so that it cannot be trained: leave out detach(), torch.no_grad()"
            " and layers that are not used; what is to stay as it is has requires_grad_(False)"
        )


class PosteriorHead(nn.Linear):
    """The last layer of an encoder: means, then log-variances of the posterior."""

    def __init__(self, features: int, latent_size: int) -> None:
        super().__init__(features, 2 * latent_size)


def _gray_encoder(latent_size: int) -> nn.Sequential:
    """Make the encoder of Rosca et al. (2018), appendix K, table 4: sizes 28-14-14-7-7-4."""
    layers: list[nn.Module] = []
    channels = 1
    for filters, stride in ((8, 2), (16, 1), (32, 2), (64, 1), (64, 2)):
        layers += [nn.Conv2d(channels, filters, 5, stride, padding=2), nn.ReLU()]
        channels = filters
    return nn.Sequential(*layers, nn.Flatten(), PosteriorHead(64 * 4 * 4, latent_size))


def _upsample(channels: int, filters: int) -> nn.ConvTranspose2d:
    """Make a 5x5 transposed convolution that doubles height and width."""
    return nn.ConvTranspose2d(channels, filters, 5, stride=2, padding=2, output_padding=1)


def require(name: str, shape: Shape, wanted: Shape) -> None:
    """Refuse images of a shape that a network is not made for.

    Args:
        name: name of the network for the message.
        shape: shape (C, H, W) of the images.
        wanted: shape (C, H, W) that the network is made for.

    Raises:
        ValueError: if the two shapes differ.
    """
    if shape != wanted:
        made_for, given = ("x".join(map(str, s)) for s in (wanted, shape))
        raise ValueError(
            f"network {name} is made for {made_for} images, these are {given} (C x H x W): use network pyramid"
        )


def gray(shape: Shape, latent_size: int) -> tuple[nn.Sequential, nn.Sequential]:
    """Make the paper's encoder and a light decoder with the encoder's filters in reverse."""
    require("gray", shape, (1, 28, 28))
    decoder = nn.Sequential(
        nn.Linear(latent_size, 64 * 7 * 7), nn.Unflatten(1, (64, 7, 7)), nn.ReLU(),
        nn.Conv2d(64, 64, 5, padding=2), nn.ReLU(),
        _upsample(64, 32), nn.ReLU(),
        nn.Conv2d(32, 16, 5, padding=2), nn.ReLU(),
        _upsample(16, 8), nn.ReLU(),
        nn.Conv2d(8, 1, 5, padding=2),
    )  # fmt: skip
    return _gray_encoder(latent_size), decoder


def gray_paper(shape: Shape, latent_size: int) -> tuple[nn.Sequential, nn.Sequential]:
    """Make the paper's encoder and the decoder of Nalisnick et al. (2018)."""
    require("gray-paper", shape, (1, 28, 28))
    decoder = nn.Sequential(
        nn.Linear(latent_size, 64 * 7 * 7), nn.Unflatten(1, (64, 7, 7)),
        _upsample(64, 32), nn.ReLU(),
        _upsample(32, 32), nn.ReLU(),
        # A transposed convolution of stride 1 is a convolution with its kernel turned; this one is quicker.
        nn.Conv2d(32, 256, 5, padding=2), nn.ReLU(),
        nn.Conv2d(256, 1, 5, padding=2),
    )  # fmt: skip
    return _gray_encoder(latent_size), decoder


def color(shape: Shape, latent_size: int) -> tuple[nn.Sequential, nn.Sequential]:
    """Make the networks of appendix A.2.2: 4x4 Conv-BatchNorm-ReLU, filters 32-64-128 and 128-64-image."""
    require("color", shape, (3, 32, 32))

    def down(channels: int, filters: int) -> list[nn.Module]:
        conv = nn.Conv2d(channels, filters, 4, stride=2, padding=1, bias=False)
        return [conv, nn.BatchNorm2d(filters), nn.ReLU()]

    def up(channels: int, filters: int) -> list[nn.Module]:
        conv = nn.ConvTranspose2d(channels, filters, 4, stride=2, padding=1, bias=False)
        return [conv, nn.BatchNorm2d(filters), nn.ReLU()]

    encoder = nn.Sequential(
        *down(3, 32), *down(32, 64), *down(64, 128), nn.Flatten(), PosteriorHead(128 * 4 * 4, latent_size)
    )
    decoder = nn.Sequential(
        nn.Linear(latent_size, 128 * 4 * 4), nn.Unflatten(1, (128, 4, 4)), nn.BatchNorm2d(128), nn.ReLU(),
        *up(128, 128), *up(128, 64), nn.ConvTranspose2d(64, 3, 4, stride=2, padding=1),
    )  # fmt: skip
    return encoder, decoder


def pyramid(shape: Shape, latent_size: int) -> tuple[nn.Sequential, nn.Sequential]:
    """Make networks that halve height and width until the shorter side is below 8; filters double from 32 up to 256.

    They have no batch norm, which would couple the inliers of a batch with its negatives.
    """
    sizes, filters = _levels("pyramid", shape)
    down: list[nn.Module] = []
    for level in range(len(sizes) - 1):
        down += [nn.Conv2d(filters[level], filters[level + 1], 4, stride=2, padding=1), nn.ReLU()]
    up: list[nn.Module] = []
    for level in range(len(sizes) - 1, 0, -1):
        smaller, larger = sizes[level], sizes[level - 1]
        odd = (larger[0] - 2 * smaller[0], larger[1] - 2 * smaller[1])
        # The images come from a stride-1 layer over the finest features: sharper than a strided last layer.
        into = filters[level - 1] if level > 1 else filters[1]
        up += [
            nn.ConvTranspose2d(filters[level], into, 4, stride=2, padding=1, output_padding=odd),
            nn.ReLU(),
        ]
    top = (filters[-1], *sizes[-1])
    features = math.prod(top)
    encoder = nn.Sequential(*down, nn.Flatten(), PosteriorHead(features, latent_size))
    decoder = nn.Sequential(
        nn.Linear(latent_size, features), nn.Unflatten(1, top), nn.ReLU(),
        *up, nn.Conv2d(filters[1], shape[0], 3, padding=1),
    )  # fmt: skip
    return encoder, decoder


def _levels(name: str, shape: Shape) -> tuple[list[tuple[int, int]], list[int]]:
    """Return sizes from the image's down to below 8, and the filters at each; the first are the image's channels."""
    channels, height, width = shape
    if not (16 <= height <= 256 and 16 <= width <= 256):
        raise ValueError(
            f"network {name} takes images from 16x16 to 256x256, these are {height}x{width}: resize them first, or"
            " have the images of a folder cut into tiles (fit tile, with a side in this range if one is given)"
        )
    if not 1 <= channels <= 16:
        raise ValueError(f"network {name} takes 1 to 16 channels, these images have {channels}")
    sizes = [(height, width)]
    while min(sizes[-1]) >= 8:
        sizes.append((sizes[-1][0] // 2, sizes[-1][1] // 2))
    return sizes, [channels, *(min(32 * 2**level, 256) for level in range(len(sizes) - 1))]


def deep(shape: Shape, latent_size: int) -> tuple[nn.Sequential, nn.Sequential]:
    """Make the decoder of `pyramid`, and an encoder with a stride-1 convolution before and after each halving.

    Transformed inliers often differ from inliers in fine detail: how sharp edges are, how smooth the areas between.
    """
    sizes, filters = _levels("deep", shape)
    layers: list[nn.Module] = [nn.Conv2d(shape[0], 16, 3, padding=1), nn.ReLU()]
    channels = 16
    for width in filters[1:]:
        layers += [nn.Conv2d(channels, width, 4, stride=2, padding=1), nn.ReLU(),
                   nn.Conv2d(width, width, 3, padding=1), nn.ReLU()]  # fmt: skip
        channels = width
    head = PosteriorHead(channels * math.prod(sizes[-1]), latent_size)
    return nn.Sequential(*layers, nn.Flatten(), head), pyramid(shape, latent_size)[1]


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions with batch norm around which the input passes by (He et al. 2016).

    Args:
        channels: number of channels of the input.
        filters: number of channels of the output.
        stride: stride of the first convolution.
    """

    def __init__(self, channels: int, filters: int, stride: int) -> None:
        super().__init__()
        self.inner = nn.Sequential(
            nn.Conv2d(channels, filters, 3, stride, padding=1, bias=False), nn.BatchNorm2d(filters), nn.ReLU(),
            nn.Conv2d(filters, filters, 3, padding=1, bias=False), nn.BatchNorm2d(filters),
        )  # fmt: skip
        self.skip = nn.Sequential(nn.Conv2d(channels, filters, 1, stride, bias=False), nn.BatchNorm2d(filters))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the block's output, N x filters x H/stride x W/stride."""
        output: torch.Tensor = self.skip(x) + self.inner(x)
        return output.relu()


def residual_encoder(channels: int, latent_size: int) -> nn.Sequential:
    """Make an encoder of a convolution and three residual blocks that each halve height and width.

    For 3 x 32 x 32 images it has 9 million multiply-adds.

    Args:
        channels: number of channels of the images.
        latent_size: L, the number of latent dimensions; the encoder gives 2L numbers.

    Returns:
        The encoder.
    """
    width = 16
    blocks = [ResidualBlock(i * width, o * width, 2) for i, o in ((1, 2), (2, 4), (4, 4))]
    return nn.Sequential(
        nn.Conv2d(channels, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU(), *blocks,
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), PosteriorHead(4 * width, latent_size),
    )  # fmt: skip


def residual(shape: Shape, latent_size: int) -> tuple[nn.Sequential, nn.Sequential]:
    """Make the decoder of `pyramid`, and the residual encoder that shifting transformations have."""
    decoder = pyramid(shape, latent_size)[1]
    return residual_encoder(shape[0], latent_size), decoder


def mlp(shape: Shape, latent_size: int) -> tuple[nn.Sequential, nn.Sequential]:
    """Make networks for rows of features, of two hidden layers with twice as many units as features, 64 to 512."""
    features = shape[0]
    if shape[1:] != (1, 1):
        raise ValueError(
            f"network mlp takes rows of features, these are {'x'.join(map(str, shape))} images (C x H x W)"
        )
    units = min(max(2 * features, 64), 512)
    encoder = nn.Sequential(
        nn.Flatten(), nn.Linear(features, units), nn.ReLU(), nn.Linear(units, units), nn.ReLU(),
        PosteriorHead(units, latent_size),
    )  # fmt: skip
    decoder = nn.Sequential(
        nn.Linear(latent_size, units), nn.ReLU(), nn.Linear(units, units), nn.ReLU(),
        nn.Linear(units, features), nn.Unflatten(1, shape),
    )  # fmt: skip
    return encoder, decoder


def linear(shape: Shape, latent_size: int) -> tuple[nn.Sequential, nn.Sequential]:
    """Make an encoder and a decoder of one linear layer each, for few rows of features.

    This is probabilistic PCA with a learned posterior (Tipping & Bishop 1999).
    """
    if shape[1:] != (1, 1):
        raise ValueError(
            f"network linear takes rows of features, these are {'x'.join(map(str, shape))} images (C x H x W)"
        )
    encoder = nn.Sequential(nn.Flatten(), PosteriorHead(shape[0], latent_size))
    return encoder, nn.Sequential(nn.Linear(latent_size, shape[0]), nn.Unflatten(1, shape))
