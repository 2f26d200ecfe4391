"""Pictures of tiled images for a page: each image as a whole, and what the model makes of it, put together again."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from negvae.data.tiling import Tiling, blend, resized

SIDE = 96
"""The side in pixels of a shown photo."""
Photo = tuple[NDArray[np.uint8], Tiling]
"""The tiles of an image, T x C x h x w, and where they lie in it."""


def photos(tiles: NDArray[np.uint8], plans: Sequence[Tiling]) -> NDArray[Any]:
    """Return tiled images as one array of objects, so that rows of it can be kept.

    Args:
        tiles: tiles of all images, one image after the other.
        plans: tiling of each image.

    Returns:
        A `Photo` for each image (N).
    """
    found = np.empty(len(plans), object)
    start = 0
    for row, plan in enumerate(plans):
        found[row] = (tiles[start : start + len(plan)].copy(), plan)
        start += len(plan)
    return found


def pictures(
    kept: NDArray[Any], reconstruct: Callable[[NDArray[np.uint8]], NDArray[np.uint8]]
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Return the images and their reconstructions, each blended from its tiles without seams.

    Args:
        kept: a `Photo` for each image (N).
        reconstruct: function from tiles to the tiles that the model makes of them.

    Returns:
        Two arrays, uint8, N x C x 96 x 96; images that are not square have white borders.
    """
    images = np.stack([_square(_blended(tiles, plan)) for tiles, plan in kept])
    again = np.stack([_square(_blended(reconstruct(tiles), plan)) for tiles, plan in kept])
    return images, again


def heat_pictures(
    kept: NDArray[Any],
    maps: Callable[[NDArray[np.uint8]], NDArray[Any]],
    color: Callable[[NDArray[Any]], NDArray[np.uint8]],
) -> NDArray[np.uint8]:
    """Return the heat maps of images, blended from those of their tiles and colored after that.

    Args:
        kept: a `Photo` for each image (N).
        maps: function from tiles, T x C x h x w, to their maps, T x h x w.
        color: function from maps, M x H x W, to pictures, uint8, M x 3 x H x W.

    Returns:
        Pictures, uint8, N x 3 x 96 x 96; those of images that are not square have white borders.
    """
    whole = [_reduced(blend(maps(tiles), plan)[None].astype(np.float32)) for tiles, plan in kept]
    return np.stack([_framed(color(values)[0]) for values in whole])


def _blended(tiles: NDArray[np.uint8], plan: Tiling) -> NDArray[np.uint8]:
    whole = np.stack([blend(tiles[:, channel], plan) for channel in range(tiles.shape[1])])
    return np.rint(whole).clip(0, 255).astype(np.uint8)


def _square(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    return _framed(_reduced(image))


def _reduced(image: NDArray[Any]) -> NDArray[Any]:
    """Return an image (C x H x W) whose longer side is `SIDE`."""
    height, width = image.shape[-2:]
    scale = SIDE / max(height, width)
    return resized(image, (max(round(height * scale), 1), max(round(width * scale), 1)))


def _framed(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return an image in the middle of a white square."""
    height, width = image.shape[-2:]
    top, left = (SIDE - height) // 2, (SIDE - width) // 2
    square = np.full((len(image), SIDE, SIDE), 255, np.uint8)
    square[:, top : top + height, left : left + width] = image
    return square
