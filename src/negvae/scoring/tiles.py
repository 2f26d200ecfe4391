"""One score for an image from the scores of its tiles, by a rule that is chosen on inliers.

p-values and thresholds are those of whole images: the held-out inliers are held out by image, their tiles' scores are
made into one score by the same rule, and the rule depends on training images alone. So a new image's score and theirs
are exchangeable, and conformal p-values hold for each image, however many tiles it has.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from negvae.negatives.transformations import rotation
from negvae.registry import choose
from negvae.scoring.metrics import auroc

Scores = Callable[[Tensor], NDArray[Any]]
"""A function from stored tiles (T x C x h x w) to their scores (T)."""
TOP = 0.25
RULES: Mapping[str, str] = {
    "mean": "the mean of the tiles' scores",
    "top": "the mean of the highest quarter of the tiles' scores",
    "max": "the highest of the tiles' scores",
}
"""The rules, each with its meaning."""
UNCALIBRATED = "mean"
"""The rule of a model that is not calibrated."""
TRIED_IMAGES = 40
TRIED_TILES = 480


@dataclass(frozen=True)
class Owners:
    """The image that each tile belongs to.

    Attributes:
        training: number of the image of each training tile, ascending.
        held_out: number of the image of each held-out tile, ascending from 0.
    """

    training: NDArray[np.int64]
    held_out: NDArray[np.int64]


def highest(count: int) -> int:
    """Return how many of an image's tiles the rule "top" takes.

    >>> [highest(count) for count in (1, 4, 5, 12)]
    [1, 1, 2, 3]
    """
    return math.ceil(TOP * count)


def combine(values: NDArray[Any], owners: NDArray[np.int64], rule: str) -> NDArray[Any]:
    """Make one score for each image.

    Args:
        values: score of each tile (T).
        owners: number of the image that each tile belongs to (T), ascending, from 0 and without gaps.
        rule: one of `RULES`.

    Returns:
        The score of each image (N), in the type of `values`.

    Raises:
        ValueError: if the rule is unknown.

    >>> combine(np.array([1.0, 3.0, 5.0]), np.array([0, 0, 1]), "mean").tolist()
    [2.0, 5.0]
    """
    choose("rule for tiles", rule, RULES)
    if not len(values):
        return values
    parts = np.split(values.astype(np.float64), np.flatnonzero(np.diff(owners)) + 1)
    found = np.array([_of_one(part, rule) for part in parts])
    return found.astype(values.dtype)


def _of_one(values: NDArray[np.float64], rule: str) -> float:
    """Return the score of one image; sums are exactly rounded, so that they depend on its tiles alone."""
    if rule == "max":
        return float(values.max())
    counted = values if rule == "mean" else np.sort(values)[::-1][: highest(len(values))]
    return math.fsum(counted) / len(counted)


def choose_rule(scores: Scores, training: Tensor, owners: NDArray[np.int64]) -> str:
    """Choose the rule on training images.

    Up to 40 images are compared with copies of themselves in which all tiles, or only one tile, are changed: blended
    with a tile of another image, or turned. The rule is chosen whose scores tell the copies best (mean AUROC).

    Args:
        scores: function that scores stored tiles.
        training: training tiles, T x C x h x w.
        owners: number of the image of each tile (T), ascending.

    Returns:
        The name of the rule.
    """
    rows, tiles_of = _some(owners)
    tiles = training[torch.from_numpy(rows)]
    if len(np.unique(tiles_of)) < 2:
        return "mean"
    prepared, generator = tiles.float() / 255, torch.Generator().manual_seed(0)
    blended = (prepared + prepared.roll(len(prepared) // 2, 0)) / 2  # with a tile of another image
    turned = rotation(prepared, generator)
    which = torch.rand(len(prepared), 1, 1, 1, generator=generator, dtype=torch.float32) < 0.5
    changed = torch.where(which, blended, turned).mul(255).round().clamp(0, 255).to(torch.uint8)
    before, after = scores(tiles).astype(np.float64), scores(changed).astype(np.float64)
    draw = np.random.default_rng(0)
    local = before.copy()
    for image in np.unique(tiles_of):
        place = draw.choice(np.flatnonzero(tiles_of == image))
        local[place] = after[place]
    found = {}
    for rule in RULES:
        inliers = combine(before, tiles_of, rule)
        found[rule] = np.mean([auroc(inliers, combine(values, tiles_of, rule))[0] for values in (after, local)])
    return max(found, key=lambda rule: found[rule])


def _some(owners: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the rows of all tiles of a few images, evenly taken, and the image of each, numbered from 0."""
    images = np.unique(owners)
    each = max(len(owners) / len(images), 1)
    count = max(min(TRIED_IMAGES, int(TRIED_TILES / each), len(images)), min(2, len(images)))
    taken = images[np.linspace(0, len(images) - 1, count).astype(int)]
    rows = np.flatnonzero(np.isin(owners, taken))
    return rows, np.searchsorted(taken, owners[rows])
