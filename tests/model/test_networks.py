import itertools

import pytest
import torch

from negvae.model import build_vae
from tests.conftest import SHAPES, small_run


@pytest.mark.parametrize(("network", "shape"), list(SHAPES.items()))
def test_shapes_and_reproducible_weights(network, shape):
    config = small_run(network)
    before = torch.random.get_rng_state()
    model, again = build_vae(config, shape), build_vae(config, shape)
    assert torch.equal(before, torch.random.get_rng_state())  # no global seed is read
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))
    images = torch.rand(3, *shape)
    posterior = model.encode(images)
    assert posterior.mean.shape == posterior.log_var.shape == (3, config.latent_size)
    assert model.decode(posterior.mean).shape == images.shape


@pytest.mark.parametrize("network", ["auto", "deep"])
@pytest.mark.parametrize(("height", "width"), list(itertools.product([16, 17, 31, 64, 127, 128], repeat=2)))
def test_auto_and_deep_take_any_size(network, height, width):
    config = small_run(network)
    with torch.device("meta"):  # shapes only: no arithmetic
        from negvae.model.networks import build_networks

        encoder, decoder = build_networks(network, (2, height, width), config.latent_size)
        assert encoder(torch.empty(2, 2, height, width)).shape == (2, 2 * config.latent_size)
        assert decoder(torch.empty(2, config.latent_size)).shape == (2, 2, height, width)


@pytest.mark.parametrize(
    ("network", "shape", "word"),
    [
        ("gray", (1, 32, 32), "1x28x28"),
        ("color", (3, 28, 28), "3x32x32"),
        ("auto", (1, 15, 40), "16x16"),
        ("deep", (1, 15, 40), "network deep takes images from 16x16"),
    ],
)
def test_images_a_network_is_not_made_for_are_refused(network, shape, word):
    with pytest.raises(ValueError, match=word):
        build_vae(small_run(network), shape)


def test_gray_has_the_papers_encoder():
    model = build_vae(small_run("gray"), (1, 28, 28))
    convolutions = [layer for layer in model.encoder if isinstance(layer, torch.nn.Conv2d)]
    assert [c.out_channels for c in convolutions] == [8, 16, 32, 64, 64]
    assert [c.stride[0] for c in convolutions] == [2, 1, 2, 1, 2]
    assert sum(p.numel() for p in model.encoder.parameters()) == 190_484
    weights = torch.cat([c.weight.flatten() for c in convolutions])
    assert weights.std().item() == pytest.approx(0.141, abs=0.002)
