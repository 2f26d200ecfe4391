"""A posterior for each patch of an image, with the two priors of section 3 of the paper in every patch.

The encoder is fully convolutional: a pyramid of four resolutions whose coarser levels are enlarged and joined with the
finer ones, so that each patch is judged by its details and by its surroundings. It takes each image with its details
set off (`with_details`): edges and grain tell most about what was put in, and are a small part of an image's contrast.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, interpolate, pad

from negvae.model.priors import GaussianPrior

LATENT_SIZE, SHIFT = 8, 4.0
"""Latent dimensions of a patch, and the c of its negative prior N(c 1, I)."""

WIDTH = 16


def patch_stride(height: int, width: int) -> int:
    """Return the side of the blocks of pixels that the encoder's finest level works on: up to 80 of them on a side.

    >>> [patch_stride(side, side) for side in (28, 64, 128, 256)]
    [1, 1, 2, 4]
    """
    stride = 1
    while max(height, width) / stride > 80:
        stride *= 2
    return stride


class PatchEncoder(nn.Module):
    """The network q(z|x) of each patch.

    Args:
        channels: C, the number of channels of an image.
        stride: side of the blocks of pixels that the finest level works on; a patch is twice as large.
        width: number of channels of the finest level.
        latent_size: L, the number of latent dimensions of a patch.
        shift: c in the negative prior N(c 1, I).
    """

    def __init__(
        self,
        channels: int,
        stride: int = 1,
        width: int = WIDTH,
        latent_size: int = LATENT_SIZE,
        shift: float = SHIFT,
    ) -> None:
        super().__init__()
        self.channels, self.stride, self.width, self.shift = channels, stride, width, shift
        self.prior, self.negative_prior = GaussianPrior(latent_size), GaussianPrior(latent_size, shift)
        self.latent_size = latent_size
        sizes = [width, 2 * width, 4 * width, 4 * width]
        kernel = 3 if stride == 1 else stride + 2
        self.fine = _convolution(3 * channels + 2, width, kernel, stride)
        self.down = nn.ModuleList(
            nn.Sequential(*_convolution(below, above, 3, 2), *_convolution(above, above, 3, 1))
            for below, above in itertools.pairwise(sizes)
        )
        self.across = nn.ModuleList(nn.Conv2d(sizes[level + 1], sizes[level], 1) for level in (2, 1))
        self.up = nn.ModuleList(_convolution(sizes[level], sizes[level], 3, 1) for level in (2, 1))
        self.head = nn.Conv2d(sizes[1], 2 * latent_size, 1)

    def forward(self, images: Tensor) -> Tensor:
        """Compute the posteriors of prepared images.

        Args:
            images: N x C x H x W, floats in [0, 1].

        Returns:
            Means, then logarithms of the variances, N x 2L x h x w; h and w are about H and W over twice the stride.
        """
        levels = [self.fine(_with_places(with_details(images)))]
        for stage in self.down:
            levels.append(stage(levels[-1]))
        joined = levels[3]
        for across, up, level in zip(self.across, self.up, (levels[2], levels[1]), strict=True):
            joined = up(level + interpolate(across(joined), size=level.shape[2:], mode="nearest"))
        output: Tensor = self.head(joined)
        return output

    def log_odds(self, images: Tensor) -> Tensor:
        """Compute the log-odds of the negative prior in each patch, in nats per latent dimension.

        It is KL(q || N(0, I)) - KL(q || N(c, I)) = c sum(mean) - L c^2 / 2, over L c: the mean of the posterior's mean,
        minus c / 2.

        Args:
            images: N x C x H x W, floats in [0, 1].

        Returns:
            N x h x w values in float32 at least.
        """
        mean = self(images).float().chunk(2, 1)[0].movedim(1, -1)
        excess = self.negative_prior.kl_excess(mean.reshape(-1, self.latent_size))
        return excess.reshape(mean.shape[:3]) / (self.latent_size * self.negative_prior.shift)

    def grid(self, masks: Tensor) -> Tensor:
        """Reduce masks of pixels to the share of each patch that they cover, N x 1 x H x W to N x h x w."""
        size = _size(masks.shape[2:], self.stride)
        return nn.functional.adaptive_avg_pool2d(masks, size)[:, 0]


def _size(sides: Sequence[int], stride: int) -> tuple[int, int]:
    height, width = ((side // stride + 1) // 2 for side in sides)
    return height, width


def with_details(images: Tensor) -> Tensor:
    """Add to images (N x C x H x W) their differences from the mean of 3x3 and of 7x7 pixels, enlarged: N x 3C x H x W.

    >>> with_details(torch.full((1, 1, 4, 4), 0.5)).flatten(2)[0, :, 0].tolist()
    [0.5, 0.0, 0.0]
    """
    plain = images.contiguous()  # in this layout, means of few channels are several times quicker
    parts = [plain]
    for radius, gain in ((1, 4.0), (3, 2.0)):
        means = avg_pool2d(pad(plain, (radius,) * 4, mode="replicate"), 2 * radius + 1, 1)
        parts.append(gain * (plain - means))
    return torch.cat(parts, 1)


def _with_places(images: Tensor) -> Tensor:
    """Add two channels to images (N x C x H x W): the vertical and the horizontal place of each pixel, -1 to 1."""
    n, _, height, width = images.shape
    y = torch.linspace(-1, 1, height, device=images.device, dtype=images.dtype).reshape(1, 1, -1, 1)
    x = torch.linspace(-1, 1, width, device=images.device, dtype=images.dtype).reshape(1, 1, 1, -1)
    placed = torch.cat([images, y.expand(n, 1, height, width), x.expand(n, 1, height, width)], 1)
    return placed.contiguous(memory_format=torch.channels_last)


def _convolution(channels: int, filters: int, kernel: int, stride: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(channels, filters, kernel, stride, padding=1, bias=False), nn.BatchNorm2d(filters), nn.ReLU()
    )
