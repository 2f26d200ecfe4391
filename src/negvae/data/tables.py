"""Tables with named columns, in CSV and Parquet files: rows of features, and the column that names a row's group.

Columns of features must hold numbers or booleans; text and missing values are refused, with the name of the column.
CSV files have a header, commas and UTF-8. In a column of numbers an empty cell, NA, NaN and the like are missing
values; in a column of text an empty cell is, and a group may be called NA.
"""

from __future__ import annotations

import codecs
import io
import re
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
from negvae.data.formats.parquet import IMAGE_COLUMNS, LABEL_COLUMNS, may_be_images
from negvae.files import home, state_of

ENDINGS = (".csv", ".parquet")
UNNAMED = ""
"""Value of a cell without text."""
_BLOCK = 1 << 16
_CSV_BLOCK = 1 << 20
"""Bytes of a CSV file that are read together, as Arrow itself has it; a line must fit in."""
_LONGEST = 1 << 24
"""Bytes that a block may grow to for longer lines; a file without lines would otherwise be read whole."""
_SNIFFED = 1 << 16
"""Bytes of the beginning and the end of a CSV file that are looked at before Arrow reads it."""
_FIRST = 64
"""Rows of a Parquet file that are read together to look for its first image."""
_SHOWN = 40
"""Characters of a value that a message shows."""
_ROW_NUMBERS = re.compile(r"\s*|__index_level_\d+__|Unnamed: \d+")
"""Names that pandas gives to the column of row numbers in CSV and in Parquet files, and to that of a CSV file later."""


def is_table(path: Path | str) -> bool:
    """Return whether a path is a CSV file, or a Parquet file without a column of encoded images.

    Bytes are encoded images if their column is named as one, if Pillow knows the first of them, or if the file has no
    columns of numbers but labels.

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
    return text.lower().endswith(".csv") or not _has_images(text)


def column_names(path: Path | str) -> tuple[str, ...]:
    """Return the names of the columns of a table, in order.

    Args:
        path: path or URI of a CSV or Parquet file.

    Returns:
        The names.

    Raises:
        ValueError: if the file is damaged, two columns have one name, a column holds the numbers of the rows or has no
            name, or the first line of a CSV file holds values.
    """
    names = _names(path)
    _refuse_values(path, names)
    for place, name in enumerate(names):
        if _ROW_NUMBERS.fullmatch(name):
            called = f"is called {name}" if name else "has no name"
            raise DataError(
                f"{path}: column {place} {called}: the row numbers of pandas are no feature (write the table with"
                " index=False), and a feature needs a name"
            )
    return names


def columns_to_read(path: Path | str, known: Sequence[str], without: str | None = None) -> tuple[str, ...]:
    """Return the names of the columns of features in a table, in the order of the model that they are for.

    Args:
        path: path or URI of a CSV or Parquet file.
        known: names of the columns that the model was trained on; empty if they had none. Numbers, which data frames
            have where nobody has named the columns, are places if the table has no column of such a name.
        without: name of a column that is no feature; None if there is none.

    Returns:
        The names.

    Raises:
        ValueError: if the names have to be read and cannot be (see `column_names`).
    """
    if known and not (all(map(str.isdecimal, known)) and set(known).isdisjoint(_names(path))):
        return tuple(known)
    return tuple(name for name in column_names(path) if name != without)


def _names(path: Path | str) -> tuple[str, ...]:
    """Return the names of the columns of a table, which can be told apart."""
    with reading(path, "table"):  # names are decoded as they are asked for
        names = tuple(_schema(str(path)).names)
    if len(set(names)) < len(names):
        _refuse_values(path, names)
        twice = next(name for name in names if names.count(name) > 1)
        raise DataError(f"{path}: two columns are called {twice!r}: columns are found by their names")
    return names


def _refuse_values(path: Path | str, names: Sequence[str]) -> None:
    """Refuse a CSV file without a line of names."""
    if str(path).lower().endswith(".csv") and _are_values(names):
        raise DataError(
            f"{path}: its first line holds the names of the columns, and these are numbers ({', '.join(names[:3])}):"
            " write a line of names above the values, or names that are no numbers"
        )


def _are_values(names: Sequence[str]) -> bool:
    """Return whether the first line of a table holds numbers, other than those that count columns.

    >>> _are_values(["5", "0.25"]), _are_values(["5", "8", "1"]), _are_values(["7"]), _are_values(["5", "width"])
    (True, True, True, False)
    >>> _are_values(["0"]), _are_values(["2020", "2019"])
    (False, False)
    >>> _are_values(["400", "402", "404"]), _are_values(["400", "402"])
    (False, True)
    """
    given = [name.strip() for name in names if name.strip()]  # a missing value is no sign of a name
    if not given or not all(map(_is_number_text, given)):
        return False
    if not all(map(str.isdecimal, given)):
        return True
    counted = sorted(map(int, given))  # in whatever order the columns were written
    if len(counted) == 1:
        return counted[0] > 1
    step = counted[1] - counted[0]  # as of wavelengths and years; any two numbers have one
    return step == 0 or (step > 1 and len(counted) == 2) or counted != list(range(counted[0], counted[-1] + 1, step))


def _is_number_text(text: str) -> bool:
    with suppress(ValueError):
        float(text)
        return "_" not in text  # which Python takes for a separator
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
    import pyarrow as pa

    check_columns(path, [column])
    found: list[str] = []
    for batch in _batches(str(path), [column], numeric=False):
        with reading(path, f"column {column} of text"):
            values = batch.column(column)
            values = values.dictionary_decode() if hasattr(values, "dictionary_decode") else values
            # Booleans are called as in data frames, and as pandas writes them to CSV: True, which Arrow calls true.
            values = values if pa.types.is_boolean(values.type) else values.cast("string")
            found += [UNNAMED if value is None else _whole(str(value)) for value in values.to_pylist()]
    return found


def _whole(text: str) -> str:
    """Return the text of a whole number that was written as a float, as pandas does where a value is missing.

    >>> _whole("2.0"), _whole("-1.0"), _whole("2.5"), _whole("v2.0")
    ('2', '-1', '2.5', 'v2.0')
    """
    number = text.removesuffix(".0")
    return number if number.removeprefix("-").isdecimal() else text


def check_columns(path: Path | str, columns: Sequence[str]) -> None:
    """Refuse a table in which columns are missing.

    Args:
        path: path or URI of a CSV or Parquet file.
        columns: names of the columns that it must have.

    Raises:
        ValueError: if a column is missing; the message names it and the columns there are.
    """
    there = _names(path)
    known = set(there)
    if missing := [name for name in columns if name not in known]:
        shown = ", ".join(map(repr, there[:8])) + (", ..." if len(there) > 8 else "")
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
    with reading(path, "table"):
        if path.lower().endswith(".csv"):
            _refuse_other_forms(path)
            return _csv_schema(path)[0]
        import pyarrow.parquet as pq

        with stores.open_for_arrow(path) as file:
            return pq.read_schema(file)


def _refuse_other_forms(path: str) -> None:
    """Refuse a CSV file in UTF-16 or without commas, which Arrow would take for a column with an odd name."""
    with stores.open_file(path) as file:
        start = file.read(_SNIFFED)
    if start[:2] in (b"\xff\xfe", b"\xfe\xff"):
        raise DataError(f"{path}: in UTF-16: save it in UTF-8")
    first = start.removeprefix(codecs.BOM_UTF8).lstrip(b"\r\n").partition(b"\n")[0]
    for separator, name in ((b";", "semicolons"), (b"\t", "tabs")):
        if separator in first and b"," not in first:
            shown = first.decode(errors="replace").strip()[:_SHOWN].replace("\t", "\\t")
            raise DataError(f"{path}: its first line has {name} ({shown}): columns are separated by commas")


def _empty_lines(path: str) -> tuple[int, int]:
    """Return how many empty lines a CSV file begins with, and how many follow its last line."""
    with stores.open_file(path) as file:
        start = file.read(_SNIFFED).removeprefix(codecs.BOM_UTF8)
    end = _end(path)
    before, after = start[: -len(start.lstrip(b"\r\n"))], end[len(end.rstrip(b"\r\n")) :]
    return len(before.splitlines()), max(len(after.splitlines()) - 1, 0)


def _end(path: str) -> bytes:
    """Return the last bytes of a file."""
    with stores.open_file(path) as file:
        file.seek(max(stores.size(path) - _SNIFFED, 0))
        return file.read()


def _without_last(batches: Iterator[Any], count: int) -> Iterator[Any]:
    """Yield batches of rows without the last rows."""
    waiting: list[Any] = []
    for batch in batches:
        waiting.append(batch)
        while sum(map(len, waiting[1:])) >= count:
            yield waiting.pop(0)
    left = sum(map(len, waiting)) - count
    for batch in waiting:
        yield batch.slice(0, max(left, 0))
        left -= len(batch)


def _csv_schema(path: str) -> tuple[Any, int]:
    """Return the names and types in a CSV file's first block, and the bytes of a block that its first lines need."""
    import pyarrow as pa
    from pyarrow import csv

    size = _CSV_BLOCK
    while True:
        try:
            with (
                stores.open_for_arrow(path) as file,
                csv.open_csv(file, csv.ReadOptions(block_size=size), _parse_options()) as reader,
            ):
                return reader.schema, size
        except pa.ArrowInvalid as error:
            size = _larger(path, size, error)


def _parse_options(**options: Any) -> Any:
    """Return how rows of CSV are found: a cell in quotation marks may hold line feeds."""
    from pyarrow import csv

    return csv.ParseOptions(newlines_in_values=True, **options)


def _csv_batches(path: str, size: int, skipped: int = 0, **options: Any) -> Iterator[Any]:
    """Read batches of rows behind some lines of a CSV file, by larger blocks from where a line is longer than one."""
    import pyarrow as pa
    from pyarrow import csv

    done = 0
    while True:
        count = 0
        try:
            with (
                stores.open_for_arrow(path) as file,
                csv.open_csv(file, csv.ReadOptions(block_size=size, skip_rows=skipped), **options) as reader,
            ):
                for batch in reader:
                    count += len(batch)
                    if count > done:  # the rows before were read by smaller blocks
                        fresh = batch.slice(max(len(batch) - (count - done), 0))
                        done = count
                        yield fresh
            return
        except pa.ArrowInvalid as error:
            size = _larger(path, size, error)


def _larger(path: str, size: int, error: Exception) -> int:
    """Return the bytes of a larger block if a line was longer than a block, else raise the error again."""
    too_long = "straddles two block" in str(error) or "block: cannot infer" in str(error)
    if not too_long or size >= stores.size(path):
        raise error
    if size >= _LONGEST:
        raise DataError(
            f"{path}: has a row of more than {_LONGEST >> 20} MiB, or a quotation mark that is not closed: rows end"
            " with a line feed, and those as long as this are given as Parquet or .npy"
        )
    return 4 * size


def _batches(path: str, columns: Sequence[str], *, numeric: bool) -> Iterator[Any]:
    """Read batches of rows that have at least these columns."""
    with reading(path, "table"):
        if not path.lower().endswith(".csv"):
            import pyarrow.parquet as pq

            with stores.open_for_arrow(path) as file:
                yield from pq.ParquetFile(file).iter_batches(_BLOCK, columns=list(columns))
            return
        import pyarrow as pa
        from pyarrow import csv

        # A whole column has one type, which the first block does not always show.
        kinds = {name: pa.float64() if numeric else pa.string() for name in columns}
        schema, size = _csv_schema(path)
        if numeric:
            for name in columns:
                kind = schema.field(name).type
                if not _is_number(kind):
                    raise DataError(_not_a_number(path, name, str(kind)))
                if pa.types.is_boolean(kind):
                    kinds[name] = kind
        # The last column is read too, as bytes if nobody asked for it: it shows a quotation mark that is not closed.
        kinds = {schema.names[-1]: pa.binary(), **kinds}
        convert = csv.ConvertOptions(column_types=kinds, include_columns=list(kinds))
        # In a table of one column an empty line is a missing value, and not one line less, unless it is at an end.
        alone = len(schema.names) == 1
        before, after = _empty_lines(path) if alone else (0, 0)
        parse = _parse_options(ignore_empty_lines=not alone)
        found = _csv_batches(path, size, before, parse_options=parse, convert_options=convert)
        try:
            yield from _closed(path, _without_last(found, after) if after else found, list(columns), schema.names[-1])
        except pa.ArrowInvalid as error:
            raise _named(path, schema.names, error) from None


def _closed(path: str, batches: Iterator[Any], columns: Sequence[str], end: str) -> Iterator[Any]:
    """Yield these columns of batches of all of a file's rows, and refuse a quotation mark that is never closed.

    `end` is the last column, which the batches have too.
    All that follows such a mark is one cell, the last of the last row, and rows would be missing without a word.
    """
    last: Any = None
    for batch in batches:
        if len(batch):
            last = batch.column(end)[-1].as_py()
        yield batch.select(columns)
    text = last.encode() if isinstance(last, str) else last
    if isinstance(text, bytes) and b"\n" in text.rstrip() and not _end(path).rstrip().endswith(b'"'):
        raise DataError(
            f"{path}: a quotation mark in its last column is not closed, so that {text.rstrip().count(10):,} lines"
            " behind it are one cell: close it, or leave the marks out"
        )


def _named(path: str, names: Sequence[str], error: Exception) -> Exception:
    """Return the error with the name of the column, if it is about a value behind the block that shows the types."""
    pattern = r"In CSV column #(\d+):.* CSV conversion error to (double|bool): invalid value '(.*)'"
    found = re.search(pattern, str(error), re.DOTALL)
    if found is None:
        return error
    column, kind, value = found.groups()
    text = repr(value if len(value) <= _SHOWN else value[:_SHOWN] + "...")
    return DataError(_not_a_number(path, names[int(column)], text if kind == "double" else f"booleans and {text}"))


def _not_a_number(path: Path | str, name: str, kind: str) -> str:
    return (
        f"{path}: column {name!r} holds {kind}, and features are numbers: encode it first, for example as one column of"
        " 0 and 1 for each category (pandas.get_dummies), or leave it out; one that names groups is given to"
        " `negvae train` by --groups"
    )


def _is_number(kind: Any) -> bool:
    import pyarrow as pa

    return bool(
        pa.types.is_integer(kind)
        or pa.types.is_floating(kind)
        or pa.types.is_boolean(kind)
        or pa.types.is_decimal(kind)
        or pa.types.is_null(kind)  # a column of missing values alone
    )


def _has_images(path: str) -> bool:
    """Return whether a Parquet file has a column of encoded images."""
    import pyarrow as pa

    schema = _schema(path)
    found = [field for field in schema if may_be_images(field.type)]
    certain = any(field.name in IMAGE_COLUMNS or pa.types.is_struct(field.type) for field in found)
    numbers = any(_is_number(field.type) and field.name not in LABEL_COLUMNS for field in schema)
    if not found or certain or not numbers:
        return bool(found)
    return any(_are_images(path, field.name) for field in found)


def _are_images(path: str, column: str) -> bool:
    """Return whether Pillow knows the first bytes in a column of a Parquet file as those of an image."""
    import pyarrow.parquet as pq
    from PIL import Image

    with reading(path, "table"), stores.open_for_arrow(path) as file:
        batches = pq.ParquetFile(file).iter_batches(_FIRST, columns=[column])
        first = next((value for batch in batches for value in batch.column(0).to_pylist() if value), None)
    if first is None:
        return False
    try:
        with Image.open(io.BytesIO(first)):
            return True
    except Exception:  # Pillow has many for what is no image
        return False
