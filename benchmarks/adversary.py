"""What keeps training with generated negatives stable, by proxies alone: `python benchmarks/adversary.py [VARIANT...]`.

20,000 images of Fashion-MNIST with the paper's gray recipe (RMSProp 1e-4, batch 50), 2,000 more held out. After every
epoch stands the mean AUROC of KL over the transformations of `negvae.paper.proxies`, of the weights as they are and of
their exponential average over some 1,000 steps. No out-of-distribution set is read.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from negvae.config import RunConfig, preset
from negvae.data import load
from negvae.files import write_text
from negvae.model import VAE
from negvae.negatives import EVERY, Augmented, Generated, Mixture, NegativeBatch, NegativeSource
from negvae.paper.proxies import PROXIES
from negvae.runs.provenance import provenance
from negvae.scoring.comparison import compare
from negvae.training.loop import train

RESULTS = Path(__file__).parent / "results" / "adversary.json"
EPOCHS = 8
TRAINED = 20_000
MEASURED = 1000
DECAY = 0.999


@dataclass
class Replay:
    """Fresh samples of the generator for one half, samples of earlier steps for the other.

    Args:
        kept: how many earlier samples; each step replaces as many, drawn at random, as it brings.
    """

    kept: int = 10_000
    adversarial = True
    _earlier: Tensor | None = None

    def sample(self, positives: Tensor, model: VAE, generator: torch.Generator, rows: slice = EVERY) -> NegativeBatch:
        """As many as positives."""
        half = len(positives) // 2
        fresh = Generated().sample(positives[:half], model, generator).generated
        assert fresh is not None
        if self._earlier is None:
            self._earlier = fresh.detach().repeat(-(-self.kept // half), 1, 1, 1)[: self.kept].clone()
        chosen = self._earlier[torch.randint(self.kept, (len(positives) - half,), generator=generator)]
        self._earlier[torch.randint(self.kept, (half,), generator=generator)] = fresh.detach()
        return NegativeBatch(chosen, fresh)


class Tempered:
    """Samples of the generator from codes that are up to twice as far out as the prior's."""

    adversarial = True

    def sample(self, positives: Tensor, model: VAE, generator: torch.Generator, rows: slice = EVERY) -> NegativeBatch:
        """As many as positives."""
        z = model.prior.sample(len(positives), generator, positives.device)
        return NegativeBatch(None, model.generate(z * (1 + torch.rand(len(z), 1, generator=generator))))


class Interpolated:
    """Samples of the generator from codes half way between those of two inliers."""

    adversarial = True

    def sample(self, positives: Tensor, model: VAE, generator: torch.Generator, rows: slice = EVERY) -> NegativeBatch:
        """As many as positives."""
        with torch.no_grad():
            mean = model.encode(positives).mean
        return NegativeBatch(None, model.generate((mean + mean.roll(1, 0)) / 2))


@dataclass
class Averaging:
    """Another source, watching the encoder's weights go by and averaging them.

    Args:
        source: where the negatives come from.
    """

    source: NegativeSource
    average: list[Tensor] = field(default_factory=list)

    @property
    def adversarial(self) -> bool:
        """Whether the source is."""
        return self.source.adversarial

    def sample(self, positives: Tensor, model: VAE, generator: torch.Generator, rows: slice = EVERY) -> NegativeBatch:
        """The source's negatives."""
        weights = [weight.detach().float() for weight in model.encoder.parameters()]
        if self.average:
            torch._foreach_lerp_(self.average, weights, 1 - DECAY)
        else:
            self.average.extend(weight.clone() for weight in weights)
        return self.source.sample(positives, model, generator, rows)

    def averaged(self, model: VAE) -> VAE:
        """A copy of the model with the average as its encoder."""
        other = copy.deepcopy(model)
        with torch.no_grad():
            for weight, value in zip(other.encoder.parameters(), self.average, strict=True):
                weight.copy_(value)
        return other


def _recipe(**fields: Any) -> RunConfig:
    return preset("gray", "fashion-mnist", negatives="generated", epochs=EPOCHS, **fields)


VARIANTS: dict[str, tuple[RunConfig, Callable[[], NegativeSource]]] = {
    "paper": (_recipe(), Generated),
    "nearer prior": (_recipe(negative_shift=2.5), Generated),
    "replay": (_recipe(), Replay),
    "tempered codes": (_recipe(), Tempered),
    "interpolated codes": (_recipe(), Interpolated),
    "replay, nearer prior": (_recipe(negative_shift=2.5), Replay),
    "half transformations": (_recipe(negative_shift=2.5), lambda: Mixture((Augmented(), Generated()), (1.0, 1.0))),
    "transformations alone": (_recipe(negative_shift=2.5), Augmented),
}


def measure(name: str) -> dict[str, Any]:
    """Train a variant and return what it did, epoch by epoch."""
    config, make = VARIANTS[name]
    images = torch.from_numpy(load(config.data).images)
    images = images[torch.randperm(len(images), generator=torch.Generator().manual_seed(9))]
    inliers, other, training = images.split((MEASURED, MEASURED, TRAINED, len(images) - 2 * MEASURED - TRAINED))[:3]
    randomness = torch.Generator().manual_seed(9)
    strange = {kind: (proxy(other.float() / 255, randomness) * 255).round().byte() for kind, proxy in PROXIES.items()}
    source, began, rows = Averaging(make()), time.monotonic(), list[dict[str, Any]]()

    def after_epoch(model: VAE, _: RunConfig, epoch: int) -> dict[str, Any]:
        row: dict[str, Any] = {"epoch": epoch, "seconds": round(time.monotonic() - began)}
        for weights, which in ((model, "auc_kl"), (source.averaged(model), "auc_kl_averaged")):
            found = [comparison.row() for comparison in compare(weights, inliers, strange)]
            row[which] = round(statistics.fmean(each["auc_kl"] for each in found), 4)
            if weights is model:
                row["nats_per_dim"] = round(found[0]["nats_per_dim_test"], 4)
        rows.append(row)
        print(name, json.dumps(row), flush=True)
        return {}

    train(config, training, source, after_epoch=after_epoch)
    return {"epochs": rows, "provenance": provenance(config)}


def main() -> None:
    """Measure the named variants and keep them beside the others."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("variants", nargs="*", help=f"of {', '.join(VARIANTS)}; all if left out")
    given = parser.parse_args()
    if unknown := set(given.variants) - VARIANTS.keys():
        parser.error(f"no such variant: {', '.join(sorted(unknown))}")
    for name in given.variants or VARIANTS:
        measured = measure(name)
        found = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.exists() else {}
        write_text(RESULTS, json.dumps(found | {name: measured}, indent=1) + "\n")


if __name__ == "__main__":
    main()
