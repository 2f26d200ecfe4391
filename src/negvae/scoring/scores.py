"""Scores of how far out of distribution an image is: larger means farther.

All are functions (model, images) -> N float32 values on the CPU; `compute_scores` gives several from one pass.
Images are uint8, N x C x H x W (rows of features: floats, N x D x 1 x 1), on any device; the model should be in
evaluation mode.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from negvae.model import VAE, Posterior
from negvae.model.likelihoods import wide
from negvae.model.quantized import QuantizedEncoder
from negvae.precision import autocast, resolve_precision
from negvae.scoring.combination import STATISTICS
from negvae.scoring.dose import model_statistics
from negvae.text import choose

SCORES = {
    "bpd": "negative ELBO in bits per dimension",
    "kl": "KL(q(z|x) || N(0, I)) in nats",
    "prior_ratio": "KL to the positive prior minus KL to the negative prior, in nats",
}
PASS_SCORES = {
    **SCORES,
    "reconstruction": "-E log p(x|z) under q(z|x), in nats",
    "latent_norm": "squared length of the posterior mean",
    "iwae": "negative importance-weighted bound (Burda et al. 2016) in bits per dimension",
}
"""All scores of a model alone; `SCORES` are the paper's."""
ENCODER_SCORES = ("kl", "prior_ratio", "latent_norm")
"""Those of `PASS_SCORES` that need no decoder; int8 gives only these."""
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


def reconstruction(model: VAE, images: Tensor, *, samples: int = 1, precision: str = "auto") -> Tensor:
    """-E log p(x|z) under q(z|x) in nats (N): the ELBO's first term alone (An & Cho 2015)."""
    return compute_scores(model, images, ["reconstruction"], samples=samples, precision=precision)["reconstruction"]


def latent_norm(model: VAE, images: Tensor, *, precision: str = "auto") -> Tensor:
    """Squared length of the posterior mean (N): twice the part of `kl` that does not depend on the variance."""
    return compute_scores(model, images, ["latent_norm"], precision=precision)["latent_norm"]


def iwae(model: VAE, images: Tensor, *, samples: int = 16, precision: str = "auto") -> Tensor:
    """Negative importance-weighted bound on log p(x) in bits per dimension (N).

    -log mean_k p(x, z_k) / q(z_k|x) over `samples` draws from q(z|x): Burda et al., "Importance weighted
    autoencoders", 2016, equation 8. With one sample it is an estimate of the ELBO; it tightens as they grow.
    """
    return compute_scores(model, images, ["iwae"], samples=samples, precision=precision)["iwae"]


class Draws(NamedTuple):
    """Randomness shared by all images, so that a score is a function of the image alone.

    Whatever the order, the batches or the company, an image then has one score; thresholds, exported models and
    repeated calls agree. The price is that the noise of two images' scores is not independent.

    Attributes:
        noise: standard normal, S x L, one row for each posterior sample.
        dequantization: what the likelihood adds to every image, S x C x H x W; zero for most.
    """

    noise: Tensor
    dequantization: Tensor


def shared_draws(model: VAE, samples: int = 1, seed: int = 0) -> Draws:
    """The draws for `model` that belong to `seed`, on its device and in its precision."""
    randomness = torch.Generator().manual_seed(seed)
    noise = torch.randn(samples, model.latent_size, generator=randomness)
    added = model.likelihood.target(torch.zeros(samples, *model.shape), randomness)
    weights = next(model.parameters())
    return Draws(noise.to(weights), added.to(weights))


@torch.inference_mode()
def compute_scores(
    model: VAE,
    images: Tensor,
    names: Sequence[str] = tuple(SCORES),
    *,
    samples: int = 1,
    generator: torch.Generator | None = None,
    draws: Draws | None = None,
    precision: str = "auto",
    quantized: QuantizedEncoder | None = None,
    batch_size: int = BATCH_SIZE,
) -> dict[str, Tensor]:
    """Several scores from one pass of the encoder, and of the decoder where a score needs it.

    Args:
        model: trained VAE.
        images: uint8, N x C x H x W.
        names: keys of `PASS_SCORES`, or `STATISTICS`.
        samples: posterior samples for "bpd", "reconstruction" and "iwae".
        generator: of the posterior samples, on the model's device; None for one seeded with 0.
        draws: samples shared by all images, in place of `samples` and `generator`.
        precision: "bfloat16", "float32" or "auto".
        quantized: the model's encoder in int8, used in place of its own; for `ENCODER_SCORES` alone.
        batch_size: images scored at once.

    Returns:
        N values (float32, or float64 for a model in float64; CPU) for each name, in the order asked; N x K for
        `STATISTICS`.

    Raises:
        ValueError: unknown name, no posterior samples, or images the model is not made for; a score of the decoder
            in int8.
    """
    for name in names:
        if name != STATISTICS:
            choose("score", name, PASS_SCORES)
        if quantized is not None:
            refuse_decoder(name)
    if samples < 1:
        raise ValueError(f"samples is {samples}: it must be at least 1")
    results: dict[str, list[Tensor]] = {name: [] for name in names}
    randomness = generator or torch.Generator(model.device).manual_seed(0)
    with autocast(resolve_precision(precision, model.device), model.device):
        for batch in batches(model, images, batch_size) if quantized is None else _stored(model, images, batch_size):
            posterior = model.encode(batch) if quantized is None else quantized(batch)
            if draws is None:
                draw = functools.partial(_drawn, model, batch, samples=samples, generator=randomness)
            else:
                draw = functools.partial(shared, batch, draws=draws)
            for name, score in pass_scores(model, batch, posterior, names, draw).items():
                results[name].append(score.cpu())
    return {name: torch.cat(parts) if parts else torch.empty(0) for name, parts in results.items()}


def pass_scores(
    model: VAE,
    images: Tensor,
    posterior: Posterior,
    names: Sequence[str],
    draw: Callable[[Posterior], Iterable[tuple[Tensor, Tensor]]],
) -> dict[str, Tensor]:
    """What `compute_scores` does to one batch: tensors in, tensors out, so that it can be traced for export.

    Args:
        model: trained VAE.
        images: as the networks see them, N x C x H x W.
        posterior: q(z|x) of them.
        names: keys of `PASS_SCORES`, or `STATISTICS`.
        draw: gives, for q(z|x), the codes (N x L) and targets (N x C x H x W) of each posterior sample; called
            where a score needs the decoder.

    Returns:
        N values for each name, on the device; N x K for `STATISTICS`.
    """
    positive_kl = model.prior.kl(*posterior)
    likelihood: list[Tensor] = []
    codes: list[Tensor] = []
    best: list[Tensor] = []
    if not set(names) <= set(ENCODER_SCORES):
        for code, target in draw(posterior):
            likelihood.append(model.likelihood.log_prob(model.decode(code), target))
            codes.append(code)
            if STATISTICS in names:
                best.append(model.likelihood.best_log_prob(target))
    scores = {}
    for name in names:
        if name == "kl":
            score = positive_kl
        elif name == "prior_ratio":
            score = model.negative_prior.kl_excess(posterior.mean)
        elif name == "latent_norm":
            score = posterior.mean.square().sum(1)
        elif name == "reconstruction":
            score = -torch.stack(likelihood).mean(0)
        elif name == "bpd":
            score = (positive_kl - torch.stack(likelihood).mean(0)) / (model.dimensions * math.log(2))
        elif name == STATISTICS:
            expected = torch.stack(likelihood).mean(0)
            bits = (positive_kl - expected) / (model.dimensions * math.log(2))
            score = model_statistics(images, positive_kl, torch.stack(best).mean(0) - expected, bits)
        else:
            bound = importance_weighted(model, posterior, torch.stack(codes), torch.stack(likelihood))
            score = -bound / (model.dimensions * math.log(2))
        scores[name] = score
    return scores


def batches(model: VAE, images: Tensor, batch_size: int = BATCH_SIZE) -> Iterator[Tensor]:
    """Consecutive batches of images as the networks see them, on the model's device.

    Raises:
        ValueError: the images are not uint8 or not of the model's shape.
    """
    for part in _stored(model, images, batch_size):
        yield model.prepare(part)


def refuse_decoder(name: str) -> None:
    """Refuse a score that int8 does not give.

    Raises:
        ValueError: it is not one of `ENCODER_SCORES`.
    """
    if name not in ENCODER_SCORES:
        allowed = f"{', '.join(ENCODER_SCORES[:-1])} or {ENCODER_SCORES[-1]}"
        raise ValueError(f"score {name} needs the decoder, and int8 is of the encoder alone: ask for {allowed}")


def _stored(model: VAE, images: Tensor, batch_size: int) -> Iterator[Tensor]:
    """Consecutive batches of images as they are stored, checked."""
    model.check(images)
    yield from torch.split(images, batch_size) if len(images) else ()


def importance_weighted(model: VAE, posterior: Posterior, codes: Tensor, likelihood: Tensor) -> Tensor:
    """The importance-weighted bound on log p(x) in nats (N).

    Args:
        model: the VAE.
        posterior: q(z|x) of N images.
        codes: S x N x L, drawn from it.
        likelihood: log p(x|z) of each, S x N.
    """
    deviation = (codes - posterior.mean) * (-0.5 * posterior.log_var).exp()
    # The constants of log p(z) and log q(z|x) cancel.
    log_weight = 0.5 * (deviation.square() + posterior.log_var - codes.square()).sum(-1)
    return torch.logsumexp(wide(likelihood) + log_weight, 0) - math.log(len(codes))


def _drawn(
    model: VAE, images: Tensor, posterior: Posterior, samples: int, generator: torch.Generator
) -> Iterator[tuple[Tensor, Tensor]]:
    """Codes from q(z|x) and targets, each image with draws of its own."""
    for _ in range(samples):
        noise = torch.randn(posterior.mean.shape, generator=generator, device=images.device)
        target = model.likelihood.target(images, generator)
        yield posterior.sample(noise), target


def shared(images: Tensor, posterior: Posterior, draws: Draws) -> Iterator[tuple[Tensor, Tensor]]:
    """Codes from q(z|x) and targets, all images with the same draws."""
    for noise, added in zip(*draws, strict=True):
        yield posterior.sample(noise), images + added
