"""How large a demo this machine can do in a few minutes, from a measurement of two seconds."""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from negvae.config import RunConfig
from negvae.negatives import build_source
from negvae.training.step import Learner

SECONDS = 2.0
"""The time that the measurement takes."""
LIMIT = 300.0
"""The time that a demo may take, in seconds."""
_BUDGET = 0.75 * LIMIT  # for training and scoring: what else runs on the machine may need more of it later
_FIXED = 15.0  # for the measurement, the pictures and the page
_FEWEST, _ALL = 3_000, 60_000
_TESTED = (10_000, 2_000)


@dataclass(frozen=True)
class DemoPlan:
    """The size of a demo.

    Attributes:
        images: number of training images.
        epochs: number of epochs of each model.
        tested: number of test images of each set.
        threads: number of threads of torch's operators.
        rate: measured speed of training, in images per second.
        seconds: time that training and testing all models will take at this speed.
    """

    images: int
    epochs: int
    tested: int
    threads: int
    rate: float
    seconds: float

    @property
    def whole(self) -> bool:
        """Return whether this is the whole demo: all images, four epochs."""
        return (self.images, self.epochs) == (_ALL, 4)

    def describe(self, models: int) -> str:
        """Describe in one line what the demo will do and how long it will take."""
        minutes, seconds = divmod(round(self.seconds), 60)
        return (
            f"{models} models, each trained on {self.images:,} of {_ALL:,} images for {self.epochs} epochs and tested"
            f" on {self.tested:,} images of each set: about {minutes} min {seconds:02d} s at the {self.rate:,.0f}"
            f" images/s measured here ({self.threads} {'thread' if self.threads == 1 else 'threads'})"
        )


def plan(rate: float, threads: int, models: int, *, quick: bool = False) -> DemoPlan:
    """Choose the size of a demo: all images for four epochs, or as much as fits into `LIMIT` with a margin.

    Args:
        rate: speed of training, in images per second.
        threads: number of threads that it was measured with.
        models: number of models.
        quick: whether to take no more than 12,000 images for two epochs.

    Returns:
        The plan; the smallest has 3,000 images and two epochs, however slow the machine.

    >>> plan(4000.0, 2, 3).epochs, plan(300.0, 1, 3).images
    (4, 9000)
    """

    def seconds(images: int, epochs: int, tested: int) -> float:
        # A forward pass is a third of a step; both sets are scored.
        return _FIXED + models * (images * epochs + 2 * tested / 3) / rate

    sizes = [(12_000, 2)] if quick else [(_ALL, 4), (_ALL, 3), (_ALL, 2)]
    sizes += [(images, 2) for images in range((12_000 if quick else _ALL) - 1_000, _FEWEST - 1, -1_000)]
    candidates = [(images, epochs, _TESTED[0] if images >= 12_000 else _TESTED[1]) for images, epochs in sizes]
    chosen = next((each for each in candidates if seconds(*each) <= _BUDGET), candidates[-1])
    return DemoPlan(*chosen, threads=threads, rate=rate, seconds=seconds(*chosen))


def measure(config: RunConfig, images: Tensor) -> tuple[float, int]:
    """Measure for `SECONDS` how fast a model trains, with one thread and with all that torch may use.

    Beside other work on the same cores, operators of several threads wait for one another, and one thread is faster.

    Args:
        config: configuration of the model; its negatives must need no data.
        images: some training images, as many as a batch at least.

    Returns:
        Images per second, and the number of threads that reach them.
    """
    present = torch.get_num_threads()
    learner = Learner(config, images, build_source(config.negatives, _no_data))
    start = learner.randomness.get_state()
    rates: dict[int, float] = {}
    try:
        counts = sorted({1, present})
        for threads in counts:
            torch.set_num_threads(threads)
            times: list[float] = []
            ends = time.perf_counter() + SECONDS / len(counts)
            while len(times) < 3 or time.perf_counter() < ends:
                began = time.perf_counter()
                learner.begin_epoch(start, 0)
                learner.step()
                times.append(time.perf_counter() - began)
            # The first step warms up; a mean, because what else runs on the machine counts.
            rates[threads] = learner.batch / statistics.mean(times[1:])
    finally:
        torch.set_num_threads(present)
    best = max(rates, key=lambda threads: rates[threads])
    return rates[best], best


def shortened(config: RunConfig, chosen: DemoPlan) -> RunConfig:
    """Return the configuration with the images and epochs of a plan."""
    return replace(config, epochs=chosen.epochs, limit=None if chosen.images == _ALL else chosen.images)


def _no_data(name: str) -> Tensor:
    raise ValueError(f"{name} is not loaded for a measurement")
