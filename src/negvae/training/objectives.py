"""The paper's losses as pure functions, and the two ways of taking a step on them.

Section 3 of the paper, all weights 1 and every term in nats per image, averaged over the batch:

    encoder:  -E log p(x|z) + KL(q(z|x) || N(0, I)) + KL(q(z|negative) || N(c 1, I))
    decoder:  -E log p(x|z) [+ KL(q(z|G(z')) || N(0, I)) if negatives are generated, z' ~ N(0, I)]

Both use the same z, drawn before either network is updated, and KL(q(z|x) || N(0, I)) has no gradient for the decoder;
so one backward pass of the encoder's loss gives the decoder its gradient of the reconstruction as well. Only the term
in brackets, the generator's loss, belongs to the decoder alone:

    alternating   The generator's loss is evaluated after the encoder's step, as in the paper, with a forward and a
                  backward pass of its own.
    simultaneous  The generator's loss is evaluated at the same weights as the rest. It shares the encoder's forward
                  pass, unless batch norm makes that another function: for this loss it uses its running statistics in
                  both updates.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor

from negvae.fast.convolution import gradients_by_input_only
from negvae.model import VAE, Posterior
from negvae.negatives import NegativeBatch
from negvae.parts import UPDATES
from negvae.training.weights import Replica, Weights


class Losses(NamedTuple):
    """The parts of the loss, each a scalar tensor in nats per image, averaged over the batch.

    Attributes:
        reconstruction: -log p(x|z) for one sample z of the posterior.
        kl: KL(q(z|x) || positive prior).
        negative_kl: KL(q(z|negative) || negative prior); 0 without negatives.
        generator_kl: KL(q(z|G(z)) || positive prior), the generator's loss, weighted by the generated share of the
            negatives; 0 if the generator is not trained against the negatives.
    """

    reconstruction: Tensor
    kl: Tensor
    negative_kl: Tensor
    generator_kl: Tensor


class TrainingBatch(NamedTuple):
    """The tensors of one training step.

    Attributes:
        images: positives, B x C x H x W, in [0, 1].
        target: pixels whose likelihood is evaluated, B x C x H x W (`Likelihood.target`).
        negatives: batch of negatives from a source; None for the baseline VAE.
        noise: standard normal noise, B x L; the posterior sample is mean + sigma * noise.
    """

    images: Tensor
    target: Tensor
    negatives: NegativeBatch | None
    noise: Tensor


Trained = Weights | Replica
"""What has a step to take when the gradients of a network are there."""

TakeStep = Callable[[VAE, Trained, Trained, TrainingBatch, float], Losses]
"""A function that takes a step of both networks on a batch, given the weight of the negatives' loss."""


def encoder_loss(losses: Losses, negative_weight: float = 1.0) -> Tensor:
    """Return the encoder's loss (section 3 of the paper), a scalar in nats per image.

    It is -E log p(x|z) + KL(q(z|x) || N(0, I)) + weight * KL(q(z|negative) || N(c 1, I)).

    Args:
        losses: parts of the loss.
        negative_weight: weight of the negatives' term; 1 in the paper.

    Returns:
        The loss, with the gradients of its parts.

    >>> losses = Losses(*torch.tensor([100.0, 12.0, 3.0, 0.0]))
    >>> encoder_loss(losses), encoder_loss(losses, negative_weight=2.0)
    (tensor(115.), tensor(118.))
    """
    return losses.reconstruction + losses.kl + negative_weight * losses.negative_kl


def shared_losses(model: VAE, images: Tensor, target: Tensor, negatives: Tensor | None, noise: Tensor) -> Losses:
    """Evaluate the terms whose one backward pass serves the encoder and the decoder.

    Args:
        model: the VAE.
        images: positives, B x C x H x W, in [0, 1].
        target: pixels whose likelihood is evaluated, B x C x H x W (`Likelihood.target`).
        negatives: negatives, M x C x H x W, without gradient; None for the baseline VAE.
        noise: standard normal noise, B x L; the posterior sample is mean + sigma * noise.

    Returns:
        The parts of the loss, with generator_kl zero.
    """
    # One pass over both: faster, and batch norm sees what it will see when it scores a mixed stream.
    posterior = model.encode(images if negatives is None else torch.cat([images, negatives]))
    return _losses(model, posterior, target, noise, 0)


def _losses(model: VAE, posterior: Posterior, target: Tensor, noise: Tensor, generated: int) -> Losses:
    """Return the loss parts from one posterior over positives, then negatives, of which the last are generated."""
    batch = len(target)
    positive = Posterior(posterior.mean[:batch], posterior.log_var[:batch])
    negative = Posterior(posterior.mean[batch:], posterior.log_var[batch:])
    reconstruction = -model.likelihood.log_prob(model.decode(positive.sample(noise)), target).mean()
    kl = model.prior.kl(*positive).mean()
    negative_kl = pull = torch.zeros_like(kl)
    if len(negative.mean):
        negative_kl = model.negative_prior.kl(*negative).mean()
    if generated:
        pull = model.prior.kl(negative.mean[-generated:], negative.log_var[-generated:]).sum() / len(negative.mean)
    return Losses(reconstruction, kl, negative_kl, pull)


def generator_loss(model: VAE, generated: Tensor, negatives: int) -> Tensor:
    """Return KL(q(z|G(z)) || N(0, I)) in nats per negative (a scalar), with gradients for the generator only.

    Args:
        model: the VAE, after the encoder's step.
        generated: generated images G(z), M x C x H x W, with the decoder's graph attached.
        negatives: number of all negatives in the batch, by which the sum is divided.

    Returns:
        The generator's loss.
    """
    with _frozen(model.encoder):
        return model.prior.kl(*model.encode(generated)).sum() / negatives


@contextmanager
def _frozen(network: torch.nn.Module) -> Iterator[None]:
    """Let gradients pass through a network without changing its own; its batch norms use their running statistics."""
    training = [(module, module.training) for module in network.modules()]
    trained = [(parameter, parameter.requires_grad) for parameter in network.parameters()]
    network.eval().requires_grad_(False)
    try:
        yield
    finally:
        for module, mode in training:
            module.training = mode
        for parameter, wanted in trained:
            parameter.requires_grad_(wanted)


def train_step(
    model: VAE,
    encoder: Trained,
    decoder: Trained,
    images: Tensor,
    target: Tensor,
    negatives: NegativeBatch | None,
    noise: Tensor,
    *,
    negative_weight: float = 1.0,
    update: str = "alternating",
) -> Losses:
    """Take one step of the encoder and one of the decoder on the same batch (appendix A.2 of the paper).

    Args:
        model: the VAE, in training mode.
        encoder: weights of the encoder with their optimizer.
        decoder: weights of p(x|z) with their optimizer (`VAE.generator_parameters`).
        images: positives, B x C x H x W, in [0, 1].
        target: pixels whose likelihood is evaluated, B x C x H x W (`Likelihood.target`).
        negatives: batch of negatives from a source; None for the baseline VAE.
        noise: standard normal noise, B x L; the posterior sample is mean + sigma * noise.
        negative_weight: factor of the negatives' KL divergence in the encoder's loss.
        update: name in `negvae.parts.UPDATES`; the updates differ if negatives are generated.

    Returns:
        The loss parts, detached and unweighted, each at the weights at which it was evaluated.

    Raises:
        ValueError: if there is no such update.
    """
    take = UPDATES[update].load()
    losses = take(model, encoder, decoder, TrainingBatch(images, target, negatives, noise), negative_weight)
    return Losses(*(part.detach() for part in losses))


def alternating(model: VAE, encoder: Trained, decoder: Trained, batch: TrainingBatch, negative_weight: float) -> Losses:
    """Step the encoder, then train the generator against the updated encoder, as in the paper."""
    images, target, negatives, noise = batch
    losses = shared_losses(model, images, target, None if negatives is None else negatives.images, noise)
    encoder_loss(losses, negative_weight).backward()  # type: ignore[no-untyped-call]
    encoder.step()
    if negatives is not None and negatives.generated is not None:
        pull = generator_loss(model, negatives.generated, negatives.size)
        pull.backward()  # type: ignore[no-untyped-call]
        losses = losses._replace(generator_kl=pull)
    decoder.step()
    return losses


def simultaneous(
    model: VAE, encoder: Trained, decoder: Trained, batch: TrainingBatch, negative_weight: float
) -> Losses:
    """Step both networks by gradients at the same weights, from one forward pass of each over every image."""
    images, target, negatives, noise = batch
    if negatives is None or negatives.generated is None:  # without a pull there is nothing in which updates differ
        return alternating(model, encoder, decoder, batch, negative_weight)
    if model.couples_images:
        losses = shared_losses(model, images, target, negatives.images, noise)
        encoder_loss(losses, negative_weight).backward()  # type: ignore[no-untyped-call]
        pull = generator_loss(model, negatives.generated, negatives.size)
        pull.backward()  # type: ignore[no-untyped-call]
        encoder.step()
        decoder.step()
        return losses._replace(generator_kl=pull)
    # The encoder's graph ends here, so that its loss does not reach the generator, nor the pull the encoder.
    generated = negatives.generated.detach().requires_grad_()
    others = images if negatives.given is None else torch.cat([images, negatives.given])
    # Two passes, which is the same and makes the pull's backward pass a short one.
    apart = model.encode(others), model.encode(generated)
    posterior = Posterior(*(torch.cat(parts) for parts in zip(*apart, strict=True)))
    losses = _losses(model, posterior, target, noise, len(generated))
    with gradients_by_input_only():
        (pull_gradient,) = torch.autograd.grad(losses.generator_kl, generated, retain_graph=True)
    torch.autograd.backward([encoder_loss(losses, negative_weight), negatives.generated], [None, pull_gradient])
    encoder.step()
    decoder.step()
    return losses
