"""The queue: requests that wait are scored together, a bound, and requests whose client has gone."""

import asyncio
import threading
from types import SimpleNamespace

import numpy as np
import pytest

from negvae.service.batching import Batcher, QueueFull


class Slow:
    """A model that waits until it may go on, and remembers how many inputs each call had."""

    calibration = SimpleNamespace(p_values=lambda scores: scores, is_outlier=lambda scores: scores > 5)

    def __init__(self):
        self.may_go_on, self.begun, self.calls = threading.Event(), threading.Event(), []

    def scores(self, stored):
        self.begun.set()
        self.may_go_on.wait(30)
        self.calls.append(len(stored))
        if 13 in stored:
            raise ValueError("thirteen")
        return stored[:, 0].astype(np.float32)


def rows(*values):
    return np.array(values, np.float64).reshape(-1, 1)


def together(work):
    """Run `work` with a queue of at most 6, whose first request is already being computed."""

    async def run():
        seen = []
        batcher = Batcher(8, 6, lambda slot, scores: seen.append(len(scores)))
        batcher.start()
        model = Slow()
        slot = SimpleNamespace(name="a")

        def ask(*values, of=model):
            return asyncio.ensure_future(batcher.scores(slot, of, rows(*values)))

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


def test_a_client_that_has_gone_costs_nothing_and_an_error_ends_no_other_request():
    async def work(batcher, model, ask):
        other = Slow()
        other.may_go_on.set()
        gone, bad, good = ask(1), ask(13), ask(5, of=other)
        await asyncio.sleep(0.01)
        gone.cancel()
        model.may_go_on.set()
        with pytest.raises(ValueError, match="thirteen"):
            await bad
        assert (await good)[0].tolist() == [5]
        assert (await ask(6))[0].tolist() == [6]

    model, _ = together(work)
    assert model.calls == [1, 1, 1]


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
