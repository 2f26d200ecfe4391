"""The variational autoencoder with a positive and a negative prior."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from negvae.config import RunConfig
from negvae.device import own_state
from negvae.fast import convolution
from negvae.model.initialization import initialize
from negvae.model.inputs import Features, Pixels
from negvae.model.likelihoods import Likelihood, build_likelihood, wide
from negvae.model.networks import Shape, build_networks, check_networks
from negvae.model.priors import GaussianPrior
from negvae.parts import network_entry


class Posterior(NamedTuple):
    """q(z|x): a diagonal Gaussian for each image; both fields are N x L, in float32 at least."""

    mean: Tensor
    log_var: Tensor

    def sample(self, noise: Tensor) -> Tensor:
        """Z = mean + sigma * noise, given standard normal noise (N x L, or S x N x L for S samples)."""
        return self.mean + (0.5 * self.log_var).exp() * noise


class VAE(nn.Module):
    """Encoder q(z|x), decoder and likelihood p(x|z), and the two priors over z.

    Args:
        encoder: maps images (N x C x H x W) to N x 2L numbers.
        decoder: maps codes (N x L) to the likelihood's parameters (N x C x H x W).
        likelihood: interprets the decoder's output.
        shape: (C, H, W) of the images.
        latent_size: L.
        negative_shift: c in the negative prior N(c 1, I).
        inputs: turns stored data into what the encoder sees; pixels by default.

    Attributes:
        plain: whether the networks' layers run one by one as torch has them; else, on a CPU, as `convolution.run`
            arranges them.
    """

    def __init__(
        self,
        encoder: nn.Sequential,
        decoder: nn.Sequential,
        likelihood: Likelihood,
        shape: Shape,
        latent_size: int,
        negative_shift: float,
        inputs: Pixels | Features | None = None,
    ) -> None:
        super().__init__()
        self.inputs = inputs if inputs is not None else Pixels()
        self.encoder = encoder
        self.decoder = decoder
        self.likelihood = likelihood
        self.shape = shape
        self.latent_size = latent_size
        self.prior = GaussianPrior(latent_size)
        self.negative_prior = GaussianPrior(latent_size, negative_shift)
        self.plain = False

    def _run(self, network: nn.Sequential, inputs: Tensor) -> Tensor:
        if self.plain or inputs.device.type != "cpu":
            output: Tensor = network(inputs)
            return output
        return convolution.run(network, inputs)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.parameters()).device

    @property
    def dimensions(self) -> int:
        """Numbers in one image: C H W."""
        return self.shape[0] * self.shape[1] * self.shape[2]

    @property
    def takes_features(self) -> bool:
        """Whether the model takes rows of features (N x D x 1 x 1) and not images."""
        return isinstance(self.inputs, Features)

    @property
    def couples_images(self) -> bool:
        """Whether, in training mode, an image's posterior depends on the others of its batch.

        Layers that do so normalize by the batch's statistics, and keep running ones for evaluation.
        """
        return any(hasattr(module, "running_mean") for module in self.encoder.modules())

    def check(self, stored: Tensor) -> None:
        """Refuse what the model does not take.

        Raises:
            ValueError: not uint8 images (floating-point rows for a model of features), or of another shape.
        """
        right = stored.is_floating_point() if self.takes_features else stored.dtype == torch.uint8
        if not right or stored.dim() != 4 or tuple(stored.shape[1:]) != self.shape:
            wanted = "x".join(map(str, self.shape))
            what = "rows" if self.takes_features else "images"
            raise ValueError(
                f"{what} are {stored.dtype} {tuple(stored.shape)}: this model takes {self.inputs.stored} N x {wanted}"
            )

    def prepare(self, stored: Tensor) -> Tensor:
        """Data as it is stored (uint8 images or rows of features) as the networks see it, on the model's device."""
        weights = next(self.parameters())
        prepared: Tensor = self.inputs(stored.to(weights.device))
        # float32 also where the weights are bfloat16 copies: pixels need eight bits of their own.
        return prepared.to(torch.float64 if weights.dtype == torch.float64 else torch.float32)

    def encode(self, images: Tensor) -> Posterior:
        """q(z|x) for prepared images (N x C x H x W, floats in [0, 1])."""
        images = images.contiguous(memory_format=torch.channels_last)
        mean, log_var = wide(self._run(self.encoder, images)).chunk(2, dim=1)
        return Posterior(mean, log_var)

    def decode(self, z: Tensor) -> Tensor:
        """The likelihood's parameters (N x C x H x W, in float32 at least) for codes z (N x L)."""
        return wide(self._run(self.decoder, z))

    def generate(self, z: Tensor) -> Tensor:
        """G(z): the mean images E[x|z] (N x C x H x W, as prepared: pixels in [0, 1]) for codes z (N x L)."""
        return self.likelihood.mean(self.decode(z))

    def generator_parameters(self) -> list[nn.Parameter]:
        """The parameters of p(x|z): the decoder's, and sigma where it is learned."""
        return [*self.decoder.parameters(), *self.likelihood.parameters()]


@own_state()
def build_vae(config: RunConfig, shape: Shape) -> VAE:
    """The untrained model that `config` describes, for images of `shape` (C, H, W), on the CPU.

    Weights are drawn from a generator seeded by `config.seed`; the same config gives the same weights.

    Raises:
        ValueError: the network is not made for such images, has a layer that the initialization does not
            know, or gives something of another shape.
        TypeError: network or likelihood is no such thing.
    """
    # Made without storage first: the layers' own initialization would draw from the global random state.
    with torch.device("meta"):
        encoder, decoder = build_networks(config.network, shape, config.latent_size)
    encoder.float().to_empty(device="cpu")
    decoder.float().to_empty(device="cpu")
    randomness = torch.Generator().manual_seed(config.seed)
    initialize(encoder, config.initialization, randomness)
    initialize(decoder, config.initialization, randomness)
    entry = network_entry(config.network)
    if not isinstance(entry.target, str):  # the library's own are known to fit
        check_networks(entry.name, encoder, decoder, shape, config.latent_size)
    features = config.takes_features
    likelihood = build_likelihood(config.likelihood, config.sigma, config.learn_sigma, bounded=not features)
    inputs = Features(shape[0]) if features else Pixels()
    model = VAE(encoder, decoder, likelihood, shape, config.latent_size, config.negative_shift, inputs)
    return model.to(memory_format=torch.channels_last)  # type: ignore[call-overload,no-any-return]
