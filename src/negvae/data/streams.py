"""Images from any number of files, in order, a batch at a time: memory does not grow with their number.

What cannot be used becomes a row with an error; nothing that a file holds stops the stream.
"""

from __future__ import annotations

import glob
import io
import os
import zipfile
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from negvae.data import formats
from negvae.data.catalog import Shape
from negvae.data.formats import IMAGE_ENDINGS, MAX_PIXELS, DataError, as_images, decode_image, reading

ARRAY_ENDINGS = (".npy", ".npz")
Encoded = tuple[str, int, Callable[[], IO[bytes]]]
"""An image still to be decoded: its path, its row there, and what opens it."""

_PIECE = 32
_FIRST = 8


@dataclass(frozen=True)
class Batch:
    """Consecutive rows of a stream.

    Attributes:
        paths: the file that each row came from.
        indices: its row in that file, from 0; None for an error that concerns the whole file.
        errors: why it cannot be scored; "" where it can.
        images: one for each row (uint8 N x C x H x W, or features float64 N x D x 1 x 1); zeros where there is
            an error.
    """

    paths: list[str]
    indices: list[int | None]
    errors: list[str]
    images: NDArray[Any]

    def __len__(self) -> int:
        """Rows."""
        return len(self.paths)

    def __getitem__(self, rows: slice) -> Batch:
        """Some of the rows."""
        return Batch(self.paths[rows], self.indices[rows], self.errors[rows], self.images[rows])


@dataclass(frozen=True)
class Wanted:
    """What the rows of a stream must be.

    Attributes:
        shape: C, H, W of the images; D, 1, 1 of features.
        features: whether rows of features are wanted and not images.
        resize: whether images of another size are resized (bilinear, antialiased, aspect ratio not kept) or
            become errors. Gray becomes RGB by repetition, RGB gray by the usual weights 0.299, 0.587, 0.114.
        max_pixels: the most that an encoded image may claim before it is decoded.
    """

    shape: Shape
    features: bool = False
    resize: bool = False
    max_pixels: int = MAX_PIXELS


def stream(inputs: Sequence[str], wanted: Wanted, *, batch_size: int = 500) -> Iterator[Batch]:
    """The rows of all inputs, in order.

    The first batches are small, so that the first rows come soon.

    Args:
        inputs: folders (with all below them, in the order of names), image files, .npy, .npz and Parquet files,
            patterns with * or **, or names of data sets, whose test split is taken.
        wanted: what the rows must be.
        batch_size: rows in a batch.

    Raises:
        FileNotFoundError: an input that does not exist, or a pattern that nothing matches; before any row.
        ValueError: an input that is not to be read at all.
    """
    sources = [_source(text, wanted) for text in inputs]
    return _rebatched((piece for source in sources for piece in source()), batch_size)


def _source(text: str, wanted: Wanted) -> Callable[[], Iterator[Batch]]:
    """What gives the pieces of one input; looked up before anything is read."""
    path = Path(text).expanduser()
    if path.exists():
        return lambda: _from_paths(_walk(str(path)) if path.is_dir() else iter([str(path)]), wanted)
    if glob.has_magic(text):
        if next(glob.iglob(str(path), recursive=True), None) is None:
            raise FileNotFoundError(f"{text}: nothing matches this pattern")
        return lambda: _from_paths(
            (p for p in sorted(glob.iglob(str(path), recursive=True)) if os.path.isfile(p)), wanted
        )
    from negvae.data.loading import is_path, load

    if is_path(text):
        raise FileNotFoundError(f"{text}: no such file or folder")
    found = load(text, "test")
    return lambda: _array_rows(text, found.images, wanted)


def _rebatched(pieces: Iterable[Batch], batch_size: int) -> Iterator[Batch]:
    """The same rows in batches that grow from a few to `batch_size`."""
    size, waiting, count = min(_FIRST, batch_size), list[Batch](), 0
    for piece in pieces:
        waiting.append(piece)
        count += len(piece)
        while count >= size:
            whole = _joined(waiting)
            yield whole[:size]
            waiting, count = [whole[size:]], count - size
            size = min(2 * size, batch_size)
    if count:
        yield _joined(waiting)


def _joined(parts: list[Batch]) -> Batch:
    parts = [part for part in parts if len(part)] or parts[:1]
    if len(parts) == 1:
        return parts[0]
    return Batch(
        [path for part in parts for path in part.paths],
        [index for part in parts for index in part.indices],
        [error for part in parts for error in part.errors],
        np.concatenate([part.images for part in parts]),
    )


# --- files -----


def _walk(folder: str) -> Iterator[str]:
    """Every file below a folder that can hold images, in the order of names; hidden ones are left out.

    Names are kept as bytes in one array while a folder is sorted: some 20 MB for a million of them.
    """
    parts = []
    with os.scandir(folder) as entries:
        shown = (entry for entry in entries if not entry.name.startswith((".", "__MACOSX")))
        names = (os.fsencode(e.name) + (b"/" if e.is_dir(follow_symlinks=False) else b"") for e in shown)
        while chunk := list(islice(names, 4096)):
            parts.append(np.array(chunk))
    for name in np.sort(np.concatenate(parts)) if parts else ():
        path = os.path.join(folder, os.fsdecode(bytes(name)))
        if path.endswith("/"):
            yield from _walk(path[:-1])
        elif path.lower().endswith((*IMAGE_ENDINGS, *ARRAY_ENDINGS, ".parquet")):
            yield path


def _from_paths(paths: Iterator[str], wanted: Wanted) -> Iterator[Batch]:
    """Pieces from files of any kind; runs of image files are decoded together."""

    def encoded() -> Iterator[Batch | Encoded]:
        for path in paths:
            ending = os.path.splitext(path)[1].lower()
            if ending in ARRAY_ENDINGS:
                yield from _guarded(path, _from_array_file(path, wanted), wanted)
            elif ending == ".parquet":
                yield from _from_parquet(path, wanted)
            elif wanted.features:
                yield _failed(path, None, "the model takes rows of features: .npy and .npz files hold them", wanted)
            else:
                yield path, 0, partial(_open, path)

    yield from _decoded(encoded(), wanted)


def _open(path: str) -> IO[bytes]:
    return open(path, "rb")


def _guarded(path: str, pieces: Iterator[Batch], wanted: Wanted) -> Iterator[Batch]:
    """The pieces of a file; what goes wrong in it becomes its last row."""
    try:
        yield from pieces
    except Exception as error:  # whatever a decoder makes of a broken file
        yield _failed(path, None, error, wanted)


def _failed(path: str, index: int | None, error: object, wanted: Wanted) -> Batch:
    """One row with an error."""
    text = " ".join(str(error).split()) or type(error).__name__
    empty = np.zeros((1, *wanted.shape), np.float64 if wanted.features else np.uint8)
    return Batch([path], [index], [text.removeprefix(f"{path}: ")], empty)


# --- encoded images -----


def _decoded(items: Iterator[Batch | Encoded], wanted: Wanted) -> Iterator[Batch]:
    """Decode in a few threads ahead of whoever asks, order kept; batches pass through."""
    workers = min(4, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)
    ahead: deque[Batch | Future[Batch]] = deque()
    pool = ThreadPoolExecutor(workers)

    def ready(limit: int) -> Iterator[Batch]:
        while len(ahead) > limit:
            first = ahead.popleft()
            yield first if isinstance(first, Batch) else first.result()

    try:
        chunk: list[Encoded] = []
        for item in items:
            if isinstance(item, Batch):
                if chunk:
                    ahead.append(pool.submit(_decode_piece, chunk, wanted))
                    chunk = []
                ahead.append(item)
            else:
                chunk.append(item)
                if len(chunk) == _PIECE:
                    ahead.append(pool.submit(_decode_piece, chunk, wanted))
                    chunk = []
            yield from ready(2 * workers)
        if chunk:
            ahead.append(pool.submit(_decode_piece, chunk, wanted))
        yield from ready(0)
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _decode_piece(chunk: list[Encoded], wanted: Wanted) -> Batch:
    images = np.zeros((len(chunk), *wanted.shape), np.uint8)
    errors = [""] * len(chunk)
    for row, (path, _, source) in enumerate(chunk):
        try:
            pixels, _ = decode_image(source, path, wanted.max_pixels)
            images[row] = _fitted(pixels.transpose(2, 0, 1)[None], wanted)[0]
        except Exception as error:  # whatever a decoder makes of a broken file
            errors[row] = _failed(path, None, error, wanted).errors[0]
    return Batch([path for path, _, _ in chunk], [index for _, index, _ in chunk], errors, images)


def _fitted(images: NDArray[np.uint8], wanted: Wanted) -> NDArray[np.uint8]:
    """Images (N x C x H x W) with the channels and the size that are wanted.

    Raises:
        ValueError: they have another size and are not to be resized, or channels that have no conversion.
    """
    channels, height, width = wanted.shape
    found = images.shape[1]
    if images.shape[2:] != (height, width) and not wanted.resize:
        raise DataError(
            f"is {images.shape[3]} x {images.shape[2]}, the model takes {width} x {height} (width x height);"
            " ask for --resize"
        )
    if found != channels:
        if (found, channels) == (1, 3):
            images = np.repeat(images, 3, axis=1)
        elif (found, channels) == (3, 1):
            red, green, blue = images.astype(np.uint32).transpose(1, 0, 2, 3)
            images = ((19595 * red + 38470 * green + 7471 * blue + 0x8000) >> 16).astype(np.uint8)[:, None]
        else:
            raise DataError(f"has {found} channels, the model takes {channels}")
    if images.shape[2:] != (height, width):
        resized = [
            [
                Image.fromarray(np.ascontiguousarray(plane)).resize((width, height), Image.Resampling.BILINEAR)
                for plane in image
            ]
            for image in images
        ]
        images = np.stack([np.stack([np.asarray(plane) for plane in image]) for image in resized])
    return images


# --- Parquet -----


def _from_parquet(path: str, wanted: Wanted) -> Iterator[Batch | Encoded]:
    """Encoded images of a Parquet file, batch of rows by batch of rows."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    if wanted.features:
        yield _failed(path, None, "the model takes rows of features: .npy and .npz files hold them", wanted)
        return
    row = 0
    try:
        with reading(path, "Parquet file"), pq.ParquetFile(path) as file:
            column = formats.image_column(file.schema_arrow, path)
            for batch in file.iter_batches(batch_size=256, columns=[column]):
                values = batch.column(0)
                if pa.types.is_struct(values.type):
                    values = values.field("bytes")
                for value in values:
                    data = value.as_py()
                    if data is None:
                        yield _failed(path, row, "holds no image bytes (links to files are not followed)", wanted)
                    else:
                        yield path, row, partial(io.BytesIO, data)
                    row += 1
    except Exception as error:  # whatever a decoder makes of a broken file
        yield _failed(path, row if row else None, error, wanted)


# --- arrays -----


def _from_array_file(path: str, wanted: Wanted) -> Iterator[Batch]:
    """Rows of an .npy, or of the image array of an .npz, read one after the other and never mapped.

    Pages of a mapped file stay in the process's memory until someone else needs it, so it would seem to grow.
    """
    if path.lower().endswith(".npz"):
        key = formats.image_key(Path(path), "test")
        with zipfile.ZipFile(path) as archive, archive.open(f"{key}.npy") as member:
            yield from _from_npy(path, member, lambda: np.load(path, allow_pickle=False)[key], wanted)
        return
    with open(path, "rb") as file:
        yield from _from_npy(path, file, lambda: np.load(path, mmap_mode="r", allow_pickle=False), wanted)


def _from_npy(path: str, file: IO[bytes], whole: Callable[[], NDArray[Any]], wanted: Wanted) -> Iterator[Batch]:
    with reading(path, ".npy file"):
        version = np.lib.format.read_magic(file)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, by_columns, dtype = read(file)
    if dtype.hasobject:
        raise DataError(f"{path}: holds Python objects, not images; they are not read")
    if len(shape) < 2 or 0 in shape:
        raise DataError(f"{path}: holds no images (shape {' x '.join(map(str, shape)) or 'of a single number'})")
    if int(np.prod(shape[1:], dtype=np.float64)) > 4 * wanted.max_pixels:
        raise DataError(f"{path}: claims rows of {' x '.join(map(str, shape[1:]))} numbers, more than any image has")
    if by_columns and not isinstance(file, io.BufferedReader) and dtype.itemsize * np.prod(shape) > 2**28:
        raise DataError(f"{path}: is stored column by column and cannot be streamed; save it with np.ascontiguousarray")
    if by_columns:
        yield from _array_rows(path, whole(), wanted)
        return
    row_bytes = dtype.itemsize * int(np.prod(shape[1:], dtype=np.int64))
    rows = max(min(512, 2**24 // row_bytes), 1)
    for start in range(0, shape[0], rows):
        data = bytearray(file.read(min(rows, shape[0] - start) * row_bytes))  # writable, as torch wants arrays
        complete = len(data) // row_bytes
        array = np.frombuffer(data, dtype, complete * row_bytes // dtype.itemsize).reshape(complete, *shape[1:])
        if complete:
            yield from _array_rows(path, array, wanted, start)
        if complete < min(rows, shape[0] - start):
            error = f"ends after {start + complete:,} of the {shape[0]:,} rows that its header announces"
            yield _failed(path, start + complete, error, wanted)
            return


def _array_rows(path: str, array: NDArray[Any], wanted: Wanted, start: int = 0) -> Iterator[Batch]:
    """Pieces from (a part of) an array whose first row is row `start` of its file.

    Raises:
        ValueError: the array is not what is wanted, whatever its values.
    """
    for low in range(0, len(array), 512):
        part = array[low : low + 512]
        errors = [""] * len(part)
        images: NDArray[Any]
        if wanted.features:
            images = _features(part, wanted, errors, path)
        else:
            if part.dtype.kind == "f":
                part = _unit_floats(part, errors)
            images = _fitted(as_images(part, path).images, wanted)
        indices: list[int | None] = list(range(start + low, start + low + len(part)))
        yield Batch([path] * len(part), indices, errors, images)


def _features(part: NDArray[Any], wanted: Wanted, errors: list[str], path: str) -> NDArray[np.float64]:
    size = wanted.shape[0]
    if part.shape[1:] != (size,) or part.dtype.kind not in "fiub":
        found = " x ".join(["N", *map(str, part.shape[1:])])
        raise DataError(f"{path}: holds {part.dtype} of {found}, the model takes N x {size} numbers")
    rows = part.astype(np.float64)
    for row in np.flatnonzero(~np.isfinite(rows).all(1)):
        errors[row], rows[row] = "holds NaN or infinity", 0
    return rows.reshape(-1, *wanted.shape)


def _unit_floats(part: NDArray[Any], errors: list[str]) -> NDArray[Any]:
    """Float images with the rows outside [0, 1] replaced by zeros and marked as errors."""
    flat = part.reshape(len(part), -1)
    wrong = np.flatnonzero(~((flat >= 0) & (flat <= 1)).all(1))  # NaN compares false
    if len(wrong):
        part = part.copy()
        part[wrong] = 0
        for row in wrong:
            errors[row] = "float images must lie within [0, 1]"
    return part
