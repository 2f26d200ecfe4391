"""Tables with named columns, in CSV and Parquet files: rows of features, and the column that names a row's group.

Columns of features must hold numbers or booleans; text and missing values are refused, with the name of the column.
CSV files have a header, commas and UTF-8. In a column of numbers an empty cell, NA, NaN and the like are missing
values; in a column of text an empty cell is, and a group may be called NA.
"""

from __future__ import annotations

import math
from collections.abc import Generator, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from negvae.data import stores
from negvae.data.formats.base import DataError, reading
from negvae.files import home, state_of

ENDINGS = (".csv", ".parquet")
UNNAMED = ""
"""Value of a cell without text."""
_BLOCK = 1 << 16


def is_table(path: Path | str) -> bool:
    """Return whether a path is a CSV file, or a Parquet file without a column of encoded images.

    Args:
        path: path or URI of a file, or anything else.

    Returns:
        True for a file with columns of numbers or text.

    Raises:
        ValueError: if the file is damaged.
    """
    text = str(path)
    if not text.lower().endswith(ENDINGS) or not (stores.is_uri(text) or home(text).is_file()):
        return False
    return text.lower().endswith(".csv") or not any(_holds_images(kind) for kind in _schema(text).types)


def column_names(path: Path | str) -> tuple[str, ...]:
    """Return the names of the columns of a table, in order.

    Args:
        path: path or URI of a CSV or Parquet file.

    Returns:
        The names.

    Raises:
        ValueError: if the file is damaged, or two columns have one name.
    """
    with reading(path, "table"):  # names are decoded as they are asked for
        names = tuple(_schema(str(path)).names)
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise DataError(f"{path}: two columns are called {twice!r}: columns are found by their names")
    if len(names) == 1 and ";" in names[0]:
        raise DataError(f"{path}: its first line has semicolons ({names[0][:40]}): columns are separated by commas")
    if names and all(map(_is_measured, names)):
        raise DataError(f"{path}: its first line holds the names of the columns, and these are numbers ({names[0]})")
    return names


def _is_measured(name: str) -> bool:
    """Return whether a column's name is a number, other than one that counts columns.

    >>> _is_measured("0.25"), _is_measured("-1"), _is_measured("2019"), _is_measured("width")
    (True, True, False, False)
    """
    with suppress(ValueError):
        return math.isfinite(float(name)) and not name.isdecimal()
    return False


def numbers(path: Path | str, columns: Sequence[str]) -> Generator[NDArray[np.float64], None, None]:
    """Read columns of numbers, a block of rows at a time.

    Args:
        path: path or URI of a CSV or Parquet file.
        columns: names of the columns, in the order that the result has.

    Yields:
        Rows (n x D); missing values are NaN.

    Raises:
        ValueError: if the file is damaged, has no such column, or a column holds anything but numbers.
    """
    check_columns(path, columns)
    for batch in _batches(str(path), columns, numeric=True):
        parts = []
        for name in columns:
            column = batch.column(name)
            if not _is_number(column.type):
                raise DataError(_not_a_number(path, name, str(column.type)))
            # Whole numbers beyond 2^53 are rounded, as those of CSV and .npy files are.
            parts.append(np.asarray(column.cast("float64", safe=False).to_numpy(zero_copy_only=False), np.float64))
        yield np.stack(parts, 1) if parts else np.zeros((len(batch), 0))


def texts(path: Path | str, column: str) -> list[str]:
    """Read one column as text, such as the product that each row belongs to.

    Args:
        path: path or URI of a CSV or Parquet file.
        column: name of the column.

    Returns:
        The text of each row; `UNNAMED` for a missing value.

    Raises:
        ValueError: if the file is damaged, or has no such column or one that holds no text, numbers or booleans.
    """
    check_columns(path, [column])
    found: list[str] = []
    for batch in _batches(str(path), [column], numeric=False):
        with reading(path, f"column {column} of text"):
            values = batch.column(column)
            values = values.dictionary_decode() if hasattr(values, "dictionary_decode") else values
            found += [UNNAMED if value is None else value for value in values.cast("string").to_pylist()]
    return found


def check_columns(path: Path | str, columns: Sequence[str]) -> None:
    """Refuse a table in which columns are missing.

    Args:
        path: path or URI of a CSV or Parquet file.
        columns: names of the columns that it must have.

    Raises:
        ValueError: if a column is missing; the message names it and the columns there are.
    """
    there = column_names(path)
    if missing := [name for name in columns if name not in there]:
        shown = ", ".join(there[:8]) + (", ..." if len(there) > 8 else "")
        raise DataError(f"{path}: has no column {', '.join(map(repr, missing[:5]))}; its columns are {shown}")


@dataclass
class GroupColumn:
    """The column of a table that names the group of each row.

    Attributes:
        name: name of the column.

    The column of one file is kept at a time, until the file changes: a stream asks for consecutive rows.
    """

    name: str
    _kept: tuple[object, ...] = field(default=(), repr=False)
    _values: list[str] = field(default_factory=list, repr=False)

    def __call__(self, paths: Sequence[str], indices: Sequence[int | None]) -> list[str]:
        """Return the group of each row.

        Args:
            paths: file of each row.
            indices: index of each row in its file.

        Returns:
            The groups; `UNNAMED` for a row of a file that is not a CSV or Parquet file.

        Raises:
            ValueError: if a CSV or Parquet file has no such column, or no such row.
        """
        found: list[str] = []
        for path, rows in groupby(zip(paths, indices, strict=True), itemgetter(0)):
            found += self._of(path, [index for _, index in rows])
        return found

    def _of(self, path: str, indices: list[int | None]) -> list[str]:
        """Return the groups of rows of one file."""
        if not path.lower().endswith(ENDINGS):
            return [UNNAMED] * len(indices)
        wanted = path, *_state(path)
        if wanted != self._kept:
            self._kept, self._values = (), texts(path, self.name)
            self._kept = wanted
        last = max((index for index in indices if index is not None), default=-1)
        if last >= len(self._values):
            raise DataError(f"{path}: has no row {last} any more: it was changed while it was read")
        return [UNNAMED if index is None else self._values[index] for index in indices]


def _state(path: str) -> tuple[int, ...]:
    """Return the state of a file; of one in a store, or one that cannot be looked up, nothing."""
    with suppress(OSError):
        return () if stores.is_uri(path) else state_of(path)
    return ()


def _schema(path: str) -> Any:
    """Return the names and types of a table's columns; types in a CSV file are those of its first block."""
    with reading(path, "table"), stores.open_for_arrow(path) as file:
        if path.lower().endswith(".csv"):
            from pyarrow import csv

            with csv.open_csv(file) as reader:
                return reader.schema
        import pyarrow.parquet as pq

        return pq.read_schema(file)


def _batches(path: str, columns: Sequence[str], *, numeric: bool) -> Iterator[Any]:
    """Read batches of rows that have at least these columns."""
    with reading(path, "table"), stores.open_for_arrow(path) as file:
        if not path.lower().endswith(".csv"):
            import pyarrow.parquet as pq

            yield from pq.ParquetFile(file).iter_batches(_BLOCK, columns=list(columns))
            return
        import pyarrow as pa
        from pyarrow import csv

        # A whole column has one type, which the first block does not always show.
        kinds = {name: pa.float64() if numeric else pa.string() for name in columns}
        schema = _schema(path)
        if numeric:
            for name in columns:
                kind = schema.field(name).type
                if not (_is_number(kind) or pa.types.is_null(kind)):
                    raise DataError(_not_a_number(path, name, str(kind)))
                if pa.types.is_boolean(kind):
                    kinds[name] = kind
        convert = csv.ConvertOptions(column_types=kinds, include_columns=list(columns))
        # In a table of one column an empty line is a missing value, and not one line less.
        parse = csv.ParseOptions(ignore_empty_lines=len(schema.names) > 1)
        with csv.open_csv(file, parse_options=parse, convert_options=convert) as reader:
            yield from reader


def _not_a_number(path: Path | str, name: str, kind: str) -> str:
    return (
        f"{path}: column {name!r} holds {kind}, and features are numbers: encode it first, for example as one column of"
        " 0 and 1 for each category (pandas.get_dummies), or leave it out; a column that names groups goes to --groups"
    )


def _is_number(kind: Any) -> bool:
    import pyarrow as pa

    return bool(
        pa.types.is_integer(kind)
        or pa.types.is_floating(kind)
        or pa.types.is_boolean(kind)
        or pa.types.is_decimal(kind)
    )


def _holds_images(kind: Any) -> bool:
    import pyarrow as pa

    if pa.types.is_struct(kind):
        return any(kind.field(index).name == "bytes" for index in range(kind.num_fields))
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))
