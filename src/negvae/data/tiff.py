"""Read TIFF files that Pillow does not read whole: many channels, 16 bits in several channels, stacks of gray pages."""

from __future__ import annotations

import os
from typing import IO, Any

import numpy as np
from PIL import Image

from negvae.data.formats.base import DataError, Source
from negvae.data.pillow import TURNS, PhotoHeader, Pixels, is_sixteen, sixteen_bits, still_to_turn, upright
from negvae.decoding import MAX_CHANNELS
from negvae.files import need

_ENDINGS = (".tif", ".tiff")
_BITS, _TURN, _SAMPLES = 258, 274, 277
_WHITE_IS_ZERO, _BLACK_IS_ZERO, _RGB = range(3)
_PREMULTIPLIED, _ALPHA = 1, 2
"""What a TIFF says of a sample beyond those of gray or color; 0 is a channel like others."""


def may_be_tiff(source: Source) -> bool:
    """Return whether bytes begin as a TIFF, or a path ends like one."""
    if isinstance(source, bytes):
        return source[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
    return isinstance(source, str) and os.path.splitext(source)[1].lower() in _ENDINGS


def is_deep_tiff(image: Image.Image) -> bool:
    """Return whether this is a TIFF of more than four channels, of more than 8 bits in several, or of gray pages."""
    tags = getattr(image, "tag_v2", None)
    if image.format != "TIFF" or tags is None:
        return False
    samples, bits = int(tags.get(_SAMPLES, 1)), tags.get(_BITS, (8,))
    deepest = max(bits) if isinstance(bits, tuple) else int(bits)
    return samples > 4 or (samples > 1 and deepest > 8) or _is_stack(image)


def _is_stack(image: Image.Image) -> bool:
    """Return whether a TIFF begins with two gray pages of one size, as microscopes and tifffile store channels."""
    if getattr(image, "n_frames", 1) == 1 or image.mode not in ("L", "I;16", "I;16B"):
        return False
    first = image.mode, image.size
    image.seek(1)
    second = image.mode, image.size
    image.seek(0)
    return first == second


def tiff_header(file: IO[bytes]) -> PhotoHeader:
    """Return what the first page of a TIFF, or its stack of gray pages, declares.

    Args:
        file: content of the file, at its beginning.

    Returns:
        Size upright, channels after decoding, and depth.

    Raises:
        ImportError: if the extra "tiff" is not installed.
        ValueError: if its pixels are not accepted.
    """
    return _tiff(file, pixels=False)[0]


def tiff_pixels(file: IO[bytes]) -> Pixels:
    """Return the pixels that `tiff_header` describes: uint8 or uint16, C x H x W, laid over white where transparent."""
    pixels = _tiff(file, pixels=True)[1]
    assert pixels is not None
    return pixels


def _tiff(file: IO[bytes], pixels: bool) -> tuple[PhotoHeader, Pixels | None]:
    """Return what the first page of a TIFF, or its stack of gray pages, declares, and the pixels if they are wanted."""
    with need("tifffile", "tiff").TiffFile(file) as tiff:
        page = tiff.pages[0]
        if page.axes not in ("YX", "YXS", "SYX"):
            raise DataError(f"has the axes {page.axes} of {page.shape}: one image with channels is needed")
        if page.dtype not in (np.uint8, np.uint16):
            raise DataError(f"has {page.dtype} pixels: uint8 and uint16 are accepted")
        if page.photometric not in (_WHITE_IS_ZERO, _BLACK_IS_ZERO, _RGB):
            kind = getattr(page.photometric, "name", page.photometric)
            raise DataError(f"has {kind} pixels of {page.dtype}: gray and RGB are accepted, with channels beyond them")
        alphas = [place for place, kind in enumerate(page.extrasamples) if kind in (_PREMULTIPLIED, _ALPHA)]
        stack = _stack(tiff) if page.samplesperpixel == 1 else None
        pages = 1 if stack is None else sum(each.size for each in stack) // page.size
        channels = pages * page.samplesperpixel - len(alphas)
        if channels > MAX_CHANNELS or len(alphas) > 1:
            raise DataError(
                f"has {channels} channels and {len(alphas)} of transparency: at most {MAX_CHANNELS} and 1 are accepted"
            )
        orientation = int(page.tags.valueof(_TURN, 1))
        width, height = page.imagewidth, page.imagelength
        if orientation in TURNS and TURNS[orientation][0]:
            width, height = height, width
        bits = 8 * page.dtype.itemsize
        header = PhotoHeader(width, height, channels, bits, orientation in TURNS, deep=True)
        if not pixels:
            return header, None
        try:
            array = page.asarray() if stack is None else np.concatenate([each.asarray().ravel() for each in stack])
        except ValueError as error:
            if stack is None or "imagecodecs" not in str(error):
                raise
            return header, _pages_by_pillow(file)
        array = array.reshape(page.shape if stack is None else (-1, *page.shape))
        by_channel = stack is not None or page.axes == "SYX"
        array = np.moveaxis(array, 0, -1) if by_channel else array.reshape(*array.shape[:2], -1)
        first = page.samplesperpixel - len(page.extrasamples)
        if page.photometric == _WHITE_IS_ZERO:  # which is not said of its transparency
            colors = np.setdiff1d(np.arange(array.shape[-1]), [first + place for place in alphas])
            array = array.copy()
            array[..., colors] = np.iinfo(array.dtype).max - array[..., colors]
        for place in alphas:
            array = _over_white(array, first + place, page.extrasamples[place])
        return header, np.ascontiguousarray(upright(array, orientation).transpose(2, 0, 1))


def _stack(tiff: Any) -> list[Any]:
    """Return the series of a TIFF whose gray pages are channels: those of the first one's form, unlike a small copy.

    Pages that were written one by one are a series each.
    """
    forms = [(page.shape, page.dtype, page.photometric) for page in (each.keyframe for each in tiff.series)]
    return [each for each, form in zip(tiff.series, forms, strict=True) if form == forms[0]]


def _pages_by_pillow(file: IO[bytes]) -> Pixels:
    """Return the gray pages of a TIFF, C x H x W, whose compression tifffile reads with a further package alone."""
    file.seek(0)
    found = []
    with Image.open(file, formats=("TIFF",)) as image:
        form = image.mode, image.size
        for number in range(getattr(image, "n_frames", 1)):
            image.seek(number)
            if (image.mode, image.size) == form:
                orientation = still_to_turn(image)
                deep = is_sixteen(image)
                found.append(sixteen_bits(image) if deep else upright(np.asarray(image), orientation)[None])
    return np.ascontiguousarray(np.concatenate(found))


def _over_white(pixels: Pixels, place: int, kind: int) -> Pixels:
    """Return pixels, H x W x C, laid over white by the channel of transparency at a place, and without it."""
    white = np.uint32(np.iinfo(pixels.dtype).max)
    alpha = pixels[..., place : place + 1].astype(np.uint32)
    color = np.delete(pixels, place, axis=-1).astype(np.uint32)
    if kind == _PREMULTIPLIED:
        mixed = np.minimum(color + (white - alpha), white)
    else:
        mixed = (color * alpha + white * (white - alpha) + white // 2) // white
    return mixed.astype(pixels.dtype)
