"""The interface of every file format: a probe of its header, and blocks of its rows.

No reader executes anything found in a file, and each rejects an implausible header before it allocates memory for it.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Source = str | bytes | Image.Image | None
"""An encoded image: the path or URI of its file, its bytes, an image of Pillow, or None if the image is missing."""

# What damaged or foreign files make the standard readers raise is no list that anyone has written down: NumPy's alone
# raises errors of Python's tokenizer.
READ_ERRORS = (Exception,)


class DataError(ValueError):
    """The error of a file that cannot be used; its message is one line that names the file."""


@dataclass(frozen=True)
class Probe:
    """The number, shape and type of a file's rows, as its header declares them.

    Attributes:
        count: number of rows.
        shape: shape of one row as stored; None for encoded images, which may differ in shape.
        dtype: type of the numbers; None for encoded images.
        groups: numbers of rows of consecutive groups, each of which can be damaged independently of the others.
        cuttable: whether reading can begin at any row without reading the rows before it.
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
        start: index of the first row in the file.
        rows: array with the rows on axis 0, as stored; or encoded images.
        labels: label of each row, if labels were requested and the file has them; else None.
    """

    start: int
    rows: NDArray[Any] | Sequence[Source]
    labels: NDArray[Any] | None = None


class Reader(Protocol):
    """A reader of one set of images in files of one format."""

    @property
    def files(self) -> tuple[Path, ...]:
        """The files that hold the images, in order; the folder if each image is a file of its own."""

    @property
    def label_file(self) -> Path | None:
        """The file of the labels if they are stored separately; else None."""

    @property
    def slow(self) -> bool:
        """Whether reading takes so long that the decoded pixels are worth keeping."""

    def probe(self) -> Probe:
        """Read only headers, if the format has them.

        Returns:
            What the files declare about their rows.

        Raises:
            ValueError: if the files are damaged or hold no images.
        """

    def rows(
        self, start: int = 0, stop: int | None = None, *, size: int | None = None, labels: bool = False
    ) -> Iterator[Block]:
        """Read rows in order.

        Args:
            start: index of the first row.
            stop: index after the last row; None for all rows.
            size: maximum number of rows in a block; None for as few blocks as there are files.
            labels: whether to read the labels too.

        Returns:
            The blocks, in order.

        Raises:
            ValueError: if the files are damaged; the blocks before the damage are returned first.
        """


def origin(reader: Reader) -> Path:
    """Return the file of a reader, or the folder if it has several files."""
    return reader.files[0] if len(reader.files) == 1 else reader.files[0].parent


@contextmanager
def reading(where: object, what: str) -> Iterator[None]:
    """Turn any error that a library raises for a damaged file into one line that names the file."""
    try:
        yield
    except (DataError, FileNotFoundError, PermissionError, ImportError):
        raise
    except UnicodeDecodeError as error:
        raise DataError(f"{where}: not in UTF-8 (byte {error.start}): save it in that encoding") from None
    except READ_ERRORS as error:
        raise DataError(f"{where}: not a readable {what} ({reason(error)[:160]})") from None


def reason(error: object) -> str:
    """Say in one line what went wrong with a file that is named already.

    >>> reason(FileNotFoundError(2, "No such file or directory", "a.png")), reason(ValueError())
    ('no such file or directory', 'ValueError')
    >>> reason(FileNotFoundError("http://host/a.png"))
    'no such file'
    """
    if isinstance(error, FileNotFoundError) and error.strerror is None and ": " not in str(error):
        return "no such file"  # as fsspec raises it: with the path for a message
    if isinstance(error, OSError) and error.strerror:
        error = error.strerror[0].lower() + error.strerror[1:]
    # Pillow's messages hold the object that it read from, with an address in memory.
    return " ".join(re.sub(r"\s*<_io[^>]*>", "", str(error)).split()) or type(error).__name__


def by(shape: Sequence[int]) -> str:
    """Describe a shape in words.

    >>> by((2, 3))
    '2 x 3'
    """
    return " x ".join(map(str, shape)) or "of a single number"


def machine_memory() -> int | None:
    """Return the size of this machine's memory in bytes; None where the system does not tell."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):
        return None


def need_memory(shape: Sequence[int], where: object, itemsize: int = 1) -> None:
    """Refuse an array that cannot fit in this machine's memory, before it is allocated.

    Args:
        shape: shape of the array, with the rows on axis 0.
        where: name of the file in error messages.
        itemsize: size of one number in bytes.

    Raises:
        ValueError: if the array is larger than the memory.
    """
    need = itemsize * int(np.prod(shape, dtype=object))
    have = machine_memory()
    if have is not None and need > have:
        what = f"images of {by(shape[1:])}" if shape[1:] else "bytes"
        raise DataError(
            f"{where}: {shape[0]:,} {what} need {need / 2**30:.1f} GiB of memory and this machine has "
            f"{have / 2**30:.1f}; make the images smaller or pass a limit"
        )


def read_rows(file: IO[bytes], shape: Sequence[int], dtype: np.dtype[Any]) -> NDArray[Any]:
    """Read an array with the rows on axis 0; if the file ends early, return its complete rows."""
    array = np.empty(shape, dtype)
    view, filled = memoryview(array.reshape(-1).view(np.uint8).data), 0
    while filled < len(view) and (got := file.readinto(view[filled : filled + 2**24])):  # type: ignore[attr-defined]
        filled += got
    return array if filled == array.nbytes else array[: filled // max(array[:1].nbytes, 1)]


def cut(
    array: NDArray[Any], start: int, stop: int | None, size: int | None, labels: NDArray[Any] | None = None
) -> Iterator[Block]:
    """Divide an array in memory into blocks; see `Reader.rows`."""
    for low, high in stretches(len(array), start, stop, size):
        yield Block(low, array[low:high], None if labels is None else labels[low:high])


def stretches(count: int, start: int, stop: int | None, size: int | None) -> Iterator[tuple[int, int]]:
    """Return the first row and the row after the last of each block of a file of `count` rows; see `Reader.rows`.

    >>> list(stretches(5, 0, None, 2))
    [(0, 2), (2, 4), (4, 5)]
    """
    stop = count if stop is None else min(stop, count)
    size = size or max(stop - start, 1)
    return ((low, min(low + size, stop)) for low in range(start, stop, size))


def check_limit(limit: object) -> None:
    """Refuse a number of images or rows that is none, or below 1.

    Args:
        limit: the number; None for all.

    Raises:
        TypeError: if this is no whole number.
        ValueError: if it is below 1.
    """
    if limit is None:
        return
    if isinstance(limit, bool) or not isinstance(limit, int | np.integer):
        raise TypeError(f"limit must be a whole number or None, not {limit!r}")
    if limit < 1:
        raise ValueError(f"limit must be at least 1, not {limit}")
