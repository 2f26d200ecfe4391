"""Monitoring of a stream of batches with a fitted detector."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, Self

import numpy as np
from numpy.typing import NDArray

from negvae.detector.groups import with_groups
from negvae.files import from_json, write_text
from negvae.scoring.calibration import Calibration
from negvae.scoring.monitor import Judged, Monitor


class Scores(Protocol):
    """A detector that gives decision scores."""

    def ood_score(self, X: Any) -> NDArray[Any]:
        """Compute the decision scores of a batch (N)."""

    def _names_in_files(self) -> list[str] | None:
        """Return the names by which columns are found in a file; None if they have none."""


@dataclass
class DetectorMonitor:
    """The monitor of a stream; made by `negvae.NegVAEDetector.monitor`.

    Attributes:
        detector: detector that gives the scores.
        monitor: state of the stream: counts, changes, the wealth of the martingale.
        path: file that the state is written to; None writes no file.
    """

    detector: Scores
    monitor: Monitor
    path: Path | None = None

    @classmethod
    def open(cls, detector: Scores, calibration: Calibration, path: Path | None, options: dict[str, Any]) -> Self:
        """Start a monitor, or continue from the state in a file; see `negvae.NegVAEDetector.monitor`."""
        if path is not None and not path.absolute().parent.is_dir():
            raise FileNotFoundError(f"{path}: there is no folder {path.parent} to keep the state in")
        if path is None or not path.exists():
            return cls(detector, Monitor.start(calibration, **options), path)
        try:
            state = from_json(path.read_text(encoding="utf-8"))
            held_out, kept_state = np.asarray(state["scores"], np.float64), state["monitor"]
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{path}: not the state of a stream ({type(error).__name__}: {error})") from None
        if not np.array_equal(held_out, calibration.scores[calibration.score]):
            raise ValueError(f"{path}: the stream was watched with another detector or calibration")
        monitor = Monitor.restore(calibration, kept_state)
        kept = {"alarm_rate": monitor.martingale.alarm_rate, "fdr": monitor.fdr, "window": monitor.window}
        for name, value in options.items():
            if kept[name] != value:
                raise ValueError(f"{path}: the stream was watched with {name} {kept[name]}, not {value}")
        return cls(detector, monitor, path)

    def update(self, X: Any, groups: Any = None) -> Judged:
        """Judge the next images or rows of the stream, in their order, and write the state if there is a file for it.

        Args:
            X: data in any form that the detector takes.
            groups: group of each row (see `NegVAEDetector.p_values`), if the detector was calibrated with groups.

        Returns:
            The p-values, decisions and alarms of this batch.

        Raises:
            ValueError: if the data or a group cannot be used.
            OSError: if the state cannot be written; the monitor is then as it was before this batch.
        """
        X, labels = with_groups(X, groups, columns=self.detector._names_in_files())
        scores = self.detector.ood_score(X)
        if self.path is None:
            return self.monitor.update(scores, labels)
        calibration, before = self.monitor.calibration, json.dumps(self.monitor.state())
        judged = self.monitor.update(scores, labels)
        held_out = calibration.scores[calibration.score].tolist()
        try:
            write_text(self.path, json.dumps({"scores": held_out, "monitor": self.monitor.state()}))
        except BaseException:  # the batch can be given again
            self.monitor = Monitor.restore(calibration, json.loads(before))
            raise
        return judged
