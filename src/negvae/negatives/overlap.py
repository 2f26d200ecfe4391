"""The check that no image is both an inlier and a negative."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from itertools import chain, groupby
from operator import itemgetter

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

ImageOfTile = NDArray[np.int64]
"""The number of the image that each tile belongs to, ascending."""


def refuse_overlap(
    inliers: Tensor | Sequence[Tensor],
    auxiliary: Tensor,
    inlier_name: str,
    auxiliary_name: str,
    owners: tuple[Sequence[ImageOfTile], ImageOfTile] | None = None,
) -> None:
    """Refuse auxiliary negatives if any of their images is an inlier too.

    Args:
        inliers: inlier images, uint8, N x C x H x W, or parts of them.
        auxiliary: negative images, uint8, M x C x H x W.
        inlier_name: name of the inliers in the message.
        auxiliary_name: name of the negatives in the message.
        owners: of tiles, the number of the image that each belongs to, ascending: of each part of the inliers, and of
            the negatives. An image is then an inlier if all its tiles, in order, are those of one. None: no tiles.

    Raises:
        ValueError: if the shapes differ, or if an image is in both sets.

    >>> import torch
    >>> black = torch.zeros(2, 1, 4, 4, dtype=torch.uint8)
    >>> refuse_overlap(black, black + 1, "a", "b")
    >>> refuse_overlap(black, black[:1], "a", "b")  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    ValueError: negatives b overlap the inliers a: 1 of 1 images are identical ...
    """
    parts = [inliers] if isinstance(inliers, Tensor) else list(inliers)
    shapes = ["x".join(map(str, images.shape[1:])) for images in (parts[0], auxiliary)]
    if shapes[0] != shapes[1]:
        raise ValueError(
            f"negatives {auxiliary_name} are {shapes[1]}, the inliers {inlier_name} are {shapes[0]} (C x H x W):"
            " they must have the same shape"
        )
    of_inliers: Sequence[ImageOfTile | None]
    of_inliers, of_negatives = owners if owners is not None else ([None] * len(parts), None)
    known = chain.from_iterable(map(_of_images, parts, of_inliers))
    places = {digest: number for number, digest in enumerate(known)}
    found = _of_images(auxiliary, of_negatives)
    shared = [(places[digest], number) for number, digest in enumerate(found) if digest in places]
    if shared:
        what = "rows" if auxiliary.is_floating_point() else "images"
        raise ValueError(
            f"negatives {auxiliary_name} overlap the inliers {inlier_name}: {len(shared)} of {len(found)} {what}"
            f" are identical (first: negative {shared[0][1]} is inlier {shared[0][0]}); take another set or"
            " remove them"
        )


def _of_images(images: Tensor, owners: ImageOfTile | None) -> Sequence[bytes]:
    """Return a hash of each image, or of all tiles of each."""
    found = digests(images)
    if owners is None:
        return found
    tiles = groupby(zip(owners, found, strict=True), itemgetter(0))
    return [b"".join(digest for _, digest in of_one) for _, of_one in tiles]


def digests(images: Tensor) -> Sequence[bytes]:
    """Return a 128-bit hash of the pixels of each image, or of the numbers of each row (N x C x H x W)."""
    rows = images.cpu().flatten(1).numpy()
    return [hashlib.blake2b(row.tobytes(), digest_size=16).digest() for row in rows]
