"""Training of the posterior of each patch: it is reproducible, and its loss is the divergence that the mask names."""

import itertools

import pytest
import torch

from negvae.training import patches
from negvae.training.patches import (
    CHECKPOINT,
    DIVERGENCE,
    WARM_UP,
    StoppedError,
    build_patch_encoder,
    patch_loss,
    train_patches,
)
from negvae.training.schedule import rise_and_fall
from tests.conftest import blobs, spoil_generators


def test_one_seed_gives_one_encoder():
    images = blobs(20, (2, 16, 18))
    first, again, other = (train_patches(images, seed=seed, steps=3, batch_size=8, device="cpu") for seed in (1, 1, 2))
    assert all(torch.equal(a, b) for a, b in zip(first.state_dict().values(), again.state_dict().values(), strict=True))
    assert not torch.equal(first.head.weight, other.head.weight)
    assert first.head.weight.dtype == torch.float32
    assert not first.training


@pytest.mark.parametrize("precision", ["float32", "auto"])
def test_a_stopped_training_goes_on_exactly(tmp_path, precision):
    options = dict(seed=1, steps=5, batch_size=8, precision=precision, device="cpu")
    images, steps = blobs(20, (2, 16, 18)), []
    whole = train_patches(images, **options)
    with pytest.raises(StoppedError, match=r"stopped at step 2 \(SIGINT\)") as stopped:
        train_patches(
            images, **options, directory=tmp_path, on_step=steps.append,
            should_stop=lambda: "SIGINT" if steps == [1, 2] else "",
        )  # fmt: skip
    assert (stopped.value.reason, stopped.value.step) == ("SIGINT", 2)
    assert (tmp_path / CHECKPOINT).exists()
    again = train_patches(images, **options, directory=tmp_path, on_step=steps.append)
    assert steps == [1, 2, 3, 4, 5]
    assert all(torch.equal(a, b) for a, b in zip(whole.state_dict().values(), again.state_dict().values(), strict=True))
    assert not (tmp_path / CHECKPOINT).exists()


@pytest.mark.parametrize(
    ("other", "named"),
    [({"seed": 2}, "seed"), ({"steps": 6}, "steps"), ({"batch_size": 4}, "batch size"), ({"images": 1}, "images")],
)
def test_a_checkpoint_of_another_training_is_refused(other, named, tmp_path):
    options = dict(images=blobs(20, (1, 16, 18)), seed=1, steps=5, batch_size=8, precision="float32", device="cpu")
    if "images" in other:
        other = {"images": blobs(20, (1, 16, 18), seed=1)}
    steps = itertools.count()
    with pytest.raises(StoppedError):
        train_patches(**options, directory=tmp_path, should_stop=lambda: "enough" if next(steps) == 2 else "")
    with pytest.raises(ValueError, match=rf"is of a training with other {named}; remove it to start anew"):
        train_patches(**{**options, **other}, directory=tmp_path)
    spoil_generators(tmp_path / CHECKPOINT)
    with pytest.raises(ValueError, match="its random numbers cannot go on on cpu"):
        train_patches(**options, directory=tmp_path)


@pytest.mark.parametrize("steps", [1, 3])
def test_a_training_that_diverges_ends_with_an_error(steps, tmp_path, monkeypatch):
    monkeypatch.setattr(patches, "LEARNING_RATE", 3e38)
    with pytest.raises(ValueError, match="training the heat maps diverged within"):
        train_patches(blobs(20, (1, 16, 18)), steps=steps, batch_size=8, precision="float32", device="cpu")
    with pytest.raises(ValueError, match="training the heat maps diverged within"):
        train_patches(
            blobs(20, (1, 16, 18)), steps=5, batch_size=8, precision="float32", device="cpu", directory=tmp_path,
            checkpoint_seconds=0,
        )  # fmt: skip


def test_loss_is_cross_entropy_by_the_log_odds_and_the_divergence_to_the_prior_that_the_mask_names():
    network = build_patch_encoder(1, 1, 0)
    output = torch.randn(2, 2 * network.latent_size, 3, 4, generator=torch.Generator().manual_seed(0))
    mean, log_var = output.double().chunk(2, 1)
    right = torch.sigmoid(mean.mean(1) - 2)

    def kl(shift):
        return (0.5 * ((mean - shift).square() + log_var.exp() - log_var - 1)).mean()

    for share, entropy, divergence in (
        (0.0, -(1 - right).log(), kl(0)),
        (1.0, -right.log(), kl(4)),
        (0.25, -(right.log() + (1 - right).log()) / 2, (kl(0) + kl(4)) / 2),
    ):
        loss = patch_loss(network, output, torch.full((2, 3, 4), share))
        assert loss.item() == pytest.approx((entropy.mean() + DIVERGENCE * divergence).item(), rel=1e-5)


def test_patches_of_a_small_defect_weigh_more():
    network = build_patch_encoder(1, 1, 0)
    output = torch.randn(
        1, 2 * network.latent_size, 10, 10, generator=torch.Generator().manual_seed(0)
    ).requires_grad_()
    shares = torch.zeros(1, 10, 10)
    shares[0, 3, 4] = shares[0, 3, 5] = 1

    def gradient():
        (found,) = torch.autograd.grad(patch_loss(network, output, shares), output)
        return found[0, : network.latent_size].sum(0)

    small = gradient()
    shares[0, :, 6:] = 1
    large = gradient()
    pull = DIVERGENCE / network.latent_size * (output[0, : network.latent_size, 3, 4] - 4).sum().item() / 100
    assert (small[3, 4] - pull) / (large[3, 4] - pull) == pytest.approx(2, rel=1e-3)  # the root of 0.08 / 0.02


def test_learning_rate_rises_and_falls():
    factors = [rise_and_fall(step, 200, WARM_UP) for step in range(200)]
    assert factors.index(max(factors)) == 19
    assert factors[-1] == pytest.approx(0, abs=1e-9)
