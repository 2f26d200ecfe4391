"""Compare training recipes for profile `cpu` on training data alone: `python benchmarks/recipes.py NAME`.

Of the inliers' training split, 2,000 images are held out to measure on, and 3,000 more are set aside; a recipe
trains on the rest. Shown after every epoch: nats per dimension of the held-out inliers, and AUROC (ELBO / KL) of
other held-out inliers that were transformed in ways no recipe uses as negatives, and of held-out negatives. No
out-of-distribution test set is read.
"""

from __future__ import annotations

import json
import sys
import time
from typing import Any

import torch
from torch import Tensor

from negvae.config import RunConfig, preset
from negvae.data import load
from negvae.model import VAE
from negvae.negatives import build_source
from negvae.parts import TRANSFORMATIONS
from negvae.scoring.comparison import compare
from negvae.training.loop import train

MEASURED = 2000
SET_ASIDE = 5000

RECIPES: dict[str, RunConfig] = {
    "generated-paper": preset("gray", "fashion-mnist", negatives="generated", epochs=8),
    "generated-adam": preset(
        "gray", "fashion-mnist", negatives="generated", optimizer="adam", learning_rate=3e-4, batch_size=128, epochs=8
    ),
    "letters-constant": preset(
        "gray", "fashion-mnist", negatives="emnist-letters", optimizer="adam", learning_rate=1e-3, batch_size=128,
        epochs=4,
    ),
    "letters-cosine": preset(
        "gray", "fashion-mnist", negatives="emnist-letters", optimizer="adam", learning_rate=2e-3, schedule="cosine",
        batch_size=50, epochs=4,
    ),
    "imagenet-paper": preset("color", "cifar10", negatives="imagenet32", epochs=4),
    "imagenet-zoomed": preset("color", "cifar10", negatives="imagenet32+zoomed:imagenet32", epochs=4),
    "imagenet-fast": preset(
        "color", "cifar10", negatives="imagenet32", learning_rate=1e-3, batch_size=128, epochs=4
    ),
}  # fmt: skip


def main(name: str) -> None:
    """Train one recipe and print a line an epoch."""
    config = RECIPES[name]
    images = torch.from_numpy(load(config.data).images)
    randomness = torch.Generator().manual_seed(9)
    images = images[torch.randperm(len(images), generator=randomness)]
    inliers, other, training = images[:MEASURED], images[MEASURED : 2 * MEASURED], images[SET_ASIDE:]
    others = {
        kind: (TRANSFORMATIONS[kind].load()(other.float() / 255, randomness) * 255).round().byte()
        for kind in ("strokes", "sketch", "jigsaw", "cutmix")
    }

    def auxiliary(text: str) -> Tensor:
        found = torch.from_numpy(load(text).images)
        found = found[torch.randperm(len(found), generator=torch.Generator().manual_seed(9))]
        others["negatives"] = found[:MEASURED]
        zoomed = TRANSFORMATIONS["zoom"].load()(found[:MEASURED].float() / 255, torch.Generator().manual_seed(9))
        others["negatives, zoomed"] = (zoomed * 255).round().byte()
        return found[MEASURED:]

    source = build_source(config.negatives, auxiliary)
    began = time.monotonic()

    def after_epoch(model: VAE, _: RunConfig, epoch: int) -> dict[str, Any]:
        rows = [comparison.row() for comparison in compare(model, inliers, others)]
        areas = {row["ood"]: f"{row['auc_bpd']:.3f} / {row['auc_kl']:.3f}" for row in rows}
        nats = rows[0]["nats_per_dim_test"]
        print(
            f"{name} epoch {epoch} {time.monotonic() - began:.0f} s: {nats:.4f} nats/dim; {json.dumps(areas)}",
            flush=True,
        )
        return {}

    train(config, training, source, after_epoch=after_epoch)


if __name__ == "__main__":
    if len(sys.argv) != 2 or sys.argv[1] not in RECIPES:
        sys.exit(f"name one recipe: {', '.join(RECIPES)}")
    main(sys.argv[1])
