"""What every file format gives: a probe of its header, and blocks of its rows.

No reader runs anything found in a file, and each refuses what a header claims before memory is taken for it.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Source = str | bytes | Image.Image | None
"""An image: the path or URI of its file, its bytes, one that Pillow holds, or None where there should be one."""

# What damaged or foreign files make the standard readers raise is no list that anyone has written down: NumPy's alone
# raises errors of Python's tokenizer.
READ_ERRORS = (Exception,)


class DataError(ValueError):
    """A file that cannot be used; the message is one line that names it."""


@dataclass(frozen=True)
class Probe:
    """What a file says about itself before its data are read.

    Attributes:
        count: The number of rows.
        shape: The shape of one row as it is stored; None for encoded images, which have each their own.
        dtype: The type of the numbers; None for encoded images.
        groups: The numbers of rows of consecutive stretches, of which one may be broken and the others not.
        cuttable: Whether reading may begin at any row without going through those before it.
    """

    count: int
    shape: tuple[int, ...] | None = None
    dtype: np.dtype[Any] | None = None
    groups: tuple[int, ...] = ()
    cuttable: bool = False


@dataclass(frozen=True)
class Block:
    """Consecutive rows of a file.

    Attributes:
        start: The row of the first one in the file.
        rows: An array with a row on axis 0, as it is stored; or encoded images.
        labels: One for each row, where they were asked for and the file has them.
    """

    start: int
    rows: NDArray[Any] | Sequence[Source]
    labels: NDArray[Any] | None = None


class Reader(Protocol):
    """One set of images in files of one format."""

    @property
    def files(self) -> tuple[Path, ...]:
        """The files that hold the images, in order; of images in files of their own, the folder."""

    @property
    def label_file(self) -> Path | None:
        """The file of labels, where they are apart."""

    @property
    def slow(self) -> bool:
        """Whether reading takes so long that the decoded pixels are worth keeping."""

    def probe(self) -> Probe:
        """Read headers only, where the format has them.

        Raises:
            ValueError: The files are damaged or hold no images.
        """

    def rows(
        self, start: int = 0, stop: int | None = None, *, size: int | None = None, labels: bool = False
    ) -> Iterator[Block]:
        """Read rows in order.

        Args:
            start: The first row.
            stop: The row after the last; None for all.
            size: The most rows of a block; None for as few blocks as there are files.
            labels: Whether to read the labels too.

        Raises:
            ValueError: The files are damaged; the blocks before the damage have been given.
        """


def origin(reader: Reader) -> Path:
    """The file of a reader, or the folder of several."""
    return reader.files[0] if len(reader.files) == 1 else reader.files[0].parent


@contextmanager
def reading(where: object, what: str) -> Iterator[None]:
    """Turn whatever a damaged file makes a library raise into one line naming the file."""
    try:
        yield
    except (DataError, FileNotFoundError, PermissionError, ImportError):
        raise
    except READ_ERRORS as error:
        detail = " ".join(str(error).split()) or type(error).__name__
        raise DataError(f"{where}: not a readable {what} ({detail[:160]})") from None


def by(shape: Sequence[int]) -> str:
    """A shape in words, "2 x 3"."""
    return " x ".join(map(str, shape)) or "of a single number"


def need_memory(shape: Sequence[int], where: object, itemsize: int = 1) -> None:
    """Refuse what cannot fit in this machine's memory, before it is tried.

    Args:
        shape: The shape of the array, with a row on axis 0.
        where: What to call it in a message.
        itemsize: The bytes of one number.

    Raises:
        ValueError: The array is larger than the memory.
    """
    need = itemsize * int(np.prod(shape, dtype=object))
    try:
        have = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):
        return
    if need > have:
        what = f"images of {by(shape[1:])}" if shape[1:] else "bytes"
        raise DataError(
            f"{where}: {shape[0]:,} {what} need {need / 2**30:.1f} GiB of memory and this machine has "
            f"{have / 2**30:.1f}; make the images smaller or pass a limit"
        )


def read_rows(file: IO[bytes], shape: Sequence[int], dtype: np.dtype[Any]) -> NDArray[Any]:
    """Read an array with a row on axis 0; where the file ends early, its complete rows."""
    array = np.empty(shape, dtype)
    view, filled = memoryview(array.reshape(-1).view(np.uint8).data), 0
    while filled < len(view) and (got := file.readinto(view[filled : filled + 2**24])):  # type: ignore[attr-defined]
        filled += got
    return array if filled == array.nbytes else array[: filled // max(array[:1].nbytes, 1)]


def cut(
    array: NDArray[Any], start: int, stop: int | None, size: int | None, labels: NDArray[Any] | None = None
) -> Iterator[Block]:
    """Blocks of an array in memory; see `Reader.rows`."""
    for low, high in stretches(len(array), start, stop, size):
        yield Block(low, array[low:high], None if labels is None else labels[low:high])


def stretches(count: int, start: int, stop: int | None, size: int | None) -> Iterator[tuple[int, int]]:
    """The first and the last row, plus one, of each block of a file of `count` rows; see `Reader.rows`."""
    stop = count if stop is None else min(stop, count)
    size = size or max(stop - start, 1)
    return ((low, min(low + size, stop)) for low in range(start, stop, size))
