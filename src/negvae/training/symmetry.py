"""Whether the mirror images of inliers are inliers too, by the training images alone.

A change that inliers do not show is one that a detector should see, and a change that they do show is one that it
should not: letters have a left and a right, photos mostly none.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d

from negvae.spacing import evenly_spaced, spread_rows

ASKED, COMPARED = 500, 5_000
"""Numbers of images that are mirrored, and that they are compared with, at most."""
SIDE = 16
"""Images are averaged to about so many pixels a side: a small move matters less then."""
LARGEST_SHARE = 0.65
"""Share of images that may be nearer to the others than their mirror images are; one half where all are symmetric."""
FEWEST = 20
"""Number of images below which the share says too little."""


def nearer_than_mirrored(images: Tensor) -> float:
    """Return the share of images that lie nearer to another training image than their mirror images do.

    Args:
        images: uint8 images, N x C x H x W, with N >= 2; of many, some are used, evenly taken.

    Returns:
        The share, ties by half: about 0.5 if the images come mirrored as often as not, and 1 if they never do.
    """
    chosen, pooled = spread_rows(images, COMPARED), max(1, round(min(images.shape[2:]) / SIDE))
    asked = torch.tensor(evenly_spaced(len(chosen), ASKED), device=images.device)

    def reduced(some: Tensor) -> Tensor:
        parts = [avg_pool2d(part.float() / 255, pooled, ceil_mode=True) for part in torch.split(some, 256)]
        return torch.cat(parts).flatten(1)

    rows = reduced(chosen)

    def nearest(some: Tensor) -> Tensor:
        distances = torch.cdist(some, rows)
        distances[torch.arange(len(asked), device=images.device), asked] = torch.inf  # the image itself
        return distances.amin(1)

    # Mirrored first: the squares over which images are averaged need not lie symmetrically.
    one, other = nearest(rows[asked]), nearest(reduced(chosen[asked].flip(3)))
    return float((one < other).double().mean() + (one == other).double().mean() / 2)


def come_mirrored(images: Tensor) -> bool:
    """Return whether images may be mirrored in training (`LARGEST_SHARE`); fewer than `FEWEST` may not."""
    return len(images) >= FEWEST and nearer_than_mirrored(images) < LARGEST_SHARE
