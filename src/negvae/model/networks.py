"""Encoder and decoder networks by name.

An encoder maps images (N x C x H x W) to N x 2L numbers: the posterior's means, then the logarithms of its
variances. A decoder maps codes (N x L) to an output of the image's shape, which the likelihood interprets.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import nn

Shape = tuple[int, int, int]


def build_networks(name: str, shape: Shape, latent_size: int) -> tuple[nn.Sequential, nn.Sequential]:
    """The (encoder, decoder) called `name` for images of `shape` (C, H, W), not yet initialized.

    Raises:
        ValueError: the networks are not made for such images.
    """
    return _BUILDERS[name](shape, latent_size)


def initialize(module: nn.Module, scheme: str, generator: torch.Generator) -> None:
    """Draw every weight of `module` anew from `generator`; batch norms start as the identity.

    Args:
        module: network to initialize in place.
        scheme: "normal": convolutions and their biases from N(0, 0.02), that is a standard deviation of 0.141,
            linear layers Glorot uniform (the gray networks of Rosca et al., 2018); "glorot": Glorot uniform
            throughout (the default of the authors' framework, for the color networks); "he": He normal for
            the ReLU layers. Biases are zero where not said otherwise.
        generator: source of randomness, on the CPU.
    """
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d | nn.Linear):
            weight = layer.weight
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
            if scheme == "he":
                nn.init.normal_(weight, 0, math.sqrt(2 / _inputs_per_output(layer)), generator=generator)
            elif scheme == "glorot" or isinstance(layer, nn.Linear):
                # The posterior's two heads share one layer, but each is initialized as its own.
                for part in weight.chunk(2) if isinstance(layer, PosteriorHead) else (weight,):
                    nn.init.xavier_uniform_(part, generator=generator)
            else:
                nn.init.normal_(weight, 0, math.sqrt(0.02), generator=generator)
                if layer.bias is not None:
                    nn.init.normal_(layer.bias, 0, math.sqrt(0.02), generator=generator)
        elif isinstance(layer, nn.BatchNorm2d):
            layer.reset_parameters()
    if scheme == "he":
        # Start near the prior: with full-size heads, exp(log-variance) can overflow in the first steps.
        for layer in module.modules():
            if isinstance(layer, PosteriorHead):
                with torch.no_grad():
                    layer.weight.mul_(0.1)


class PosteriorHead(nn.Linear):
    """The last layer of an encoder: means and log-variances side by side."""

    def __init__(self, features: int, latent_size: int) -> None:
        super().__init__(features, 2 * latent_size)


def _inputs_per_output(layer: nn.Conv2d | nn.ConvTranspose2d | nn.Linear) -> float:
    """How many inputs reach one output unit, on average where strides make it uneven."""
    if isinstance(layer, nn.Linear):
        return layer.in_features
    taps = math.prod(layer.kernel_size) * layer.in_channels
    return taps / math.prod(layer.stride) if isinstance(layer, nn.ConvTranspose2d) else taps


def _gray_encoder(latent_size: int) -> nn.Sequential:
    """Rosca et al. (2018), appendix K, table 4: 28-14-14-7-7-4."""
    layers: list[nn.Module] = []
    channels = 1
    for filters, stride in ((8, 2), (16, 1), (32, 2), (64, 1), (64, 2)):
        layers += [nn.Conv2d(channels, filters, 5, stride, padding=2), nn.ReLU()]
        channels = filters
    return nn.Sequential(*layers, nn.Flatten(), PosteriorHead(64 * 4 * 4, latent_size))


def _upsample(channels: int, filters: int) -> nn.ConvTranspose2d:
    """5x5 transposed convolution that doubles height and width."""
    return nn.ConvTranspose2d(channels, filters, 5, stride=2, padding=2, output_padding=1)


def _require(name: str, shape: Shape, wanted: Shape) -> None:
    if shape != wanted:
        made_for, given = ("x".join(map(str, s)) for s in (wanted, shape))
        raise ValueError(
            f"network {name} is made for {made_for} images, these are {given} (C x H x W): use network auto"
        )


def _gray(shape: Shape, latent_size: int) -> tuple[nn.Sequential, nn.Sequential]:
    """The paper's encoder and a light decoder with the encoder's filters in reverse."""
    _require("gray", shape, (1, 28, 28))
    decoder = nn.Sequential(
        nn.Linear(latent_size, 64 * 7 * 7), nn.Unflatten(1, (64, 7, 7)), nn.ReLU(),
        nn.Conv2d(64, 64, 5, padding=2), nn.ReLU(),
        _upsample(64, 32), nn.ReLU(),
        nn.Conv2d(32, 16, 5, padding=2), nn.ReLU(),
        _upsample(16, 8), nn.ReLU(),
        nn.Conv2d(8, 1, 5, padding=2),
    )  # fmt: skip
    return _gray_encoder(latent_size), decoder


def _gray_paper(shape: Shape, latent_size: int) -> tuple[nn.Sequential, nn.Sequential]:
    """The paper's encoder and the decoder of Nalisnick et al. (2018)."""
    _require("gray-paper", shape, (1, 28, 28))
    decoder = nn.Sequential(
        nn.Linear(latent_size, 64 * 7 * 7), nn.Unflatten(1, (64, 7, 7)),
        _upsample(64, 32), nn.ReLU(),
        _upsample(32, 32), nn.ReLU(),
        # A transposed convolution of stride 1 is a convolution with its kernel turned; this one is quicker.
        nn.Conv2d(32, 256, 5, padding=2), nn.ReLU(),
        nn.Conv2d(256, 1, 5, padding=2),
    )  # fmt: skip
    return _gray_encoder(latent_size), decoder


def _color(shape: Shape, latent_size: int) -> tuple[nn.Sequential, nn.Sequential]:
    """Appendix A.2.2: 4x4 Conv-BatchNorm-ReLU, filters 32-64-128 and 128-64-image."""
    _require("color", shape, (3, 32, 32))

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


def _auto(shape: Shape, latent_size: int) -> tuple[nn.Sequential, nn.Sequential]:
    """Halve height and width until the shorter side is below 8, doubling the filters from 32 up to 256.

    No batch norm: it would couple the inliers of a batch with the negatives beside them.
    """
    sizes, filters = _pyramid("auto", shape)
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


def _pyramid(name: str, shape: Shape) -> tuple[list[tuple[int, int]], list[int]]:
    """Sizes from the image's down to below 8, and the filters at each; at the first the image's channels."""
    channels, height, width = shape
    if not (16 <= height <= 128 and 16 <= width <= 128):
        raise ValueError(
            f"network {name} takes images from 16x16 to 128x128, these are {height}x{width}: resize them first"
        )
    if not 1 <= channels <= 16:
        raise ValueError(f"network {name} takes 1 to 16 channels, these images have {channels}")
    sizes = [(height, width)]
    while min(sizes[-1]) >= 8:
        sizes.append((sizes[-1][0] // 2, sizes[-1][1] // 2))
    return sizes, [channels, *(min(32 * 2**level, 256) for level in range(len(sizes) - 1))]


def _deep(shape: Shape, latent_size: int) -> tuple[nn.Sequential, nn.Sequential]:
    """The decoder of `auto`, and an encoder that looks at every pixel before it halves the image, and between.

    What tells a transformed inlier from an inlier is often fine: how sharp edges are, how smooth the areas between.
    """
    sizes, filters = _pyramid("deep", shape)
    layers: list[nn.Module] = [nn.Conv2d(shape[0], 16, 3, padding=1), nn.ReLU()]
    channels = 16
    for width in filters[1:]:
        layers += [nn.Conv2d(channels, width, 4, stride=2, padding=1), nn.ReLU(),
                   nn.Conv2d(width, width, 3, padding=1), nn.ReLU()]  # fmt: skip
        channels = width
    head = PosteriorHead(channels * math.prod(sizes[-1]), latent_size)
    return nn.Sequential(*layers, nn.Flatten(), head), _auto(shape, latent_size)[1]


def _mlp(shape: Shape, latent_size: int) -> tuple[nn.Sequential, nn.Sequential]:
    """Two hidden layers of twice as many units as there are features, 64 to 512."""
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


def _linear(shape: Shape, latent_size: int) -> tuple[nn.Sequential, nn.Sequential]:
    """One linear layer each way, for few rows: a probabilistic PCA with a learned posterior."""
    if shape[1:] != (1, 1):
        raise ValueError(
            f"network linear takes rows of features, these are {'x'.join(map(str, shape))} images (C x H x W)"
        )
    encoder = nn.Sequential(nn.Flatten(), PosteriorHead(shape[0], latent_size))
    return encoder, nn.Sequential(nn.Linear(latent_size, shape[0]), nn.Unflatten(1, shape))


_BUILDERS: dict[str, Callable[[Shape, int], tuple[nn.Sequential, nn.Sequential]]] = {
    "gray": _gray,
    "gray-paper": _gray_paper,
    "color": _color,
    "auto": _auto,
    "deep": _deep,
    "mlp": _mlp,
    "linear": _linear,
}
