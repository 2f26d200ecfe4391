"""One pass of a model over a batch, of which each part is computed when a score first asks for it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from negvae.fast.int8_decoder import QuantizedNetworks
from negvae.model import VAE, Posterior
from negvae.scoring.once import computed_once
from negvae.scoring.references import References
from negvae.scoring.table import SCORES, Score


class Draws(NamedTuple):
    """Random numbers of S posterior samples; if images share them, a score is a function of the image alone.

    Attributes:
        noise: standard normal numbers, S x L for draws that all images share, or S x N x L.
        dequantization: noise that the likelihood adds to an image, S x C x H x W or S x N x C x H x W; zero for most
            likelihoods.
    """

    noise: Tensor
    dequantization: Tensor


class Drawing(Protocol):
    """The interface of a function that gives a pass its random numbers."""

    def __call__(self, model: VAE, samples: int) -> Draws:
        """Draw the random numbers of this many posterior samples of the model."""


def shared_draws(model: VAE, samples: int = 1, seed: int = 0) -> Draws:
    """Return the draws for `model` that belong to `seed`, on its device and in its precision, for all images alike.

    An image then has one score, whatever the order, the batch or the other images; thresholds, exported models and
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
    """The draws of `shared_draws` for one seed, kept after the first call.

    Args:
        seed: seed of the posterior samples.
    """

    def __init__(self, seed: int = 0) -> None:
        self.seed = seed
        self._made: dict[tuple[VAE, int], Draws] = {}

    def __call__(self, model: VAE, samples: int) -> Draws:
        """Draw the random numbers of this many posterior samples of the model."""
        key = (model, samples)
        if key not in self._made:
            self._made[key] = shared_draws(model, samples, self.seed)
        return self._made[key]


@dataclass(frozen=True)
class Sampled:
    """Posterior samples of a batch, and the decoder's results for them; all in float64.

    Attributes:
        codes: codes drawn from q(z|x), S x N x L.
        log_likelihoods: log p(x|z) in nats, S x N.
        output: the decoder's output for the first sample, N x C x H x W.
        target: pixels whose density was evaluated for the first sample, N x C x H x W.
    """

    codes: Tensor
    log_likelihoods: Tensor
    output: Tensor
    target: Tensor


class Pass:
    """A model's pass over a batch of N inputs, which scores are functions of.

    Everything is computed once, when it is first requested, and in float64 after the networks: their output is exact
    to their own precision, and small differences of its large sums are kept. The pass consists of torch's functions
    alone, so that a score can be traced for export.

    Args:
        model: trained VAE, in evaluation mode.
        stored: uint8 images, N x C x H x W, or rows of features, N x D x 1 x 1.
        draws: source of the random numbers of posterior samples.
        references: statistics of training images, for scores that are measured against them.
        ensemble: further models trained in the same way.
        quantized: the model's networks in int8, used in place of its own; without a decoder, only scores of the encoder
            alone are available.

    Attributes:
        images: inputs as the networks take them, N x C x H x W: pixels in [0, 1], features standardized.
    """

    def __init__(
        self,
        model: VAE,
        stored: Tensor,
        *,
        draws: Drawing,
        references: References | None = None,
        ensemble: tuple[VAE, ...] = (),
        quantized: QuantizedNetworks | None = None,
    ) -> None:
        self.model, self.stored, self.draws = model, stored, draws
        self.references = references if references is not None else References()
        self.images = model.prepare(stored)
        self._ensemble, self._quantized = ensemble, quantized
        self._sampled: dict[int, Sampled] = {}
        self._scores: dict[str, Tensor] = {}

    @property
    def dimensions(self) -> int:
        """Return the number of values in one image: D = C H W."""
        return self.model.dimensions

    @computed_once
    def encoded(self) -> Posterior:
        """Return q(z|x) as the encoder gives it: mean and log_var, N x L each, in its own precision."""
        if self._quantized is not None:
            return Posterior(*self._quantized.encode(self.stored))
        return self.model.encode(self.images)

    @computed_once
    def posterior(self) -> Posterior:
        """Return q(z|x) in float64: mean and log_var, N x L each."""
        return Posterior(self.encoded.mean.double(), self.encoded.log_var.double())

    @computed_once
    def kl(self) -> Tensor:
        """Return KL(q(z|x) || N(0, I)) in nats (N)."""
        return self.model.prior.kl(*self.posterior)

    def sampled(self, samples: int = 1) -> Sampled:
        """Draw codes from q(z|x) and compute their log-likelihoods.

        Args:
            samples: number of samples that a score takes of each input; `compute_scores` can replace it by another.

        Returns:
            The samples and the decoder's results for them.

        Raises:
            ValueError: if only scores of the encoder alone are available.
        """
        if samples not in self._sampled:
            decode = self.model.decode if self._quantized is None else self._quantized.decode
            if decode is None:
                raise ValueError("int8 is of the encoder alone: a score that decodes needs the decoder")
            codes, likelihoods, first = [], [], None
            for noise, added in zip(*self.draws(self.model, samples), strict=True):
                code = self.encoded.sample(noise)
                output, target = decode(code).double(), (self.images + added).double()
                likelihoods.append(self.model.likelihood.log_prob(output, target))
                codes.append(code.double())
                first = first or (output, target)
            assert first is not None  # there is one sample at least
            self._sampled[samples] = Sampled(torch.stack(codes), torch.stack(likelihoods), *first)
        return self._sampled[samples]

    @property
    def transformed(self) -> bool:
        """Return whether the encoder of transformations has been used."""
        return "transformed_divergences" in self.__dict__

    @property
    def decoded(self) -> bool:
        """Return whether the decoder has been used."""
        return bool(self._sampled)

    @property
    def log_likelihood(self) -> Tensor:
        """Return E log p(x|z) under q(z|x), by one sample, in nats (N)."""
        return self.sampled().log_likelihoods.mean(0)

    @property
    def codes(self) -> Tensor:
        """Return one code for each input, drawn from q(z|x) (N x L)."""
        return self.sampled().codes[0]

    @property
    def output(self) -> Tensor:
        """Return the decoder's output for `codes`, which gives the likelihood's parameters (N x C x H x W)."""
        return self.sampled().output

    @computed_once
    def bits_per_dim(self) -> Tensor:
        """Return the negative ELBO in bits per dimension (N)."""
        return (self.kl - self.log_likelihood) / (self.dimensions * math.log(2))

    @computed_once
    def members(self) -> tuple[Pass, ...]:
        """Return a pass of each model of the ensemble, this model's first."""
        return (self, *(Pass(model, self.stored, draws=self.draws) for model in self._ensemble))

    @computed_once
    def transformed_divergences(self) -> Tensor:
        """Return KL(q(z|t(x)) || prior_s) in nats for all transformations t and priors s (N x T x T, float64).

        It is the mean over the encoder's two views of each image (`negvae.model.shifted.ShiftEncoder.views`).
        """
        shifted = self.model.shifted
        if shifted is None:
            raise ValueError("the model was trained without transformations that have priors")
        views = [map(Tensor.double, shifted.posteriors(view)) for view in shifted.views(self.images)]
        return torch.stack([shifted.divergences(*view) for view in views]).mean(0)

    def scale(self, name: str) -> tuple[float, float, float, float]:
        """Return the 5% quantile, median, 95% quantile and mean of a score on training images.

        Args:
            name: name of the score.

        Returns:
            The four numbers, in this order.

        Raises:
            ValueError: if the score was not measured on training images.
        """
        if name not in self.references.scales:
            known = ", ".join(self.references.scales)
            advice = f"measured are {known}" if known else "run `negvae calibrate` first"
            raise ValueError(f"score {name} was not measured on training images: {advice}")
        low, median, high, mean = map(float, self.references.scales[name])
        return low, median, high, mean

    def fitted(self, name: str) -> Tensor:
        """Return the result of fitting a score to training images, on the model's device.

        Args:
            name: name of the score.

        Returns:
            The array that the score's fit produced, as a tensor.

        Raises:
            ValueError: if the score was not fitted.
        """
        if name not in self.references.fitted:
            raise ValueError(f"score {name} was not fitted to training images: run `negvae calibrate` first")
        return torch.from_numpy(np.asarray(self.references.fitted[name])).to(self.images.device)

    def score(self, name: str) -> Tensor:
        """Return another score of the same inputs (N, float64).

        Scores that are not measured against training images are rounded to the precision of the networks, as in a table
        of scores, so that a score computed from them can be computed again from the table.

        Args:
            name: name of the score.

        Returns:
            N values.

        Raises:
            ValueError: if no score has this name, or it cannot be computed here.
        """
        if name not in self._scores:
            self._scores[name] = self.evaluate(SCORES[name])
        return self._scores[name]

    def evaluate(self, score: Score) -> Tensor:
        """Compute a score by the function that its entry names, with the precision that `score` describes.

        Args:
            score: entry of the score.

        Returns:
            N values.

        Raises:
            ValueError: if the result is not one real number for each input.
        """
        values = score.load()(self)
        if not isinstance(values, Tensor) or values.shape != self.stored.shape[:1]:
            shape = tuple(values.shape) if isinstance(values, Tensor) else type(values).__name__
            raise ValueError(
                f"score {score.name} gave {shape} for {len(self.stored)} inputs: one number for each, (N,)"
            )
        if values.is_complex():
            raise ValueError(f"score {score.name} gave {values.dtype}: it must give real numbers")
        if "reference" in score.needs:
            return values.double()
        return values.to(self.images.dtype).double()
