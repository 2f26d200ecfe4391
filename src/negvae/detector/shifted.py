"""P-values for a place whose inliers differ from those that the detector was calibrated on."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from negvae.scoring.weighted import Overlap, density_ratio, overlap, weighted_p_values

Floats = NDArray[np.float64]


class Codes(Protocol):
    """What is asked of a detector."""

    def ood_score(self, X: Any) -> NDArray[Any]:
        """The decision scores."""

    def transform(self, X: Any) -> NDArray[np.float64]:
        """The latent codes."""


@dataclass(frozen=True)
class ShiftedPValues:
    """Weighted conformal p-values; made by `negvae.NegVAEDetector.shifted`.

    The density ratio is estimated in the latent space: what it cannot see of the difference between the places, the
    weights do not correct.

    Attributes:
        detector: Gives scores and latent codes.
        scores: Of the weighted inliers.
        weights: Of each.
        ratio: Gives weights for latent codes.
        overlap: How far the weights carry.
    """

    detector: Codes
    scores: Floats
    weights: Floats
    ratio: Callable[[ArrayLike], Floats]
    overlap: Overlap

    @classmethod
    def of(cls, detector: Codes, new_inliers: Any, inliers: Any) -> Self:
        """Estimate the weights, and warn of what speaks against them.

        Raises:
            ValueError: Fewer than 10 of either.
        """
        old, new = detector.transform(inliers), detector.transform(new_inliers)
        ratio = density_ratio(old, new)
        weights = ratio(old)
        found = overlap(weights, ratio(new))
        for line in found.concerns():
            warnings.warn(line, stacklevel=3)
        return cls(detector, detector.ood_score(inliers).astype(np.float64), weights, ratio, found)

    def p_values(self, X: Any) -> Floats:
        """Weighted conformal p-values (N); approximate, since the weights are estimated.

        Args:
            X: In any form that the detector takes.
        """
        codes = self.detector.transform(X)
        return weighted_p_values(self.scores, self.weights, self.detector.ood_score(X), self.ratio(codes))
