"""Training of the posterior of each patch: it is reproducible, and its loss is the divergence that the mask names."""

import pytest
import torch

from negvae.training.patches import build_patch_encoder, patch_loss, schedule, train_patches
from tests.conftest import blobs


def test_one_seed_gives_one_encoder():
    images = blobs(20, (2, 16, 18))
    first, again, other = (train_patches(images, seed=seed, steps=3, batch_size=8, device="cpu") for seed in (1, 1, 2))
    assert all(torch.equal(a, b) for a, b in zip(first.state_dict().values(), again.state_dict().values(), strict=True))
    assert not torch.equal(first.head.weight, other.head.weight)
    assert first.head.weight.dtype == torch.float32
    assert not first.training


def test_loss_is_the_divergence_to_the_prior_that_the_mask_names():
    network = build_patch_encoder(1, 1, 0)
    output = torch.randn(2, 2 * network.latent_size, 3, 4, generator=torch.Generator().manual_seed(0))
    mean, log_var = output.double().chunk(2, 1)

    def kl(shift):
        return (0.5 * ((mean - shift).square() + log_var.exp() - log_var - 1)).mean()

    for share, wanted in ((0.0, kl(0)), (1.0, kl(4)), (0.25, (kl(0) + kl(4)) / 2)):
        loss = patch_loss(network, output, torch.full((2, 3, 4), share))
        assert loss.item() == pytest.approx(wanted.item(), rel=1e-5)


def test_learning_rate_rises_and_falls():
    factors = [schedule(step, 200) for step in range(200)]
    assert factors.index(max(factors)) == 19
    assert factors[-1] == pytest.approx(0, abs=1e-9)
