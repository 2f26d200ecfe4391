"""What the training loop reports while it runs, and the clock by which it does."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class ProgressUpdate:
    """What the loop reports every few steps.

    Attributes:
        epoch: the current one, from 1.
        epochs: of the whole run.
        step: steps taken in this epoch.
        steps: in an epoch.
        losses: means over this epoch so far, in nats per image.
        images_per_second: over this epoch so far.
        seconds_left: estimated for the rest of the run.
        row: the line that metrics.jsonl gets, where the epoch has just ended.
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
        """Say it in one line for people."""
        minutes, seconds = divmod(int(self.seconds_left), 60)
        left = f", {minutes}:{seconds:02d} left" if self.seconds_left >= 1 else ""
        return f"epoch {self.epoch}/{self.epochs} step {self.step}/{self.steps}: {self.losses_and_rate()}{left}"

    def losses_and_rate(self) -> str:
        """Say which losses are not zero, in nats per image, and how fast training is."""
        shown = {"reconstruction": "rec", "kl": "KL", "negative_kl": "neg KL", "generator_kl": "gen KL"}
        parts = [f"{shown[name]} {value:.1f}" for name, value in self.losses.items() if value]
        return f"{' '.join(parts)} nats, {self.images_per_second:.0f} images/s"


OnProgress = Callable[[ProgressUpdate], None]


class Clock:
    """Measures the seconds since its last lap, at first since it was made."""

    def __init__(self) -> None:
        self._last = time.monotonic()

    def seconds(self) -> float:
        """Return the seconds since the last lap."""
        return time.monotonic() - self._last

    def lap(self) -> float:
        """Return the seconds since the last lap and begin the next."""
        before, self._last = self._last, time.monotonic()
        return self._last - before
