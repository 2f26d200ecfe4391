"""Write rows of scores as they come: CSV, JSON lines, Parquet, and the files of annotation tools."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import IO, Any

import pyarrow as pa
import pyarrow.compute as pc

from negvae.registry import choose
from negvae.runs import annotation

TABLES = ("parquet", "csv", "jsonl")
FORMATS = (*TABLES, *annotation.FORMATS)
ROW_GROUP = 1 << 16
"""Rows that a Parquet file keeps together."""
Write = Callable[[pa.RecordBatch], None]
"""A function that writes the rows of a table."""


def form_of(out: Path | None, form: str | None) -> str:
    """Return the form of an output.

    Args:
        out: file to write; None for standard output.
        form: one of `FORMATS`; None for that of the file's ending, and for JSON lines on standard output.

    Returns:
        One of `FORMATS`.

    Raises:
        ValueError: if neither says a form, or the form cannot be written there.
    """
    ending = out.suffix.lower().removeprefix(".") if out is not None else "jsonl"
    if form is None and ending not in TABLES:
        raise ValueError(
            f"--out {out}: the ending must be one of {', '.join('.' + f for f in TABLES)}, or give --format"
        )
    form = choose("format", form or ending, FORMATS)
    if out is None and form == "parquet":
        raise ValueError("Parquet is not written to standard output: give --out, or take csv or jsonl")
    return form


@contextmanager
def writer(form: str, path: Path | None, refers: annotation.Place) -> Iterator[Write]:
    """Provide a function that writes rows as they come, to a file or to standard output.

    Args:
        form: one of `FORMATS`.
        path: file to write; None for standard output.
        refers: how files of annotation tools refer to the images.

    Yields:
        The function, which takes one table after the other.
    """
    if form == "parquet" and path is not None:
        with _parquet(path) as write:
            yield write
        return
    with nullcontext(sys.stdout.buffer) if path is None else path.open("wb") as handle:
        if form in TABLES:
            yield (_csv if form == "csv" else _jsonl)(handle)
            return
        with annotation.writer(form, handle, refers) as write:
            yield write


@contextmanager
def _parquet(path: Path) -> Iterator[Write]:
    import pyarrow.parquet as pq

    writer: pq.ParquetWriter | None = None
    waiting: list[pa.RecordBatch] = []

    def flush() -> None:
        nonlocal writer
        if waiting:
            writer = writer or pq.ParquetWriter(path, waiting[0].schema)
            writer.write_table(pa.Table.from_batches(waiting))
            waiting.clear()

    def write(table: pa.RecordBatch) -> None:
        waiting.append(table)
        if sum(map(len, waiting)) >= ROW_GROUP:
            flush()

    try:
        yield write
        flush()
    finally:
        if writer is not None:
            writer.close()


def _csv(handle: IO[bytes]) -> Write:
    from pyarrow import csv

    first = True

    def write(table: pa.RecordBatch) -> None:
        nonlocal first
        text = pa.BufferOutputStream()
        csv.write_csv(table, text, csv.WriteOptions(include_header=first))
        handle.write(text.getvalue())
        handle.flush()
        first = False

    return write


def _jsonl(handle: IO[bytes]) -> Write:
    """Return a function that writes JSON lines column by column; an object per row would take longer than its score."""

    def write(table: pa.RecordBatch) -> None:
        pieces: list[Any] = []
        for name, column in zip(table.schema.names, table.columns, strict=True):
            pieces += [("{" if not pieces else ", ") + json.dumps(name) + ": ", _json_text(column)]
        lines = pc.binary_join_element_wise(*pieces, "}\n", "")
        handle.write("".join(lines.to_pylist()).encode())
        handle.flush()

    return write


def _json_text(column: pa.Array) -> pa.Array:
    """Return each value as JSON; numbers as the shortest text that restores them."""
    if pa.types.is_string(column.type):
        known = column.dictionary_encode()
        texts = [json.dumps(text, ensure_ascii=False) for text in known.dictionary.to_pylist()]
        column = pa.array(texts, pa.string()).take(known.indices)
    return column.cast(pa.string()).fill_null("null")
