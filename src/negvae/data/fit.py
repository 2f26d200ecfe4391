"""Fit decoded images to the size, the channels and the depth that a model takes, as a `Decoding` describes."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from negvae.data.formats.base import DataError
from negvae.data.formats.encoded import MAX_PIXELS
from negvae.data.pillow import Pixels
from negvae.data.tiling import Tiling, cut, resized, tiling
from negvae.decoding import Decoding
from negvae.messages import counted


def fit_photo(image: NDArray[np.uint8], decoding: Decoding) -> tuple[NDArray[np.uint8], Tiling]:
    """Fit an image to the size that a model takes.

    Args:
        image: image as `decode_photo` or `prepared` returns it, uint8, C x H x W.
        decoding: description of what is made of images.

    Returns:
        The model's inputs, uint8, T x C x h x w, where T is 1 unless the image is tiled, and where they lie in the
        image: for all other fits as one tile.

    Raises:
        ValueError: if images must have a size already and this one has another, or if it is so narrow that it would
            have more than `MAX_PIXELS` pixels once its shorter side is as long as the model's input.
    """
    size, wanted = image.shape[-2:], (decoding.height, decoding.width)
    if decoding.fit in ("tile", "crop"):
        _refuse_narrow(size, wanted)
    if decoding.tiled:
        plan = tiling(size, wanted, decoding.overlap)
        return cut(image, plan), plan
    whole = tiling(wanted, wanted, 0)
    if size == wanted:
        return image[None], whole
    if decoding.fit == "exact":
        raise DataError(
            f"is {size[1]} x {size[0]}, the model takes {wanted[1]} x {wanted[0]} (width x height); ask for --resize"
        )
    if decoding.fit == "resize":
        return resized(image, wanted)[None], whole
    inner = _inner_size(size, decoding)
    image = resized(image, inner)
    if decoding.fit == "crop":
        top, left = (max(inner[axis] - wanted[axis], 0) // 2 for axis in (0, 1))
        return image[None, :, top : top + wanted[0], left : left + wanted[1]], whole
    before = [max(wanted[axis] - inner[axis], 0) // 2 for axis in (0, 1)]
    edges = [(before[axis], max(wanted[axis] - inner[axis] - before[axis], 0)) for axis in (0, 1)]
    return np.pad(image, ((0, 0), *edges), mode="edge")[None, :, : wanted[0], : wanted[1]], whole


def prepared(image: Pixels, where: str, decoding: Decoding) -> Pixels:
    """Convert an image to uint8 in the channels of a description, and reduce it where tiles are cut of a smaller one.

    Args:
        image: image, C x H x W, uint8 or uint16.
        where: name of the image in error messages.
        decoding: description of what is made of images.

    Returns:
        The image, uint8, C x H x W.

    Raises:
        ValueError: if its channels cannot be converted.
    """
    channels = image.shape[0]
    if image.dtype == np.uint8 and decoding.bits == 16:
        image = image.astype(np.uint16) * 257
    if image.dtype == np.uint16:
        low, high = (decoding.low, decoding.high) if decoding.bits == 16 else (0, 65535)
        scaled = (image.astype(np.float32) - low) * (255 / (high - low))
        image = np.rint(scaled.clip(0, 255)).astype(np.uint8)
    image = resized(image, reduced_size(image.shape[-2:], decoding))
    if channels == decoding.channels:
        return image
    if (channels, decoding.channels) == (1, 3):
        return np.repeat(image, 3, axis=0)
    if (channels, decoding.channels) == (3, 1):
        red, green, blue = image.astype(np.uint32)
        gray: Pixels = ((19595 * red + 38470 * green + 7471 * blue + 0x8000) >> 16).astype(np.uint8)[None]
        return gray
    raise DataError(f"{where}: has {counted(channels, 'channel')}, the model takes {decoding.channels}")


def map_of_image(values: NDArray[Any], size: tuple[int, int], decoding: Decoding | None) -> NDArray[Any]:
    """Turn a map of a model's input into one of the image: without what was padded, and with what was cropped.

    Args:
        values: map of the input that `fit_photo` made of an image, H x W; of tiles, blended into one map.
        size: height and width of the image.
        decoding: description by which the image was fitted; None if it was resized or taken as it is.

    Returns:
        The map, with the proportions of the image; 0 where the image was cropped, since the model did not see it. For
        all other fits the same object.
    """
    if decoding is None or decoding.fit not in ("crop", "pad"):
        return values
    inner = _inner_size(size, decoding)
    found = np.zeros(inner, values.dtype)
    pairs = list(zip(inner, values.shape, strict=True))
    there = tuple(slice(max(own - given, 0) // 2, max(own - given, 0) // 2 + given) for own, given in pairs)
    here = tuple(slice(max(given - own, 0) // 2, max(given - own, 0) // 2 + own) for own, given in pairs)
    found[there] = values[here]
    return found


def reduced_size(size: tuple[int, int], decoding: Decoding) -> tuple[int, int]:
    """Return the height and width that tiles are cut from: those of the image, or of the image reduced.

    >>> reduced_size((3024, 4032), Decoding(fit="tile", height=64, width=64, channels=3, longest=256))
    (192, 256)
    """
    longest = max(size)
    if not decoding.tiled or not decoding.longest or longest <= decoding.longest:
        return size
    scale = decoding.longest / longest
    return max(round(size[0] * scale), 1), max(round(size[1] * scale), 1)


def draft_size(size: tuple[int, int], decoding: Decoding) -> tuple[int, int] | None:
    """Return the width and height that the fit will reduce an image to; None if it is not reduced."""
    if decoding.tiled:
        height, width = reduced_size((size[1], size[0]), decoding)
        return (width, height) if (width, height) != size else None
    return None if decoding.fit == "exact" else (max(decoding.height, decoding.width),) * 2


def _inner_size(size: tuple[int, int], decoding: Decoding) -> tuple[int, int]:
    """Return the height and width to which an image is resized before it is cropped or padded."""
    pick = max if decoding.fit == "crop" else min
    scale = pick(decoding.height / size[0], decoding.width / size[1])
    return max(round(size[0] * scale), 1), max(round(size[1] * scale), 1)


def _refuse_narrow(size: tuple[int, int], wanted: tuple[int, int]) -> None:
    """Refuse an image that fits into memory, and that its enlargement would not fit into."""
    scale = max(1.0, wanted[0] / size[0], wanted[1] / size[1])
    pixels = size[0] * scale * size[1] * scale
    if scale > 1 and pixels > MAX_PIXELS:
        raise DataError(
            f"is {size[1]:,} x {size[0]:,} (width x height): enlarged to cover {wanted[1]} x {wanted[0]} it would have"
            f" {pixels:,.0f} pixels; at most {MAX_PIXELS:,} are accepted"
        )
