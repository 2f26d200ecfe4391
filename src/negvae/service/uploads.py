"""Uploaded files as what a model takes: images, or .npy files of images or rows."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from negvae.data.batches import Batch, InputSpec, from_memory
from negvae.data.fit import fit_photo, prepared, reduced_size
from negvae.data.formats.base import reason
from negvae.data.formats.quiet import without_pillows_warnings
from negvae.data.photos import read_header
from negvae.data.tiling import blend, tiling
from negvae.messages import shown
from negvae.service.guard import Refused
from negvae.service.models import Inputs

SIDE = 1024
"""Pixels of the longer side of a picture that is sent, at most."""
HOTTEST = 6.0
"""Value of a heat map at which it is opaque: the top of the color scale of all maps, as in `negvae.scoring.heatmaps`,
which takes torch."""
MAGIC = b"\x93NUMPY"
_HEADERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}


def read_uploads(
    files: Sequence[tuple[str, bytes]], spec: InputSpec, limit: int, tiles: int, has_ended: Callable[[], bool]
) -> Batch:
    """Decode uploaded files.

    Args:
        files: name and content of each file: an encoded image, or a .npy file of images or rows.
        spec: form that the model takes.
        limit: maximum number of images or rows in all files together.
        tiles: maximum number of tiles of all images together, if the model tiles images.
        has_ended: function that returns whether the request has ended, so that no other file need be decoded.

    Returns:
        The rows of all files, in order; content that cannot be used becomes rows with errors.

    Raises:
        Refused: if there are more images, rows or tiles than the limit.
    """
    batches, rows, made = list[Batch](), 0, 0
    with without_pillows_warnings():
        for name, content in files:
            if has_ended():
                break
            batches.append(_read(shown(name), content, spec, limit, tiles))
            rows, made = rows + len(batches[-1]), made + len(batches[-1].images)
            if rows > limit:
                raise Refused(413, f"the files hold more than {limit:,} images or rows: send fewer in a request")
            if spec.tiled and made > tiles:
                raise Refused(413, f"the images make more than {tiles:,} tiles (max_queue): send fewer in a request")
    return _joined(batches, spec)


def _joined(batches: Sequence[Batch], spec: InputSpec) -> Batch:
    """Return the rows of all batches as one, in a copy that torch may hold."""
    return Batch(
        [path for batch in batches for path in batch.paths],
        [index for batch in batches for index in batch.indices],
        [error for batch in batches for error in batch.errors],
        np.concatenate([batch.images for batch in batches]) if batches else np.empty((0, *spec.shape), np.uint8),
        [plan for batch in batches for plan in batch.tilings],
    )


def _read(name: str, content: bytes, spec: InputSpec, limit: int, tiles: int) -> Batch:
    try:
        array = _array(content) if content.startswith(MAGIC) else None
        if array is not None and len(array) > limit:
            raise ValueError(f"holds {len(array):,} rows; at most {limit:,} are accepted")
        if spec.tiled and (size := _size(name, content, array, spec.max_pixels)):
            count_tiles(size, spec, tiles)
    except Exception as error:  # whatever NumPy makes of a broken header
        return replace(from_memory(name, np.zeros(0), spec), errors=[reason(error)[:300]])
    batch = from_memory(name, content if array is None else array, spec)
    errors = [error.replace("ask for --resize", "ask for resize=true") for error in batch.errors]
    return replace(batch, errors=errors)


def _size(name: str, content: bytes, array: NDArray[Any] | None, max_pixels: int) -> tuple[int, int] | None:
    """Return height and width of an image, of an array its two largest sizes; None if they are not known."""
    if array is not None:
        sizes = sorted(array.shape[1:])[-2:]
        return (sizes[0], sizes[1]) if len(sizes) == 2 else None
    try:
        header = read_header(content, name, max_pixels)
    except (ValueError, ImportError):  # the reader says so too
        return None
    return header.height, header.width


def count_tiles(size: tuple[int, int], spec: InputSpec, limit: int) -> int:
    """Return the number of tiles of an image, without making any.

    Args:
        size: height and width of the image.
        spec: form that the model takes, which tiles images.
        limit: maximum number of tiles.

    Returns:
        The number.

    Raises:
        ValueError: if the image is enlarged to the size of a tile and then has too many pixels, or too many tiles.
    """
    decoding, most = spec.decoding, spec.max_pixels
    assert decoding is not None
    height, width = reduced_size(size, decoding)
    scale = max(decoding.height / height, decoding.width / width)
    if scale > 1 and height * width * scale**2 > most:
        raise ValueError(
            f"is {size[1]} x {size[0]}, enlarged to the size of a tile it would have more than {most:,} pixels"
        )
    count = len(tiling((height, width), (decoding.height, decoding.width), decoding.overlap))
    if count > limit:
        raise ValueError(
            f"is {size[1]} x {size[0]}, which makes {count:,} tiles; at most {limit:,} may wait (max_queue)"
        )
    return count


def _array(content: bytes) -> NDArray[Any]:
    """Return the array of a .npy file, without a copy and without trusting the size that it declares.

    Raises:
        ValueError: if the file is damaged or holds anything but numbers.
    """
    stream = io.BytesIO(content)
    version = np.lib.format.read_magic(stream)
    if version not in _HEADERS:
        raise ValueError(f"is a .npy file of version {version[0]}.{version[1]}; 1.0 and 2.0 are read")
    shape, by_columns, dtype = _HEADERS[version](stream, 4096)
    if dtype.hasobject or dtype.kind not in "buif":
        raise ValueError(f"holds {dtype}, not numbers")
    count = 1
    for size in shape:
        count *= size
    rest = len(content) - stream.tell()
    if count * dtype.itemsize != rest or not shape or not count:
        raise ValueError(
            f"declares {' x '.join(map(str, shape)) or 'one number'} of {dtype}, and {rest:,} bytes follow"
        )
    return np.frombuffer(content, dtype, offset=stream.tell()).reshape(shape, order="F" if by_columns else "C")


def tiles_of(images: NDArray[np.uint8], spec: InputSpec, limit: int) -> Inputs:
    """Cut images into tiles, as images of a file are.

    Args:
        images: images, uint8, N x C x H x W, of any height and width.
        spec: form that the model takes, which tiles images.
        limit: maximum number of tiles.

    Returns:
        The tiles of all images.

    Raises:
        Refused: if the images would become too large, or make more tiles than the limit.
    """
    decoding = spec.decoding
    assert decoding is not None
    try:
        each = count_tiles((images.shape[2], images.shape[3]), spec, limit)
    except ValueError as error:
        raise Refused(413, f"each image {error}") from None
    if each * len(images) > limit:
        raise Refused(413, f"the images make {each * len(images):,} tiles; at most {limit:,} may wait (max_queue)")
    scaled = replace(decoding, bits=8)  # intensities of 16 bits are scaled before they are sent, as for other models
    parts = [fit_photo(prepared(image, "images", scaled), scaled)[0] for image in images]
    return Inputs(np.concatenate(parts), np.repeat(np.arange(len(parts)), [len(part) for part in parts]))


def whole(tiles: NDArray[np.uint8], batch: Batch, rows: NDArray[np.int64]) -> list[NDArray[np.uint8]]:
    """Join the tiles of images.

    Args:
        tiles: tiles of the rows, uint8, T x C x h x w, one image after the other.
        batch: images that the tiles were cut from.
        rows: numbers of the rows in the batch, ascending.

    Returns:
        An image (uint8, C x H x W) for each row, in the size to which it was decoded; blended where tiles overlap.
    """
    plans = [batch.tilings[row] for row in rows]
    parts = np.split(tiles, np.cumsum([len(plan) for plan in plans])[:-1])
    return [
        np.stack([np.rint(blend(part[:, channel], plan)).astype(np.uint8) for channel in range(part.shape[1])])
        for part, plan in zip(parts, plans, strict=True)
    ]


def data_uri(image: NDArray[np.uint8]) -> str:
    """Return an image (uint8, C x H x W with C 1 or 3, or 2, of which the first is shown) as a PNG in a URI."""
    pixels = image.transpose(1, 2, 0) if len(image) == 3 else image[0]
    return _uri(Image.fromarray(np.ascontiguousarray(pixels)))


def heat_uri(heat: NDArray[Any]) -> str:
    """Return a heat map (H x W, -log10 of p-values) as a PNG whose opacity grows with the value, up to `HOTTEST`."""
    share = np.clip(np.nan_to_num(heat.astype(np.float64)) / HOTTEST, 0, 1)
    red_green_blue = np.broadcast_to(np.array([213, 94, 0], np.uint8), (*heat.shape, 3))
    alpha = np.rint(share * 255).astype(np.uint8)[..., None]
    return _uri(Image.fromarray(np.concatenate([red_green_blue, alpha], axis=2)))


def _uri(picture: Image.Image) -> str:
    """Return a picture, reduced if it is large, as a PNG in a URI."""
    picture.thumbnail((SIDE, SIDE))
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"
