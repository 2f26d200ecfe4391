"""Record a run's inliers in its folder, so that no other image is ever mistaken for a held-out one.

inliers.json holds the SHA-256 of all pixels, the rows that were held out, and, if the inliers are a folder, the name
and the SHA-256 of each file; trained.safetensors has hashes of the inliers that were trained on.
"""

from __future__ import annotations

import hashlib
import json
import os
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from negvae.data import stores
from negvae.data.formats import IMAGE_ENDINGS, DataError, pixel_sha256
from negvae.data.formats.folder import walk
from negvae.files import from_json, write_text
from negvae.runs.fingerprints import Fingerprints, read_fingerprints
from negvae.runs.provenance import data_hashes

INLIERS = "inliers.json"
SPLIT, WHOLE, MEMORY = "split", "whole", "memory"
_ENDINGS = (*IMAGE_ENDINGS, ".parquet")


@dataclass(frozen=True)
class Recorded:
    """The recorded inliers of a run.

    Attributes:
        sha256: SHA-256 of all inliers, both trained on and held out; None if the run folder does not record it.
        source: `SPLIT`: the train split of a set, or, of a path without splits, all images except those kept for
            testing; `WHOLE`: all images of a path; `MEMORY`: data that the caller held in memory.
        held_out: indices of the rows that were not trained on; None if the run folder does not record them.
        files: SHA-256 of each file by its path in the data folder; empty if the inliers are not a folder.
        trained: hashes of the inliers that were trained on; None if the run folder does not record them.
    """

    sha256: str | None = None
    source: str = SPLIT
    held_out: tuple[int, ...] | None = None
    files: dict[str, str] = field(default_factory=dict)
    trained: Fingerprints | None = None


def data_sha256(stored: NDArray[Any]) -> str:
    """Return the SHA-256 of inliers as stored: over the pixels of images, or over the numbers of rows."""
    if stored.dtype == np.uint8 and stored.ndim == 4:
        return pixel_sha256(stored)
    return hashlib.sha256(np.ascontiguousarray(stored).tobytes()).hexdigest()


def file_hashes(path: str) -> dict[str, str]:
    """Return the SHA-256 of every image file and Parquet file below a folder, by its path in the folder, in order.

    Args:
        path: path of the folder.

    Returns:
        The hash of each file that can be opened; empty if `path` is not a folder.
    """
    if not os.path.isdir(path):
        return {}
    hashes = {}
    for file in walk(path, _ENDINGS):
        with suppress(OSError, DataError), stores.open_file(file) as content:
            hashes[os.path.relpath(file, path)] = hashlib.file_digest(content, "sha256").hexdigest()  # type: ignore[arg-type]
    return hashes


def write_recorded(directory: Path, recorded: Recorded) -> None:
    """Write inliers.json, and trained.safetensors if the hashes are known."""
    content = {
        "sha256": recorded.sha256, "source": recorded.source, "held_out": recorded.held_out, "files": recorded.files,
    }  # fmt: skip
    write_text(directory / INLIERS, json.dumps(content) + "\n")
    if recorded.trained is not None:
        recorded.trained.write(directory)


def read_recorded(directory: Path, provenance: dict[str, Any]) -> Recorded:
    """Read what `write_recorded` wrote; from an earlier version's folder, what its provenance records.

    Args:
        directory: folder of the run.
        provenance: provenance from the run's config.yaml.

    Returns:
        The recorded inliers.

    Raises:
        ValueError: if inliers.json or trained.safetensors is damaged.
    """
    path = directory / INLIERS
    if not path.is_file():
        found = data_hashes(provenance).get("inliers")
        return Recorded(found if isinstance(found, str) else None)
    try:
        content = from_json(path.read_text(encoding="utf-8"))
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
    return replace(recorded, trained=read_fingerprints(directory))


def difference(recorded: Recorded, path: str) -> str:
    """Describe the first file of a folder that has changed; empty if that cannot be determined."""
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
