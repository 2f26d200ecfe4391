"""The optimizers, one each for the encoder and the decoder; `negvae.parts.OPTIMIZERS` has their names."""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch.nn import Parameter
from torch.optim import Adam, Optimizer, RMSprop


class BuildOptimizer(Protocol):
    """A function that makes an optimizer, the target of an entry in `negvae.parts.OPTIMIZERS`."""

    def __call__(self, parameters: list[Parameter], learning_rate: float, *, capturable: bool) -> Optimizer:
        """Make the optimizer of one network.

        Args:
            parameters: parameters that the optimizer updates.
            learning_rate: learning rate of all parameters.
            capturable: whether its steps are captured in a CUDA graph.

        Returns:
            The optimizer.
        """


def adam(parameters: list[Parameter], learning_rate: float, *, capturable: bool) -> Optimizer:
    """Make Adam with the decay rates 0.9 and 0.999 (appendix A.2.2 of the paper).

    >>> import torch
    >>> adam([Parameter(torch.zeros(3))], 1e-3, capturable=False).defaults["betas"]
    (0.9, 0.999)
    """
    return Adam(parameters, lr=learning_rate, betas=(0.9, 0.999), fused=True, capturable=capturable)


def rmsprop(parameters: list[Parameter], learning_rate: float, *, capturable: bool) -> Optimizer:
    """Make RMSProp with the decay rate and epsilon of the framework in which the paper's authors worked.

    >>> import torch
    >>> rmsprop([Parameter(torch.zeros(3))], 1e-4, capturable=False).defaults["alpha"]
    0.9
    """
    return RMSprop(parameters, lr=learning_rate, alpha=0.9, eps=1e-10, foreach=False, capturable=capturable)


class _RMSProp(Optimizer):
    """RMSProp whose mean of squared gradients starts at 1, with epsilon inside the root."""

    def __init__(self, parameters: list[Parameter], lr: float) -> None:
        super().__init__(parameters, {"lr": lr, "alpha": 0.9, "eps": 1e-10})
        for parameter in parameters:
            self.state[parameter] = {"square_avg": torch.ones_like(parameter)}

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Update every parameter from its gradient."""
        for group in self.param_groups:
            for parameter in group["params"]:
                mean = self.state[parameter]["square_avg"]
                mean.mul_(group["alpha"]).addcmul_(parameter.grad, parameter.grad, value=1 - group["alpha"])
                parameter.sub_(group["lr"] * parameter.grad / (mean + group["eps"]).sqrt_())


def rmsprop_authors(parameters: list[Parameter], learning_rate: float, *, capturable: bool) -> Optimizer:
    """Make the RMSProp of that framework in full: it starts with short steps, and small gradients get shorter ones.

    After n steps the first mean of squared gradients, 1, still counts for 0.9^n; and a gradient below 1e-5, the root
    of epsilon, moves its weight by less than the learning rate.
    """
    return _RMSProp(parameters, learning_rate)
