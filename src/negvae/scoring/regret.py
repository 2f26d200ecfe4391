"""Likelihood regret: how much better the ELBO of one image gets when its posterior is fitted to it alone."""

from __future__ import annotations

import copy
import math

import torch
from torch import Tensor, nn

from negvae.model import VAE, Posterior
from negvae.scoring.passes import Draws, Pass

STEPS, SAMPLES, LEARNING_RATE = 30, 4, 0.05


def likelihood_regret(x: Pass) -> Tensor:
    """Return the gain of the ELBO by fitting q(z|x) to each image, in bits per dimension (N).

    Xiao et al., "Likelihood regret: an out-of-distribution detection score for variational auto-encoder", 2020,
    equation 8. They fit the encoder's weights anew for every image; here each image's mean and log-variance are
    fitted directly, which is their variant for speed and lets a whole batch be fitted at once. Adam takes 30 steps of
    0.05 with four draws that stay fixed, so that the gain is that of a deterministic function; the best value on the
    way counts, so the regret is never negative.
    """
    return regret(x, STEPS, SAMPLES) / (x.dimensions * math.log(2))


def regret(x: Pass, steps: int, samples: int) -> Tensor:
    """Return the gain of the ELBO in nats (N, float64).

    Args:
        x: a pass over N images.
        steps: number of steps of the optimizer; each costs a pass through the decoder and back for every sample.
        samples: number of posterior samples of the ELBO.

    Returns:
        N values, none negative.
    """
    start, draws = x.encoded, x.draws(x.model, samples)
    torch.clear_autocast_cache()  # which may hold weights that were made where no gradient could pass
    with torch.inference_mode(False):
        return _gain(_without_gradient(x.model), x.images.clone(), start, draws, steps)


def _gain(model: VAE, images: Tensor, start: Posterior, draws: Draws, steps: int) -> Tensor:
    def elbo(mean: Tensor, log_var: Tensor) -> Tensor:
        posterior = Posterior(mean, log_var)
        total = -model.prior.kl(mean.double(), log_var.double())
        for noise, offset in zip(*draws, strict=True):
            output = model.decode(posterior.sample(noise)).double()
            total = total + model.likelihood.log_prob(output, (images + offset).double()) / len(draws.noise)
        return total

    with torch.no_grad():
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


def _without_gradient(model: VAE) -> VAE:
    """Return the same model, with the same weights in the same memory, for which no gradient is computed."""
    weights = {id(weight): nn.Parameter(weight.detach(), requires_grad=False) for weight in model.parameters()}
    return copy.deepcopy(model, dict(weights))
