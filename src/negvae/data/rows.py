"""Read rows of features from files: N x D numbers in an .npy or .npz file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from negvae.data.formats import DataError, Npy, Npz, Reader

_ENDINGS = (".npy", ".npz")


def holds_rows(path: Path | str) -> bool:
    """Return whether a path is an .npy or .npz file of rows of features; any other path or name stands for images.

    Args:
        path: path of a file or folder, or the name of a set.

    Returns:
        True for a file of rows of features.

    Raises:
        ValueError: if the file is damaged.
    """
    path = Path(path)
    return path.suffix.lower() in _ENDINGS and path.is_file() and len(_reader(path).probe().shape or ()) == 1


def load_rows(path: Path | str, limit: int | None = None) -> NDArray[np.float64]:
    """Read the rows of features of a file.

    Args:
        path: path of an .npy file, or of an .npz file with the rows under images, x, X, data, arr_0 or its only key.
        limit: maximum number of rows; the first ones are read. None for all.

    Returns:
        Rows of features, float64, N x D.

    Raises:
        ValueError: if the file is damaged, or holds anything but N x D finite numbers.
    """
    blocks = list(_reader(Path(path)).rows(0, limit))
    rows = np.concatenate([np.asarray(block.rows) for block in blocks]) if blocks else np.zeros((0, 0))
    return finite_rows(rows, str(path))


def finite_rows(rows: NDArray[np.generic], where: str) -> NDArray[np.float64]:
    """Return rows as float64 if they are N x D finite numbers.

    Args:
        rows: array of any type and shape.
        where: name of the array in error messages.

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
    if rows.dtype.kind not in "fiub":
        raise DataError(
            f"{where}: holds {rows.dtype}, and rows of features are numbers: encode categories first, for example one"
            " column of 0 and 1 for each (sklearn.preprocessing.OneHotEncoder)"
        )
    numbers = rows.astype(np.float64)
    wrong = ~np.isfinite(numbers)
    if wrong.any():
        row, column = np.argwhere(wrong)[0]
        raise DataError(
            f"{where}: row {row}, column {column} is {numbers[row, column]} (of {wrong.any(1).sum():,} rows with such"
            " values): fill in missing values first (sklearn.impute.SimpleImputer), or leave the rows out"
        )
    return numbers


def _reader(path: Path) -> Reader:
    return Npy(path) if path.suffix.lower() == ".npy" else Npz(path)
