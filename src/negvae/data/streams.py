"""Images from any number of files, in order, a batch at a time: memory does not grow with their number.

What cannot be used becomes a row with an error; nothing that a file holds stops the stream.
"""

from __future__ import annotations

import glob
import io
import os
import re
import shutil
import tempfile
import zipfile
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import accumulate, chain, islice
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from negvae.data import formats, places
from negvae.data.catalog import Shape
from negvae.data.formats import IMAGE_ENDINGS, MAX_PIXELS, DataError, as_images, decode_image, reading

ARRAY_ENDINGS = (".npy", ".npz")
Encoded = tuple[str, int, Callable[[], IO[bytes]]]
"""An image still to be decoded: its path, its row there, and what opens it."""

_HIDDEN = (".", "__MACOSX")
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


@dataclass(frozen=True)
class Span:
    """A file, or a stretch of it.

    Attributes:
        path: of the file, or its URI; the name of a data set.
        start: first row; of Parquet files the first row group.
        stop: the row (group) after the last; None for all.
        images: of a data set that was found by name: these rows, as they are stored.
    """

    path: str
    start: int = 0
    stop: int | None = None
    images: NDArray[Any] | None = None


def stream(inputs: Sequence[str], wanted: Wanted, *, batch_size: int = 500) -> Iterator[Batch]:
    """The rows of all inputs, in order.

    The first batches are small, so that the first rows come soon.

    Args:
        inputs: folders (with all below them, in the order of names), image files, .npy, .npz and Parquet files,
            patterns with * or **, or names of data sets, whose test split is taken. Files and folders may be URIs
            (`negvae.data.places`).
        wanted: what the rows must be.
        batch_size: rows in a batch.

    Raises:
        FileNotFoundError: an input that does not exist, or a pattern that nothing matches; before any row.
        ValueError: an input that is not to be read at all.
    """
    return _rebatched(_from_spans(spans(inputs), wanted), batch_size, min(_FIRST, batch_size))


def read(
    stretch: Iterable[Span], wanted: Wanted, *, batch_size: int = 500, threads: int | None = None
) -> Iterator[Batch]:
    """The rows of files and stretches of files, in order.

    Args:
        stretch: what to read.
        wanted: what the rows must be.
        batch_size: rows in a batch.
        threads: that decode images; None for a few.
    """
    return _rebatched(_from_spans(stretch, wanted, threads), batch_size, batch_size)


def spans(inputs: Sequence[str]) -> Iterator[Span]:
    """All files of the inputs, in order; see `stream`, also for what is raised, before the first is given."""
    return chain.from_iterable([_spans(text) for text in inputs])


def _spans(text: str) -> Iterable[Span]:
    """The files of one input; looked up before anything is read."""
    if places.is_uri(text):
        found = places.below(text)
        parts = [uri[len(text) :].split("/") for uri in found]
        shown = [not any(part.startswith(_HIDDEN) for part in below) for below in parts]
        return [Span(uri) for uri, s in zip(found, shown, strict=True) if uri == text or (s and _can_hold_images(uri))]
    path = Path(text).expanduser()
    if path.exists():
        return map(Span, _walk(str(path))) if path.is_dir() else [Span(str(path))]
    if glob.has_magic(text):
        if next(glob.iglob(str(path), recursive=True), None) is None:
            raise FileNotFoundError(f"{text}: nothing matches this pattern")
        return (Span(p) for p in sorted(glob.iglob(str(path), recursive=True)) if os.path.isfile(p))
    from negvae.data.loading import is_path, load

    if is_path(text):
        raise FileNotFoundError(f"{text}: no such file or folder")
    return [Span(text, images=load(text, "test").images)]


def _rebatched(pieces: Iterable[Batch], batch_size: int, first: int) -> Iterator[Batch]:
    """The same rows in batches that grow from `first` to `batch_size`."""
    size, waiting, count = first, list[Batch](), 0
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


# --- shards -----


def shards(files: Iterable[Span], wanted: Wanted, rows: int) -> Iterator[tuple[Span, ...]]:
    """A fixed division of the same rows, in order: shards depend on the files and on `rows` alone.

    Large .npy files are cut between rows, Parquet files between row groups; .npz files and files that cannot be read
    stay whole. Reading all shards one after the other gives the rows, and the errors, of `stream`.

    Args:
        files: from `spans`; gone through as shards are asked for.
        wanted: what the rows must be.
        rows: the most in a shard, where files can be cut so.
    """
    shard, count = list[Span](), 0
    for span, length in (piece for file in files for piece in _pieces(file, wanted, rows)):
        if shard and count + length > rows:
            yield tuple(shard)
            shard, count = [], 0
        shard.append(span)
        count += length
    if shard:
        yield tuple(shard)


def _pieces(span: Span, wanted: Wanted, rows: int) -> Iterator[tuple[Span, int]]:
    """Stretches of a file with the number of their rows; a whole file that cannot be cut counts as a shard."""
    ending = os.path.splitext(span.path)[1].lower()
    if span.images is not None:
        for start in range(0, len(span.images), rows):
            part = span.images[start : start + rows]
            yield Span(span.path, start, start + len(part), part), len(part)
        return
    if ending not in (".npy", ".npz", ".parquet"):
        yield span, 1
        return
    try:
        lengths = _row_groups(span.path) if ending == ".parquet" else _row_blocks(span, wanted, rows)
    except Exception:  # whoever reads it will say what is wrong
        lengths = []
    if not lengths:
        yield span, rows
        return
    unit = 1 if ending == ".parquet" else rows
    start = 0
    while start < len(lengths):
        stop, count = start + 1, lengths[start]
        while stop < len(lengths) and count + lengths[stop] <= rows:
            count += lengths[stop]
            stop += 1
        yield Span(span.path, start * unit, min(stop * unit, len(lengths) if unit == 1 else sum(lengths))), count
        start = stop


def _row_groups(path: str) -> list[int]:
    with _parquet(path) as (_, _, sizes):
        return sizes


def _row_blocks(span: Span, wanted: Wanted, rows: int) -> list[int]:
    """The rows of an .npy in blocks; none where its errors are not those of single rows."""
    if not span.path.lower().endswith(".npy"):
        return []
    with places.open_file(span.path) as file:
        shape, by_columns, dtype = _npy_header(span.path, file, wanted)
        complete = file.tell() + dtype.itemsize * int(np.prod(shape, dtype=np.int64)) <= places.size(span.path)
    if by_columns or not complete:
        return []
    for _ in _from_array_file(Span(span.path, 0, 1), wanted):  # raises what every other row would raise
        pass
    return [min(rows, shape[0] - start) for start in range(0, shape[0], rows)]


# --- files -----


def _walk(folder: str) -> Iterator[str]:
    """Every file below a folder that can hold images, in the order of names; hidden ones are left out.

    Names are kept as bytes in one array while a folder is sorted: some 20 MB for a million of them.
    """
    parts = []
    with os.scandir(folder) as entries:
        shown = (entry for entry in entries if not entry.name.startswith(_HIDDEN))
        names = (os.fsencode(e.name) + (b"/" if e.is_dir(follow_symlinks=False) else b"") for e in shown)
        while chunk := list(islice(names, 4096)):
            parts.append(np.array(chunk))
    for name in np.sort(np.concatenate(parts)) if parts else ():
        path = os.path.join(folder, os.fsdecode(bytes(name)))
        if path.endswith("/"):
            yield from _walk(path[:-1])
        elif _can_hold_images(path):
            yield path


def _can_hold_images(path: str) -> bool:
    return path.lower().endswith((*IMAGE_ENDINGS, *ARRAY_ENDINGS, ".parquet"))


def _from_spans(stretch: Iterable[Span], wanted: Wanted, threads: int | None = None) -> Iterator[Batch]:
    """Pieces from files of any kind; runs of image files are decoded together."""

    def encoded() -> Iterator[Batch | Encoded]:
        for span in stretch:
            path = span.path
            ending = os.path.splitext(path)[1].lower()
            if span.images is not None:
                yield from _array_rows(path, span.images, wanted, span.start)
            elif ending in ARRAY_ENDINGS:
                yield from _guarded(path, _from_array_file(span, wanted), wanted)
            elif ending == ".parquet":
                yield from _from_parquet(span, wanted)
            elif wanted.features:
                yield _failed(path, None, "the model takes rows of features: .npy and .npz files hold them", wanted)
            else:
                yield path, 0, partial(places.open_file, path, whole=True)

    yield from _decoded(encoded(), wanted, threads)


def _guarded(path: str, pieces: Iterator[Batch], wanted: Wanted) -> Iterator[Batch]:
    """The pieces of a file; what goes wrong in it becomes its last row."""
    try:
        yield from pieces
    except Exception as error:  # whatever a decoder makes of a broken file
        yield _failed(path, None, error, wanted)


def _failed(path: str, index: int | None, error: object, wanted: Wanted) -> Batch:
    """One row with an error."""
    text = " ".join(re.sub(r"\s*<_io[^>]*>", "", str(error)).split()) or type(error).__name__  # no addresses in tables
    empty = np.zeros((1, *wanted.shape), np.float64 if wanted.features else np.uint8)
    return Batch([path], [index], [text.removeprefix(f"{path}: ")], empty)


# --- encoded images -----


def _decoded(items: Iterator[Batch | Encoded], wanted: Wanted, threads: int | None) -> Iterator[Batch]:
    """Decode in a few threads ahead of whoever asks, order kept; batches pass through."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    workers = threads or min(4, cores)
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


def _from_parquet(span: Span, wanted: Wanted) -> Iterator[Batch | Encoded]:
    """Encoded images of a Parquet file, row group by row group; what is broken in one does not end the others."""
    path = span.path
    if wanted.features:
        yield _failed(path, None, "the model takes rows of features: .npy and .npz files hold them", wanted)
        return
    try:
        with _parquet(path) as (file, column, sizes):
            starts = list(accumulate(sizes, initial=0))
            for group in range(len(sizes))[span.start : span.stop]:
                yield from _from_row_group(path, file, group, column, starts[group], wanted)
    except Exception as error:  # whatever a decoder makes of a broken file
        yield _failed(path, None, error, wanted)


@contextmanager
def _parquet(path: str) -> Iterator[tuple[Any, str, list[int]]]:
    """An open Parquet file, its column of images, and the rows of its row groups."""
    import pyarrow.parquet as pq

    with ExitStack() as stack:
        with reading(path, "Parquet file"):
            source = stack.enter_context(places.open_file(path)) if places.is_uri(path) else path
            file = stack.enter_context(pq.ParquetFile(source))
        column = formats.image_column(file.schema_arrow, path)
        yield file, column, [file.metadata.row_group(group).num_rows for group in range(file.num_row_groups)]


def _from_row_group(
    path: str, file: Any, group: int, column: str, row: int, wanted: Wanted
) -> Iterator[Batch | Encoded]:
    import pyarrow as pa

    try:
        with reading(path, "Parquet file"):
            for batch in file.iter_batches(batch_size=256, row_groups=[group], columns=[column]):
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
        yield _failed(path, row or None, error, wanted)


# --- arrays -----


def _from_array_file(span: Span, wanted: Wanted) -> Iterator[Batch]:
    """Rows of an .npy, or of the image array of an .npz, read one after the other and never mapped.

    Pages of a mapped file stay in the process's memory until someone else needs it, so it would seem to grow.
    """
    path = span.path
    if path.lower().endswith(".npz"):
        with ExitStack() as stack:
            if places.is_uri(path):  # read here and there: it comes to this machine first
                local = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="negvae-"))) / "file.npz"
                with places.open_file(path) as source, local.open("wb") as target:
                    shutil.copyfileobj(source, target, 1 << 24)
            else:
                local = Path(path)
            key = formats.image_key(local, "test")
            archive = stack.enter_context(zipfile.ZipFile(local))
            member = stack.enter_context(archive.open(f"{key}.npy"))
            yield from _from_npy(span, member, lambda: np.load(local, allow_pickle=False)[key], wanted)
        return
    with places.open_file(path) as file:

        def whole() -> NDArray[Any]:
            if not places.is_uri(path):
                return np.load(path, mmap_mode="r", allow_pickle=False)  # type: ignore[no-any-return]
            file.seek(0)
            return np.load(file, allow_pickle=False)  # type: ignore[no-any-return]

        yield from _from_npy(span, file, whole, wanted)


def _npy_header(path: str, file: IO[bytes], wanted: Wanted) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """Shape, order and type of an .npy that may hold what is wanted; the file then stands at its first row."""
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
    return shape, by_columns, dtype


def _from_npy(span: Span, file: IO[bytes], whole: Callable[[], NDArray[Any]], wanted: Wanted) -> Iterator[Batch]:
    path = span.path
    shape, by_columns, dtype = _npy_header(path, file, wanted)
    if by_columns and not isinstance(file, io.BufferedReader) and dtype.itemsize * np.prod(shape) > 2**28:
        raise DataError(f"{path}: is stored column by column and cannot be streamed; save it with np.ascontiguousarray")
    if by_columns:
        yield from _array_rows(path, whole(), wanted)
        return
    row_bytes = dtype.itemsize * int(np.prod(shape[1:], dtype=np.int64))
    rows = max(min(512, 2**24 // row_bytes), 1)
    end = shape[0] if span.stop is None else span.stop
    if span.start:
        file.seek(span.start * row_bytes, os.SEEK_CUR)
    for start in range(span.start, end, rows):
        data = bytearray(file.read(min(rows, end - start) * row_bytes))  # writable, as torch wants arrays
        complete = len(data) // row_bytes
        array = np.frombuffer(data, dtype, complete * row_bytes // dtype.itemsize).reshape(complete, *shape[1:])
        if complete:
            yield from _array_rows(path, array, wanted, start)
        if complete < min(rows, end - start):
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
