"""Which files the inputs of a command name: folders, patterns, URIs and data sets, file by file, in order."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from negvae.data import stores
from negvae.data.formats import IMAGE_ENDINGS, Npy, Npz, Parquet, Reader
from negvae.data.formats.folder import HIDDEN, LeftOut, walk
from negvae.files import home

PACKED = (".npy", ".npz", ".parquet")
"""Endings of files of many rows."""
_ENDINGS = (*IMAGE_ENDINGS, *PACKED)


@dataclass(frozen=True)
class Span:
    """A file, or a range of its rows.

    Attributes:
        path: path or URI of the file, or the name of a data set.
        start: index of the first row.
        stop: index after the last row; None for all rows.
        images: the images in this range, as stored, if the data set was found by name; else None.
        error: reason why the file cannot be read; "" if none is known before reading.
    """

    path: str
    start: int = 0
    stop: int | None = None
    images: NDArray[Any] | None = None
    error: str = ""


def spans(
    inputs: Sequence[str],
    left_out: LeftOut | None = None,
    without: Sequence[str | Path] = (),
    *,
    features: bool = False,
) -> Iterator[Span]:
    """List all files of the inputs, in order.

    The CSV files in folders are listed if `features`: beside images, they hold labels and not rows to score. For the
    other arguments, and the errors, which are raised first, see `negvae.data.streams.stream`.
    """
    passed = LeftOut() if left_out is None else left_out
    endings = (*_ENDINGS, ".csv") if features else _ENDINGS
    outputs = tuple(os.path.realpath(path) for path in without)

    def wanted(span: Span) -> bool:
        if not outputs or stores.is_uri(span.path):
            return True
        real = os.path.realpath(span.path)
        return not any(real == output or real.startswith(output + os.sep) for output in outputs)

    return filter(wanted, chain.from_iterable([_spans(text, endings, passed) for text in inputs]))


def _spans(text: str, endings: tuple[str, ...], left_out: LeftOut) -> Iterable[Span]:
    """List the files of one input, which is looked up before anything is read."""
    if not text:  # as from a variable of a shell that is not set
        raise ValueError("an input is empty: name a folder, a file, a pattern or a data set")
    text = stores.local_path(text)
    if stores.is_uri(text):
        return list(_in_store(text, endings, left_out))
    from negvae.data.fetch import HUB
    from negvae.data.load import is_path, load

    path = home(text)
    if path.exists() and not is_path(text):
        left_out.add(os.path.join(".", text), "path with the name of a set")
    elif path.exists():
        return _walked(str(path), endings, left_out) if path.is_dir() else [Span(str(path))]
    if glob.has_magic(text):
        if next(glob.iglob(str(path), recursive=True), None) is None:
            raise FileNotFoundError(f"{text}: nothing matches this pattern")
        return _matching(str(path), left_out)
    if is_path(text) and not text.startswith(HUB):
        raise FileNotFoundError(f"{text}: no such file or folder")
    return [Span(text, images=load(text, "test").images)]


def _walked(folder: str, endings: tuple[str, ...], left_out: LeftOut) -> Iterator[Span]:
    """List the files below a folder, with folders that cannot be read as errors in their places."""
    unreadable: list[Span] = []

    def failed(path: str, error: OSError) -> None:
        unreadable.append(Span(path, error=f"the folder cannot be read ({error.strerror or error})"))

    for path in walk(folder, endings, left_out, failed):
        yield from unreadable
        unreadable.clear()
        yield Span(path)
    yield from unreadable


def _in_store(uri: str, endings: tuple[str, ...], left_out: LeftOut) -> Iterator[Span]:
    """List the files below a folder in a store, or the file that the URI names."""
    for file in stores.below(uri):
        hidden = any(part.startswith(HIDDEN) for part in file[len(uri) :].split("/"))
        if file == uri or (file.lower().endswith(endings) and not hidden):
            yield Span(file)
        else:
            left_out.add(file, "hidden" if hidden else "")


def _matching(pattern: str, left_out: LeftOut) -> Iterator[Span]:
    """List what matches a pattern, but for folders; dead links and the like are errors, as where they are named."""
    for path in sorted(glob.iglob(pattern, recursive=True)):
        if not os.path.isdir(path):
            yield Span(path)
        elif "**" not in pattern:  # which matches what is in them too
            left_out.add(path, "folder")


def reader_of(path: str | Path) -> Reader:
    """Return the reader of a file of many rows."""
    ending = os.path.splitext(path)[1].lower()
    return Npy(path) if ending == ".npy" else Npz(Path(path), "test") if ending == ".npz" else Parquet((path,))
