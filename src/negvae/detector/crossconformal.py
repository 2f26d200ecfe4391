"""A detector of K models, for data too small to hold a part of it out: each inlier is trained on and ranked by."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from sklearn.base import BaseEstimator, OutlierMixin, clone
from sklearn.utils.validation import check_is_fitted

from negvae.detector.estimator import NegVAEDetector
from negvae.detector.inputs import as_array
from negvae.scoring.calibration import TARGET_FPR
from negvae.scoring.crossconformal import cross_bound, cross_p_values, fold_numbers, twice_mean_p_values


class CrossConformalDetector(OutlierMixin, BaseEstimator):  # type: ignore[misc]
    """Cross-conformal outlier detection: K models, each of which leaves out a part of the inliers.

    All inliers take part in the p-values, and each model is trained on all but a K-th of them. What is promised is
    less than with a part held out, and said exactly (see `negvae.scoring.crossconformal`): P(p <= a) is at most
    `false_alarm_bound`, about 2 a, and with `twice_mean` at most a. Training takes K times as long.

    Args:
        detector: what is fitted K times, a `NegVAEDetector`; None for one with default parameters. Its
            `calibration_fraction`, `target_fpr`, `confidence` and `contamination` are not used.
        folds: K, from 2 to the number of inliers, which leaves one out at a time: the jackknife+.
        target_fpr: outliers are the rows with p-values up to this.
        twice_mean: Whether p-values are twice the mean of the folds' own, which hold without the factor 2 and find
            less.
        random_state: seed of the folds.

    Attributes:
        detectors_: the K fitted detectors; the calibration of each holds the scores of the inliers it left out.
        n_inliers_: how many inliers there were.
    """

    def __init__(
        self,
        detector: NegVAEDetector | None = None,
        *,
        folds: int = 5,
        target_fpr: float = TARGET_FPR,
        twice_mean: bool = False,
        random_state: int = 0,
    ) -> None:
        self.detector = detector
        self.folds = folds
        self.target_fpr = target_fpr
        self.twice_mean = twice_mean
        self.random_state = random_state

    def fit(self, X: Any, y: Any = None) -> Self:
        """Fit K detectors.

        Args:
            X: inliers, in any form that `NegVAEDetector` takes.
            y: ignored; there for scikit-learn.

        Raises:
            ValueError: data or a parameter that cannot be used; too few inliers for p-values of `target_fpr`.
        """
        if not 0 < self.target_fpr < 1:
            raise ValueError(f"target_fpr is {self.target_fpr!r}: it must lie between 0 and 1")
        data = as_array(X, "train")[0]
        rows = data if hasattr(data, "iloc") else np.asarray(data)
        number = fold_numbers(len(rows), self.folds, self.random_state)
        smallest = 2 / (len(rows) / self.folds + 1) if self.twice_mean else 1 / (len(rows) + 1)
        if smallest > self.target_fpr:
            raise ValueError(
                f"the smallest p-value of {len(rows)} inliers in {self.folds} folds is {smallest:.3g}, above target_fpr"
                f" {self.target_fpr:g}: give more inliers, or ask for a higher rate"
            )
        base = NegVAEDetector() if self.detector is None else self.detector
        plain = clone(base).set_params(target_fpr=None, confidence=None, contamination=0.0)
        self.detectors_ = [
            clone(plain).fit(_taken(rows, number != fold), calibration=_taken(rows, number == fold))
            for fold in range(self.folds)
        ]
        self.n_inliers_ = len(rows)
        self.n_features_in_ = self.detectors_[0].n_features_in_
        self.offset_ = self.target_fpr
        return self

    @property
    def false_alarm_bound(self) -> float:
        """What the rate of false alarms is at most, on average over sets of inliers."""
        check_is_fitted(self, "detectors_")
        return self.target_fpr if self.twice_mean else cross_bound(self.target_fpr, self.n_inliers_, self.folds)

    def p_values(self, X: Any) -> NDArray[np.float64]:
        """Cross-conformal p-values (N); see the class for what they promise."""
        check_is_fitted(self, "detectors_")
        held_out = [each.calibration_.scores[each.calibration_.score] for each in self.detectors_]
        scores = np.array([each.ood_score(X) for each in self.detectors_], np.float64)
        return (twice_mean_p_values if self.twice_mean else cross_p_values)(held_out, scores)

    def score_samples(self, X: Any) -> NDArray[np.float64]:
        """The p-values (N): larger = more normal."""
        return self.p_values(X)

    def decision_function(self, X: Any) -> NDArray[np.float64]:
        """`score_samples` minus `offset_` (N): outliers have 0 or less, since p = `target_fpr` is an alarm."""
        return np.asarray(self.p_values(X) - self.offset_, np.float64)

    def predict(self, X: Any) -> NDArray[np.int64]:
        """+1 for inliers, -1 for outliers (N)."""
        return np.where(self.p_values(X) <= self.target_fpr, -1, 1)

    def save(self, directory: Path | str) -> None:
        """Write a folder with the K detectors' folders; `load` takes it.

        Args:
            directory: new or empty.

        Raises:
            ValueError: it is a file, or holds something.
        """
        check_is_fitted(self, "detectors_")
        directory = Path(directory)
        if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
            raise ValueError(f"{directory} is not empty: take a new folder")
        for fold, detector in enumerate(self.detectors_):
            detector.save(directory / f"fold-{fold:03d}")

    @classmethod
    def load(cls, directory: Path | str, *, target_fpr: float = TARGET_FPR, twice_mean: bool = False) -> Self:
        """The detector in a folder that `save` has written.

        Args:
            directory: the folder.
            target_fpr: see the class; the folder holds scores and models, and no rate.
            twice_mean: see the class.

        Raises:
            FileNotFoundError: there is none.
            ValueError: a file is damaged.
        """
        places = sorted(Path(directory).glob("fold-*"))
        if not places:
            raise FileNotFoundError(
                f"{directory} holds no folders fold-000, fold-001, ...: CrossConformalDetector.save"
            )
        detectors = [NegVAEDetector.load(place) for place in places]
        made = cls(detectors[0], folds=len(detectors), target_fpr=target_fpr, twice_mean=twice_mean)
        made.detectors_, made.offset_ = detectors, target_fpr
        made.n_inliers_ = sum(each.calibration_.size for each in detectors)
        made.n_features_in_ = detectors[0].n_features_in_
        return made


def _taken(rows: Any, chosen: NDArray[np.bool_]) -> Any:
    return rows[chosen] if isinstance(rows, np.ndarray) else rows.iloc[np.flatnonzero(chosen)]
