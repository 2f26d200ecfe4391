"""What Pillow declares of an image, and its pixels upright in their own depth."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image

from negvae.data.formats.base import DataError
from negvae.data.formats.encoded import raw_mode

Pixels = NDArray[Any]
"""An image, C x H x W, uint8 or uint16."""
TURNS = {
    2: (False, 1, -1), 3: (False, -1, -1), 4: (False, -1, 1),
    5: (True, 1, 1), 6: (True, 1, -1), 7: (True, -1, -1), 8: (True, -1, 1),
}  # fmt: skip
"""Of each EXIF orientation but the upright one: whether rows become columns, and the steps through both afterwards."""
_PNG_EXIF = {"exif", "Raw profile type exif", "xmp", "XML:com.adobe.xmp"}
"""Keys under which Pillow keeps what a PNG file says of its orientation before its pixels."""
_WIDTH, _LENGTH, _BITS, _PHOTOMETRIC = 256, 257, 258, 262
_SAMPLE_FORMAT, _SIGNED = 339, 2
_WHITE_IS_ZERO = 0


@dataclass(frozen=True)
class PhotoHeader:
    """What an image file declares.

    Attributes:
        width: width in pixels, upright.
        height: height in pixels, upright.
        channels: number of channels after decoding.
        bits: bits of a channel, 8 or 16.
        turned: whether its pixels are stored on their side, upside down or mirrored, and its EXIF orientation says so.
        deep: whether this is a TIFF with channels or pages that Pillow does not read.
    """

    width: int
    height: int
    channels: int
    bits: int
    turned: bool = False
    deep: bool = False


def declared(image: Image.Image) -> PhotoHeader:
    """Return what Pillow declares of an image, without loading its pixels.

    Args:
        image: image that Pillow has opened.

    Returns:
        Size upright, channels after decoding, and depth.

    Raises:
        ValueError: if its pixels have a sign, or have 32 bits.
    """
    width, height = image.size
    gray = image.mode in ("1", "L", "LA", "La") or raw_mode(image).startswith("LA")
    orientation = orientation_of(image)  # for which Pillow loads some files, and no raw mode is known any more
    turned = orientation in TURNS
    if turned and TURNS[orientation][0]:
        tags = getattr(image, "tag_v2", {})  # the size that some versions of Pillow give of a TIFF is upright already
        width, height = tags.get(_LENGTH, height), tags.get(_WIDTH, width)
    if _has_sign(image):
        raise DataError("has pixels with a sign: whole numbers of 8 and 16 bits without one are accepted")
    if is_sixteen(image):
        return PhotoHeader(width, height, 1, 16, turned)
    if image.mode[0] in "IF":
        raise DataError(f"has {image.mode} pixels, of 32 bits: whole numbers of 8 and 16 bits are accepted")
    return PhotoHeader(width, height, 1 if gray else 3, 8, turned)


def _has_sign(image: Image.Image) -> bool:
    """Return whether this is a TIFF whose pixels are whole numbers of 8 or 16 bits with a sign."""
    tags = getattr(image, "tag_v2", {})
    return bool(np.max(tags.get(_BITS, 8)) <= 16 and np.any(np.equal(tags.get(_SAMPLE_FORMAT, 1), _SIGNED)))


def is_sixteen(image: Image.Image) -> bool:
    """Return whether an image is gray of 16 bits; of PGM files, Pillow gives these as numbers of 32 bits."""
    return image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PPM", "PNG"))


def sixteen_bits(image: Image.Image) -> Pixels:
    """Return the pixels of a gray image of 16 bits, upright, 1 x H x W, where 0 is black."""
    orientation = still_to_turn(image)
    pixels = np.asarray(image).astype(np.uint16)
    if getattr(image, "tag_v2", {}).get(_PHOTOMETRIC) == _WHITE_IS_ZERO:  # which Pillow heeds for 8 bits only
        pixels = 65535 - pixels
    return upright(pixels, orientation)[None]


def still_to_turn(image: Image.Image) -> int:
    """Return the EXIF orientation that remains to be applied; Pillow applies that of a TIFF as it loads it."""
    if image.format == "TIFF":
        image.load()
    return orientation_of(image)


def orientation_of(image: Image.Image) -> int:
    """Return the EXIF orientation of an image; 1, upright, where the tags are damaged."""
    if image.format == "PNG" and _PNG_EXIF.isdisjoint(image.info):
        return 1  # Pillow would decode the whole image to look for tags behind its pixels
    try:
        return int(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # Pillow has many for tags that are none, and the pixels may be whole
        return 1


def upright(pixels: NDArray[Any], orientation: int) -> NDArray[Any]:
    """Turn and mirror pixels as an EXIF orientation says.

    Args:
        pixels: pixels, H x W or H x W x C.
        orientation: value of the tag, from 1 (upright) to 8; others count as 1.

    Returns:
        A view of the pixels, H x W or W x H, and the channels.
    """
    aside, down, right = TURNS.get(orientation, (False, 1, 1))
    return (pixels.swapaxes(0, 1) if aside else pixels)[::down, ::right]
