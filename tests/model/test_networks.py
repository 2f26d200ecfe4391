import dataclasses
import itertools

import pytest
import torch

from negvae.config import preset
from negvae.model import PosteriorHead, build_vae
from negvae.model.networks import _levels, check_networks, residual_encoder
from negvae.parts import INITIALIZATIONS
from tests.conftest import SHAPES, small_run


@pytest.mark.parametrize("network", ["pyramid", "deep"])
@pytest.mark.parametrize(("height", "width"), list(itertools.product([16, 17, 31, 64, 127, 128], repeat=2)))
def test_pyramid_and_deep_take_any_size(network, height, width):
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
        ("pyramid", (1, 15, 40), "16x16"),
        ("deep", (1, 15, 40), "network deep takes images from 16x16"),
    ],
)
def test_images_a_network_is_not_made_for_are_refused(network, shape, word):
    with pytest.raises(ValueError, match=word):
        build_vae(small_run(network), shape)


@pytest.mark.parametrize("latent_size", [10**8, 10**11, 10**15, 2**63 - 1])
def test_networks_larger_than_the_memory_are_refused(monkeypatch, latent_size):
    config = small_run("gray", latent_size=latent_size)
    monkeypatch.setattr("os.sysconf", lambda name: 2**16)  # 4 GiB
    with pytest.raises(ValueError, match=f"^latent_size is {latent_size}: network gray then needs at least "):
        build_vae(config, (1, 28, 28))


@pytest.mark.parametrize("network", list(SHAPES))
def test_every_network_gives_codes_and_images_of_the_asked_size(network):
    model = build_vae(small_run(network, latent_size=6), SHAPES[network]).eval()
    with torch.no_grad():
        assert model.encoder(torch.zeros(2, *SHAPES[network])).shape == (2, 12)
        assert model.decoder(torch.zeros(2, 6)).shape == (2, *SHAPES[network])


def test_gray_has_the_papers_encoder():
    model = build_vae(small_run("gray"), (1, 28, 28))
    convolutions = [layer for layer in model.encoder if isinstance(layer, torch.nn.Conv2d)]
    assert [c.out_channels for c in convolutions] == [8, 16, 32, 64, 64]
    assert [c.stride[0] for c in convolutions] == [2, 1, 2, 1, 2]
    assert sum(p.numel() for p in model.encoder.parameters()) == 190_484
    weights = torch.cat([c.weight.flatten() for c in convolutions])
    assert weights.std().item() == pytest.approx(0.141, abs=0.002)


@pytest.mark.parametrize(("network", "count"), [("color", 5), ("residual", 10)])
def test_a_convolution_before_batch_norm_has_no_bias_of_its_own(network, count):
    """It would be subtracted again, and saved weights of before would lack it."""
    with torch.device("meta"):
        model = build_vae(small_run(network), SHAPES[network])
    rows = [list(part) for part in model.modules() if isinstance(part, torch.nn.Sequential)]
    pairs = [pair for row in rows for pair in itertools.pairwise(row)]
    convolutions = (torch.nn.Conv2d, torch.nn.ConvTranspose2d)
    found = [one.bias for one, two in pairs if isinstance(two, torch.nn.BatchNorm2d) and isinstance(one, convolutions)]
    assert found == [None] * count


class Odd(torch.nn.Module):
    """A layer with a parameter that no initialization knows."""

    def __init__(self):
        super().__init__()
        self.factor = torch.nn.Parameter(torch.ones(()))

    def forward(self, x):
        return x * self.factor


class Own(Odd):
    """One that sets its parameter itself."""

    def initialize(self, generator):
        torch.nn.init.constant_(self.factor, 3)


class Masked(torch.nn.Linear):
    """A known layer with a buffer of its own."""

    def __init__(self):
        super().__init__(784, 784)
        self.register_buffer("mask", torch.ones(784))


class OwnMasked(Masked):
    """One that sets it, and its bias otherwise than the schemes do."""

    def initialize(self, generator):
        torch.nn.init.constant_(self.mask, 2)
        torch.nn.init.constant_(self.bias, 4)


class Counting(torch.nn.BatchNorm1d):
    """A norm with a parameter of its own."""

    def __init__(self):
        super().__init__(784)
        self.power = torch.nn.Parameter(torch.ones(()))


def networks_with(layer):
    return lambda shape, latent_size: (
        torch.nn.Sequential(torch.nn.Flatten(), layer(), PosteriorHead(784, latent_size)),
        torch.nn.Sequential(torch.nn.Linear(latent_size, 784), torch.nn.Unflatten(1, shape)),
    )


def test_a_layer_that_initialization_does_not_know_is_refused():
    for scheme in INITIALIZATIONS:
        for layer, owned in ((Odd, "factor"), (Masked, "mask"), (Counting, "power")):
            words = rf"initialization {scheme} does not know the layer {layer.__name__}, which .*\({owned}\)"
            with pytest.raises(ValueError, match=words):
                build_vae(small_run(network=networks_with(layer), initialization=scheme), (1, 28, 28))
    assert build_vae(small_run(network=networks_with(Own)), (1, 28, 28)).encoder[1].factor == 3
    masked = build_vae(small_run(network=networks_with(OwnMasked), initialization="glorot"), (1, 28, 28)).encoder[1]
    assert (masked.mask.unique().tolist(), masked.bias.unique().tolist()) == ([2], [4])
    assert 0.01 < masked.weight.std() < 0.1


@pytest.mark.parametrize("normed", [torch.nn.utils.weight_norm, torch.nn.utils.parametrizations.weight_norm])
@pytest.mark.filterwarnings("ignore:.*weight_norm.*is deprecated")
def test_a_weight_of_several_parameters_is_refused_in_one_line(normed):
    network = networks_with(lambda: normed(torch.nn.Linear(784, 784)))
    with pytest.raises(ValueError, match=r"weight_g, weight_v|several parameters"):
        build_vae(small_run(network=network), (1, 28, 28))


def test_modules_that_were_made_before_are_copied():
    made = networks_with(torch.nn.ReLU)((1, 28, 28), 4)
    config = small_run(network=lambda shape, latent_size: made, latent_size=4)
    before = made[0][2].weight.clone()
    first, second = (build_vae(dataclasses.replace(config, seed=seed), (1, 28, 28)) for seed in (0, 1))
    assert torch.equal(made[0][2].weight, before)
    assert not torch.equal(first.encoder[2].weight, second.encoder[2].weight)


def test_parameters_of_both_networks_are_refused():
    def tied(shape, latent_size):
        layer = torch.nn.Linear(784, 784)
        encoder = torch.nn.Sequential(torch.nn.Flatten(), layer, PosteriorHead(784, latent_size))
        return encoder, torch.nn.Sequential(torch.nn.Linear(latent_size, 784), layer, torch.nn.Unflatten(1, shape))

    with pytest.raises(ValueError, match=r"the encoder's 1\.weight is a parameter of the decoder too"):
        build_vae(small_run(network=tied), (1, 28, 28))


@pytest.mark.parametrize(
    ("network", "shape"),
    [("residual", (2, 20, 33)), ("mlp", (7, 1, 1)), ("linear", (7, 1, 1)), ("gray-paper", (1, 28, 28))],
)
def test_codes_and_images_have_their_shapes(network, shape):
    base = preset("features", "rows", network=network) if shape[1:] == (1, 1) else small_run(network)
    model = build_vae(base, shape).eval()
    kind, size = model.decoder[0].weight.dtype, model.latent_size
    assert model.encoder(torch.zeros(2, *shape, dtype=kind)).shape == (2, 2 * size)
    assert model.decoder(torch.zeros(2, size, dtype=kind)).shape == (2, *shape)


def test_levels_are_halves_down_to_less_than_eight_pixels():
    assert _levels("pyramid", (1, 28, 28)) == ([(28, 28), (14, 14), (7, 7)], [1, 32, 64])
    assert _levels("pyramid", (3, 32, 65)) == ([(32, 65), (16, 32), (8, 16), (4, 8)], [3, 32, 64, 128])
    sizes, filters = _levels("deep", (16, 256, 256))
    assert sizes[-1] == (4, 4)
    assert filters == [16, 32, 64, 128, 256, 256, 256]
    for channels in (0, 17):
        with pytest.raises(ValueError, match="channels"):
            _levels("pyramid", (channels, 32, 32))
    assert residual_encoder(3, 8)[0].out_channels == 16


def test_networks_of_another_output_are_refused():
    flat = torch.nn.Flatten()
    narrow, wide = (torch.nn.Sequential(flat, torch.nn.Linear(9, size)) for size in (4, 8))
    images = torch.nn.Sequential(torch.nn.Linear(4, 9), torch.nn.Unflatten(1, (1, 3, 3)))
    check_networks("own", wide, images, (1, 3, 3), 4)
    with pytest.raises(ValueError, match="own"):
        check_networks("own", narrow, images, (1, 3, 3), 4)
    with pytest.raises(ValueError, match="own"):
        check_networks("own", wide, torch.nn.Sequential(torch.nn.Linear(4, 9)), (1, 3, 3), 4)


def test_the_dimensions_are_all_values_of_an_image():
    assert build_vae(preset("general", "x"), (3, 16, 20)).dimensions == 3 * 16 * 20
