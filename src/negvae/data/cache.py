"""The user's cache folder, and the decoded pixels that are kept in it."""

from __future__ import annotations

import hashlib
import json
import logging
import os
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from negvae.data.formats import READ_ERRORS, Decoded, Folder, Reader, npz, pixel_sha256, read
from negvae.files import home, replacing, state_of

_log = logging.getLogger("negvae.data")


def cache_folder() -> Path:
    """Return the user's cache: NEGVAE_CACHE, else negvae below XDG_CACHE_HOME, else ~/.cache/negvae.

    For a user without a home it is a folder that is not there: "~" would be one below the working folder.
    """
    given = os.environ.get("NEGVAE_CACHE")
    folder = home(given) if given else home(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "negvae"
    return Path("/nonexistent", *folder.parts[1:]) if folder.parts[0] == "~" else folder


def read_cached(reader: Reader) -> tuple[Decoded, str]:
    """Read a whole set and hash its pixels; where decoding is slow, reuse an earlier decoding of unchanged files.

    A cache entry is one .npz file: pixels, labels, the sizes and times of the files, and the pixel hash, which is
    checked.

    Args:
        reader: reader of the set.

    Returns:
        The decoded images with their labels, and the SHA-256 of the pixels (see `pixel_sha256`).

    Raises:
        ValueError: if the files are damaged.
    """
    if not reader.slow:
        decoded = read(reader)
        return decoded, pixel_sha256(decoded.images)
    files = [file for block in reader.rows() for file in block.rows] if isinstance(reader, Folder) else reader.files
    stats = [(os.path.abspath(p), *state_of(p)) for p in (*files, reader.label_file) if p]
    state = hashlib.sha256(json.dumps(stats).encode()).hexdigest()
    key = hashlib.sha256(json.dumps([path for path, *_ in stats]).encode()).hexdigest()[:24]
    entry = cache_folder() / "decoded" / f"{key}.npz"
    if (kept := _read_entry(entry, state)) is not None:
        return kept
    decoded = read(reader)
    sha256 = pixel_sha256(decoded.images)
    _write_entry(entry, decoded, {"state": state, "sha256": sha256, "notes": decoded.notes, "origin": stats[0][0]})
    return decoded, sha256


def _read_entry(entry: Path, state: str) -> tuple[Decoded, str] | None:
    if not entry.is_file():
        return None
    with suppress(*READ_ERRORS):  # whatever is wrong with an entry, the source is still there: decode it again
        facts = json.loads(str(npz.array(entry, "facts")))
        if facts["state"] != state:
            return None
        images = npz.array(entry, "images")
        labels = npz.array(entry, "labels") if "labels" in npz.keys(entry) else None
        if images.dtype == np.uint8 and images.ndim == 4 and pixel_sha256(images) == facts["sha256"]:
            return Decoded(images, labels, tuple(facts["notes"])), str(facts["sha256"])
    _log.info("%s is damaged and is made anew", entry)
    return None


def _write_entry(entry: Path, decoded: Decoded, facts: dict[str, Any]) -> None:
    content: dict[str, Any] = {"images": decoded.images, "facts": np.array(json.dumps(facts))}
    if decoded.labels is not None:
        content["labels"] = decoded.labels
    try:
        entry.parent.mkdir(parents=True, exist_ok=True)
        with replacing(entry) as temporary, temporary.open("wb") as file:
            np.savez(file, **content)
    except OSError as error:  # a full or read-only disk costs time at the next load, nothing else
        _log.info("decoded pixels not kept in %s (%s)", entry.parent, error)
