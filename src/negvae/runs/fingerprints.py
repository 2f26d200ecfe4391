"""Hashes of the inliers that a model was trained on, by which they are known wherever they lie later.

No path has to be read again, and data that were in memory are known too. Of many inliers the smallest hashes are kept:
a share of all possible hashes, so that of other data the inputs in that share can be compared, and stand for the rest.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from torch import Tensor

from negvae.checksums import open_tensors
from negvae.messages import first_line
from negvae.negatives.overlap import digests
from negvae.training.checkpoint import save_tensors

TRAINED = "trained.safetensors"
KEPT = 2**16
"""Largest number of hashes that are kept: half a megabyte."""


@dataclass(frozen=True)
class Fingerprints:
    """What is kept of the inliers that a model was trained on.

    Attributes:
        hashes: the `KEPT` smallest hashes of the inliers, ascending, uint64.
        repeats: share of the held-out inliers that equal one of them, 0 to 1.
    """

    hashes: NDArray[np.uint64]
    repeats: float = 0.0

    @property
    def whole(self) -> bool:
        """Return whether all hashes are kept."""
        return len(self.hashes) < KEPT

    @classmethod
    def of(cls, training: Tensor, held_out: Tensor) -> Fingerprints:
        """Take the hashes of inliers as the model takes them, each N x C x H x W."""
        kept = cls(np.unique(_hashes(training))[:KEPT])
        return cls(kept.hashes, kept.share_of(held_out))

    def share_of(self, inputs: Tensor) -> float:
        """Return the share of inputs (N x C x H x W) that equal one that was trained on; 0 without any to compare.

        Images and tiles of one color count as new: they are equal wherever they come from.
        """
        hashes, plain = _hashes(inputs), _are_plain(inputs)
        if not self.whole:
            compared = hashes <= self.hashes[-1]
            hashes, plain = hashes[compared], plain[compared]
        return float((np.isin(hashes, self.hashes) & ~plain).mean()) if len(hashes) else 0.0

    def write(self, directory: Path) -> None:
        """Write trained.safetensors to the folder of a run."""
        repeats = np.array([self.repeats], np.float64)
        tensors = {"hashes": torch.from_numpy(self.hashes.view(np.int64)), "repeats": torch.from_numpy(repeats)}
        save_tensors(directory / TRAINED, tensors, {})


def read_fingerprints(directory: Path) -> Fingerprints | None:
    """Read what `Fingerprints.write` wrote.

    Args:
        directory: folder of the run.

    Returns:
        The hashes; None from the folder of an earlier version.

    Raises:
        ValueError: if the file is damaged.
    """
    path = directory / TRAINED
    if not path.is_file():
        return None
    try:
        with open_tensors(path, "np") as file:
            hashes, repeats = file.get_tensor("hashes"), file.get_tensor("repeats")
    except (SafetensorError, TypeError, ValueError) as error:
        raise ValueError(f"{path}: damaged ({first_line(error)})") from None
    whole = hashes.ndim == 1 and hashes.dtype == np.int64 and len(hashes) <= KEPT
    if not whole or repeats.shape != (1,) or not 0 <= float(repeats[0]) <= 1:
        raise ValueError(f"{path}: damaged (its arrays are not hashes and a share)")
    return Fingerprints(np.sort(hashes.view(np.uint64)), float(repeats[0]))


def _hashes(inputs: Tensor) -> NDArray[np.uint64]:
    """Return a hash of each input (N), uint64."""
    return np.array([int.from_bytes(each[:8], "little") for each in digests(inputs)], np.uint64)


def _are_plain(inputs: Tensor) -> NDArray[np.bool_]:
    """Return which images have one color alone (N); rows of features are none."""
    pixels = inputs.cpu().flatten(2)
    if inputs.is_floating_point() or not len(inputs):
        return np.zeros(len(inputs), bool)
    return (pixels.amax(2) == pixels.amin(2)).all(1).numpy()
