"""Progress reports of the training loop, and the clock that times them."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class ProgressUpdate:
    """A report of the training loop's progress, every few steps.

    Attributes:
        epoch: number of the current epoch, from 1.
        epochs: number of epochs of the whole run.
        step: number of steps taken in this epoch.
        steps: number of steps in an epoch.
        losses: mean of each loss part over this epoch so far, in nats per image.
        images_per_second: training speed over this epoch so far.
        seconds_left: estimated number of seconds for the rest of the run.
        row: row of metrics.jsonl if the epoch has just ended, else None.

    >>> losses = {"reconstruction": 250.0, "kl": 12.34, "negative_kl": 0.0}
    >>> ProgressUpdate(1, 2, 25, 400, losses, images_per_second=1500.0, seconds_left=65.0).describe()
    'epoch 1/2 step 25/400: rec 250.0 KL 12.3 nats, 1500 images/s, 1:05 left'
    """

    epoch: int
    epochs: int
    step: int
    steps: int
    losses: dict[str, float]
    images_per_second: float
    seconds_left: float
    row: dict[str, Any] | None = None

    def describe(self) -> str:
        """Describe the progress in one line."""
        minutes, seconds = divmod(int(self.seconds_left), 60)
        left = f", {minutes}:{seconds:02d} left" if self.seconds_left >= 1 else ""
        return f"epoch {self.epoch}/{self.epochs} step {self.step}/{self.steps}: {self.losses_and_rate()}{left}"

    def losses_and_rate(self) -> str:
        """Describe the losses that are not zero, in nats per image, and the training speed."""
        shown = {"reconstruction": "rec", "kl": "KL", "negative_kl": "neg KL", "generator_kl": "gen KL"}
        shown["transformation_kl"] = "transformations' KL"
        parts = [f"{shown[name]} {value:.1f}" for name, value in self.losses.items() if value]
        return f"{' '.join(parts)} nats, {self.images_per_second:.0f} images/s"


OnProgress = Callable[[ProgressUpdate], None]


class Clock:
    """A clock that measures the seconds since its last lap, or since it was made.

    >>> clock = Clock()
    >>> clock.lap() >= 0
    True
    """

    def __init__(self) -> None:
        self._last = time.monotonic()

    def seconds(self) -> float:
        """Return the seconds since the last lap."""
        return time.monotonic() - self._last

    def lap(self) -> float:
        """Return the seconds since the last lap and begin the next."""
        before, self._last = self._last, time.monotonic()
        return self._last - before
