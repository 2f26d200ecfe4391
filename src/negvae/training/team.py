"""The threads that train one model together, with one set of weights.

Each helper has a replica of the model whose layers compute with the leader's weights, so nothing is copied to it. It
leaves the gradients of its rows in a vector of its own; when all are there, the leader adds them up in the order of the
workers, weighted by their rows, and updates the weights.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from negvae.device import autocast
from negvae.model import VAE
from negvae.negatives import EVERY
from negvae.training.batchnorm import share_batch_norms, unshare_batch_norms
from negvae.training.helpers import Helpers
from negvae.training.objectives import Losses, TrainingBatch
from negvae.training.weights import Replica, Weights
from negvae.training.workers import Peers

if TYPE_CHECKING:
    from negvae.training.step import Learner


class _Step(NamedTuple):
    """What a helper is given for a step: the batch of all workers, or what it draws the batch from."""

    rows: Tensor
    batch: TrainingBatch | None
    randomness: Tensor | None


@dataclass
class _Member:
    """A helper's replica of the model, its gradients, and the losses of its last step."""

    model: VAE
    encoder: Replica
    decoder: Replica
    randomness: torch.Generator
    losses: Tensor


class Team:
    """The workers of a learner: its own thread, and the helpers.

    Args:
        learner: learner, whose thread is the leader.

    Attributes:
        workers: number of threads that share each batch, the leader among them.
    """

    def __init__(self, learner: Learner) -> None:
        self.learner, self.workers = learner, 1
        self._helpers = Helpers(lambda rank: partial(self._help, rank))
        self._members: list[_Member] = []
        self._unfinished = False
        for weights, name in ((learner.encoder, "encoder"), (learner.decoder, "decoder")):
            weights.reduce, weights.updated = partial(self._add_up, name), self._helpers.release

    def resize(self, workers: int) -> None:
        """Let another number of threads share each batch, from the next step on."""
        learner = self.learner
        learner.finish()
        self.workers = workers
        while len(self._members) < workers - 1:
            self._members.append(self._member(len(self._members) + 1))
        for member in self._members:  # what a network keeps besides its weights
            for own, leading in zip(member.model.buffers(), learner.model.buffers(), strict=True):
                own.copy_(leading)
        share_batch_norms(learner.model, lambda: self._peers(0), learner.batch)

    def step(self, rows: Tensor) -> Tensor:
        """Take a step on a batch, each worker on its share of it.

        Args:
            rows: rows of the data that make the batch.

        Returns:
            The leader's losses; `finish` completes them.
        """
        learner, own = self.learner, self._peers(0).rows
        self._unfinished = True
        if learner.source is not None and learner.source.adversarial:
            # Generated negatives belong to each worker's own graph: all draw the batch from the same random numbers.
            self._helpers.begin(_Step(rows, None, learner.randomness.get_state()), self.workers)
            batch = share_of(learner.draw(learner.model, learner.randomness, rows, own), own)
        else:
            whole = learner.draw(learner.model, learner.randomness, rows, EVERY)
            self._helpers.begin(_Step(rows, whole, None), self.workers)
            batch = share_of(whole, own, own)
        return learner.take(learner.model, learner.encoder, learner.decoder, batch)

    def finish(self, losses: Tensor) -> Tensor | None:
        """Wait until all workers have finished the last step.

        Args:
            losses: the leader's losses in that step.

        Returns:
            The losses of all rows; None if they were completed before.
        """
        if not self._unfinished:
            return None
        self._unfinished = False
        self._helpers.gather()
        total = losses * self._fraction(0)
        for rank, member in enumerate(self._members[: self.workers - 1], 1):
            total += member.losses * self._fraction(rank)
        return total

    def close(self) -> None:
        """End the helpers, also in the middle of a step."""
        self._helpers.close()

    def _member(self, rank: int) -> _Member:
        learner = self.learner
        model = copy.deepcopy(learner.model)
        unshare_batch_norms(model)
        share_batch_norms(model, lambda: self._peers(rank), learner.batch)
        arrive = partial(self._helpers.meet, rank)
        encoder = learner.encoder.replica(list(model.encoder.parameters()), arrive)
        decoder = learner.decoder.replica(model.generator_parameters(), arrive)
        losses = torch.zeros(len(Losses._fields), dtype=learner.trace.dtype, device="cpu")
        return _Member(model, encoder, decoder, torch.Generator(), losses)

    def _help(self, rank: int, step: _Step) -> None:
        """Do a helper's share of a step."""
        learner, member, own = self.learner, self._members[rank - 1], self._peers(rank).rows
        with autocast(learner.precision, learner.data.device):
            if step.batch is not None:
                batch = share_of(step.batch, own, own)
            else:
                assert step.randomness is not None
                member.randomness.set_state(step.randomness)
                batch = share_of(learner.draw(member.model, member.randomness, step.rows, own), own)
            member.losses = learner.take(member.model, member.encoder, member.decoder, batch)

    def _add_up(self, name: str, gradient: Tensor) -> None:
        """Add the gradients of all workers up, weighted by their rows, in the leader's."""
        self._helpers.gather()
        gradient *= self._fraction(0)
        for rank, member in enumerate(self._members[: self.workers - 1], 1):
            gradient.add_(getattr(member, name).gradient, alpha=self._fraction(rank))

    def _fraction(self, rank: int) -> float:
        return self._peers(rank).fraction(self.learner.batch)

    def _peers(self, rank: int) -> Peers:
        return self._helpers.peers(rank, self.workers)


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
