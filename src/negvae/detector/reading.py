"""Data in any form that a `negvae.NegVAEDetector` takes, as the inputs of its model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.utils.validation import validate_data
from torch import Tensor

from negvae.config import RunConfig
from negvae.data import Split
from negvae.data.batches import InputSpec, fitted
from negvae.data.formats import as_images
from negvae.detector.columns import column_names, explain, other_columns, refuse_kinds
from negvae.detector.inputs import as_array, single_image
from negvae.detector.photos import read_any
from negvae.model import VAE


class Reading:
    """How a detector reads data, and the names of the columns that it was fitted to.

    Attributes:
        model_: the trained model.
        config_: the configuration that it was trained with.
        n_features_in_: number of values in one row or image.
    """

    model_: VAE
    config_: RunConfig
    n_features_in_: int

    def _inputs(self, X: Any) -> tuple[Tensor, NDArray[np.int64] | None]:
        """Return the model's inputs, and, of a detector of photos, the image that each belongs to."""
        decoding = self.config_.images
        if decoding is None:
            return self._read(X, "test", fitting=False)[1], None
        return read_any(X, "test", decoding)

    def _read(self, X: Any, split: Split, *, fitting: bool, shape: Sequence[int] | None = None) -> tuple[str, Tensor]:
        """Return the name of X, and X as it is stored: uint8 N x C x H x W, or float64 N x D x 1 x 1.

        Args:
            X: data in any form that `NegVAEDetector` describes.
            split: split to read of a named data set.
            fitting: whether the data sets the shape that later data must have.
            shape: expected shape, C x H x W; None uses the model's.

        Returns:
            The name of the data and the stored data.
        """
        X, name = as_array(X, split, None if fitting else self._names_in_files())
        if not fitting and shape is None:
            X = single_image(X, self.model_.shape)
        dimensions = np.ndim(X) if isinstance(X, list | tuple) else getattr(X, "ndim", 2)
        if dimensions in (3, 4):
            return name, self._images(np.asarray(X), fitting, shape)
        expected = tuple(shape or ()) if fitting or shape is not None else self.model_.shape
        if expected and expected[1:] != (1, 1):
            raise ValueError(
                f"{_subject(shape)} {dimensions} dimensions, this detector takes images of"
                f" {'x'.join(map(str, expected))} (C x H x W)"
            )
        rows = self._rows(X, fitting, None if shape is None else expected[0])
        return name, _copied(rows).reshape(*rows.shape, 1, 1)

    def _rows(self, X: Any, fitting: bool, columns: int | None) -> NDArray[np.float64]:
        """Return rows of features as numbers, N x D; with `columns`, D is that and names are of no account."""
        refuse_kinds(X)
        try:
            if columns is None:
                # The check for infinities sums all numbers up, which may overflow.
                found = column_names(X)
                self._keep_order(found, fitting)
                if not fitting and self._names() is None and list(map(str, found or ())) == self._names_in_files():
                    X = np.asarray(X, np.float64)  # numbers that a file has as names, of which scikit-learn would warn
                with np.errstate(over="ignore", invalid="ignore"):
                    rows: NDArray[np.float64] = validate_data(
                        self, X, reset=fitting, dtype=np.float64, ensure_min_samples=3 if fitting else 1
                    )
                return rows
            # Negatives and held-out inliers, which scikit-learn must not take for rows to predict.
            known, names = self._names(), column_names(X)
            if None not in (known, names) and known != list(map(str, names or ())):
                raise ValueError(other_columns(known or [], names or [], "the negatives or held-out inliers"))
            self._keep_order(names, False, "the negatives or held-out inliers")
            rows = np.asarray(X, np.float64)
        except (ValueError, TypeError, OverflowError) as error:
            known, names = self._names(), column_names(X)
            if names is None and isinstance(error, TypeError):  # of objects that are no numbers; says so itself
                raise
            if fitting or columns is not None or None in (known, names) or known == list(map(str, names or ())):
                explain(X)
            raise
        if rows.ndim != 2 or rows.shape[1] != columns or not np.isfinite(rows).all():
            explain(X)
            raise ValueError(f"negatives and held-out inliers must be finite numbers, N x {columns}, as X is")
        return rows

    def _images(self, array: NDArray[Any], fitting: bool, shape: Sequence[int] | None) -> Tensor:
        images = as_images(array, "X").images
        expected = tuple(shape or ()) if fitting or shape is not None else self.model_.shape
        if expected and images.shape[2:] == expected[1:] and {images.shape[1], expected[0]} == {1, 3}:
            images = fitted(images, InputSpec((expected[0], expected[1], expected[2])))  # as `negvae score` does
        if expected and images.shape[1:] != expected:
            given, wanted = ("x".join(map(str, s)) for s in (images.shape[1:], expected))
            raise ValueError(f"{_subject(shape)} images of {given}, this detector takes {wanted} (C x H x W)")
        if fitting and len(images) < 3:
            raise ValueError(f"X has {len(images)} sample(s): a detector needs 3 images at least")
        # A copy of its own: the caller's array may be read-only, or change.
        return _copied(images)

    def _keep_order(self, names: list[Any] | None, fitting: bool, what: str = "X") -> None:
        """Refuse columns in another order if those of the fit had numbers for names, which scikit-learn ignores."""
        if fitting:
            self._columns = names
        known = getattr(self, "_columns", None)
        if known is None or names is None or hasattr(self, "feature_names_in_"):
            return
        before, now = list(map(str, known)), list(map(str, names))  # a file has them as text
        if before != now and sorted(before) == sorted(now):
            raise ValueError(other_columns(known, names, what))

    def _names(self) -> list[str] | None:
        """Return the names of the columns of features; None if they have none."""
        names = getattr(self, "feature_names_in_", None)
        return None if names is None else list(map(str, names))

    def _names_in_files(self) -> list[str] | None:
        """Return the names by which columns are found in a file, which has numbers as text; None if they have none."""
        numbered = getattr(self, "_columns", None)
        return self._names() or (None if numbered is None else list(map(str, numbered)))

    def _column_names(self) -> list[str]:
        names = getattr(self, "feature_names_in_", [f"x{index}" for index in range(self.n_features_in_)])
        return [f"column {name}" for name in names]


def _copied(array: NDArray[Any]) -> Tensor:
    """Return a copy of an array; a view may run backwards, which torch does not take."""
    return torch.from_numpy(np.array(array, order="C"))


def _subject(shape: Sequence[int] | None) -> str:
    """Return the beginning of a message on data: X, or, where a shape is given, what has to be like X."""
    return "X has" if shape is None else "the negatives or held-out inliers have"
