"""Stream images from any number of files, in order, in batches: memory use does not grow with their number.

An image that cannot be used becomes a row with an error; no content of a file stops the stream.
"""

from __future__ import annotations

import glob
import os
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import partial
from itertools import accumulate, chain, pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from negvae.data import stores, tables
from negvae.data.catalog import Shape
from negvae.data.formats import (
    IMAGE_ENDINGS,
    MAX_PIXELS,
    DataError,
    Npy,
    Npz,
    Parquet,
    Probe,
    Reader,
    Source,
    as_images,
    decode_image,
)
from negvae.data.formats.base import reason
from negvae.data.formats.encoded import in_order
from negvae.data.formats.folder import HIDDEN, LeftOut, walk
from negvae.data.formats.npy import refuse_rows
from negvae.data.formats.pixels import slack
from negvae.data.photos import fit_photo, prepared, read_photo
from negvae.data.tiling import Tiling, tiling
from negvae.decoding import Decoding
from negvae.files import home
from negvae.messages import counted

Encoded = tuple[str, int, Source]
"""An image that is still to be decoded: its path, its row in that file, and its source."""

_PACKED = (".npy", ".npz", ".parquet")
_ENDINGS = (*IMAGE_ENDINGS, *_PACKED)
_NOT_IMAGES = "the model takes images, and this is a table of rows of features"
_NOT_FEATURES = "the model takes rows of features: .npy, .npz, CSV and Parquet files hold them"
_NOT_SENT_FEATURES = "the model takes rows of features: send them as the content of an .npy file"
_ROWS = 512
_PIECE = 32
_FEW = 4
"""Photos that one thread decodes together."""
_TILED_ROWS = 32
"""Images in a batch if they are tiled: each has many tiles."""
_FIRST = 8
_HEAVY = 1 << 28
"""Bytes of inputs that end a batch: large images have thousands of tiles."""


@dataclass(frozen=True)
class Batch:
    """Consecutive rows of a stream.

    Attributes:
        paths: file that each row was read from.
        indices: index of each row in its file, from 0; None for an error that concerns the whole file.
        errors: reason why each row cannot be scored; "" if it can.
        images: content of each row (images, uint8, N x C x H x W, or features, float64, N x D x 1 x 1); zeros for rows
            with an error. If images are tiled, the tiles of all rows, one row after the other.
        tilings: where the tiles of each row lie in its image; empty if images are not tiled. A row with an error has
            one tile.
    """

    paths: list[str]
    indices: list[int | None]
    errors: list[str]
    images: NDArray[Any]
    tilings: list[Tiling] = field(default_factory=list)

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(self.paths)

    def __getitem__(self, rows: slice) -> Batch:
        """Return a slice of the rows, which are consecutive."""
        if not self.tilings:
            return Batch(self.paths[rows], self.indices[rows], self.errors[rows], self.images[rows])
        start, stop, _ = rows.indices(len(self))
        low, high = (sum(map(len, self.tilings[:row])) for row in (start, max(start, stop)))
        return Batch(self.paths[rows], self.indices[rows], self.errors[rows], self.images[low:high], self.tilings[rows])

    def good(self) -> NDArray[np.int64]:
        """Return the numbers of the rows without an error."""
        return np.flatnonzero([not error for error in self.errors])

    def inputs(self, rows: NDArray[np.int64]) -> tuple[NDArray[Any], NDArray[np.int64] | None]:
        """Return the model's inputs of some rows, and, if images are tiled, the place among them of each tile's row.

        Args:
            rows: numbers of the rows, ascending.

        Returns:
            The images, tiles or features, and for tiles the index in `rows` of the row that each belongs to; else None.
        """
        if not self.tilings:
            return (self.images if len(rows) == len(self) else self.images[rows]), None
        owners = np.repeat(np.arange(len(self)), list(map(len, self.tilings)))
        wanted = np.isin(owners, rows)
        return self.images[wanted], np.searchsorted(rows, owners[wanted])


@dataclass(frozen=True)
class InputSpec:
    """The form that the rows of a stream must have.

    Attributes:
        shape: shape (C, H, W) of the images, or (D, 1, 1) of rows of features.
        features: whether the rows are rows of features and not images.
        resize: whether images of another size are resized (bilinear, antialiased, aspect ratio not kept); otherwise
            they become errors. In either case gray is repeated to RGB, and RGB becomes gray by the weights 0.299,
            0.587, 0.114.
        max_pixels: maximum number of pixels that an encoded image may declare; checked before it is decoded.
        columns: names of the columns of features in tables, in the model's order; empty if the model's columns have no
            names, and a table then must have as many columns as the model.
        decoding: how images are decoded and fitted, if the model was trained on a folder of photos; None if they must
            have its shape, or `resize` is used.
        upright: whether encoded images are turned as their EXIF orientation says, where there is no `decoding`, which
            says it itself.
    """

    shape: Shape
    features: bool = False
    resize: bool = False
    max_pixels: int = MAX_PIXELS
    columns: tuple[str, ...] = ()
    decoding: Decoding | None = None
    upright: bool = False

    @property
    def tiled(self) -> bool:
        """Whether images are cut into tiles."""
        return self.decoding is not None and self.decoding.tiled


@dataclass(frozen=True)
class Span:
    """A file, or a range of its rows.

    Attributes:
        path: path or URI of the file, or the name of a data set.
        start: index of the first row.
        stop: index after the last row; None for all rows.
        images: the images in this range, as stored, if the data set was found by name; else None.
        error: reason why the file cannot be read; "" if none is known before reading.
    """

    path: str
    start: int = 0
    stop: int | None = None
    images: NDArray[Any] | None = None
    error: str = ""


def stream(
    inputs: Sequence[str],
    spec: InputSpec,
    *,
    batch_size: int = 500,
    left_out: LeftOut | None = None,
    without: Sequence[str | Path] = (),
) -> Iterator[Batch]:
    """Read the rows of all inputs, in order.

    The first batches are small, so that the first rows arrive soon.

    Args:
        inputs: folders (read with all folders below them, in order of names), image files, .npy, .npz and Parquet
            files, for rows of features CSV files, patterns with * or **, or names of data sets, whose test split is
            read. Files and folders may be URIs (`negvae.data.stores`).
        spec: form that the rows must have.
        batch_size: number of rows in a batch.
        left_out: collects the files in folders that are neither images nor arrays; None ignores them.
        without: files and folders to skip even if they lie in a folder that is read, such as the output.

    Returns:
        The batches.

    Raises:
        FileNotFoundError: if an input does not exist or a pattern matches nothing; raised before any row is read.
        ValueError: if an input cannot be read at all.
    """
    batch_size = min(batch_size, _TILED_ROWS) if spec.tiled else batch_size
    files = spans(inputs, left_out, without, features=spec.features)
    return _rebatched(_from_spans(files, spec), batch_size, min(_FIRST, batch_size))


def read(
    stretch: Iterable[Span], spec: InputSpec, *, batch_size: int = 500, threads: int | None = None
) -> Iterator[Batch]:
    """Read the rows of files and of ranges of files, in order.

    Args:
        stretch: files and ranges to read.
        spec: form that the rows must have.
        batch_size: number of rows in a batch.
        threads: number of threads that decode images; None for one per core, at most 4.

    Returns:
        The batches.
    """
    batch_size = min(batch_size, _TILED_ROWS) if spec.tiled else batch_size
    return _rebatched(_from_spans(stretch, spec, threads), batch_size, batch_size)


def spans(
    inputs: Sequence[str],
    left_out: LeftOut | None = None,
    without: Sequence[str | Path] = (),
    *,
    features: bool = False,
) -> Iterator[Span]:
    """List all files of the inputs, in order; see `stream` for the arguments and the errors, which are raised first.

    The CSV files in folders are listed if `features`: beside images, they hold labels and not rows to score.
    """
    passed = LeftOut() if left_out is None else left_out
    endings = (*_ENDINGS, ".csv") if features else _ENDINGS
    outputs = tuple(os.path.realpath(path) for path in without)

    def wanted(span: Span) -> bool:
        if not outputs or stores.is_uri(span.path):
            return True
        real = os.path.realpath(span.path)
        return not any(real == output or real.startswith(output + os.sep) for output in outputs)

    return filter(wanted, chain.from_iterable([_spans(text, endings, passed) for text in inputs]))


def _walked(folder: str, endings: tuple[str, ...], left_out: LeftOut) -> Iterator[Span]:
    """List the files below a folder, with folders that cannot be read as errors in their places."""
    unreadable: list[Span] = []

    def failed(path: str, error: OSError) -> None:
        unreadable.append(Span(path, error=f"the folder cannot be read ({error.strerror or error})"))

    for path in walk(folder, endings, left_out, failed):
        yield from unreadable
        unreadable.clear()
        yield Span(path)
    yield from unreadable


def _in_store(uri: str, endings: tuple[str, ...], left_out: LeftOut) -> Iterator[Span]:
    """List the files below a folder in a store, or the file that the URI names."""
    for file in stores.below(uri):
        hidden = any(part.startswith(HIDDEN) for part in file[len(uri) :].split("/"))
        if file == uri or (file.lower().endswith(endings) and not hidden):
            yield Span(file)
        else:
            left_out.add(file, "hidden" if hidden else "")


def _spans(text: str, endings: tuple[str, ...], left_out: LeftOut) -> Iterable[Span]:
    """List the files of one input, which is looked up before anything is read."""
    if not text:  # as from a variable of a shell that is not set
        raise ValueError("an input is empty: name a folder, a file, a pattern or a data set")
    text = stores.local_path(text)
    if stores.is_uri(text):
        return list(_in_store(text, endings, left_out))
    from negvae.data.fetch import HUB
    from negvae.data.load import is_path, load

    path = home(text)
    if path.exists() and not is_path(text):
        left_out.add(os.path.join(".", text), "path with the name of a set")
    elif path.exists():
        return _walked(str(path), endings, left_out) if path.is_dir() else [Span(str(path))]
    if glob.has_magic(text):
        if next(glob.iglob(str(path), recursive=True), None) is None:
            raise FileNotFoundError(f"{text}: nothing matches this pattern")
        return _matching(str(path), left_out)
    if is_path(text) and not text.startswith(HUB):
        raise FileNotFoundError(f"{text}: no such file or folder")
    return [Span(text, images=load(text, "test").images)]


def _matching(pattern: str, left_out: LeftOut) -> Iterator[Span]:
    """List what matches a pattern, but for folders; dead links and the like are errors, as where they are named."""
    for path in sorted(glob.iglob(pattern, recursive=True)):
        if not os.path.isdir(path):
            yield Span(path)
        elif "**" not in pattern:  # which matches what is in them too
            left_out.add(path, "folder")


def _rebatched(pieces: Iterable[Batch], batch_size: int, first: int) -> Iterator[Batch]:
    """Regroup the same rows into batches whose size grows from `first` to `batch_size`, or to `_HEAVY` bytes."""
    size, waiting, count, weight = first, list[Batch](), 0, 0
    for piece in pieces:
        waiting.append(piece)
        count += len(piece)
        weight += piece.images.nbytes
        while count >= size or (weight >= _HEAVY and count):
            whole, taken = _joined(waiting), min(size, count)
            yield whole[:taken]
            waiting, count = [whole[taken:]], count - taken
            weight = waiting[0].images.nbytes
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
        [plan for part in parts for plan in part.tilings],
    )


# --- shards -----


def shards(files: Iterable[Span], spec: InputSpec, rows: int) -> Iterator[tuple[Span, ...]]:
    """Divide the rows of files into shards, in order; the shards depend only on the files and on `rows`.

    Large .npy files are cut between rows, and Parquet files of images between row groups; .npz files, tables of rows
    of features and files that cannot be read stay whole. Reading all shards in order gives the same rows and errors as
    `stream`.

    Args:
        files: files as `spans` lists them; consumed as shards are requested.
        spec: form that the rows must have.
        rows: maximum number of rows in a shard, as far as files can be cut that small.

    Yields:
        The ranges of files that make up a shard.
    """
    shard, count = list[Span](), 0
    for span, length in (piece for file in files for piece in _pieces(file, spec, rows)):
        if shard and count + length > rows:
            yield tuple(shard)
            shard, count = [], 0
        shard.append(span)
        count += length
    if shard:
        yield tuple(shard)


def _pieces(span: Span, spec: InputSpec, rows: int) -> Iterator[tuple[Span, int]]:
    """Return ranges of a file with their numbers of rows; a whole file that cannot be cut counts as a full shard."""
    if span.error:
        yield span, 1
        return
    if span.images is not None:
        for start in range(0, len(span.images), rows):
            part = span.images[start : start + rows]
            yield Span(span.path, start, start + len(part), part), len(part)
        return
    table = spec.features and span.path.lower().endswith(tables.ENDINGS)
    if not table and not span.path.lower().endswith(_PACKED):
        yield span, 1
        return
    try:
        stretches = _stretches(span.path, spec, rows)
    except Exception:  # whoever reads it will say what is wrong
        stretches = []
    for start, stop in stretches:
        yield Span(span.path, start, stop), stop - start
    if not stretches:
        yield span, rows


def _stretches(path: str, spec: InputSpec, rows: int) -> list[tuple[int, int]]:
    """Return where to cut a file; no cuts if its errors do not concern single rows."""
    if path.lower().endswith(".npz"):
        return []
    if spec.features and path.lower().endswith(tables.ENDINGS):
        return []
    reader = _reader(path)
    probe = reader.probe()
    if probe.shape is None:
        groups = probe.groups
    elif probe.cuttable:
        refuse_rows(probe, 4 * spec.max_pixels, path)
        for block in reader.rows(0, 1, size=1):  # raises what every other row would raise
            _array_rows(path, np.asarray(block.rows), spec, 0)
        groups = tuple(min(rows, probe.count - start) for start in range(0, probe.count, rows))
    else:
        groups = ()
    ends = [0]
    for end, following in zip(accumulate(groups), (*groups[1:], rows), strict=False):
        if end + following - ends[-1] > rows:
            ends.append(end)
    return list(pairwise(ends))


# --- files -----


def _reader(path: str | Path) -> Reader:
    """Return the reader of a file of many rows."""
    ending = os.path.splitext(path)[1].lower()
    return Npy(path) if ending == ".npy" else Npz(Path(path), "test") if ending == ".npz" else Parquet((path,))


def _from_spans(stretch: Iterable[Span], spec: InputSpec, threads: int | None = None) -> Iterator[Batch]:
    """Read batches from files of any kind; decode runs of encoded images together, a little ahead of the consumer."""

    def rows() -> Iterator[Batch | Encoded]:
        for span in stretch:
            if span.error:
                yield _failed(span.path, None, span.error, spec)
            elif span.images is not None:
                size = _TILED_ROWS if spec.tiled else _ROWS
                for low in range(0, len(span.images), size):
                    yield _array_rows(span.path, span.images[low : low + size], spec, span.start + low)
            elif spec.features and span.path.lower().endswith(tables.ENDINGS):
                yield from _from_table(span, spec)
            elif span.path.lower().endswith(_PACKED):
                yield from _from_file(span, spec)
            elif spec.features:
                yield _failed(span.path, None, _NOT_FEATURES, spec)
            elif span.path.lower().endswith(tables.ENDINGS):
                yield _failed(span.path, None, _NOT_IMAGES, spec)
            else:
                yield span.path, 0, span.path

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return in_order(partial(_decode_piece, spec=spec), _grouped(rows(), spec), threads or min(4, cores))


def _grouped(items: Iterator[Batch | Encoded], spec: InputSpec) -> Iterator[Future[Batch] | list[Encoded]]:
    """Group runs of encoded images into short lists, in order among the batches."""
    run: list[Encoded] = []
    most = _PIECE if spec.decoding is None else _FEW
    for item in items:
        if run and (isinstance(item, Batch) or len(run) == most):
            yield run
            run = []
        if isinstance(item, Batch):
            done: Future[Batch] = Future()
            done.set_result(item)
            yield done
        else:
            run.append(item)
    if run:
        yield run


def _from_file(span: Span, spec: InputSpec) -> Iterator[Batch | Encoded]:
    """Read the rows of an array or a Parquet file, with a row for an error where the file is damaged."""
    path = span.path
    local: str | Path = path
    try:
        # An archive is read here and there, so one in a store comes to this machine first.
        with stores.local_copy(path) if path.lower().endswith(".npz") else nullcontext(path) as local:
            reader = _reader(local)
            probe = reader.probe()
            if probe.shape is not None:
                refuse_rows(probe, 4 * spec.max_pixels, path)
            elif spec.features:
                raise DataError(_NOT_FEATURES)
            yield from _from_reader(reader, probe, span, spec, local)
    except Exception as error:  # whatever a reader makes of a broken file
        yield _failed(path, None, error, spec, local)


def _from_table(span: Span, spec: InputSpec) -> Iterator[Batch]:
    """Read the rows of features of a CSV or Parquet file, with a row for an error where the file is damaged."""
    path, row = span.path, 0
    try:
        columns = tables.columns_to_read(path, spec.columns)
        for block in tables.numbers(path, columns):
            for low in range(0, len(block), _ROWS):
                start = row + low
                first, stop = max(span.start - start, 0), len(block) if span.stop is None else max(span.stop - start, 0)
                part = block[low : low + _ROWS][first:stop]
                if len(part):
                    yield _array_rows(path, part, spec, start + first)
            row += len(block)
    except Exception as error:  # whatever a reader makes of a broken file
        # The rows before it are scored, and how many would follow is not known.
        rest = f"; no row of this table from row {row} on is scored" if row else ""
        yield _failed(path, row or None, f"{str(error) or type(error).__name__}{rest}", spec)


def _from_reader(
    reader: Reader, probe: Probe, span: Span, spec: InputSpec, local: str | Path
) -> Iterator[Batch | Encoded]:
    """Read the rows of a range; a damaged group of rows does not end the others."""
    row, stop = span.start, probe.count if span.stop is None else span.stop
    size = (_TILED_ROWS if spec.tiled else _ROWS) if probe.shape is not None else _PIECE
    while row < stop:
        try:
            for block in reader.rows(row, stop, size=size):
                if isinstance(block.rows, np.ndarray):
                    yield _array_rows(span.path, block.rows, spec, block.start)
                else:
                    yield from ((span.path, index, source) for index, source in enumerate(block.rows, block.start))
                row = block.start + len(block.rows)
            return
        except Exception as error:  # whatever a decoder makes of a broken file
            yield _failed(span.path, row or None, error, spec, local)
            row = next((end for end in accumulate(probe.groups) if end > row), stop)


def _failed(path: str, index: int | None, error: object, spec: InputSpec, local: str | Path = "") -> Batch:
    """Return one row with an error; a local copy that the error names is replaced by the path of the file."""
    text = reason(error).replace(str(local), path) if local else reason(error)
    empty = np.zeros((1, *spec.shape), np.float64 if spec.features else np.uint8)
    said = text.removeprefix(f"{path}:").strip() or "it cannot be read"  # no text would mean that nothing is wrong
    return Batch([path], [index], [said], empty, _none(spec))


def _none(spec: InputSpec) -> list[Tiling]:
    """Return the tilings of a row with an error."""
    return [tiling(spec.shape[1:], spec.shape[1:], 0)] if spec.tiled else []


# --- encoded images -----


def _decode_piece(chunk: list[Encoded], spec: InputSpec) -> Batch:
    if spec.decoding is not None:
        return _joined([_photo(encoded, spec, spec.decoding) for encoded in chunk])
    images = np.zeros((len(chunk), *spec.shape), np.uint8)
    errors = [""] * len(chunk)
    for row, (path, _, source) in enumerate(chunk):
        try:
            pixels, _ = decode_image(source, path, spec.max_pixels, upright=spec.upright)
            images[row] = fitted(pixels.transpose(2, 0, 1)[None], spec)[0]
        except Exception as error:  # whatever a decoder makes of a broken file
            errors[row] = _failed(path, None, error, spec).errors[0]
    return Batch([path for path, _, _ in chunk], [index for _, index, _ in chunk], errors, images)


def _photo(encoded: Encoded, spec: InputSpec, decoding: Decoding) -> Batch:
    """Return one photo as a batch of one row."""
    path, index, source = encoded
    try:
        inputs, plan = read_photo(source, path, decoding, spec.max_pixels)
    except Exception as error:  # whatever a decoder makes of a broken file
        return _failed(path, index, error, spec)
    return Batch([path], [index], [""], inputs, [plan] if spec.tiled else [])


def fitted(images: NDArray[np.uint8], spec: InputSpec) -> NDArray[np.uint8]:
    """Convert images to the channels and the size that are required.

    Args:
        images: images, uint8, N x C x H x W; gray becomes three equal channels, and RGB becomes gray by its weights.
        spec: required form.

    Returns:
        The images in the required shape, uint8.

    Raises:
        ValueError: if the images have another size and `spec` does not resize, or their channels cannot be converted.
    """
    channels, height, width = spec.shape
    found = images.shape[1]
    if images.shape[2:] != (height, width) and not spec.resize:
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
            raise DataError(f"has {counted(found, 'channel')}, the model takes {channels}")
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


# --- arrays -----


def _array_rows(path: str, part: NDArray[Any], spec: InputSpec, start: int) -> Batch:
    """Convert rows of an array, the first of which is row `start` of its file.

    Raises:
        ValueError: if the array does not have the required form, whatever its values.
    """
    errors = [""] * len(part)
    images: NDArray[Any]
    if spec.features:
        images = _features(part, spec, errors, path)
    elif spec.decoding is None and part.dtype == np.uint8 and part.shape[1:] == spec.shape and len(part):
        images = part  # of any number of channels
    else:
        images = as_images(_unit_floats(part, errors), path).images
        if spec.decoding is not None:
            return _photos(path, images, errors, spec, spec.decoding, start)
        try:
            images = fitted(images, spec)
        except DataError as error:
            raise DataError(f"{path}: {error}") from None
    return Batch([path] * len(part), list(range(start, start + len(part))), errors, images)


def _photos(
    path: str, images: NDArray[np.uint8], errors: list[str], spec: InputSpec, decoding: Decoding, start: int
) -> Batch:
    """Fit the images of an array as photos are."""
    found = [fit_photo(prepared(image, path, decoding), decoding) for image in images]
    numbers: list[int | None] = list(range(start, start + len(images)))
    plans = [plan for _, plan in found] if spec.tiled else []
    return Batch([path] * len(images), numbers, errors, np.concatenate([inputs for inputs, _ in found]), plans)


def _features(part: NDArray[Any], spec: InputSpec, errors: list[str], path: str) -> NDArray[np.float64]:
    size = spec.shape[0]
    if part.shape[1:] != (size,) or part.dtype.kind not in "fiub":
        found = " x ".join(["N", *map(str, part.shape[1:])])
        raise DataError(f"{path}: holds {part.dtype} of {found}, the model takes N x {size} numbers")
    rows = part.astype(np.float64)
    for row in np.flatnonzero(~np.isfinite(rows).all(1)):
        errors[row], rows[row] = _not_finite(rows[row], spec.columns), 0
    return rows.reshape(-1, *spec.shape)


def _not_finite(row: NDArray[np.float64], columns: Sequence[str]) -> str:
    """Return what is wrong with a row that holds NaN or infinity; columns with names are named."""
    wrong = np.flatnonzero(~np.isfinite(row))[:3]
    where = f" in {', '.join(columns[index] for index in wrong)}" if columns else ""
    return f"holds NaN or infinity{where}"


def _unit_floats(part: NDArray[Any], errors: list[str]) -> NDArray[Any]:
    """Replace the rows of float images outside [0, 1] by zeros, and record an error for each."""
    if part.dtype.kind != "f":
        return part
    flat = part.reshape(len(part), -1)
    least = slack(part.dtype)
    wrong = np.flatnonzero(~((flat >= -least) & (flat <= 1 + least)).all(1))  # NaN compares false
    if len(wrong):
        part = part.copy()
        part[wrong] = 0
        for row in wrong:
            errors[row] = "float images must lie within [0, 1]"
    return part


# --- content in memory -----


def from_memory(path: str, content: bytes | NDArray[Any], spec: InputSpec) -> Batch:
    """Read one encoded image, or the rows of an array, as a file with this content is read.

    Args:
        path: name of the content in the rows and their errors.
        content: bytes of an encoded image, or an array of images or rows.
        spec: form that the rows must have.

    Returns:
        The rows; content that cannot be used becomes one row with an error.
    """
    if isinstance(content, bytes):
        if spec.features:
            return _failed(path, None, _NOT_SENT_FEATURES, spec)
        return _decode_piece([(path, 0, content)], spec)
    try:
        return _array_rows(path, content, spec, 0)
    except Exception as error:  # whatever NumPy makes of an odd array
        return _failed(path, None, error, spec)
