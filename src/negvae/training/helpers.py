"""Threads that help the thread which trains a model: each takes a share of every batch.

torch lets other threads run while it computes, so the workers need no processes of their own: they start in a moment,
share the data and the weights, and work wherever Python runs. They meet where `Weights.step` needs the gradients of all
of them, and in layers that normalize by the statistics of the whole batch. Whoever waits sleeps, so that a neighbor on
the machine can use the core, and the system can move a worker that shares a core to one that is free.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from queue import SimpleQueue
from typing import Any

import torch
from torch import Tensor

from negvae.device import compute_alone, own_state
from negvae.training.workers import Peers

_GO, _END = object(), object()


class _EndedError(Exception):
    """The error by which a helper leaves a step that the others have given up."""


class Helpers:
    """The threads that help another thread, the leader, which is worker 0; each begins when it is first needed.

    Args:
        make: function that is called in a helper's thread with its rank, from 1, and returns the function that does
            its share of a step, given what `begin` was given.

    >>> shares, helpers = [], Helpers(lambda rank: lambda step: shares.append((step, rank)))
    >>> helpers.begin("first", workers=3)
    >>> helpers.gather()
    >>> helpers.close()
    >>> sorted(shares)
    [('first', 1), ('first', 2)]
    """

    def __init__(self, make: Callable[[int], Callable[[Any], None]]) -> None:
        self._make = make
        self._threads: list[threading.Thread] = []
        self._orders: list[SimpleQueue[Any]] = []
        self._arrivals: SimpleQueue[None] = SimpleQueue()
        self._active = 0
        self._failure: BaseException | None = None
        self._slots: dict[int, Tensor] = {}
        self._total = torch.empty(0, dtype=torch.float32, device="cpu")

    def begin(self, step: Any, workers: int) -> None:
        """Let helpers 1 to `workers` - 1 do their shares of a step; `gather` waits until they have done them."""
        while len(self._threads) < workers - 1:
            self._orders.append(SimpleQueue())
            rank = len(self._orders)
            thread = threading.Thread(target=self._serve, args=(rank,), name=f"negvae-worker-{rank}", daemon=True)
            self._threads.append(thread)
            thread.start()
        self._active = workers - 1
        for orders in self._orders[: self._active]:
            orders.put(step)

    def gather(self) -> None:
        """Wait until every helper has arrived at a meeting, or at the end of the step; for the leader.

        Raises:
            BaseException: what a helper raised.
        """
        for _ in range(self._active):
            self._arrivals.get()
            if self._failure is not None:
                raise self._failure

    def rest(self) -> None:
        """Expect no helper any more, until `begin`."""
        self._active = 0

    def release(self) -> None:
        """Let the helpers go on after a meeting; for the leader."""
        for orders in self._orders[: self._active]:
            orders.put(_GO)

    def meet(self, rank: int) -> None:
        """Arrive at a meeting and wait until the leader lets all go on; for the helper of this rank."""
        self._arrivals.put(None)
        if self._orders[rank - 1].get() is _END:
            raise _EndedError

    def peers(self, rank: int, size: int) -> Peers:
        """Return the connection of a worker, the leader among them, to the others."""

        def add(tensor: Tensor) -> None:
            self._slots[rank] = tensor
            if rank:
                self.meet(rank)
            else:
                self.gather()
                total = self._slots[0].clone()
                for other in range(1, size):  # in this order, whoever came first
                    total += self._slots[other]
                self._total = total
                self.release()
            tensor.copy_(self._total)

        return Peers(rank, size, add)

    def close(self) -> None:
        """End the threads, also in the middle of a step."""
        for orders in self._orders:
            orders.put(_END)
        for thread in self._threads:
            thread.join()
        self._threads, self._orders, self._active = [], [], 0

    def _serve(self, rank: int) -> None:
        """Do the shares of a helper until it is ended."""
        orders = self._orders[rank - 1]
        compute_alone()
        try:
            with own_state():
                work = self._make(rank)
                while (step := orders.get()) is not _END:
                    work(step)
                    self._arrivals.put(None)
        except _EndedError:
            return
        except BaseException as error:
            self._failure = error
            self._arrivals.put(None)


@contextmanager
def taking_turns() -> Iterator[None]:
    """Let threads of Python take turns quickly within the block: a worker computes little between calls of torch."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(min(before, 1e-4))
    try:
        yield
    finally:
        sys.setswitchinterval(before)


@contextmanager
def threads_of_operators(number: int) -> Iterator[None]:
    """Let this thread's operators use a number of threads within the block."""
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)
