"""Statistics of training images' scores, for the scores that are measured against them. Needs NumPy only."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike, NDArray

if TYPE_CHECKING:
    from negvae.scoring.heatmaps import Heatmaps
    from negvae.scoring.neighbors import Neighbors

Values = NDArray[np.float64]


@dataclass(frozen=True)
class References:
    """Statistics of training images.

    Attributes:
        scales: 5% quantile, median, 95% quantile and mean of a score on training images, by the score's name.
        fitted: result of fitting a score (`negvae.scoring.table.Score.fit`), by the score's name.
        neighbors: reference rows of the score "neighbors"; None if images are scored.
        heatmaps: maps that the score "defects" is computed from; None if they were not trained.
        joined: whether held-out rows of features are reference rows of the score "neighbors" too.
        summed: whether "combined", where it counts transformations, adds up the other scores, each damped, instead of
            the largest of them (`negvae.scoring.transformations.MOST_OF_ONE_KIND`).
    """

    scales: Mapping[str, Values] = field(default_factory=dict)
    fitted: Mapping[str, Values] = field(default_factory=dict)
    neighbors: Neighbors | None = None
    heatmaps: Heatmaps | None = None
    summed: bool = False
    joined: bool = False

    @property
    def components(self) -> list[str]:
        """Return the scores that "combined" is made of: all with a scale, but "dose" replaces "bpd"."""
        return [name for name in self.scales if not (name == "bpd" and "dose" in self.scales)]

    def has(self, name: str, fitted: bool) -> bool:
        """Return whether the statistics that a score needs are present: its fit if it is `fitted`, else any scales."""
        if name == "neighbors":
            return self.neighbors is not None
        if name == "defects":
            return self.heatmaps is not None
        return name in self.fitted if fitted else bool(self.scales)


def scale(scores: ArrayLike) -> Values:
    """Return the 5% quantile, median, 95% quantile and mean of training images' scores."""
    values = np.asarray(scores, np.float64)
    return np.array([*np.quantile(values, (0.05, 0.5, 0.95)), values.mean()])
