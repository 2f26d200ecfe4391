"""The step of training; its losses and gradients against torch.distributions."""

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch.distributions import Independent, Normal, kl_divergence

from negvae.fast.convolution import gradients_by_input_only, run
from negvae.model import build_vae
from negvae.negatives import build_source
from negvae.parts import UPDATES
from negvae.training.objectives import generator_loss, shared_losses, train_step
from negvae.training.weights import Weights
from tests.conftest import SHAPES, blobs, needs_bfloat16, small_run

SOURCES = [
    "none",
    "auxiliary:other",
    "added-noise",
    "uniform-noise",
    "generated",
    "augmented",
    "augmented+generated",
]


class Recorder(Weights):
    """Weights that keep the gradients they were given and move by plain gradient descent, or not at all."""

    def __init__(self, network, extra=(), rate=0.0, dtype=torch.float32):
        super().__init__(network, list(extra), dtype, lambda p: torch.optim.SGD(p, lr=rate))
        self.seen = None

    def step(self):
        self.seen = [None if p.grad is None else p.grad.clone() for p in self.parameters]
        super().step()


def take_step(
    network, likelihood, learn_sigma, source_text, plain=False, dtype=torch.float32, initialization=None, exact=False,
    **options,
):  # fmt: skip
    shape = SHAPES[network]
    run = {"likelihood": likelihood, "learn_sigma": learn_sigma}
    if initialization:
        run["initialization"] = initialization
    model = build_vae(small_run(network, **run), shape).train()
    kind = torch.float64 if exact else torch.float32
    model.to(kind)
    encoder = Recorder(model.encoder, dtype=dtype)
    decoder = Recorder(model.decoder, model.likelihood.parameters(), dtype=dtype)
    model.plain = plain
    source = build_source(source_text, lambda name: blobs(9, shape, seed=5))
    randomness = torch.Generator().manual_seed(0)
    images = blobs(6, shape).to(kind) / 255
    negatives = None if source is None else source.sample(images, model, randomness)
    target = model.likelihood.target(images, randomness)
    noise = torch.randn(6, model.latent_size, generator=randomness, dtype=kind)
    losses = train_step(model, encoder, decoder, images, target, negatives, noise, **options)
    return model, losses, encoder, decoder, (images, target, negatives, noise)


@pytest.mark.parametrize("network", ["gray", "pyramid", "color"])
@pytest.mark.parametrize("source", ["none", "uniform-noise", "generated"])
def test_gradients_equal_two_separate_passes(network, source):
    """The shared backward pass gives what the paper's two updates give, each computed on its own: in float64."""
    model, _, encoder, decoder, (images, target, negatives, noise) = take_step(
        network, "bernoulli", False, source, plain=True, exact=True
    )
    count, shift = len(images), model.negative_prior.shift
    zeros = torch.zeros(model.latent_size, dtype=torch.float64)
    prior, shifted = (Independent(Normal(zeros + c, torch.ones_like(zeros)), 1) for c in (0.0, shift))

    def kl(posterior, to):
        mean, log_var = posterior
        return kl_divergence(Independent(Normal(mean, (0.5 * log_var).exp()), 1), to)

    def reconstruction(z):
        distribution = torch.distributions.Bernoulli(logits=model.decode(z), validate_args=False)
        return -distribution.log_prob(target).sum((1, 2, 3)).mean()

    # Positives and negatives share one pass, so that batch norm sees the mixture.
    mean, log_var = model.encode(images if negatives is None else torch.cat([images, negatives.images]))
    z = mean[:count] + (0.5 * log_var[:count]).exp() * noise
    encoder_loss = reconstruction(z) + kl((mean[:count], log_var[:count]), prior).mean()
    decoder_loss = reconstruction(z.detach())
    if negatives is not None:
        encoder_loss = encoder_loss + kl((mean[count:], log_var[count:]), shifted).mean()
    for loss, optimizer in ((encoder_loss, encoder), (decoder_loss, decoder)):
        pull = 0
        if source == "generated" and optimizer is decoder:
            codes = model.prior.sample(6, torch.Generator().manual_seed(0)).double()
            made = model.generate(codes)
            if network == "color":  # batch norms of the encoder use their running statistics for the pull
                continue
            pull = kl(model.encode(made), prior).mean()
        expected = torch.autograd.grad(loss + pull, optimizer.parameters)
        for ours, theirs in zip(optimizer.seen, expected, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-8, atol=1e-10 * theirs.abs().max().item())


def relative_error(ours, theirs):
    """Norm of the difference over the norm, over all of a network's gradients together."""
    ours, theirs = (torch.cat([g.float().flatten() for g in side]) for side in (ours, theirs))
    return ((ours - theirs).norm() / theirs.norm()).item()


@pytest.mark.parametrize("update", ["alternating", "simultaneous"])
@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("network", ["gray", "gray-paper", "color"])
def test_the_fast_step_is_the_plain_float32_step(network, source, update):
    """Speed changes no result: losses to 1e-4, gradients to 1e-3 of their norm.

    That is the rounding of float32 in other orders, and now and then a unit so near zero that its ReLU falls the
    other way.
    """
    _, losses, encoder, decoder, _ = take_step(network, "bernoulli", False, source, update=update)
    _, plain, plain_encoder, plain_decoder, _ = take_step(
        network, "bernoulli", False, source, update=update, plain=True
    )
    for ours, theirs in zip(losses, plain, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
    assert relative_error(encoder.seen, plain_encoder.seen) < 1e-3
    assert relative_error(decoder.seen, plain_decoder.seen) < 1e-3


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("network", ["gray", "color"])
@needs_bfloat16
def test_the_fast_bfloat16_step_is_near_the_plain_float32_step(network, source):
    """Weights and activations in bfloat16 (8 bits): losses to 3%, gradients to 12% of their norm at a random start."""
    with torch.autocast("cpu", dtype=torch.bfloat16):
        _, losses, encoder, decoder, _ = take_step(
            network, "bernoulli", False, source, dtype=torch.bfloat16, initialization="glorot"
        )
    _, plain, plain_encoder, plain_decoder, _ = take_step(
        network, "bernoulli", False, source, plain=True, initialization="glorot"
    )
    for ours, theirs in zip(losses, plain, strict=True):
        torch.testing.assert_close(ours.float(), theirs, rtol=0.03, atol=0.05)
    assert relative_error(encoder.seen, plain_encoder.seen) < 0.12
    assert relative_error(decoder.seen, plain_decoder.seen) < 0.12


@pytest.mark.parametrize("network", ["gray", "color"])
@pytest.mark.parametrize("source", ["generated", "augmented+generated"])
def test_simultaneous_gradients_are_both_taken_at_the_first_weights(network, source):
    """The encoder's is that of the alternating update; the decoder's differs by where the pull is taken only."""
    rates = {}
    for update in ("alternating", "simultaneous"):
        # With encoder weights that do not move, the two updates are one.
        rates[update] = take_step(network, "bernoulli", False, source, update=update)
    (_, losses, encoder, decoder, _), (_, other, other_encoder, other_decoder, _) = rates.values()
    torch.testing.assert_close(torch.stack(losses), torch.stack(other))
    assert relative_error(encoder.seen, other_encoder.seen) < 1e-5
    assert relative_error(decoder.seen, other_decoder.seen) < 1e-5


def test_the_generator_is_pulled_by_the_encoder_already_moved():
    """The alternating order of appendix A.2: the pull is evaluated after the encoder's step."""
    shape = SHAPES["gray"]
    model = build_vae(small_run(), shape).train()
    images = blobs(6, shape).float() / 255
    encoder, decoder = Recorder(model.encoder, rate=1e-6), Recorder(model.decoder)
    negatives = build_source("generated", None).sample(images, model, torch.Generator().manual_seed(0))
    before = model.prior.kl(*model.encode(negatives.images)).mean()
    losses = train_step(model, encoder, decoder, images, images, negatives, torch.zeros(6, 10))
    after = model.prior.kl(*model.encode(negatives.images)).mean()
    torch.testing.assert_close(losses.generator_kl, after.detach())
    assert not torch.isclose(before, after)


def test_the_pull_meets_the_encoder_that_will_score():
    """Its batch norms use their running statistics, and these do not move."""
    shape = SHAPES["color"]
    model = build_vae(small_run("color"), shape).train()
    model.encode(blobs(6, shape) / 255)
    images = 1 - blobs(6, shape, 1) / 255
    before = model.encoder[1].running_mean.clone()
    pull = generator_loss(model, images, 6)
    assert torch.equal(model.encoder[1].running_mean, before)
    torch.testing.assert_close(pull, model.prior.kl(*model.eval().encode(images)).mean())


def test_negative_weight_scales_the_encoders_gradient_only():
    _, plain, encoder, decoder, _ = take_step("gray", "bernoulli", False, "uniform-noise")
    _, weighted, heavy_encoder, heavy_decoder, _ = take_step(
        "gray", "bernoulli", False, "uniform-noise", negative_weight=3.0
    )
    assert plain == weighted  # parts are reported unweighted
    assert any(not torch.allclose(a, b) for a, b in zip(encoder.seen, heavy_encoder.seen, strict=True))
    for a, b in zip(decoder.seen, heavy_decoder.seen, strict=True):
        torch.testing.assert_close(a, b)


@needs_bfloat16
def test_bfloat16_losses_agree_with_float32():
    shape = SHAPES["gray"]
    model = build_vae(small_run(initialization="he"), shape).train()
    images, noise = blobs(16, shape).float() / 255, torch.zeros(16, 10)
    exact = shared_losses(model, images, images, images.flip(0), noise)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rounded = shared_losses(model, images, images, images.flip(0), noise)
    for a, b in zip(exact, rounded, strict=True):
        torch.testing.assert_close(a, b, rtol=0.02, atol=0.02)


def test_the_two_updates_do_not_disturb_each_other_in_threads_side_by_side():
    """Each thread gets the gradients that it gets alone, also while the other is in the middle of its backward pass."""
    alone = {update: take_step("gray", "bernoulli", False, "generated", update=update)[2:4] for update in UPDATES}
    barrier = threading.Barrier(2, timeout=60)

    def repeated(update):
        found = []
        for _ in range(20):
            barrier.wait()
            found.append(take_step("gray", "bernoulli", False, "generated", update=update)[2:4])
        return found

    with ThreadPoolExecutor(2) as pool:
        together = dict(zip(UPDATES, pool.map(repeated, UPDATES), strict=True))
    for update, networks in alone.items():
        for found in together[update]:
            for ours, expected in zip(found, networks, strict=True):
                assert all(g is not None for g in ours.seen)
                assert relative_error(ours.seen, expected.seen) < 1e-5


def test_skipping_weight_gradients_is_a_matter_of_one_thread():
    """While one thread asks for gradients by the input only, another's backward pass still gives all of them."""
    network = torch.nn.Sequential(torch.nn.Conv2d(1, 4, 5, padding=2), torch.nn.ReLU())

    def weight_gradient():
        (gradient,) = torch.autograd.grad(run(network, torch.ones(2, 1, 8, 8)).sum(), network[0].weight)
        return gradient

    expected = weight_gradient()
    with gradients_by_input_only(), ThreadPoolExecutor(1) as pool:
        torch.testing.assert_close(pool.submit(weight_gradient).result(), expected)


@pytest.mark.parametrize("update", UPDATES)
def test_what_a_user_has_frozen_stays_frozen(update):
    shape = SHAPES["color"]
    model = build_vae(small_run("color"), shape).train()
    model.encoder[0].requires_grad_(False)
    model.encoder[1].eval()
    wanted = [p.requires_grad for p in model.parameters()]
    modes = [m.training for m in model.modules()]
    first, statistics = model.encoder[0].weight.detach().clone(), model.encoder[1].running_mean.clone()
    encoder, decoder = Recorder(model.encoder, rate=1e-3), Recorder(model.decoder, rate=1e-3)
    images = blobs(6, shape).float() / 255
    negatives = build_source("generated", None).sample(images, model, torch.Generator().manual_seed(0))
    train_step(model, encoder, decoder, images, images, negatives, torch.zeros(6, model.latent_size), update=update)
    assert [p.requires_grad for p in model.parameters()] == wanted
    assert [m.training for m in model.modules()] == modes
    assert torch.equal(model.encoder[0].weight, first)
    assert torch.equal(model.encoder[1].running_mean, statistics)
    assert encoder.seen[0] is None
    assert all(g is not None for g in encoder.seen[1:])


@pytest.mark.parametrize("network", ["gray", "color"])
def test_a_batch_is_divided_only_where_its_images_are_not_coupled(network):
    shape = SHAPES[network]
    model = build_vae(small_run(network), shape).train()
    images = blobs(6, shape).float() / 255
    with torch.no_grad():
        together, alone = model.encode(images).mean[:3], model.encode(images[:3]).mean
    assert model.couples_images == (not torch.allclose(together, alone, rtol=1e-4, atol=1e-4))
    model.encoder = torch.nn.Sequential(torch.nn.Sequential(*model.encoder))  # however deep the layer lies
    assert model.couples_images == (network == "color")


def test_an_unknown_update_is_refused():
    with pytest.raises(ValueError, match="unknown update 'alternate': did you mean alternating"):
        take_step("gray", "bernoulli", False, "none", update="alternate")
