"""A network's parameters as one vector, with one optimizer update for all of them and bfloat16 copies to compute with.

Small networks have two dozen parameters of a few kilobytes; updating them one by one takes longer than the
arithmetic. Here they are views of one float32 vector, the *master weights*. Under bfloat16 autocast the layers'
parameters are views of a bfloat16 copy of it, written once a step, instead of being cast at every use.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.optim import Optimizer


class Weights:
    """The master weights of one network, the copy that its layers compute with, and their optimizer.

    Args:
        network: network that owns the parameters; those of its convolutions and linear layers may be kept in `dtype`.
        extra: further parameters to train with the network's, kept in float32.
        dtype: type that the layers compute with: float32, or bfloat16 for autocast. The master weights have the
            parameters' own type.
        build_optimizer: function that makes the optimizer of the one master parameter.
        reduce: called with the gradient, one vector, to average it over all workers in place; None if there is one
            worker.

    Attributes:
        parameters: parameters of the layers, in the order in which they follow one another in the vector.
        master: master weights, one vector, with their gradient.
        updated: called after each update, before the next use of the weights; None if nobody waits for it.
    """

    def __init__(
        self,
        network: nn.Module,
        extra: Sequence[nn.Parameter],
        dtype: torch.dtype,
        build_optimizer: Callable[[list[nn.Parameter]], Optimizer],
        reduce: Callable[[Tensor], None] | None = None,
    ) -> None:
        self.reduce = reduce
        self.updated: Callable[[], None] | None = None
        layers = [m for m in network.modules() if isinstance(m, nn.Conv2d | nn.ConvTranspose2d | nn.Linear)]
        # What a weight is computed from is kept in float32; the layer rounds the result.
        castable = {id(p) for layer in layers for p in layer.parameters(recurse=False)}
        self.parameters = [*network.parameters(), *extra]
        total = sum(p.numel() for p in self.parameters)
        device = self.parameters[0].device
        self.master = nn.Parameter(torch.empty(total, device=device, dtype=self.parameters[0].dtype))
        self.master.grad = torch.zeros_like(self.master.detach())
        self._copy = torch.empty(total, device=device, dtype=dtype) if dtype != torch.float32 else None
        self._exact: list[Tensor] = []
        self._gradients: list[Tensor] = []
        self._working: list[Tensor] = []
        start = 0
        for p in self.parameters:
            end = start + p.numel()
            exact = _view(self.master.detach()[start:end], p)
            exact.copy_(p.detach())
            self._exact.append(exact)
            self._gradients.append(_view(self.master.grad[start:end], p))
            cast = self._copy is not None and id(p) in castable
            self._working.append(_view(self._copy[start:end], p) if cast else exact)  # type: ignore[index]
            start = end
        self.optimizer = build_optimizer([self.master])
        self.refresh()

    def refresh(self) -> None:
        """Copy the master weights to the layers."""
        if self._copy is not None:
            self._copy.copy_(self.master.detach())
        for p, working in zip(self.parameters, self._working, strict=True):
            p.data = working

    def step(self) -> None:
        """Update the weights by the parameters' gradients, and clear the gradients."""
        _move_gradients(self.parameters, self._gradients)
        if self.reduce is not None and self.master.grad is not None:
            self.reduce(self.master.grad)
        self.update()

    def update(self) -> None:
        """Update the weights by the gradient of the master weights."""
        self.optimizer.step()
        if self._copy is not None:
            self._copy.copy_(self.master.detach())
        if self.updated is not None:
            self.updated()

    def replica(self, parameters: Sequence[nn.Parameter], arrive: Callable[[], None]) -> Replica:
        """Let a copy of the network compute with these weights.

        Args:
            parameters: the copy's parameters, in the order of `parameters`.
            arrive: called when a gradient is ready, to wait until the weights are updated where they are used again in
                the same step.

        Returns:
            What stands in for these weights where the copy is trained.
        """
        for p, working in zip(parameters, self._working, strict=True):
            p.data = working
        return Replica(parameters, torch.zeros_like(self.master.detach()), arrive)

    @contextmanager
    def exact(self) -> Iterator[None]:
        """Give the parameters their float32 values within the block, to read or write them."""
        for p, exact in zip(self.parameters, self._exact, strict=True):
            p.data = exact
        try:
            yield
        finally:
            self.refresh()

    def release(self) -> None:
        """Give the parameters float32 values of their own."""
        for p, exact in zip(self.parameters, self._exact, strict=True):
            p.data = exact.clone(memory_format=torch.preserve_format)


class Replica:
    """The gradients of a copy of a network that computes with the weights of another; see `Weights.replica`.

    Args:
        parameters: parameters of the copy.
        gradient: vector that takes the gradients of all parameters.
        arrive: called when the gradients are complete.

    Attributes:
        gradient: gradients of the last step, as one vector.
    """

    def __init__(self, parameters: Sequence[nn.Parameter], gradient: Tensor, arrive: Callable[[], None]) -> None:
        self.gradient, self._parameters, self._arrive = gradient, parameters, arrive
        self._gradients, start = list[Tensor](), 0
        for p in parameters:
            self._gradients.append(_view(gradient[start : start + p.numel()], p))
            start += p.numel()

    def step(self) -> None:
        """Hand over the gradients."""
        _move_gradients(self._parameters, self._gradients)
        self._arrive()


def _move_gradients(parameters: Sequence[nn.Parameter], gradients: Sequence[Tensor]) -> None:
    """Copy the gradients of parameters to views of a vector, and clear them."""
    places, given = list[Tensor](), list[Tensor]()
    for p, gradient in zip(parameters, gradients, strict=True):
        if p.grad is None:
            gradient.zero_()
        else:
            places.append(gradient)
            given.append(p.grad)
            p.grad = None
    if places:
        torch._foreach_copy_(places, given)  # one call: threads of Python wait for one another at each


def _view(vector: Tensor, like: Tensor) -> Tensor:
    """Return a part of a vector as a view with a parameter's shape and memory layout."""
    return vector.as_strided(like.shape, like.stride(), vector.storage_offset())
