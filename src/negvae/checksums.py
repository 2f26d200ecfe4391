"""Files that hold the SHA-256 of their own content, so that a changed digit is noticed when they are read."""

from __future__ import annotations

import hashlib
import json
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

CHECKSUM, NO_CHECKSUM = "sha256", "0" * 64
"""The name of a file's own checksum in its metadata, and what stands there until it is known."""
_LONGEST_HEADER = 100_000_000
"""Bytes that safetensors accepts as a header."""


@contextmanager
def open_tensors(path: Path, framework: str) -> Iterator[Any]:
    """Open a safetensors file, which its library does by a path in UTF-8 alone, and compare it with its checksum.

    Args:
        path: file to read; its path may have any bytes.
        framework: kind of the tensors: "pt" for torch, "np" for NumPy.

    Yields:
        The open file, as `safetensors.safe_open` gives it.

    Raises:
        OSError: if the file cannot be read.
        safetensors.SafetensorError: if it is damaged.
    """
    from safetensors import SafetensorError, safe_open

    with path.open("rb") as opened:  # of a file that may not be read, the library says that it is not there
        changed = not _holds_its_checksum(opened)
    if changed:
        raise SafetensorError("its content has changed since it was written")
    try:
        str(path).encode()
    except UnicodeEncodeError:
        with tempfile.TemporaryDirectory(prefix="negvae-") as folder:
            link = Path(folder) / "tensors"
            link.symlink_to(path.absolute())
            with safe_open(link, framework) as file:
                yield file
        return
    with safe_open(path, framework) as file:
        yield file


def order_header(path: Path) -> None:
    """Sort the header of a safetensors file, so that equal content gives equal bytes.

    The library writes the entries of its metadata in random order. Here they are sorted; the numbers are not moved.
    """
    with path.open("r+b") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
        metadata = {"__metadata__": header.pop("__metadata__")} if "__metadata__" in header else {}
        ordered = {**{name: dict(sorted(values.items())) for name, values in metadata.items()},
                   **dict(sorted(header.items(), key=lambda entry: (entry[1]["data_offsets"], entry[0])))}  # fmt: skip
        text = json.dumps(ordered, separators=(",", ":"), ensure_ascii=False).encode()
        if len(text) > length:
            raise ValueError(f"{path}: its header cannot be ordered")
        file.seek(8)
        file.write(text.ljust(length))


def add_checksum(path: Path) -> None:
    """Put the SHA-256 of a safetensors file in place of the zeros that its metadata have under `CHECKSUM`.

    It is that of the whole file with those zeros. `open_tensors` compares it: a changed digit of a threshold or of a
    weight would otherwise be read like any other. Files of earlier versions have none.
    """
    with path.open("r+b") as file:
        start, _ = _checksum(file)
        checksum = _sha256_without_checksum(file, start)
        file.seek(start)
        file.write(checksum)


def _holds_its_checksum(file: IO[bytes]) -> bool:
    """Return whether a safetensors file is as it was written, or has no checksum."""
    start, written = _checksum(file)
    return not written or _sha256_without_checksum(file, start) == written


def _checksum(file: IO[bytes]) -> tuple[int, bytes]:
    """Return where the checksum of a safetensors file stands, and what it is; it is empty if there is none."""
    length = int.from_bytes(file.read(8), "little")
    found = re.search(rb'"%s":"(.{64})"' % CHECKSUM.encode(), file.read(min(length, _LONGEST_HEADER)))
    return (8 + found.start(1), found[1]) if found else (0, b"")


def _sha256_without_checksum(file: IO[bytes], start: int) -> bytes:
    """Return the SHA-256 of a file in which the checksum, which starts there, is zeros."""
    file.seek(0)
    digest = hashlib.sha256(file.read(start) + NO_CHECKSUM.encode())
    file.seek(start + len(NO_CHECKSUM))
    return hashlib.file_digest(file, lambda: digest).hexdigest().encode()  # type: ignore[arg-type]


def sha256_without(content: bytes, checksum: str) -> str:
    """Return the SHA-256 of a content in which a checksum, at its last place in it, is zeros (`NO_CHECKSUM`).

    Args:
        content: content of a file that holds its own checksum.
        checksum: the checksum that stands in it, or the zeros that stand there until it is known.

    Returns:
        The SHA-256, as 64 hexadecimal digits.
    """
    before, _, after = content.rpartition(checksum.encode())
    return hashlib.sha256(before + NO_CHECKSUM.encode() + after).hexdigest()


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
