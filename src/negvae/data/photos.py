"""Decode images of any size, depth and number of channels, and fit them to a model as a `Decoding` describes."""

from __future__ import annotations

import io
import os
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, UnidentifiedImageError

from negvae.data.formats.base import DataError, Source, reading
from negvae.data.formats.encoded import (
    MAX_PIXELS,
    open_image,
    opened,
    plain_pixels,
    raw_mode,
    refuse_heatmap,
    refuse_many_scans,
)
from negvae.data.stores import open_file
from negvae.data.tiling import Tiling, cut, resized, tiling
from negvae.decoding import MAX_CHANNELS, Decoding
from negvae.files import need
from negvae.messages import counted

Pixels = NDArray[Any]
"""An image, C x H x W, uint8 or uint16."""
_TIFF = (".tif", ".tiff")
_TURNS = {
    2: (False, 1, -1), 3: (False, -1, -1), 4: (False, -1, 1),
    5: (True, 1, 1), 6: (True, 1, -1), 7: (True, -1, -1), 8: (True, -1, 1),
}  # fmt: skip
"""Of each EXIF orientation but the upright one: whether rows become columns, and the steps through both afterwards."""
_WIDTH, _LENGTH, _BITS, _PHOTOMETRIC, _TURN, _SAMPLES = 256, 257, 258, 262, 274, 277
_PNG_EXIF = {"exif", "Raw profile type exif", "xmp", "XML:com.adobe.xmp"}
"""Keys under which Pillow keeps what a PNG file says of its orientation before its pixels."""
_WHITE_IS_ZERO, _BLACK_IS_ZERO, _RGB = range(3)
_SAMPLE_FORMAT, _SIGNED = 339, 2
_PREMULTIPLIED, _ALPHA = 1, 2
"""What a TIFF says of a sample beyond those of gray or color; 0 is a channel like others."""


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
            return _declared(source)
        if source is None:
            raise DataError(f"{where}: no image bytes (links to files are not followed)")
        with opened(source, where) as file:
            try:
                with open_image(file, max_pixels) as image:
                    refuse_heatmap(image, where)
                    _refuse_large(*image.size, where, max_pixels)
                    found = None if _is_deep_tiff(image) else _declared(image)
            except UnidentifiedImageError:
                if not _may_be_tiff(source):
                    raise
                found = None
            if found is None:
                file.seek(0)
                found = _tiff_header(file, where)
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
                    if not _is_deep_tiff(image):
                        _refuse_large(*image.size, where, max_pixels)  # as declared: a draft is smaller
                        refuse_many_scans(image, file, where)
                        if (target := _needed(image.size, decoding)) is not None:
                            image.draft(None, (2 * target[0], 2 * target[1]))
                        return _from_pillow(image, where, decoding, max_pixels)
            except UnidentifiedImageError:
                if not _may_be_tiff(source):
                    raise
            file.seek(0)
            header = _tiff_header(file, where)
            _refuse_large(header.width, header.height, where, max_pixels)
            file.seek(0)
            return prepared(_tiff_pixels(file, where), where, decoding)


def raw_pixels(source: Source, where: str) -> Pixels:
    """Decode one image upright in its own size and depth: uint8 or uint16, C x H x W; see `decode_photo`."""
    header = read_header(source, where)
    if header.bits == 8:
        own = Decoding(fit="exact", height=header.height, width=header.width, channels=header.channels)
        return decode_photo(source, where, own)
    with reading(where, "image"):
        if isinstance(source, Image.Image):
            return _sixteen(source)
        assert source is not None
        with opened(source, where) as file:
            try:
                with open_image(file, MAX_PIXELS) as image:
                    if not _is_deep_tiff(image):
                        return _sixteen(image)
            except UnidentifiedImageError:
                pass
            file.seek(0)
            return _tiff_pixels(file, where)


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


def _inner_size(size: tuple[int, int], decoding: Decoding) -> tuple[int, int]:
    """Return the height and width to which an image is resized before it is cropped or padded."""
    pick = max if decoding.fit == "crop" else min
    scale = pick(decoding.height / size[0], decoding.width / size[1])
    return max(round(size[0] * scale), 1), max(round(size[1] * scale), 1)


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


def read_photo(
    source: Source, where: str, decoding: Decoding, max_pixels: int = MAX_PIXELS
) -> tuple[NDArray[np.uint8], Tiling]:
    """Decode one image and fit it to a model: `decode_photo` and `fit_photo`."""
    return fit_photo(decode_photo(source, where, decoding, max_pixels), decoding)


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


# --- Pillow -----


def _declared(image: Image.Image) -> PhotoHeader:
    width, height = image.size
    gray = image.mode in ("1", "L", "LA", "La") or raw_mode(image).startswith("LA")
    orientation = _orientation(image)  # for which Pillow loads some files, and no raw mode is known any more
    turned = orientation in _TURNS
    if turned and _TURNS[orientation][0]:
        tags = getattr(image, "tag_v2", {})  # the size that some versions of Pillow give of a TIFF is upright already
        width, height = tags.get(_LENGTH, height), tags.get(_WIDTH, width)
    if _has_sign(image):
        raise DataError("has pixels with a sign: whole numbers of 8 and 16 bits without one are accepted")
    if _is_sixteen(image):
        return PhotoHeader(width, height, 1, 16, turned)
    if image.mode[0] in "IF":
        raise DataError(f"has {image.mode} pixels, of 32 bits: whole numbers of 8 and 16 bits are accepted")
    return PhotoHeader(width, height, 1 if gray else 3, 8, turned)


def _has_sign(image: Image.Image) -> bool:
    """Return whether this is a TIFF whose pixels are whole numbers of 8 or 16 bits with a sign."""
    tags = getattr(image, "tag_v2", {})
    return bool(np.max(tags.get(_BITS, 8)) <= 16 and np.any(np.equal(tags.get(_SAMPLE_FORMAT, 1), _SIGNED)))


def _is_sixteen(image: Image.Image) -> bool:
    """Return whether an image is gray of 16 bits; of PGM files, Pillow gives these as numbers of 32 bits."""
    return image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PPM", "PNG"))


def _from_pillow(image: Image.Image, where: str, decoding: Decoding, max_pixels: int) -> Pixels:
    _refuse_large(image.width, image.height, where, max_pixels)
    if _is_sixteen(image):
        return prepared(_sixteen(image), where, decoding)
    orientation = _still_to_turn(image)
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


def _needed(size: tuple[int, int], decoding: Decoding) -> tuple[int, int] | None:
    """Return the width and height that the fit will reduce an image to; None if it is not reduced."""
    if decoding.tiled:
        height, width = reduced_size((size[1], size[0]), decoding)
        return (width, height) if (width, height) != size else None
    return None if decoding.fit == "exact" else (max(decoding.height, decoding.width),) * 2


def _still_to_turn(image: Image.Image) -> int:
    """Return the EXIF orientation that remains to be applied; Pillow applies that of a TIFF as it loads it."""
    if image.format == "TIFF":
        image.load()
    return _orientation(image)


def _orientation(image: Image.Image) -> int:
    """Return the EXIF orientation of an image; 1, upright, where the tags are damaged."""
    if image.format == "PNG" and _PNG_EXIF.isdisjoint(image.info):
        return 1  # Pillow would decode the whole image to look for tags behind its pixels
    try:
        return int(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # Pillow has many for tags that are none, and the pixels may be whole
        return 1


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
            header = _declared(image)
            return (header.height, header.width), 1 if image.format == "TIFF" else _orientation(image)
    except UnidentifiedImageError:
        if not _may_be_tiff(where):
            raise
        with reading(where, "image"), opened(where, where) as file:  # a TIFF that Pillow does not read
            header = _tiff_header(file, where)
            return (header.height, header.width), 1


def upright(pixels: NDArray[Any], orientation: int) -> NDArray[Any]:
    """Turn and mirror pixels as an EXIF orientation says.

    Args:
        pixels: pixels, H x W or H x W x C.
        orientation: value of the tag, from 1 (upright) to 8; others count as 1.

    Returns:
        A view of the pixels, H x W or W x H, and the channels.
    """
    aside, down, right = _TURNS.get(orientation, (False, 1, 1))
    return (pixels.swapaxes(0, 1) if aside else pixels)[::down, ::right]


def _sixteen(image: Image.Image) -> Pixels:
    orientation = _still_to_turn(image)
    pixels = np.asarray(image).astype(np.uint16)
    if getattr(image, "tag_v2", {}).get(_PHOTOMETRIC) == _WHITE_IS_ZERO:  # which Pillow heeds for 8 bits only
        pixels = 65535 - pixels
    return upright(pixels, orientation)[None]


def _refuse_narrow(size: tuple[int, int], wanted: tuple[int, int]) -> None:
    """Refuse an image that fits into memory, and that its enlargement would not fit into."""
    scale = max(1.0, wanted[0] / size[0], wanted[1] / size[1])
    pixels = size[0] * scale * size[1] * scale
    if scale > 1 and pixels > MAX_PIXELS:
        raise DataError(
            f"is {size[1]:,} x {size[0]:,} (width x height): enlarged to cover {wanted[1]} x {wanted[0]} it would have"
            f" {pixels:,.0f} pixels; at most {MAX_PIXELS:,} are accepted"
        )


def _refuse_large(width: int, height: int, where: str, max_pixels: int) -> None:
    if width * height > max_pixels:
        raise DataError(f"{where}: claims {width:,} x {height:,} pixels; at most {max_pixels:,} are accepted")


# --- TIFF files that Pillow does not read whole -----


def _may_be_tiff(source: Source) -> bool:
    if isinstance(source, bytes):
        return source[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
    return isinstance(source, str) and os.path.splitext(source)[1].lower() in _TIFF


def _is_deep_tiff(image: Image.Image) -> bool:
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


def _tiff_header(file: IO[bytes], where: str) -> PhotoHeader:
    return _tiff(file, where, pixels=False)[0]


def _tiff_pixels(file: IO[bytes], where: str) -> Pixels:
    pixels = _tiff(file, where, pixels=True)[1]
    assert pixels is not None
    return pixels


def _tiff(file: IO[bytes], where: str, pixels: bool) -> tuple[PhotoHeader, Pixels | None]:
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
        if orientation in _TURNS and _TURNS[orientation][0]:
            width, height = height, width
        bits = 8 * page.dtype.itemsize
        header = PhotoHeader(width, height, channels, bits, orientation in _TURNS, deep=True)
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
                orientation = _still_to_turn(image)
                deep = _is_sixteen(image)
                found.append(_sixteen(image) if deep else upright(np.asarray(image), orientation)[None])
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
