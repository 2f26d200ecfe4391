"""NumPy's .npz archives: a zip file of .npy files."""

from __future__ import annotations

import zipfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from negvae.data import stores
from negvae.data.formats.base import Block, DataError, Probe, cut, reading
from negvae.data.formats.npy import Header, read_header, read_whole, stream_rows
from negvae.data.formats.pixels import as_labels

_SPLIT_KEYS = {"train": ("x_train", "train_images", "train"), "test": ("x_test", "test_images", "test")}
_SPLIT_LABELS = {"train": ("y_train", "train_labels"), "test": ("y_test", "test_labels")}
_IMAGE_KEYS = ("images", "imgs", "x", "X", "data", "arr_0")
_LABEL_KEYS = ("labels", "label", "y", "Y", "targets")


@dataclass(frozen=True)
class Npz:
    """The images, and labels if there are any, of one split in an .npz file.

    Attributes:
        path: path of the archive. Images are looked for under x_<split>, <split>_images, <split>, then images, imgs, x,
            X, data, arr_0, then the only array there is; labels under y_<split>, <split>_labels, then labels, label, y,
            Y, targets.
        split: "train" or "test".
        shape: shape (C, H, W) with which rows of C*H*W numbers are read as images; None to leave rows as they are.
        label_file: path of another .npz file, the first array of which holds the labels; None if there is none.
    """

    path: Path
    split: str = "train"
    shape: tuple[int, int, int] | None = None
    label_file: Path | None = None
    slow: ClassVar[bool] = False

    @property
    def files(self) -> tuple[Path, ...]:
        """The archive."""
        return (self.path,)

    def probe(self) -> Probe:
        """See `Reader.probe`."""
        with _member(self.path, image_key(self.path, self.split)) as (_, header):
            return header.probe()

    def rows(
        self, start: int = 0, stop: int | None = None, *, size: int | None = None, labels: bool = False
    ) -> Iterator[Block]:
        """See `Reader.rows`."""
        key = image_key(self.path, self.split)
        with _member(self.path, key) as (file, header):
            found = self._labels(key, header.shape) if labels else None
            if size is not None:
                blocks = stream_rows(file, header, self.path, start, stop, size)
            else:
                blocks = cut(read_whole(file, header, self.path), start, stop, None)
            for block in blocks:
                rows = np.asarray(block.rows)
                if self.shape and rows.ndim == 2 and rows.shape[1] == int(np.prod(self.shape)):
                    rows = rows.reshape(-1, *self.shape)
                yield Block(block.start, rows, None if found is None else found[block.start : block.start + len(rows)])

    def _labels(self, key: str, shape: tuple[int, ...]) -> NDArray[np.int64] | None:
        if self.label_file is not None:
            path, label_key = self.label_file, keys(self.label_file)[0]
        else:
            path, here = self.path, keys(self.path)
            choices = _SPLIT_LABELS[self.split] if key in _SPLIT_KEYS.get(self.split, ()) else _LABEL_KEYS
            label_key = next((k for k in choices if k in here), "")
        return as_labels(array(path, label_key), shape[0], f"{path}[{label_key}]") if label_key else None


def array(path: Path, key: str) -> NDArray[Any]:
    """Read one array of an .npz file.

    Args:
        path: path of the archive.
        key: name of the array.

    Returns:
        The array as stored.

    Raises:
        ValueError: if the archive is damaged, or the array holds Python objects or does not fit in memory.
    """
    with _member(path, key) as (file, header):
        return read_whole(file, header, f"{path}[{key}]")


def splits(path: Path) -> set[str]:
    """Return the splits that the keys of an .npz file name.

    Args:
        path: path of the archive.

    Returns:
        "train", "test" or both; empty if the archive holds one set of images.

    Raises:
        ValueError: if the archive is damaged.
    """
    here = set(keys(path))
    return {split for split, choices in _SPLIT_KEYS.items() if here & set(choices)}


def image_key(path: Path, split: str) -> str:
    """Return the key of the images in an .npz file (see `Npz`).

    Args:
        path: path of the archive.
        split: "train" or "test".

    Returns:
        The key.

    Raises:
        ValueError: if the archive is damaged, or no array can be identified as the images.
    """
    here = keys(path)
    for key in (*_SPLIT_KEYS.get(split, ()), *_IMAGE_KEYS):
        if key in here:
            return str(key)
    rest = sorted(set(here) - set(_LABEL_KEYS) - {k for names in _SPLIT_LABELS.values() for k in names})
    if len(rest) == 1:
        return str(rest[0])
    raise DataError(
        f"{path}: none of its arrays ({', '.join(sorted(here)[:8]) or 'no keys'}) has a name of the {split} data:"
        " call it images, x, data or arr_0, or, of a train and a test part, x_train and x_test"
    )


def keys(path: Path) -> list[str]:
    """Return the keys of an .npz file.

    Args:
        path: path of the archive.

    Returns:
        The keys, in the order of the archive.

    Raises:
        ValueError: if the archive is damaged.
    """
    with reading(path, ".npz archive"), stores.open_file(str(path)) as held, zipfile.ZipFile(held) as archive:
        return [name.removesuffix(".npy") for name in archive.namelist()]


@contextmanager
def _member(path: Path, key: str) -> Iterator[tuple[IO[bytes], Header]]:
    """Open an array's file at its first number, and return it with its header."""
    with ExitStack() as stack:
        stack.enter_context(reading(path, ".npz archive"))
        archive = stack.enter_context(zipfile.ZipFile(stack.enter_context(stores.open_file(str(path)))))
        file = stack.enter_context(archive.open(f"{key}.npy"))
        header = read_header(file, path)
        if (announced := header.offset + header.nbytes) > (held := archive.getinfo(f"{key}.npy").file_size):
            raise DataError(f"{path}: {key} announces {announced:,} bytes and holds {held:,}")
        yield file, header
