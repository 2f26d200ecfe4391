"""The model: likelihoods p(x|z), the prior p(z) and the negative prior, and networks with the posterior q(z|x)."""

from negvae.model.likelihoods import Bernoulli, Gaussian, Likelihood, QuantizedGaussian
from negvae.model.networks import PosteriorHead
from negvae.model.priors import GaussianPrior
from negvae.model.vae import VAE, Posterior, build_vae

__all__ = [
    "VAE",
    "Bernoulli",
    "Gaussian",
    "GaussianPrior",
    "Likelihood",
    "Posterior",
    "PosteriorHead",
    "QuantizedGaussian",
    "build_vae",
]
