"""Read rows of features from files: N x D numbers in an .npy or .npz file, or the columns of a CSV or Parquet file."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from negvae.data import tables
from negvae.data.catalog import Split
from negvae.data.formats import DataError, Npy, Npz, Reader
from negvae.data.formats.base import check_limit, need_memory
from negvae.data.load import reader_of
from negvae.files import home

_ENDINGS = (".npy", ".npz")

DROWNING = 1e5
"""How many times the width of its middle 90% a column's farthest value lies out that leaves few digits to the rest."""


def holds_rows(path: Path | str) -> bool:
    """Return whether a path is a file of rows of features; any other path or name stands for images.

    Files of rows are .npy and .npz files with N x D numbers, CSV files, and Parquet files without images.

    Args:
        path: path of a file or folder, or the name of a set.

    Returns:
        True for a file of rows of features.

    Raises:
        ValueError: if the file is damaged.
    """
    path = home(path)
    if tables.is_table(path):
        return True
    return path.suffix.lower() in _ENDINGS and path.is_file() and len(_reader(path).probe().shape or ()) == 1


def feature_columns(
    path: Path | str, without: str | None = None, known: Sequence[str] | None = None
) -> tuple[str, ...] | None:
    """Return the names of the columns of features to read from a file.

    Args:
        path: path of a file of rows of features.
        without: name of a column that is no feature, such as one that names groups; None if there is none.
        known: names of the columns of the model that they are for (see `columns_to_read`); None for all of the file.

    Returns:
        The names, in order; None if the file's columns have no names.

    Raises:
        ValueError: if the file is damaged, or has no column `without`.
    """
    if not tables.is_table(path):
        return None
    if without is not None:
        tables.check_columns(path, [without])
    return tables.columns_to_read(path, known or (), without)


def load_rows(
    path: Path | str, limit: int | None = None, columns: Sequence[str] | None = None, split: Split = "train"
) -> NDArray[np.float64]:
    """Read the rows of features of a file.

    Args:
        path: path of an .npy file, of an .npz file with the rows under images, x, X, data, arr_0 or its only key, or
            of a CSV or Parquet file.
        limit: maximum number of rows; the first ones are read. None for all.
        columns: names of the columns of a CSV or Parquet file to read, in the order of the result; None for all.
        split: split to read of an .npz file that has x_train and x_test.

    Returns:
        Rows of features, float64, N x D.

    Raises:
        ValueError: if the file is damaged, or holds anything but N x D finite numbers.
    """
    check_limit(limit)
    if tables.is_table(path):
        names = tables.column_names(path) if columns is None else tuple(columns)
        parts, count = [np.zeros((0, len(names)))], 0
        with closing(tables.numbers(path, names)) as blocks_of_rows:
            for block_of_rows in blocks_of_rows:
                if limit is not None and count >= limit:
                    break
                parts.append(block_of_rows)
                count += len(block_of_rows)
                need_memory((2 * count, len(names)), path, 8)
        return finite_rows(np.concatenate(parts)[:limit], str(path), names)
    return _finite_rows_of(_reader(Path(path), split), str(path), limit)


def npz_rows(path: Path | str, split: Split) -> NDArray[np.float64] | None:
    """Read the rows of features of an .npz file, if that is what it holds.

    Args:
        path: path of the file, with rows under x_train and x_test, or as `load_rows` finds them.
        split: split to read if the file has both.

    Returns:
        Rows of features, float64, N x D; None if the file holds images.

    Raises:
        ValueError: if the file is damaged, or holds N x D values that are not finite numbers.
    """
    reader = reader_of(path, split)[0]
    return _finite_rows_of(reader, str(path)) if len(reader.probe().shape or ()) == 1 else None


def _finite_rows_of(reader: Reader, where: str, limit: int | None = None) -> NDArray[np.float64]:
    blocks = [np.asarray(block.rows) for block in reader.rows(0, limit)]
    rows = np.concatenate(blocks) if blocks else np.zeros((0, *(reader.probe().shape or ())))
    return finite_rows(rows, where)


def feature_table(path: Path | str, columns: Sequence[str] | None = None) -> Any:
    """Read the rows of features of a CSV or Parquet file with the names of their columns.

    Args:
        path: path of the file.
        columns: names of the columns to read, in order; None for all.

    Returns:
        A `pyarrow.Table` of float64 columns.

    Raises:
        ValueError: if the file is damaged, a column is missing, or a value is not a finite number.
    """
    import pyarrow as pa

    names = tables.column_names(path) if columns is None else tuple(columns)
    rows = load_rows(path, columns=names)
    return pa.table({name: rows[:, index] for index, name in enumerate(names)})


def finite_rows(rows: NDArray[np.generic], where: str, columns: Sequence[str] | None = None) -> NDArray[np.float64]:
    """Return rows as float64 if they are N x D finite numbers.

    Args:
        rows: array of any type and shape.
        where: name of the array in error messages.
        columns: names of the columns in error messages; None for their numbers.

    Returns:
        The same numbers, float64, N x D.

    Raises:
        ValueError: if the array holds text or objects, is not N x D with D at least 1, or has a value that is not
            finite.

    >>> finite_rows(np.array([[1, 2]]), "rows")
    array([[1., 2.]])
    """
    if rows.ndim != 2 or rows.shape[1] < 1:
        raise DataError(f"{where}: rows of features are N x D numbers, these are {' x '.join(map(str, rows.shape))}")
    if rows.dtype.kind == "c":
        raise DataError(f"{where}: holds complex numbers: give their real and imaginary parts as columns of their own")
    if rows.dtype.kind not in "fiub":
        raise DataError(
            f"{where}: holds {rows.dtype}, and rows of features are numbers: encode categories first, for example one"
            " column of 0 and 1 for each (sklearn.preprocessing.OneHotEncoder)"
        )
    numbers = rows.astype(np.float64)
    wrong = ~np.isfinite(numbers)
    if wrong.any():
        row, column = np.argwhere(wrong)[0]
        name = str(column) if columns is None else repr(columns[column])
        raise DataError(
            f"{where}: row {row}, column {name} is {numbers[row, column]} (of {wrong.any(1).sum():,} rows with such"
            " values): fill in missing values first (sklearn.impute.SimpleImputer), or leave the rows out"
        )
    return numbers


def _reader(path: Path, split: Split = "train") -> Reader:
    return Npy(path) if path.suffix.lower() == ".npy" else Npz(path, split)


def describe_drowned(rows: NDArray[np.float64], columns: Sequence[Any] | None = None) -> str:
    """Say which column holds a value so far out that standardization leaves few digits to the other values.

    Args:
        rows: training rows, N x D.
        columns: names of the columns; None for their numbers.

    Returns:
        A line for people; "" if there is no such column.

    >>> describe_drowned(np.array([[0.1 * n] for n in range(99)] + [[1e12]])).partition(":")[0]
    'column 0 holds 1e+12, and 90% of its values lie from 0.495 to 9.405'
    """
    low, middle, high = np.quantile(rows, (0.05, 0.5, 0.95), axis=0)
    with np.errstate(over="ignore"):
        far = np.abs(rows / 2 - middle / 2).max(0) > DROWNING / 2 * (high - low)
    drowned = np.flatnonzero(far & (high > low))
    if not drowned.size:
        return ""
    first = drowned[0]
    value = rows[np.argmax(np.abs(rows[:, first] / 2 - middle[first] / 2)), first]
    name = str(first) if columns is None else repr(str(columns[first]))
    usual = f"from {low[first]:.4g} to {high[first]:.4g}"
    others = f" (and {len(drowned) - 1:,} more such columns)" if len(drowned) > 1 else ""
    return (
        f"column {name} holds {value:.4g}, and 90% of its values lie {usual}{others}:"
        " beside such a value the others look alike, and little is found; replace it, or leave its row out"
    )
