"""Decode encoded images: PNG, JPEG and similar formats."""

from __future__ import annotations

import functools
import io
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from itertools import islice
from typing import IO, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from negvae.data import stores
from negvae.data.formats.base import DataError, Source, need_memory, reading
from negvae.data.formats.quiet import without_pillows_warnings
from negvae.files import need

SCANS = 100
"""Largest number of scans of a progressive JPEG; encoders write about ten."""
MAX_PIXELS = 64_000_000
_HEIF = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs", b"mif1", b"msf1")
"""Brands of HEIF behind the word ftyp; the last two are those of AVIF files too, which Pillow reads itself."""
HEATMAP_KEY, HEATMAP = "Title", "negvae heat map"
"""The text of the PNG files of heat maps, by which they are known."""
_CONTAINERS = (
    (0, b"PK\x03\x04", "a ZIP archive", "unpack it, and name its folder"),
    (0, b"\x1f\x8b", "a gzip file", "unpack it, and name what is in it"),
    (0, b"7z\xbc\xaf\x27\x1c", "a 7z archive", "unpack it, and name its folder"),
    (0, b"Rar!", "a RAR archive", "unpack it, and name its folder"),
    (257, b"ustar", "a tar archive", "unpack it, and name its folder"),
    (0, b"\x89HDF\r\n\x1a\n", "an HDF5 file", "save its images as .npy, N x H x W or N x H x W x C"),
)
"""Files that hold images and are read by no reader: where and by what each kind is known, and what to do with it."""
_CHUNK = 64

Item = TypeVar("Item")
Result = TypeVar("Result")


def in_order(
    function: Callable[[Item], Result], items: Iterable[Item | Future[Result]], workers: int
) -> Iterator[Result]:
    """Apply `function` to every item in threads, slightly ahead of the consumer, and yield the results in order.

    Args:
        function: called with each item, in the threads.
        items: arguments of the function, or results in a `Future`, which are passed through.
        workers: number of threads.

    Yields:
        The result of each item.
    """
    ahead: deque[Future[Result]] = deque()
    pool = ThreadPoolExecutor(workers)
    try:
        for item in items:
            ahead.append(item if isinstance(item, Future) else pool.submit(function, item))
            if len(ahead) > 2 * workers:
                yield ahead.popleft().result()
        while ahead:
            yield ahead.popleft().result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def opened(source: str | bytes, where: str) -> IO[bytes]:
    """Open an encoded image for reading; see `decode_image` for what is raised."""
    file = io.BytesIO(source) if isinstance(source, bytes) else stores.open_file(source, whole=True)
    try:
        start = file.read(512)
        file.seek(0)
        for place, mark, kind, advice in _CONTAINERS:
            if start.startswith(mark, place):
                raise DataError(f"{where}: {kind} and no image: {advice}")
        brands = start[8 : int.from_bytes(start[:4])] if start[4:8] == b"ftyp" else b""
        if brands[:4] in _HEIF and b"avif" not in brands and "HEIF" not in Image.OPEN:
            need("pillow_heif", "heif").register_heif_opener()
    except BaseException:
        file.close()
        raise
    return file


def refuse_many_scans(image: Image.Image, file: IO[bytes], where: str) -> None:
    """Refuse a progressive JPEG of more than `SCANS` scans: a few bytes of each cost the time of the whole image.

    Args:
        image: the image as Pillow has opened it.
        file: its file.
        where: name of the image in error messages.

    Raises:
        ValueError: if it has more scans.
    """
    if not image.info.get("progressive"):
        return
    place = file.tell()
    file.seek(0)
    scans = file.read().count(b"\xff\xda")  # bytes of scans that would look like this marker are escaped
    file.seek(place)
    if scans > SCANS:
        raise DataError(f"{where}: a JPEG of {scans:,} scans; at most {SCANS} are decoded, and usual files have ten")


def refuse_heatmap(image: Image.Image, where: str) -> None:
    """Refuse a heat map that negvae wrote: one that lies in a folder of photos is none of them.

    Args:
        image: the image as Pillow has opened it.
        where: name of the image in error messages.

    Raises:
        ValueError: if it is such a map.
    """
    if image.info.get(HEATMAP_KEY) == HEATMAP:
        raise DataError(f"{where}: a heat map that negvae wrote and no photo: keep such maps in a folder elsewhere")


def formats() -> tuple[str, ...]:
    """Return Pillow's names of the accepted formats: those with a signature in their first bytes that run no code."""
    return tuple(name for name in (*_known_formats(), "HEIF") if name in Image.OPEN)


@functools.cache
def _known_formats() -> tuple[str, ...]:
    Image.init()
    return ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "PPM", "AVIF", "JPEG2000", "QOI")


def open_image(file: IO[bytes], max_pixels: int) -> Image.Image:
    """Open an encoded image with Pillow, whose own limit gives way to a larger one that the caller has set.

    Args:
        file: file of the image.
        max_pixels: maximum number of pixels that the caller will accept, which it checks itself. Pillow refuses twice
            its `MAX_IMAGE_PIXELS`, which is one number for the whole process; it is raised here, never lowered.

    Returns:
        The image, not decoded yet.

    Raises:
        PIL.UnidentifiedImageError: if this is no image of an accepted format.
    """
    pillows = Image.MAX_IMAGE_PIXELS
    if pillows is not None and max_pixels > max(MAX_PIXELS, 2 * pillows):  # our default leaves a host's limit alone
        Image.MAX_IMAGE_PIXELS = max_pixels
    return Image.open(file, formats=formats())


def decode_image(
    source: Source, where: str, max_pixels: int = MAX_PIXELS, *, upright: bool = False
) -> tuple[NDArray[np.uint8], str]:
    """Decode one image.

    Args:
        source: encoded image.
        where: name of the image in error messages.
        max_pixels: maximum number of pixels that the image may declare.
        upright: whether the image is turned as its EXIF orientation says; of TIFF files Pillow does it in any case.

    Returns:
        The pixels, uint8, H x W x C, and what was changed in decoding (empty if nothing was).

    Raises:
        ImportError: if the image is in HEIC and the extra "heif" is not installed.
        ValueError: if the image is missing or incomplete, declares more than `max_pixels` (checked before decoding), or
            is gray with more than 8 bits.
    """
    with reading(where, "image"):
        if source is None:
            raise DataError(f"{where}: no image bytes (links to files are not followed)")
        if isinstance(source, Image.Image):
            return _pixels(source, where, max_pixels, upright)
        with opened(source, where) as file, open_image(file, max_pixels) as image:
            refuse_many_scans(image, file, where)
            refuse_heatmap(image, where)
            return _pixels(image, where, max_pixels, upright)


def _pixels(image: Image.Image, where: str, max_pixels: int, upright: bool) -> tuple[NDArray[np.uint8], str]:
    """Return the pixels of an open image; see `decode_image`."""
    if image.width * image.height > max_pixels:
        raise DataError(
            f"{where}: claims {image.width:,} x {image.height:,} pixels; at most {max_pixels:,} are accepted"
        )
    if upright:
        image.load()
        with suppress(Exception):  # Pillow has many for tags that are none, and the pixels may be whole
            image = ImageOps.exif_transpose(image)
    return plain_pixels(image, where)


def plain_pixels(image: Image.Image, where: str) -> tuple[NDArray[np.uint8], str]:
    """Return the pixels of an open image in gray or RGB; see `decode_image`."""
    mode, raw = image.mode, raw_mode(image)
    done = ["the upper 8 of 16 bits taken"] if raw.endswith(";16B") else []
    if mode[0] in "IF":
        raise DataError(f"{where}: has {mode} pixels, more than 8 bits; convert it to 8-bit gray or RGB first")
    if getattr(image, "is_animated", False):
        done.append("first frame of several taken")
    image.load()
    plain: Image.Image = image
    if mode == "P" or mode == "PA":
        plain = image.convert("RGBA" if mode == "PA" or "transparency" in image.info else "RGB")
    elif mode in ("1", "L", "LA", "La", "RGB", "RGBA", "RGBa"):
        if mode in ("1", "La", "RGBa"):
            plain = image.convert({"1": "L", "La": "LA", "RGBa": "RGBA"}[mode])
        if "transparency" in image.info:
            plain = plain.convert({"L": "LA", "RGB": "RGBA"}.get(plain.mode, plain.mode))
    else:
        plain = image.convert("RGB")
    pixels = np.asarray(plain)
    if plain.mode in ("LA", "RGBA"):
        color, alpha = pixels[..., :-1], pixels[..., -1:].astype(np.uint16)
        if alpha.min() < 255:
            done.append("transparency laid over white")
            mixed = (color.astype(np.uint32) * alpha + 255 * (255 - alpha.astype(np.uint32)) + 127) // 255
            color = mixed.astype(np.uint8)
        pixels = color[..., :1] if raw.startswith("LA") else color
    return (pixels if pixels.ndim == 3 else pixels[..., None]), ", ".join(done)


def raw_mode(image: Image.Image) -> str:
    """Return what Pillow makes the pixels of a PNG from, such as LA;16B, which it makes 8-bit RGBA of.

    Args:
        image: the image as Pillow has opened it.

    Returns:
        The name that Pillow has for it; "" for an image of another format, and for one that is loaded.
    """
    tiles = getattr(image, "tile", ()) if image.format == "PNG" else ()
    return str(tiles[0][3]) if tiles else ""


def decode_images(
    encoded: Iterable[tuple[str, Source]], count: int, where: object
) -> tuple[NDArray[np.uint8], tuple[str, ...]]:
    """Decode images of one size into uint8 N x C x H x W, in order.

    Gray keeps one channel unless gray and color images are mixed, in which case all become RGB; palettes become RGB;
    1-bit images become 0 and 255; CMYK and similar modes become RGB; transparency is laid over white; of an animation,
    only the first frame is decoded. Orientation tags are not applied, except those of TIFF files, which Pillow applies.

    Args:
        encoded: the name of each image in error messages, and the image.
        count: number of images, at least 1.
        where: name of the whole set in error messages.

    Returns:
        The images, and notes on what was changed.

    Raises:
        ValueError: if an image is incomplete, too large or gray with more than 8 bits, if sizes differ, or if
            there are fewer images.
    """
    out: NDArray[np.uint8] = np.empty((0, 0, 0, 0), np.uint8)
    first, mixed, row = "", False, 0
    done: dict[str, int] = {}
    stream = iter(encoded)
    chunks = iter(lambda: list(islice(stream, _CHUNK)), [])
    with without_pillows_warnings():
        for name, pixels, what in (image for chunk in in_order(_decode_chunk, chunks, 2) for image in chunk):
            height, width, channels = pixels.shape
            if not row:
                first = name
                need_memory((count, *pixels.shape), where)
                out = np.empty((count, channels, height, width), np.uint8)
            if (height, width) != out.shape[2:]:
                raise DataError(
                    f"{where}: images differ in size: {first} is {out.shape[3]} x {out.shape[2]}, {name} "
                    f"is {width} x {height} (width x height); resize them to one size first"
                )
            if channels > out.shape[1]:  # the first color image among gray ones
                need_memory((count, 3, height, width), where)
                out = np.repeat(out, 3, axis=1)
                mixed = True
            mixed |= channels < out.shape[1]
            out[row] = pixels.transpose(2, 0, 1)
            row += 1
            if what:
                done[what] = done.get(what, 0) + 1
    if row < count:
        raise DataError(f"{where}: ends after {row:,} of the {count:,} images that it announces")
    notes = [f"{where}: {what} in {n:,} of {count:,} images" for what, n in sorted(done.items())]
    if mixed:
        notes.append(f"{where}: gray and color images are mixed; the gray ones are served as RGB")
    return out, tuple(notes)


def _decode_chunk(chunk: list[tuple[str, Source]]) -> list[tuple[str, NDArray[np.uint8], str]]:
    return [(name, *decode_image(source, name)) for name, source in chunk]
