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

from negvae.parts import network_entry

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
        ValueError: if the networks are not made for data of this shape, or have parameters in common.
        TypeError: if the function does not return a pair of networks.

    >>> encoder, decoder = build_networks("gray", (1, 28, 28), latent_size=10)
    >>> encoder(torch.zeros(3, 1, 28, 28)).shape
    torch.Size([3, 20])
    """
    entry = network_entry(part)
    made = entry.load()(shape, latent_size)
    if not (isinstance(made, tuple) and len(made) == 2 and all(isinstance(each, nn.Module) for each in made)):
        kinds = [type(each).__name__ for each in made] if isinstance(made, tuple) else [type(made).__name__]
        raise TypeError(
            f"network {entry.name} must make a pair (encoder, decoder) of torch.nn.Module, not {', '.join(kinds)}"
        )
    for what, network in zip(("encoder", "decoder"), made, strict=True):
        if not any(True for _ in network.parameters()):
            raise ValueError(f"network {entry.name}: the {what} has no parameters, so that nothing can be trained")
    names = {parameter: name for name, parameter in made[0].named_parameters()}
    if common := [names[parameter] for parameter in made[1].parameters() if parameter in names]:
        raise ValueError(
            f"network {entry.name}: the encoder's {common[0]} is a parameter of the decoder too: each is trained by"
            " itself, so give each its own"
        )
    if not all(each.is_meta for network in made for each in (*network.parameters(), *network.buffers())):
        made = copy.deepcopy(made)  # the modules are the caller's, who may give them to another model too
    encoder, decoder = (each if isinstance(each, nn.Sequential) else nn.Sequential(each) for each in made)
    return encoder, decoder


def check_networks(name: str, encoder: nn.Module, decoder: nn.Module, shape: Shape, latent_size: int) -> None:
    """Check on two blank images that networks give outputs of the shapes that the model expects.

    Args:
        name: name of the networks for the message.
        encoder: network that is to map images (N x C x H x W) to N x 2L numbers.
        decoder: network that is to map codes (N x L) to N x C x H x W numbers.
        shape: shape (C, H, W) of the images.
        latent_size: L, the number of latent dimensions.

    Raises:
        ValueError: if the encoder does not give N x 2L numbers, or the decoder not N x C x H x W.
    """
    modes = encoder.training, decoder.training
    try:
        with torch.no_grad():
            codes = encoder.eval()(torch.zeros(2, *shape, dtype=torch.float32))
            output = decoder.eval()(torch.zeros(2, latent_size, dtype=torch.float32))
    finally:
        encoder.train(modes[0])
        decoder.train(modes[1])
    for what, given, wanted in (
        ("encoder", codes, (2, 2 * latent_size)),
        ("decoder", output, (2, *shape)),
    ):
        if not isinstance(given, torch.Tensor):
            raise ValueError(
                f"network {name}: the {what} gives a {type(given).__name__}, expected one tensor of shape"
                f" N x {'x'.join(map(str, wanted[1:]))}"
            )
        if tuple(given.shape) != wanted:
            shown = ["x".join(map(str, each)) for each in (given.shape[1:], wanted[1:])]
            raise ValueError(f"network {name}: the {what} gives N x {shown[0]}, expected N x {shown[1]}")


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
            f"network {name} takes images from 16x16 to 256x256, these are {height}x{width}: resize them first, or give"
            " a folder of image files, which are cut into tiles"
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
