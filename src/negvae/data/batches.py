"""Batches of rows in the form that a model takes, from encoded images and from arrays.

An image that cannot be used becomes a row with an error.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from negvae.data.catalog import Shape
from negvae.data.fit import fit_photo, prepared
from negvae.data.formats import MAX_PIXELS, DataError, Source, as_images, decode_image
from negvae.data.formats.base import reason
from negvae.data.formats.pixels import slack
from negvae.data.photos import read_photo
from negvae.data.tiling import Tiling, tiling
from negvae.decoding import Decoding
from negvae.messages import counted

Encoded = tuple[str, int, Source]
"""An image that is still to be decoded: its path, its row in that file, and its source."""
_NOT_SENT_FEATURES = "the model takes rows of features: send them as the content of an .npy file"


@dataclass(frozen=True)
class Batch:
    """Consecutive rows of a stream.

    Attributes:
        paths: file that each row was read from.
        indices: index of each row in its file, from 0; None for an error that concerns the whole file.
        errors: reason why each row cannot be scored; "" if it can.
        images: content of each row (images, uint8, N x C x H x W, or features, float64, N x D x 1 x 1); zeros for rows
            with an error. If images are tiled, the tiles of all rows, one row after the other.
        tilings: where the tiles of each row lie in its image; empty if images are not tiled. A row with an error has
            one tile.
    """

    paths: list[str]
    indices: list[int | None]
    errors: list[str]
    images: NDArray[Any]
    tilings: list[Tiling] = field(default_factory=list)

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(self.paths)

    def __getitem__(self, rows: slice) -> Batch:
        """Return a slice of the rows, which are consecutive."""
        if not self.tilings:
            return Batch(self.paths[rows], self.indices[rows], self.errors[rows], self.images[rows])
        start, stop, _ = rows.indices(len(self))
        low, high = (sum(map(len, self.tilings[:row])) for row in (start, max(start, stop)))
        return Batch(self.paths[rows], self.indices[rows], self.errors[rows], self.images[low:high], self.tilings[rows])

    def good(self) -> NDArray[np.int64]:
        """Return the numbers of the rows without an error."""
        return np.flatnonzero([not error for error in self.errors])

    def inputs(self, rows: NDArray[np.int64]) -> tuple[NDArray[Any], NDArray[np.int64] | None]:
        """Return the model's inputs of some rows, and, if images are tiled, the place among them of each tile's row.

        Args:
            rows: numbers of the rows, ascending.

        Returns:
            The images, tiles or features, and for tiles the index in `rows` of the row that each belongs to; else None.
        """
        if not self.tilings:
            return (self.images if len(rows) == len(self) else self.images[rows]), None
        owners = np.repeat(np.arange(len(self)), list(map(len, self.tilings)))
        wanted = np.isin(owners, rows)
        return self.images[wanted], np.searchsorted(rows, owners[wanted])


@dataclass(frozen=True)
class InputSpec:
    """The form that the rows of a stream must have.

    Attributes:
        shape: shape (C, H, W) of the images, or (D, 1, 1) of rows of features.
        features: whether the rows are rows of features and not images.
        resize: whether images of another size are resized (bilinear, antialiased, aspect ratio not kept); otherwise
            they become errors. In either case gray is repeated to RGB, and RGB becomes gray by the weights 0.299,
            0.587, 0.114.
        max_pixels: maximum number of pixels that an encoded image may declare; checked before it is decoded.
        columns: names of the columns of features in tables, in the model's order; empty if the model's columns have no
            names, and a table then must have as many columns as the model.
        decoding: how images are decoded and fitted, if the model was trained on a folder of photos; None if they must
            have its shape, or `resize` is used.
        upright: whether encoded images are turned as their EXIF orientation says, where there is no `decoding`, which
            says it itself.
    """

    shape: Shape
    features: bool = False
    resize: bool = False
    max_pixels: int = MAX_PIXELS
    columns: tuple[str, ...] = ()
    decoding: Decoding | None = None
    upright: bool = False

    @property
    def tiled(self) -> bool:
        """Whether images are cut into tiles."""
        return self.decoding is not None and self.decoding.tiled


def joined(parts: list[Batch]) -> Batch:
    """Return the rows of consecutive batches, at least one, as one batch."""
    parts = [part for part in parts if len(part)] or parts[:1]
    if len(parts) == 1:
        return parts[0]
    return Batch(
        [path for part in parts for path in part.paths],
        [index for part in parts for index in part.indices],
        [error for part in parts for error in part.errors],
        np.concatenate([part.images for part in parts]),
        [plan for part in parts for plan in part.tilings],
    )


def failed_row(path: str, index: int | None, error: object, spec: InputSpec, local: str | Path = "") -> Batch:
    """Return one row with an error.

    Args:
        path: file that the row stands for.
        index: index of the row in its file; None for an error that concerns the whole file.
        error: the error, or its text.
        spec: form of the rows.
        local: copy of the file on this machine; where the error names it, the row names the file.

    Returns:
        A batch of one row.
    """
    text = reason(error).replace(str(local), path) if local else reason(error)
    empty = np.zeros((1, *spec.shape), np.float64 if spec.features else np.uint8)
    named = " ".join(path.split())  # as `reason` has written a name with a line break
    said = text.removeprefix(f"{path}:").removeprefix(f"{named}:").strip()
    said = said or "it cannot be read"  # no text would mean that nothing is wrong
    return Batch([path], [index], [said], empty, _none(spec))


def _none(spec: InputSpec) -> list[Tiling]:
    """Return the tilings of a row with an error."""
    return [tiling(spec.shape[1:], spec.shape[1:], 0)] if spec.tiled else []


def decoded(chunk: list[Encoded], spec: InputSpec) -> Batch:
    """Decode encoded images into a batch; one that cannot be decoded becomes a row with an error."""
    if spec.decoding is not None:
        return joined([_photo(encoded, spec, spec.decoding) for encoded in chunk])
    images = np.zeros((len(chunk), *spec.shape), np.uint8)
    errors = [""] * len(chunk)
    for row, (path, _, source) in enumerate(chunk):
        try:
            pixels, _ = decode_image(source, path, spec.max_pixels, upright=spec.upright)
            images[row] = fitted(pixels.transpose(2, 0, 1)[None], spec)[0]
        except Exception as error:  # whatever a decoder makes of a broken file
            errors[row] = failed_row(path, None, error, spec).errors[0]
    return Batch([path for path, _, _ in chunk], [index for _, index, _ in chunk], errors, images)


def _photo(encoded: Encoded, spec: InputSpec, decoding: Decoding) -> Batch:
    """Return one photo as a batch of one row."""
    path, index, source = encoded
    try:
        inputs, plan = read_photo(source, path, decoding, spec.max_pixels)
    except Exception as error:  # whatever a decoder makes of a broken file
        return failed_row(path, index, error, spec)
    return Batch([path], [index], [""], inputs, [plan] if spec.tiled else [])


def fitted(images: NDArray[np.uint8], spec: InputSpec) -> NDArray[np.uint8]:
    """Convert images to the channels and the size that are required.

    Args:
        images: images, uint8, N x C x H x W; gray becomes three equal channels, and RGB becomes gray by its weights.
        spec: required form.

    Returns:
        The images in the required shape, uint8.

    Raises:
        ValueError: if the images have another size and `spec` does not resize, or their channels cannot be converted.
    """
    channels, height, width = spec.shape
    found = images.shape[1]
    if images.shape[2:] != (height, width) and not spec.resize:
        raise DataError(
            f"is {images.shape[3]} x {images.shape[2]}, the model takes {width} x {height} (width x height);"
            " ask for --resize"
        )
    if found != channels:
        if (found, channels) == (1, 3):
            images = np.repeat(images, 3, axis=1)
        elif (found, channels) == (3, 1):
            red, green, blue = images.astype(np.uint32).transpose(1, 0, 2, 3)
            images = ((19595 * red + 38470 * green + 7471 * blue + 0x8000) >> 16).astype(np.uint8)[:, None]
        else:
            raise DataError(f"has {counted(found, 'channel')}, the model takes {channels}")
    if images.shape[2:] != (height, width):
        resized = [
            [
                Image.fromarray(np.ascontiguousarray(plane)).resize((width, height), Image.Resampling.BILINEAR)
                for plane in image
            ]
            for image in images
        ]
        images = np.stack([np.stack([np.asarray(plane) for plane in image]) for image in resized])
    return images


def array_rows(path: str, part: NDArray[Any], spec: InputSpec, start: int) -> Batch:
    """Convert rows of an array.

    Args:
        path: file that the array is read from.
        part: consecutive rows of the array.
        spec: form that the rows must have.
        start: index of the first of them in the file.

    Returns:
        The rows, with errors for those whose values cannot be used.

    Raises:
        ValueError: if the array does not have the required form, whatever its values.
    """
    errors = [""] * len(part)
    images: NDArray[Any]
    if spec.features:
        images = _features(part, spec, errors, path)
    elif spec.decoding is None and part.dtype == np.uint8 and part.shape[1:] == spec.shape and len(part):
        images = part  # of any number of channels
    else:
        images = as_images(_unit_floats(part, errors), path).images
        if spec.decoding is not None:
            return _photos(path, images, errors, spec, spec.decoding, start)
        try:
            images = fitted(images, spec)
        except DataError as error:
            raise DataError(f"{path}: {error}") from None
    return Batch([path] * len(part), list(range(start, start + len(part))), errors, images)


def _photos(
    path: str, images: NDArray[np.uint8], errors: list[str], spec: InputSpec, decoding: Decoding, start: int
) -> Batch:
    """Fit the images of an array as photos are."""
    found = [fit_photo(prepared(image, path, decoding), decoding) for image in images]
    numbers: list[int | None] = list(range(start, start + len(images)))
    plans = [plan for _, plan in found] if spec.tiled else []
    return Batch([path] * len(images), numbers, errors, np.concatenate([inputs for inputs, _ in found]), plans)


def _features(part: NDArray[Any], spec: InputSpec, errors: list[str], path: str) -> NDArray[np.float64]:
    size = spec.shape[0]
    if part.shape[1:] != (size,) or part.dtype.kind not in "fiub":
        found = " x ".join(["N", *map(str, part.shape[1:])])
        raise DataError(f"{path}: holds {part.dtype} of {found}, the model takes N x {size} numbers")
    rows = part.astype(np.float64)
    for row in np.flatnonzero(~np.isfinite(rows).all(1)):
        errors[row], rows[row] = _not_finite(rows[row], spec.columns), 0
    return rows.reshape(-1, *spec.shape)


def _not_finite(row: NDArray[np.float64], columns: Sequence[str]) -> str:
    """Return what is wrong with a row that holds NaN or infinity; columns with names are named."""
    wrong = np.flatnonzero(~np.isfinite(row))[:3]
    where = f" in {', '.join(columns[index] for index in wrong)}" if columns else ""
    return f"holds NaN or infinity{where}"


def _unit_floats(part: NDArray[Any], errors: list[str]) -> NDArray[Any]:
    """Replace the rows of float images outside [0, 1] by zeros, and record an error for each."""
    if part.dtype.kind != "f":
        return part
    flat = part.reshape(len(part), -1)
    least = slack(part.dtype)
    wrong = np.flatnonzero(~((flat >= -least) & (flat <= 1 + least)).all(1))  # NaN compares false
    if len(wrong):
        part = part.copy()
        part[wrong] = 0
        for row in wrong:
            errors[row] = "float images must lie within [0, 1]"
    return part


def from_memory(path: str, content: bytes | NDArray[Any], spec: InputSpec) -> Batch:
    """Read one encoded image, or the rows of an array, as a file with this content is read.

    Args:
        path: name of the content in the rows and their errors.
        content: bytes of an encoded image, or an array of images or rows.
        spec: form that the rows must have.

    Returns:
        The rows; content that cannot be used becomes one row with an error.
    """
    if isinstance(content, bytes):
        if spec.features:
            return failed_row(path, None, _NOT_SENT_FEATURES, spec)
        return decoded([(path, 0, content)], spec)
    try:
        return array_rows(path, content, spec, 0)
    except Exception as error:  # whatever NumPy makes of an odd array
        return failed_row(path, None, error, spec)
