"""One bounded queue in front of the models: what arrives together is scored together, off the event loop."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from negvae.service.models import Served, Slot

LOGGER = logging.getLogger("negvae.service")
Outcome = TypeVar("Outcome")
Judgment = tuple[NDArray[np.float32], NDArray[np.float64], NDArray[np.bool_]]
"""Scores, p-values and decisions."""
TURNS = 4
"""Turns of the event loop without a new request after which a batch is computed; a request takes three to arrive."""


def judge(model: Served, stored: NDArray[Any]) -> Judgment:
    """Return scores, p-values and decisions by the model's calibration; for groups, see `Calibration.p_values`."""
    scores = model.scores(stored)
    return scores, model.calibration.p_values(scores), model.calibration.is_outlier(scores)


class QueueFull(Exception):
    """The exception of a request that would make the queue longer than its bound."""


@dataclass(eq=False)
class _Job:
    """Something to compute: the scores of some inputs, or a function.

    Attributes:
        slot: slot of the model, whose monitor learns of the scores.
        model: model, as it was when the request was accepted.
        stored: images or rows; empty for a function.
        function: function to call; None for scores.
        size: number of images or rows that the job counts for.
        done: the result.
    """

    slot: Slot
    model: Served
    stored: NDArray[Any]
    function: Callable[[], Any] | None
    size: int
    done: asyncio.Future[Any]


class Batcher:
    """The queue and the thread that empties it.

    While one batch is computed, requests gather in the queue; the next batch is all that has gathered, up to a bound.
    So a single request waits for nothing, and many requests share the cost of a pass.

    Args:
        max_batch: maximum number of images or rows in a batch.
        max_queue: maximum number of images or rows that wait.
        on_batch: called with the slot and the scores of a batch, after the answers are on their way.

    Attributes:
        waiting: number of images or rows that wait.
    """

    def __init__(self, max_batch: int, max_queue: int, on_batch: Callable[[Slot, NDArray[np.float32]], None]) -> None:
        self.max_batch, self.max_queue, self.on_batch = max_batch, max_queue, on_batch
        self.waiting = 0
        self._queue: asyncio.Queue[_Job] = asyncio.Queue(max_queue)
        self._pool = ThreadPoolExecutor(1, "negvae-serve")
        self._observers = ThreadPoolExecutor(1, "negvae-observe")
        self._observed: asyncio.Future[None] | None = None
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Start to empty the queue, in the running event loop."""
        self._task = asyncio.create_task(self._work())

    async def stop(self) -> None:
        """Finish what was accepted, and stop."""
        await self._queue.join()
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        if self._observed is not None:
            await self._observed
        self._pool.shutdown()
        self._observers.shutdown()

    async def scores(self, slot: Slot, model: Served, stored: NDArray[Any]) -> Judgment:
        """Score images or rows, together with those of other requests.

        Args:
            slot: slot of the model.
            model: model of the slot when the request was accepted.
            stored: images (uint8, N x C x H x W) or rows (float64, N x D x 1 x 1).

        Returns:
            Scores, p-values and decisions (N each).

        Raises:
            QueueFull: if too many images or rows wait already.
        """
        found: Judgment = await self._put(slot, model, stored, None, len(stored))
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
        result: Outcome = await self._put(slot, model, np.empty(0), function, size)
        return result

    async def _put(
        self, slot: Slot, model: Served, stored: NDArray[Any], function: Callable[[], Any] | None, size: int
    ) -> Any:
        if self.waiting + size > self.max_queue or self._queue.full():
            raise QueueFull
        job = _Job(slot, model, stored, function, size, asyncio.get_running_loop().create_future())
        self.waiting += size
        self._queue.put_nowait(job)
        return await job.done

    async def _work(self) -> None:
        """Empty the queue, batch by batch."""
        while True:
            jobs = [await self._queue.get()]
            await self._arrivals()
            count = jobs[0].size
            while count < self.max_batch and not self._queue.empty():
                jobs.append(self._queue.get_nowait())
                count += jobs[-1].size
            self.waiting -= count
            groups: dict[int, list[_Job]] = {}
            for job in jobs:
                if not job.done.cancelled():  # whose client has not gone
                    groups.setdefault(id(job) if job.function else id(job.model), []).append(job)
            for group in groups.values():
                await self._run(group)
            for _ in jobs:
                self._queue.task_done()

    async def _arrivals(self) -> None:
        """Let the event loop read what has arrived already: a pass costs the same for one image and for a block."""
        quiet, before = 0, self._queue.qsize()
        while quiet < TURNS:
            await asyncio.sleep(0)
            now = self._queue.qsize()
            quiet, before = (0, now) if now > before else (quiet + 1, now)

    async def _run(self, jobs: list[_Job]) -> None:
        """Compute jobs of one model together, and hand out the results."""
        loop, first = asyncio.get_running_loop(), jobs[0]
        try:
            if first.function is not None:
                _resolve(first, await loop.run_in_executor(self._pool, first.function))
                return
            stored = np.concatenate([job.stored for job in jobs])  # a copy, which torch may hold
            judged = await loop.run_in_executor(self._pool, judge, first.model, stored)
        except Exception as error:  # belongs to these requests, and ends no others
            for job in jobs:
                if not job.done.done():
                    job.done.set_exception(error)
            return
        start = 0
        for job in jobs:
            _resolve(job, tuple(values[start : start + job.size] for values in judged))
            start += job.size
        # Beside the next batch, but at most one behind.
        if self._observed is not None:
            await self._observed
        self._observed = loop.run_in_executor(self._observers, self._observe, first.slot, judged[0])

    def _observe(self, slot: Slot, scores: NDArray[np.float32]) -> None:
        """Call `on_batch`; an error of it ends no request."""
        try:
            self.on_batch(slot, scores)
        except Exception as error:
            LOGGER.error("not counted", exc_info=error, extra={"fields": {"model": slot.name}})


def _resolve(job: _Job, result: Any) -> None:
    if not job.done.done():
        job.done.set_result(result)
