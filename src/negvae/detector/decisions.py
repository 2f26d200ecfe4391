"""Decisions and promises that every detector with calibrated scores has, whatever model gives the scores."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.utils.validation import check_is_fitted

from negvae.detector.groups import with_groups
from negvae.detector.plots import ScorePlots
from negvae.detector.stream import DetectorMonitor
from negvae.scoring.calibration import Calibration, benjamini_hochberg
from negvae.scoring.certificates import CONFIDENCE, Bounds, false_discovery_bounds


class Decisions(ScorePlots):
    """What follows from the decision scores of a detector and their calibration.

    Attributes:
        calibration_: held-out scores and the threshold.
        offset_: minus the threshold.
    """

    calibration_: Calibration
    offset_: float

    def ood_score(self, X: Any) -> NDArray[Any]:
        """Compute the decision scores of X (N); larger = more out-of-distribution."""
        raise NotImplementedError

    def _names_in_files(self) -> list[str] | None:
        """Return the names by which columns are found in a file; None if they have none."""
        raise NotImplementedError

    def score_samples(self, X: Any) -> NDArray[np.float64]:
        """Return minus the decision score (N): larger = more normal, as in scikit-learn."""
        return -self.ood_score(X).astype(np.float64)

    def decision_function(self, X: Any) -> NDArray[np.float64]:
        """Return `score_samples` minus `offset_` (N): negative = outlier."""
        return np.asarray(self.score_samples(X) - self.offset_, np.float64)

    def predict(self, X: Any, groups: Any = None) -> NDArray[np.int64]:
        """Decide which rows or images are outliers.

        Args:
            X: data in any form that the detector takes.
            groups: group of each row (see `p_values`), if the detector was calibrated with groups. With
                None, rows that score above the highest threshold of the groups are outliers.

        Returns:
            N labels, +1 for inliers and -1 for outliers.

        Raises:
            FileNotFoundError: if X is a path at which there is nothing.
            ValueError: if the data cannot be used, or `groups` names a group that was not calibrated.
        """
        X, labels = with_groups(X, groups, columns=self._names_in_files())
        scores = self.ood_score(X)
        return np.where(self.calibration_.is_outlier(scores, labels), -1, 1)

    def p_values(self, X: Any, groups: Any = None) -> NDArray[np.float64]:
        """Compute conformal p-values: the probability that an inlier scores at least as high (Bates et al. 2023).

        Args:
            X: data in any form that the detector takes.
            groups: N texts, the group of each row, or what names it (see `fit`), if the detector was calibrated with
                groups. A row whose group is not known has "" and gets the largest p-value over the groups. None means
                that no group is known.

        Returns:
            N p-values.

        Raises:
            FileNotFoundError: if X is a path at which there is nothing.
            ValueError: if the data cannot be used, or `groups` names a group that was not calibrated.
        """
        X, labels = with_groups(X, groups, columns=self._names_in_files())
        scores = self.ood_score(X)
        return self.calibration_.p_values(scores, labels)

    def predict_fdr(self, X: Any, fdr: float = 0.1, groups: Any = None) -> NDArray[np.int64]:
        """Decide on a batch as a whole, controlling the false-discovery rate.

        The procedure of Benjamini and Hochberg is applied to `p_values`. It needs many held-out inliers, since no
        p-value is below 1 / (held out + 1).

        Args:
            X: the batch, in any form that the detector takes.
            fdr: largest expected share of inliers among the rows labeled outliers, above 0 and below 1.
            groups: group of each row (see `p_values`), if the detector was calibrated with groups.

        Returns:
            N labels, +1 for inliers and -1 for outliers.

        Raises:
            FileNotFoundError: if X is a path at which there is nothing.
            ValueError: as for `p_values`, or if `fdr` is out of range.
        """
        return np.where(benjamini_hochberg(self.p_values(X, groups), fdr), -1, 1)

    def fpr_bounds(self, confidence: float = CONFIDENCE) -> Bounds:
        """Bound the rate of false alarms at the current threshold; with groups, in any mixture of them.

        For rows of features, a `negvae.NegVAEDetector` needs its `confidence` to be set before `fit`, or further
        inliers to be recalibrated on: by default held-out rows are reference rows too, and their scores depend on one
        another.

        Args:
            confidence: probability with which each bound holds, over the draw of the held-out inliers.

        Returns:
            The bounds on the rate; `calibration_.group_bounds` has those of each group.

        Raises:
            ValueError: if nothing is certified; the message says why.
        """
        check_is_fitted(self, "calibration_")
        return self.calibration_.fpr_bounds(confidence)

    def false_discovery_bounds(self, X: Any, confidence: float = CONFIDENCE) -> NDArray[np.float64]:
        """Bound the share of inliers among the rows called outliers, for every cut of a batch at once.

        A detector with groups ranks the batch among the held-out inliers of all groups together: the bounds then assume
        that the batch's inliers come from the groups in the proportions of the held-out ones.

        Args:
            X: the batch, in any form that the detector takes.
            confidence: probability with which all bounds hold together, over the draw of held-out inliers and batch.

        Returns:
            N upper bounds: for each row, the bound if it and all rows that score at least as high are called outliers.

        Raises:
            FileNotFoundError: if X is a path at which there is nothing.
            ValueError: if the data cannot be used, or nothing is certified, as for `fpr_bounds`.
        """
        scores = self.ood_score(X)
        return false_discovery_bounds(self.calibration_.certifiable(), scores, confidence)

    def monitor(
        self, state: Path | str | None = None, *, alarm_rate: float = 0.01, fdr: float | None = None, window: int = 0
    ) -> DetectorMonitor:
        """Watch a stream of batches: give p-values, decisions, and alarms when the stream changes.

        Args:
            state: file that the state is written to, as JSON, after every batch; if the file exists, the stream
                continues from it. None writes no file.
            alarm_rate: probability of a false alarm about a change, from one start of the test martingale to the next.
            fdr: false-discovery rate for online control by the library online-fdr; None for no such control.
            window: number of latest scores that p-values and threshold are computed from; 0 uses the held-out scores.

        Returns:
            A monitor, whose `update` takes the batches.

        Raises:
            FileNotFoundError: if there is no folder for the file of the state.
            ValueError: if an option is out of range, or if the state is damaged or belongs to another detector.
            ImportError: if `fdr` is given and the extra "watch" is not installed.
        """
        check_is_fitted(self, "calibration_")
        path = None if state is None else Path(state)
        options = {"alarm_rate": alarm_rate, "fdr": fdr, "window": window}
        return DetectorMonitor.open(self, self.calibration_, path, options)
