"""Uploaded files as what a model takes: images, or .npy files of images or rows."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from negvae.data.streams import Batch, InputSpec, from_memory
from negvae.files import shown

MAGIC = b"\x93NUMPY"
_HEADERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}


def read_uploads(files: Sequence[tuple[str, bytes]], spec: InputSpec, limit: int) -> list[Batch]:
    """Decode uploaded files.

    Args:
        files: name and content of each file: an encoded image, or a .npy file of images or rows.
        spec: form that the model takes.
        limit: maximum number of images or rows in all files together.

    Returns:
        A batch for each file, in order; content that cannot be used becomes rows with errors.

    Raises:
        ValueError: if there are more images or rows than the limit.
    """
    batches = [_read(shown(name), content, spec, limit) for name, content in files]
    if sum(map(len, batches)) > limit:
        raise ValueError(f"the files hold more than {limit:,} images or rows: send fewer in a request")
    return batches


def _read(name: str, content: bytes, spec: InputSpec, limit: int) -> Batch:
    try:
        array = _array(content) if content.startswith(MAGIC) else None
        if array is not None and len(array) > limit:
            raise ValueError(f"holds {len(array):,} rows; at most {limit:,} are accepted")
    except Exception as error:  # whatever NumPy makes of a broken header
        empty = np.zeros((1, *spec.shape), np.float64 if spec.features else np.uint8)
        return Batch([name], [None], [" ".join(str(error).split())[:300]], empty)
    batch = from_memory(name, content if array is None else array, spec)
    errors = [error.replace("ask for --resize", "ask for resize=true") for error in batch.errors]
    return Batch(batch.paths, batch.indices, errors, batch.images)


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


def data_uri(image: NDArray[np.uint8]) -> str:
    """Return an image (uint8, C x H x W with C 1 or 3, or 2, of which the first is shown) as a PNG in a URI."""
    pixels = image.transpose(1, 2, 0) if len(image) == 3 else image[0]
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels)).save(buffer, "PNG")
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def heat_uri(heat: NDArray[Any], largest: float) -> str:
    """Return a heat map (H x W) as a PNG whose opacity grows with the value, up to `largest`."""
    share = np.clip(np.nan_to_num(heat.astype(np.float64)) / max(largest, 1e-12), 0, 1)
    red_green_blue = np.broadcast_to(np.array([213, 94, 0], np.uint8), (*heat.shape, 3))
    alpha = np.rint(share * 255).astype(np.uint8)[..., None]
    buffer = io.BytesIO()
    Image.fromarray(np.concatenate([red_green_blue, alpha], axis=2)).save(buffer, "PNG")
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"
