"""Shifting transformations: changes of an image that make another kind of image of it, each with a prior of its own.

A family is a list of functions from images (N x C x H x W) to as many images of the same shape, the first of which
changes nothing. Names are in `negvae.parts.SHIFTS`. Several families are combined: every member of one after every
member of the other. None draws random numbers, so that a score made of them is a function of the image alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import product

import torch
from torch import Tensor
from torch.nn.functional import pad

from negvae.parts import SHIFTS

Shape = tuple[int, int, int]
Shift = Callable[[Tensor], Tensor]
"""A function from images (N x C x H x W) to images of the same shape."""
Family = Callable[[Shape], list[Shift]]
"""A function from the shape (C, H, W) of images to the shifts of a family, the first of which changes nothing."""


def unchanged(images: Tensor) -> Tensor:
    """Return the images as they are."""
    return images


def turns(shape: Shape) -> list[Shift]:
    """Turn by 0, 90, 180 and 270 degrees; images that are not square, by 0 and 180."""
    quarters = (1, 2, 3) if shape[1] == shape[2] else (2,)

    def turned(quarter: int) -> Shift:
        return lambda images: images.rot90(quarter, (2, 3))

    return [unchanged, *(turned(quarter) for quarter in quarters)]


def translations(shape: Shape) -> list[Shift]:
    """Move images by a quarter of their width, or of their height; what comes in is the reflected border."""

    def right(images: Tensor) -> Tensor:
        width = images.shape[3]
        return pad(images, (width // 4, 0, 0, 0), mode="reflect")[..., :width]

    def down(images: Tensor) -> Tensor:
        height = images.shape[2]
        return pad(images, (0, 0, height // 4, 0), mode="reflect")[:, :, :height]

    return [unchanged, right, down]


def tiles(shape: Shape) -> list[Shift]:
    """Exchange the left half with the right one, or the upper half with the lower one."""
    return [
        unchanged,
        lambda images: images.roll(images.shape[3] // 2, 3),
        lambda images: images.roll(images.shape[2] // 2, 2),
    ]


def build_shifts(names: str, shape: Shape) -> list[Shift]:
    """Make the shifts that a run names.

    Args:
        names: names in `negvae.parts.SHIFTS`, separated by commas.
        shape: shape (C, H, W) of the images.

    Returns:
        T shifts, the first of which changes nothing.

    Raises:
        ValueError: if a name is unknown.

    >>> len(build_shifts("turns,translations", (3, 32, 32)))
    12
    """
    families = [SHIFTS[name].load()(shape) for name in names.split(",")]
    return [_after(chosen) for chosen in product(*families)]


def _after(shifts: Sequence[Shift]) -> Shift:
    """Return the shifts one after the other as one."""

    def shifted(images: Tensor) -> Tensor:
        for shift in shifts:
            images = shift(images)
        return images

    return shifted


def copies(shifts: Sequence[Shift], images: Tensor) -> Tensor:
    """Return all shifted copies of images, (T N) x C x H x W: those of the first shift, then those of the next."""
    return torch.cat([shift(images) for shift in shifts])
