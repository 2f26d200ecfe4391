"""Stream images from any number of files, in order, in batches: memory use does not grow with their number.

An image that cannot be used becomes a row with an error; no content of a file stops the stream.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import nullcontext
from functools import partial
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from negvae.data import stores, tables
from negvae.data.batches import Batch, Encoded, InputSpec, array_rows, decoded, failed_row, joined
from negvae.data.formats import DataError, Probe, Reader
from negvae.data.formats.encoded import in_order
from negvae.data.formats.folder import LeftOut
from negvae.data.formats.npy import refuse_rows
from negvae.data.spans import PACKED, Span, reader_of, spans

_NOT_IMAGES = "the model takes images, and this is a table of rows of features"
_NOT_FEATURES = "the model takes rows of features: .npy, .npz, CSV and Parquet files hold them"
_ROWS = 512
_PIECE = 32
_FEW = 4
"""Photos that one thread decodes together."""
_TILED_ROWS = 32
"""Images in a batch if they are tiled: each has many tiles."""
_FIRST = 8
_HEAVY = 1 << 28
"""Bytes of inputs that end a batch: large images have thousands of tiles."""


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


def _rebatched(pieces: Iterable[Batch], batch_size: int, first: int) -> Iterator[Batch]:
    """Regroup the same rows into batches whose size grows from `first` to `batch_size`, or to `_HEAVY` bytes."""
    size, waiting, count, weight = first, list[Batch](), 0, 0
    for piece in pieces:
        waiting.append(piece)
        count += len(piece)
        weight += piece.images.nbytes
        while count >= size or (weight >= _HEAVY and count):
            whole, taken = joined(waiting), min(size, count)
            yield whole[:taken]
            waiting, count = [whole[taken:]], count - taken
            weight = waiting[0].images.nbytes
            size = min(2 * size, batch_size)
    if count:
        yield joined(waiting)


def _from_spans(stretch: Iterable[Span], spec: InputSpec, threads: int | None = None) -> Iterator[Batch]:
    """Read batches from files of any kind; decode runs of encoded images together, a little ahead of the consumer."""

    def rows() -> Iterator[Batch | Encoded]:
        for span in stretch:
            if span.error:
                yield failed_row(span.path, None, span.error, spec)
            elif span.images is not None:
                yield from _from_set(span, span.images, spec)
            elif spec.features and span.path.lower().endswith(tables.ENDINGS):
                yield from _from_table(span, spec)
            elif span.path.lower().endswith(PACKED):
                yield from _from_file(span, spec)
            elif spec.features:
                yield failed_row(span.path, None, _NOT_FEATURES, spec)
            elif span.path.lower().endswith(tables.ENDINGS):
                yield failed_row(span.path, None, _NOT_IMAGES, spec)
            else:
                yield span.path, 0, span.path

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return in_order(partial(decoded, spec=spec), _grouped(rows(), spec), threads or min(4, cores))


def _from_set(span: Span, images: NDArray[Any], spec: InputSpec) -> Iterator[Batch]:
    """Read the images of a data set that was found by name, with one row for an error where they do not fit."""
    size = _TILED_ROWS if spec.tiled else _ROWS
    try:
        for low in range(0, len(images), size):
            yield array_rows(span.path, images[low : low + size], spec, span.start + low)
    except ValueError as error:
        yield failed_row(span.path, None, error, spec)


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
            reader = reader_of(local)
            probe = reader.probe()
            if probe.shape is not None:
                refuse_rows(probe, 4 * spec.max_pixels, path)
            elif spec.features:
                raise DataError(_NOT_FEATURES)
            yield from _from_reader(reader, probe, span, spec, local)
    except Exception as error:  # whatever a reader makes of a broken file
        yield failed_row(path, None, error, spec, local)


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
                    yield array_rows(path, part, spec, start + first)
            row += len(block)
    except Exception as error:  # whatever a reader makes of a broken file
        # The rows before it are scored, and how many would follow is not known.
        rest = f"; no row of this table from row {row} on is scored" if row else ""
        yield failed_row(path, row or None, f"{str(error) or type(error).__name__}{rest}", spec)


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
                    yield array_rows(span.path, block.rows, spec, block.start)
                else:
                    yield from ((span.path, index, source) for index, source in enumerate(block.rows, block.start))
                row = block.start + len(block.rows)
            return
        except Exception as error:  # whatever a decoder makes of a broken file
            yield failed_row(span.path, row or None, error, spec, local)
            row = next((end for end in accumulate(probe.groups) if end > row), stop)
