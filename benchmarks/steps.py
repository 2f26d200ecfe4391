"""Training steps of one process beside the machine's matrix products: `python benchmarks/steps.py gray/50/none ...`.

Each argument is network/batch/negatives[/update]. Shown are images per second, milliseconds a step, and the share
of the rate of 2048 x 2048 bfloat16 products measured just before and after. Set OMP_NUM_THREADS for the threads.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable

import torch

from benchmarks.bench.work import training_multiply_adds
from negvae.config import preset
from negvae.model import build_vae
from negvae.negatives import build_source
from negvae.training.step import Learner

SHAPES = {"gray": (1, 28, 28), "gray-paper": (1, 28, 28), "color": (3, 32, 32)}
ROUNDS = 7


def seconds(work: Callable[[], object], repeats: int) -> float:
    """Median time of one call."""
    for _ in range(3):
        work()
    times = []
    for _ in range(ROUNDS):
        began = time.perf_counter()
        for _ in range(repeats):
            work()
        times.append((time.perf_counter() - began) / repeats)
    return statistics.median(times)


def matrix_rate(size: int = 2048) -> float:
    """Multiply-adds per second."""
    matrix = torch.randn(size, size).bfloat16()
    return size**3 / seconds(lambda: matrix @ matrix, 1)


def main(text: str) -> None:
    """Measure one kind of step and print a line."""
    network, batch, negatives, *update = text.split("/")
    fields = {"update": update[0]} if update else {}
    config = preset(network, "random", batch_size=int(batch), negatives=negatives, precision="bfloat16", **fields)
    shape, randomness = SHAPES[network], torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (4 * config.batch_size, *shape), dtype=torch.uint8, generator=randomness)
    learner = Learner(config, images, build_source(negatives, lambda name: images))
    start = learner.randomness.get_state()

    def step() -> None:
        learner.begin_epoch(start, 0)
        learner.step()

    before = matrix_rate()
    took = seconds(step, max(1, 400 // config.batch_size))
    rate = (before + matrix_rate()) / 2
    share = training_multiply_adds(build_vae(config, shape)) * config.batch_size / took / rate
    speed = f"{config.batch_size / took:.0f} images/s, {1000 * took:.2f} ms"
    print(f"{text}: {speed}, {share:.3f} of {2 * rate / 1e9:.0f} GFLOP/s")


if __name__ == "__main__":
    for argument in sys.argv[1:] or ["gray/50/none", "gray/256/none"]:
        main(argument)
