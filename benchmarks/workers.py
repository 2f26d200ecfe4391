"""Workers of one thread each beside threads inside operators: `python -m benchmarks.workers [WORK ...] [--out FILE]`.

Each WORK is network/batch/negatives/precision. The ways take turns, in rounds of about half a second, on an idle
machine and beside other busy processes; shown are the medians of images per second.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from negvae.config import RunConfig, preset
from negvae.files import write_text
from negvae.negatives import build_source
from negvae.runs.provenance import provenance
from negvae.training.step import Learner

SHAPES = {"gray": (1, 28, 28), "gray-paper": (1, 28, 28), "color": (3, 32, 32)}
WORKS = ("gray/50/none/bfloat16", "gray/256/none/bfloat16", "gray/50/none/float32", "gray/256/none/float32")


def learner_of(work: str) -> Learner:
    """Return a learner for a kind of work, on random images."""
    network, batch, negatives, precision = work.split("/")
    config = preset(network, "random", batch_size=int(batch), negatives=negatives, precision=precision, device="cpu")
    return learner_of_config(config, SHAPES[network])


def learner_of_config(config: RunConfig, shape: tuple[int, ...]) -> Learner:
    """Return a learner of a run on random images of a shape."""
    randomness = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (4 * config.batch_size, *shape), dtype=torch.uint8, generator=randomness)
    return Learner(config, images, build_source(config.negatives, lambda name: images))


def rate(learner: Learner, workers: int, threads: int, seconds: float) -> float:
    """Return the images per second of steps by a number of workers, whose operators use a number of threads."""
    torch.set_num_threads(threads)
    if threads == 1:
        learner.share_among(workers)
    start, taken = learner.randomness.get_state(), 0
    learner.begin_epoch(start, 0)
    learner.step()
    learner.finish()
    began = time.perf_counter()
    while time.perf_counter() - began < seconds:
        learner.begin_epoch(start, 0)
        for _ in range(learner.steps):
            learner.step()
        taken += learner.steps
    learner.finish()
    return taken * learner.batch / (time.perf_counter() - began)


def _spin() -> None:
    while True:
        sum(range(100_000))


@contextmanager
def busy(processes: int) -> Iterator[None]:
    """Keep other processes busy within the block."""
    others = [multiprocessing.get_context("spawn").Process(target=_spin, daemon=True) for _ in range(processes)]
    for each in others:
        each.start()
    time.sleep(1.0 if others else 0.0)
    try:
        yield
    finally:
        for each in others:
            each.kill()
            each.join()


def measure(work: str, cores: int, rounds: int, seconds: float, beside: tuple[int, ...]) -> dict[str, Any]:
    """Return the median rate of each way of working, beside each number of busy processes."""
    ways = {"1 thread": (1, 1), f"{cores} threads": (1, cores), f"{cores} workers": (cores, 1)}
    learners = {way: learner_of(work) for way in ways}
    found: dict[str, Any] = {}
    for others in beside:
        with busy(others):
            rates: dict[str, list[float]] = {way: [] for way in ways}
            for _ in range(rounds):
                for way, (workers, threads) in ways.items():
                    rates[way].append(rate(learners[way], workers, threads, seconds))
        found[f"beside {others}"] = {way: round(statistics.median(values), 1) for way, values in rates.items()}
    for learner in learners.values():
        learner.close()
    return found


def main() -> None:
    """Measure, print a line for each kind of work, and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("works", nargs="*", default=WORKS)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=0.5)
    parser.add_argument("--beside", type=int, nargs="*", default=(0, 1, 3))
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args()
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    results: dict[str, Any] = {"provenance": provenance(preset("gray", "-", device="cpu")), "works": {}}
    for work in asked.works:
        results["works"][work] = measure(work, cores, asked.rounds, asked.seconds, tuple(asked.beside))
        print(work, json.dumps(results["works"][work]), flush=True)
        if asked.out is not None:
            write_text(asked.out, json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
