"""The optimizers, of which the encoder and the decoder have one each; `negvae.parts.OPTIMIZERS` has their names."""

from __future__ import annotations

from typing import Protocol

from torch.nn import Parameter
from torch.optim import Adam, Optimizer, RMSprop


class BuildOptimizer(Protocol):
    """What an optimizer's name stands for."""

    def __call__(self, parameters: list[Parameter], learning_rate: float, *, capturable: bool) -> Optimizer:
        """Make the optimizer of one network.

        Args:
            parameters: what it updates.
            learning_rate: of all of them.
            capturable: whether its steps are to be captured in a CUDA graph.
        """


def adam(parameters: list[Parameter], learning_rate: float, *, capturable: bool) -> Optimizer:
    """Make Adam with the decays 0.9 and 0.999."""
    return Adam(parameters, lr=learning_rate, betas=(0.9, 0.999), fused=True, capturable=capturable)


def rmsprop(parameters: list[Parameter], learning_rate: float, *, capturable: bool) -> Optimizer:
    """Make RMSProp with the decay and epsilon of the framework in which the paper's authors worked."""
    return RMSprop(parameters, lr=learning_rate, alpha=0.9, eps=1e-10, foreach=False, capturable=capturable)
