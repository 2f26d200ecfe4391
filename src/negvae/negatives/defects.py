"""Negatives that are inliers with a defect put in by code, each with the mask of the changed pixels.

They train a posterior for each patch (`negvae.training.patches`). A defect takes the place of part of an image: content
of another inlier or of the image itself, moved and perhaps tinted (cut and paste, Li et al. 2021), or a texture of
smooth noise, inside a random shape, a level set of noise (Zavrtanik et al. 2021) or a thin band along one, put in as it
is, blended, or seamlessly by Poisson's equation (Schlueter et al. 2022).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import affine_grid, avg_pool2d, conv2d, grid_sample, interpolate, pad

from negvae.negatives.transformations import uniform

LEAST_AREA, MOST_AREA = 0.006, 0.25
"""Share of the image that a defect covers, drawn log-uniformly between the two."""

VISIBLE = 0.05
"""Change of a pixel, for pixels from 0 to 1, from which the mask counts it."""

TEXTURES, SEAMLESS = 0.35, 0.08
"""Share of the defects whose content is a texture instead of an inlier's, and of those put in by Poisson's equation."""

BANDS, SOFT, TINTED = 0.2, 0.4, 0.6
"""Shares of the defects that are thin bands, that have soft edges, and whose inlier's content is tinted."""

SWEEPS = 8
"""Jacobi sweeps after the multiscale solution of Poisson's equation."""


class Defects(NamedTuple):
    """Images with a defect each.

    Attributes:
        images: N x C x H x W, floats in [0, 1].
        masks: 1 where a pixel belongs to the defect, else 0: N x 1 x H x W floats.
    """

    images: Tensor
    masks: Tensor


def defects(images: Tensor, generator: torch.Generator) -> Defects:
    """Put a defect into each image.

    Args:
        images: inliers, N x C x H x W, floats in [0, 1], N >= 2.
        generator: source of random numbers, on the images' device.

    Returns:
        As many images, each changed in a part, and the masks. A mask is empty where the change is not visible.

    >>> found = defects(torch.rand(8, 3, 32, 32), torch.Generator().manual_seed(0))
    >>> found.images.shape, found.masks.shape
    (torch.Size([8, 3, 32, 32]), torch.Size([8, 1, 32, 32]))
    """

    def at_random(share: float, chosen: Tensor, other: Tensor) -> Tensor:
        return torch.where(uniform(images, 0, 1, generator) < share, chosen, other)

    inside = at_random(0.5, shapes(images, generator), patches(images, generator))
    inside = at_random(BANDS, bands(images, generator), inside)
    source = at_random(0.5, images, images.roll(1, 0))
    content = at_random(0.3, source, moved(source, generator))
    content = at_random(TINTED, tinted(content, generator), content)
    content = at_random(TEXTURES, textures(images, generator), content)
    opacity = uniform(images, 0.4, 2.2, generator).clamp(max=1)
    edge = at_random(SOFT, blurred(inside), inside)
    blended = images + opacity * edge * (content - images)
    way = uniform(images, 0, 1, generator)
    result = torch.where(way < SEAMLESS, seamless(images, content, inside), blended).clamp(0, 1)
    return Defects(result, visible(images, result))


def visible(before: Tensor, after: Tensor) -> Tensor:
    """Return the mask of the pixels that differ visibly in a channel, N x 1 x H x W, 1 or 0.

    >>> visible(torch.zeros(1, 1, 1, 2), torch.tensor([[[[0.5, 0.0]]]]))
    tensor([[[[1., 0.]]]])
    """
    return ((after - before).abs().amax(1, keepdim=True) > VISIBLE).to(before.dtype)


def shapes(images: Tensor, generator: torch.Generator) -> Tensor:
    """Draw a turned rectangle or ellipse for each image, from thin to square, N x 1 x H x W, 1 inside."""
    height, width = images.shape[2:]
    area = _area(images, generator) * height * width
    aspect = torch.exp(uniform(images, -2.2, 2.2, generator))
    half_long, half_short = (area * aspect).sqrt() / 2, (area / aspect).sqrt() / 2
    y = torch.arange(height, device=images.device, dtype=torch.float32).reshape(1, 1, -1, 1) + 0.5
    x = torch.arange(width, device=images.device, dtype=torch.float32).reshape(1, 1, 1, -1) + 0.5
    y = y - uniform(images, 0, 1, generator) * height
    x = x - uniform(images, 0, 1, generator) * width
    angle = uniform(images, 0, torch.pi, generator)
    along = (x * angle.cos() + y * angle.sin()).abs() / half_long.clamp_min(0.6)
    across = (y * angle.cos() - x * angle.sin()).abs() / half_short.clamp_min(0.6)
    distance = torch.where(
        uniform(images, 0, 1, generator) < 0.5, torch.maximum(along, across), (along.square() + across.square()).sqrt()
    )
    return (distance <= 1).to(images.dtype)


def patches(images: Tensor, generator: torch.Generator) -> Tensor:
    """Draw level sets of smooth noise for each image, near a random place, N x 1 x H x W, 1 inside."""
    field = noise(images, 1, generator)
    away = _from_a_place(images, generator)
    near = field - uniform(images, 2, 8, generator) * away
    ordered = near.flatten(1).sort(1, descending=True).values
    rank = (_area(images, generator).flatten() * ordered.shape[1]).long().clamp(1, ordered.shape[1] - 1)
    return (near > ordered.gather(1, rank[:, None])[:, :, None, None]).to(images.dtype)


def bands(images: Tensor, generator: torch.Generator) -> Tensor:
    """Draw a part of a thin band along a level line of smooth noise for each image, N x 1 x H x W, 1 inside."""
    height, width = images.shape[2:]
    field = noise(images, 1, generator)
    field = field - field.mean((2, 3), keepdim=True)
    down, right = torch.gradient(field, dim=(2, 3))
    steepness = (down.square() + right.square()).sqrt().clamp_min(1e-6)
    level = uniform(images, -1, 1, generator) * field.std((2, 3), keepdim=True)
    pixels_away = (field - level).abs() / steepness
    half_width = uniform(images, 0.5, 1.5, generator) * max(min(height, width) / 48, 1)
    away = _from_a_place(images, generator)
    near = away < uniform(images, 0.1, 0.6, generator)
    return ((pixels_away < half_width) & near).to(images.dtype)


def moved(images: Tensor, generator: torch.Generator) -> Tensor:
    """Shift, scale and perhaps mirror each image, and perhaps change its contrast."""
    n = len(images)
    scale = torch.exp(uniform(images, -0.4, 0.4, generator)).flatten()
    mirror = uniform(images, -1, 1, generator).sign().flatten()
    matrix = torch.zeros(n, 2, 3, device=images.device, dtype=torch.float32)
    matrix[:, 0, 0], matrix[:, 1, 1] = scale * mirror, scale
    matrix[:, 0, 2] = uniform(images, -0.6, 0.6, generator).flatten()
    matrix[:, 1, 2] = uniform(images, -0.6, 0.6, generator).flatten()
    grid = affine_grid(matrix, list(images.shape), align_corners=False)
    content = grid_sample(images, grid, padding_mode="reflection", align_corners=False)
    contrast = uniform(images, -1, 1, generator)
    contrast = torch.where(uniform(images, 0, 1, generator) < 0.7, torch.ones_like(contrast), contrast)
    mean = content.mean((2, 3), keepdim=True)
    return (mean + contrast * (content - mean)).clamp(0, 1)


def tinted(images: Tensor, generator: torch.Generator) -> Tensor:
    """Shift the color of each image, or its brightness if it has one channel."""
    tint = torch.randn(*images.shape[:2], 1, 1, generator=generator, device=images.device, dtype=torch.float32)
    return (images + tint * uniform(images, 0, 0.3, generator)).clamp(0, 1)


def textures(images: Tensor, generator: torch.Generator) -> Tensor:
    """Draw a texture of smooth noise between two random colors for each image, some of them close to one color.

    Extreme values are likelier than middle ones, and every second color is a gray.
    """
    n, channels = images.shape[:2]
    share = (noise(images, 1, generator) * uniform(images, 0, 2, generator)).sigmoid()
    colors, grays, which = (
        torch.rand(2, n, number, 1, 1, generator=generator, device=images.device, dtype=torch.float32)
        for number in (channels, 1, 1)
    )
    colors = 0.5 - 0.5 * torch.cos(torch.pi * torch.where(which < 0.5, grays, colors))
    return colors[0] + share * (colors[1] - colors[0])


def noise(images: Tensor, channels: int, generator: torch.Generator) -> Tensor:
    """Draw smooth noise of four octaves, each with a weight of its own in each image, N x channels x H x W."""
    n, _, height, width = images.shape
    total = torch.zeros(n, channels, height, width, device=images.device, dtype=torch.float32)
    for cells in (3, 6, 12, 24):
        size = (min(cells, height), min(cells, width))
        coarse = torch.randn(n, channels, *size, generator=generator, device=images.device, dtype=torch.float32)
        weight = uniform(images, 0, 1, generator).square()
        total += weight * interpolate(coarse, size=(height, width), mode="bilinear", align_corners=False)
    return total


def blurred(masks: Tensor) -> Tensor:
    """Soften the edges of masks (N x 1 x H x W), by 3 pixels, or a sixteenth of the shorter side if that is more."""
    radius = max(min(masks.shape[2:]) // 32, 1)
    size = 2 * radius + 1
    for _ in range(2):
        masks = avg_pool2d(pad(masks, (radius,) * 4, mode="replicate"), size, 1)
    return masks


def seamless(images: Tensor, content: Tensor, masks: Tensor) -> Tensor:
    """Put content into images by Poisson's equation, so that no edge shows (Perez et al. 2003).

    Inside the mask, the result has the gradients of the content and meets the image at the mask's edge: it is the
    content plus the harmonic function that equals image minus content outside.

    Args:
        images: images to put into, N x C x H x W.
        content: what is put in, N x C x H x W.
        masks: 1 where it is put in, N x 1 x H x W.

    Returns:
        The composed images, N x C x H x W, which may leave [0, 1].

    >>> ramp = torch.linspace(0, 1, 9).expand(1, 1, 9, 9)
    >>> mask = torch.zeros(1, 1, 9, 9); mask[..., 3:6, 3:6] = 1
    >>> torch.allclose(seamless(ramp, ramp + 0.5, mask), ramp, atol=1e-3)
    True
    """
    outside = 1 - masks
    gap = images - content
    values = _filled(gap * outside, outside)
    known = gap * outside
    kernel = torch.tensor([[0.0, 1, 0], [1, 0, 1], [0, 1, 0]], device=images.device, dtype=images.dtype) / 4
    kernel = kernel.expand(images.shape[1], 1, 3, 3)
    for _ in range(SWEEPS):
        around = conv2d(pad(values, (1,) * 4, mode="replicate"), kernel, groups=images.shape[1])
        values = known + masks * around
    return content + values


def _filled(values: Tensor, weights: Tensor) -> Tensor:
    """Fill what is not known (weight 0) from coarser and coarser means of what is: N x C x H x W, N x 1 x H x W."""
    height, width = values.shape[2:]
    if min(height, width) < 2:
        mean = values.sum((2, 3), keepdim=True) / weights.sum((2, 3), keepdim=True).clamp_min(1e-6)
        return values + (1 - weights) * mean
    share = avg_pool2d(weights, 2, ceil_mode=True)
    mean = avg_pool2d(values, 2, ceil_mode=True) / share.clamp_min(1e-6)
    known = (share > 0).to(values.dtype)
    coarse = _filled(mean * known, known)
    return values + (1 - weights) * interpolate(coarse, size=(height, width), mode="bilinear", align_corners=False)


def _from_a_place(images: Tensor, generator: torch.Generator) -> Tensor:
    """Return how far each pixel lies from a random place of each image, in its sides: N x 1 x H x W."""
    height, width = images.shape[2:]
    y = torch.linspace(0, 1, height, device=images.device, dtype=torch.float32).reshape(1, 1, -1, 1)
    x = torch.linspace(0, 1, width, device=images.device, dtype=torch.float32).reshape(1, 1, 1, -1)
    y, x = y - uniform(images, 0, 1, generator), x - uniform(images, 0, 1, generator)
    return (y.square() + x.square()).sqrt()


def _area(images: Tensor, generator: torch.Generator) -> Tensor:
    low, high = torch.tensor([LEAST_AREA, MOST_AREA], dtype=torch.float32).log().tolist()
    return torch.exp(uniform(images, low, high, generator))
