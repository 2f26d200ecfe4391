"""Adapter of `NegVAEDetector` to PyOD (Zhao et al., "PyOD: a Python toolbox for outlier detection", 2019)."""

from __future__ import annotations

from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from pyod.models.base import BaseDetector

from negvae.detector.estimator import NegVAEDetector
from negvae.detector.inputs import refuse_two_splits


class PyODNegVAE(BaseDetector):  # type: ignore[misc]
    """A detector for PyOD: labels 0 and 1, 1 = outlier; larger scores = more abnormal; threshold by contamination.

    `predict`, `predict_proba`, `predict_confidence` and the fitted `decision_scores_`, `threshold_` and `labels_` are
    PyOD's own, computed from the scores of the data given to `fit`. Further keyword arguments are parameters of
    `negvae.NegVAEDetector`, except those of its thresholds, which PyOD sets.

    Args:
        contamination: share of outliers in the data given to `fit`, in (0, 0.5].

    Attributes:
        detector_: the fitted `NegVAEDetector`, which gives p-values and has a threshold of its own.
    """

    def __init__(self, contamination: float = 0.1, **parameters: Any) -> None:
        super().__init__(contamination=contamination)
        NegVAEDetector(**parameters)  # refuses what it does not know
        self.parameters = parameters

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """Return the contamination and the given parameters, by name."""
        return {"contamination": self.contamination, **self.parameters}

    def set_params(self, **parameters: Any) -> Self:
        """Change the contamination or other parameters."""
        self.__init__(**{**self.get_params(), **parameters})  # type: ignore[misc]
        return self

    def fit(self, X: Any, y: Any = None) -> Self:
        """Fit to X, images or rows of features (see `NegVAEDetector`); y is ignored."""
        refuse_two_splits(X)
        self._set_n_classes(None)
        # Said to the detector too: outliers that lie together are neighbors of one another.
        self.detector_ = NegVAEDetector(**{"contamination": self.contamination, **self.parameters}).fit(X)
        self.decision_scores_ = self.decision_function(X)
        self._process_decision_scores()
        return self

    def decision_function(self, X: Any) -> NDArray[np.float64]:
        """Compute N scores, larger = more abnormal."""
        scores: NDArray[np.float64] = self.detector_.ood_score(X).astype(np.float64)
        return scores
