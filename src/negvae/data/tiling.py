"""Cut images of any size into overlapping tiles of one size, and blend maps of the tiles into one map without seams."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Size = tuple[int, int]
"""Height and width in pixels."""


@dataclass(frozen=True)
class Tiling:
    """Where the tiles of one image lie.

    Attributes:
        size: height and width of the image.
        tile: height and width of every tile.
        canvas: height and width of what the tiles are cut from: the image, or, if it is smaller than a tile, the image
            enlarged or padded to at least a tile.
        padded: whether the image was padded at its bottom and right instead of being enlarged.
        tops: first row of each row of tiles, increasing.
        lefts: first column of each column of tiles, increasing.
    """

    size: Size
    tile: Size
    canvas: Size
    padded: bool
    tops: tuple[int, ...]
    lefts: tuple[int, ...]

    @property
    def corners(self) -> tuple[Size, ...]:
        """The top left corner (row, column) of each tile in the canvas, row by row."""
        return tuple((top, left) for top in self.tops for left in self.lefts)

    def __len__(self) -> int:
        """Return the number of tiles."""
        return len(self.tops) * len(self.lefts)


def starts(length: int, side: int, overlap: int) -> tuple[int, ...]:
    """Return the first pixels of as few segments as cover a line, the first and the last flush with its ends.

    Args:
        length: length of the line, in pixels; at least `side`.
        side: length of every segment, in pixels.
        overlap: number of pixels that neighbors share at least; at least 0 and below `side`.

    Returns:
        The first pixel of each segment, at distances that differ by at most 1.

    >>> starts(300, 128, 32), starts(128, 128, 32)
    ((0, 86, 172), (0,))
    """
    count = 1 + math.ceil((length - side) / (side - overlap))
    return tuple((index * (length - side) + (count - 1) // 2) // max(count - 1, 1) for index in range(count))


def tiling(size: Size, tile: Size, overlap: float = 0.25, small: Literal["enlarge", "pad"] = "enlarge") -> Tiling:
    """Place the tiles of an image.

    Args:
        size: height and width of the image.
        tile: height and width of the tiles.
        overlap: share of its side that a tile shares with each neighbor at least; at least 0 and at most 0.75.
        small: what is done with an image that is lower or narrower than a tile: "enlarge" scales it up, with its
            proportions, until it covers a tile; "pad" mirrors it at its bottom and right.

    Returns:
        The places of the tiles, which cover the whole image and do not reach beyond it.

    Raises:
        ValueError: if a size has no pixel, or the overlap is outside its range.

    >>> plan = tiling((100, 300), (128, 128))
    >>> plan.canvas, len(plan)
    ((128, 384), 4)
    """
    if min(*size, *tile) < 1:
        raise ValueError(f"image {size[0]}x{size[1]}, tile {tile[0]}x{tile[1]}: every side must be at least 1 pixel")
    if not 0 <= overlap <= 0.75:
        raise ValueError(f"overlap is {overlap}: it must be a share of a tile's side, from 0 to 0.75")
    padded = small == "pad"
    scale = max(1.0, tile[0] / size[0], tile[1] / size[1])
    grown = size if padded or scale == 1 else (round(size[0] * scale), round(size[1] * scale))
    canvas = (max(grown[0], tile[0]), max(grown[1], tile[1]))
    tops, lefts = (starts(canvas[axis], tile[axis], int(overlap * tile[axis])) for axis in (0, 1))
    return Tiling(size, tile, canvas, padded, tops, lefts)


def cut(image: NDArray[Any], plan: Tiling) -> NDArray[Any]:
    """Cut an image into its tiles.

    Args:
        image: image, C x H x W, uint8, uint16 or float32, of the size that `plan` was made for.
        plan: places of the tiles.

    Returns:
        The tiles, T x C x h x w, of the image's type, row by row.

    Raises:
        ValueError: if the image has another size.
    """
    if image.shape[-2:] != plan.size:
        raise ValueError(f"image is {image.shape[-2]}x{image.shape[-1]}, its tiling is for {plan.size}")
    height, width = plan.canvas
    if plan.padded:
        edges = ((0, 0), (0, height - plan.size[0]), (0, width - plan.size[1]))
        image = np.pad(image, edges, mode="symmetric")
    else:
        image = resized(image, plan.canvas)
    rows, columns = plan.tile
    return np.stack([image[:, top : top + rows, left : left + columns] for top, left in plan.corners])


def blend(maps: NDArray[Any], plan: Tiling) -> NDArray[np.float64]:
    """Blend maps of the tiles into one map of the image.

    Where tiles overlap, the map is their mean with weights that fall smoothly toward each tile's border, so that no
    seam shows where a tile ends. A map that the tiles agree on comes out unchanged.

    Args:
        maps: one map of each tile, T x h x w, in the order of `cut`, with one value for each pixel of the tile.
        plan: places of the tiles.

    Returns:
        The map, H x W, in the image's own size: of a padded image without the padding, of an enlarged one reduced.

    Raises:
        ValueError: if there is not one map of the tile's size for each tile.
    """
    if maps.shape != (len(plan), *plan.tile):
        raise ValueError(f"maps have shape {maps.shape}, the tiling takes {(len(plan), *plan.tile)}")
    total, weight = np.zeros(plan.canvas), np.zeros(plan.canvas)
    window = np.outer(*(_window(side) for side in plan.tile))
    for (top, left), values in zip(plan.corners, maps, strict=True):
        place = np.s_[top : top + plan.tile[0], left : left + plan.tile[1]]
        total[place] += window * values
        weight[place] += window
    blended = total / weight
    if plan.padded:
        return blended[: plan.size[0], : plan.size[1]]
    return blended if plan.canvas == plan.size else resized(blended[None], plan.size)[0].astype(np.float64)


def resized(image: NDArray[Any], size: Size) -> NDArray[Any]:
    """Resize an image, bilinearly; where it is reduced, each pixel is a mean over the area that it covers.

    Args:
        image: image, C x H x W, of uint8 or of numbers that float32 holds.
        size: height and width of the result.

    Returns:
        The image in its own type, except that float64 becomes float32; the same object if it has the size already.
    """
    if image.shape[-2:] == size:
        return image
    if image.dtype == np.uint8:
        planes = [_plane(plane, size) for plane in image]
        return np.stack(planes)
    wide = np.stack([_plane(plane.astype(np.float32), size) for plane in image])
    return wide if image.dtype.kind == "f" else np.rint(wide).astype(image.dtype)


def _plane(plane: NDArray[Any], size: Size) -> NDArray[Any]:
    picture = Image.fromarray(np.ascontiguousarray(plane))
    return np.asarray(picture.resize((size[1], size[0]), Image.Resampling.BILINEAR))


def _window(side: int) -> NDArray[np.float64]:
    """Return weights along one side: a squared sine, positive at every pixel."""
    return np.sin(np.pi * (np.arange(side) + 0.5) / side) ** 2
