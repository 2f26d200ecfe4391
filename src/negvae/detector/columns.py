"""Say which column of rows of features cannot be used, and why, in one line."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import zip_longest
from typing import Any

import numpy as np
from numpy.typing import NDArray

from negvae.data.formats import DataError

_NO_NUMBERS = ("date", "time", "duration", "period", "interval", "complex", "categor", "dictionary", "enum")
"""How the names of types begin that NumPy would make real numbers of."""


def column_names(X: Any) -> list[Any] | None:
    """Return the names of the columns of a data frame of pandas, polars or pyarrow; None for anything else."""
    names = getattr(X, "column_names", None) if hasattr(X, "schema") else None
    names = getattr(X, "columns", None) if names is None else names
    return None if names is None or callable(names) or len(np.shape(X)) != 2 else list(names)


def take_names(estimator: Any, fitted: Any) -> None:
    """Give an estimator the names of the columns of the detector that it has fitted, or none if that has none.

    Args:
        estimator: estimator whose `feature_names_in_` is set or removed.
        fitted: the fitted detector.
    """
    vars(estimator).pop("feature_names_in_", None)  # of an earlier fit
    if hasattr(fitted, "feature_names_in_"):
        estimator.feature_names_in_ = fitted.feature_names_in_


def taken(data: Any, rows: NDArray[np.int64]) -> Any:
    """Return some rows of data, which keeps the names of its columns.

    Args:
        data: N rows or images, as an array or a data frame of pandas, polars or pyarrow.
        rows: their numbers, in the wanted order.

    Returns:
        The rows, in the type of `data`.
    """
    if hasattr(data, "iloc"):  # pandas
        return data.iloc[rows]
    return data.take(rows) if hasattr(data, "column_names") else data[rows]


def refuse_kinds(X: Any) -> None:
    """Refuse dates, spans of time, categories and complex numbers, which NumPy would make real numbers of.

    Args:
        X: rows of features, N x D, as an array, a list of rows or a data frame.

    Raises:
        ValueError: if a column holds such values; the message names it.
    """
    names = column_names(X)
    if names is None:
        kind = getattr(getattr(X, "dtype", None), "kind", "")
        if kind in ("m", "M"):
            raise DataError(_no_number("0", str(X.dtype)))
        if kind == "c":  # in scikit-learn's words
            raise DataError(f"Complex data not supported: X holds {X.dtype}, and features are real numbers")
        return
    types = getattr(X, "dtypes", None)
    types = X.schema.types if types is None else types  # of pyarrow
    for name, kind in zip(names, list(types), strict=True):
        if str(kind).lower().startswith(_NO_NUMBERS):
            raise DataError(_no_number(repr(name), str(kind)))


def other_columns(known: Sequence[Any], names: Sequence[Any], what: str) -> str:
    """Describe the first place at which the columns of other data are not those of the inliers.

    >>> other_columns(["width", "height"], ["height", "width"], "the negatives")
    "column 0 of the negatives is 'height', of the inliers 'width': give the same columns in the same order"
    """
    pairs = enumerate(zip_longest(map(str, known), map(str, names)))
    where, wanted, found = next((i, *map(_quoted, pair)) for i, pair in pairs if pair[0] != pair[1])
    return f"column {where} of {what} is {found}, of the inliers {wanted}: give the same columns in the same order"


def _quoted(name: str | None) -> str:
    return "missing" if name is None else repr(name)


def explain(X: Any) -> None:
    """Raise an error that names the first column that cannot be used, if there is one.

    Args:
        X: rows of features, N x D, as an array, a list of rows or a data frame.

    Raises:
        ValueError: if a column holds anything but finite numbers; the message names it.
    """
    for name, column in _columns(X):
        values = _numbers(name, column)
        wrong = ~np.isfinite(values)
        if wrong.any():
            row = int(np.argmax(wrong))
            value = "NaN" if np.isnan(values[row]) else values[row]
            raise DataError(
                f"X: row {row}, column {name} is {value} (of {wrong.sum():,} rows with such values in this column):"
                " fill in missing values first (sklearn.impute.SimpleImputer), or leave the rows out"
            )


def frame_numbers(X: Any) -> NDArray[np.float64]:
    """Return the numbers of a data frame, whose columns may be of several types; a missing one is NaN.

    Args:
        X: data frame of pandas, polars or pyarrow.

    Returns:
        N x D numbers.

    Raises:
        ValueError: if a column holds anything but numbers; the message names it.
    """
    return np.column_stack([_numbers(name, column) for name, column in _columns(X)])


def _columns(X: Any) -> Iterator[tuple[str, Any]]:
    """Yield the columns of rows of features with their names for messages; none of what is not N x D."""
    names = column_names(X)
    if names is None:
        array = np.asarray(X)
        for index in range(array.shape[1] if array.ndim == 2 else 0):
            yield str(index), array[:, index]
        return
    for index, name in enumerate(names):
        if hasattr(X, "iloc"):  # pandas, in which two columns may have one name
            yield repr(name), X.iloc[:, index]
        else:
            yield repr(name), X.column(name) if hasattr(X, "column") else X[name]


def _numbers(name: str, column: Any) -> NDArray[np.float64]:
    """Return a column as numbers, or refuse it by its name."""
    try:
        return _as_numbers(column)
    except OverflowError:
        raise DataError(f"X: column {name} holds a number beyond 1.8e308: give it in a larger unit") from None
    except (TypeError, ValueError):
        raise DataError(_no_number(name, _kind(column))) from None


def _as_numbers(column: Any) -> NDArray[np.float64]:
    if hasattr(column, "iloc"):  # pandas, whose own missing values no other way converts
        column = column.astype(object).where(column.notna(), np.nan).to_numpy()
    array = np.asarray(column)
    if array.dtype.kind not in "fiubO" and not (array.dtype.kind in "US" and array.size):
        raise TypeError
    values: NDArray[np.float64] = array.astype(np.float64)
    return values


def _kind(column: Any) -> str:
    """Return the type of a column's values for a message."""
    kind = str(getattr(column, "dtype", None) or getattr(column, "type", "objects"))
    if kind.startswith(("<U", "|S")):
        return "text"
    if kind != "object":
        return kind
    return next((type(value).__name__ for value in np.asarray(column) if not isinstance(value, float)), kind)


def _no_number(name: str, kind: str) -> str:
    return (
        f"X: column {name} holds {kind}, and features are numbers: encode it first, for example as one column of 0 and"
        " 1 for each category (pandas.get_dummies), or leave it out"
    )
