"""One pass of a model over a batch, of which each part is computed when a score first asks for it."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from negvae.model import VAE, Posterior
from negvae.scoring.references import References
from negvae.scoring.table import SCORES, Score


class Draws(NamedTuple):
    """Random numbers of S posterior samples; where images share them, a score is a function of the image alone.

    Attributes:
        noise: standard normal, S x L for draws that all images share, or S x N x L.
        dequantization: what the likelihood adds to an image, S x C x H x W or S x N x C x H x W; zero for most.
    """

    noise: Tensor
    dequantization: Tensor


class Drawing(Protocol):
    """What gives a pass its random numbers."""

    def __call__(self, model: VAE, samples: int) -> Draws:
        """The draws of so many posterior samples of the model."""


def shared_draws(model: VAE, samples: int = 1, seed: int = 0) -> Draws:
    """The draws for `model` that belong to `seed`, on its device and in its precision, for all images alike.

    Whatever the order, the batches or the company, an image then has one score; thresholds, exported models and
    repeated calls agree. The price is that the noise of two images' scores is not independent.
    """
    with torch.inference_mode(False):  # a gradient may pass through them
        randomness = torch.Generator().manual_seed(seed)
        noise = torch.randn(samples, model.latent_size, generator=randomness, dtype=torch.float32, device="cpu")
        added = model.likelihood.target(
            torch.zeros(samples, *model.shape, dtype=torch.float32, device="cpu"), randomness
        ).detach()
        weights = next(model.parameters())
        return Draws(noise.to(weights.dtype).to(weights.device), added.to(weights.dtype).to(weights.device))


class SharedDraws:
    """`shared_draws` of one seed, kept once made.

    Args:
        seed: of the posterior samples.
    """

    def __init__(self, seed: int = 0) -> None:
        self.seed = seed
        self._made: dict[tuple[VAE, int], Draws] = {}

    def __call__(self, model: VAE, samples: int) -> Draws:
        """The draws of so many posterior samples of the model."""
        key = (model, samples)
        if key not in self._made:
            self._made[key] = shared_draws(model, samples, self.seed)
        return self._made[key]


@dataclass(frozen=True)
class Sampled:
    """Posterior samples of a batch, and what the decoder makes of them; all in float64.

    Attributes:
        codes: drawn from q(z|x), S x N x L.
        log_likelihoods: log p(x|z) in nats, S x N.
        output: the decoder's output for the first sample, N x C x H x W.
        target: the pixels whose density was asked for with it, N x C x H x W.
    """

    codes: Tensor
    log_likelihoods: Tensor
    output: Tensor
    target: Tensor


class Pass:
    """A model's pass over a batch of N inputs: what scores are functions of.

    Everything is computed once, when it is first asked for, and in float64 after the networks: their output is as
    exact as it is, and what small differences of its large sums are made of is kept. It is made of torch's functions
    alone, so that a score can be traced for export.

    Args:
        model: trained VAE, in evaluation mode.
        stored: uint8 images, N x C x H x W, or rows of features, N x D x 1 x 1.
        draws: gives the random numbers of posterior samples.
        references: statistics of training images.
        ensemble: further models trained alike.
        encode: gives q(z|x) of stored inputs in the model's place; there are scores of the encoder alone then.

    Attributes:
        images: as the networks see them, N x C x H x W: pixels in [0, 1], features standardized.
    """

    def __init__(
        self,
        model: VAE,
        stored: Tensor,
        *,
        draws: Drawing,
        references: References | None = None,
        ensemble: tuple[VAE, ...] = (),
        encode: Callable[[Tensor], tuple[Tensor, Tensor]] | None = None,
    ) -> None:
        self.model, self.stored, self.draws = model, stored, draws
        self.references = references if references is not None else References()
        self.images = model.prepare(stored)
        self._ensemble, self._encode = ensemble, encode
        self._sampled: dict[int, Sampled] = {}
        self._scores: dict[str, Tensor] = {}

    @property
    def dimensions(self) -> int:
        """Numbers in one image: D = C H W."""
        return self.model.dimensions

    @cached_property
    def encoded(self) -> Posterior:
        """q(z|x) as the encoder gives it: mean and log_var, N x L each, in its own precision."""
        return self.model.encode(self.images) if self._encode is None else Posterior(*self._encode(self.stored))

    @cached_property
    def posterior(self) -> Posterior:
        """q(z|x) in float64: mean and log_var, N x L each."""
        return Posterior(self.encoded.mean.double(), self.encoded.log_var.double())

    @cached_property
    def kl(self) -> Tensor:
        """KL(q(z|x) || N(0, I)) in nats (N)."""
        return self.model.prior.kl(*self.posterior)

    def sampled(self, samples: int = 1) -> Sampled:
        """Codes drawn from q(z|x) and their log-likelihoods.

        Args:
            samples: how many a score takes of each input; `compute_scores` may be asked for another number.

        Raises:
            ValueError: there are scores of the encoder alone here.
        """
        if samples not in self._sampled:
            if self._encode is not None:
                raise ValueError("int8 is of the encoder alone: a score that decodes needs the decoder")
            codes, likelihoods, first = [], [], None
            for noise, added in zip(*self.draws(self.model, samples), strict=True):
                code = self.encoded.sample(noise)
                output, target = self.model.decode(code).double(), (self.images + added).double()
                likelihoods.append(self.model.likelihood.log_prob(output, target))
                codes.append(code.double())
                first = first or (output, target)
            assert first is not None  # there is one sample at least
            self._sampled[samples] = Sampled(torch.stack(codes), torch.stack(likelihoods), *first)
        return self._sampled[samples]

    @property
    def decoded(self) -> bool:
        """Whether the decoder has been used."""
        return bool(self._sampled)

    @property
    def log_likelihood(self) -> Tensor:
        """E log p(x|z) under q(z|x), by one sample, in nats (N)."""
        return self.sampled().log_likelihoods.mean(0)

    @property
    def codes(self) -> Tensor:
        """One code for each input, drawn from q(z|x) (N x L)."""
        return self.sampled().codes[0]

    @property
    def output(self) -> Tensor:
        """The decoder's output for `codes`, what the likelihood's parameters are made of (N x C x H x W)."""
        return self.sampled().output

    @cached_property
    def bits_per_dim(self) -> Tensor:
        """Negative ELBO in bits per dimension (N)."""
        return (self.kl - self.log_likelihood) / (self.dimensions * math.log(2))

    @cached_property
    def members(self) -> tuple[Pass, ...]:
        """A pass of each model of the ensemble, this one's first."""
        return (self, *(Pass(model, self.stored, draws=self.draws) for model in self._ensemble))

    def scale(self, name: str) -> tuple[float, float, float, float]:
        """5% quantile, median, 95% quantile and mean of a score on training images.

        Raises:
            ValueError: they were not measured.
        """
        if name not in self.references.scales:
            raise ValueError(f"score {name} was not measured on training images: run `negvae calibrate` first")
        low, median, high, mean = map(float, self.references.scales[name])
        return low, median, high, mean

    def fitted(self, name: str) -> Tensor:
        """What the fit of a score to training images gave, on the model's device.

        Raises:
            ValueError: it was not fitted.
        """
        if name not in self.references.fitted:
            raise ValueError(f"score {name} was not fitted to training images: run `negvae calibrate` first")
        return torch.from_numpy(np.asarray(self.references.fitted[name])).to(self.images.device)

    def score(self, name: str) -> Tensor:
        """Another score of the same inputs (N, float64).

        Those that are not measured against training images have the precision of the networks, as in a table of
        scores: so that what is made of them can be made again from the table.

        Raises:
            ValueError: there is none of this name, or it cannot be had here.
        """
        if name not in self._scores:
            self._scores[name] = self.evaluate(SCORES[name])
        return self._scores[name]

    def evaluate(self, score: Score) -> Tensor:
        """What the function behind a score gives; see `score`.

        Raises:
            ValueError: it is not one number for each input.
        """
        values = score.load()(self)
        if not isinstance(values, Tensor) or values.shape != self.stored.shape[:1]:
            shape = tuple(values.shape) if isinstance(values, Tensor) else type(values).__name__
            raise ValueError(
                f"score {score.name} gave {shape} for {len(self.stored)} inputs: one number for each, (N,)"
            )
        if "reference" in score.needs:
            return values.double()
        return values.to(self.images.dtype).double()
