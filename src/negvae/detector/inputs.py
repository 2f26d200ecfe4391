"""Conversion of all accepted forms of data to arrays: paths, names, lists, tensors, torch Datasets and DataLoaders."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from sklearn.utils import check_random_state
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, RandomSampler

from negvae.data import DATASETS, ImageSet, Split, is_path, load
from negvae.data.fetch import HUB, from_hub
from negvae.data.formats import IMAGE_ENDINGS, DataError, as_images, npy
from negvae.data.formats.encoded import decode_images
from negvae.data.load import reader_of
from negvae.data.rows import feature_columns, feature_table, npz_rows
from negvae.data.tables import is_table


def as_array(data: Any, split: Split, columns: Sequence[str] | None = None) -> tuple[Any, str]:
    """Convert data to an array of images or rows; data of an unknown form is returned unchanged.

    Args:
        data: a path or data-set name, an `ImageSet`, a tensor, a torch Dataset or DataLoader (the first part of
            every item is used), a Pillow image, a list of images (Pillow images, arrays, or paths of image files),
            or anything array-like. Lists of images are converted as the images of a folder are.
        split: split to load if the data is a name or path.
        columns: names of the columns to read if the data is the path of a CSV or Parquet file; None for all.

    Returns:
        The array, and a name of the data for messages.

    Raises:
        FileNotFoundError: if there is no such path or data set.
        ValueError: if a file cannot be read, a Dataset is empty, or an item of a list differs in kind from the others.
        TypeError: if the data is an iterator, None, a dict, a set or a LazyFrame of polars.

    >>> as_array(torch.zeros(1, 2), "train")
    (array([[0., 0.]], dtype=float32), 'a tensor')
    """
    if np.ma.is_masked(data):
        raise DataError("the data has masked entries: fill them in (filled), or leave them out")
    if isinstance(data, str | Path):
        name = os.path.expanduser(data)
        if is_table(name):
            return feature_table(name, feature_columns(name, known=columns)), name
        if name.lower().endswith(".npy") and Path(name).is_file():
            return npy.array(name), name
        if name.lower().endswith(".npz") and Path(name).is_file() and (rows := npz_rows(name, split)) is not None:
            return rows, name
        if name.lower().endswith(IMAGE_ENDINGS) and Path(name).is_file():
            return _stacked([name]), name
        # Of a set with one split only, what is fitted and what is judged must not be the same images.
        return load(name, split, disjoint_from_train=not is_path(name)).images, name
    if isinstance(data, ImageSet):
        return data.images, data.name
    if isinstance(data, Tensor):
        return _numbers(data), "a tensor"
    if isinstance(data, DataLoader | Dataset):
        return _collected(data, split != "test"), type(data).__name__
    if isinstance(data, Image.Image):
        return _stacked([data]), "an image"
    if isinstance(data, np.ndarray) and data.dtype.kind in "OU" and data.ndim == 1:
        data = data.tolist()  # of paths or images
    if isinstance(data, list | tuple):
        return _listed(data), "a list"
    if isinstance(data, Iterator):  # it could be read once only
        raise TypeError(f"the data is a {type(data).__name__}: give a list of what it yields, or a Dataset")
    is_lazy = hasattr(data, "collect_schema") and not hasattr(data, "to_numpy")  # a LazyFrame of polars
    if data is None or is_lazy or (isinstance(data, dict | set) and not hasattr(data, "shape")):  # of a sparse matrix
        raise TypeError(f"the data is a {type(data).__name__}: give an array, a list, a data frame, a tensor or a path")
    return data, "an array"


def opened(X: Any, columns: Sequence[str] | None = None) -> Any:
    """Return the table in a CSV or Parquet file if X is its path, so that its columns keep their names.

    Args:
        X: data in any form that `as_array` takes.
        columns: names of the columns to read, in order; None for all.

    Returns:
        A `pyarrow.Table`; other data unchanged.

    Raises:
        ValueError: if the file is damaged, a column is missing, or a value is not a finite number.
    """
    is_file = isinstance(X, str | Path) and is_table(os.path.expanduser(X))
    return as_array(X, "test", columns)[0] if is_file else X


def refuse_two_splits(X: Any) -> None:
    """Refuse data with a part for training and one for testing where one method is to fit and judge the same data.

    Args:
        X: data in any form that `negvae.NegVAEDetector` takes.

    Raises:
        ValueError: if it is the name of such a set, or the path of such a folder.
    """
    if isinstance(X, str | Path) and _has_two_parts(str(X)):
        raise ValueError(
            f"{X} has a part for training and one for testing: `fit` takes the one and `predict` the other, so call"
            " these, or give one of the parts"
        )


def _has_two_parts(text: str) -> bool:
    """Return whether the name or path of data stands for images to train on and others to test on."""
    try:
        if text.startswith(HUB):
            return reader_of(from_hub(text, lambda line: None)[0], "train", of_hub=True)[1]
        return reader_of(text, "train")[1] if is_path(text) else DATASETS.get(text) is not None
    except (ValueError, OSError, ImportError):  # no set of images, as whoever reads it will say
        return False


def seed_of(random_state: Any) -> int:
    """Return the seed that scikit-learn's parameter `random_state` gives: a whole number, a RandomState or None."""
    if isinstance(random_state, int | np.integer):
        if random_state < 0:
            raise ValueError(f"random_state is {random_state}: it must be a whole number of at least 0")
        return int(random_state)
    return int(check_random_state(random_state).randint(2**31 - 1))


def warn_caller(text: str) -> None:
    """Warn of something at the line of the program that has called the library.

    Args:
        text: the warning.
    """
    level, frame = 1, sys._getframe(1)
    while frame.f_back is not None and frame.f_globals.get("__name__", "").startswith(("negvae.", "contextlib")):
        level, frame = level + 1, frame.f_back
    warnings.warn(text, stacklevel=level + 1)


def repeatable(data: Any) -> Any:
    """Return data that may be read more than once.

    A torch Dataset or DataLoader may give its items in another order, or changed at random, each time.

    Args:
        data: data in any form that `negvae.NegVAEDetector` takes.

    Returns:
        The items of a Dataset or DataLoader as an array; other data unchanged.
    """
    return as_array(data, "test")[0] if isinstance(data, DataLoader | Dataset) else data


def single_image(X: Any, shape: Sequence[int]) -> Any:
    """Return the array of one image, H x W or H x W x C, as that of a batch; return anything else unchanged.

    Args:
        X: array of a batch or of one image.
        shape: C x H x W of the images that a detector takes.

    Returns:
        The array of the batch.

    Raises:
        ValueError: if the array may be one color image or three gray ones.

    >>> single_image(np.zeros((8, 9)), (1, 8, 9)).shape, single_image(np.zeros((3, 8, 9, 1)), (1, 8, 9)).shape
    ((1, 8, 9), (3, 8, 9, 1))
    """
    channels, height, width = shape
    given = tuple(getattr(X, "shape", ()))
    if (height, width) == (1, 1):
        return X
    if channels == 3 and given == (3, height, width):
        raise ValueError(
            f"X of 3 x {height} x {width} may be one color image or three gray ones: give 1 x 3 x {height} x {width}"
            f" or 3 x 1 x {height} x {width}"
        )
    return X[None] if given in ((height, width), (height, width, channels)) else X


def _numbers(tensor: Tensor) -> NDArray[Any]:
    """Convert a tensor on any device to an array; bfloat16, which NumPy lacks, becomes float32 without loss."""
    if tensor.layout != torch.strided or tensor.device.type == "meta":
        what = "is on the device meta and has no numbers" if tensor.device.type == "meta" else "is sparse"
        raise DataError(f"a tensor of the data {what}: give a dense tensor (to_dense) on the CPU or a GPU")
    plain = tensor.detach().cpu()
    if plain.is_floating_point() and plain.dtype not in (torch.float16, torch.float32, torch.float64):
        plain = plain.float()
    array: NDArray[Any] = plain.numpy()
    return array


def _listed(items: list[Any] | tuple[Any, ...]) -> Any:
    """Convert a list of images or of tensors to an array; return other lists of rows unchanged.

    Args:
        items: images or rows, all of one kind.

    Returns:
        The array, or the list itself.

    Raises:
        ValueError: if an item is None or differs in kind from the others.
    """
    if not len(items):
        raise DataError("the list is empty: it must hold images or rows of numbers")
    for place, item in enumerate(items):
        if item is None or isinstance(item, bytes):
            what = "None" if item is None else "bytes"
            raise DataError(
                f"item {place} of the list is {what}: it must be an image (array, Pillow image or path) or a row of"
                " numbers"
            )
    first: Any = items[0]
    if isinstance(first, str | Path | Image.Image) or (hasattr(first, "shape") and len(first.shape) in (2, 3)):
        return _stacked(items)
    widths = [np.shape(item) if not isinstance(item, Tensor) else tuple(item.shape) for item in _even(items)]
    for place, width in enumerate(widths):
        if width != widths[0]:
            raise DataError(f"item {place} of the list has shape {width}, item 0 has {widths[0]}: they must be alike")
    return np.stack([_numbers(item) for item in items]) if isinstance(first, Tensor) else items


def _even(items: Iterable[Any]) -> Iterable[Any]:
    """Yield the items, and refuse one that holds lists of different lengths, naming its index."""
    for place, item in enumerate(items):
        try:
            np.shape(item)
        except ValueError:
            raise DataError(f"item {place} of the list holds lists of different lengths") from None
        yield item


def _stacked(items: Iterable[Any]) -> NDArray[np.uint8]:
    """Convert Pillow images, arrays and paths as the images of a folder are: uint8 N x C x H x W.

    Args:
        items: the images, arrays or paths.

    Returns:
        The images, uint8 N x C x H x W.

    Raises:
        ValueError: if an item is not an image or differs in size from the first; the message names the item.
    """
    named = [(f"item {place}" if not isinstance(item, str | Path) else str(item), item)
             for place, item in enumerate(items)]  # fmt: skip
    return decode_images([(name, _image(item, name)) for name, item in named], len(named), "the list")[0]


def _image(item: Any, name: str) -> Image.Image | str:
    """Convert an item of a list to a form that `decode_images` takes."""
    if isinstance(item, Path):
        return str(item)
    if isinstance(item, str | Image.Image):
        return item
    array = _numbers(item) if isinstance(item, Tensor) else np.asarray(item)
    if array.ndim not in (2, 3) or array.dtype.kind not in "uf":
        raise DataError(f"{name} of the list is no image: it has shape {array.shape} and type {array.dtype}")
    (pixels,) = as_images(array[None], name).images
    return Image.fromarray(pixels[0] if len(pixels) == 1 else np.ascontiguousarray(pixels.transpose(1, 2, 0)))


def _collected(data: Any, fitting: bool) -> NDArray[Any]:
    """Collect the first part of every item of a Dataset or DataLoader."""
    batched = isinstance(data, DataLoader)
    if batched and isinstance(getattr(data, "sampler", None), RandomSampler) and not fitting:
        warn_caller("the DataLoader shuffles: results come in its order, and not in the data's")
    # A Dataset of the map kind ends by its length; iteration over it need not.
    items: Iterable[Any] = data if batched or not hasattr(data, "__len__") else (data[i] for i in range(len(data)))
    parts: list[Any] = []
    for item in items:
        while isinstance(item, list | tuple | dict):
            if not item:
                raise DataError(f"item {len(parts)} of {type(data).__name__} is empty: its first part must be an image")
            item = next(iter(item.values())) if isinstance(item, dict) else item[0]
        parts.append(_numbers(item) if isinstance(item, Tensor) else item)
    if not parts:
        raise ValueError(f"{type(data).__name__} is empty: it must give images or rows of features")
    if not batched and any(isinstance(part, Image.Image) for part in parts):
        return _stacked(parts)
    arrays = [np.asarray(part) for part in parts]
    for place, array in enumerate(arrays):
        if array.shape[batched:] != arrays[0].shape[batched:] or (batched and not array.ndim):
            raise DataError(
                f"{'batch' if batched else 'item'} {place} of {type(data).__name__} has shape {array.shape},"
                f" the first has {arrays[0].shape}: they must be alike"
            )
    return np.concatenate(arrays) if batched else np.stack(arrays)
