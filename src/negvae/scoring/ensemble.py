"""WAIC: several models trained alike agree on what they know and differ on what they do not."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from negvae.model import VAE
from negvae.scoring.scores import compute_scores, shared_draws


def waic(
    models: Sequence[VAE], images: Tensor, *, samples: int = 1, seed: int = 0, precision: str = "float32"
) -> Tensor:
    """Mean over the models of -ELBO plus its variance over the models, in nats (N).

    The negative of equation 2 in Choi et al., "WAIC, but why? Generative ensembles for robust anomaly detection",
    2018: E[log p(x)] - Var[log p(x)]; the ELBO stands in for the likelihood.

    Args:
        models: two or more, trained alike with different seeds.
        images: uint8, N x C x H x W.
        samples: posterior samples.
        seed: of the samples.
        precision: "float32", "bfloat16" or "auto".

    Raises:
        ValueError: fewer than two models.
    """
    if len(models) < 2:
        raise ValueError(f"WAIC takes an ensemble of two models or more, not {len(models)}")
    nats = torch.stack([_nats(model, images, samples, seed, precision) for model in models])
    return nats.mean(0) + nats.var(0)


def _nats(model: VAE, images: Tensor, samples: int, seed: int, precision: str) -> Tensor:
    draws = shared_draws(model, samples, seed)
    parts = compute_scores(model, images, ["kl", "reconstruction"], draws=draws, precision=precision)
    return (parts["kl"] + parts["reconstruction"]).double()
