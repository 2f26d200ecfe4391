"""Whether the number of workers changes what a run learns: `python -m benchmarks.same_result` (minutes).

The same run, 3 epochs of the gray network on the first images of Fashion-MNIST with letters as negatives, is trained
by 1, 2 and 3 workers of one thread each, and by one worker from other seeds. Rounding is all that the workers' results
may differ by, and training makes more of it with every step; so beside the distance of their weights and the spread of
their figures stand those of other seeds. Written to benchmarks/results/same-result.json. What one step differs by is
tested in float64 (tests/training/test_team.py).
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from negvae.config import RunConfig, preset
from negvae.data import load
from negvae.files import write_text
from negvae.model import VAE
from negvae.negatives import build_source
from negvae.runs.provenance import provenance
from negvae.scoring.comparison import compare
from negvae.training.loop import train

RESULT = Path(__file__).parent / "results" / "same-result.json"
WORKERS, SEEDS, EPOCHS = (1, 2, 3), (0, 1, 2), 3


def weights(model: VAE) -> Tensor:
    """Return all weights of a model as one vector."""
    return torch.cat([parameter.detach().flatten().double() for parameter in model.parameters()])


def main() -> None:
    """Train, compare, print a line for each run and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=20_000)
    parser.add_argument("--out", type=Path, default=RESULT)
    asked = parser.parse_args()
    images = torch.from_numpy(load("fashion-mnist", "train", limit=asked.images).images)
    negatives = torch.from_numpy(load("mnist", "train", limit=asked.images).images)
    test, ood = (load(name, "test").images[:2000] for name in ("fashion-mnist", "kmnist"))
    source = build_source("auxiliary:mnist", lambda name: negatives)
    base = preset("gray", "fashion-mnist", negatives="auxiliary:mnist", optimizer="adam", learning_rate=1e-3,
                  batch_size=128, epochs=EPOCHS, device="cpu", precision="float32")  # fmt: skip
    results: dict[str, Any] = {"provenance": provenance(base), "images": asked.images, "epochs": EPOCHS, "runs": []}

    def run(config: RunConfig, workers: int) -> Tensor:
        model = train(config, images, source, workers=workers).model
        (found,) = compare(model, torch.from_numpy(test), {"kmnist": torch.from_numpy(ood)})
        row = {"workers": workers, "seed": config.seed, **{
            name: float(value) for name, value in found.row().items()
            if name in ("auc_kl", "auc_bpd", "nats_per_dim_test")
        }}  # fmt: skip
        results["runs"].append(row)
        return weights(model)

    first = run(base, 1)
    others = {f"{workers} workers": run(base, workers) for workers in WORKERS[1:]}
    others |= {f"seed {seed}": run(dataclasses.replace(base, seed=seed), 1) for seed in SEEDS[1:]}
    results["distance"] = {name: float((other - first).norm() / first.norm()) for name, other in others.items()}
    rows = results["runs"]
    for name in ("auc_kl", "auc_bpd", "nats_per_dim_test"):
        seeds = [row[name] for row in rows if row["workers"] == 1]
        numbers = [row[name] for row in rows if row["seed"] == 0]
        results[name] = {"spread_of_seeds": max(seeds) - min(seeds), "spread_of_workers": max(numbers) - min(numbers)}
    write_text(asked.out, json.dumps(results, indent=1) + "\n")
    print(json.dumps({name: value for name, value in results.items() if name != "provenance"}, indent=1))


if __name__ == "__main__":
    main()
