"""Photos of any size as the data of a detector: folders, paths of files, and images of Pillow."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from negvae.config import RunConfig
from negvae.data import Split
from negvae.data.fit import fit_photo, prepared
from negvae.data.folders import choose_decoding, look_at, read_photos
from negvae.data.formats import IMAGE_ENDINGS, DataError, Source, as_images
from negvae.data.load import image_files
from negvae.data.photos import read_photo
from negvae.data.tiling import Tiling
from negvae.decoding import Decoding
from negvae.detector.columns import column_names
from negvae.detector.inputs import as_array, warn_caller
from negvae.runs.division import held_out_rows
from negvae.runs.folders import FolderInliers, exact, folder_inliers, left_out

_IN_MEMORY = "images in memory"


@dataclass(frozen=True)
class Photos:
    """Encoded images.

    Attributes:
        name: name of the data in messages.
        sources: name of each image in messages, and the image.
        folder: whether they are the files of a folder, of which broken ones are left out.
    """

    name: str
    sources: list[tuple[str, Source]]
    folder: bool = False

    @property
    def files(self) -> list[str] | None:
        """The paths, if all images are files."""
        paths = [source for _, source in self.sources if isinstance(source, str)]
        return paths if len(paths) == len(self.sources) else None

    @property
    def array(self) -> NDArray[np.object_]:
        """The images as an array of paths and images of Pillow (N), which a detector takes too."""
        result = np.empty(len(self.sources), dtype=object)
        for place, (_, source) in enumerate(self.sources):  # NumPy would make pixels of images that it is given at once
            result[place] = source
        return result

    def part(self, chosen: NDArray[np.bool_]) -> Photos:
        """Return the images that a mask (N) chooses."""
        return replace(self, sources=[self.sources[place] for place in np.flatnonzero(chosen)])


def photos_of(data: Any, split: Split) -> Photos | None:
    """Return data as encoded images.

    Args:
        data: data in any form that a detector takes.
        split: split to list if the data is a folder with such parts.

    Returns:
        The images, in order; None if the data is something else.
    """
    if isinstance(data, str | Path):
        name = os.path.expanduser(data)
        if Path(name).is_file() and name.lower().endswith(IMAGE_ENDINGS):
            return Photos(name, [(name, name)])
        files = image_files(name, split)
        return None if not files else Photos(name, [(file, file) for file in files], folder=True)
    if isinstance(data, Image.Image):
        return Photos("an image", [("an image", data)])
    if isinstance(data, np.ndarray) and data.dtype.kind in "OU" and data.ndim == 1:
        data = data.tolist()
    if not isinstance(data, list | tuple) or not data:
        return None
    if not all(isinstance(item, str | Path | Image.Image) for item in data):
        return None
    sources: list[tuple[str, Source]] = [
        (f"item {place}", item) if isinstance(item, Image.Image) else (str(item), str(item))
        for place, item in enumerate(data)
    ]
    return Photos("a list", sources)


def decoding_of(photos: Photos) -> Decoding | None:
    """Choose how photos to train on are decoded.

    Args:
        photos: the photos.

    Returns:
        The description; None if they are taken as they are.

    Raises:
        ValueError: if images of a list are broken.
    """
    look = look_at(photos.sources, photos.name)
    if look.broken and not photos.folder:
        name, why = next(iter(look.broken.items()))
        raise DataError(f"{name}: {why}")
    return choose_decoding(look, None, None, photos.sources)


def readable(photos: Photos, decoding: Decoding) -> NDArray[np.bool_]:
    """Return which files of a folder can be decoded (N); of a list all, since a broken image in a list is an error.

    Args:
        photos: the photos.
        decoding: how they are decoded.

    Returns:
        The mask.

    Raises:
        ValueError: if too many files are broken.
    """
    if not photos.folder or photos.files is None:
        return np.ones(len(photos.sources), bool)
    broken = read_photos(photos.files, decoding, photos.name).broken
    return np.array([name not in broken for name, _ in photos.sources])


def without_broken(
    data: Any, decoding: Decoding | None, shape: tuple[int, int, int]
) -> tuple[Any, NDArray[np.bool_]] | None:
    """Leave the broken files of a folder out, of which a warning tells.

    Args:
        data: data in any form that `negvae.NegVAEDetector` takes.
        decoding: how images are decoded; None for images of the model's own size, of which others count as broken.
        shape: shape of the model's inputs, C x H x W.

    Returns:
        The other files, and a mask (N) of them; None if the data is no folder, or nothing in it is broken.

    Raises:
        ValueError: if too many files are broken.
    """
    photos = photos_of(data, "test")
    if photos is None or not photos.folder:
        return None
    channels, height, width = shape
    exact_size = Decoding(fit="exact", height=height, width=width, channels=channels)
    if (whole := readable(photos, decoding or exact_size)).all():
        return None
    warn_caller(f"{photos.name}: {left_out(len(whole) - int(whole.sum()))}")
    return photos.part(whole).array, whole


@dataclass(frozen=True)
class Divisible:
    """Inliers of which parts can be taken.

    Attributes:
        rows: N rows or images: a data frame as it is, photos as their paths or images of Pillow, and anything else as
            an array.
        decoding: how photos are decoded, whichever part is taken; None of anything else.
        whole: mask of what there was, in which broken files are false; None if nothing is left out.
    """

    rows: Any
    decoding: Decoding | None = None
    whole: NDArray[np.bool_] | None = None


def divisible(X: Any) -> Divisible:
    """Return inliers in a form of which parts can be taken.

    Args:
        X: data in any form that `negvae.NegVAEDetector` takes.

    Returns:
        The inliers, without the broken files of a folder, of which a warning tells.

    Raises:
        TypeError: if this has no rows, as a sparse matrix.
        ValueError: if it cannot be read.
    """
    photos = photos_of(X, "train")
    decoding = None if photos is None else decoding_of(photos)
    if photos is not None and decoding is None:
        try:
            return Divisible(as_array(X, "train")[0])
        except DataError:
            if not photos.folder:
                raise
            decoding = exact(photos.files or [], photos.name)  # all headers are in order, and some pixels are not
    if photos is not None and decoding is not None:
        whole = readable(photos, decoding)
        if not whole.all():
            warn_caller(f"{photos.name}: {left_out(len(whole) - int(whole.sum()))}")
        return Divisible(photos.part(whole).array, decoding, None if whole.all() else whole)
    data = as_array(X, "train")[0]
    rows = np.asarray(data) if column_names(data) is None else data
    if not np.ndim(rows):
        raise TypeError(f"X is {type(X).__name__}: it must be an array, a table, a list or a path")
    return Divisible(rows)


def inliers_of(photos: Photos, config: RunConfig) -> FolderInliers:
    """Decode photos to train on, a part of them held out.

    Args:
        photos: the photos.
        config: configuration whose `images` says how they are decoded, and whose `calibration` how many are held out.

    Returns:
        The inliers; `skipped` names the broken files of a folder.

    Raises:
        ValueError: if images of a list are broken, or too many of a folder's.
    """
    assert config.images is not None
    count = len(photos.sources)
    rows = held_out_rows(count, config.calibration, config.seed).numpy()
    if photos.files is not None:
        found = folder_inliers(config, photos.files, rows)
        if found.skipped:
            name, why = next(iter(found.skipped.items()))
            if not photos.folder:
                raise DataError(f"{name}: {why}")
            warn_caller(f"{photos.name}: {left_out(len(found.skipped))} ({name}: {why})")
        return found
    inputs, owners = read(photos, config.images)
    held = torch.from_numpy(np.isin(owners, rows))
    kept = [np.unique(owners[part], return_inverse=True)[1] for part in (~held.numpy(), held.numpy())]
    return FolderInliers(
        config.images, inputs[~held], inputs[held], kept[0], kept[1], np.delete(np.arange(count), rows), np.sort(rows),
        "", {}, _IN_MEMORY,
    )  # fmt: skip


def read(photos: Photos, decoding: Decoding) -> tuple[Tensor, NDArray[np.int64]]:
    """Decode photos to a model's inputs.

    Args:
        photos: the photos.
        decoding: how they are decoded.

    Returns:
        The inputs, uint8, T x C x h x w, and the image that each belongs to.

    Raises:
        ValueError: if an image is broken; the message names it.
    """
    return _stacked([read_photo(source, name, decoding)[0] for name, source in photos.sources])


def read_any(data: Any, split: Split, decoding: Decoding) -> tuple[Tensor, NDArray[np.int64]]:
    """Convert data of any form to the inputs of a model that was trained on photos; see `read`."""
    return _stacked([tiles for tiles, _ in each_photo(data, split, decoding)])


def each_photo(data: Any, split: Split, decoding: Decoding) -> Iterator[tuple[NDArray[np.uint8], Tiling]]:
    """Decode data of any form for a model that was trained on photos.

    Args:
        data: photos, or images in any form that `negvae.NegVAEDetector` takes.
        split: split to read of a named data set.
        decoding: how they are decoded.

    Yields:
        The tiles of each image, uint8, T x C x h x w, and their places in it.

    Raises:
        ValueError: if an image is broken; the message names it.
    """
    if (photos := photos_of(data, split)) is not None:
        yield from (read_photo(source, name, decoding) for name, source in photos.sources)
        return
    if isinstance(data, list | tuple) and any(getattr(item, "ndim", 0) in (2, 3) for item in data):
        arrays = [as_images(np.asarray(item)[None], f"item {place}").images[0] for place, item in enumerate(data)]
    else:
        array, name = as_array(data, split)
        arrays = list(as_images(np.asarray(array), name).images)
    yield from (fit_photo(prepared(image, "X", decoding), decoding) for image in arrays)


def _stacked(parts: list[NDArray[np.uint8]]) -> tuple[Tensor, NDArray[np.int64]]:
    owners = np.repeat(np.arange(len(parts)), [len(part) for part in parts])
    return torch.from_numpy(np.concatenate(parts)), owners
