"""How many workers share each batch: as the user says, or as many as a short measurement finds to pay."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from negvae.negatives import Mixture
from negvae.training.batchnorm import NORMS, has_batch_norm
from negvae.training.step import DRAWING, Learner
from negvae.training.team import workers_meet

MEASURED_FROM = 20_000 * 28 * 28
"""Numbers that are left to train on, pixels or features, from which a measurement pays for itself."""
MOST_SECONDS = 0.6
"""Seconds of a measurement; the step that is under way is finished."""
GAIN = 1.03
"""How much faster more workers must be to be taken: they also keep the machine busier."""
OPERATORS = 0
"""The number that stands for one worker whose operators use several threads themselves, in measurements."""
LAG = 1.7
"""How much longer steps may become before fewer workers are tried that wait for one another less."""
PATIENCE = 8
"""Number of looks after which more workers are tried again; twice as many after each time in vain."""


def check_workers(workers: int | None, device: str, batch: int) -> None:
    """Refuse a number of workers that cannot share a batch.

    Args:
        workers: number that the user gave, or None.
        device: type of the device to train on.
        batch: number of images in a batch.

    Raises:
        TypeError: if it is not a whole number.
        ValueError: if it is below 1 or above the number of images in a batch, or the device is not a CPU.
    """
    if workers is None:
        return
    if not isinstance(workers, int) or isinstance(workers, bool):
        raise TypeError(f"workers is {workers!r}: it must be a whole number, or None")
    if workers < 1:
        raise ValueError(f"workers is {workers}: it must be at least 1")
    if device != "cpu":
        raise ValueError(f"workers is {workers}: workers are threads of a CPU; leave it out with device {device}")
    if workers > batch:
        raise ValueError(f"{workers} workers for batches of {batch} images: take fewer workers")


def obstacle(learner: Learner, workers: int) -> str:
    """Return why this number of workers cannot share a learner's batches, with the result of one; "" if they can."""
    if workers == 1:
        return ""
    for layer in learner.model.modules():
        if isinstance(layer, DRAWING):
            return f"{type(layer).__name__} draws from one random generator for all threads"
        if getattr(layer, "running_mean", None) is not None and not isinstance(layer, NORMS):
            return f"{type(layer).__name__} is not known to work on parts of a batch"
    source = learner.source
    if isinstance(source, Mixture) and source.adversarial and has_batch_norm(learner.model):
        fewest = int(learner.batch * min(source.weights) / sum(source.weights))
        if fewest <= workers:
            return f"batch norm needs rows of each kind of negatives for every worker, and there are {fewest} of one"
    return ""


@dataclass(frozen=True)
class Choice:
    """A number of workers.

    Attributes:
        workers: the number; None for threads inside operators.
        how: how it was found.
        otherwise: the number to go on with where threads inside operators, each of which waits for all, fall behind; 0
            for none.
        measured: whether it was measured in this process.
    """

    workers: int | None
    how: str
    otherwise: int = 0
    measured: bool = False


def choose_workers(make: Callable[[], Learner], learner: Learner, steps: int) -> Choice:
    """Choose a number of workers for a run on a CPU, up to the number of threads that torch may use.

    Args:
        make: function that makes a learner like the one to train, to measure with.
        learner: learner to train.
        steps: number of steps that are left.

    Returns:
        The choice; runs that are too short to measure are left with the threads inside operators.
    """
    threads = min(torch.get_num_threads(), learner.batch)
    if threads == 1:
        return Choice(None, "torch may use one thread")
    if reason := obstacle(learner, threads):
        return Choice(None, reason)
    if steps * learner.batch * learner.model.dimensions < MEASURED_FROM:
        return Choice(None, "the fit is short")
    if learner.model.takes_features:
        return Choice(1, "steps on rows are too short to be shared")
    rates = measure(make, [OPERATORS, *candidates(threads)])
    best = 1
    for workers, rate in rates.items():
        if workers != OPERATORS and rate >= GAIN * rates[best]:
            best = workers
    names = {OPERATORS: f"{threads} threads in operators"}
    how = "images/s by workers: " + ", ".join(f"{names.get(each, each)}: {rate:,.0f}" for each, rate in rates.items())
    if rates[OPERATORS] > GAIN * rates[best]:
        return Choice(None, how, otherwise=best, measured=True)
    return Choice(best, how, measured=True)


def ways_to_work(choice: Choice, learner: Learner) -> list[int]:
    """Return the numbers of workers that a run may change between.

    Args:
        choice: choice that was made at the start, which a busy neighbor may have spoiled.
        learner: learner to train.

    Returns:
        Numbers of workers, `OPERATORS` and the chosen one among them, each less hindered by a busy neighbor than the
        one before.
    """
    meeting = workers_meet(learner)
    if choice.workers is None:
        ways = [OPERATORS, *([choice.otherwise] if choice.otherwise else [])]
    else:
        ways = [choice.workers]
        if choice.measured:
            most = min(torch.get_num_threads(), learner.batch)
            ways = [n for n in reversed(candidates(most)) if n >= choice.workers and not obstacle(learner, n)]
    if ways[-1] > 1 and meeting and choice.measured:  # nobody can help one that falls behind
        ways.append(1)
    return ways


class WorkerWatch:
    """Let a run go on with another number of workers when a neighbor makes them wait, and back when it is gone.

    A change is tried for as many steps as lie between two looks, and taken back if they are no quicker.

    Args:
        learners: learners that take the steps.
        ways: numbers of workers, each less hindered by a busy neighbor than the one before.
        now: number among them that the run begins with.
        log: called with the line that says so.
    """

    def __init__(self, learners: Sequence[Learner], ways: Sequence[int], now: int, log: Callable[[str], None]) -> None:
        self._learners, self._ways, self._log = learners, ways, log
        self._place = ways.index(now) if now in ways else 0
        self._left: tuple[int, float] | None = None  # the place that was left for a trial, and its pace
        self._least = dict.fromkeys(ways, float("inf"))
        self._looks = 0  # since the last trial
        self._rest, self._patience = 2, PATIENCE  # looks before fewer, and before more workers are tried

    def look(self, seconds: float, steps: int) -> int | None:
        """Note how long the last steps took.

        Args:
            seconds: seconds that the last steps took.
            steps: number of these steps.

        Returns:
            The number of workers to go on with, if the run should change for good; None if not.
        """
        if len(self._ways) < 2:
            return None
        pace, way = seconds / steps, self._ways[self._place]
        self._least[way] = min(self._least[way], pace)
        self._looks += 1
        if self._left is not None:
            return self._judge(pace)
        slow = self._place + 1 < len(self._ways) and pace > LAG * self._least[way]
        if slow and self._looks > self._rest:
            self._try(self._place + 1, pace)
        elif not slow and self._place and self._looks >= self._patience:
            self._try(self._place - 1, pace)
        return None

    def _try(self, place: int, pace: float) -> None:
        self._left, self._place = (self._place, pace), place
        self._share()

    def _judge(self, pace: float) -> int | None:
        """Keep the way that was tried if it was quicker, else return to the one that was left."""
        assert self._left is not None
        (before, left), self._left, self._looks = self._left, None, 0
        fewer, way = before < self._place, self._ways[self._place]
        if pace < left / GAIN:
            self._rest, self._patience = 2, PATIENCE
            why = "steps became slow beside other programs" if fewer else "more of the processor is free"
            self._log(f"{why}: going on with {worded(way)}")
            return way
        if fewer:
            self._rest *= 2
        else:
            self._patience *= 2
        self._place = before
        self._share()
        return None

    def _share(self) -> None:
        for learner in self._learners:
            learner.share_among(self._ways[self._place])


def worded(workers: int) -> str:
    """Return a number of workers in words.

    >>> worded(1), worded(2)
    ('1 worker of one thread', '2 workers of one thread each')
    """
    if workers == OPERATORS:
        return f"{torch.get_num_threads()} threads in operators"
    return "1 worker of one thread" if workers == 1 else f"{workers} workers of one thread each"


def candidates(threads: int) -> list[int]:
    """Return the numbers of workers to try: powers of two, and the number of threads itself.

    >>> candidates(6)
    [1, 2, 4, 6]
    """
    return sorted({threads, *(2**power for power in range(threads.bit_length()) if 2**power <= threads)})


def measure(make: Callable[[], Learner], numbers: Sequence[int], seconds: float = MOST_SECONDS) -> dict[int, float]:
    """Measure the images per second with several numbers of workers, in turns.

    Args:
        make: function that makes a learner to measure with.
        numbers: numbers of workers, `OPERATORS` among them.
        seconds: number of seconds after which no step begins, once each number had its turn.

    Returns:
        The rate by number: that of the quickest step, which a busy machine spoils least.
    """
    plain, shared = make(), make()
    least = dict.fromkeys(numbers, float("inf"))
    start, began, taken = plain.randomness.get_state(), time.perf_counter(), 0
    try:
        while taken < len(numbers) or time.perf_counter() - began < seconds:
            workers = numbers[taken % len(numbers)]
            learner = plain if workers == OPERATORS else shared
            if workers != OPERATORS:
                learner.share_among(workers)
            for _ in range(2):  # the first after a change has more to do
                learner.begin_epoch(start, 0)
                stepped = time.perf_counter()
                learner.step()
                learner.finish()
                least[workers] = min(least[workers], time.perf_counter() - stepped)
            taken += 1
    finally:
        plain.close()
        shared.close()
    return {number: plain.batch / took for number, took in least.items()}
