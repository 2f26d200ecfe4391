"""The color networks that the paper's authors ran, and their likelihood of quantized pixels.

The paper's text (appendix A.2.2) describes other networks, which `negvae.model.networks.color` makes. The description
here is taken from the authors' published code, of which nothing is copied. All kernels are 4x4, padded to keep the
size (one pixel before and, where the stride is 1, two after), without bias, Glorot uniform. Encoder: 32 filters at
stride 1, then 64, 128 and 256 at stride 2. Decoder: linear to 256 x 4 x 4, then 128, 64 and 32 filters at stride 1,
each followed by a ReLU and by nearest-neighbor upsampling to twice the size, then a convolution to the image.

The normalization of the hidden convolutions differs between runs and is not certain (docs/reproduction.md):

    color-authors                batch norm in both networks
    color-authors-affine         a learned factor and offset for each channel instead of batch norm: equal to batch norm
                                 that stays at mean 0 and variance 1, as it does in the published code, in training
                                 and in tests
    color-authors-spectral       spectral norm in the encoder, nothing in the decoder: what the published code builds
                                 for runs with generated negatives
    color-authors-spectral-norm  spectral norm in the encoder, batch norm in the decoder: what its scripts request
"""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from negvae.model.likelihoods import QuantizedGaussian
from negvae.model.networks import PosteriorHead, Shape, require
from negvae.model.reparametrized import channel_scaled, spectrally_normalized

SHAPE = (3, 32, 32)
SMALLEST = 4
"""Height and width of the images at the smallest layer."""

Hidden = Callable[[int, int, int], list[nn.Module]]
"""A function that makes a hidden convolution and its normalization, given input channels, filters and stride."""


def _convolution(channels: int, filters: int, stride: int = 1, bias: bool = False) -> nn.Conv2d:
    """Make a 4x4 convolution; at stride 1, `_around` must precede it."""
    return nn.Conv2d(channels, filters, 4, stride, padding=0 if stride == 1 else 1, bias=bias)


def _around() -> nn.ZeroPad2d:
    """Make the padding with which a 4x4 convolution at stride 1 keeps an image's size."""
    return nn.ZeroPad2d((1, 2, 1, 2))


def _with_batch_norm(channels: int, filters: int, stride: int) -> list[nn.Module]:
    return [_convolution(channels, filters, stride), nn.BatchNorm2d(filters)]


def _affine(channels: int, filters: int, stride: int) -> list[nn.Module]:
    return [channel_scaled(_convolution(channels, filters, stride, bias=True))]


def _with_spectral_norm(channels: int, filters: int, stride: int) -> list[nn.Module]:
    return [spectrally_normalized(_convolution(channels, filters, stride))]


def _bare(channels: int, filters: int, stride: int) -> list[nn.Module]:
    return [_convolution(channels, filters, stride)]


def _encoder(latent_size: int, hidden: Hidden) -> nn.Sequential:
    layers: list[nn.Module] = [_around()]
    channels = SHAPE[0]
    for filters, stride in ((32, 1), (64, 2), (128, 2), (256, 2)):
        layers += [*hidden(channels, filters, stride), nn.ReLU()]
        channels = filters
    return nn.Sequential(*layers, nn.Flatten(), PosteriorHead(channels * SMALLEST**2, latent_size))


def _decoder(latent_size: int, hidden: Hidden) -> nn.Sequential:
    channels = 256
    layers: list[nn.Module] = [
        nn.Linear(latent_size, channels * SMALLEST**2),
        nn.Unflatten(1, (channels, SMALLEST, SMALLEST)),
    ]
    for filters in (128, 64, 32):
        layers += [_around(), *hidden(channels, filters, 1), nn.ReLU(), nn.Upsample(scale_factor=2)]
        channels = filters
    return nn.Sequential(*layers, _around(), _convolution(channels, SHAPE[0]))


def color_authors(shape: Shape, latent_size: int) -> tuple[nn.Sequential, nn.Sequential]:
    """Make networks with batch norm in both."""
    require("color-authors", shape, SHAPE)
    return _encoder(latent_size, _with_batch_norm), _decoder(latent_size, _with_batch_norm)


def color_authors_affine(shape: Shape, latent_size: int) -> tuple[nn.Sequential, nn.Sequential]:
    """Make networks with a learned factor and offset for each channel in both."""
    require("color-authors-affine", shape, SHAPE)
    return _encoder(latent_size, _affine), _decoder(latent_size, _affine)


def color_authors_spectral(shape: Shape, latent_size: int) -> tuple[nn.Sequential, nn.Sequential]:
    """Make networks with spectral norm in the encoder, and no normalization in the decoder."""
    require("color-authors-spectral", shape, SHAPE)
    return _encoder(latent_size, _with_spectral_norm), _decoder(latent_size, _bare)


def color_authors_spectral_norm(shape: Shape, latent_size: int) -> tuple[nn.Sequential, nn.Sequential]:
    """Make networks with spectral norm in the encoder and batch norm in the decoder."""
    require("color-authors-spectral-norm", shape, SHAPE)
    return _encoder(latent_size, _with_spectral_norm), _decoder(latent_size, _with_batch_norm)


class DequantizedGaussian(QuantizedGaussian):
    """A Gaussian density on uniformly dequantized pixels, which the encoder also sees in training.

    The authors' runs did the same: noise of one intensity step was added to every image as it was read, including
    negatives from other data sets. Scores encode images without the noise.
    """

    encodes_noise = True
