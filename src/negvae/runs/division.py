"""How inliers are divided into those to train on and those that are held out to calibrate on."""

from __future__ import annotations

import torch
from torch import Tensor

ROWS_TO_SCALE = 400
"""Number of rows of features that is enough to measure scales on."""


def hold_out(images: Tensor, fraction: float, seed: int) -> tuple[Tensor, Tensor]:
    """Divide inliers into those to train on and those to calibrate on.

    Args:
        images: inliers, N on axis 0.
        fraction: share to hold out; above 0, at least one image is held out.
        seed: seed of the division.

    Returns:
        The inliers to train on, and those to calibrate on.

    Raises:
        ValueError: if fewer than 2 would be left to train on.

    >>> training, held_out = hold_out(torch.arange(10), 0.2, seed=0)
    >>> len(training), len(held_out)
    (8, 2)
    """
    return divide(images, held_out_rows(len(images), fraction, seed))


def held_out_rows(count: int, fraction: float, seed: int) -> Tensor:
    """Return the indices of the inliers that are held out, in order; see `hold_out`."""
    held_out = max(round(fraction * count), 1) if fraction else 0
    if fraction and count - held_out < 2:
        right = "give more of them, or hold out none" if count >= 2 else "give more of them"
        raise ValueError(
            f"holding out {fraction:g} of {count} inliers for calibration leaves fewer than 2 to train on: {right}"
        )
    randomness = torch.Generator().manual_seed(seed + 0xCA11B)
    return torch.randperm(count, generator=randomness, device="cpu")[:held_out].sort().values


def divide(images: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
    """Return the images that are not among these rows, and those that are."""
    if not len(rows):
        return images, images[:0]
    kept = torch.ones(len(images), dtype=torch.bool, device="cpu")
    kept[rows] = False
    return images[kept], images[rows]


def rows_to_hold_out(count: int) -> int:
    """Return how many of `count` rows of features to hold out: a fifth, or all but 400 up to half if that is more.

    >>> [rows_to_hold_out(count) for count in (100, 600, 5000)]
    [20, 200, 2500]
    """
    return count - max(count - count // 2, min(count - max(round(count / 5), 1), ROWS_TO_SCALE))
