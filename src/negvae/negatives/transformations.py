"""Label-free transformations that turn a batch of inliers into negatives close to the inliers.

Each takes images (N x C x H x W, floats in [0, 1], N >= 2) and a random generator on their device, and returns
as many images of the same shape and range. None keeps state or waits for the device. `shuffled`, `box` and `spread`
take rows of standardized features (N x D x 1 x 1, any range) instead. Names are in `negvae.parts.TRANSFORMATIONS`.

>>> images = torch.rand(4, 3, 32, 32)
>>> sketch(jigsaw(images, torch.Generator()), torch.Generator()).shape
torch.Size([4, 3, 32, 32])
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import affine_grid, conv2d, grid_sample, interpolate, pad

Transformation = Callable[[Tensor, torch.Generator], Tensor]


def uniform(images: Tensor, low: float, high: float, generator: torch.Generator) -> Tensor:
    """Draw one number for each image, uniform between `low` and `high`, N x 1 x 1 x 1."""
    values = torch.rand(len(images), 1, 1, 1, generator=generator, device=images.device, dtype=torch.float32)
    return low + (high - low) * values


def jigsaw(images: Tensor, generator: torch.Generator, grid: int = 4) -> Tensor:
    """Cut each image into grid x grid tiles and shuffle them; a remainder at the right and bottom edge stays.

    >>> images = torch.rand(2, 1, 8, 8)
    >>> tiled = jigsaw(images, torch.Generator(), grid=2)
    >>> torch.equal(tiled.flatten(1).sort().values, images.flatten(1).sort().values)
    True
    """
    n, channels, height, width = images.shape
    th, tw = height // grid, width // grid
    tiles = images[:, :, : th * grid, : tw * grid].reshape(n, channels, grid, th, grid, tw)
    tiles = tiles.permute(0, 2, 4, 1, 3, 5).reshape(n, grid * grid, channels * th * tw)
    order = torch.rand(n, grid * grid, generator=generator, device=images.device, dtype=torch.float32).argsort(1)
    tiles = tiles.gather(1, order[:, :, None].expand_as(tiles))
    shuffled = tiles.reshape(n, grid, grid, channels, th, tw).permute(0, 3, 1, 4, 2, 5)
    result = images.clone()
    result[:, :, : th * grid, : tw * grid] = shuffled.reshape(n, channels, th * grid, tw * grid)
    return result


def cutmix(images: Tensor, generator: torch.Generator) -> Tensor:
    """Paste a rectangle of the next image of the batch, with sides between 0.4 and 0.8 of the image's."""
    height, width = images.shape[2:]
    inside = []
    for size, shape in ((height, (1, 1, height, 1)), (width, (1, 1, 1, width))):
        side = uniform(images, 0.4, 0.8, generator) * size
        start = uniform(images, 0, 1, generator) * (size - side)
        position = torch.arange(size, device=images.device, dtype=torch.float32).reshape(shape) + 0.5
        inside.append((position >= start) & (position < start + side))
    return torch.where(inside[0] & inside[1], images.roll(1, 0), images)


def mixup(images: Tensor, generator: torch.Generator) -> Tensor:
    """Blend each image with the next of the batch, with a weight between 0.3 and 0.7."""
    weight = uniform(images, 0.3, 0.7, generator)
    return weight * images + (1 - weight) * images.roll(1, 0)


def rotation(images: Tensor, generator: torch.Generator) -> Tensor:
    """Rotate by 90, 180 or 270 degrees; images that are not square, by 180."""
    half = images.rot90(2, (2, 3))
    if images.shape[2] != images.shape[3]:
        return half
    turn = uniform(images, 0, 3, generator)
    quarters = torch.where(turn < 1, images.rot90(1, (2, 3)), images.rot90(3, (2, 3)))
    return torch.where(turn < 2, quarters, half)


def sketch(images: Tensor, generator: torch.Generator) -> Tensor:
    """Replace images by their edges: the Sobel gradient's magnitude per channel, scaled to [0, 1] for each image."""
    rows = images.flatten(0, 1)[:, None]
    gradient = conv2d(pad(rows, (1, 1, 1, 1), mode="replicate"), _sobel(images.device, images.dtype))
    magnitude = gradient.square().sum(1).sqrt().reshape(images.shape)
    return magnitude / magnitude.amax((1, 2, 3), keepdim=True).clamp_min(1e-6)


@functools.cache
@torch.inference_mode(False)  # kept for training, even where a picture asks first
def _sobel(device: torch.device, dtype: torch.dtype) -> Tensor:
    """Return both Sobel kernels (2 x 1 x 3 x 3), which are copied to the device once."""
    kernel = torch.tensor([[-1.0, 0, 1], [-2, 0, 2], [-1, 0, 1]], dtype=torch.float32, device="cpu")
    return torch.stack([kernel, kernel.T])[:, None].to(device, dtype)


def sketched_jigsaw(images: Tensor, generator: torch.Generator) -> Tensor:
    """Replace images by the edges of their shuffled tiles: texture and strokes without the inliers' layout."""
    return sketch(jigsaw(images, generator), generator)


def strokes(images: Tensor, generator: torch.Generator) -> Tensor:
    """Draw thin level sets of smooth random fields on each image's median color."""
    n, channels, height, width = images.shape
    coarse = torch.randn(n, 1, 5, 5, generator=generator, device=images.device, dtype=torch.float32)
    field = interpolate(coarse, size=(height, width), mode="bicubic", align_corners=True)
    slope_y = pad(field, (0, 0, 0, 1), mode="replicate").diff(dim=2)
    slope_x = pad(field, (0, 1, 0, 0), mode="replicate").diff(dim=3)
    slope = (slope_x.square() + slope_y.square()).sqrt().clamp_min(1e-3)
    thickness = uniform(images, 0.7, 1.8, generator) * (height * width) ** 0.5 / 28
    ink = (thickness + 0.5 - field.abs() / slope).clamp(0, 1)
    # Fade the drawing towards the border at a random radius, as most objects do not fill their frame.
    y = torch.linspace(-1, 1, height, device=images.device, dtype=torch.float32).reshape(1, 1, height, 1)
    x = torch.linspace(-1, 1, width, device=images.device, dtype=torch.float32).reshape(1, 1, 1, width)
    radius = uniform(images, 0.6, 1.4, generator)
    ink = ink * ((radius - (x.square() + y.square()).sqrt()) * 8).clamp(0, 1)
    paper = images.flatten(2).median(2).values[:, :, None, None]
    reach = torch.rand(n, channels, 1, 1, generator=generator, device=images.device, dtype=torch.float32) * 0.4 + 0.6
    color = torch.where(paper < 0.5, reach, 1 - reach)
    drawing: Tensor = paper + ink * (color - paper)
    return drawing


def shuffled(rows: Tensor, generator: torch.Generator) -> Tensor:
    """Permute each feature across the rows on its own: samples of the product of the marginals, without dependence."""
    order = torch.rand(rows.shape, generator=generator, device=rows.device, dtype=torch.float32).argsort(0)
    return rows.gather(0, order)


def box(rows: Tensor, generator: torch.Generator) -> Tensor:
    """Draw uniformly from the rows' bounding box, made twice as wide around its center."""
    low, high = rows.amin(0), rows.amax(0)
    # A feature without any spread still gets values to either side.
    half = ((high - low) / 2).clamp_min(0.5)
    uniform = torch.rand(rows.shape, generator=generator, device=rows.device, dtype=torch.float32).to(rows.dtype)
    return (low + high) / 2 + (4 * uniform - 2) * half


def spread(rows: Tensor, generator: torch.Generator) -> Tensor:
    """Add Gaussian noise of 0.5 to 3 standard deviations, drawn for each row, to standardized rows."""
    noise = torch.empty_like(rows).normal_(generator=generator)
    return rows + uniform(rows, 0.5, 3, generator) * noise


def zoom(images: Tensor, generator: torch.Generator, least: float = 1.5, most: float = 4.0) -> Tensor:
    """Enlarge a random part of each image by `least` to `most` (log-uniform, bilinear), and mirror half of the images.

    With factors much below 1.5, many results would still be inliers.
    """
    n = len(images)
    share = torch.exp(
        -math.log(least)
        - math.log(most / least) * torch.rand(n, generator=generator, device=images.device, dtype=torch.float32)
    )
    center = (2 * torch.rand(2, n, generator=generator, device=images.device, dtype=torch.float32) - 1) * (1 - share)
    mirror = torch.rand(n, generator=generator, device=images.device, dtype=torch.float32).sub(0.5).sign()
    grid = torch.zeros(n, 2, 3, device=images.device, dtype=torch.float32)
    grid[:, 0, 0], grid[:, 1, 1] = share * mirror, share
    grid[:, 0, 2], grid[:, 1, 2] = center[0], center[1]
    places = affine_grid(grid, list(images.shape), align_corners=False)
    return grid_sample(images, places, padding_mode="reflection", align_corners=False).clamp(0, 1)
