"""Folders of encoded images."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import ClassVar

import numpy as np

from negvae.data.formats.base import Block, DataError, Probe, stretches

IMAGE_ENDINGS = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".gif", ".tif", ".tiff", ".ppm", ".pgm")
HIDDEN = (".", "__MACOSX")
"""How names of files and folders begin that are left out."""


@dataclass(frozen=True)
class Folder:
    """All images below a folder; where every image lies in a subfolder, the subfolders number the labels.

    Attributes:
        path: The folder.
    """

    path: Path
    label_file: ClassVar[None] = None
    slow: ClassVar[bool] = True

    @property
    def files(self) -> tuple[Path, ...]:
        """The folder."""
        return (self.path,)

    def probe(self) -> Probe:
        """See `Reader.probe`."""
        if not (count := sum(1 for _ in walk(str(self.path), IMAGE_ENDINGS))):
            raise DataError(f"{self.path}: holds no images ({', '.join(e[1:] for e in IMAGE_ENDINGS)})")
        return Probe(count)

    def rows(
        self, start: int = 0, stop: int | None = None, *, size: int | None = None, labels: bool = False
    ) -> Iterator[Block]:
        """See `Reader.rows`."""
        files = list(walk(str(self.path), IMAGE_ENDINGS))
        below = [Path(file).relative_to(self.path).parts for file in files] if labels else []
        found = None
        if below and all(len(parts) > 1 for parts in below):
            found = np.unique([parts[0] for parts in below], return_inverse=True)[1].astype(np.int64)
        for low, high in stretches(len(files), start, stop, size):
            yield Block(low, files[low:high], None if found is None else found[low:high])


def walk(folder: str, endings: tuple[str, ...]) -> Iterator[str]:
    """Every file below a folder with one of these endings, in the order of names; hidden ones are left out.

    Names are kept as bytes in one array while a folder is sorted: some 20 MB for a million of them.
    """
    parts = []
    with os.scandir(folder) as entries:
        shown = (entry for entry in entries if not entry.name.startswith(HIDDEN))
        names = (os.fsencode(e.name) + (b"/" if e.is_dir(follow_symlinks=False) else b"") for e in shown)
        while chunk := list(islice(names, 4096)):
            parts.append(np.array(chunk))
    for name in np.sort(np.concatenate(parts)) if parts else ():
        path = os.path.join(folder, os.fsdecode(bytes(name)))
        if path.endswith("/"):
            yield from walk(path[:-1], endings)
        elif path.lower().endswith(endings):
            yield path
