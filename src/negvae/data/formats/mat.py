"""The MATLAB files of SVHN."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np

from negvae.data import stores
from negvae.data.formats.base import Block, DataError, Probe, by, cut, need_memory, reading
from negvae.data.formats.matlab import matrices
from negvae.data.formats.pixels import as_labels, need_one_label_each


@dataclass(frozen=True)
class Mat:
    """Images under "X", H x W x 3 x N, and labels under "y", N x 1 with 10 for the digit 0.

    Attributes:
        path: path of the file.
    """

    path: Path
    label_file: ClassVar[None] = None
    slow: ClassVar[bool] = True

    @property
    def files(self) -> tuple[Path, ...]:
        """The file."""
        return (self.path,)

    def probe(self) -> Probe:
        """See `Reader.probe`."""
        with reading(self.path, "MATLAB file"), stores.open_file(str(self.path)) as file:
            found = {matrix.name: matrix for matrix in matrices(file)}
        shape = found["X"].shape if "X" in found else ()
        if len(shape) not in (3, 4) or 0 in shape or found["X"].dtype != np.uint8:
            raise DataError(f"{self.path}: has no uint8 array X of H x W x 3 x N, as SVHN's files have")
        height, width, channels, count = (*shape, 1)[:4]  # MATLAB drops a last axis of one
        if channels != 3:
            raise DataError(f"{self.path}: X has shape {by(shape)}; H x W x 3 x N is needed")
        return Probe(count, (channels, height, width), np.dtype(np.uint8), (count,))

    def rows(
        self, start: int = 0, stop: int | None = None, *, size: int | None = None, labels: bool = False
    ) -> Iterator[Block]:
        """See `Reader.rows`."""
        probe = self.probe()
        need_memory((probe.count, *(probe.shape or ())), self.path)
        wanted = ("X", "y") if labels else ("X",)
        with reading(self.path, "MATLAB file"), stores.open_file(str(self.path)) as file:
            content = {}
            for matrix in matrices(file):
                if matrix.name not in wanted:
                    continue
                if matrix.name == "y":
                    need_one_label_each(matrix.shape, probe.count, f"{self.path}[y]")
                content[matrix.name] = matrix.read()
            pixels = content["X"].reshape(*content["X"].shape[:3], probe.count).transpose(3, 2, 0, 1)
        found = as_labels(content["y"], probe.count, f"{self.path}[y]") % 10 if "y" in content else None
        yield from cut(pixels, start, stop, size, found)
