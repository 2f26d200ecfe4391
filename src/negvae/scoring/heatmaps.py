"""Maps of where an image is out-of-distribution, calibrated by the pixels of held-out inliers.

A map is the log-odds of the negative prior in each patch (`negvae.model.patches`), enlarged to the image's size, and
then minus the common logarithm of a p-value: 3 at a pixel means that one in a thousand pixels of held-out inliers has
log-odds as high. So one color scale means the same in all images.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import interpolate

from negvae.device import autocast, own_state
from negvae.model.patches import PatchEncoder
from negvae.scoring.blocks import IMAGES, filled, map_blocks
from negvae.scoring.passes import Pass

LOW, HIGH, BINS = -6.0, 6.0, 1024
"""Range of the log-odds (nats per latent dimension and unit of c) that are told apart, and into how many bins."""

TOP = 0.01
"""The share of an image's pixels that its score is the mean of: those with the highest log-odds."""

LARGEST = 6.0
"""The top of the color scale of maps: one in a million pixels."""


@dataclass(frozen=True)
class Heatmaps:
    """A trained patch encoder with the log-odds of held-out inliers' pixels.

    Attributes:
        network: encoder in evaluation mode.
        shape: shape (C, H, W) of the images.
        counts: number of held-out inliers' pixels with log-odds in each of `BINS` bins, so that memory does not grow
            with their number.
        scores: image scores of the held-out inliers, ascending.
    """

    network: PatchEncoder
    shape: tuple[int, int, int]
    counts: NDArray[np.int64]
    scores: NDArray[np.float64]

    def __post_init__(self) -> None:
        """Refuse parts that do not belong together.

        Raises:
            ValueError: if an array has another form than it was made with.
        """
        if self.counts.shape != (BINS,) or (self.counts < 0).any() or not self.counts.any():
            raise ValueError(f"counts of pixels must be {BINS} whole numbers of at least 0, not all 0")
        if self.scores.ndim != 1 or not len(self.scores) or not (np.diff(self.scores) >= 0).all():
            raise ValueError("scores of held-out inliers must be one number or more, ascending")
        if self.network.channels != self.shape[0]:
            raise ValueError(f"the network takes {self.network.channels} channels, the images have {self.shape[0]}")

    def __call__(self, stored: Tensor) -> NDArray[np.float32]:
        """Compute the maps of images.

        Args:
            stored: uint8 images, N x C x H x W.

        Returns:
            -log10 of the p-value of each pixel, N x H x W; 0 to the logarithm of the number of held-out pixels.

        Raises:
            ValueError: if the images have another type or shape.
        """
        table = torch.from_numpy(surprise_table(self.counts))
        found = self._over_blocks(stored, lambda odds: surprise(odds, table).float())
        return np.concatenate(found) if found else np.empty((0, *self.shape[1:]), np.float32)

    def image_scores(self, stored: Tensor) -> NDArray[np.float64]:
        """Score images by the pixels that their maps show highest.

        Args:
            stored: uint8 images, N x C x H x W.

        Returns:
            N scores, larger = more out-of-distribution.

        Raises:
            ValueError: if the images have another type or shape.
        """
        found = self._over_blocks(stored, top_mean)
        return np.concatenate(found) if found else np.empty(0)

    def p_values(self, scores: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return conformal p-values of image scores: (1 + #{held-out >= score}) / (held-out + 1)."""
        at_least = len(self.scores) - np.searchsorted(self.scores, scores, side="left")
        return (1 + at_least) / (len(self.scores) + 1)

    def _over_blocks(self, stored: Tensor, function: Callable[[Tensor], Tensor]) -> list[NDArray[Any]]:
        return over_blocks(self.network, self.shape, stored, function)


def defects(x: Pass) -> Tensor:
    """Score images by the pixels that their maps show highest, in nats per latent dimension, over c (N).

    Args:
        x: pass over N images.

    Returns:
        N values.

    Raises:
        ValueError: if no maps were trained.
    """
    if x.references.heatmaps is None:
        raise ValueError("score defects has no heat maps here")
    return top_mean(log_odds_maps(x.references.heatmaps.network, x.images))


@own_state()
def calibrated_heatmaps(network: PatchEncoder, held_out: Tensor) -> Heatmaps:
    """Calibrate a trained patch encoder.

    Args:
        network: encoder in evaluation mode.
        held_out: inliers that it was not trained on, uint8, N x C x H x W, N >= 1.

    Returns:
        The maps.

    Raises:
        ValueError: if there are no held-out inliers.
    """
    if not len(held_out):
        raise ValueError("no inliers are held out to calibrate maps: hold out a part of them")
    channels, height, width = held_out.shape[1:]
    shape = (channels, height, width)
    counts, scores = np.zeros(BINS, np.int64), []
    for part in torch.split(held_out, 512):
        for odds in over_blocks(network, shape, part, lambda odds: odds):
            counts += np.bincount(bins(odds).ravel(), minlength=BINS)
            scores.append(top_mean(torch.from_numpy(odds)).numpy())
    return Heatmaps(network, shape, counts, np.sort(np.concatenate(scores)))


def log_odds_maps(network: PatchEncoder, prepared: Tensor, dtype: torch.dtype = torch.float64) -> Tensor:
    """Compute the log-odds of each pixel, bilinearly between the patches' centers.

    Args:
        network: encoder in evaluation mode.
        prepared: images, N x C x H x W, floats in [0, 1].
        dtype: type in which is computed after the network.

    Returns:
        N x H x W of this type.
    """
    odds = network.log_odds(prepared).to(dtype)
    return interpolate(odds[:, None], size=prepared.shape[2:], mode="bilinear", align_corners=False)[:, 0]


def top_mean(odds: Tensor) -> Tensor:
    """Return the mean of the highest `TOP` of each map's values (N), given maps N x H x W.

    >>> top_mean(torch.arange(400.0).reshape(1, 20, 20))
    tensor([397.5000])
    """
    values = odds.flatten(1)
    count = max(math.ceil(TOP * values.shape[1]), 1)
    return values.topk(count, dim=1).values.mean(1)


def bins(odds: NDArray[np.float64]) -> NDArray[np.int64]:
    """Return the bin of each value; the outermost bins hold what lies beyond the range, too.

    >>> bins(np.array([-100.0, 0.0, 100.0])).tolist()
    [0, 512, 1023]
    """
    return np.clip(np.floor((odds - LOW) * (BINS / (HIGH - LOW))), 0, BINS - 1).astype(np.int64)


def surprise_table(counts: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return -log10 of the p-value at the lower edge of each bin, and at the upper edge of the last.

    The p-value is (1 + the number of held-out pixels from this edge on) / (their number + 1), as in
    `negvae.scoring.calibration.p_values`.

    Args:
        counts: number of held-out pixels in each bin.

    Returns:
        One value more than there are bins, from 0 on, not descending.

    >>> surprise_table(np.array([90, 9])).round(3).tolist()
    [0.0, 1.0, 2.0]
    """
    at_least = np.append(counts[::-1].cumsum()[::-1], 0)
    values: NDArray[np.float64] = np.log10(1 + counts.sum()) - np.log10(1 + at_least)
    return values


def surprise(odds: Tensor, table: Tensor) -> Tensor:
    """Look -log10 of p-values up, linearly between the edges of bins.

    Args:
        odds: log-odds, of any shape.
        table: what `surprise_table` returns, in the type of the odds.

    Returns:
        Values of the same shape.
    """
    place = ((odds - LOW) * ((len(table) - 1) / (HIGH - LOW))).clamp(0, len(table) - 1)
    below = place.floor().clamp(max=len(table) - 2)
    index = below.long()
    return torch.lerp(table[index], table[index + 1], place - below)


def over_blocks(
    network: PatchEncoder, shape: tuple[int, int, int], stored: Tensor, function: Callable[[Tensor], Tensor]
) -> list[NDArray[Any]]:
    """Apply a function to the log-odds of images in blocks of one size, so that a map depends on its image alone.

    Args:
        network: encoder in evaluation mode.
        shape: shape (C, H, W) of the images.
        stored: uint8 images, N x C x H x W.
        function: function from log-odds (B x H x W, float64, on the CPU) to one row for each image.

    Returns:
        The results of the blocks, in order.

    Raises:
        ValueError: if the images have another type or shape.
    """
    if stored.dtype != torch.uint8 or tuple(stored.shape[1:]) != shape:
        wanted = "x".join(map(str, shape))
        raise ValueError(f"images are {stored.dtype} {tuple(stored.shape)}: these maps are of uint8 N x {wanted}")
    device = next(network.parameters()).device

    def parts() -> Iterator[tuple[Tensor, int]]:
        for part in torch.split(stored, IMAGES) if len(stored) else ():
            yield filled(part, IMAGES), len(part)

    def apply(block: tuple[Tensor, int]) -> NDArray[Any]:
        part, count = block
        with torch.inference_mode(), autocast("float32", device):
            prepared = part.to(device).float() / 255
            prepared = prepared.contiguous(memory_format=torch.channels_last)
            found: NDArray[Any] = function(log_odds_maps(network, prepared)[:count].cpu()).numpy()
            return found

    return map_blocks(apply, parts(), device)
