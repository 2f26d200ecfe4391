"""Folders of encoded images."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import ClassVar

import numpy as np

from negvae.data.formats.base import Block, DataError, Probe, stretches
from negvae.files import is_temporary

IMAGE_ENDINGS = (
    ".png", ".apng", ".jpg", ".jpeg", ".jpe", ".jfif", ".bmp", ".webp", ".gif", ".tif", ".tiff", ".ppm", ".pgm",
    ".pbm", ".pnm", ".avif", ".jp2", ".j2k", ".qoi", ".heic", ".heif",
)  # fmt: skip
HIDDEN = (".", "__MACOSX")
"""Beginnings of the names of files and folders that are skipped."""
_NAMED = 3


@dataclass(frozen=True)
class Folder:
    """All images below a folder; if every image lies in a subfolder, its label is the number of that subfolder.

    Attributes:
        path: path of the folder.
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

    def left_out(self) -> LeftOut:
        """Return the files below the folder that are not read."""
        found = LeftOut()
        for _ in walk(str(self.path), IMAGE_ENDINGS, found):
            pass
        return found

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


@dataclass
class LeftOut:
    """The files and folders that a walk through folders skips.

    Attributes:
        counts: number of skipped paths by the ending of their names, or by another reason.
        first: the first few skipped paths.
        named: largest number of paths to keep in `first`.
        reasons: reason why one of these was skipped, if it is not the ending of its name.
    """

    counts: dict[str, int] = field(default_factory=dict)
    first: list[str] = field(default_factory=list)
    named: int = _NAMED
    reasons: dict[str, str] = field(default_factory=dict)

    def add(self, path: str, reason: str = "") -> None:
        """Count a skipped file, or a folder that is not entered."""
        kind = reason or os.path.splitext(path)[1].lower() or "no ending"
        self.counts[kind] = self.counts.get(kind, 0) + 1
        if len(self.first) < self.named:
            self.first.append(path)
            if reason:
                self.reasons[path] = reason

    def __len__(self) -> int:
        """Return the number of skipped paths."""
        return sum(self.counts.values())

    def describe(self) -> str:
        """Describe in one line how many paths were skipped, of what kinds, and the first few; empty if none were."""
        if not self.counts:
            return ""
        kinds = ", ".join(f"{kind} {count:,}" for kind, count in sorted(self.counts.items()))
        more = ", ..." if len(self) > _NAMED else ""
        return f"{len(self):,} left out ({kinds}: {', '.join(self.first[:_NAMED])}{more})"


def walk(
    folder: str,
    endings: tuple[str, ...],
    left_out: LeftOut | None = None,
    failed: Callable[[str, OSError], None] | None = None,
) -> Iterator[str]:
    """List every file below a folder with one of these endings, in order of names; hidden ones are skipped.

    Links are followed. A folder that links lead to is read once: not if it lies below `folder` itself, and not again
    through another link, so that circular links end. A link to a file is a file like others, wherever that lies.

    Names are kept as bytes in one array while a folder is sorted: about 20 MB for a million names.

    Args:
        folder: folder to begin at.
        endings: endings of the files to list, in lowercase.
        left_out: collects the files and folders that are skipped; None ignores them.
        failed: called with a folder that cannot be read and the error, at the folder's place in the order; None raises
            the error.

    Yields:
        The path of each file.
    """
    left_out = LeftOut() if left_out is None else left_out
    root, linked = os.path.realpath(folder), set[str]()
    # Of each open folder: its entries still to come, and whether a link led there.
    stack = [(_entries(folder, left_out, failed), False)]
    while stack:
        entries, below_link = stack[-1]
        path = next(entries, None)
        if path is None:
            stack.pop()
        elif not path.endswith("/"):
            if path.lower().endswith(endings):
                yield path
            else:
                left_out.add(path)
        else:
            is_link = os.path.islink(path[:-1])
            if is_link or below_link:
                real = os.path.realpath(path)
                if _is_walked(real, root) or real in linked:
                    continue
                if f"{root}{os.sep}".startswith(real.rstrip(os.sep) + os.sep):
                    left_out.add(path, "link to a folder around it")
                    continue
                linked.add(real)
            stack.append((_entries(path[:-1], left_out, failed), is_link or below_link))


def _is_walked(real: str, root: str) -> bool:
    """Return whether a folder lies below the root with no hidden folder in between."""
    if real != root and not real.startswith(root.rstrip(os.sep) + os.sep):
        return False
    return not any(part.startswith(HIDDEN) for part in real[len(root) :].split(os.sep))


def _entries(folder: str, left_out: LeftOut, failed: Callable[[str, OSError], None] | None) -> Iterator[str]:
    """Yield the paths in a folder ordered by the bytes of their names; those of folders end in a slash."""
    parts = []
    try:
        with os.scandir(folder) as entries:
            names = (os.fsencode(entry.name) + (b"/" if _is_folder(entry) else b"") for entry in entries)
            while chunk := list(islice(names, 4096)):
                parts.append(np.array(chunk))
    except OSError as error:
        if failed is None:
            raise
        failed(folder, error)
    for each in np.sort(np.concatenate(parts)) if parts else ():
        name = os.fsdecode(bytes(each))
        path = os.path.join(folder, name)
        if name.startswith(HIDDEN):
            if not is_temporary(name.rstrip("/")):  # such as the output that is being written
                left_out.add(path, "hidden")
        else:
            yield path


def _is_folder(entry: os.DirEntry[str]) -> bool:
    """Return whether an entry is a folder or a link to one."""
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False
