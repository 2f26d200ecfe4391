"""Likelihood regret: how much better the ELBO of one image gets when its posterior is fitted to it alone."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from negvae.device import autocast
from negvae.model import VAE, Posterior
from negvae.scoring.blocks import blocks, map_blocks
from negvae.scoring.scores import shared_draws

STEPS, LEARNING_RATE = 30, 0.05


def likelihood_regret(
    model: VAE,
    images: Tensor,
    *,
    steps: int = STEPS,
    samples: int = 4,
    seed: int = 0,
    precision: str = "float32",
) -> Tensor:
    """Gain of the ELBO by fitting q(z|x) to each image, in bits per dimension (N).

    Xiao et al., "Likelihood regret: an out-of-distribution detection score for variational auto-encoder", 2020,
    equation 8. They fit the encoder's weights anew for every image; here each image's mean and log-variance are
    fitted directly, which is their variant for speed and lets a whole batch be fitted at once. Adam with a step of
    0.05, `samples` draws that stay fixed, so that the gain is that of a deterministic function; the best value on the
    way counts, so the regret is never negative.

    Args:
        model: trained VAE in evaluation mode.
        images: uint8, N x C x H x W.
        steps: of the optimizer; each costs a pass through the decoder and back for every sample.
        samples: posterior samples of the ELBO.
        seed: of the samples.
        precision: "float32", "bfloat16" or "auto".

    Raises:
        ValueError: images the model is not made for.
    """
    draws = shared_draws(model, samples, seed)

    def fitted(block: tuple[Tensor, int]) -> Tensor:
        part, count = block
        with autocast(precision, model.device):
            return _regret(model, model.prepare(part), draws.noise, draws.dequantization, steps)[:count].cpu()

    frozen = [parameter.requires_grad for parameter in model.parameters()]
    model.requires_grad_(False)
    try:
        parts = map_blocks(fitted, blocks(model, images), model.device)
    finally:
        for parameter, needed in zip(model.parameters(), frozen, strict=True):
            parameter.requires_grad_(needed)
    return (
        torch.cat(parts).float() / (model.dimensions * math.log(2))
        if parts
        else torch.empty(0, dtype=torch.float32, device="cpu")
    )


def _regret(model: VAE, batch: Tensor, noise: Tensor, added: Tensor, steps: int) -> Tensor:
    """Gain of the ELBO in nats (N, float64)."""

    def elbo(mean: Tensor, log_var: Tensor) -> Tensor:
        posterior = Posterior(mean, log_var)
        total = -model.prior.kl(mean.double(), log_var.double())
        for one, offset in zip(noise, added, strict=True):
            output = model.decode(posterior.sample(one)).double()
            total = total + model.likelihood.log_prob(output, (batch + offset).double()) / len(noise)
        return total

    with torch.no_grad():
        start = model.encode(batch)
        before = best = elbo(*start)
    with torch.enable_grad():
        fitted = [part.clone().requires_grad_() for part in start]
        optimizer = torch.optim.Adam(fitted, lr=LEARNING_RATE)
        for _ in range(steps):
            optimizer.zero_grad()
            values = elbo(*fitted)
            best = torch.maximum(best, values.detach())
            # Images do not share parameters, and Adam works coordinate by coordinate: each is fitted alone.
            (-values.sum()).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
        best = torch.maximum(best, elbo(*fitted).detach())
    return best - before
