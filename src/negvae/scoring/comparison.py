"""Comparison of a trained model's scores on sets it was not trained on."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from negvae.fast.int8_decoder import QuantizedNetworks
from negvae.model import VAE
from negvae.scoring.compute import compute_scores
from negvae.scoring.metrics import Detection, detection_metrics
from negvae.scoring.table import names_of
from negvae.scoring.tiles import combine


@dataclass(frozen=True)
class Comparison:
    """One out-of-distribution set against the inlier test set.

    Attributes:
        ood: name of the out-of-distribution set.
        detection: detection metrics of each score, by the score's name.
        inlier_scores: scores of the inlier test set, by name (n values each).
        ood_scores: scores of the out-of-distribution set, by name (m values each).
    """

    ood: str
    detection: dict[str, Detection]
    inlier_scores: dict[str, Tensor]
    ood_scores: dict[str, Tensor]

    def row(self) -> dict[str, Any]:
        """Return plain values for JSON: AUC and interval of every score, mean likelihoods in both units."""
        values: dict[str, Any] = {"ood": self.ood}
        for name, metrics in self.detection.items():
            values[f"auc_{name}"] = metrics.auroc
            values[f"auc_{name}_ci"] = list(metrics.auroc_ci)
        for name, scores in (("test", self.inlier_scores), ("ood", self.ood_scores)):
            bits = float(scores["bpd"].double().mean())
            values[f"nats_per_dim_{name}"] = bits * math.log(2)
            values[f"bits_per_dim_{name}"] = bits
        values["metrics"] = {name: metrics.to_dict() for name, metrics in self.detection.items()}
        return values


def compare(
    model: VAE,
    inliers: Tensor,
    outliers: Mapping[str, Tensor],
    *,
    samples: int = 1,
    precision: str = "float32",
    quantized: QuantizedNetworks | None = None,
    seed: int = 0,
    further: Callable[[Tensor], Mapping[str, NDArray[Any]]] | None = None,
    rule: str | None = None,
    owners: Sequence[NDArray[np.int64]] = (),
) -> list[Comparison]:
    """Score the inlier test set once and every other set, and measure how well the scores separate them.

    Args:
        model: trained VAE in evaluation mode.
        inliers: inlier test images, uint8, n x C x H x W.
        outliers: out-of-distribution sets by name, each uint8, m x C x H x W.
        samples: number of posterior samples for "bpd"; one in the paper.
        precision: precision of the networks: "float32", "bfloat16" or "auto".
        quantized: the model's networks in int8, used in place of its own; without a decoder among them, scores that
            need one are computed by the model's own networks.
        seed: seed of the posterior samples; every set gets the same, so its figures do not depend on the other sets.
        further: function from images to further scores by name, which are added to the scores that the table marks as
            evaluated, or replace them.
        rule: rule of `negvae.scoring.tiles` that makes one score of those of an image's tiles; None if each input is an
            image.
        owners: image of each tile, of the inliers and of every other set, in order; read if there is a rule.

    Returns:
        One comparison for each out-of-distribution set.

    Raises:
        ValueError: if the model does not take the images, or a score is not a number.
    """
    every = names_of(lambda score: score.evaluated)
    asked = [(every, quantized)]
    if quantized is not None and quantized.decode is None:
        encoded = names_of(lambda score: score.evaluated and not score.needs)
        asked = [(encoded, quantized), (tuple(name for name in every if name not in encoded), None)]

    def scores(images: Tensor, number: int) -> dict[str, Tensor]:
        values: dict[str, Tensor] = {}
        for names, networks in asked:
            randomness = torch.Generator(model.device).manual_seed(seed)
            values |= compute_scores(
                model, images, names, samples=samples, generator=randomness, precision=precision, quantized=networks
            )
        if further is not None:
            values |= {name: torch.from_numpy(found) for name, found in further(images).items()}
        if rule is not None:
            tiles = owners[number]
            values = {name: torch.from_numpy(combine(found.numpy(), tiles, rule)) for name, found in values.items()}
        return values

    inlier_scores = scores(inliers, 0)
    comparisons = []
    for number, (name, images) in enumerate(outliers.items(), 1):
        ood_scores = scores(images, number)
        detection = {
            key: detection_metrics(values.numpy(), ood_scores[key].numpy()) for key, values in inlier_scores.items()
        }
        comparisons.append(Comparison(name, detection, inlier_scores, ood_scores))
    return comparisons
