"""Where an image is out-of-distribution, by an encoder that gives a map of patches: distances to patches of inliers.

Each patch of an image is a row of features. Its distance is that to the nearest patches of training images, wherever
in the image these lay, in the space standardized by the training patches (after PatchCore: Roth et al. 2022, "Towards
total recall in industrial anomaly detection"). Ranked among the patches of held-out inliers, it becomes a p-value, and
a map is minus its common logarithm: 3 means that one in a thousand patches of held-out inliers lies as far out.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn.functional import interpolate

from negvae.scoring.calibration import p_values
from negvae.scoring.neighbors import REFERENCE_NUMBERS, REFERENCE_ROWS

Values = NDArray[np.float64]

NEIGHBORS = 3
"""Number of nearest reference patches that a distance is averaged over."""


@dataclass(frozen=True)
class PatchBank:
    """Patches of training images, and how far the patches of held-out inliers lie from them.

    Attributes:
        center: mean of each feature of training patches (D).
        scale: standard deviation of each feature (D).
        rows: reference patches, standardized (R x D).
        held_out: distances of held-out inliers' patches, ascending.
        images: score of each held-out inlier, its patches' largest distance, ascending.
    """

    center: Values
    scale: Values
    rows: Values
    held_out: Values
    images: Values

    def __post_init__(self) -> None:
        """Refuse arrays that do not belong together.

        Raises:
            ValueError: if a shape is wrong, or a number is not finite.
        """
        size = len(self.center)
        whole = self.center.shape == self.scale.shape == (size,) and self.rows.ndim == 2
        whole = whole and self.rows.shape[1] == size and len(self.rows) > NEIGHBORS and bool((self.scale > 0).all())
        whole = whole and all(values.ndim == 1 and len(values) > 0 for values in (self.held_out, self.images))
        if not whole or not all(np.isfinite(values).all() for values in self.arrays().values()):
            raise ValueError("patches: arrays do not belong together, or a number is not finite")

    def arrays(self) -> dict[str, Values]:
        """Return all attributes by name."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    def distances(self, patches: Values) -> Values:
        """Return how far each patch of one image lies from the reference patches.

        Args:
            patches: features of the patches, D x h x w.

        Returns:
            Mean distances to the nearest `NEIGHBORS` reference patches, h x w.
        """
        size, *grid = patches.shape
        rows = (patches.reshape(size, -1).T - self.center) / self.scale
        squared = np.square(rows).sum(1)[:, None] + np.square(self.rows).sum(1) - 2 * rows @ self.rows.T
        nearest = np.partition(np.maximum(squared, 0), NEIGHBORS - 1, axis=1)[:, :NEIGHBORS]
        found: Values = np.sqrt(nearest).mean(1).reshape(grid)
        return found

    def surprise(self, distances: Values) -> Values:
        """Return -log10 of the p-values of patches among the patches of held-out inliers; any shape."""
        return -np.log10(p_values(self.held_out, distances.ravel())).reshape(distances.shape)

    def image_p_values(self, scores: Values) -> Values:
        """Return conformal p-values of images, given the largest distance of each image's patches (N)."""
        return p_values(self.images, scores)


def fit_bank(training: list[Values], held_out: list[Values], seed: int = 0) -> PatchBank:
    """Measure the patches of inliers.

    Args:
        training: patches of each training image, D x h x w.
        held_out: patches of each held-out inlier, D x h x w.
        seed: seed of the choice of reference patches: at most 4,096, and at most 2^22 numbers together.

    Returns:
        The reference patches and the distances of held-out patches.

    Raises:
        ValueError: if there are no images on one side, or too few patches.
    """
    if not training or not held_out:
        raise ValueError("maps of patches take inliers to compare with and held-out inliers: hold out a part")
    rows = np.concatenate([patches.reshape(len(patches), -1).T for patches in training])
    center, scale = rows.mean(0), rows.std(0)
    scale = np.where(scale > 1e-12 * np.abs(rows).max(), scale, 1.0)
    most = min(REFERENCE_ROWS, max(REFERENCE_NUMBERS // rows.shape[1], NEIGHBORS + 1))
    chosen = np.sort(np.random.default_rng(seed).permutation(len(rows))[:most])
    reference = (rows[chosen] - center) / scale
    bare = PatchBank(center, scale, reference, np.zeros(1), np.zeros(1))
    found = [bare.distances(patches) for patches in held_out]
    return PatchBank(
        center, scale, reference, np.sort(np.concatenate([each.ravel() for each in found])),
        np.sort([each.max() for each in found]),
    )  # fmt: skip


def enlarged(values: Values, size: tuple[int, int]) -> NDArray[np.float32]:
    """Enlarge the map of one image (h x w) bilinearly to a height and width in pixels."""
    whole: Any = interpolate(torch.from_numpy(values)[None, None], size=size, mode="bilinear", align_corners=False)
    result: NDArray[np.float32] = whole[0, 0].float().numpy()
    return result
