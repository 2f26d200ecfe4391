"""A detector of K models, for data too small to hold out a part: every inlier serves training and calibration."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from sklearn.base import BaseEstimator, OutlierMixin, clone
from sklearn.utils.validation import check_is_fitted

from negvae.checksums import file_sha256
from negvae.detector.columns import take_names, taken
from negvae.detector.estimator import NegVAEDetector
from negvae.detector.inputs import refuse_two_splits, repeatable, seed_of
from negvae.detector.photos import divisible
from negvae.files import from_json, refuse_used, write_text
from negvae.runs.artifact import WEIGHTS
from negvae.scoring.calibration import TARGET_FPR
from negvae.scoring.certificates import check_rate
from negvae.scoring.crossconformal import cross_bound, cross_p_values, fold_numbers, twice_mean_p_values

FOLDS = "folds.json"
FORMAT = 1
"""Of that file."""


class CrossConformalDetector(OutlierMixin, BaseEstimator):  # type: ignore[misc]
    """Cross-conformal outlier detector: K models, each of which leaves out a part of the inliers.

    All inliers contribute to the p-values, and each model is trained on all but a K-th of them. The guarantee is
    weaker than with a part held out, but exact (see `negvae.scoring.crossconformal`): for an inlier, P(p <= a) is at
    most about 2 a (`false_alarm_bound` at a = `target_fpr`), and at most a with `twice_mean`. Training takes K times
    as long.

    Args:
        detector: the `NegVAEDetector` that is fitted K times; None uses one with default parameters. Its
            `calibration_fraction`, `target_fpr`, `confidence` and `contamination` are not used.
        folds: K, from 2 to the number of inliers; the largest leaves out one inlier at a time, as the jackknife+ does.
        target_fpr: largest p-value at which a row is called an outlier.
        twice_mean: whether p-values are twice the mean of the folds' p-values; these are valid without the factor 2
            but detect fewer outliers.
        random_state: seed of the division into folds, or `numpy.random.RandomState`.

    Attributes:
        detectors_: the K fitted detectors; the calibration of each holds the scores of the inliers it left out.
        n_inliers_: number of inliers given to `fit`.
        offset_: largest p-value at which a row is called an outlier.
        twice_mean_: whether p-values are twice the mean of the folds'.
        feature_names_in_: names of the columns, if the inliers have them.
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
        """Fit K detectors, each to all but one fold of the inliers.

        Args:
            X: inliers, in any form that `NegVAEDetector` takes.
            y: ignored; present for compatibility with scikit-learn.

        Returns:
            The fitted detector itself.

        Raises:
            ValueError: if the data or a parameter cannot be used, or if there are too few inliers for p-values as small
                as `target_fpr`.
        """
        check_rate("target_fpr", self.target_fpr)
        data = divisible(X)
        rows = data.rows
        number = fold_numbers(len(rows), self.folds, seed_of(self.random_state))
        self._refuse_too_few(np.bincount(number).tolist())
        base = NegVAEDetector() if self.detector is None else self.detector
        plain = clone(base).set_params(target_fpr=None, confidence=None, contamination=0.0)
        detectors = [
            clone(plain).fit_fold(
                taken(rows, np.flatnonzero(number != fold)),
                taken(rows, np.flatnonzero(number == fold)),
                decoding=data.decoding,
            )
            for fold in range(self.folds)
        ]
        for each in detectors:
            each._inliers = None  # which heat maps would be trained on, K times in memory
        self.detectors_ = detectors
        return self._take()

    def _refuse_too_few(self, sizes: list[int]) -> None:
        """Refuse a rate below the smallest p-value of folds of these sizes, at which nothing is ever called."""
        judge = twice_mean_p_values if self.twice_mean else cross_p_values
        smallest = float(judge([np.zeros(size) for size in sizes], np.ones((len(sizes), 1)))[0])
        if smallest > self.target_fpr:
            raise ValueError(
                f"the smallest p-value of {sum(sizes)} inliers in {len(sizes)} folds is {smallest:.3g}, above"
                f" target_fpr {self.target_fpr:g}: give more inliers, or ask for a higher rate"
            )

    def _take(self) -> Self:
        """Set the fitted attributes from the detectors."""
        first = self.detectors_[0]
        self.n_inliers_ = sum(each.calibration_.size for each in self.detectors_)
        self.n_features_in_ = first.n_features_in_
        take_names(self, first)
        self.offset_, self.twice_mean_ = self.target_fpr, self.twice_mean
        return self

    @property
    def false_alarm_bound(self) -> float:
        """Upper bound on the rate of false alarms, on average over sets of inliers."""
        check_is_fitted(self, "detectors_")
        bound = cross_bound(self.offset_, self.n_inliers_, len(self.detectors_))
        return self.offset_ if self.twice_mean_ else bound

    def p_values(self, X: Any) -> NDArray[np.float64]:
        """Compute cross-conformal p-values (N); `false_alarm_bound` is the rate that they guarantee."""
        check_is_fitted(self, "detectors_")
        X = repeatable(X)
        held_out = [each.calibration_.scores[each.calibration_.score] for each in self.detectors_]
        scores = np.array([each.ood_score(X) for each in self.detectors_], np.float64)
        return (twice_mean_p_values if self.twice_mean_ else cross_p_values)(held_out, scores)

    def score_samples(self, X: Any) -> NDArray[np.float64]:
        """Return the p-values (N): larger = more normal."""
        return self.p_values(X)

    def decision_function(self, X: Any) -> NDArray[np.float64]:
        """Return `score_samples` minus `offset_` (N): outliers have 0 or less, since p = `target_fpr` is an alarm."""
        return np.asarray(self.p_values(X) - self.offset_, np.float64)

    def predict(self, X: Any) -> NDArray[np.int64]:
        """Return N labels, +1 for inliers and -1 for outliers."""
        return np.where(self.p_values(X) <= self.offset_, -1, 1)

    def fit_predict(self, X: Any, y: Any = None) -> NDArray[np.int64]:
        """Fit, and decide which of the same rows or images are outliers.

        Args:
            X: inliers, in any form that `NegVAEDetector` takes.
            y: ignored; present for compatibility with scikit-learn.

        Returns:
            N labels, +1 for inliers and -1 for outliers.

        Raises:
            ValueError: as for `fit`, or if X has a part for training and one for testing.
        """
        refuse_two_splits(X)
        X = repeatable(X)
        return self.fit(X).predict(X)

    def save(self, directory: Path | str) -> None:
        """Write the K detectors to subfolders of a folder, which `load` reads.

        Args:
            directory: folder to write, new or empty.

        Raises:
            ValueError: if the directory is a file or is not empty.
        """
        check_is_fitted(self, "detectors_")
        directory = Path(directory)
        refuse_used(directory)
        for fold, detector in enumerate(self.detectors_):
            detector.save(directory / f"fold-{fold:03d}")
        # Written last: without it a part of the folds would pass as the whole.
        write_text(directory / FOLDS, json.dumps({"format": FORMAT, "weights": _digests(directory)}) + "\n")

    @classmethod
    def load(cls, directory: Path | str, *, target_fpr: float = TARGET_FPR, twice_mean: bool = False) -> Self:
        """Load a detector from a folder that `save` has written.

        Args:
            directory: folder of the detector.
            target_fpr: largest p-value at which a row is called an outlier; the folder does not store it.
            twice_mean: whether p-values are twice the mean of the folds' p-values; the folder does not store it.

        Returns:
            The fitted detector.

        Raises:
            FileNotFoundError: if the folder does not exist or holds no detectors.
            ValueError: if the rate is out of range or below the smallest p-value, a file is damaged, or the folder does
                not hold the folds that were saved, whole.
        """
        check_rate("target_fpr", target_fpr)
        places = _places(Path(directory))
        detectors = [NegVAEDetector.load(place) for place in places]
        made = cls(detectors[0], folds=len(detectors), target_fpr=target_fpr, twice_mean=twice_mean)
        made._refuse_too_few([each.calibration_.size for each in detectors])
        made.detectors_ = detectors
        return made._take()


def _digests(directory: Path) -> list[str]:
    """Return the SHA-256 of the weights of each fold in a folder, in order."""
    return [file_sha256(place / WEIGHTS) for place in sorted(directory.glob("fold-*"))]


def _places(directory: Path) -> list[Path]:
    """Return the folders of the folds, and refuse a folder from which one is missing or of which one is another's."""
    places = sorted(directory.glob("fold-*"))
    if not places:
        raise FileNotFoundError(f"{directory} holds no folders fold-000, fold-001, ...: CrossConformalDetector.save")
    path = directory / FOLDS
    if not path.is_file():
        raise ValueError(f"{directory} has no {FOLDS}: saving it did not come to its end")
    try:
        content = from_json(path.read_text(encoding="utf-8"))
        version, weights = content["format"], content["weights"]
    except (ValueError, KeyError, TypeError):
        raise ValueError(f"{path}: damaged") from None
    if not isinstance(version, int) or version > FORMAT:
        raise ValueError(f"{path}: its format is {version!r:.40}, this version reads {FORMAT}: upgrade negvae")
    if _digests(directory) != weights:
        raise ValueError(f"{directory} does not hold the {len(weights)} folds that were saved")
    return places
