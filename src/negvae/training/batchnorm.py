"""Batch norm by the statistics of a whole batch whose rows are shared among workers.

Each worker adds its rows' sums to those of the others, in the forward pass and in the backward pass, so that outputs,
gradients and running statistics are those of one worker with the whole batch. The encoder of transformations is not
changed: it is trained after the rest, on batches of its own that no workers share.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import batch_norm

from negvae.training.workers import Peers

NORMS = (nn.BatchNorm1d, nn.BatchNorm2d)


def has_batch_norm(network: nn.Module) -> bool:
    """Return whether a network has a layer that normalizes by the statistics of a batch that workers share.

    >>> has_batch_norm(nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3)))
    True
    """
    return next(_norms(network), None) is not None


def share_batch_norms(network: nn.Module, peers: Callable[[], Peers], batch: int) -> None:
    """Let the batch norms of a network, in training mode, normalize by the statistics over all workers.

    Args:
        network: network whose layers are changed, until `unshare_batch_norms`.
        peers: function that returns the connection to the other workers.
        batch: number of images of a whole batch, of which each worker has its share.
    """
    for layer in _norms(network):
        layer.__dict__["forward"] = partial(_forward, layer, peers, batch)


def unshare_batch_norms(network: nn.Module) -> None:
    """Give the batch norms of a network their own way of computing back."""
    for layer in _norms(network):
        layer.__dict__.pop("forward", None)


def _norms(network: nn.Module) -> Iterator[nn.BatchNorm1d | nn.BatchNorm2d]:
    """Yield the batch norms of a network, without those of a model's encoder of transformations."""
    shifted = getattr(network, "shifted", None)
    alone = set() if shifted is None else set(shifted.modules())
    for layer in network.modules():
        if isinstance(layer, NORMS) and layer not in alone:
            yield layer


def _forward(layer: nn.BatchNorm1d | nn.BatchNorm2d, peers: Callable[[], Peers], batch: int, x: Tensor) -> Tensor:
    connection = peers()
    if not layer.training or connection.size == 1:
        return type(layer).forward(layer, x)
    with torch.no_grad():
        mean, variance, count = _statistics(x, connection)
        if layer.running_mean is not None and layer.running_var is not None:
            layer.num_batches_tracked.add_(1)  # type: ignore[union-attr]
            weight = layer.momentum if layer.momentum is not None else 1 / float(layer.num_batches_tracked)  # type: ignore[arg-type]
            layer.running_mean.lerp_(mean.to(layer.running_mean), weight)
            layer.running_var.lerp_((variance * (count / max(count - 1, 1))).to(layer.running_var), weight)
    kind = torch.float64 if x.dtype == torch.float64 else torch.float32
    y: Tensor = _SharedBatchNorm.apply(  # type: ignore[no-untyped-call]
        x, layer.weight, layer.bias, mean.to(kind), variance.to(kind), layer.eps, count, connection,
        connection.fraction(batch),
    )  # fmt: skip
    return y


def _statistics(x: Tensor, peers: Peers) -> tuple[Tensor, Tensor, float]:
    """Return mean and variance of each channel over the rows of all workers, and the number of values in a channel."""
    mean, variance = (part.double() for part in torch.batch_norm_update_stats(x, None, None, 0.0))
    own = x.numel() / x.shape[1]
    sums = torch.cat([own * mean, own * (variance + mean**2), mean.new_tensor([own])])
    peers.add(sums)
    count = float(sums[-1])
    mean, square = sums[:-1].div(count).chunk(2)
    return mean, (square - mean**2).clamp_min_(0), count


class _SharedBatchNorm(torch.autograd.Function):
    """The normalization itself: the mean and variance are functions of the rows of all workers."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor | None, bias: Tensor | None, mean: Tensor, variance: Tensor, eps: float,
        count: float, peers: Peers, share: float,
    ) -> Tensor:  # fmt: skip
        ctx.save_for_backward(x, weight, mean, variance)
        ctx.eps, ctx.count, ctx.peers, ctx.share = eps, count, peers, share
        return batch_norm(x, mean, variance, weight, bias, False, 0.0, eps)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, mean, variance = ctx.saved_tensors
        inverse = (variance + ctx.eps).rsqrt()
        by_x, by_weight, by_bias = torch.ops.aten.native_batch_norm_backward(
            gradient, x, weight, mean, variance, mean, inverse, False, ctx.eps, [True, True, True]
        )
        # Losses are means over a worker's own rows; those of all, weighted by their shares, make the batch's.
        sums = torch.cat([by_weight, by_bias]).double() * ctx.share
        ctx.peers.add(sums)
        by_scale, by_offset = (sums / (ctx.share * ctx.count)).to(inverse).chunk(2)
        scale = inverse if weight is None else inverse * weight
        slope = scale * inverse * by_scale
        level = scale * by_offset - slope * mean
        shape = (1, -1, *[1] * (x.dim() - 2))
        by_x = by_x - (x * slope.view(shape) + level.view(shape)).to(by_x.dtype)
        if weight is None:
            by_weight = by_bias = None
        return by_x, by_weight, by_bias, *[None] * 6
