"""Arrays of numbers in MATLAB files of version 5, read from checked lengths and plain types alone.

scipy's reader makes objects of every kind that such a file can hold, and a damaged file can end the process in it. The
format: a header of 128 bytes, then elements of a tag (kind and number of bytes, 4 bytes each) and content, of which
those of the kinds `MATRIX` and `COMPRESSED`, a matrix in zlib's format, are arrays (MathWorks, "MAT-File Format").
"""

from __future__ import annotations

import math
import struct
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import IO, Protocol

import numpy as np
from numpy.typing import NDArray

HEADER, MOST_AXES, MOST_NAME, CHUNK = 128, 32, 63, 1 << 16
MATRIX, COMPRESSED = 14, 15
COMPLEX = 0x0800
STORED = {1: "i1", 2: "u1", 3: "i2", 4: "u2", 5: "i4", 6: "u4", 7: "f4", 9: "f8", 12: "i8", 13: "u8"}
"""The types that numbers are stored in, by the kind of their element."""
CLASSES = {6: "f8", 7: "f4", 8: "i1", 9: "u1", 10: "i2", 11: "u2", 12: "i4", 13: "u4", 14: "i8", 15: "u8"}
"""The types of arrays of numbers, by their class; text, structures, cells and objects have others."""


@dataclass(frozen=True)
class Matrix:
    """An array in a file.

    Attributes:
        name: its name.
        shape: its shape.
        dtype: its type.
        read: function that reads it, until the next one is asked for.
    """

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype
    read: Callable[[], NDArray[np.generic]]


class Bytes(Protocol):
    """The interface of a source of bytes."""

    def read(self, count: int) -> bytes:
        """Read up to so many bytes; fewer at the end alone."""


class _Inflated:
    """The bytes that a number of compressed bytes of a file stand for.

    Args:
        file: file, at the first compressed byte.
        count: number of compressed bytes.
    """

    def __init__(self, file: IO[bytes], count: int) -> None:
        self._file, self._left, self._inflate = file, count, zlib.decompressobj()

    def read(self, count: int) -> bytes:
        """Read up to so many bytes; no more of them exist at a time, whatever the compressed ones say."""
        found = bytearray()
        while len(found) < count:
            packed = self._inflate.unconsumed_tail
            if not packed and self._left:
                packed = self._file.read(min(CHUNK, self._left))
                self._left = self._left - len(packed) if packed else 0
            made = self._inflate.decompress(packed, count - len(found))
            found += made
            if not made and not packed:
                break
        return bytes(found)


def matrices(file: IO[bytes]) -> Iterator[Matrix]:
    """Yield the arrays of numbers in a file, in its order; what else it holds is passed over.

    Args:
        file: file, open at its first byte, that can seek.

    Yields:
        The arrays, each to be read before the next is asked for.

    Raises:
        ValueError: if the file is not of this format, or damaged.
    """
    header = file.read(HEADER)
    if len(header) < HEADER or header[126:128] not in (b"IM", b"MI"):
        newer = header.startswith(b"MATLAB 7.3") or header[:8] == b"\x89HDF\r\n\x1a\n"
        raise ValueError(
            "it is in HDF5, as version 7.3 writes; save it with -v7" if newer else "it is not of version 5"
        )
    order = "<" if header[126:128] == b"IM" else ">"
    while tag := file.read(8):
        kind, count = struct.unpack(order + "II", _whole(tag, 8))
        start = file.tell()
        if kind in (MATRIX, COMPRESSED):
            source: Bytes = file
            if kind == COMPRESSED:
                source = _Inflated(file, count)
                kind = struct.unpack(order + "II", _exactly(source, 8))[0]
            if kind == MATRIX and (found := _matrix(source, order)) is not None:
                yield found
        file.seek(start + count)


def _matrix(source: Bytes, order: str) -> Matrix | None:
    """Return the array whose content begins here; None if it is not one of numbers."""
    flags = np.frombuffer(_element(source, order, {6}, 8)[1], order + "u4")
    dtype = CLASSES.get(int(flags[0]) & 0xFF)
    if dtype is None or int(flags[0]) & COMPLEX:
        return None
    shape = tuple(int(size) for size in np.frombuffer(_element(source, order, {5}, 4 * MOST_AXES)[1], order + "i4"))
    if not shape or min(shape) < 0:
        raise ValueError(f"an array has the shape {shape}")
    name = _element(source, order, {1, 2, 16}, MOST_NAME)[1].decode("ascii", "backslashreplace")
    count = math.prod(shape)

    def read() -> NDArray[np.generic]:
        kind, values = _element(source, order, set(STORED), 8 * count)
        stored = np.dtype(order + STORED[kind])
        if len(values) != count * stored.itemsize:
            raise ValueError(f"an array of {count:,} numbers holds {len(values):,} bytes")
        return np.frombuffer(values, stored).astype(dtype).reshape(shape, order="F")

    return Matrix(name, shape, np.dtype(dtype), read)


def _element(source: Bytes, order: str, kinds: set[int], most: int) -> tuple[int, bytes]:
    """Read an element of one of these kinds and of at most so many bytes, with what fills it up to 8 bytes."""
    tag = _exactly(source, 8)
    kind, count = struct.unpack(order + "II", tag)
    small = kind >> 16  # up to four bytes are in the tag itself, beside their number
    if small:
        kind, count = kind & 0xFFFF, small
    if kind not in kinds or count > (4 if small else most):
        raise ValueError(f"an element of kind {kind} has {count:,} bytes where none such can be")
    if small:
        return kind, tag[4 : 4 + count]
    content = _exactly(source, count)
    source.read(-count % 8)
    return kind, content


def _exactly(source: Bytes, count: int) -> bytes:
    return _whole(source.read(count), count)


def _whole(found: bytes, count: int) -> bytes:
    if len(found) < count:
        raise ValueError("it ends in the middle")
    return found
