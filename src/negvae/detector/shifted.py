"""P-values for a new place, whose inliers differ from those that the detector was calibrated on."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from negvae.detector.inputs import repeatable
from negvae.scoring.weighted import Overlap, density_ratio, overlap, weighted_p_values

Floats = NDArray[np.float64]


class Codes(Protocol):
    """A detector that gives decision scores and latent codes."""

    def ood_score(self, X: Any) -> NDArray[Any]:
        """Compute the decision scores of N images or rows (N)."""

    def transform(self, X: Any) -> NDArray[np.float64]:
        """Compute the latent codes of N images or rows (N x L)."""


@dataclass(frozen=True)
class ShiftedPValues:
    """Weighted conformal p-values; made by `negvae.NegVAEDetector.shifted`.

    The density ratio is estimated in the latent space: the weights do not correct differences between the places that
    the latent codes do not show.

    Attributes:
        detector: detector that gives scores and latent codes.
        scores: decision scores of the weighted inliers.
        weights: weight of each of these inliers.
        ratio: function that returns weights for latent codes.
        overlap: measures of how reliable the weights are.
    """

    detector: Codes
    scores: Floats
    weights: Floats
    ratio: Callable[[ArrayLike], Floats]
    overlap: Overlap

    @classmethod
    def of(cls, detector: Codes, new_inliers: Any, inliers: Any) -> Self:
        """Estimate the weights, and warn if they are not reliable.

        Args:
            detector: detector that gives scores and latent codes.
            new_inliers: inliers of the new place, 10 at least.
            inliers: inliers that the detector was not trained on, from the source of its training data, 10 at least.

        Returns:
            The weighted p-values for the new place.

        Raises:
            ValueError: if there are fewer than 10 inliers of either kind.
        """
        inliers = repeatable(inliers)
        old, new = detector.transform(inliers), detector.transform(new_inliers)
        ratio = density_ratio(old, new)
        weights = ratio(old)
        found = overlap(weights, ratio(new))
        for line in found.concerns():
            warnings.warn(line, stacklevel=3)
        return cls(detector, detector.ood_score(inliers).astype(np.float64), weights, ratio, found)

    def p_values(self, X: Any) -> Floats:
        """Compute weighted conformal p-values, which are approximate, since the weights are estimated.

        Args:
            X: data in any form that the detector takes.

        Returns:
            N p-values.

        Raises:
            ValueError: if the data cannot be used.
        """
        X = repeatable(X)
        codes = self.detector.transform(X)
        return weighted_p_values(self.scores, self.weights, self.detector.ood_score(X), self.ratio(codes))
