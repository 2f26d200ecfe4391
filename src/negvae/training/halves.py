"""Two threads that train one network: each computes the gradient of one half of every batch.

Every operator of a thread runs on that thread alone, so a busy neighbor on the machine slows one half and not each
operator of both. The halves are the same wherever and by however many threads they are computed, and so are the bits of
the result: batch norm takes the statistics of a half, and the running statistics are the mean of both halves'.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from types import TracebackType
from typing import Self

import torch
from torch import Tensor, nn

from negvae.training.helpers import Helpers, taking_turns, threads_of_operators
from negvae.training.weights import Weights

HALVES = 2


class Halves:
    """A network in training by halves of each batch; a context manager, which ends its thread.

    Args:
        network: network in training mode.
        weights: its weights, which are updated.
        loss: function of a copy of the network and the number of the half, 0 or 1, which returns the mean loss of that
            half of the next batch, with its graph. It is called for both halves at once from two threads.
        device: device that the network is on; elsewhere than on a CPU, one thread computes both halves.

    >>> network = nn.Linear(2, 1, bias=False)
    >>> weights = Weights(network, [], torch.float32, lambda parameters: torch.optim.SGD(parameters, lr=1.0))
    >>> network.weight.data.zero_()
    tensor([[0., 0.]])
    >>> data = torch.tensor([[1.0, 0.0], [0.0, 3.0]])
    >>> with Halves(network, weights, lambda copied, half: copied(data[half]).sum(), torch.device("cpu")) as halves:
    ...     halves.step().tolist(), network.weight.tolist()
    ([0.0, 0.0], [[-0.5, -1.5]])
    """

    def __init__(
        self, network: nn.Module, weights: Weights, loss: Callable[[nn.Module, int], Tensor], device: torch.device
    ) -> None:
        self._network, self._weights, self._loss = network, weights, loss
        self._copies = [copy.deepcopy(network) for _ in range(HALVES)]
        self._replicas = [weights.replica(list(each.parameters()), lambda: None) for each in self._copies]
        self._losses = [torch.zeros(()) for _ in range(HALVES)]
        self._on_cpu = device.type == "cpu"
        self._threads = HALVES if self._on_cpu and (os.cpu_count() or 1) > 1 else 1
        self._helpers = Helpers(lambda rank: self._take)
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        """Start with the network's running statistics, and keep this thread's operators to one thread."""
        self._stack.callback(self._helpers.close)
        if self._on_cpu:
            self._stack.enter_context(threads_of_operators(1))
            self._stack.enter_context(taking_turns())
        for each in self._copies:
            for own, leading in zip(each.buffers(), self._network.buffers(), strict=True):
                own.copy_(leading)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        """End the other thread."""
        self._stack.close()

    def step(self) -> Tensor:
        """Take a step on the next batch.

        Returns:
            The losses of both halves (2), without gradient.
        """
        numbers = iter(range(HALVES))
        self._helpers.begin(numbers, self._threads)
        self._take(numbers)
        self._helpers.gather()
        gradient = self._weights.master.grad
        assert gradient is not None
        torch.add(self._replicas[0].gradient, self._replicas[1].gradient, out=gradient)
        gradient *= 1 / HALVES
        self._weights.update()
        self._average_statistics()
        return torch.stack(self._losses)

    def _take(self, numbers: Iterator[int]) -> None:
        """Compute the gradients of the halves that nobody has taken yet."""
        for number in numbers:
            loss = self._loss(self._copies[number], number)
            loss.backward()  # type: ignore[no-untyped-call]
            self._replicas[number].step()
            self._losses[number] = loss.detach()

    def _average_statistics(self) -> None:
        for leading, *halves in zip(
            self._network.buffers(), *(each.buffers() for each in self._copies), strict=True
        ):  # fmt: skip
            if leading.is_floating_point():
                torch.add(halves[0], halves[1], out=leading)
                leading *= 1 / HALVES
            else:
                leading.copy_(halves[0])
            for own in halves:
                own.copy_(leading)
