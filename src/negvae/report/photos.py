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
    images = np.stack([_square(tiles, plan) for tiles, plan in kept])
    again = np.stack([_square(reconstruct(tiles), plan) for tiles, plan in kept])
    return images, again


def _square(tiles: NDArray[np.uint8], plan: Tiling) -> NDArray[np.uint8]:
    whole = np.stack([blend(tiles[:, channel], plan) for channel in range(tiles.shape[1])])
    scale = SIDE / max(plan.size)
    size = (max(round(plan.size[0] * scale), 1), max(round(plan.size[1] * scale), 1))
    small = resized(np.rint(whole).clip(0, 255).astype(np.uint8), size)
    top, left = ((SIDE - length) // 2 for length in size)
    square = np.full((tiles.shape[1], SIDE, SIDE), 255, np.uint8)
    square[:, top : top + size[0], left : left + size[1]] = small
    return square
