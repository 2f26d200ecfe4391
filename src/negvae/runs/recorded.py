"""What a run's folder remembers of its inliers, so that no other image is ever taken for one that was held out.

inliers.json holds the SHA-256 of all pixels, the rows that were held out, and for a folder the name and the SHA-256 of
each file.
"""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from negvae.data import stores
from negvae.data.formats import IMAGE_ENDINGS, pixel_sha256
from negvae.data.formats.folder import walk
from negvae.files import write_text

INLIERS = "inliers.json"
SPLIT, WHOLE, MEMORY = "split", "whole", "memory"
_ENDINGS = (*IMAGE_ENDINGS, ".parquet")


@dataclass(frozen=True)
class Recorded:
    """The inliers that a run was given.

    Attributes:
        sha256: of all of them, trained on or held out; None where the folder does not say.
        source: `SPLIT`: the train split of a set, or of a path without splits all but the images kept for tests;
            `WHOLE`: all images of a path; `MEMORY`: data that the caller held in memory.
        held_out: the rows that were not trained on; None where the folder does not say.
        files: of a folder, the SHA-256 of each file by its path in there.
    """

    sha256: str | None = None
    source: str = SPLIT
    held_out: tuple[int, ...] | None = None
    files: dict[str, str] = field(default_factory=dict)


def data_sha256(stored: NDArray[Any]) -> str:
    """SHA-256 of inliers as they are stored: of the pixels of images, of the numbers of rows."""
    if stored.dtype == np.uint8 and stored.ndim == 4:
        return pixel_sha256(stored)
    return hashlib.sha256(np.ascontiguousarray(stored).tobytes()).hexdigest()


def file_hashes(path: str) -> dict[str, str]:
    """The SHA-256 of every image file and every Parquet file below a folder by its path in there, in order.

    Args:
        path: of the folder; anything else has none.
    """
    if not os.path.isdir(path):
        return {}
    hashes = {}
    for file in walk(path, _ENDINGS):
        with stores.open_file(file) as content:
            hashes[os.path.relpath(file, path)] = hashlib.file_digest(content, "sha256").hexdigest()  # type: ignore[arg-type]
    return hashes


def write_recorded(directory: Path, recorded: Recorded) -> None:
    """Write inliers.json."""
    write_text(directory / INLIERS, json.dumps(asdict(recorded), indent=None) + "\n")


def read_recorded(directory: Path, provenance: dict[str, Any]) -> Recorded:
    """The inverse of `write_recorded`; of an earlier version's folder, what its provenance says.

    Args:
        directory: of the run.
        provenance: from its config.yaml.

    Raises:
        ValueError: inliers.json is damaged.
    """
    path = directory / INLIERS
    if not path.is_file():
        hashes = provenance.get("data_sha256")
        found = hashes.get("inliers") if isinstance(hashes, dict) else None
        return Recorded(found if isinstance(found, str) else None)
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        held_out = content["held_out"]
        recorded = Recorded(
            content["sha256"],
            content["source"],
            None if held_out is None else tuple(map(int, held_out)),
            {str(name): str(digest) for name, digest in content["files"].items()},
        )
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path}: damaged ({' '.join(str(error).split())[:120]})") from None
    if recorded.source not in (SPLIT, WHOLE, MEMORY) or not isinstance(recorded.sha256, str | None):
        raise ValueError(f"{path}: damaged (source {recorded.source!r})")
    return recorded


def difference(recorded: Recorded, path: str) -> str:
    """Which file of a folder is not what it was, in words; empty where that cannot be told."""
    if not recorded.files or not os.path.isdir(path):
        return ""
    now = file_hashes(path)
    for name in sorted({*recorded.files, *now}):
        if name not in now:
            return f"{name} is gone"
        if name not in recorded.files:
            return f"{name} is new"
        if now[name] != recorded.files[name]:
            return f"{name} is another"
    return ""
