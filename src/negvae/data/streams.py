"""Images from any number of files, in order, a batch at a time: memory does not grow with their number.

What cannot be used becomes a row with an error; nothing that a file holds stops the stream.
"""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from itertools import accumulate, chain, pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from negvae.data import stores
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
from negvae.data.formats.encoded import in_order
from negvae.data.formats.folder import HIDDEN, LeftOut, walk
from negvae.data.formats.npy import refuse_rows
from negvae.data.formats.pixels import slack

Encoded = tuple[str, int, Source]
"""An image still to be decoded: its path, its row there, and where it is."""

_PACKED = (".npy", ".npz", ".parquet")
_ENDINGS = (*IMAGE_ENDINGS, *_PACKED)
_NOT_FEATURES = "the model takes rows of features: .npy and .npz files hold them"
_ROWS = 512
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
class InputSpec:
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
        start: first row.
        stop: the row after the last; None for all.
        images: of a data set that was found by name: these rows, as they are stored.
        error: why it cannot be read; "" where that shows when it is.
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
    """The rows of all inputs, in order.

    The first batches are small, so that the first rows come soon.

    Args:
        inputs: folders (with all below them, in the order of names), image files, .npy, .npz and Parquet files,
            patterns with * or **, or names of data sets, whose test split is taken. Files and folders may be URIs
            (`negvae.data.stores`).
        spec: what the rows must be.
        batch_size: rows in a batch.
        left_out: is told of the files in folders that are neither images nor arrays.
        without: files and folders that are not read although they lie in a folder that is, such as the output.

    Raises:
        FileNotFoundError: an input that does not exist, or a pattern that nothing matches; before any row.
        ValueError: an input that is not to be read at all.
    """
    return _rebatched(_from_spans(spans(inputs, left_out, without), spec), batch_size, min(_FIRST, batch_size))


def read(
    stretch: Iterable[Span], spec: InputSpec, *, batch_size: int = 500, threads: int | None = None
) -> Iterator[Batch]:
    """The rows of files and stretches of files, in order.

    Args:
        stretch: what to read.
        spec: what the rows must be.
        batch_size: rows in a batch.
        threads: that decode images; None for a few.
    """
    return _rebatched(_from_spans(stretch, spec, threads), batch_size, batch_size)


def spans(inputs: Sequence[str], left_out: LeftOut | None = None, without: Sequence[str | Path] = ()) -> Iterator[Span]:
    """All files of the inputs, in order; see `stream`, also for what is raised, before the first is given."""
    passed = LeftOut() if left_out is None else left_out
    outputs = tuple(os.path.realpath(path) for path in without)

    def wanted(span: Span) -> bool:
        if not outputs or stores.is_uri(span.path):
            return True
        real = os.path.realpath(span.path)
        return not any(real == output or real.startswith(output + os.sep) for output in outputs)

    return filter(wanted, chain.from_iterable([_spans(text, passed) for text in inputs]))


def _walked(folder: str, left_out: LeftOut) -> Iterator[Span]:
    """The files below a folder, and in their places the folders that cannot be read."""
    unreadable: list[Span] = []

    def failed(path: str, error: OSError) -> None:
        unreadable.append(Span(path, error=f"the folder cannot be read ({error.strerror or error})"))

    for path in walk(folder, _ENDINGS, left_out, failed):
        yield from unreadable
        unreadable.clear()
        yield Span(path)
    yield from unreadable


def _spans(text: str, left_out: LeftOut) -> Iterable[Span]:
    """The files of one input; looked up before anything is read."""
    if stores.is_uri(text):
        found = stores.below(text)
        parts = [uri[len(text) :].split("/") for uri in found]
        shown = [not any(part.startswith(HIDDEN) for part in below) for below in parts]
        return [
            Span(uri)
            for uri, s in zip(found, shown, strict=True)
            if uri == text or (s and uri.lower().endswith(_ENDINGS))
        ]
    path = Path(text).expanduser()
    if path.exists():
        return _walked(str(path), left_out) if path.is_dir() else [Span(str(path))]
    if glob.has_magic(text):
        if next(glob.iglob(str(path), recursive=True), None) is None:
            raise FileNotFoundError(f"{text}: nothing matches this pattern")
        return (Span(p) for p in sorted(glob.iglob(str(path), recursive=True)) if os.path.isfile(p))
    from negvae.data.fetch import HUB
    from negvae.data.load import is_path, load

    if is_path(text) and not text.startswith(HUB):
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


def shards(files: Iterable[Span], spec: InputSpec, rows: int) -> Iterator[tuple[Span, ...]]:
    """A fixed division of the same rows, in order: shards depend on the files and on `rows` alone.

    Large .npy files are cut between rows, Parquet files between row groups; .npz files and files that cannot be read
    stay whole. Reading all shards one after the other gives the rows, and the errors, of `stream`.

    Args:
        files: from `spans`; gone through as shards are asked for.
        spec: what the rows must be.
        rows: the most in a shard, where files can be cut so.
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
    """Stretches of a file with the number of their rows; a whole file that cannot be cut counts as a shard."""
    if span.error:
        yield span, 1
        return
    if span.images is not None:
        for start in range(0, len(span.images), rows):
            part = span.images[start : start + rows]
            yield Span(span.path, start, start + len(part), part), len(part)
        return
    if not span.path.lower().endswith(_PACKED):
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
    """Where to cut a file; nowhere, if its errors are not those of single rows."""
    if path.lower().endswith(".npz"):
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
    """What reads a file of many rows."""
    ending = os.path.splitext(path)[1].lower()
    return Npy(path) if ending == ".npy" else Npz(Path(path), "test") if ending == ".npz" else Parquet((path,))


def _from_spans(stretch: Iterable[Span], spec: InputSpec, threads: int | None = None) -> Iterator[Batch]:
    """Pieces from files of any kind; runs of encoded images are decoded together, a little ahead of whoever asks."""

    def rows() -> Iterator[Batch | Encoded]:
        for span in stretch:
            if span.error:
                yield _failed(span.path, None, span.error, spec)
            elif span.images is not None:
                for low in range(0, len(span.images), _ROWS):
                    yield _array_rows(span.path, span.images[low : low + _ROWS], spec, span.start + low)
            elif span.path.lower().endswith(_PACKED):
                yield from _from_file(span, spec)
            elif spec.features:
                yield _failed(span.path, None, _NOT_FEATURES, spec)
            else:
                yield span.path, 0, span.path

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return in_order(partial(_decode_piece, spec=spec), _grouped(rows()), threads or min(4, cores))


def _grouped(items: Iterator[Batch | Encoded]) -> Iterator[Future[Batch] | list[Encoded]]:
    """Runs of encoded images as lists of a few, in order among the batches."""
    run: list[Encoded] = []
    for item in items:
        if run and (isinstance(item, Batch) or len(run) == _PIECE):
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
    """The rows of an array or a Parquet file; where it is broken there is a row with the error."""
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


def _from_reader(
    reader: Reader, probe: Probe, span: Span, spec: InputSpec, local: str | Path
) -> Iterator[Batch | Encoded]:
    """The rows of a stretch; what is broken in one group of rows does not end the others."""
    row, stop = span.start, probe.count if span.stop is None else span.stop
    size = _ROWS if probe.shape is not None else _PIECE
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
    """One row with an error, which may name a local copy of the file."""
    error = str(error).replace(str(local), path) or error if local else error
    text = " ".join(re.sub(r"\s*<_io[^>]*>", "", str(error)).split()) or type(error).__name__  # no addresses in tables
    empty = np.zeros((1, *spec.shape), np.float64 if spec.features else np.uint8)
    return Batch([path], [index], [text.removeprefix(path).removeprefix(":").strip()], empty)


# --- encoded images -----


def _decode_piece(chunk: list[Encoded], spec: InputSpec) -> Batch:
    images = np.zeros((len(chunk), *spec.shape), np.uint8)
    errors = [""] * len(chunk)
    for row, (path, _, source) in enumerate(chunk):
        try:
            pixels, _ = decode_image(source, path, spec.max_pixels)
            images[row] = fitted(pixels.transpose(2, 0, 1)[None], spec)[0]
        except Exception as error:  # whatever a decoder makes of a broken file
            errors[row] = _failed(path, None, error, spec).errors[0]
    return Batch([path for path, _, _ in chunk], [index for _, index, _ in chunk], errors, images)


def fitted(images: NDArray[np.uint8], spec: InputSpec) -> NDArray[np.uint8]:
    """Images (N x C x H x W) with the channels and the size that are wanted.

    Args:
        images: to convert: gray to three equal channels, color to gray by its weights.
        spec: what is wanted.

    Raises:
        ValueError: they have another size and are not to be resized, or channels that have no conversion.
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


# --- arrays -----


def _array_rows(path: str, part: NDArray[Any], spec: InputSpec, start: int) -> Batch:
    """Rows of an array, of which the first is row `start` of its file.

    Raises:
        ValueError: the array is not what is wanted, whatever its values.
    """
    errors = [""] * len(part)
    images: NDArray[Any]
    if spec.features:
        images = _features(part, spec, errors, path)
    else:
        images = fitted(as_images(_unit_floats(part, errors), path).images, spec)
    return Batch([path] * len(part), list(range(start, start + len(part))), errors, images)


def _features(part: NDArray[Any], spec: InputSpec, errors: list[str], path: str) -> NDArray[np.float64]:
    size = spec.shape[0]
    if part.shape[1:] != (size,) or part.dtype.kind not in "fiub":
        found = " x ".join(["N", *map(str, part.shape[1:])])
        raise DataError(f"{path}: holds {part.dtype} of {found}, the model takes N x {size} numbers")
    rows = part.astype(np.float64)
    for row in np.flatnonzero(~np.isfinite(rows).all(1)):
        errors[row], rows[row] = "holds NaN or infinity", 0
    return rows.reshape(-1, *spec.shape)


def _unit_floats(part: NDArray[Any], errors: list[str]) -> NDArray[Any]:
    """Float images with the rows outside [0, 1] replaced by zeros and marked as errors."""
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
