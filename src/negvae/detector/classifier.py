"""The detector as a binary classifier, for libraries of conformal prediction that wrap classifiers (crepes, MAPIE)."""

from __future__ import annotations

from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from sklearn.base import BaseEstimator, ClassifierMixin, clone
from sklearn.utils.validation import check_is_fitted

from negvae.detector.columns import take_names, taken
from negvae.detector.estimator import NegVAEDetector
from negvae.detector.photos import divisible

INLIER, OUTLIER = 0, 1


class NegVAEClassifier(ClassifierMixin, BaseEstimator):  # type: ignore[misc]
    """A binary classifier around a detector: labels 0 (inlier) and 1 (outlier), each with a number between 0 and 1.

    The number for label 1 rises with the decision score and is 0.5 at the threshold: (1 + s / (1 + |s|)) / 2, where s
    is the signed distance from the threshold, divided by the spread of the held-out scores. It orders images as the
    score does but is not a probability; the wrapping library calibrates it.

    Args:
        detector: a `NegVAEDetector`, fitted or not; None uses one with default parameters.

    Attributes:
        detector_: the fitted detector.
        classes_: the labels 0 and 1.
        feature_names_in_: names of the columns, if X has them.
    """

    def __init__(self, detector: NegVAEDetector | None = None) -> None:
        self.detector = detector

    def fit(self, X: Any, y: Any = None) -> Self:
        """Fit the detector to the inliers of X, leaving out rows that are labeled outliers.

        Args:
            X: rows or images, in any form that `NegVAEDetector` takes.
            y: N labels, 0 (inlier) or 1 (outlier); None means that all rows are inliers.

        Returns:
            The fitted classifier itself.

        Raises:
            ValueError: if a label is neither 0 nor 1, there is not one for each row, or the detector holds out no
                inliers.
        """
        data = divisible(X)
        rows = data.rows
        if y is not None:
            labels = np.asarray(y)
            count = len(rows) if data.whole is None else len(data.whole)
            if labels.shape != (count,):
                raise ValueError(f"labels of shape {labels.shape} for {count} rows: one for each row")
            labels = labels if data.whole is None else labels[data.whole]
            if not np.isin(labels, (INLIER, OUTLIER)).all():
                raise ValueError(f"labels are {np.unique(labels)[:5].tolist()}: they must be 0 (inlier) or 1 (outlier)")
            rows = taken(rows, np.flatnonzero(labels == INLIER))
        detector = NegVAEDetector() if self.detector is None else self.detector
        return self._take(clone(detector).fit_fold(rows, decoding=data.decoding))

    def _take(self, detector: NegVAEDetector) -> Self:
        if getattr(detector, "calibration_", None) is None:
            raise ValueError("the detector is not calibrated: a classifier takes one that holds out inliers")
        self.detector_ = detector
        self.classes_ = np.array([INLIER, OUTLIER])
        self.n_features_in_ = detector.n_features_in_
        take_names(self, detector)
        return self

    @classmethod
    def of(cls, fitted: NegVAEDetector) -> Self:
        """Make a fitted classifier from a fitted detector, without training.

        Args:
            fitted: the fitted detector.

        Returns:
            The fitted classifier.

        Raises:
            sklearn.exceptions.NotFittedError: if the detector is not fitted.
            ValueError: if the detector is not calibrated.
        """
        check_is_fitted(fitted, "model_")
        return cls(fitted)._take(fitted)

    def predict_proba(self, X: Any) -> NDArray[np.float64]:
        """Return the numbers for "inlier" and "outlier" (N x 2), which sum to 1 in each row."""
        check_is_fitted(self, "detector_")
        calibration = self.detector_.calibration_
        low, high = np.quantile(calibration.scores[calibration.score], (0.05, 0.95))
        distance = -self.detector_.decision_function(X) / max(high - low, 1e-12)
        outlying = 0.5 * (1 + distance / (1 + np.abs(distance)))
        return np.column_stack([1 - outlying, outlying])

    def predict(self, X: Any) -> NDArray[np.int64]:
        """Return N labels, 0 for inliers and 1 for outliers."""
        check_is_fitted(self, "detector_")
        return np.where(self.detector_.predict(X) == -1, OUTLIER, INLIER)
