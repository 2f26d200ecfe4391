"""Scores of how far out of distribution an image is: larger means farther.

All are functions (model, images) -> N float32 values on the CPU; `compute_scores` gives several from one pass.
Images are uint8, N x C x H x W, on any device; the model should be in evaluation mode.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from negvae.model import VAE, Posterior
from negvae.precision import autocast, resolve_precision
from negvae.text import choose

SCORES = {
    "bpd": "negative ELBO in bits per dimension",
    "kl": "KL(q(z|x) || N(0, I)) in nats",
    "prior_ratio": "KL to the positive prior minus KL to the negative prior, in nats",
}
BATCH_SIZE = 500


def nats_per_dim(
    model: VAE,
    images: Tensor,
    *,
    samples: int = 1,
    generator: torch.Generator | None = None,
    precision: str = "auto",
) -> Tensor:
    """Negative ELBO in nats per dimension: (-log p(x|z) + KL(q(z|x) || N(0, I))) / D.

    The unit of the "BPD" rows in the paper's tables.

    Args:
        model: trained VAE.
        images: uint8, N x C x H x W.
        samples: posterior samples over which the likelihood term is averaged; one in the paper.
        generator: of the posterior samples, on the model's device; None for one seeded with 0.
        precision: "bfloat16", "float32", or "auto" for what the device computes best in.

    Returns:
        N values.
    """
    return bits_per_dim(model, images, samples=samples, generator=generator, precision=precision) * math.log(2)


def bits_per_dim(
    model: VAE,
    images: Tensor,
    *,
    samples: int = 1,
    generator: torch.Generator | None = None,
    precision: str = "auto",
) -> Tensor:
    """Negative ELBO in bits per dimension: `nats_per_dim` / ln 2; arguments as there."""
    return compute_scores(model, images, ["bpd"], samples=samples, generator=generator, precision=precision)["bpd"]


def kl(model: VAE, images: Tensor, *, precision: str = "auto") -> Tensor:
    """KL(q(z|x) || N(0, I)) in nats (N): the paper's "AUC KL" score, always to the positive prior."""
    return compute_scores(model, images, ["kl"], precision=precision)["kl"]


def prior_ratio(model: VAE, images: Tensor, *, precision: str = "auto") -> Tensor:
    """KL(q(z|x) || N(0, I)) - KL(q(z|x) || N(c 1, I)) in nats (N).

    The log-odds of "negative" in the two-class graphical model of section 3 of the paper, with equal class
    probabilities and the posterior shared by both classes: the likelihood terms cancel, the KL terms remain.
    """
    return compute_scores(model, images, ["prior_ratio"], precision=precision)["prior_ratio"]


@torch.inference_mode()
def compute_scores(
    model: VAE,
    images: Tensor,
    names: Sequence[str] = tuple(SCORES),
    *,
    samples: int = 1,
    generator: torch.Generator | None = None,
    precision: str = "auto",
    batch_size: int = BATCH_SIZE,
) -> dict[str, Tensor]:
    """Several scores from one pass of the encoder, and of the decoder where a score needs it.

    Args:
        model: trained VAE.
        images: uint8, N x C x H x W.
        names: keys of `SCORES`.
        samples: posterior samples for "bpd".
        generator: of the posterior samples, on the model's device; None for one seeded with 0.
        precision: "bfloat16", "float32" or "auto".
        batch_size: images scored at once.

    Returns:
        N values (float32, CPU) for each name, in the order asked.

    Raises:
        ValueError: unknown name, no posterior samples, or images the model is not made for.
    """
    for name in names:
        choose("score", name, SCORES)
    if samples < 1:
        raise ValueError(f"samples is {samples}: it must be at least 1")
    results: dict[str, list[Tensor]] = {name: [] for name in names}
    randomness = generator or torch.Generator(model.device).manual_seed(0)
    with autocast(resolve_precision(precision, model.device), model.device):
        for batch in batches(model, images, batch_size):
            posterior = model.encode(batch)
            positive_kl = model.prior.kl(*posterior)
            for name in names:
                if name == "kl":
                    score = positive_kl
                elif name == "prior_ratio":
                    score = positive_kl - model.negative_prior.kl(*posterior)
                else:
                    nats = positive_kl - expected_log_likelihood(model, batch, posterior, samples, randomness)
                    score = nats / (model.dimensions * math.log(2))
                results[name].append(score.cpu())
    return {name: torch.cat(parts) if parts else torch.empty(0) for name, parts in results.items()}


def batches(model: VAE, images: Tensor, batch_size: int = BATCH_SIZE) -> Iterator[Tensor]:
    """Consecutive batches of images as floats in [0, 1] on the model's device.

    Raises:
        ValueError: the images are not uint8 or not of the model's shape.
    """
    if images.dtype != torch.uint8 or images.dim() != 4 or tuple(images.shape[1:]) != model.shape:
        wanted = "x".join(map(str, model.shape))
        raise ValueError(f"images are {images.dtype} {tuple(images.shape)}: this model takes uint8 N x {wanted}")
    for part in torch.split(images, batch_size) if len(images) else ():
        yield part.to(model.device).float().div_(255)


def expected_log_likelihood(
    model: VAE, images: Tensor, posterior: Posterior, samples: int, generator: torch.Generator
) -> Tensor:
    """E log p(x|z) under q(z|x), averaged over posterior samples, in nats (N)."""
    total = torch.zeros(len(images), device=images.device)
    for _ in range(samples):
        noise = torch.randn(posterior.mean.shape, generator=generator, device=images.device)
        target = model.likelihood.target(images, generator)
        total += model.likelihood.log_prob(model.decode(posterior.sample(noise)), target)
    return total / samples
