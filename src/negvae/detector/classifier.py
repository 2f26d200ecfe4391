"""The detector as a binary classifier, for libraries of conformal prediction that wrap classifiers (crepes, MAPIE)."""

from __future__ import annotations

from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from sklearn.base import BaseEstimator, ClassifierMixin, clone
from sklearn.utils.validation import check_is_fitted

from negvae.detector.estimator import NegVAEDetector

INLIER, OUTLIER = 0, 1


class NegVAEClassifier(ClassifierMixin, BaseEstimator):  # type: ignore[misc]
    """A detector that says "inlier" (0) or "outlier" (1), with a number between 0 and 1 for each.

    The number for 1 rises with the decision score and is 0.5 at the threshold: s / (1 + |s|) moved to [0, 1], s the
    distance from the threshold in units of the spread of the held-out scores. It orders images as the score does, and
    is no probability: that is what the wrapping library is for.

    Args:
        detector: a `NegVAEDetector`, fitted or not; None for one with default parameters.

    Attributes:
        detector_: the fitted detector.
        classes_: 0 and 1.
    """

    def __init__(self, detector: NegVAEDetector | None = None) -> None:
        self.detector = detector

    def fit(self, X: Any, y: Any = None) -> Self:
        """Fit the detector to the inliers of X; what is labelled an outlier is left out.

        Args:
            X: rows or images as an array (N x ...).
            y: labels (N), 0 or 1; None where all are inliers.

        Raises:
            ValueError: labels that are something else.
        """
        rows = np.asarray(X)
        if y is not None:
            labels = np.asarray(y)
            if not np.isin(labels, (INLIER, OUTLIER)).all():
                raise ValueError(f"labels are {np.unique(labels)[:5].tolist()}: they must be 0 (inlier) or 1 (outlier)")
            rows = rows[labels == INLIER]
        detector = NegVAEDetector() if self.detector is None else self.detector
        return self._take(clone(detector).fit(rows))

    def _take(self, detector: NegVAEDetector) -> Self:
        self.detector_ = detector
        self.classes_ = np.array([INLIER, OUTLIER])
        self.n_features_in_ = detector.n_features_in_
        return self

    @classmethod
    def of(cls, fitted: NegVAEDetector) -> Self:
        """A fitted classifier from a fitted detector, without training.

        Raises:
            sklearn.exceptions.NotFittedError: the detector is not fitted.
        """
        check_is_fitted(fitted, "model_")
        return cls(fitted)._take(fitted)

    def predict_proba(self, X: Any) -> NDArray[np.float64]:
        """A number for "inlier" and one for "outlier" (N x 2), which sum to 1."""
        check_is_fitted(self, "detector_")
        calibration = self.detector_.calibration_
        low, high = np.quantile(calibration.scores[calibration.score], (0.05, 0.95))
        distance = -self.detector_.decision_function(X) / max(high - low, 1e-12)
        outlying = 0.5 * (1 + distance / (1 + np.abs(distance)))
        return np.column_stack([1 - outlying, outlying])

    def predict(self, X: Any) -> NDArray[np.int64]:
        """0 for inliers, 1 for outliers (N)."""
        check_is_fitted(self, "detector_")
        return np.where(self.detector_.predict(X) == -1, OUTLIER, INLIER)
