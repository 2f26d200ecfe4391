"""Decode images of any size, depth and number of channels, and fit them to a model as a `Decoding` describes."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from negvae.data.fit import draft_size, fit_photo, prepared, reduced_size
from negvae.data.formats.base import DataError, Source, reading
from negvae.data.formats.encoded import (
    MAX_PIXELS,
    open_image,
    opened,
    plain_pixels,
    refuse_heatmap,
    refuse_many_scans,
)
from negvae.data.pillow import (
    PhotoHeader,
    Pixels,
    declared,
    is_sixteen,
    orientation_of,
    sixteen_bits,
    still_to_turn,
    upright,
)
from negvae.data.stores import open_file
from negvae.data.tiff import is_deep_tiff, may_be_tiff, tiff_header, tiff_pixels
from negvae.data.tiling import Tiling
from negvae.decoding import Decoding


def read_header(source: Source, where: str, max_pixels: int = MAX_PIXELS) -> PhotoHeader:
    """Read what an image declares, without decoding its pixels.

    Args:
        source: encoded image.
        where: name of the image in error messages.
        max_pixels: maximum number of pixels that the image may declare.

    Returns:
        Size, channels and depth.

    Raises:
        ImportError: if the image takes an extra that is not installed.
        ValueError: if this is no image that can be read.
    """
    with reading(where, "image"):
        if isinstance(source, Image.Image):
            return declared(source)
        if source is None:
            raise DataError(f"{where}: no image bytes (links to files are not followed)")
        with opened(source, where) as file:
            try:
                with open_image(file, max_pixels) as image:
                    refuse_heatmap(image, where)
                    _refuse_large(*image.size, where, max_pixels)
                    found = None if is_deep_tiff(image) else declared(image)
            except UnidentifiedImageError:
                if not may_be_tiff(source):
                    raise
                found = None
            if found is None:
                file.seek(0)
                found = tiff_header(file)
        _refuse_large(found.width, found.height, where, max_pixels)
        return found


def decode_photo(source: Source, where: str, decoding: Decoding, max_pixels: int = MAX_PIXELS) -> Pixels:
    """Decode one image upright, in the channels and the depth of a description, and not larger than it needs.

    A large JPEG is reduced while it is decoded, to a half, a quarter or an eighth, if that leaves at least twice the
    size that is needed (Pillow's draft mode), so that neither the time nor the memory of all its pixels is spent. An
    image of Pillow stays as it is: a JPEG whose pixels are not loaded yet is decoded from its file's content.

    Args:
        source: encoded image.
        where: name of the image in error messages.
        decoding: description of what is made of images.
        max_pixels: maximum number of pixels that the image may declare; checked before decoding.

    Returns:
        The image, uint8, C x H x W; for tiles it has the size that they are cut from, or is smaller.

    Raises:
        ImportError: if the image takes an extra that is not installed.
        ValueError: if this is no image that can be decoded to these channels.
    """
    with reading(where, "image"):
        if isinstance(source, Image.Image):
            if (content := _unread(source)) is None:
                return _from_pillow(source, where, decoding, max_pixels)
            source = content
        if source is None:
            raise DataError(f"{where}: no image bytes (links to files are not followed)")
        with opened(source, where) as file:
            try:
                with open_image(file, max_pixels) as image:
                    refuse_heatmap(image, where)
                    if not is_deep_tiff(image):
                        _refuse_large(*image.size, where, max_pixels)  # as declared: a draft is smaller
                        refuse_many_scans(image, file, where)
                        if (target := draft_size(image.size, decoding)) is not None:
                            image.draft(None, (2 * target[0], 2 * target[1]))
                        return _from_pillow(image, where, decoding, max_pixels)
            except UnidentifiedImageError:
                if not may_be_tiff(source):
                    raise
            file.seek(0)
            header = tiff_header(file)
            _refuse_large(header.width, header.height, where, max_pixels)
            file.seek(0)
            return prepared(tiff_pixels(file), where, decoding)


def raw_pixels(source: Source, where: str) -> Pixels:
    """Decode one image upright in its own size and depth: uint8 or uint16, C x H x W; see `decode_photo`."""
    header = read_header(source, where)
    if header.bits == 8:
        own = Decoding(fit="exact", height=header.height, width=header.width, channels=header.channels)
        return decode_photo(source, where, own)
    with reading(where, "image"):
        if isinstance(source, Image.Image):
            return sixteen_bits(source)
        assert source is not None
        with opened(source, where) as file:
            try:
                with open_image(file, MAX_PIXELS) as image:
                    if not is_deep_tiff(image):
                        return sixteen_bits(image)
            except UnidentifiedImageError:
                pass
            file.seek(0)
            return tiff_pixels(file)


def read_photo(
    source: Source, where: str, decoding: Decoding, max_pixels: int = MAX_PIXELS
) -> tuple[NDArray[np.uint8], Tiling]:
    """Decode one image and fit it to a model: `decode_photo` and `fit_photo`."""
    return fit_photo(decode_photo(source, where, decoding, max_pixels), decoding)


def seen_as(path: Path | str) -> tuple[tuple[int, int], int]:
    """Look up the size at which an image file is shown, and the orientation that its pixels as loaded still lack.

    Args:
        path: path or URI of the file.

    Returns:
        Height and width upright, and the EXIF orientation that is still to be applied to pixels as Pillow loads them:
        1 for a TIFF, which it turns by itself.

    Raises:
        ImportError: if this is a TIFF that takes an extra that is not installed.
        OSError: if this is no image that can be opened.
        ValueError: if it has pixels that are not accepted, or is a damaged TIFF.
    """
    where = str(path)
    try:
        with open_file(where) as file, Image.open(file) as image:
            header = declared(image)
            return (header.height, header.width), 1 if image.format == "TIFF" else orientation_of(image)
    except UnidentifiedImageError:
        if not may_be_tiff(where):
            raise
        with reading(where, "image"), opened(where, where) as file:  # a TIFF that Pillow does not read
            header = tiff_header(file)
            return (header.height, header.width), 1


def _from_pillow(image: Image.Image, where: str, decoding: Decoding, max_pixels: int) -> Pixels:
    _refuse_large(image.width, image.height, where, max_pixels)
    if is_sixteen(image):
        return prepared(sixteen_bits(image), where, decoding)
    orientation = still_to_turn(image)
    pixels = upright(plain_pixels(image, where)[0], orientation)
    channels = pixels.shape[2]
    size = reduced_size(pixels.shape[:2], decoding)
    if size != pixels.shape[:2] and channels in (1, 3):  # all channels at once take less memory
        picture = Image.fromarray(pixels[..., 0] if channels == 1 else pixels)
        pixels = np.asarray(picture.resize((size[1], size[0]), Image.Resampling.BILINEAR)).reshape(*size, channels)
    return prepared(np.ascontiguousarray(pixels.transpose(2, 0, 1)), where, decoding)


def _unread(image: Image.Image) -> bytes | None:
    """Return the content of the JPEG file that an image of Pillow will be loaded from; None of any other image."""
    file = getattr(image, "fp", None)
    if image.format not in ("JPEG", "MPO") or file is None or not file.seekable():
        return None
    place = file.tell()
    file.seek(0)
    content: bytes = file.read()
    file.seek(place)
    with Image.open(io.BytesIO(content)) as again:  # the caller may have asked for a smaller one
        return content if again.size == image.size and again.mode == image.mode else None


def _refuse_large(width: int, height: int, where: str, max_pixels: int) -> None:
    if width * height > max_pixels:
        raise DataError(f"{where}: claims {width:,} x {height:,} pixels; at most {max_pixels:,} are accepted")
