"""Rows of features from files: N x D numbers in an .npy or .npz file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from negvae.data.formats import DataError, Npy, Npz, Reader

_ENDINGS = (".npy", ".npz")


def holds_rows(path: Path | str) -> bool:
    """Whether a path is an .npy or .npz file of rows of features; other paths, and names, are of images.

    Raises:
        ValueError: the file is damaged.
    """
    path = Path(path)
    return path.suffix.lower() in _ENDINGS and path.is_file() and len(_reader(path).probe().shape or ()) == 1


def load_rows(path: Path | str, limit: int | None = None) -> NDArray[np.float64]:
    """The rows of a file (N x D).

    Args:
        path: of an .npy file, or of an .npz file with the rows under images, x, X, data, arr_0 or its only key.
        limit: keep only the first so many.

    Raises:
        ValueError: the file is damaged, or holds something else than finite numbers.
    """
    blocks = list(_reader(Path(path)).rows(0, limit))
    rows = np.concatenate([np.asarray(block.rows) for block in blocks]) if blocks else np.zeros((0, 0))
    return finite_rows(rows, str(path))


def finite_rows(rows: NDArray[np.generic], where: str) -> NDArray[np.float64]:
    """Rows as float64, if they are N x D finite numbers.

    Args:
        rows: an array of any kind.
        where: what to call it in a message.

    Raises:
        ValueError: they are text or objects, have no columns, or a value is missing.
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
