"""Proxy outliers made of the inliers themselves, by which settings are judged: never used as negatives.

A detector without outside data has no outliers to choose its settings by, and choosing by an out-of-distribution test
set would leak the answer. These take its place: transformations of held-out inliers, and drawings, none of which
is in `negvae.parts.TRANSFORMATIONS` and so none of which a model has been trained against. Like those, each takes
images (N x C x H x W, floats in [0, 1], N >= 2) and a random generator, and returns as many of the same shape and
range.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import affine_grid, conv2d, grid_sample, interpolate, pad

from negvae.negatives.transformations import Transformation, uniform


def turned(images: Tensor, generator: torch.Generator) -> Tensor:
    """Turn images by 30 to 90 degrees either way about the center, with reflected borders."""
    angle = uniform(images, math.pi / 6, math.pi / 2, generator).flatten()
    angle = angle * (uniform(images, -1, 1, generator).flatten()).sign()
    grid = torch.zeros(len(images), 2, 3, device=images.device)
    grid[:, 0, 0] = grid[:, 1, 1] = angle.cos()
    grid[:, 0, 1], grid[:, 1, 0] = -angle.sin(), angle.sin()
    return _sampled(images, affine_grid(grid, list(images.shape), align_corners=False))


def collage(images: Tensor, generator: torch.Generator) -> Tensor:
    """Join four images of the batch, each at half its height and width."""
    height, width = images.shape[2:]
    small = interpolate(images, size=((height + 1) // 2, (width + 1) // 2), mode="area")
    rows = [torch.cat([small.roll(a, 0), small.roll(a + 1, 0)], 3) for a in (0, 2)]
    return torch.cat(rows, 2)[:, :, :height, :width].contiguous()


def blurred(images: Tensor, generator: torch.Generator) -> Tensor:
    """Blur images with a Gaussian whose standard deviation is 1 to 2 pixels in 28."""
    sigma = uniform(images, 1, 2, generator) * (images.shape[2] * images.shape[3]) ** 0.5 / 28
    reach = max(math.ceil(3 * float(images.shape[2]) / 14), 3)
    offsets = torch.arange(-reach, reach + 1, device=images.device, dtype=images.dtype)
    kernel = torch.exp(-0.5 * (offsets / sigma.reshape(-1, 1)) ** 2)
    kernel = (kernel / kernel.sum(1, keepdim=True)).repeat_interleave(images.shape[1], 0)
    size = images.shape
    rows = images.reshape(1, size[0] * size[1], *size[2:])
    rows = conv2d(pad(rows, (0, 0, reach, reach), mode="replicate"), kernel[:, None, :, None], groups=len(kernel))
    rows = conv2d(pad(rows, (reach, reach, 0, 0), mode="replicate"), kernel[:, None, None, :], groups=len(kernel))
    return rows.reshape(size).clamp(0, 1)


def inverted(images: Tensor, generator: torch.Generator) -> Tensor:
    """Swap light and dark: 1 - x."""
    return 1 - images


def shrunk(images: Tensor, generator: torch.Generator) -> Tensor:
    """Shrink images to 40 to 70% of their size, at a random place on the image's median color."""
    n = len(images)
    share = uniform(images, 0.4, 0.7, generator).flatten()
    grid = torch.zeros(n, 2, 3, device=images.device)
    grid[:, 0, 0] = grid[:, 1, 1] = 1 / share
    place = (2 * torch.rand(2, n, generator=generator, device=images.device) - 1) * (1 - share)
    grid[:, 0, 2], grid[:, 1, 2] = -place[0] / share, -place[1] / share
    paper = images.flatten(2).median(2).values[:, :, None, None]
    places = affine_grid(grid, list(images.shape), align_corners=False)
    small: Tensor = grid_sample(images - paper, places, padding_mode="zeros", align_corners=False) + paper
    return small.clamp(0, 1)


def posterized(images: Tensor, generator: torch.Generator) -> Tensor:
    """Reduce each channel to two levels: 1 above the channel's own mean and 0 below."""
    return (images > images.mean((2, 3), keepdim=True)).to(images.dtype)


def warped(images: Tensor, generator: torch.Generator) -> Tensor:
    """Bend images by a smooth random field of displacements."""
    n, height, width = len(images), *images.shape[2:]
    coarse = torch.randn(n, 2, 4, 4, generator=generator, device=images.device) * 0.25
    bend = interpolate(coarse, size=(height, width), mode="bicubic", align_corners=True).permute(0, 2, 3, 1)
    flat = torch.eye(2, 3, device=images.device).expand(n, 2, 3)
    return _sampled(images, affine_grid(flat, list(images.shape), align_corners=False) + bend)


def texture(images: Tensor, generator: torch.Generator) -> Tensor:
    """Combine the image's Fourier amplitudes with random phases: its spectrum without its edges."""
    noise = torch.rand(len(images), 1, *images.shape[2:], generator=generator, device=images.device)
    phase = torch.fft.rfft2(noise.float()).angle()
    phase[..., 0, 0] = 0
    spectrum = torch.fft.rfft2(images.float())
    scrambled = torch.polar(spectrum.abs(), spectrum.angle() + phase)
    result: Tensor = torch.fft.irfft2(scrambled, s=images.shape[2:]).clamp(0, 1).to(images.dtype)
    return result


def pixelated(images: Tensor, generator: torch.Generator) -> Tensor:
    """Replace images by 7 x 7 squares, each in its mean color."""
    small = interpolate(images, size=(7, 7), mode="area")
    return interpolate(small, size=images.shape[2:], mode="nearest")


def faded(images: Tensor, generator: torch.Generator) -> Tensor:
    """Reduce the contrast to a quarter to a half, around the image's mean."""
    mean = images.mean((2, 3), keepdim=True)
    pale: Tensor = mean + uniform(images, 0.25, 0.5, generator) * (images - mean)
    return pale


def speckled(images: Tensor, generator: torch.Generator) -> Tensor:
    """Replace a tenth of the pixels by black or white ones."""
    draw = torch.rand(len(images), 1, *images.shape[2:], generator=generator, device=images.device)
    return torch.where(draw < 0.05, torch.zeros_like(images), torch.where(draw > 0.95, torch.ones_like(images), images))


def shapes(images: Tensor, generator: torch.Generator) -> Tensor:
    """Draw three filled ellipses or bars in flat random colors on a flat random color, independent of the images."""
    n, channels, height, width = images.shape

    def draw(low: float, high: float) -> Tensor:
        return uniform(images, low, high, generator)

    y = torch.linspace(-1, 1, height, device=images.device).reshape(1, 1, height, 1)
    x = torch.linspace(-1, 1, width, device=images.device).reshape(1, 1, 1, width)
    picture = torch.rand(n, channels, 1, 1, generator=generator, device=images.device).expand_as(images)
    for _ in range(3):
        angle, long, wide = draw(0, math.pi), draw(0.3, 0.9), draw(0.08, 0.4)
        dx, dy = x - draw(-0.6, 0.6), y - draw(-0.6, 0.6)
        u, v = (dx * angle.cos() + dy * angle.sin()) / long, (dy * angle.cos() - dx * angle.sin()) / wide
        inside = torch.where(draw(0, 1) < 0.5, u.square() + v.square(), torch.maximum(u.abs(), v.abs())) < 1
        color = torch.rand(n, channels, 1, 1, generator=generator, device=images.device)
        picture = torch.where(inside, color, picture)
    return picture


def _sampled(images: Tensor, places: Tensor) -> Tensor:
    return grid_sample(images, places, padding_mode="reflection", align_corners=False).clamp(0, 1)


PROXIES: dict[str, Transformation] = {
    "turned": turned,
    "collage": collage,
    "blurred": blurred,
    "inverted": inverted,
    "shrunk": shrunk,
    "posterized": posterized,
    "warped": warped,
    "texture": texture,
    "pixelated": pixelated,
    "faded": faded,
    "speckled": speckled,
    "shapes": shapes,
}
