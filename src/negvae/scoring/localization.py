"""How well maps find where images are defective: pixel AUROC and per-region overlap, given masks of the defects."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from sklearn.metrics import roc_auc_score

FPR_LIMIT = 0.3
"""The false-positive rate to which the per-region overlap is integrated, as in the publications on MVTec AD."""


@dataclass(frozen=True)
class Localization:
    """How well maps find defects.

    Attributes:
        pixel_auroc: area under the ROC curve of all pixels.
        pro: mean overlap with the defective regions, integrated over false-positive rates up to `FPR_LIMIT` and divided
            by it.
        image_auroc: area under the ROC curve of the images; None without such images or scores.
    """

    pixel_auroc: float
    pro: float
    image_auroc: float | None = None


def localization(
    maps: NDArray[np.floating],
    masks: NDArray[np.bool_],
    scores: NDArray[np.floating] | None = None,
    defective: NDArray[np.bool_] | None = None,
) -> Localization:
    """Measure maps by the masks of defects.

    Args:
        maps: N x H x W, larger = more conspicuous.
        masks: N x H x W, true where a pixel is defective.
        scores: N image scores; None if images are not scored.
        defective: N values, true for images with a defect; None for those whose mask has a pixel.

    Returns:
        The measures.

    Raises:
        ValueError: if the shapes differ, or there are no pixels of one of the two kinds.

    >>> masks = np.zeros((2, 4, 4), bool); masks[1, :2] = True
    >>> localization(masks.astype(float), masks, np.array([0.0, 1.0]))
    Localization(pixel_auroc=1.0, pro=1.0, image_auroc=1.0)
    """
    if maps.shape != masks.shape or maps.ndim != 3:
        raise ValueError(f"maps are {maps.shape}, masks {masks.shape}: both must be N x H x W")
    if not masks.any() or masks.all():
        raise ValueError("masks mark no pixel, or every pixel: nothing can be compared")
    image = None
    has_defect = masks.any((1, 2)) if defective is None else defective
    if scores is not None and has_defect.any() and not has_defect.all():
        image = float(roc_auc_score(has_defect, scores))
    return Localization(float(roc_auc_score(masks.ravel(), maps.ravel())), region_overlap(maps, masks), image)


def region_overlap(maps: NDArray[np.floating], masks: NDArray[np.bool_], limit: float = FPR_LIMIT) -> float:
    """Integrate the per-region overlap over the false-positive rate (Bergmann et al. 2021, section 5.2).

    At a threshold, the overlap of a region, which is a connected component of a mask (diagonals included), is the share
    of its pixels that lie above; every region has the same weight, whatever its size.

    Args:
        maps: N x H x W, larger = more conspicuous.
        masks: N x H x W, true where a pixel is defective.
        limit: highest false-positive rate, above 0 and up to 1.

    Returns:
        The mean overlap up to this rate, from 0 to 1.

    >>> masks = np.zeros((1, 2, 8), bool); masks[0, :, 5:] = True
    >>> round(region_overlap(-masks.astype(float), masks), 3)
    0.0
    """
    weights = np.concatenate([region_weights(mask).ravel() for mask in masks])
    values, normal = maps.ravel(), ~masks.ravel()
    order = np.argsort(-values, kind="stable")
    false = np.cumsum(normal[order]) / normal.sum()
    overlap = np.cumsum(weights[order])
    last = np.append(np.diff(values[order]) != 0, True)  # pixels with one value are called together
    false, overlap = np.append(0.0, false[last]), np.append(0.0, overlap[last] / overlap[-1])
    inside = false <= limit
    at_limit = np.interp(limit, false, overlap)
    false, overlap = np.append(false[inside], limit), np.append(overlap[inside], at_limit)
    steps = np.diff(false) * (overlap[1:] + overlap[:-1]) / 2  # np.trapezoid is that of NumPy 2 only
    return float(steps.sum() / limit)


def region_weights(mask: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Return the weight of each pixel of a mask, so that every connected region has a sum of 1 (H x W)."""
    regions, count = ndimage.label(mask, np.ones((3, 3)))
    sizes = np.bincount(regions.ravel(), minlength=count + 1).astype(np.float64)
    sizes[0] = np.inf
    weights: NDArray[np.float64] = 1 / sizes[regions]
    return weights
