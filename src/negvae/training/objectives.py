"""The paper's losses as pure functions, and one training step made of them.

Section 3 of the paper, all weights 1 and every term in nats per image, averaged over the batch:

    encoder:  -E log p(x|z) + KL(q(z|x) || N(0, I)) + KL(q(z|negative) || N(c 1, I))
    decoder:  -E log p(x|z) [+ KL(q(z|G(z')) || N(0, I)) where negatives are generated, z' ~ N(0, I)]

Both use the same z, drawn before either network moves; so one backward pass of their shared terms gives the
encoder's gradient and the decoder's at once, and "separate" updates cost no more than a joint one. Only the
generator's extra term, which the paper evaluates after the encoder's step, needs a pass of its own (the
"alternating" update). Evaluated at the weights before that step instead (the "simultaneous" update), it shares the
encoder's pass over the generated images as well.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor

from negvae.fast.convolution import gradients_by_input_only
from negvae.model import VAE, Posterior
from negvae.negatives import NegativeBatch
from negvae.training.weights import Weights


class Losses(NamedTuple):
    """Loss parts in nats per image, each a scalar tensor averaged over the batch.

    Attributes:
        reconstruction: -log p(x|z), one posterior sample.
        kl: KL(q(z|x) || positive prior).
        negative_kl: KL(q(z|negative) || negative prior); 0 without negatives.
        generator_kl: KL(q(z|G(z)) || positive prior), by which the generator pulls its samples back, weighted by
            the generated share of the negatives; 0 where the generator is not trained against them.
    """

    reconstruction: Tensor
    kl: Tensor
    negative_kl: Tensor
    generator_kl: Tensor


def shared_losses(model: VAE, images: Tensor, target: Tensor, negatives: Tensor | None, noise: Tensor) -> Losses:
    """The terms whose one backward pass serves the encoder and the decoder.

    Args:
        model: the VAE.
        images: positives, B x C x H x W, in [0, 1].
        target: the pixels whose likelihood is asked for, same shape (`Likelihood.target`).
        negatives: M x C x H x W, without gradient; None for the baseline VAE.
        noise: standard normal, B x L; the posterior sample is mean + sigma * noise.

    Returns:
        The parts, with generator_kl zero.
    """
    # One pass over both: faster, and batch norm sees what it will see when it scores a mixed stream.
    posterior = model.encode(images if negatives is None else torch.cat([images, negatives]))
    return _losses(model, posterior, target, noise, 0)


def _losses(model: VAE, posterior: Posterior, target: Tensor, noise: Tensor, generated: int) -> Losses:
    """The parts from one posterior over positives, then negatives, of which the last `generated` pull back."""
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
    """KL(q(z|G(z)) || N(0, I)) in nats per negative (scalar), with gradients for the generator only.

    Args:
        model: the VAE, its encoder already stepped.
        generated: G(z), M x C x H x W, with the decoder's graph attached.
        negatives: how many negatives the batch has in all; the sum is divided by it.
    """
    with _frozen(model.encoder):
        return model.prior.kl(*model.encode(generated)).sum() / negatives


@contextmanager
def _frozen(network: torch.nn.Module) -> Iterator[None]:
    """Let gradients pass through a network without reaching it, its batch norms with their running statistics."""
    training = network.training
    network.eval()
    network.requires_grad_(False)
    try:
        yield
    finally:
        network.requires_grad_(True)
        network.train(training)


def train_step(
    model: VAE,
    encoder: Weights,
    decoder: Weights,
    images: Tensor,
    target: Tensor,
    negatives: NegativeBatch | None,
    noise: Tensor,
    *,
    negative_weight: float = 1.0,
    update: str = "alternating",
) -> Losses:
    """One step of the encoder and one of the decoder on the same batch (appendix A.2 of the paper).

    Args:
        model: the VAE, in training mode.
        encoder: the encoder's weights and their optimizer.
        decoder: those of p(x|z) (`VAE.generator_parameters`).
        images: positives, B x C x H x W, in [0, 1].
        target: see `shared_losses`.
        negatives: from a source; None for the baseline.
        noise: see `shared_losses`.
        negative_weight: factor on the negative KL.
        update: "alternating": the generator's pull is taken after the encoder's step, as in the paper;
            "simultaneous": before it, sharing the encoder's pass. They differ where negatives are generated.

    Returns:
        The parts at the weights at which each was evaluated, detached and unweighted.
    """
    generated = None if negatives is None else negatives.generated
    if negatives is not None and generated is not None and update == "simultaneous":
        losses = _simultaneous_gradients(model, images, target, negatives.given, generated, noise, negative_weight)
        encoder.step()
        decoder.step()
        return losses
    losses = shared_losses(model, images, target, None if negatives is None else negatives.images, noise)
    (losses.reconstruction + losses.kl + negative_weight * losses.negative_kl).backward()  # type: ignore[no-untyped-call]
    encoder.step()
    if negatives is not None and generated is not None:
        pull = generator_loss(model, generated, negatives.size)
        pull.backward()  # type: ignore[no-untyped-call]
        losses = losses._replace(generator_kl=pull)
    decoder.step()
    return Losses(*(part.detach() for part in losses))


def _simultaneous_gradients(
    model: VAE,
    images: Tensor,
    target: Tensor,
    given: Tensor | None,
    generated: Tensor,
    noise: Tensor,
    negative_weight: float,
) -> Losses:
    """Gradients of both networks at the same weights, from one forward pass of each over every image."""
    # The encoder's graph ends here, so that its loss does not reach the generator, nor the pull the encoder.
    image = generated.detach().requires_grad_()
    others = images if given is None else torch.cat([images, given])
    if any(isinstance(layer, torch.nn.BatchNorm2d) for layer in model.encoder):
        posterior = model.encode(torch.cat([others, image]))
    else:  # nothing couples the images of a batch, so the pull's backward pass need not touch the others
        apart = (model.encode(others), model.encode(image))
        posterior = Posterior(*(torch.cat(parts) for parts in zip(*apart, strict=True)))
    losses = _losses(model, posterior, target, noise, len(image))
    with gradients_by_input_only():
        (pull,) = torch.autograd.grad(losses.generator_kl, image, retain_graph=True)
    loss = losses.reconstruction + losses.kl + negative_weight * losses.negative_kl
    torch.autograd.backward([loss, generated], [None, pull])
    return Losses(*(part.detach() for part in losses))
