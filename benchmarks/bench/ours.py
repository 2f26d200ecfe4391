"""negvae's own subjects of the bench, and the roofline: processes that take turns (`benchmarks.bench.peers.protocol`).

Training rounds are epochs of `negvae.training.loop.train`, scoring rounds calls of a `negvae.scoring.Scorer`: the code
that users run, not a copy of it.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from benchmarks.bench.peers.protocol import Turns, images_for, rate_of, specification
from negvae.config import preset
from negvae.device import resolve_device, resolve_precision
from negvae.model import build_vae
from negvae.negatives import build_source
from negvae.runs.artifact import load_artifact
from negvae.scoring import SCORES, Scorer
from negvae.scoring.quantization import quantize_model
from negvae.scoring.transformations import judge
from negvae.training.loop import train
from negvae.training.reporting import OnProgress, ProgressUpdate
from negvae.training.step import Learner

ENDLESS = 1_000_000_000


def training(spec: dict[str, Any]) -> None:
    """Train for one epoch in each round.

    Args:
        spec: `run` (preset and fields of RunConfig), `images` (a file), `negatives` (a file, for auxiliary ones) and
            `seconds`.
    """
    config = preset(**spec["run"], data=spec["images"], device=spec["device"])
    device = resolve_device(config.device)
    source = build_source(config.negatives, lambda path: torch.from_numpy(np.load(path)).to(device))
    images, batch = np.load(spec["images"]), config.batch_size
    few = torch.from_numpy(images_for(images, 0, 0, batch))
    ends: list[float] = []
    # Two epochs: the first warms up, the second tells how many images make a round.
    train(
        dataclasses.replace(config, epochs=2), few, source, on_progress=_at_epochs(lambda: ends.append(_clock(device)))
    )
    images = images_for(images, len(few) / (ends[1] - ends[0]), spec["seconds"], batch)
    turns = _turns(device, config.precision)
    # The loop waits for its turn inside the call that it makes at the end of each epoch.
    on_progress = _at_epochs(lambda: turns.take(len(images)))
    train(dataclasses.replace(config, epochs=ENDLESS), torch.from_numpy(images), source, on_progress=on_progress)


def steps(spec: dict[str, Any]) -> None:
    """Take training steps for a number of seconds in each round.

    Args:
        spec: `run` (preset and fields of RunConfig), `images` (a file), `seconds`, and `workers`: 0 for threads inside
            torch's operators.
    """
    config = preset(**spec["run"], data=spec["images"], device="cpu")
    images = torch.from_numpy(np.array(np.load(spec["images"], mmap_mode="r")[: 8 * config.batch_size]))
    learner = Learner(config, images, build_source(config.negatives, lambda path: images))
    if spec["workers"]:
        learner.share_among(spec["workers"])
    start = learner.randomness.get_state()

    def work() -> float:
        began, taken = time.perf_counter(), 0
        while time.perf_counter() - began < spec["seconds"]:
            learner.begin_epoch(start, 0)
            for _ in range(learner.steps):
                learner.step()
            learner.finish()
            taken += learner.steps
        return float(taken * learner.batch)

    work()
    _turns(torch.device("cpu"), config.precision).serve(work)
    learner.close()


def scoring(spec: dict[str, Any]) -> None:
    """Compute one score of all images, in memory, in each round.

    Args:
        spec: `score`, `images` (a file) and `seconds`; `model` (an artifact's folder) or `run` (with untrained
            weights); `precision`, "int8" included.
    """
    device = resolve_device(spec["device"])
    images = np.load(spec["images"], mmap_mode="r")[: spec.get("most", ENDLESS)]
    if "model" in spec:
        model = load_artifact(spec["model"], spec["device"]).model
    else:
        shape = images.shape[1:]
        model = build_vae(preset(**spec["run"], data=spec["images"]), (shape[0], shape[1], shape[2])).to(device).eval()
    name = spec["score"]
    few, precision = torch.from_numpy(np.array(images[:1000])), spec["precision"]
    if precision == "int8":
        scorer = Scorer(model, quantized=quantize_model(model, few))
    else:
        scorer = Scorer(model, precision=precision)
    if "reference" in SCORES[name].needs:
        references = scorer.measure(few, ("dose", "prior_ratio"))
        if model.shifted is not None:  # untrained, it would be left out of "combined"
            scales = judge(model, few, precision).scales
            references = replace(references, scales={**references.scales, **scales})
        scorer = replace(scorer, references=references)

    def score(images: Any) -> None:
        scorer(torch.from_numpy(images), [name])

    data = images_for(images, rate_of(score, images, spec["batch"]), spec["seconds"], spec["batch"])

    def work() -> float:
        score(data)
        return len(data)

    _turns(device, precision).serve(work)


def roofline(spec: dict[str, Any]) -> None:
    """Multiply square matrices for some seconds in each round; the units are multiply-adds.

    Args:
        spec: `precision` and `seconds`.
    """
    device = resolve_device(spec["device"])
    precision = resolve_precision(spec["precision"], device)
    # Large enough to fill the device, small enough that memory is not what is measured.
    size = 8192 if device.type == "cuda" else 2048
    left, right = (torch.randn(size, size, device=device).to(getattr(torch, precision)) for _ in range(2))
    out = torch.empty_like(left)

    def work() -> float:
        started, products = time.perf_counter(), 0
        while time.perf_counter() - started < spec["seconds"]:
            torch.mm(left, right, out=out)
            products += 1
            if device.type == "cuda" and products % 16 == 0:
                torch.cuda.synchronize()
        return float(products * size**3)

    _turns(device, precision, matrix=f"{size} x {size}").serve(work)


def _at_epochs(act: Callable[[], None]) -> OnProgress:
    """Return a callback for the training loop that calls `act` at the end of each epoch."""

    def on_progress(update: ProgressUpdate) -> None:
        if update.row is not None:
            act()

    return on_progress


def _clock(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def _turns(device: torch.device, precision: str, **facts: Any) -> Turns:
    return Turns(
        device.type, torch=str(torch.__version__),
        precision=precision if precision == "int8" else resolve_precision(precision, device),
        threads=torch.get_num_threads(), **facts,
    )  # fmt: skip


if __name__ == "__main__":
    what = specification()
    {"training": training, "steps": steps, "scoring": scoring, "roofline": roofline}[what["work"]](what)
