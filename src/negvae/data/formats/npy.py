"""NumPy's .npy files: a header and the numbers of one array."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from negvae.data import stores
from negvae.data.formats.base import Block, DataError, Probe, by, cut, need_memory, read_rows, reading, stretches
from negvae.files import home

MAP_BYTES = 64_000_000
"""Size above which an array on a local disk is memory-mapped and not read."""
_COLUMNS_BYTES = 2**28
_BLOCK_BYTES = 2**24
_HEADER_BYTES = 2**16


@dataclass(frozen=True)
class Header:
    """The header of an .npy file.

    Attributes:
        shape: shape of the array.
        by_columns: whether the first axis varies fastest (Fortran order).
        dtype: type of the numbers.
        offset: position of the first number in the file, in bytes.
    """

    shape: tuple[int, ...]
    by_columns: bool
    dtype: np.dtype[Any]
    offset: int

    @property
    def nbytes(self) -> int:
        """Size of all numbers in bytes."""
        return self.dtype.itemsize * int(np.prod(self.shape, dtype=object))

    @property
    def row_bytes(self) -> int:
        """Size of one row in bytes."""
        return self.dtype.itemsize * int(np.prod(self.shape[1:], dtype=object))

    def probe(self, cuttable: bool = False) -> Probe:
        """Return the same information as a `Probe`."""
        count = self.shape[0] if self.shape else 0
        return Probe(count, self.shape[1:], self.dtype, (count,), cuttable)


@dataclass(frozen=True)
class Npy:
    """One array in an .npy file.

    Attributes:
        path: path or URI of the file.
    """

    path: Path | str
    label_file: ClassVar[None] = None
    slow: ClassVar[bool] = False

    @property
    def files(self) -> tuple[Path, ...]:
        """The file."""
        return (Path(self.path),)

    def probe(self) -> Probe:
        """See `Reader.probe`."""
        with reading(self.path, ".npy file"), stores.open_file(str(self.path)) as file:
            header = read_header(file, self.path)
            complete = header.offset + header.nbytes <= stores.size(str(self.path))
        return header.probe(complete and not header.by_columns)

    def rows(
        self, start: int = 0, stop: int | None = None, *, size: int | None = None, labels: bool = False
    ) -> Iterator[Block]:
        """See `Reader.rows`; there are no labels.

        If `size` is given, the file is read and never memory-mapped: the pages of a mapped file stay in the memory of
        the process until the system needs them, so the process would appear to grow.
        """
        with reading(self.path, ".npy file"), stores.open_file(str(self.path)) as file:
            header = read_header(file, self.path)
            if size is None or (header.by_columns and not stores.is_uri(str(self.path))):
                yield from cut(_whole(file, header, self.path), start, stop, size)
            else:
                yield from stream_rows(file, header, self.path, start, stop, size)


def array(path: Path | str) -> NDArray[Any]:
    """Read the array of an .npy file, of any shape; a large one stays on disk (a copy-on-write memory map).

    Args:
        path: path or URI of the file.

    Returns:
        The array as stored.

    Raises:
        ValueError: if the file is damaged, or holds Python objects.
    """
    with reading(path, ".npy file"), stores.open_file(str(path)) as file:
        return _whole(file, read_header(file, path), path)


def _whole(file: IO[bytes], header: Header, path: Path | str) -> NDArray[Any]:
    if header.nbytes > MAP_BYTES and not stores.is_uri(str(path)):
        order = "F" if header.by_columns else "C"
        return np.asarray(np.memmap(home(path), header.dtype, "c", header.offset, header.shape, order))  # type: ignore[call-overload]
    return read_whole(file, header, path)


def read_header(file: IO[bytes], where: object) -> Header:
    """Read the header, which leaves the file at its first number.

    Args:
        file: open file, at its beginning.
        where: name of the file in error messages.

    Returns:
        The header.

    Raises:
        ValueError: if there is no valid header, or it declares Python objects.
    """
    with reading(where, ".npy file"):
        if (magic := file.read(6)) != b"\x93NUMPY":
            found = f"starts with {magic!r}" if magic else "is empty"
            raise ValueError(f"it {found}; np.save writes such files, np.savez writes .npz")
        first = file.read(2) == b"\1\0"
        size = file.read(2 if first else 4)
        if (length := int.from_bytes(size, "little")) > _HEADER_BYTES:
            raise ValueError(f"its header claims {length:,} bytes")
        read = np.lib.format.read_array_header_1_0 if first else np.lib.format.read_array_header_2_0
        shape, by_columns, dtype = read(io.BytesIO(size + file.read(length)))
        if dtype.hasobject:
            raise DataError(f"{where}: holds Python objects, which are not read: save an array of numbers (astype)")
        return Header(shape, by_columns, dtype, file.tell())


def read_whole(file: IO[bytes], header: Header, where: object) -> NDArray[Any]:
    """Read all numbers after a header, if they fit in memory.

    Args:
        file: open file, at its first number.
        header: header of the file.
        where: name of the file in error messages.

    Returns:
        The array, in the shape that the header declares.

    Raises:
        ValueError: if there are fewer numbers than declared, or more than fit in this machine's memory.
    """
    shape = header.shape or (1,)
    need_memory(shape, where, header.dtype.itemsize)
    numbers = read_rows(file, shape[::-1] if header.by_columns else shape, header.dtype)
    if numbers.nbytes < header.nbytes:
        raise DataError(f"{where}: not a readable .npy file (it ends before the {header.nbytes:,} bytes it announces)")
    file.read(1)  # at the end of a member of an archive its checksum is compared
    return (numbers.T if header.by_columns else numbers).reshape(header.shape)


def stream_rows(
    file: IO[bytes], header: Header, where: object, start: int, stop: int | None, size: int
) -> Iterator[Block]:
    """Read the rows after a header, block by block.

    Args:
        file: open file, at its first number.
        header: header of the file.
        where: name of the file in error messages.
        start: index of the first row.
        stop: index after the last row; None for all rows.
        size: maximum number of rows in a block.

    Yields:
        The blocks, in order.

    Raises:
        ValueError: if there are fewer numbers than declared, or they are stored by columns and too large to transpose.
    """
    if header.by_columns:
        if header.nbytes > _COLUMNS_BYTES:
            raise DataError(
                f"{where}: is stored column by column and cannot be streamed; save it with np.ascontiguousarray"
            )
        yield from cut(read_whole(file, header, where), start, stop, size)
        return
    count = header.shape[0]
    size = max(min(size, _BLOCK_BYTES // max(header.row_bytes, 1)), 1)
    if start:
        file.seek(start * header.row_bytes, os.SEEK_CUR)
    for low, high in stretches(count, start, stop, size):
        rows = read_rows(file, (high - low, *header.shape[1:]), header.dtype)
        if len(rows):
            yield Block(low, rows)
        if len(rows) < high - low:
            raise DataError(f"{where}: ends after {low + len(rows):,} of the {count:,} rows that its header announces")


def refuse_rows(probe: Probe, most: int, where: object) -> None:
    """Refuse an array without images or rows of features, or with rows larger than any image.

    Args:
        probe: shape and type that the header declares.
        most: maximum number of numbers in a row.
        where: name of the file in error messages.

    Raises:
        ValueError: if the array is empty, or its rows are too large.
    """
    shape = probe.shape or ()
    if not shape or 0 in (probe.count, *shape):
        raise DataError(f"{where}: holds no images or rows of features (shape {by((probe.count, *shape))})")
    if int(np.prod(shape, dtype=object)) > most:
        raise DataError(f"{where}: claims rows of {by(shape)} numbers; at most {most:,} are accepted")
