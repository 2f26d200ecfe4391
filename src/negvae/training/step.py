"""One model in training: its weights and optimizers, its random numbers, and how it takes a step.

Everything that a step reads or writes is on the training device, including the place in the epoch, so that on a GPU the
steps of an epoch follow one another without the host (`negvae.fast.graph`).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from negvae.config import RunConfig
from negvae.device import autocast, resolve_device, resolve_precision
from negvae.fast.memory import keep_freed_memory
from negvae.model import VAE, build_vae
from negvae.model.inputs import Features
from negvae.negatives import (
    EVERY,
    Mixture,
    NegativeBatch,
    NegativeSource,
    as_declared,
    check_negatives,
    check_values,
    unchanged,
)
from negvae.parts import OPTIMIZERS
from negvae.training.batchnorm import share_batch_norms, unshare_batch_norms
from negvae.training.helpers import taking_turns, threads_of_operators
from negvae.training.objectives import Losses, Trained, TrainingBatch, train_step
from negvae.training.schedule import rise_and_fall
from negvae.training.shifted import ShiftLearner
from negvae.training.team import ThreadTeam, share_of
from negvae.training.weights import Weights
from negvae.training.workers import Peers

RISING = 0.05
"""The share of a run's steps over which a learning rate that is not constant rises."""
DRAWING = nn.modules.dropout._DropoutNd | nn.RReLU | nn.FractionalMaxPool2d
"""Layers of torch's that draw random numbers in training, from the one generator of the program."""


class Learner:
    """A model in training on data that is on its device.

    Args:
        config: configuration of the run.
        data: inliers as they are stored (uint8 images or rows of features), N x C x H x W, on the training device.
        source: source of negatives; None for the baseline VAE.
        peers: connection to the workers of other processes that share each batch; None if there are none.

    Attributes:
        model: the VAE; outside of `exact` blocks its layers hold the weights that they compute with, which may be
            bfloat16.
        encoder: weights of the encoder with their optimizer.
        decoder: weights of p(x|z) with their optimizer.
        shifted: encoder of transformations in training, after the rest; None without transformations.
        randomness: random generator of the order of images, the noise and the negatives.
        steps: number of steps in an epoch.
        trace: losses of the epoch's steps so far, steps x parts, in nats per image.
    """

    def __init__(
        self, config: RunConfig, data: Tensor, source: NegativeSource | None, peers: Peers | None = None
    ) -> None:
        device = resolve_device(config.device)
        keep_freed_memory()
        self.config, self.source, self.data, self.peers = config, source, data, peers
        self.precision = resolve_precision(config.precision, device)
        channels, height, width = data.shape[1:]
        self.model = build_vae(config, (channels, height, width)).to(device).train()
        if isinstance(self.model.inputs, Features):
            self.model.inputs.measure(data)
        # Its seed differs from the weights': the same numbers must not appear as weights and as noise.
        self.randomness = torch.Generator(device).manual_seed(config.seed + 0x5EED)
        dtype = torch.bfloat16 if self.precision == "bfloat16" else torch.float32
        self.batch = min(config.batch_size, len(data))
        if isinstance(source, Mixture):
            source.check(self.batch)
        self._team: ThreadTeam | None = None
        self._operators = True
        self._values_checked = False
        self._draws = device.type == "cpu" and any(isinstance(layer, DRAWING) for layer in self.model.modules())
        if peers is not None:
            share_batch_norms(self.model, lambda: peers, self.batch)
        reduce, sigma = None if peers is None else self.average, list(self.model.likelihood.parameters())
        self.encoder = Weights(self.model.encoder, [], dtype, self._optimizer, reduce)
        self.decoder = Weights(self.model.decoder, sigma, dtype, self._optimizer, reduce)
        self.shifted = None if self.model.shifted is None else ShiftLearner(config, self.model, data, self.precision)
        self.steps = len(data) // self.batch
        self.trace = torch.zeros(self.steps, len(Losses._fields), device=device, dtype=self.encoder.master.dtype)
        self._order = torch.zeros(len(data), dtype=torch.long, device=device)
        self._place = torch.zeros(1, dtype=torch.long, device=device)
        self._before = torch.zeros(1, dtype=torch.long, device=device)  # steps of earlier epochs
        self._rates: Tensor | None = None
        if config.schedule != "constant":
            steps = config.epochs * self.steps
            factors = (rise_and_fall(step, steps, RISING) for step in range(steps))
            rates = [config.learning_rate * factor for factor in factors]
            self._rates = torch.tensor(rates, dtype=torch.float64, device=device)
        self._within = torch.arange(self.batch, device=device)

    @property
    def optimizers(self) -> dict[str, Optimizer]:
        """Return the optimizers by the name of their network."""
        return {
            "encoder": self.encoder.optimizer,
            "decoder": self.decoder.optimizer,
            **({} if self.shifted is None else {"shifted": self.shifted.weights.optimizer}),
        }

    @property
    def finite(self) -> bool:
        """Return whether all weights are finite numbers; waits for the device."""
        return all(bool(weights.master.isfinite().all()) for weights in self._weights())

    def begin_epoch(self, start: Tensor, step: int, epoch: int = 0) -> None:
        """Draw the order of the epoch's images and go to a place in it.

        Args:
            start: state of the random generator at the start of the epoch, from which the order is drawn again, so that
                a checkpoint need not store it.
            step: number of steps of the epoch already taken.
            epoch: number of epochs before it.
        """
        self.finish()
        now = self.randomness.get_state()
        self.randomness.set_state(start)
        # Written in place: a captured graph reads these tensors where they are.
        self._order.copy_(torch.randperm(len(self.data), generator=self.randomness, device=self.data.device))
        self._place.fill_(step)
        self._before.fill_(epoch * self.steps)
        if step:
            self.randomness.set_state(now)

    @property
    def workers(self) -> int | None:
        """Return the number of threads that share each batch; None where torch's operators use several themselves."""
        return None if self._team is None or self._operators else self._team.workers

    def share_among(self, workers: int) -> None:
        """Let this number of workers, of one thread each, share each batch from the next step on.

        Args:
            workers: number of workers, from 1 to the number of images in a batch; 0 for this thread alone, in whose
                operators torch uses several threads.
        """
        self._team = self._team or ThreadTeam(self)
        self._team.resize(max(workers, 1))
        self._operators = not workers

    def step(self) -> None:
        """Take the next step of the epoch and store its losses in `trace`."""
        self._complete()
        self._set_learning_rate()
        rows = self._order[self._place * self.batch + self._within]
        own = EVERY if self.peers is None else self.peers.rows
        with autocast(self.precision, self.data.device), self._numbers_of_layers():
            if self._team is None:
                batch = share_of(self.draw(self.model, self.randomness, rows, own), own)
                losses = self.take(self.model, self.encoder, self.decoder, batch)
            else:
                threads = torch.get_num_threads() if self._operators else 1
                with threads_of_operators(threads), taking_turns():
                    losses = self._team.step(rows, self._following())
        self.trace.index_copy_(0, self._place, losses.to(self.trace.dtype)[None])
        self._place.add_(1)

    @contextmanager
    def _numbers_of_layers(self) -> Iterator[None]:
        """Let layers that draw random numbers get those of the run's seed and step, and keep the program's generator.

        Each step has its own, so that a run goes on exactly from any of them.
        """
        if not self._draws:
            yield
            return
        with torch.random.fork_rng(devices=[]):
            step = int(self._before + self._place)
            # Far from those of other seeds: torch keeps 32 bits.
            torch.default_generator.manual_seed((self.config.seed * 0x9E3779B1 + step) % 2**32)
            yield

    def draw(self, model: VAE, randomness: torch.Generator, rows: Tensor, own: slice) -> TrainingBatch:
        """Draw a batch with all its random numbers.

        Args:
            model: model, or the replica of it, that may generate negatives.
            randomness: random generator, in the state of the learner's own.
            rows: rows of the data that make the batch.
            own: rows of the batch whose negatives are needed.

        Returns:
            The whole batch, but for the negatives.
        """
        positives = model.prepare(self.data[rows])
        negatives = None if self.source is None else self._sample(self.source, positives, model, randomness, own)
        target = model.likelihood.target(positives, randomness)
        noise = torch.randn(
            self.batch, self.config.latent_size, generator=randomness, device=self.data.device, dtype=torch.float32
        )
        return TrainingBatch(positives, target, negatives, noise)

    def _sample(
        self, source: NegativeSource, positives: Tensor, model: VAE, randomness: torch.Generator, own: slice
    ) -> NegativeBatch:
        """Return the negatives of a batch, which may come from a source of the user's own and are checked."""
        with unchanged(positives, f"the source of negatives {type(source).__name__}"):
            negatives = source.sample(positives, model, randomness, own)
        check_negatives(source, negatives, positives, own)
        if not self._values_checked:
            check_values(source, negatives)
            self._values_checked = True
        negatives = as_declared(source, negatives)
        if negatives.given is None:
            return negatives
        return negatives._replace(given=negatives.given.to(positives.dtype))  # NumPy makes float64

    def take(self, model: VAE, encoder: Trained, decoder: Trained, batch: TrainingBatch) -> Tensor:
        """Take a step on a batch, or on a worker's share of it.

        Args:
            model: model, or a replica of it.
            encoder: weights of its encoder.
            decoder: weights of its decoder.
            batch: tensors of the step.

        Returns:
            The parts of the loss, means over the rows, in the order of `Losses`.
        """
        images, target, negatives, noise = batch
        if getattr(model.likelihood, "encodes_noise", False):
            images, negatives = _noisy(images, target, negatives)
        losses = train_step(
            model, encoder, decoder, images, target, negatives, noise,
            negative_weight=self.config.negative_weight, update=self.config.update,
        )  # fmt: skip
        return torch.stack([part.to(self.trace.dtype) for part in losses])

    def finish(self) -> None:
        """Wait until all workers have finished the last step, and complete its losses.

        The random generator stands where the step left it then.
        """
        self._complete()
        if self._team is not None:
            self._team.settle()

    def _set_learning_rate(self) -> None:
        """Give the optimizers the learning rate of the next step, if it changes."""
        if self._rates is None:
            return
        rate = self._rates[self._before + self._place]
        for weights in (self.encoder, self.decoder):
            for group in weights.optimizer.param_groups:
                if isinstance(group["lr"], Tensor):  # read by a captured graph where it is
                    group["lr"].copy_(rate.squeeze())
                else:
                    group["lr"] = float(rate)

    def _following(self) -> Tensor | None:
        """Return the rows of the data that make the next step's batch, if the epoch has one."""
        following = self._place + 1
        return self._order[following * self.batch + self._within] if int(following) < self.steps else None

    def _complete(self) -> None:
        """Wait until all workers have finished the last step, and complete its losses."""
        if self._team is not None and (losses := self._team.finish(self.trace[self._place - 1][0])) is not None:
            self.trace.index_copy_(0, self._place - 1, losses[None])

    def average(self, means: Tensor) -> None:
        """Turn means over this process's rows into means over the batch, in place, if there are other processes."""
        if self.peers is not None:
            self.peers.average(means, self.batch)

    @contextmanager
    def exact(self) -> Iterator[None]:
        """Give the model its float32 weights and evaluation mode within the block, to save, load or score it."""
        self.finish()
        with ExitStack() as exact:
            for weights in self._weights():
                exact.enter_context(weights.exact())
            self.model.eval()
            try:
                yield
            finally:
                self.model.train()

    def close(self) -> None:
        """Leave the model in evaluation mode with float32 weights of its own, and end the other workers."""
        if self._team is not None:
            self._team.close()
        unshare_batch_norms(self.model)
        for weights in self._weights():
            weights.release()
        self.model.eval()

    def _weights(self) -> list[Weights]:
        return [self.encoder, self.decoder, *([] if self.shifted is None else [self.shifted.weights])]

    def _optimizer(self, parameters: list[torch.nn.Parameter]) -> Optimizer:
        build = OPTIMIZERS[self.config.optimizer].load()
        optimizer = build(parameters, self.config.learning_rate, capturable=self.data.device.type == "cuda")
        if self.data.device.type == "cuda" and self.config.schedule != "constant":
            for group in optimizer.param_groups:
                group["lr"] = torch.tensor(group["lr"], dtype=torch.float32, device=self.data.device)
        return optimizer


def _noisy(positives: Tensor, target: Tensor, negatives: NegativeBatch | None) -> tuple[Tensor, NegativeBatch | None]:
    """What the encoder sees where it sees the likelihood's noise: given negatives get that of the positives beside."""
    if negatives is None or negatives.given is None:
        return target, negatives
    added = (target - positives)[: len(negatives.given)]
    return target, negatives._replace(given=negatives.given + added)
