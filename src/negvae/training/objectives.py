"""The paper's losses as pure functions, and one training step made of them.

Section 3 of the paper, all weights 1 and every term in nats per image, averaged over the batch:

    encoder:  -E log p(x|z) + KL(q(z|x) || N(0, I)) + KL(q(z|negative) || N(c 1, I))
    decoder:  -E log p(x|z) [+ KL(q(z|G(z')) || N(0, I)) where negatives are generated, z' ~ N(0, I)]

Both use the same z, drawn before either network moves; so one backward pass of their shared terms gives the
encoder's gradient and the decoder's at once, and "separate" updates cost no more than a joint one. Only the
generator's extra term, which the paper evaluates after the encoder's step, needs a pass of its own.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor
from torch.optim import Optimizer

from negvae.model import VAE, Posterior
from negvae.negatives import NegativeBatch


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
    batch = len(images)
    # One pass over both: faster, and batch norm sees what it will see when it scores a mixed stream.
    posterior = model.encode(images if negatives is None else torch.cat([images, negatives]))
    positive = Posterior(posterior.mean[:batch], posterior.log_var[:batch])
    reconstruction = -model.likelihood.log_prob(model.decode(positive.sample(noise)), target).mean()
    kl = model.prior.kl(*positive).mean()
    zero = torch.zeros_like(kl)
    if negatives is None:
        return Losses(reconstruction, kl, zero, zero)
    negative_kl = model.negative_prior.kl(posterior.mean[batch:], posterior.log_var[batch:]).mean()
    return Losses(reconstruction, kl, negative_kl, zero)


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
    encoder_optimizer: Optimizer,
    decoder_optimizer: Optimizer,
    images: Tensor,
    target: Tensor,
    negatives: NegativeBatch | None,
    noise: Tensor,
    negative_weight: float = 1.0,
) -> Losses:
    """One encoder step, then one decoder step, on the same batch (appendix A.2 of the paper).

    Args:
        model: the VAE, in training mode.
        encoder_optimizer: over the encoder's parameters.
        decoder_optimizer: over `VAE.generator_parameters`.
        images: positives, B x C x H x W, in [0, 1].
        target: see `shared_losses`.
        negatives: from a source; None for the baseline.
        noise: see `shared_losses`.
        negative_weight: factor on the negative KL.

    Returns:
        The parts before the step, detached and unweighted.
    """
    encoder_optimizer.zero_grad(set_to_none=True)
    decoder_optimizer.zero_grad(set_to_none=True)
    negative_images = None if negatives is None else negatives.images
    losses = shared_losses(model, images, target, negative_images, noise)
    (losses.reconstruction + losses.kl + negative_weight * losses.negative_kl).backward()  # type: ignore[no-untyped-call]
    encoder_optimizer.step()
    if negatives is not None and negatives.generated is not None:
        pull = generator_loss(model, negatives.generated, len(negatives.images))
        pull.backward()  # type: ignore[no-untyped-call]
        losses = losses._replace(generator_kl=pull)
    decoder_optimizer.step()
    return Losses(*(part.detach() for part in losses))
