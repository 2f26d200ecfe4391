"""Which color networks come near Tables 2 and 4: `python benchmarks/color_networks.py NETWORK NEGATIVES [LIKELIHOOD]`.

Trains one seed on CIFAR-10 by the paper's recipe (appendix A.2.2: Adam 1e-4, batch 50) for a few of its epochs and adds
to each epoch's row what the tables report, against 2,000 images of each test set: nats per dimension, and AUROC of the
likelihood and of the KL divergence against SVHN. The rows go to benchmarks/results/color-networks/; the same command
goes on where it was stopped. What is compared is how near networks come to the published figures, for the tables' sake
alone: no preset or score is chosen by it.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch

from negvae.config import RunConfig, preset
from negvae.data import load
from negvae.files import write_text
from negvae.model import VAE
from negvae.negatives import build_source
from negvae.runs.provenance import provenance
from negvae.scoring.comparison import compare
from negvae.training.history import read_metrics
from negvae.training.loop import train
from negvae.training.reporting import ProgressUpdate
from negvae.training.run import AfterEpoch

RESULTS = Path(__file__).parent / "results" / "color-networks"
MEASURED = 2000
ROWS = ("auc_bpd", "auc_kl", "nats_per_dim_test", "nats_per_dim_ood")


def rows_after_epochs(data: str, ood: str) -> AfterEpoch:
    """Return a function that measures `ROWS` after an epoch, on `MEASURED` images of the test sets of data and ood."""
    test, outliers = (torch.from_numpy(load(name, "test").images) for name in (data, ood))
    few = [part[:: len(part) // MEASURED][:MEASURED] for part in (test, outliers)]

    def after_epoch(model: VAE, _: RunConfig, epoch: int) -> dict[str, Any]:
        row = compare(model, few[0], {ood: few[1]})[0].row()
        return {key: row[key] for key in ROWS}

    return after_epoch


def main(config: RunConfig) -> None:
    """Train one network, writing and printing a line an epoch."""
    images = torch.from_numpy(load(config.data).images)
    name = f"{config.network}-{config.likelihood}-{config.negatives.replace(':', '-')}-seed{config.seed}"
    path = RESULTS / f"{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)

    content: dict[str, Any] = {
        "config": config.to_dict(), "curve_images": MEASURED, "provenance": provenance(config),
    }  # fmt: skip

    folder = Path("runs") / "color-networks" / name

    def on_progress(update: ProgressUpdate) -> None:
        if update.row is not None:
            print(name, json.dumps(update.row), flush=True)
            write_text(path, json.dumps({**content, "curve": read_metrics(folder)}) + "\n")

    source = build_source(config.negatives, lambda text: torch.from_numpy(load(text).images))
    measure = rows_after_epochs(config.data, "svhn")
    train(config, images, source, directory=folder, resume=True, after_epoch=measure, on_progress=on_progress)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("network")
    parser.add_argument("negatives")
    parser.add_argument("likelihood", nargs="?", default="gaussian")
    parser.add_argument("--epochs", type=int, default=3)
    asked = parser.parse_args()
    main(
        preset(
            "color", "cifar10", network=asked.network, negatives=asked.negatives, likelihood=asked.likelihood,
            epochs=asked.epochs, device="cpu",
        )
    )  # fmt: skip
