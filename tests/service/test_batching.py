"""The queue: requests that wait are scored together, a bound, and requests whose client has gone."""

import asyncio
import threading
from types import SimpleNamespace

import numpy as np
import pytest

from negvae.service.batching import Batcher, QueueFull
from negvae.service.models import Inputs


class Slow:
    """A model that waits until it may go on, and remembers how many inputs each call had."""

    calibration = SimpleNamespace(p_values=lambda scores: scores, is_outlier=lambda scores: scores > 5)

    def __init__(self):
        self.may_go_on, self.begun, self.calls = threading.Event(), threading.Event(), []

    def scores(self, inputs):
        stored = inputs.stored
        self.begun.set()
        self.may_go_on.wait(30)
        self.calls.append(len(stored))
        if 13 in stored:
            raise ValueError("thirteen")
        return stored[:, 0].astype(np.float32)


def rows(*values):
    return np.array(values, np.float64).reshape(-1, 1)


def together(work, max_queue=6):
    """Run `work` with a queue of at most `max_queue`, whose first request is already being computed."""

    async def run():
        seen = []
        batcher = Batcher(8, max_queue, lambda batch: seen.append(len(batch.scores)))
        model = Slow()
        slot = SimpleNamespace(name="a")

        def ask(*values, of=model):
            return asyncio.ensure_future(batcher.scores(slot, of, Inputs(rows(*values))))

        first = ask(0)
        while not model.begun.is_set():
            await asyncio.sleep(0.001)
        await work(batcher, model, ask)
        assert (await first)[0].tolist() == [0]
        await batcher.stop()  # once more does no harm
        assert batcher.waiting == 0
        return model, seen

    return asyncio.run(run())


def test_what_waits_is_scored_together_and_beyond_the_bound_is_refused():
    async def work(batcher, model, ask):
        waiting = [ask(1, 2), ask(3), ask(4, 5, 6)]
        await asyncio.sleep(0.01)
        with pytest.raises(QueueFull):
            await ask(7)
        model.may_go_on.set()
        assert [found[0].tolist() for found in await asyncio.gather(*waiting)] == [[1, 2], [3], [4, 5, 6]]

    model, seen = together(work)
    assert model.calls == [1, 6]
    assert seen == [1, 6]


def test_no_batch_is_larger_than_the_most_that_is_scored_together():
    async def work(batcher, model, ask):
        waiting = [ask(*[1] * 5), ask(*[2] * 4), ask(*[3] * 3), ask(*[4] * 9)]
        await asyncio.sleep(0.01)
        model.may_go_on.set()
        assert [found[0].tolist() for found in await asyncio.gather(*waiting)] == [[1] * 5, [2] * 4, [3] * 3, [4] * 9]

    model, _ = together(work, max_queue=21)
    assert model.calls == [1, 8, 4, 9]  # a request larger than all batches has one of its own


def test_each_request_answers_for_itself():
    async def work(batcher, model, ask):
        other = Slow()
        other.may_go_on.set()
        gone, bad, good, unknown, elsewhere = ask(1), ask(13), ask(2, 3), ask(4, np.nan), ask(5, of=other)
        await asyncio.sleep(0.01)
        gone.cancel()
        model.may_go_on.set()
        with pytest.raises(ValueError, match="thirteen"):
            await bad
        assert (await good)[0].tolist() == [2, 3]
        scores, p_values, outliers = await unknown
        assert np.isnan([scores[1], p_values[1]]).all()
        assert (scores[0], outliers.tolist()) == (4, [False, False])
        assert (await elsewhere)[0].tolist() == [5]
        leaving = ask(6)
        model.begun.clear()
        model.may_go_on.clear()
        while not model.begun.is_set():
            await asyncio.sleep(0.001)
        leaving.cancel()  # while it is computed
        model.may_go_on.set()
        assert (await ask(6))[0].tolist() == [6]

    model, seen = together(work, 9)
    # The first one; then four together without the one that has gone, which fails, and each by itself; then the last.
    assert model.calls == [1, 5, 1, 2, 2, 1, 1]
    assert sum(seen) == 1 + 2 + 1 + 1 + 2  # what has no score is not counted


def test_requests_that_are_expected_are_waited_for():
    async def work(batcher, model, ask):
        model.may_go_on.set()
        await asyncio.gather(ask(1), ask(2), ask(3))
        batcher._patience = 60.0  # of a model that takes minutes
        apart = []
        for value in range(3):
            apart.append(ask(value))
            await asyncio.sleep(0.01)
        await asyncio.gather(*apart)
        assert model.calls[-1] == 3
        batcher._patience = 0.0
        await ask(1)  # which others were expected with, and none come
        batcher._patience = 60.0
        await ask(1)

    model, _ = together(work)
    assert model.calls[-2:] == [1, 1]


def test_stopping_finishes_what_was_accepted():
    async def work(batcher, model, ask):
        accepted = [ask(1), ask(2)]
        await asyncio.sleep(0.01)
        stopping = asyncio.ensure_future(batcher.stop())
        await asyncio.sleep(0.01)
        assert not stopping.done()
        model.may_go_on.set()
        await stopping
        assert [found[0].tolist() for found in await asyncio.gather(*accepted)] == [[1], [2]]

    together(work)
