"""The threads that train one model together, with one set of weights.

A batch is cut into parts, each with a replica of the model whose layers compute with the leader's weights, so nothing
is copied. The gradients of a part's rows are left in a vector of its own; when all are there, the leader adds them up
in the order of the parts, weighted by their rows, and updates the weights.

Where nothing passes between the parts before that, there may be more of them than workers, and whoever is free takes
the next: a worker that shares its core with another program is helped and not waited for. Otherwise (batch norm, and
negatives that the decoder is trained against) each worker has one part, and they meet on the way. Which parts there are
depends on the batch and the number of workers alone, and so do the bits of the result.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from negvae.device import autocast
from negvae.model import VAE
from negvae.negatives import EVERY, reads_model
from negvae.training.batchnorm import has_batch_norm, share_batch_norms, unshare_batch_norms
from negvae.training.helpers import Helpers
from negvae.training.objectives import Losses, TrainingBatch
from negvae.training.weights import Replica
from negvae.training.workers import Peers

if TYPE_CHECKING:
    from negvae.training.step import Learner

LEAST_ROWS = 128
"""Rows of a part below which a batch is not cut further than the number of workers asks for: each costs some calls."""


class _Step(NamedTuple):
    """What a helper is given for a step: the parts still to take, the batch, or what it and the next are drawn from."""

    parts: Iterator[int]
    rows: Tensor
    following: Tensor | None
    batch: TrainingBatch | None
    randomness: Tensor | None


@dataclass
class _Part:
    """A replica of the model for a part of each batch, its gradients, and the losses of its last step."""

    model: VAE
    encoder: Replica
    decoder: Replica
    randomness: torch.Generator
    losses: Tensor


class ThreadTeam:
    """The workers of a learner: its own thread, which leads, and the helpers.

    Args:
        learner: learner, whose weights are updated.

    Attributes:
        workers: number of threads that share each batch, the leader among them.
    """

    def __init__(self, learner: Learner) -> None:
        self.learner, self.workers = learner, 1
        self._adversarial = _is_adversarial(learner)
        self._meets = workers_meet(learner)
        self._draws_ahead = not _reads_weights(learner)
        self._helpers = Helpers(lambda rank: partial(self._help, rank))
        self._parts: list[_Part] = []
        self._unfinished = False
        self._moved = False  # whether the parts' buffers have moved away from the leader's
        self._ahead: tuple[TrainingBatch, Tensor] | None = None
        share_batch_norms(learner.model, lambda: self._peers(0), learner.batch)
        if self._meets:
            for weights, name in ((learner.encoder, "encoder"), (learner.decoder, "decoder")):
                weights.reduce, weights.updated = partial(self._add_up, name), self._helpers.release

    @property
    def parts(self) -> int:
        """Return the number of parts of a batch."""
        if self._meets or self.workers == 1:
            return self.workers
        return self.workers * (2 if self.learner.batch >= 2 * LEAST_ROWS * self.workers else 1)

    def resize(self, workers: int) -> None:
        """Let another number of threads share each batch, from the next step on."""
        self.learner.finish()
        self._helpers.rest()
        self.workers = workers
        while len(self._parts) < self.parts:
            self._parts.append(self._part(len(self._parts)))
        for part in self._parts:  # what a network keeps besides its weights
            for own, leading in zip(part.model.buffers(), self.learner.model.buffers(), strict=True):
                own.copy_(leading)

    def step(self, rows: Tensor, following: Tensor | None) -> Tensor:
        """Take a step on a batch.

        Args:
            rows: rows of the data that make the batch.
            following: rows of the next batch, which a free worker draws ahead; None if there is none yet.

        Returns:
            The parts of the loss; `finish` completes them.
        """
        learner = self.learner
        if self.workers == 1:
            batch = learner.draw(learner.model, learner.randomness, rows, EVERY)
            return learner.take(learner.model, learner.encoder, learner.decoder, batch)
        parts = itertools.count()
        if self._adversarial:
            # Generated negatives belong to each worker's own graph: all draw the batch from the same random numbers.
            self._begin(_Step(parts, rows, None, None, learner.randomness.get_state()))
            own = self._peers(0).rows
            batch = share_of(learner.draw(learner.model, learner.randomness, rows, own), own)
            return learner.take(learner.model, learner.encoder, learner.decoder, batch)
        if self._ahead is None:
            whole = learner.draw(learner.model, learner.randomness, rows, EVERY)
        else:
            whole, self._ahead = self._ahead[0], None
        step = _Step(parts, rows, following if self._draws_ahead else None, whole, None)
        self._begin(step)
        if self._meets:
            own = self._peers(0).rows
            return learner.take(learner.model, learner.encoder, learner.decoder, share_of(whole, own, own))
        self._take_parts(step)
        self._helpers.gather()
        self._unfinished, self._moved = False, True
        for weights, name in ((learner.encoder, "encoder"), (learner.decoder, "decoder")):
            assert weights.master.grad is not None
            weights.master.grad.zero_()
            self._add(name, weights.master.grad, range(self.parts))
            weights.update()
        total = torch.zeros_like(self._parts[0].losses)
        for number in range(self.parts):
            total += self._parts[number].losses * self._fraction(number)
        return total

    def finish(self, losses: Tensor) -> Tensor | None:
        """Wait until all workers have finished the last step.

        Args:
            losses: what `step` returned.

        Returns:
            The losses of all rows; None if these are they.
        """
        if not self._unfinished:
            return None
        self._unfinished = False
        self._helpers.gather()
        total = losses * self._fraction(0)
        for number in range(1, self.workers):
            total += self._parts[number].losses * self._fraction(number)
        return total

    def settle(self) -> None:
        """Leave the learner as the last step of one worker would.

        The random generator goes back to where it was before a batch was drawn ahead. What layers keep besides weights,
        such as the vectors of spectral norm, is taken from the first part, as no step changes the leader's own.
        """
        if self._moved:
            for leading, own in zip(self.learner.model.buffers(), self._parts[0].model.buffers(), strict=True):
                leading.copy_(own)
            self._moved = False
        if self._ahead is not None:
            self.learner.randomness.set_state(self._ahead[1])
            self._ahead = None

    def close(self) -> None:
        """End the helpers, also in the middle of a step."""
        self._helpers.close()

    def _begin(self, step: _Step) -> None:
        self._unfinished = True
        self._helpers.begin(step, self.workers)

    def _part(self, number: int) -> _Part:
        learner = self.learner
        model = copy.deepcopy(learner.model)
        unshare_batch_norms(model)
        share_batch_norms(model, lambda: self._peers(number), learner.batch)
        arrive = partial(self._helpers.meet, number) if self._meets else lambda: None
        encoder = learner.encoder.replica(list(model.encoder.parameters()), arrive)
        decoder = learner.decoder.replica(model.generator_parameters(), arrive)
        losses = torch.zeros(len(Losses._fields), dtype=learner.trace.dtype, device="cpu")
        return _Part(model, encoder, decoder, torch.Generator(), losses)

    def _help(self, rank: int, step: _Step) -> None:
        """Do a helper's share of a step."""
        learner, part, own = self.learner, self._parts[rank], self._peers(rank).rows
        with autocast(learner.precision, learner.data.device):
            if not self._meets:
                self._take_parts(step)
                return
            if step.batch is not None:
                batch = share_of(step.batch, own, own)
            else:
                assert step.randomness is not None
                part.randomness.set_state(step.randomness)
                batch = share_of(learner.draw(part.model, part.randomness, step.rows, own), own)
            part.losses = learner.take(part.model, part.encoder, part.decoder, batch)

    def _take_parts(self, step: _Step) -> None:
        """Take parts of the batch, which wait for nobody, until none is left; then the next batch is drawn."""
        assert step.batch is not None
        learner = self.learner
        while (number := next(step.parts)) <= self.parts:
            if number == self.parts:
                if step.following is not None:
                    before = learner.randomness.get_state()
                    batch = learner.draw(learner.model, learner.randomness, step.following, EVERY)
                    self._ahead = batch, before
                return
            part, own = self._parts[number], Peers(number, self.parts, _alone).rows
            batch = share_of(step.batch, own, own)
            part.losses = learner.take(part.model, part.encoder, part.decoder, batch)

    def _add_up(self, name: str, gradient: Tensor) -> None:
        """Add the gradients of the helpers up in the leader's, each weighted by its rows; wait for them first."""
        if self.workers > 1:
            self._helpers.gather()
            gradient *= self._fraction(0)
            self._add(name, gradient, range(1, self.workers))

    def _add(self, name: str, gradient: Tensor, numbers: range) -> None:
        for number in numbers:
            gradient.add_(getattr(self._parts[number], name).gradient, alpha=self._fraction(number))

    def _fraction(self, number: int) -> float:
        return Peers(number, self.parts, _alone).fraction(self.learner.batch)

    def _peers(self, rank: int) -> Peers:
        return Peers(0, 1, _alone) if self.workers == 1 else self._helpers.peers(rank, self.workers)


def workers_meet(learner: Learner) -> bool:
    """Return whether the workers of a learner wait for one another within a step."""
    return _is_adversarial(learner) or has_batch_norm(learner.model)


def _is_adversarial(learner: Learner) -> bool:
    return learner.source is not None and learner.source.adversarial


def _reads_weights(learner: Learner) -> bool:
    """Return whether drawing a batch may read what a step changes: the networks, or parameters of the likelihood."""
    source = learner.source
    return (source is not None and reads_model(source)) or any(True for _ in learner.model.likelihood.parameters())


def _alone(tensor: Tensor) -> None:
    """Add nothing up, because no other worker has anything."""


def share_of(batch: TrainingBatch, own: slice, negatives: slice = EVERY) -> TrainingBatch:
    """Return a worker's share of a batch.

    Args:
        batch: tensors of the whole batch.
        own: the worker's rows.
        negatives: its rows of the given negatives; all, if they are its own already.

    Returns:
        The share.
    """
    given = batch.negatives
    if given is not None and given.given is not None:
        given = given._replace(given=given.given[negatives])
    return TrainingBatch(batch.images[own], batch.target[own], given, batch.noise[own])
