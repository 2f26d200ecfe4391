"""Divide the rows of any number of files into shards of about equal size, which others may read."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import accumulate, pairwise

import numpy as np

from negvae.data import tables
from negvae.data.batches import InputSpec, array_rows
from negvae.data.formats.npy import refuse_rows
from negvae.data.spans import PACKED, Span, reader_of


def shards(files: Iterable[Span], spec: InputSpec, rows: int) -> Iterator[tuple[Span, ...]]:
    """Divide the rows of files into shards, in order; the shards depend only on the files and on `rows`.

    Large .npy files are cut between rows, and Parquet files of images between row groups; .npz files, tables of rows
    of features and files that cannot be read stay whole. Reading all shards in order gives the same rows and errors as
    `negvae.data.streams.stream`.

    Args:
        files: files as `negvae.data.spans.spans` lists them; consumed as shards are requested.
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
    if not table and not span.path.lower().endswith(PACKED):
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
    reader = reader_of(path)
    probe = reader.probe()
    if probe.shape is None:
        groups = probe.groups
    elif probe.cuttable:
        refuse_rows(probe, 4 * spec.max_pixels, path)
        for block in reader.rows(0, 1, size=1):  # raises what every other row would raise
            array_rows(path, np.asarray(block.rows), spec, 0)
        groups = tuple(min(rows, probe.count - start) for start in range(0, probe.count, rows))
    else:
        groups = ()
    ends = [0]
    for end, following in zip(accumulate(groups), (*groups[1:], rows), strict=False):
        if end + following - ends[-1] > rows:
            ends.append(end)
    return list(pairwise(ends))
