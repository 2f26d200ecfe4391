"""Groups of rows in every form that callers give them (texts, folders, a column's name), and warnings of small ones."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from negvae.data import Split
from negvae.data.rows import feature_columns, feature_table
from negvae.data.tables import ENDINGS, texts
from negvae.detector.inputs import warn_caller
from negvae.runs.groups import inlier_groups
from negvae.scoring.calibration import Calibration
from negvae.scoring.groups import FOLDERS, describe_absent

PYTHON_TABLES = "a data frame, a pyarrow table, or the path of a CSV or Parquet file"


def with_groups(
    X: Any, groups: Any, split: Split = "test", columns: Sequence[str] | None = None
) -> tuple[Any, list[str] | None]:
    """Return data without the column that names groups, and the group of each row.

    Args:
        X: data, in any form that `negvae.NegVAEDetector` takes.
        groups: N texts; or "folders" if X is the path of a folder with a subfolder for each group; or the name of a
            column of X, if X is a data frame or the path of a CSV or Parquet file. None means no groups.
        split: split that is read of a folder with a train and a test part.
        columns: names of the columns of features to read from a CSV or Parquet file; None for all others.

    Returns:
        X, without the column if X is a data frame or the path of a table, and N texts; None if there are no groups.

    Raises:
        ValueError: if X has no such folders or column.

    >>> with_groups([[0.0], [1.0]], ["a", "b"])
    ([[0.0], [1.0]], ['a', 'b'])
    """
    if groups is None:
        return X, None
    if not isinstance(groups, str):
        return X, [_text(name) for name in np.asarray(groups, dtype=object).reshape(-1)]
    if isinstance(X, str | Path):
        if groups == FOLDERS:
            return X, inlier_groups(str(X), groups, split)
        if str(X).lower().endswith(ENDINGS):
            names = feature_columns(X, groups, columns)
            return X if names is None else feature_table(X, names), texts(X, groups)
    elif groups in (columns := list(getattr(X, "column_names", getattr(X, "columns", ())))):
        return _without(X, groups), [_text(value) for value in _values(X, groups)]
    elif columns:
        raise ValueError(f"groups {groups}: X has no such column; its columns are {', '.join(map(str, columns[:8]))}")
    raise ValueError(f"groups {groups!r} is the name of a column, which X must have: {PYTHON_TABLES}")


def labels_of_held_out(labels: Sequence[str], held_out: Sequence[int]) -> list[str]:
    """Return the groups of the inliers that are held out, and warn of groups of which none is."""
    chosen = [labels[row] for row in held_out]
    if text := describe_absent(labels, chosen):
        warn_caller(text)
    return chosen


def warn_of_small_groups(calibration: Calibration) -> None:
    """Warn of groups with too few held-out inliers for the rate."""
    if calibration.small:
        warn_caller(
            f"too few held-out inliers for the rate in {len(calibration.small)} of {len(calibration.thresholds)} groups"
            f" ({', '.join(calibration.small)}): their thresholds lie above all of them; give more data of theirs"
        )


def _values(table: Any, column: str) -> list[Any]:
    values = table[column]
    return list(values.to_pylist() if hasattr(values, "to_pylist") else values)


def _without(table: Any, column: str) -> Any:
    if hasattr(table, "iloc"):  # pandas
        return table.drop(columns=[column])
    return table.drop_columns([column]) if hasattr(table, "drop_columns") else table.drop([column])


def _text(value: Any) -> str:
    """Return the text of a cell; "" for a missing value.

    >>> _text(None), _text(float("nan")), _text(3)
    ('', '', '3')
    """
    try:
        missing = value is None or bool(value != value)
    except TypeError:  # NA of pandas, which has no truth value
        missing = True
    if missing:
        return ""
    # A column of whole numbers with a missing value holds floats in pandas; `texts` reads files alike.
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)
