"""The optimizers, one each for the encoder and the decoder; `negvae.parts.OPTIMIZERS` has their names."""

from __future__ import annotations

from typing import Protocol

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
