"""Convert arrays to images and labels, and hash pixels."""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from negvae.data.formats.base import DataError, by
from negvae.messages import counted


@dataclass(frozen=True)
class Decoded:
    """Images that were read whole: uint8 N x C x H x W, labels (int64, N) or None, and notes to show to the user."""

    images: NDArray[np.uint8]
    labels: NDArray[np.int64] | None = None
    notes: tuple[str, ...] = ()


def pixel_sha256(images: NDArray[Any]) -> str:
    """Return the SHA-256 of uint8 images N x C x H x W, over the bytes in N x H x W x C order, in hexadecimal.

    >>> pixel_sha256(np.zeros((1, 3, 2, 2), np.uint8))[:8]
    '15ec7bf0'
    """
    digest = hashlib.sha256()
    if images.shape[1] == 1 and images.flags.c_contiguous:
        digest.update(images.reshape(-1).data)
        return digest.hexdigest()
    for start in range(0, len(images), 4096):
        digest.update(np.ascontiguousarray(images[start : start + 4096].transpose(0, 2, 3, 1)).data)
    return digest.hexdigest()


def image_digests(images: NDArray[Any]) -> set[str]:
    """Return the first 8 hexadecimal digits of each image's own SHA-256 (in H x W x C order)."""
    return {hashlib.sha256(image.transpose(1, 2, 0).tobytes()).hexdigest()[:8] for image in images}


def as_images(array: NDArray[Any], where: object) -> Decoded:
    """Convert an array of any accepted type and layout to images.

    Accepted are uint8, and floats within [0, 1] (multiplied by 255 and rounded); N x H x W, N x H x W x C and N x C x H
    x W with C 1 or 3. If both axis 1 and the last axis could be C, axis 1 is used.

    Args:
        array: array of an accepted type and layout.
        where: name of the array in error messages.

    Returns:
        The images, uint8, N x C x H x W, with a note if rounding changed them.

    Raises:
        ValueError: if the array has another type, layout or range, or holds no images.

    >>> as_images(np.zeros((2, 28, 28), np.uint8), "zeros").images.shape
    (2, 1, 28, 28)
    """
    if array.dtype != np.uint8 and array.dtype.kind != "f":
        raise DataError(f"{where}: images are {array.dtype}; uint8, or floats within [0, 1], are accepted")
    shape = by(array.shape)
    accepted = "N x H x W, N x H x W x C and N x C x H x W with C 1 or 3 are accepted"
    if array.size == 0:
        raise DataError(f"{where}: holds no images (shape {shape})")
    if array.ndim == 3 and array.shape[-1] in (1, 3, 4):
        raise DataError(f"{where}: shape {shape} looks like one H x W x C image; {accepted}")
    if array.ndim == 3:
        array = array[:, None]
    elif array.ndim == 4 and array.shape[1] in (1, 3):
        pass
    elif array.ndim == 4 and array.shape[-1] in (1, 3):
        array = array.transpose(0, 3, 1, 2)
    else:
        alpha = " (a fourth channel, alpha, is not: drop it)" if array.ndim == 4 and 4 in array.shape[1:] else ""
        raise DataError(f"{where}: images have shape {shape}; {accepted}{alpha}")
    if array.dtype == np.uint8:
        return Decoded(np.ascontiguousarray(array))
    return _from_unit_floats(array, where)


def slack(dtype: np.dtype[Any]) -> float:
    """Return how far outside [0, 1] rounding may put a float pixel: a few units in the last place."""
    return 2 * float(np.finfo(dtype).eps) if dtype.itemsize < 4 else 1e-6


def _from_unit_floats(array: NDArray[Any], where: object) -> Decoded:
    """Convert floats within [0, 1] to uint8, in chunks, with a note if that changes any image."""
    images = np.empty(array.shape, np.uint8)
    inexact, least = 0, slack(array.dtype)
    for start in range(0, len(array), 4096):
        chunk = array[start : start + 4096].astype(np.float64)
        if not (chunk.min() >= -least and chunk.max() <= 1 + least):  # also catches NaN
            finite = chunk[np.isfinite(chunk)]
            found = f"{finite.min():.9g} to {finite.max():.9g}" if finite.size else "no finite number"
            odd = " and NaN or infinity" if finite.size < chunk.size else ""
            raise DataError(f"{where}: float images must lie within [0, 1]; found {found}{odd}")
        scaled = chunk.clip(0, 1) * 255
        rounded = np.rint(scaled)
        # float16 represents k/255 to within 0.06 of a gray level.
        inexact += int(np.any(np.abs(scaled - rounded) > 0.07, axis=(1, 2, 3)).sum())
        images[start : start + 4096] = rounded
    if not inexact:
        return Decoded(images)
    return Decoded(images, None, (f"{where}: float pixels rounded to 8 bits ({counted(inexact, 'image')} changed)",))


def need_one_label_each(shape: tuple[int, ...], count: int, where: object) -> None:
    """Check the shape of labels, before they are read where it is known before.

    Args:
        shape: shape of the labels: N, N x 1 or 1 x N.
        count: number of images, N.
        where: name of the labels in error messages.

    Raises:
        ValueError: if there is not one label per image.
    """
    flat = (math.prod(shape),) if len(shape) == 2 and 1 in shape else shape
    if flat != (count,):
        raise DataError(f"{where}: labels have shape {by(flat)}; one label for each of the {count:,} images needed")


def as_labels(array: NDArray[Any], count: int, where: object) -> NDArray[Any]:
    """Convert labels to int64, N; N x 1 is accepted, and text is numbered in sorted order.

    Args:
        array: labels of any accepted type.
        count: number of images, N.
        where: name of the labels in error messages.

    Returns:
        The labels, int64, N.

    Raises:
        ValueError: if there is not one label per image, or labels are not whole numbers.
    """
    labels = np.asarray(array)
    need_one_label_each(labels.shape, count, where)
    labels = labels.reshape(-1)
    if labels.dtype.kind in "US":
        labels = np.unique(labels, return_inverse=True)[1]
    if labels.dtype.kind == "f" and np.array_equal(labels, np.rint(labels)):
        labels = labels.astype(np.int64)
    if labels.dtype.kind not in "iub":
        raise DataError(f"{where}: labels are {labels.dtype}; whole numbers are needed")
    return labels.astype(np.int64)
