"""What the networks see of images and of rows of features."""

import pytest
import torch

from negvae.config import preset
from negvae.model import build_vae
from negvae.model.inputs import FARTHEST, Features
from negvae.training.loop import train
from tests.conftest import blobs, small_run


def test_features_are_standardized_and_come_back():
    rows = torch.randn(500, 4, generator=torch.Generator().manual_seed(0)).double() * torch.tensor([1e-2, 1, 50, 0])
    rows = (rows + torch.tensor([1e9, 0, -7, 5]))[:, :, None, None]
    inputs = Features(4)
    inputs.measure(rows)
    seen = inputs(rows)
    torch.testing.assert_close(seen.mean(0).flatten(), torch.zeros(4).double(), atol=1e-3, rtol=0)
    torch.testing.assert_close(seen.std(0)[:3].flatten(), torch.ones(3).double(), atol=5e-3, rtol=0)
    torch.testing.assert_close(inputs.restore(seen), rows)
    moved = rows[:1] + torch.tensor([0, 0, 0, 2.0])[:, None, None]
    assert float(inputs(moved)[0, 3]) == 2  # a constant feature keeps its unit
    assert float(inputs(rows[:1] + 1e300).max()) == FARTHEST


def test_rows_train_an_mlp_and_images_do_not():
    config = preset("features", "rows", epochs=30, batch_size=16, latent_size=2, device="cpu")
    rows = torch.randn(64, 3, 1, 1, generator=torch.Generator().manual_seed(0)).double() * 9 + 100
    result = train(config, rows)
    assert result.history[-1]["reconstruction"] < result.history[0]["reconstruction"]
    torch.testing.assert_close(result.model.inputs.mean, rows.mean(0))
    again = train(config, rows)
    assert all(torch.equal(a, b) for a, b in zip(result.model.parameters(), again.model.parameters(), strict=True))
    with pytest.raises(ValueError, match="rows of features"):
        train(config, blobs(9, (1, 28, 28)))
    with pytest.raises(ValueError, match="takes rows of features"):
        build_vae(config, (1, 28, 28))
    with pytest.raises(ValueError, match=r"network gray takes images, and these are rows of features: .*mlp"):
        train(small_run("gray"), rows)
    with pytest.raises(ValueError, match="takes floating-point N x 3x1x1"):
        result.model.check(torch.zeros(2, 3, 1, 1, dtype=torch.uint8))


def test_a_change_of_a_small_constant_is_measured_by_the_constant():
    inputs = Features(5)
    constant = torch.tensor([0.0, 4e-6, -0.02, 1000.0, 1e-300], dtype=torch.float64)[:, None, None]
    inputs.measure(constant.expand(20, 5, 1, 1))
    assert not inputs(constant[None]).any()
    torch.testing.assert_close(inputs(constant[None] * 2).flatten(), torch.tensor([0.0, 1, -1, 1000, 1]).double())
    assert float(inputs(constant[None] + 1)[0, 0]) == 1
