"""The variational autoencoder with a positive and a negative prior."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

from negvae.config import RunConfig
from negvae.data.formats.base import machine_memory
from negvae.device import own_state
from negvae.fast import convolution
from negvae.model.initialization import give_storage, initialize
from negvae.model.inputs import Features, Pixels
from negvae.model.likelihoods import Likelihood, build_likelihood, check_likelihood, wide
from negvae.model.networks import Shape, build_networks, check_networks
from negvae.model.priors import GaussianPrior
from negvae.model.shifted import ShiftEncoder
from negvae.parts import likelihood_entry, network_entry


class Posterior(NamedTuple):
    """The posterior q(z|x), a diagonal Gaussian for each image.

    Attributes:
        mean: means, N x L, in float32 at least.
        log_var: logarithms of the variances, N x L, in float32 at least.
    """

    mean: Tensor
    log_var: Tensor

    def sample(self, noise: Tensor) -> Tensor:
        """Return z = mean + sigma * noise, given standard normal noise (N x L, or S x N x L for S samples)."""
        return self.mean + (0.5 * self.log_var).exp() * noise


class VAE(nn.Module):
    """The variational autoencoder: encoder q(z|x), decoder and likelihood p(x|z), and two priors over z.

    Args:
        encoder: network that maps images (N x C x H x W) to N x 2L numbers.
        decoder: network that maps codes (N x L) to the likelihood's parameters (N x C x H x W).
        likelihood: likelihood p(x|z), which interprets the decoder's output.
        shape: shape (C, H, W) of the images.
        latent_size: L, the number of latent dimensions.
        negative_shift: c in the negative prior N(c 1, I).
        inputs: module that converts stored data to the encoder's input; None converts uint8 pixels.
        shifted: encoder of the transformation's part of the code; None if there are no transformations with priors.

    Attributes:
        plain: whether torch runs the networks layer by layer on a CPU too; otherwise `negvae.fast.convolution.run`
            runs them there.
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
        shifted: ShiftEncoder | None = None,
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
        self.shifted = shifted
        self.plain = False

    def _run(self, network: nn.Sequential, inputs: Tensor) -> Tensor:
        if self.plain or inputs.device.type != "cpu":
            output: Tensor = network(inputs)
            return output
        return convolution.run(network, inputs)

    @property
    def device(self) -> torch.device:
        """The device of the weights."""
        return next(self.parameters()).device

    @property
    def dimensions(self) -> int:
        """The number of values in one image: C H W."""
        return self.shape[0] * self.shape[1] * self.shape[2]

    @property
    def takes_features(self) -> bool:
        """Whether the model takes rows of features (N x D x 1 x 1) and not images."""
        return isinstance(self.inputs, Features)

    @property
    def couples_images(self) -> bool:
        """Whether, in training mode, an image's posterior depends on the other images of its batch.

        Layers with this effect normalize by the batch's statistics, and keep running statistics for evaluation.
        """
        return any(hasattr(module, "running_mean") for module in self.encoder.modules())

    def check(self, stored: Tensor) -> None:
        """Refuse data that the model does not take.

        Args:
            stored: data as it is stored: uint8 images (N x C x H x W), or floating-point rows (N x D x 1 x 1) for a
                model of features.

        Raises:
            ValueError: if the data is of another type or shape than the model takes.
        """
        right = stored.is_floating_point() if self.takes_features else stored.dtype == torch.uint8
        if not right or stored.dim() != 4 or tuple(stored.shape[1:]) != self.shape:
            wanted = "x".join(map(str, self.shape))
            what = "rows" if self.takes_features else "images"
            raise ValueError(
                f"{what} are {stored.dtype} {tuple(stored.shape)}: this model takes {self.inputs.stored} N x {wanted}"
            )

    def prepare(self, stored: Tensor) -> Tensor:
        """Convert stored data (uint8 images or rows of features) to the networks' input, on the model's device."""
        weights = next(self.parameters())
        prepared: Tensor = self.inputs(stored.to(weights.device))
        # float32 also where the weights are bfloat16 copies: pixels need eight bits of their own.
        return prepared.to(torch.float64 if weights.dtype == torch.float64 else torch.float32)

    def encode(self, images: Tensor) -> Posterior:
        """Compute q(z|x) for prepared images (N x C x H x W, floats in [0, 1])."""
        images = images.contiguous(memory_format=torch.channels_last)
        mean, log_var = wide(self._run(self.encoder, images)).chunk(2, dim=1)
        return Posterior(mean, log_var)

    def decode(self, z: Tensor) -> Tensor:
        """Compute the likelihood's parameters (N x C x H x W, in float32 at least) for codes z (N x L)."""
        return wide(self._run(self.decoder, z))

    def generate(self, z: Tensor) -> Tensor:
        """Compute G(z), the mean images E[x|z] (N x C x H x W, as prepared: pixels in [0, 1]) for codes z (N x L)."""
        return self.likelihood.mean(self.decode(z))

    def generator_parameters(self) -> list[nn.Parameter]:
        """Return the parameters of p(x|z): those of the decoder, and sigma if it is learned."""
        return [*self.decoder.parameters(), *self.likelihood.parameters()]


@own_state()
def build_vae(config: RunConfig, shape: Shape) -> VAE:
    """Build the untrained model that a config describes, on the CPU.

    Weights are drawn from a generator seeded by `config.seed`; the same config gives the same weights.

    Args:
        config: config that names the networks, the likelihood, the initialization and the seed.
        shape: shape (C, H, W) of the images, or (D, 1, 1) for rows of D features.

    Returns:
        The model.

    Raises:
        ValueError: if the network is not made for images of this shape, has a layer that the initialization does not
            know, gives output of another shape, or has more weights than fit in this machine's memory; or if the
            likelihood is refused by `check_likelihood`.
        TypeError: if the network or likelihood of the config makes an object of the wrong kind.

    >>> model = build_vae(RunConfig(data="mnist", network="gray", latent_size=10), (1, 28, 28))
    >>> model.generate(torch.zeros(3, 10)).shape
    torch.Size([3, 1, 28, 28])
    """
    # Made without storage first: the layers' own initialization would draw from the global random state.
    _need_memory(config, 2 * config.latent_size)  # what the encoder gives: torch counts no larger sizes even on "meta"
    with torch.device("meta"):
        encoder, decoder = build_networks(config.network, shape, config.latent_size)
    _need_memory(config, sum(each.numel() for part in (encoder, decoder) for each in part.parameters()))
    give_storage(encoder)
    give_storage(decoder)
    entry = network_entry(config.network)
    own = not isinstance(entry.target, str)  # the library's are known to fit
    if own:
        _spoil(encoder, decoder)
    randomness = torch.Generator().manual_seed(config.seed)
    initialize(encoder, config.initialization, randomness)
    initialize(decoder, config.initialization, randomness)
    if own:
        for network in (encoder, decoder):
            network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        check_networks(entry.name, encoder, decoder, shape, config.latent_size, features=config.takes_features)
    features = config.takes_features
    likelihood = build_likelihood(config.likelihood, config.sigma, config.learn_sigma, bounded=not features)
    described = likelihood_entry(config.likelihood)
    if not isinstance(described.target, str):
        check_likelihood(described.name, likelihood, shape)
    inputs = Features(shape[0]) if features else Pixels()
    shifted = None if config.transformations == "none" else build_shift_encoder(config, shape)
    model = VAE(encoder, decoder, likelihood, shape, config.latent_size, config.negative_shift, inputs, shifted)
    return model.to(memory_format=torch.channels_last)  # type: ignore[call-overload,no-any-return]


@torch.no_grad()
def _spoil(*networks: nn.Module) -> None:
    """Fill parameters and buffers with NaN, so that what is then not initialized is found."""
    for network in networks:
        for each in (*network.parameters(), *network.buffers()):
            if each.is_floating_point():
                each.fill_(math.nan)


def _need_memory(config: RunConfig, numbers: int) -> None:
    """Refuse networks of at least so many numbers (float32) that cannot fit in this machine's memory.

    Raises:
        ValueError: if they are larger than the memory.
    """
    need, have = 4 * numbers, machine_memory()
    if have is not None and need > have:
        raise ValueError(
            f"latent_size is {config.latent_size}: network {network_entry(config.network).name} then needs at least"
            f" {need / 2**30:,.1f} GiB of memory and this machine has {have / 2**30:,.1f}; make it smaller"
        )


def build_shift_encoder(config: RunConfig, shape: Shape) -> ShiftEncoder:
    """Build the untrained encoder of transformations, with random numbers of its own, on the CPU.

    Args:
        config: config that names the transformations and the seed.
        shape: shape (C, H, W) of the images.

    Returns:
        The encoder.
    """
    with torch.device("meta"):
        shifted = ShiftEncoder(config.transformations, shape)
    give_storage(shifted)
    initialize(shifted.encoder, "he", torch.Generator().manual_seed(config.seed + 0x5417))
    return shifted
