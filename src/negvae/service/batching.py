"""One bounded queue in front of the models: what arrives together is scored together, off the event loop."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from negvae.service.models import Inputs, Served, Slot

LOGGER = logging.getLogger("negvae.service")
Outcome = TypeVar("Outcome")
Judgment = tuple[NDArray[np.float32], NDArray[np.float64], NDArray[np.bool_]]
"""Scores, p-values and decisions; NaN, NaN and False for an image that the model has no score for."""
PATIENCE = 0.5
"""How long a batch waits for requests that are expected, since the last one came: a share of the time of a pass."""
LEAST = 0.001
"""Shortest time that the event loop can wait, in seconds; instead of less, a batch waits for some turns of it."""
TURNS = 4


def judge(model: Served, inputs: Inputs) -> Judgment:
    """Return scores, p-values and decisions by the model's calibration; for groups, see `Calibration.p_values`."""
    scores, calibration = model.scores(inputs), model.calibration
    known = ~np.isnan(scores)
    if known.all():
        return scores, calibration.p_values(scores), calibration.is_outlier(scores)
    p_values, outliers = np.full(len(scores), np.nan), np.zeros(len(scores), bool)
    if known.any():
        p_values[known], outliers[known] = calibration.p_values(scores[known]), calibration.is_outlier(scores[known])
    return scores, p_values, outliers


class QueueFull(Exception):
    """The exception of a request that would make the queue longer than its bound."""


@dataclass(eq=False, slots=True)
class Job:
    """Something to compute: the scores of some inputs, or a function.

    Attributes:
        slot: slot of the model, whose monitor learns of the scores.
        model: model, as it was when the request was accepted.
        inputs: images or rows; None for a function.
        function: function to call; None for scores.
        size: number of images, tiles or rows that the job counts for.
        answer: called in the event loop with the result, or with the exception that came in its place.
        gone: whether the client has gone, so that nothing need be computed.
        group: group that all inputs belong to; None if it is not known.
    """

    slot: Slot
    model: Served
    inputs: Inputs | None
    function: Callable[[], Any] | None
    size: int
    answer: Callable[[Any], None]
    gone: bool = False
    group: str | None = None


@dataclass(frozen=True, eq=False)
class ScoredBatch:
    """What was scored together, as the counts and the drift monitor see it.

    Attributes:
        slot: slot of the model.
        model: model that gave the scores; the slot may hold another one by now.
        scores: scores without those that are NaN (N).
        groups: group of each input, "" where it is not known (N); None if none is known.
    """

    slot: Slot
    model: Served
    scores: NDArray[np.float32]
    groups: list[str] | None = None


class Batcher:
    """The queue and the thread that empties it.

    While one batch is computed, requests gather in the queue; the next batch is all that has gathered, up to a bound.
    Many requests so share the cost of a pass, which is the same for one image and for a block. Since clients who wait
    for an answer send their next request right after it, the batch after an answer waits a little until as many
    requests are there as before; a single client therefore waits for nothing.

    Args:
        max_batch: maximum number of images or rows in a batch.
        max_queue: maximum number of images or rows that wait.
        on_batch: called with each batch of scores, beside the next batch.

    Attributes:
        waiting: number of images or rows that wait.
    """

    def __init__(self, max_batch: int, max_queue: int, on_batch: Callable[[ScoredBatch], None]) -> None:
        self.max_batch, self.max_queue, self.on_batch = max_batch, max_queue, on_batch
        self.waiting = 0
        self._jobs: deque[Job] = deque()
        self._running: asyncio.Future[list[Any]] | None = None
        self._expected, self._patience = 1, 0.0
        self._timer: asyncio.TimerHandle | None = None
        self._pool = ThreadPoolExecutor(1, "negvae-serve")
        self._observers = ThreadPoolExecutor(1, "negvae-observe")
        self._unobserved: list[ScoredBatch] = []
        self._empty = asyncio.Event()
        self._empty.set()

    async def stop(self) -> None:
        """Finish what was accepted, and stop."""
        await self._empty.wait()
        self._show_unobserved()
        await asyncio.get_running_loop().run_in_executor(None, self._observers.shutdown)
        self._pool.shutdown()

    async def scores(self, slot: Slot, model: Served, inputs: Inputs, group: str | None = None) -> Judgment:
        """Score images or rows, together with those of other requests.

        Args:
            slot: slot of the model.
            model: model of the slot when the request was accepted.
            inputs: images or rows.
            group: group that all of them belong to, for the counts alone; None if it is not known.

        Returns:
            Scores, p-values and decisions (N each).

        Raises:
            QueueFull: if too many images or rows wait already.
        """
        found: Judgment = await self._awaited(slot, model, inputs, None, inputs.size, group)
        return found

    async def call(self, slot: Slot, model: Served, size: int, function: Callable[[], Outcome]) -> Outcome:
        """Call a function of the model in its thread, in turn with the scores.

        Args:
            slot: slot of the model.
            model: model of the slot when the request was accepted.
            size: number of images that the call counts for.
            function: function to call.

        Returns:
            What the function returned.

        Raises:
            QueueFull: if too many images or rows wait already.
        """
        result: Outcome = await self._awaited(slot, model, None, function, size)
        return result

    async def _awaited(
        self,
        slot: Slot,
        model: Served,
        inputs: Inputs | None,
        function: Callable[[], Any] | None,
        size: int,
        group: str | None = None,
    ) -> Any:
        done: asyncio.Future[Any] = asyncio.get_running_loop().create_future()

        def answer(result: Any) -> None:
            if not done.done():
                done.set_exception(result) if isinstance(result, Exception) else done.set_result(result)

        job = Job(slot, model, inputs, function, size, answer, group=group)
        self.put(job)
        try:
            return await done
        finally:
            job.gone = True

    def put(self, job: Job) -> None:
        """Accept a job; called in the event loop, in which `job.answer` is called when it is done.

        Args:
            job: the job.

        Raises:
            QueueFull: if too many images or rows wait already.
        """
        if self.waiting + job.size > self.max_queue:
            raise QueueFull
        self._jobs.append(job)
        self.waiting += job.size
        self._empty.clear()
        if self._running is None:
            self._consider()

    def _consider(self) -> None:
        """Compute what is there if all who are expected are there; otherwise look again a little later."""
        if len(self._jobs) >= self._expected or self.waiting >= self.max_batch:
            self._start()
        elif self._timer is None:
            loop = asyncio.get_running_loop()
            self._timer = loop.call_later(self._patience, self._look_again, len(self._jobs), loop.time(), 0)

    def _look_again(self, before: int, began: float, turns: int) -> None:
        """Compute what is there unless more has come since, but wait for no longer than a pass takes."""
        loop, there = asyncio.get_running_loop(), len(self._jobs)
        turns = 0 if there > before else turns + 1
        quiet = turns > 0 if self._patience >= LEAST else turns >= TURNS
        if quiet or loop.time() - began > self._patience / PATIENCE:
            self._start()
        else:
            self._timer = loop.call_later(self._patience, self._look_again, there, began, turns)

    def _start(self) -> None:
        """Compute the first job that waits, with all others of its model for which there is room."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        jobs, count, others = list[Job](), 0, deque[Job]()
        while self._jobs and count < self.max_batch:
            job = self._jobs.popleft()
            if job.gone:
                self.waiting -= job.size
            elif not jobs or (_go_together(job, jobs[0]) and count + job.size <= self.max_batch):
                jobs.append(job)
                count += job.size
            else:
                others.append(job)
        self._jobs.extendleft(reversed(others))
        self.waiting -= count
        if not jobs:
            self._expected = 1
            self._rest()
            return
        self._running = asyncio.get_running_loop().run_in_executor(self._pool, self._compute, jobs)
        self._running.add_done_callback(lambda done: self._finish(jobs, done))
        self._show_unobserved()

    def _rest(self) -> None:
        """Continue with the jobs that wait; with none, there is time for the monitors."""
        if self._jobs:
            self._consider()
        else:
            self._show_unobserved()
            self._empty.set()

    def _compute(self, jobs: list[Job]) -> list[Any]:
        """Return the result of each job, or the exception of one that failed; in the thread of the models."""
        began = time.perf_counter()
        results = _results(jobs)
        if jobs[0].function is None:
            self._patience = PATIENCE * (time.perf_counter() - began)
        return results

    def _finish(self, jobs: list[Job], done: asyncio.Future[list[Any]]) -> None:
        """Hand out the results of a batch, and start the next."""
        self._running = None
        results = done.result()
        if jobs[0].function is None and (scored := _scored(jobs, results)) is not None:
            self._unobserved.append(scored)
        for job, result in zip(jobs, results, strict=True):
            if not job.gone:
                job.answer(result)
        self._expected = len(jobs) + len(self._jobs)
        self._rest()

    def _show_unobserved(self) -> None:
        """Show the monitors what was scored, in a thread beside that of the models."""
        if self._unobserved:
            seen, self._unobserved = self._unobserved, []
            self._observers.submit(self._observe, seen)

    def _observe(self, seen: list[ScoredBatch]) -> None:
        """Call `on_batch`; an error of it ends no request."""
        for batch in seen:
            try:
                self.on_batch(batch)
            except Exception as error:
                LOGGER.error("not counted", exc_info=error, extra={"fields": {"model": batch.slot.name}})


def _go_together(job: Job, first: Job) -> bool:
    """Return whether two jobs are scores of one model."""
    return job.model is first.model and job.function is None and first.function is None


def _scored(jobs: list[Job], results: list[Any]) -> ScoredBatch | None:
    """Return the scores of a batch with their groups; None if all its jobs failed."""
    known = [(job, result[0]) for job, result in zip(jobs, results, strict=True) if not isinstance(result, Exception)]
    if not known:
        return None
    scores = np.concatenate([part for _, part in known])
    good, groups = ~np.isnan(scores), None
    if any(job.group is not None for job, _ in known):
        names = [job.group or "" for job, part in known for _ in part]
        groups = [name for name, is_good in zip(names, good, strict=True) if is_good]
    return ScoredBatch(jobs[0].slot, jobs[0].model, scores[good], groups)


def _results(jobs: list[Job]) -> list[Any]:
    """Return the result of each job, or the exception of one that failed.

    If jobs fail together, each is computed by itself, so that one that the model cannot compute ends no other.
    """
    first = jobs[0]
    try:
        if first.function is not None:
            return [first.function()]
        judged = judge(first.model, Inputs.joined([job.inputs for job in jobs if job.inputs is not None]))
    except Exception as error:
        return [error] if len(jobs) == 1 else [result for job in jobs for result in _results([job])]
    found, start = [], 0
    for job in jobs:
        assert job.inputs is not None
        rows = slice(start, start + len(job.inputs))
        found.append(tuple(values[rows] for values in judged))
        start = rows.stop
    return found
