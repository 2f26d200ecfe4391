"""Observation models p(x|z): the distribution of pixels or features given a decoder's output.

Pixels are floats in [0, 1] (integer intensities divided by 255). A decoder's output has the shape of the
image; for pixels, every likelihood takes its mean through a sigmoid, as the authors of the paper do.
Log-probabilities are in nats, summed over an image's dimensions, and computed in float32 at least.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits

from negvae.messages import first_line
from negvae.parts import likelihood_entry

HALF_LOG_TWO_PI = 0.5 * math.log(2 * math.pi)
_METHODS = ("target", "log_prob", "excess", "mean", "sample")


def wide(values: Tensor) -> Tensor:
    """Return the values in float32, or in float64 if they already are."""
    return values if values.dtype == torch.float64 else values.float()


class Likelihood(Protocol):
    """An observation model: an `nn.Module` whose parameters are trained with the decoder.

    If it has an attribute `encodes_noise` that is true, the encoder sees the target in training, not the images.
    """

    def parameters(self, recurse: bool = True) -> Iterator[nn.Parameter]:
        """Yield the trained parameters, as `nn.Module` does."""

    def target(self, images: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Return the pixels whose density is computed, given images (N x C x H x W, in [0, 1]).

        They are the images, or the images plus noise that does not depend on them: scores add the same noise to all.
        """

    def log_prob(self, output: Tensor, target: Tensor) -> Tensor:
        """Compute log p(target|z) in nats per image (N), given the decoder's output (N x C x H x W)."""

    def excess(self, output: Tensor, target: Tensor) -> Tensor:
        """Compute how far log p(target|z) is below the largest value that any output could give, in nats (N)."""

    def mean(self, output: Tensor) -> Tensor:
        """Compute E[x|z] (N x C x H x W, in [0, 1])."""

    def sample(self, output: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Draw x given z once (N x C x H x W, in [0, 1])."""


class Bernoulli(nn.Module):
    """A Bernoulli likelihood of pixels in [0, 1], by cross-entropy; the output holds logits.

    As in the paper and its sources, gray pixels are taken as probabilities of "on", so this is a
    likelihood in the proper sense for binary pixels only.
    """

    def target(self, images: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Return the images unchanged."""
        return images

    def log_prob(self, output: Tensor, target: Tensor) -> Tensor:
        """Compute the sum over dimensions of x log p + (1 - x) log(1 - p), in nats (N)."""
        return -self._cross_entropy(wide(output), target).flatten(1).sum(1)

    def excess(self, output: Tensor, target: Tensor) -> Tensor:
        """Compute KL(pixels || output), both as probabilities of "on", summed over dimensions, in nats (N)."""
        pixels = wide(target)
        least = 1e-7  # 0 log 0 = 0
        entropy = -pixels * pixels.clamp_min(least).log() - (1 - pixels) * (1 - pixels).clamp_min(least).log()
        # Pixel by pixel: the difference of the two sums would lose the digits that they share.
        return (self._cross_entropy(wide(output), pixels) - entropy).flatten(1).sum(1)

    def _cross_entropy(self, logits: Tensor, target: Tensor) -> Tensor:
        """Compute -x log p - (1 - x) log(1 - p) for each pixel x, in nats."""
        return binary_cross_entropy_with_logits(logits, target, reduction="none")

    def mean(self, output: Tensor) -> Tensor:
        """Compute the probability of "on" for each pixel."""
        return wide(output).sigmoid()

    def sample(self, output: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Draw binary images."""
        return torch.bernoulli(self.mean(output), generator=generator)


class Gaussian(nn.Module):
    """An isotropic Gaussian around the decoder's mean, with one scalar sigma.

    Args:
        sigma: standard deviation in units of the [0, 1] pixel range; 1 in the paper's tables.
        learn_sigma: whether log(sigma) is trained with the decoder, starting from `sigma`.
        bounded: whether values lie in [0, 1], as pixels do, and the mean is the sigmoid of the output; if not, as for
            standardized features, the mean is the output itself.
    """

    def __init__(self, sigma: float = 1.0, learn_sigma: bool = False, bounded: bool = True) -> None:
        super().__init__()
        self.bounded = bounded
        log_sigma = torch.tensor(math.log(sigma), dtype=torch.float32, device="cpu")
        self.log_sigma: Tensor
        if learn_sigma:
            self.log_sigma = nn.Parameter(log_sigma)
        else:
            self.register_buffer("log_sigma", log_sigma)

    @property
    def sigma(self) -> Tensor:
        """Standard deviation (scalar)."""
        return self.log_sigma.exp()

    def target(self, images: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Return the images unchanged."""
        return images

    def log_prob(self, output: Tensor, target: Tensor) -> Tensor:
        """Compute the sum over dimensions of log N(x; mean, sigma^2), in nats (N)."""
        squares = self._squares(output, target)
        dimensions = target[0].numel()
        return -0.5 * squares * torch.exp(-2 * self.log_sigma) - dimensions * (self.log_sigma + HALF_LOG_TWO_PI)

    def _squares(self, output: Tensor, target: Tensor) -> Tensor:
        return (target - self.mean(output)).square().flatten(1).sum(1)

    def excess(self, output: Tensor, target: Tensor) -> Tensor:
        """Compute |x - mean|^2 / (2 sigma^2), in nats (N): the density is largest at the mean."""
        return 0.5 * self._squares(output, target) * torch.exp(-2 * self.log_sigma)

    def mean(self, output: Tensor) -> Tensor:
        """Return the sigmoid of the output, or the output itself if values are not bounded."""
        return wide(output).sigmoid() if self.bounded else wide(output)

    def sample(self, output: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Draw the mean plus noise, clipped to [0, 1] if values are bounded."""
        mean = self.mean(output)
        noise = torch.empty_like(mean).normal_(generator=generator)
        drawn = mean + self.sigma * noise
        return drawn.clamp(0, 1) if self.bounded else drawn


class QuantizedGaussian(Gaussian):
    """A Gaussian density on uniformly dequantized pixels.

    U[0, 1) is added to the integer intensities before the division by 255, so that a density on the
    continuum bounds the probability of the integers.
    """

    def target(self, images: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Return the images plus uniform noise of one intensity step."""
        noise = torch.empty_like(images).uniform_(generator=generator)
        return images + noise / 255

    def sample(self, output: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Draw from the Gaussian, rounded down to the integer intensities."""
        return (super().sample(output, generator) * 255).floor() / 255


BuildLikelihood = Callable[..., Likelihood]
"""A function that makes a likelihood from none or some of the keyword arguments sigma, learn_sigma and bounded."""


def build_likelihood(
    part: str | BuildLikelihood | Likelihood, sigma: float = 1.0, learn_sigma: bool = False, bounded: bool = True
) -> Likelihood:
    """Make a likelihood.

    Args:
        part: name in `negvae.parts.LIKELIHOODS`, a class or function that makes the likelihood, or a likelihood, which
            is copied.
        sigma: standard deviation in units of the [0, 1] pixel range, for likelihoods that take it.
        learn_sigma: whether log(sigma) is trained with the decoder, for likelihoods that take it.
        bounded: whether values lie in [0, 1], as pixels do, for likelihoods that take it.

    Returns:
        The likelihood.

    Raises:
        ValueError: if there is no likelihood of this name.
        TypeError: if the object that was made is not a likelihood.

    >>> build_likelihood("gaussian", sigma=0.5).mean(torch.zeros(1, 1, 1, 1))
    tensor([[[[0.5000]]]])
    """
    entry = likelihood_entry(part)
    if isinstance(part, nn.Module) and not hasattr(part, "log_prob"):
        raise _no_likelihood(entry.name, part)  # a module can be called, as the functions that make likelihoods can
    settings = {"sigma": sigma, "learn_sigma": learn_sigma, "bounded": bounded}
    made = entry.load()(**{name: settings[name] for name in entry.needs})
    if any(not hasattr(made, name) for name in _METHODS) or not isinstance(made, nn.Module):
        raise _no_likelihood(entry.name, made)
    return made


def _no_likelihood(name: str, made: object) -> TypeError:
    """Return the error that says what an object lacks to be a likelihood."""
    missing = [each for each in _METHODS if not hasattr(made, each)]
    lacks = f"has no {', '.join(missing)}" if missing else "is no torch.nn.Module"
    return TypeError(f"likelihood {name} {lacks}: see negvae.model.Likelihood")


def check_likelihood(name: str, likelihood: Likelihood, shape: tuple[int, int, int]) -> None:
    """Check on two images that a likelihood does what training and scores count on.

    Args:
        name: name of the likelihood for the message.
        likelihood: likelihood to check.
        shape: shape (C, H, W) of the images, or (D, 1, 1) for rows of D features.

    Raises:
        ValueError: if its target is not the images plus noise that does not depend on them; its log-probability or
            excess is not one finite number for each image, or its mean or sample has not the images' shape; if the
            gradient of the log-probability does not reach the decoder's output; if a tensor that takes a gradient is no
            parameter; or if a method fails.
    """
    images = torch.linspace(0, 1, 2 * math.prod(shape), dtype=torch.float32, device="cpu").reshape(2, *shape)
    output = (2 * images - 1).requires_grad_()
    what = f"likelihood {name}: "
    for key, value in vars(likelihood).items():
        if isinstance(value, Tensor) and value.requires_grad:
            raise ValueError(f"{what}torch does not find {key}, which takes a gradient: make it a torch.nn.Parameter")
    with torch.no_grad():
        target, noise = (
            _given(f"{what}target", images.shape, likelihood.target, each, torch.Generator().manual_seed(0))
            for each in (images, torch.zeros_like(images))
        )
        if not torch.allclose(target - images, noise, rtol=1e-3, atol=1e-5):
            raise ValueError(
                f"likelihood {name}: target must return the images, or the images plus noise that does not depend on"
                " them; let log_prob and excess change them in other ways"
            )
        _given(f"{what}mean", images.shape, likelihood.mean, output)
        _given(f"{what}excess", (2,), likelihood.excess, output, target)
        _given(f"{what}sample", images.shape, likelihood.sample, output, torch.Generator().manual_seed(0))
    with torch.enable_grad():
        found = _given(f"{what}log_prob", (2,), likelihood.log_prob, output, target)
    if not found.requires_grad or torch.autograd.grad(found.sum(), output, allow_unused=True)[0] is None:
        raise ValueError(
            f"{what}log_prob gives the decoder's output no gradient, so that nothing is trained: leave out detach() and"
            " torch.no_grad()"
        )


def _given(what: str, shape: Sequence[int], method: Callable[..., object], *arguments: object) -> Tensor:
    """Return what a method gives for two images, and refuse it if it is no finite tensor of this shape."""
    try:
        values = method(*arguments)
    except Exception as error:  # of anybody's code
        raise ValueError(f"{what} fails on 2 images: {first_line(error)}") from error
    given = tuple(values.shape) if isinstance(values, Tensor) else type(values).__name__
    if not isinstance(values, Tensor) or given != tuple(shape):
        expected = "one number for each, (2,)" if len(shape) == 1 else f"a tensor of shape {tuple(shape)}"
        raise ValueError(f"{what} gives {given} for 2 images, expected {expected}")
    if not values.is_floating_point() or values.device.type != "cpu":
        raise ValueError(
            f"{what} gives {values.dtype} on {values.device} for {torch.float32} on cpu: expected floating-point"
            " numbers on the same device"
        )
    if not values.isfinite().all():
        raise ValueError(f"{what} gives NaN or infinite numbers for 2 images")
    return values
