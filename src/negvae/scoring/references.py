"""What scores of training images come to, for the scores that are measured against them. Needs NumPy only."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import ArrayLike, NDArray

Values = NDArray[np.float64]


@dataclass(frozen=True)
class References:
    """Statistics of training images.

    Attributes:
        scales: 5% quantile, median, 95% quantile and mean of a score on training images, by the score's name.
        fitted: what the fit of a score gave (`negvae.scoring.table.Score.fit`), by the score's name.
    """

    scales: Mapping[str, Values] = field(default_factory=dict)
    fitted: Mapping[str, Values] = field(default_factory=dict)

    @property
    def components(self) -> list[str]:
        """The scores that "combined" is the largest of: all with a scale; with "dose", which holds it, not "bpd"."""
        return [name for name in self.scales if not (name == "bpd" and "dose" in self.scales)]

    def has(self, name: str, fitted: bool) -> bool:
        """Whether they were measured, and where a score is `fitted`, its fit too."""
        return name in self.fitted if fitted else bool(self.scales)


def scale(scores: ArrayLike) -> Values:
    """5% quantile, median, 95% quantile and mean of training images' scores."""
    values = np.asarray(scores, np.float64)
    return np.array([*np.quantile(values, (0.05, 0.5, 0.95)), values.mean()])
