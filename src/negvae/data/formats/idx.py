"""IDX files, the format of MNIST: a header and unsigned bytes, optionally compressed by gzip."""

from __future__ import annotations

import gzip
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, cast

import numpy as np
from numpy.typing import NDArray

from negvae.data import stores
from negvae.data.formats.base import Block, DataError, Probe, need_memory, read_rows, reading, stretches
from negvae.data.formats.pixels import as_labels

_KINDS = {1: "labels", 3: "images"}


@dataclass(frozen=True)
class Idx:
    """Images, N x H x W, and labels in another file.

    Attributes:
        images: path of the image file.
        label_file: path of the label file; None if there is none.
        transposed: whether each image is stored transposed, as EMNIST's are.
    """

    images: Path
    label_file: Path | None = None
    transposed: bool = False

    @property
    def files(self) -> tuple[Path, ...]:
        """The image file."""
        return (self.images,)

    @property
    def slow(self) -> bool:
        """Whether the file must be decompressed."""
        return self.images.suffix == ".gz"

    def probe(self) -> Probe:
        """See `Reader.probe`."""
        with reading(self.images, "IDX file"), _open_maybe_gzip(self.images) as file:
            count, height, width = _header(file, self.images, 3)
        shape = (width, height) if self.transposed else (height, width)
        return Probe(count, shape, np.dtype(np.uint8), (count,))

    def rows(
        self, start: int = 0, stop: int | None = None, *, size: int | None = None, labels: bool = False
    ) -> Iterator[Block]:
        """See `Reader.rows`."""
        with reading(self.images, "IDX file"), _open_maybe_gzip(self.images) as file:
            shape = _header(file, self.images, 3)
            found = None
            if labels and self.label_file is not None:
                with reading(self.label_file, "IDX file"), _open_maybe_gzip(self.label_file) as other:
                    numbers = _read(other, _header(other, self.label_file, 1), self.label_file, True)
                found = as_labels(numbers, shape[0], self.label_file)
            if start:
                file.seek(start * shape[1] * shape[2], 1)
            for low, high in stretches(shape[0], start, stop, size):
                pixels = _read(file, (high - low, *shape[1:]), self.images, high == shape[0])
                if self.transposed:
                    pixels = pixels.transpose(0, 2, 1)
                yield Block(low, pixels, None if found is None else found[low:high])


def _open_maybe_gzip(path: Path) -> IO[bytes]:
    """Open a file, decompressed if it starts with gzip's two bytes, whatever its name."""
    file = stores.open_file(str(path))
    zipped = file.read(2) == b"\x1f\x8b"
    file.seek(0)
    if not zipped:
        return file
    file.close()
    return cast(IO[bytes], gzip.open(path, "rb"))


def _header(file: IO[bytes], path: Path, rank: int) -> tuple[int, ...]:
    magic = file.read(4)
    if len(magic) < 4 or magic[:3] != b"\0\0\x08" or magic[3] not in _KINDS:
        raise DataError(
            f"{path}: starts with 0x{magic.hex()}; an IDX file of unsigned bytes starts with "
            "0x00000803 (images) or 0x00000801 (labels)"
        )
    if magic[3] != rank:
        raise DataError(f"{path}: holds {_KINDS[magic[3]]} where {_KINDS[rank]} are needed")
    sizes = file.read(4 * rank)
    if len(sizes) < 4 * rank:
        raise DataError(f"{path}: ends within the IDX header")
    return tuple(int.from_bytes(sizes[i : i + 4], "big") for i in range(0, 4 * rank, 4))


def _read(file: IO[bytes], shape: tuple[int, ...], path: Path, last: bool) -> NDArray[Any]:
    """Read a number of rows; the last rows must end with the file."""
    need_memory(shape, path)
    size = int(np.prod(shape))
    data = read_rows(file, (size,), np.dtype(np.uint8))
    # A gzip stream is shorter than the header says or longer; both mean damage.
    if len(data) < size or (last and file.read(1)):
        found = f"only {len(data):,}" if len(data) < size else "more"
        raise DataError(f"{path}: its header announces {size:,} bytes of data here and it holds {found}")
    return data.reshape(shape)
