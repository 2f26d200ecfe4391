"""The worker's end of the bench's pipe: a process that works a round when it is asked to, and sleeps in between.

The process writes lines of JSON and reads single words. It prepares itself, warms up and writes `{"ready": FACTS}`.
Then it waits for a word: `round` is answered with `{"units": DONE, "seconds": TAKEN}`, `profile` with
`{"operators": ...}` of one round, and `stop`, or the end of the pipe, ends it.
"""

from __future__ import annotations

import json
import math
import os
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

TOP_OPERATORS = 12


def specification() -> dict[str, Any]:
    """Read the specification of the work: one JSON object, the last argument of the command line."""
    values: dict[str, Any] = json.loads(sys.argv[-1])
    return values


class Turns:
    """The process's turns: `take` ends one, and returns when the next round is asked for.

    Further keywords are plain values to report with `ready`.

    Args:
        device: device that the work runs on, "cpu" or "cuda", for which the clock waits.
    """

    def __init__(self, device: str = "cpu", **facts: Any) -> None:
        # The answers get a pipe of their own: libraries print, and that must not come between.
        self._answers = os.fdopen(os.dup(1), "w")
        os.dup2(2, 1)
        self._device, self._facts = device, facts
        self._started: float | None = None
        self._profiler: Any = None

    def take(self, units: float) -> None:
        """Report the round that has just ended, and wait until the next is asked for.

        The first call reports that the process is ready. The last call does not return.

        Args:
            units: number of units of work in the round.
        """
        if self._device == "cuda":
            import torch

            torch.cuda.synchronize()
        now = time.perf_counter()
        if self._started is None:
            answer: dict[str, Any] = {"ready": self._facts}
        elif self._profiler is not None:
            self._profiler.__exit__(None, None, None)
            answer = {"operators": _operators(self._profiler, self._device, now - self._started)}
            self._profiler = None
        else:
            answer = {"units": units, "seconds": now - self._started}
        print(json.dumps(answer), file=self._answers, flush=True)
        word = sys.stdin.readline().strip()
        if word not in ("round", "profile"):
            raise SystemExit
        if word == "profile":
            self._profiler = _profiler(self._device)
            self._profiler.__enter__()
        self._started = time.perf_counter()

    def serve(self, work: Callable[[], float]) -> None:
        """Take turns without end with a function that does one round of work and returns its units."""
        units = work()
        while True:
            self.take(units)
            units = work()


def images_for(images: npt.NDArray[np.uint8], rate: float, seconds: float, batch: int) -> npt.NDArray[np.uint8]:
    """Return as many images as take about `seconds`, in whole batches; they repeat if there are too few.

    Args:
        images: images, N x C x H x W.
        rate: speed in images per second.
        seconds: number of seconds that a round should take.
        batch: number of images in a step; there are at least four steps and 256 images.

    Returns:
        The images of a round.

    >>> images_for(np.zeros((10, 1, 2, 2), np.uint8), rate=1000.0, seconds=2.0, batch=50).shape
    (2000, 1, 2, 2)
    """
    count = batch * max(4, math.ceil(256 / batch), round(rate * seconds / batch))
    return np.resize(images, (count, *images.shape[1:]))


def rate_of(epoch: Callable[[npt.NDArray[np.uint8]], None], images: npt.NDArray[np.uint8], batch: int) -> float:
    """Measure the images per second of `epoch`, a function of images, on a few batches after as many to warm up."""
    few = images_for(images, 0, 0, batch)
    epoch(few)
    started = time.perf_counter()
    epoch(few)
    return len(few) / (time.perf_counter() - started)


def _profiler(device: str) -> Any:
    from torch.profiler import ProfilerActivity, profile

    return profile(activities=[ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if device == "cuda" else [])])


def _operators(profiler: Any, device: str, seconds: float) -> list[dict[str, Any]]:
    """Return the operators that took the most time themselves, as shares of the round, and the time outside of all."""
    field = "self_device_time_total" if device == "cuda" else "self_cpu_time_total"
    rows = [(event.key, getattr(event, field) / 1e6, event.count) for event in profiler.key_averages()]
    rows.append(("outside of operators", max(0.0, seconds - sum(taken for _, taken, _ in rows)), 1))
    rows.sort(key=lambda row: -row[1])
    whole = sum(taken for _, taken, _ in rows)
    return [
        {"operator": name, "share": taken / whole, "seconds": taken, "calls": calls}
        for name, taken, calls in rows[:TOP_OPERATORS]
    ]
