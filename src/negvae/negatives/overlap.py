"""The check that no image is both an inlier and a negative."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from torch import Tensor


def refuse_overlap(inliers: Tensor, auxiliary: Tensor, inlier_name: str, auxiliary_name: str) -> None:
    """Refuse auxiliary negatives if any of their images is an inlier too.

    Args:
        inliers: inlier images, uint8, N x C x H x W.
        auxiliary: negative images, uint8, M x C x H x W.
        inlier_name: name of the inliers in the message.
        auxiliary_name: name of the negatives in the message.

    Raises:
        ValueError: if the shapes differ, or if an image is in both sets.

    >>> import torch
    >>> black = torch.zeros(2, 1, 4, 4, dtype=torch.uint8)
    >>> refuse_overlap(black, black + 1, "a", "b")
    >>> refuse_overlap(black, black[:1], "a", "b")  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    ValueError: negatives b overlap the inliers a: 1 of 1 images are identical ...
    """
    shapes = ["x".join(map(str, images.shape[1:])) for images in (inliers, auxiliary)]
    if shapes[0] != shapes[1]:
        raise ValueError(
            f"negatives {auxiliary_name} are {shapes[1]}, the inliers {inlier_name} are {shapes[0]} (C x H x W):"
            " they must have the same shape"
        )
    places = {digest: row for row, digest in enumerate(digests(inliers))}
    shared = [(places[d], row) for row, d in enumerate(digests(auxiliary)) if d in places]
    if shared:
        raise ValueError(
            f"negatives {auxiliary_name} overlap the inliers {inlier_name}: {len(shared)} of {len(auxiliary)} images"
            f" are identical (first: negative {shared[0][1]} is inlier {shared[0][0]}); take another set or"
            " remove them"
        )


def digests(images: Tensor) -> Sequence[bytes]:
    """Return a 128-bit hash of the pixels of each image, or of the numbers of each row (N x C x H x W)."""
    rows = images.cpu().flatten(1).numpy()
    return [hashlib.blake2b(row.tobytes(), digest_size=16).digest() for row in rows]
