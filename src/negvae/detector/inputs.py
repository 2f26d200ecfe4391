"""Whatever a caller has, as an array: paths, names of data sets, tensors, torch Datasets and DataLoaders."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from negvae.data import ImageSet, Split, is_path, load
from negvae.data.formats import npy


def as_array(data: Any, split: Split) -> tuple[Any, str]:
    """The data as an array of images or rows, and what to call it; what is neither comes back as it is.

    Args:
        data: a path or data-set name, an `ImageSet`, a tensor, a torch Dataset or DataLoader of which the first
            part of every item is taken, or anything array-like.
        split: of what is loaded by name or path.

    Raises:
        FileNotFoundError: no such path or set.
        ValueError: a file that cannot be read, or an empty Dataset.
    """
    if isinstance(data, str | Path):
        name = str(data)
        if name.lower().endswith(".npy") and Path(name).is_file():
            return npy.array(name), name
        # Of a set with one split only, what is fitted and what is judged must not be the same images.
        return load(name, split, disjoint_from_train=not is_path(name)).images, name
    if isinstance(data, ImageSet):
        return data.images, data.name
    if isinstance(data, Tensor):
        return data.detach().cpu().numpy(), "a tensor"
    if isinstance(data, DataLoader | Dataset):
        return _collected(data), type(data).__name__
    return data, "an array"


def _collected(data: Any) -> NDArray[Any]:
    """The first part of all items of a Dataset or DataLoader."""
    batched = isinstance(data, DataLoader)
    # A Dataset of the map kind ends by its length; iteration over it need not.
    items: Iterable[Any] = data if batched or not hasattr(data, "__len__") else (data[i] for i in range(len(data)))
    parts = []
    for item in items:
        while isinstance(item, list | tuple | dict):
            item = next(iter(item.values())) if isinstance(item, dict) else item[0]
        parts.append(item.detach().cpu().numpy() if isinstance(item, Tensor) else np.asarray(item))
    if not parts:
        raise ValueError(f"{type(data).__name__} is empty: it must give images or rows of features")
    return np.concatenate(parts) if batched else np.stack(parts)
