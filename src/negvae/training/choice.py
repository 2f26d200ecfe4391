"""How many workers share each batch: as the user says, or as many as a short measurement finds to pay."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import torch
from torch import nn

from negvae.negatives import Mixture
from negvae.training.batchnorm import NORMS, has_batch_norm
from negvae.training.step import Learner

MEASURED_FROM = 20_000 * 28 * 28
"""Numbers that are left to train on, pixels or features, from which a measurement pays for itself."""
MOST_SECONDS = 0.6
"""Seconds of a measurement; the step that is under way is finished."""
GAIN = 1.03
"""How much faster more workers must be to be taken: they also keep the machine busier."""


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
        if isinstance(layer, nn.modules.dropout._DropoutNd):
            return f"{type(layer).__name__} draws from one random generator for all threads"
        if getattr(layer, "running_mean", None) is not None and not isinstance(layer, NORMS):
            return f"{type(layer).__name__} is not known to work on parts of a batch"
    source = learner.source
    if isinstance(source, Mixture) and source.adversarial and has_batch_norm(learner.model):
        fewest = int(learner.batch * min(source.weights) / sum(source.weights))
        if fewest <= workers:
            return f"batch norm needs rows of each kind of negatives for every worker, and there are {fewest} of one"
    return ""


def choose_workers(make: Callable[[], Learner], learner: Learner, steps: int) -> tuple[int | None, str]:
    """Choose a number of workers for a run on a CPU, up to the number of threads that torch may use.

    Args:
        make: function that makes a learner like the one to train, which the measurement uses up.
        learner: learner to train.
        steps: number of steps that are left.

    Returns:
        The number, or None to leave the learner as it is; and how it was found.
    """
    threads = min(torch.get_num_threads(), learner.batch)
    if threads == 1:
        return None, "torch may use one thread"
    if reason := obstacle(learner, threads):
        return None, reason
    numbers = learner.batch * learner.model.dimensions
    if steps * numbers < MEASURED_FROM:
        return None, "the fit is short"
    if learner.model.takes_features:
        return 1, "steps on rows are too short to be shared"
    rates = measure(make(), candidates(threads))
    best = 1
    for workers, rate in rates.items():
        if rate >= GAIN * rates[best]:
            best = workers
    shown = ", ".join(f"{workers}: {rate:,.0f}" for workers, rate in rates.items())
    return best, f"images/s by workers: {shown}"


def candidates(threads: int) -> list[int]:
    """Return the numbers of workers to try: powers of two, and the number of threads itself.

    >>> candidates(6)
    [1, 2, 4, 6]
    """
    return sorted({threads, *(2**power for power in range(threads.bit_length()) if 2**power <= threads)})


def measure(learner: Learner, numbers: Sequence[int], seconds: float = MOST_SECONDS) -> dict[int, float]:
    """Measure the images per second of a learner with several numbers of workers, in turns.

    Args:
        learner: learner to measure with; it is closed.
        numbers: numbers of workers.
        seconds: number of seconds after which no step begins.

    Returns:
        The rate by number: that of the quickest step, which a busy machine spoils least.
    """
    least = dict.fromkeys(numbers, float("inf"))
    start, began, taken = learner.randomness.get_state(), time.perf_counter(), 0
    try:
        while taken < 2 * len(numbers) or time.perf_counter() - began < seconds:
            if taken >= len(numbers) and time.perf_counter() - began > 2 * seconds:
                break
            workers = numbers[taken % len(numbers)]
            learner.share_among(workers)
            for _ in range(2):  # the first after a change has more to do
                learner.begin_epoch(start, 0)
                stepped = time.perf_counter()
                learner.step()
                learner.finish()
                least[workers] = min(least[workers], time.perf_counter() - stepped)
            taken += 1
    finally:
        learner.close()
    return {number: learner.batch / took for number, took in least.items()}
