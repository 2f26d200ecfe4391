"""Scoring in blocks of one fixed shape, so that the score of an input depends on that input alone.

A library of kernels chooses the order of its sums by the shape of its operands and by the number of threads, so the
same image can get other last digits alone than in a batch, and a decision next to the threshold another outcome.
Here every pass runs on a block of the same number of inputs; the last block of a call is filled up with copies of its
last input, whose results are dropped. On a CPU one thread computes a block, and the threads that torch may use take
whole blocks, side by side: this is also quicker than to share each operator among them, since no thread waits for
another. So on one machine, with one version of torch, an input gets the same bits in any batch, order, shard and
number of threads. Many small images take wider blocks, which are a third quicker, where a trial shows that the kernels
add up in the same order.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from negvae.device import autocast, compute_alone
from negvae.model import VAE

Item = TypeVar("Item")
Outcome = TypeVar("Outcome")

_STATE = threading.local()
_STARTING = threading.Lock()
IMAGES, ROWS, ON_GPU = 32, 256, 512
"""Inputs of a block: small enough for the latency of a single image, large enough for the kernels to run well."""


WIDE, SMALL, MANY = 128, 32 * 32, 512
"""Images of a wide block, the most pixels of an image there, and the number of images of a call from which it pays."""
Key = tuple[Hashable, ...]
_SAME_BITS: WeakKeyDictionary[VAE, dict[Key, bool]] = WeakKeyDictionary()


def block_size(model: VAE) -> int:
    """Return how many inputs one pass of this model takes."""
    if model.device.type != "cpu":
        return ON_GPU
    return ROWS if model.takes_features else IMAGES


def wider_size(model: VAE, count: int, key: Key, compute: Callable[[int, int], Mapping[str, Tensor]]) -> int:
    """Return how many inputs a pass may take where many are to be scored, without a change of any bit.

    Args:
        model: trained VAE.
        count: number of inputs of the call.
        key: what is computed, and how; for each there is one trial with a model.
        compute: function that computes it for a number of the inputs, the first ones, in blocks of a size.

    Returns:
        The size: a larger one than `block_size` for many small images on a CPU if the trial gave the same bits.
    """
    size = block_size(model)
    small = math.prod(model.shape[1:]) <= SMALL
    if model.device.type != "cpu" or model.takes_features or not small or count < MANY:
        return size
    trials = _SAME_BITS.setdefault(model, {})
    if key not in trials:
        narrow, wide = compute(WIDE, size), compute(WIDE, WIDE)
        trials[key] = all(torch.equal(narrow[name], wide[name]) for name in narrow)
    return WIDE if trials[key] else size


def blocks(model: VAE, stored: Tensor, size: int | None = None) -> Iterator[tuple[Tensor, int]]:
    """Yield consecutive blocks of stored inputs (B x C x H x W), each with the number of inputs that are not padding.

    Args:
        model: model that sets the size of a block and the shape of its inputs.
        stored: uint8 images or rows of features, N x C x H x W.
        size: number of inputs of a block; None for `block_size`.

    Yields:
        A block, and the number of its rows that are inputs; the rows after them are copies of the last.

    Raises:
        ValueError: if the model does not take inputs of this shape or type.
    """
    model.check(stored)
    size = size or block_size(model)
    for part in torch.split(stored, size) if len(stored) else ():
        yield filled(part.contiguous(), size), len(part)  # sums depend on how numbers lie in memory, too


def filled(part: Tensor, size: int) -> Tensor:
    """Return a tensor with its last row repeated until there are `size` rows."""
    missing = size - len(part)
    return torch.cat([part, part[-1:].expand(missing, *part.shape[1:])]) if missing else part


@contextmanager
def in_this_thread() -> Iterator[None]:
    """Let the calling thread itself compute blocks, where torch may use one thread, and not start another.

    For a thread of which nobody else has set torch's state, such as a service's: to start a thread for a single block
    can take as long as part of the block.
    """
    _STATE.itself = True
    try:
        yield
    finally:
        _STATE.itself = False


def map_blocks(function: Callable[[Item], Outcome], items: Iterable[Item], device: torch.device) -> list[Outcome]:
    """Apply `function` to every item, in order; on a CPU, as many threads as torch may use each compute whole items.

    Items are taken from the iterable one after another, when a thread is free, so that few of them exist at a time.
    """
    if device.type != "cpu" or (getattr(_STATE, "itself", False) and torch.get_num_threads() == 1):
        return [function(item) for item in items]
    numbered, lock, failed = enumerate(items), threading.Lock(), threading.Event()
    results: dict[int, Outcome] = {}
    begun = threading.Semaphore(0)

    def take() -> tuple[int, Item] | None:
        with lock:
            return None if failed.is_set() else next(numbered, None)

    def work() -> None:
        compute_alone()
        begun.release()
        try:
            while (taken := take()) is not None:
                results[taken[0]] = function(taken[1])
        except BaseException:
            failed.set()  # the other threads need not go on
            raise

    # The last call of torch.set_num_threads also says what threads get that start later. So it is this thread's, once
    # all workers have made theirs, and no other call looks meanwhile.
    with ExitStack() as stack:
        with _STARTING:
            threads = torch.get_num_threads()
            pool = stack.enter_context(ThreadPoolExecutor(threads, "negvae-scoring"))
            try:
                working = [pool.submit(work) for _ in range(threads)]
                for _ in working:
                    begun.acquire()
            finally:
                torch.set_num_threads(threads)
        for done in working:
            done.result()
    return [results[number] for number in range(len(results))]


def mapped(model: VAE, stored: Tensor, function: Callable[[Tensor], Tensor]) -> Tensor:
    """Return what `function` makes of prepared inputs (B x C x H x W), for all stored inputs, on the CPU.

    Args:
        model: model that prepares the inputs.
        stored: uint8 images or rows of features, N x C x H x W.
        function: function of the prepared inputs of one block, on the model's device; the first dimension of its
            result is that of the inputs.

    Returns:
        N results; an empty tensor if there are no inputs.

    Raises:
        ValueError: if the model does not take inputs of this shape or type.
    """

    def apply(block: tuple[Tensor, int]) -> Tensor:
        part, count = block
        with torch.inference_mode(), autocast("float32", model.device):
            return function(model.prepare(part))[:count].cpu()

    parts = map_blocks(apply, blocks(model, stored), model.device)
    return torch.cat(parts) if parts else torch.empty(0, dtype=torch.float32, device="cpu")


def latent_means(model: VAE, images: NDArray[Any]) -> NDArray[np.float64]:
    """Return the means of q(z|x) in float64, computed in float32 (N x L)."""
    return mapped(model, torch.from_numpy(images), lambda x: model.encode(x).mean).double().numpy()


def reconstructions(model: VAE, images: NDArray[Any]) -> NDArray[Any]:
    """Return E[x|z] at the mean of q(z|x), in the form in which the images are stored."""

    def reconstruct(x: Tensor) -> Tensor:
        return model.inputs.restore(model.generate(model.encode(x).mean))

    result: NDArray[Any] = mapped(model, torch.from_numpy(images), reconstruct).numpy()
    return result
