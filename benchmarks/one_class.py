"""One class against the others by variants of the priors of transformations, and by two peers, under one protocol.

    python benchmarks/one_class.py run --data kmnist --classes 2,5 --seeds 2    # resumable: a result file for each run
    python benchmarks/one_class.py show --page docs/one-class.md

Every method gets the same images, the same encoder (network `residual`), the same moves by up to two pixels, mirroring
where the inliers come mirrored, and the same number of encoder passes; the optimizer is the library's, but for Deep
SVDD and the variant `turns-adamw`. Ours are the encoder of transformations alone, without the rest of the detector.
Unlike the library, no method has a second view of an image or holds images back, and one batch norm sees a whole step.
Beside the score of the library, `kl`, two others are measured: `odds`, the sum of -log p(t|z), and `fitted`, the sum of
the squared distances from the Gaussian that the codes of training images' copies have, with a tenth of the prior's
covariance mixed in.

The peers are written anew from their papers, without their networks and schedules:

- `classifier`: which transformation was it, by cross-entropy; the score is the sum of -log softmax of the right one
  (Golan & El-Yaniv 2018, "Deep anomaly detection using geometric transformations", the simplified score).
- `deep-svdd`: squared distance from a fixed center, without biases (Ruff et al. 2018, one-class Deep SVDD, no
  pretraining).
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import sys
import time
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, log_softmax

from benchmarks.rows import insert
from negvae.config import RunConfig
from negvae.data import load
from negvae.device import autocast
from negvae.files import write_text
from negvae.model.initialization import initialize
from negvae.model.networks import residual_encoder
from negvae.model.priors import PriorSet
from negvae.model.shifted import DISTANCE, SIZE
from negvae.model.shifts import Shift, build_shifts, copies, unchanged
from negvae.paper.unsupervised_show import spread
from negvae.runs.provenance import provenance
from negvae.scoring.metrics import auroc
from negvae.training.shifted import (
    COPIES,
    KL_WEIGHT,
    MOMENTUM,
    MOVED,
    WARM_UP,
    WEIGHT_DECAY,
    highest_rate,
    mirrored_by_chance,
    moved,
)
from negvae.training.symmetry import come_mirrored

RESULTS = Path(__file__).parent / "results" / "one-class"
DATA = ("fashion-mnist", "cifar10")
TEST = 3000
"""Largest number of images of the other classes that are scored, at even distances."""
RIDGE = 0.1
"""Share of the prior's covariance in each fitted one."""


@dataclass(frozen=True)
class Method:
    """A method under comparison.

    Attributes:
        meaning: what it is, in words.
        transformations: names in `negvae.parts.SHIFTS`; "" for the identity alone.
        loss: "priors", "kl", "pair", "classifier" or "center".
        optimizer: "sgd", as the library trains, or "adamw" with a learning rate of 2e-3 and a weight decay of 0.05.
        copies: number of copies in a step.
    """

    meaning: str
    transformations: str
    loss: str
    optimizer: str = "sgd"
    copies: int = COPIES


METHODS = {
    "turns": Method("a prior for each quarter turn", "turns", "priors"),
    "turns-adamw": Method("quarter turns, trained by AdamW", "turns", "priors", "adamw"),
    "turns-256": Method("quarter turns, in steps of 256 copies", "turns", "priors", copies=256),
    "turns-translations": Method("a prior for each turn and move", "turns,translations", "priors"),
    "turns-tiles": Method("a prior for each turn and exchange of halves", "turns,tiles", "priors"),
    "kl": Method("quarter turns, the KL divergence alone, without cross-entropy", "turns", "kl"),
    "pair": Method("quarter turns, the paper's two priors: as it is, or turned", "turns", "pair"),
    "classifier": Method("GEOM's classifier of quarter turns", "turns", "classifier"),
    "deep-svdd": Method("Deep SVDD", "", "center", "adamw"),
}


class Trained:
    """An encoder in training by one method.

    Args:
        method: method to train by.
        shape: shape (C, H, W) of the images.
        passes: number of encoder passes.
        seed: seed of weights and batches.
    """

    def __init__(self, method: Method, shape: tuple[int, int, int], passes: int, seed: int) -> None:
        self.method, self.passes, self.seed = method, passes, seed
        names = method.transformations
        self.shifts: list[Shift] = build_shifts(names, shape) if names else [unchanged]
        self.count = len(self.shifts)
        self.priors = PriorSet.simplex(2 if method.loss == "pair" else self.count, SIZE, DISTANCE)
        self.encoder = residual_encoder(shape[0], SIZE)
        initialize(self.encoder, "he", torch.Generator().manual_seed(seed))
        if method.loss == "center":  # biases, which start at zero, could make all codes the center
            for layer in self.encoder.modules():
                if isinstance(layer, nn.BatchNorm2d | nn.Linear):
                    layer.bias.requires_grad_(False)
        self.encoder.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.center: Tensor | None = None

    def codes(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return means and log-variances of all copies, each (T N) x L."""
        with autocast("auto", images.device):
            output = self.encoder(copies(self.shifts, images).contiguous(memory_format=torch.channels_last))
        mean, log_var = output.float().chunk(2, 1)
        return mean, log_var.clamp(-12, 12)

    def loss(self, images: Tensor) -> Tensor:
        """Return the loss of a batch."""
        mean, log_var = self.codes(images)
        own = torch.arange(self.count).repeat_interleave(len(images))
        if self.method.loss == "center":
            if self.center is None:
                self.center = mean.detach().mean(0)
            return (mean - self.center).square().sum(1).mean()
        if self.method.loss == "classifier":
            return cross_entropy(mean[:, : self.count], own)
        if self.method.loss == "pair":
            own = (own > 0).long()
        divergences = self.priors.kl(mean, log_var)
        kl = divergences.gather(1, own[:, None]).mean()
        return kl if self.method.loss == "kl" else KL_WEIGHT * kl + cross_entropy(-divergences, own)

    def train(self, images: Tensor) -> None:
        """Train on stored images (uint8, N x C x H x W)."""
        batch = max(self.method.copies // self.count, 16)
        steps, draw = math.ceil(self.passes / (batch * self.count)), torch.Generator().manual_seed(self.seed)
        mirrored = come_mirrored(images)
        optimizer, rate = _optimizer(self.method.optimizer, self.encoder, steps)
        for step in range(steps):
            rise = min(1.0, (step + 1) / (WARM_UP * steps + 1))
            optimizer.param_groups[0]["lr"] = rate * rise * 0.5 * (1 + math.cos(math.pi * step / steps))
            rows = torch.randint(len(images), (batch,), generator=draw)
            optimizer.zero_grad()
            changed = moved(images[rows].float() / 255, draw, MOVED)
            changed = mirrored_by_chance(changed, draw) if mirrored else changed
            self.loss(changed).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
        self.encoder.eval()

    @torch.no_grad()
    def scores(self, training: Tensor, *others: Tensor) -> list[dict[str, np.ndarray]]:
        """Return the scores of some sets by name; `training` is what a fitted score is fitted to."""
        of_training = self._of_images(training)[0].double()
        found = []
        for images in others:
            mean, log_var = self._of_images(images)
            own = torch.arange(self.count)
            if self.method.loss == "center":
                assert self.center is not None
                found.append({"distance": (mean[:, 0] - self.center).square().sum(1).numpy()})
                continue
            if self.method.loss == "classifier":
                odds = -log_softmax(mean[:, :, : self.count], 2)[:, own, own].sum(1)
                found.append({"odds": odds.numpy(), "fitted": fitted_distance(of_training, mean.double())})
                continue
            own = (own > 0).long() if self.method.loss == "pair" else own
            divergences = self.priors.kl(mean.flatten(0, 1), log_var.flatten(0, 1)).unflatten(0, mean.shape[:2])
            right = torch.arange(self.count)
            found.append({
                "fitted": fitted_distance(of_training, mean.double()),
                "kl": divergences[:, right, own].sum(1).numpy(),
                "odds": -log_softmax(-divergences, 2)[:, right, own].sum(1).numpy(),
            })  # fmt: skip
        return found

    def _of_images(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return means and log-variances, each N x T x L."""
        parts = [self.codes(part.float() / 255) for part in torch.split(images, 128)]
        means, log_vars = (
            torch.cat([part[which].unflatten(0, (self.count, -1)).transpose(0, 1) for part in parts])
            for which in (0, 1)
        )
        return means, log_vars


def fitted_distance(training: Tensor, codes: Tensor) -> np.ndarray:
    """Return the summed squared distances of codes from the Gaussians of training images' codes (each N x T x L)."""
    found, identity = torch.zeros(len(codes), dtype=torch.float64), torch.eye(codes.shape[2], dtype=torch.float64)
    for own, asked in zip(training.unbind(1), codes.unbind(1), strict=True):
        covariance = (1 - RIDGE) * torch.cov(own.T, correction=0) + RIDGE * identity
        centered = asked - own.mean(0)
        found += (centered * torch.linalg.solve(covariance, centered.T).T).sum(1)
    return found.numpy()


def _optimizer(name: str, encoder: nn.Module, steps: int) -> tuple[torch.optim.Optimizer, float]:
    """Return an optimizer and its highest learning rate."""
    if name == "adamw":
        return torch.optim.AdamW(encoder.parameters(), lr=2e-3, weight_decay=0.05), 2e-3
    rate = highest_rate(steps)
    options = {"lr": rate, "momentum": MOMENTUM, "weight_decay": WEIGHT_DECAY, "nesterov": True}
    return torch.optim.SGD(encoder.parameters(), **options), rate  # type: ignore[arg-type]


def carry_out(method: str, data: str, label: int, seed: int, passes: int) -> dict[str, object]:
    """Train and test one method on one class, and return its result."""
    sets = [load(data, split) for split in ("train", "test")]
    (training, _), (inliers, others) = (
        (torch.from_numpy(one.images[one.labels == label]), torch.from_numpy(one.images[one.labels != label]))
        for one in sets
    )
    others = others[torch.linspace(0, len(others) - 1, min(len(others), TEST)).long()]
    began = time.process_time()
    trained = Trained(METHODS[method], tuple(training.shape[1:]), passes, seed)  # type: ignore[arg-type]
    trained.train(training)
    seconds = time.process_time() - began
    usual, strange = trained.scores(training[:2000], inliers, others)
    areas = {name: round(auroc(usual[name], strange[name])[0], 5) for name in usual}
    facts = provenance(RunConfig(data=data, seed=seed))
    return {"method": method, "data": data, "label": label, "seed": seed, "passes": passes, "auroc": areas,
            "processor_seconds": round(seconds, 1), "provenance": facts}  # fmt: skip


def run(classes: list[int], seeds: int, passes: int, methods: list[str], data: list[str]) -> None:
    """Carry out the runs that have no result yet."""
    for seed, label, one, method in itertools.product(range(seeds), classes, data, methods):
        path = RESULTS / f"{one}-class{label}-{method}-{passes}-seed{seed}.json"
        if path.exists():
            continue
        result = carry_out(method, one, label, seed, passes)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, json.dumps(result) + "\n")
        print(path.stem, result["auroc"], f"{result['processor_seconds']} s", flush=True)


def table() -> str:
    """Return the results as a Markdown table: mean (standard deviation over seeds) of each score."""
    found: dict[tuple[str, str, int], list[dict[str, float]]] = {}
    facts: list[dict[str, str]] = []
    for path in sorted(RESULTS.glob("*.json")):
        one = json.loads(path.read_text(encoding="utf-8"))
        key = f"{one['data']}, class {one['label']}", one["method"], one["passes"]
        found.setdefault(key, []).append(one["auroc"])
        facts.append(one["provenance"])
    lines = [
        "| inliers | method | passes | seeds | fitted | KL | odds | distance |",
        "|---|---|--:|--:|--:|--:|--:|--:|",
    ]
    for (inliers, method, passes), areas in found.items():
        cells = []
        for name in ("fitted", "kl", "odds", "distance"):
            values = [each[name] for each in areas if name in each]
            cells.append(str(spread(values) or "-"))
        lines.append(f"| {inliers} | {METHODS[method].meaning} | {passes:,} | {len(areas)} | {' | '.join(cells)} |")
    return "\n".join([*lines, "", f"AUROC, mean (standard deviation over seeds); {_where(facts)}."])


def _where(facts: list[dict[str, str]]) -> str:
    """Return what the results were measured on."""
    lengths = {"device": 80, "precision": 80, "commit": 10}
    parts = (sorted({one[name][:length] for one in facts}) for name, length in lengths.items())
    machines, precisions, commits = map(", ".join, parts)
    return f"{machines}, {precisions}, commit {commits}"


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("action", choices=("run", "show"))
    parser.add_argument("--classes", default="0", help="classes, joined by commas")
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--passes", type=int, default=60_000, help="encoder passes of each run")
    parser.add_argument("--methods", default=",".join(METHODS))
    parser.add_argument("--data", default=",".join(DATA))
    parser.add_argument("--page", type=Path, help="page that show writes the table to")
    given = parser.parse_args()
    if given.action == "show":
        text = table()
        print(text)
        if given.page:
            insert(given.page, text, "one class variants", "python benchmarks/one_class.py show")
        return
    classes = [int(each) for each in given.classes.split(",")]
    run(classes, given.seeds, given.passes, given.methods.split(","), given.data.split(","))


if __name__ == "__main__":
    main()
