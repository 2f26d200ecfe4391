"""Scores of one model alone, each a function of a pass over N inputs; larger means farther out of distribution."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from negvae.scoring.passes import Pass

IWAE_SAMPLES = 16


def bpd(x: Pass) -> Tensor:
    """Return the negative ELBO in bits per dimension (N): (KL(q(z|x) || N(0, I)) - log p(x|z)) / (D ln 2).

    The paper's "BPD" rows are the same in nats per dimension: times ln 2.
    """
    return x.bits_per_dim


def kl(x: Pass) -> Tensor:
    """Return KL(q(z|x) || N(0, I)) in nats (N): the paper's "AUC KL" score, always to the positive prior."""
    return x.kl


def prior_ratio(x: Pass) -> Tensor:
    """Return KL(q(z|x) || N(0, I)) - KL(q(z|x) || N(c 1, I)) in nats (N).

    The log-odds of "negative" in the two-class graphical model of section 3 of the paper, with equal class
    probabilities and the posterior shared by both classes: the likelihood terms cancel, the KL terms remain.
    """
    return x.model.negative_prior.kl_excess(x.posterior.mean)


def reconstruction(x: Pass) -> Tensor:
    """Return -E log p(x|z) under q(z|x) in nats (N): the ELBO's first term alone (An & Cho 2015)."""
    return -x.log_likelihood


def latent_norm(x: Pass) -> Tensor:
    """Return the squared length of the posterior mean (N): twice the part of `kl` independent of the variance."""
    return x.posterior.mean.square().sum(1)


def iwae(x: Pass) -> Tensor:
    """Return the negative importance-weighted bound on log p(x) in bits per dimension (N).

    -log mean_k p(x, z_k) / q(z_k|x) over 16 draws from q(z|x): Burda et al., "Importance weighted autoencoders",
    2016, equation 8. With one sample it is an estimate of the ELBO; the bound tightens with their number.
    """
    drawn, (mean, log_var) = x.sampled(IWAE_SAMPLES), x.posterior
    deviation = (drawn.codes - mean) * (-0.5 * log_var).exp()
    # The constants of log p(z) and log q(z|x) cancel.
    log_weight = 0.5 * (deviation.square() + log_var - drawn.codes.square()).sum(-1)
    bound = torch.logsumexp(drawn.log_likelihoods + log_weight, 0) - math.log(len(drawn.codes))
    return -bound / (x.dimensions * math.log(2))
