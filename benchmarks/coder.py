"""What `dose` finds without any network: `python benchmarks/coder.py` writes results/coder.json.

The preset's score `dose` holds six statistics of an image against those of training images; three of them are of a
lossless predictive coder and need no model. Here these three stand alone, fitted to 5,000 training images and measured
on up to 5,000 images of each test set, all at even distances, as the table `beyond` has them. Nothing is trained and
nothing is random, so the figures have no spread over seeds. `negvae paper show beyond` has them beside the preset's.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
from torch import Tensor

from negvae.config import RunConfig
from negvae.data import load
from negvae.runs.provenance import provenance
from negvae.scoring.dose import distance, fit, predictive_code
from negvae.scoring.metrics import detection_metrics

PATH = Path(__file__).parents[1] / "results" / "coder.json"
MEASURED = 5000
PAIRS = (("fashion-mnist", "mnist"), ("mnist", "fashion-mnist"), ("cifar10", "svhn"), ("svhn", "cifar10"))


def statistics(name: str, split: str) -> Tensor:
    """The coder's three statistics of up to `MEASURED` images of a set (N x 3)."""
    images = torch.from_numpy(load(name, split, disjoint_from_train=split == "test").images)
    few = images[:: max(len(images) // MEASURED, 1)][:MEASURED]
    return torch.stack([column.double() for column in predictive_code(few.float() / 255)], 1)


def main() -> None:
    """Measure every pair."""
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    areas = {}
    for inliers, outliers in PAIRS:
        fitted = fit(statistics(inliers, "train"))
        inside, outside = (distance(statistics(name, "test"), torch.from_numpy(fitted)) for name in (inliers, outliers))
        found = detection_metrics(inside.numpy(), outside.numpy())
        areas[f"{inliers} > {outliers}"] = {"auroc": found.auroc, "auroc_ci": list(found.auroc_ci)}
        print(f"{inliers} > {outliers}: {found.auroc:.3f}")
    content = {"areas": areas, "provenance": provenance(RunConfig(data="cifar10", device="cpu"))}
    PATH.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
