"""Scores of how far out of distribution an image is: larger means farther.

All are functions (model, images) -> N float32 values on the CPU; `compute_scores` gives several from one pass.
Images are uint8, N x C x H x W (rows of features: floats, N x D x 1 x 1), on any device; the model should be in
evaluation mode. The networks compute in float32 unless another precision is asked for, since that is the same
arithmetic on every processor; the sums and differences that make a score of their output are in double precision.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from negvae.device import autocast
from negvae.fast.int8 import QuantizedEncoder
from negvae.model import VAE, Posterior
from negvae.registry import choose
from negvae.scoring.blocks import blocks, filled, map_blocks
from negvae.scoring.combination import STATISTICS
from negvae.scoring.dose import model_statistics

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


def nats_per_dim(
    model: VAE,
    images: Tensor,
    *,
    samples: int = 1,
    generator: torch.Generator | None = None,
    precision: str = "float32",
) -> Tensor:
    """Negative ELBO in nats per dimension: (-log p(x|z) + KL(q(z|x) || N(0, I))) / D.

    The unit of the "BPD" rows in the paper's tables.

    Args:
        model: trained VAE.
        images: uint8, N x C x H x W.
        samples: posterior samples over which the likelihood term is averaged; one in the paper.
        generator: of the posterior samples, on the model's device; None for one seeded with 0.
        precision: "float32", "bfloat16", or "auto" for bfloat16 where the device computes in it.

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
    precision: str = "float32",
) -> Tensor:
    """Negative ELBO in bits per dimension: `nats_per_dim` / ln 2; arguments as there."""
    return compute_scores(model, images, ["bpd"], samples=samples, generator=generator, precision=precision)["bpd"]


def kl(model: VAE, images: Tensor, *, precision: str = "float32") -> Tensor:
    """KL(q(z|x) || N(0, I)) in nats (N): the paper's "AUC KL" score, always to the positive prior."""
    return compute_scores(model, images, ["kl"], precision=precision)["kl"]


def prior_ratio(model: VAE, images: Tensor, *, precision: str = "float32") -> Tensor:
    """KL(q(z|x) || N(0, I)) - KL(q(z|x) || N(c 1, I)) in nats (N).

    The log-odds of "negative" in the two-class graphical model of section 3 of the paper, with equal class
    probabilities and the posterior shared by both classes: the likelihood terms cancel, the KL terms remain.
    """
    return compute_scores(model, images, ["prior_ratio"], precision=precision)["prior_ratio"]


def reconstruction(model: VAE, images: Tensor, *, samples: int = 1, precision: str = "float32") -> Tensor:
    """-E log p(x|z) under q(z|x) in nats (N): the ELBO's first term alone (An & Cho 2015)."""
    return compute_scores(model, images, ["reconstruction"], samples=samples, precision=precision)["reconstruction"]


def latent_norm(model: VAE, images: Tensor, *, precision: str = "float32") -> Tensor:
    """Squared length of the posterior mean (N): twice the part of `kl` that does not depend on the variance."""
    return compute_scores(model, images, ["latent_norm"], precision=precision)["latent_norm"]


def iwae(model: VAE, images: Tensor, *, samples: int = 16, precision: str = "float32") -> Tensor:
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
    noise = torch.randn(samples, model.latent_size, generator=randomness, dtype=torch.float32, device="cpu")
    added = model.likelihood.target(torch.zeros(samples, *model.shape, dtype=torch.float32, device="cpu"), randomness)
    weights = next(model.parameters())
    return Draws(noise.to(weights), added.to(weights))


def compute_scores(
    model: VAE,
    images: Tensor,
    names: Sequence[str] = tuple(SCORES),
    *,
    samples: int = 1,
    generator: torch.Generator | None = None,
    draws: Draws | None = None,
    precision: str = "float32",
    quantized: QuantizedEncoder | None = None,
) -> dict[str, Tensor]:
    """Several scores from one pass of the encoder, and of the decoder where a score needs it.

    With `draws`, or with scores of the encoder alone, an image's scores depend on the image alone, to the last bit,
    on one machine (see `negvae.scoring.blocks`).

    Args:
        model: trained VAE.
        images: uint8, N x C x H x W.
        names: keys of `PASS_SCORES`, or `STATISTICS`.
        samples: posterior samples for "bpd", "reconstruction" and "iwae".
        generator: of the posterior samples, on the model's device; None for one seeded with 0.
        draws: samples shared by all images, in place of `samples` and `generator`.
        precision: "float32", "bfloat16", or "auto" for bfloat16 where the device computes in it.
        quantized: the model's encoder in int8, used in place of its own; for `ENCODER_SCORES` alone.

    Returns:
        N values (float32, or float64 for a model in float64; CPU) for each name, in the order asked; N x K in float64
        for `STATISTICS`.

    Raises:
        ValueError: unknown name, no posterior samples, or images the model is not made for; a score of the decoder
            in int8; bfloat16 where networks do not run in it.
    """
    for name in names:
        if name != STATISTICS:
            choose("score", name, PASS_SCORES)
        if quantized is not None:
            refuse_decoder(name)
    if samples < 1:
        raise ValueError(f"samples is {samples}: it must be at least 1")
    randomness = generator or torch.Generator(model.device).manual_seed(0)
    decodes = not set(names) <= set(ENCODER_SCORES)

    def drawn() -> Iterator[tuple[Tensor, int, list[Draws]]]:
        """Each block with the random numbers of its passes, drawn in the order of the images."""
        for part, count in blocks(model, images):
            own = draws is None and decodes
            draws_of = [_own_draws(model, count, len(part), randomness) for _ in range(samples if own else 0)]
            yield part, count, draws_of

    def score(block: tuple[Tensor, int, list[Draws]]) -> dict[str, Tensor]:
        part, count, own = block
        with torch.inference_mode(), autocast(precision, model.device):
            prepared = model.prepare(part)
            posterior = model.encode(prepared) if quantized is None else Posterior(*quantized(part))

            def draw(posterior: Posterior) -> Iterator[tuple[Tensor, Tensor]]:
                for noise, added in own if draws is None else zip(*draws, strict=True):
                    yield posterior.sample(noise), prepared + added

            values = pass_scores(model, prepared, posterior, names, draw)
            return {name: value[:count].cpu() for name, value in values.items()}

    parts = map_blocks(score, drawn(), model.device)
    kind = next(model.parameters()).dtype
    return {
        name: torch.cat([part[name] for part in parts]).to(torch.float64 if name == STATISTICS else kind)
        if parts
        else torch.empty(0, dtype=torch.float32, device="cpu")
        for name in names
    }


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
        N values in float64 for each name, on the device; N x K for `STATISTICS`.
    """
    # The networks' output is as exact as it is; what small differences of its large sums are made of is kept.
    wide_posterior = Posterior(posterior.mean.double(), posterior.log_var.double())
    positive_kl = model.prior.kl(*wide_posterior)
    likelihood: list[Tensor] = []
    codes: list[Tensor] = []
    lost: list[Tensor] = []
    if not set(names) <= set(ENCODER_SCORES):
        for code, target in draw(posterior):
            output, target = model.decode(code).double(), target.double()
            likelihood.append(model.likelihood.log_prob(output, target))
            codes.append(code.double())
            if STATISTICS in names:
                lost.append(model.likelihood.excess(output, target))
    scores = {}
    for name in names:
        if name == "kl":
            score = positive_kl
        elif name == "prior_ratio":
            score = model.negative_prior.kl_excess(wide_posterior.mean)
        elif name == "latent_norm":
            score = wide_posterior.mean.square().sum(1)
        elif name == "reconstruction":
            score = -torch.stack(likelihood).mean(0)
        elif name == "bpd":
            score = (positive_kl - torch.stack(likelihood).mean(0)) / (model.dimensions * math.log(2))
        elif name == STATISTICS:
            bits = (positive_kl - torch.stack(likelihood).mean(0)) / (model.dimensions * math.log(2))
            score = model_statistics(images, positive_kl, torch.stack(lost).mean(0), bits)
        else:
            bound = importance_weighted(wide_posterior, torch.stack(codes), torch.stack(likelihood))
            score = -bound / (model.dimensions * math.log(2))
        scores[name] = score
    return scores


def refuse_decoder(name: str) -> None:
    """Refuse a score that int8 does not give.

    Raises:
        ValueError: it is not one of `ENCODER_SCORES`.
    """
    if name not in ENCODER_SCORES:
        allowed = f"{', '.join(ENCODER_SCORES[:-1])} or {ENCODER_SCORES[-1]}"
        raise ValueError(f"score {name} needs the decoder, and int8 is of the encoder alone: ask for {allowed}")


def importance_weighted(posterior: Posterior, codes: Tensor, likelihood: Tensor) -> Tensor:
    """The importance-weighted bound on log p(x) in nats (N).

    Args:
        posterior: q(z|x) of N images.
        codes: S x N x L, drawn from it.
        likelihood: log p(x|z) of each, S x N.
    """
    deviation = (codes - posterior.mean) * (-0.5 * posterior.log_var).exp()
    # The constants of log p(z) and log q(z|x) cancel.
    log_weight = 0.5 * (deviation.square() + posterior.log_var - codes.square()).sum(-1)
    return torch.logsumexp(likelihood + log_weight, 0) - math.log(len(codes))


def _own_draws(model: VAE, count: int, size: int, generator: torch.Generator) -> Draws:
    """One posterior sample's random numbers for each of `count` images, as rows of a block of `size` images."""
    weights = next(model.parameters())
    noise = torch.randn(count, model.latent_size, generator=generator, device=model.device, dtype=torch.float32)
    added = model.likelihood.target(
        torch.zeros(count, *model.shape, device=model.device, dtype=torch.float32), generator
    )
    return Draws(filled(noise.to(weights), size), filled(added.to(weights), size))


def shared(images: Tensor, posterior: Posterior, draws: Draws) -> Iterator[tuple[Tensor, Tensor]]:
    """Codes from q(z|x) and targets, all images with the same draws."""
    for noise, added in zip(*draws, strict=True):
        yield posterior.sample(noise), images + added
