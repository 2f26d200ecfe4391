"""Writing files whole or not at all, and locks between processes."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give a temporary name beside `path`; what is written there takes its place when the block ends well."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def locked(path: Path) -> Iterator[bool]:
    """Hold a lock file, or give False where another process does; the system frees the locks of dead processes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        yield False
        return
    try:
        yield True
    finally:
        lock.release()


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text whole or not at all."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def replace_table(path: Path, begin: str, end: str, text: str) -> None:
    """Put `text` between two markers of a Markdown file, and leave the rest as it is.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it has not both markers, in order.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path} is not there: it must be a Markdown file with the lines {begin} and {end}")
    before, begun, rest = path.read_text(encoding="utf-8").partition(begin)
    _, ended, after = rest.partition(end)
    if not (begun and ended):
        raise ValueError(f"{path} has no place for the table: it needs the lines {begin} and {end}")
    write_text(path, f"{before}{begin}\n\n{text}\n{end}{after}")
