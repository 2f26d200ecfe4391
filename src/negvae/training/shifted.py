"""Training the encoder of transformations, after the rest of a model.

Its loss is that of section 3 of the paper with one prior for each of T transformations, in nats per copy of an image:

    weight KL(q(z|t(x)) || prior_t) - log p(t|z),   p(t|z) = softmax over s of -KL(q(z|t(x)) || prior_s)

The first term is the paper's. The second is the cross-entropy of the right transformation under the model's own odds.
Every step takes all copies of a few images, which are changed first as inliers may be: moved by up to `MOVED` of the
pixels that the encoder sees, and mirrored if the training images come mirrored (`negvae.training.symmetry`). Two
threads share the copies (`negvae.training.halves`).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cached_property

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, pad
from torch.nn.parameter import Parameter
from torch.optim import SGD, Optimizer

from negvae.config import RunConfig
from negvae.device import autocast
from negvae.model import VAE
from negvae.model.shifted import ShiftEncoder, trained_on
from negvae.model.vae import build_shift_encoder
from negvae.spacing import spread_rows
from negvae.training.halves import HALVES, Halves
from negvae.training.symmetry import COMPARED, come_mirrored
from negvae.training.weights import Weights

KL_WEIGHT = 0.02
"""Weight of the KL divergence beside the cross-entropy."""
LEARNING_RATE, RATE_A_STEP = 0.2, 1e-4
"""Highest learning rate, and what a training of few steps has of it for each: in a few hundred steps at the full rate
the encoder may learn nothing."""
MOMENTUM, WEIGHT_DECAY, WARM_UP = 0.9, 5e-4, 0.03
PASSES, MOST_EPOCHS, MOST_COPIES = 3, 50, 1_000_000
"""Images for each image that the rest of the model was trained on; at most so many for each image there is, and at most
so many copies in all."""
COPIES = 128
"""Number of copies in one step, about."""
LEAST_IMAGES = 16
REPORT_STEPS = 25
MOVED = 2
"""Largest move of an image in training, in pixels that the encoder sees: large images are averaged first."""


class ShiftLearner:
    """The encoder of transformations in training.

    Args:
        config: configuration of the run.
        model: model whose encoder of transformations is trained.
        data: stored images on the training device, uint8, N x C x H x W; only the rows of `trained_on` are used.
        precision: "bfloat16" or "float32".

    Attributes:
        weights: weights of the encoder with their optimizer.
        randomness: random generator of the images of each step and of their changes.
        steps: number of steps of the training.
        taken: number of steps taken so far.
    """

    def __init__(self, config: RunConfig, model: VAE, data: Tensor, precision: str) -> None:
        assert model.shifted is not None
        self.config, self.model, self.precision = config, model, precision
        self.shifted = model.shifted
        self.data = data
        dtype = torch.bfloat16 if precision == "bfloat16" else torch.float32
        self.weights = Weights(self.shifted.encoder, [], dtype, _optimizer)
        self.randomness = torch.Generator(data.device).manual_seed(config.seed + 0x5417)
        count = self.shifted.priors.count
        self.batch = HALVES * (max(COPIES // count, LEAST_IMAGES) // HALVES)
        images = min(min(PASSES * config.epochs, MOST_EPOCHS) * len(data), MOST_COPIES / count)
        self.steps = max(math.ceil(images / self.batch), 1)
        self.taken = 0
        self._own = torch.arange(count, device=data.device).repeat_interleave(self.batch // HALVES)
        self._images, self._divergence = torch.empty(0, device=data.device), [torch.zeros(())] * HALVES
        self.halves = Halves(self.shifted, self.weights, self._loss, data.device)

    @cached_property
    def rows(self) -> Tensor:
        """Rows of the data that are trained on; rows, since a copy of the images would double the memory they take."""
        return trained_on(self.data).nonzero().flatten()

    @cached_property
    def mirrored(self) -> bool:
        """Return whether half of the images are mirrored; not asked of learners that only measure a machine's speed."""
        return come_mirrored(self.data[spread_rows(self.rows, COMPARED)])

    def restart(self) -> None:
        """Go back to the start of the training, as for a run that has become longer."""
        with self.weights.exact():
            self.shifted.load_state_dict(build_shift_encoder(self.config, self.model.shape).state_dict())
        self.weights.optimizer.state.clear()
        self.randomness.manual_seed(self.config.seed + 0x5417)
        self.taken = 0

    def describe(self) -> str:
        """Describe in one line what the training images decided."""
        mirrored = "half of the images are mirrored in training, since mirror images look like training images"
        plain = "no image is mirrored in training, since mirror images do not look like training images"
        return f"transformations {self.config.transformations}: {mirrored if self.mirrored else plain}"

    def step(self) -> Tensor:
        """Take the next step; to be called while `halves` is entered.

        Returns:
            The mean KL divergence of a copy to its own prior, in nats, without gradient.
        """
        for group in self.weights.optimizer.param_groups:
            group["lr"] = self._learning_rate()
        rows = torch.randint(len(self.rows), (self.batch,), generator=self.randomness, device=self.data.device)
        images = moved(self.model.prepare(self.data[self.rows[rows]]), self.randomness, MOVED * self.shifted.pooled)
        self._images = mirrored_by_chance(images, self.randomness) if self.mirrored else images
        self.halves.step()
        self.taken += 1
        return torch.stack(self._divergence).mean()

    def _loss(self, shifted: nn.Module, half: int) -> Tensor:
        """Compute the loss of a half of the images at hand with a copy of the encoder."""
        assert isinstance(shifted, ShiftEncoder)
        with autocast(self.precision, self.data.device):
            mean, log_var = shifted.posteriors(self._images[half::HALVES])
        divergences = shifted.priors.kl(mean, log_var)
        own = divergences.gather(1, self._own.unsqueeze(1)).mean()
        self._divergence[half] = own.detach()
        return KL_WEIGHT * own + cross_entropy(-divergences, self._own)

    def _learning_rate(self) -> float:
        """Return the learning rate of the next step: a short rise, then half a cosine down to zero."""
        done = self.taken / self.steps
        rise = min(1.0, (self.taken + 1) / (WARM_UP * self.steps + 1))
        return highest_rate(self.steps) * rise * 0.5 * (1 + math.cos(math.pi * done))


def highest_rate(steps: int) -> float:
    """Return the highest learning rate of a training of so many steps.

    >>> highest_rate(500), highest_rate(6000)
    (0.05, 0.2)
    """
    return min(LEARNING_RATE, RATE_A_STEP * steps)


def moved(images: Tensor, generator: torch.Generator, most: int) -> Tensor:
    """Move each image by up to `most` pixels either way; what comes in is the reflected border.

    Args:
        images: images, N x C x H x W, higher and wider than `most`.
        generator: random generator on the images' device.
        most: largest move in pixels.

    Returns:
        Images of the same shape.
    """
    count, _, height, width = images.shape
    framed = pad(images, (most, most, most, most), mode="reflect")
    start = torch.randint(2 * most + 1, (2, count, 1), generator=generator, device=images.device)
    down = start[0] + torch.arange(height, device=images.device)
    right = start[1] + torch.arange(width, device=images.device)
    number = torch.arange(count, device=images.device)[:, None, None]
    # Indices on axes 0, 2 and 3 put the channels last.
    return framed[number, :, down[:, :, None], right[:, None, :]].permute(0, 3, 1, 2)


def mirrored_by_chance(images: Tensor, generator: torch.Generator) -> Tensor:
    """Exchange left and right in each image with probability 1/2 (N x C x H x W)."""
    chosen = torch.rand(len(images), 1, 1, 1, generator=generator, device=images.device, dtype=torch.float32) < 0.5
    return torch.where(chosen, images.flip(3), images)


def train_shifts(learner: ShiftLearner, *, reason: Callable[[], str], report: Callable[[float], None]) -> str:
    """Take the steps that are left.

    Args:
        learner: encoder of transformations in training.
        reason: called after every step; returns the reason to stop, or "" to go on.
        report: called every `REPORT_STEPS` steps with the mean KL divergence since the last call.

    Returns:
        The reason why training stopped; "" if all steps are taken.

    Raises:
        ValueError: if the loss is not finite.
    """
    losses, stopped = list[Tensor](), ""
    with learner.halves:
        while not stopped and learner.taken < learner.steps:
            losses.append(learner.step())
            stopped = reason()
            if len(losses) < REPORT_STEPS and not stopped and learner.taken < learner.steps:
                continue
            mean = float(torch.stack(losses).mean())
            if not math.isfinite(mean):
                raise ValueError(f"training the encoder of transformations diverged at step {learner.taken}")
            report(mean)
            losses.clear()
    return stopped


def _optimizer(parameters: list[Parameter]) -> Optimizer:
    return SGD(parameters, lr=LEARNING_RATE, momentum=MOMENTUM, weight_decay=WEIGHT_DECAY, nesterov=True, fused=True)
