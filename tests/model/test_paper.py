"""What the paper and its authors' code say of the models, number by number: none of them may change unnoticed."""

import math

import pytest
import torch
from torch import nn

from negvae.config import PRESETS
from negvae.model import build_vae
from negvae.model.likelihoods import build_likelihood
from negvae.negatives import AddedNoise
from negvae.training.objectives import Losses, encoder_loss, shared_losses
from negvae.training.optimizers import adam, rmsprop
from tests.conftest import SHAPES, blobs, small_run

CONVOLUTIONS = nn.Conv2d | nn.ConvTranspose2d


def test_presets_are_the_paper_s():
    """Appendix A.2: gray 10 dimensions and a shift of 8, color 100 and 25."""
    gray = dict(initialization="normal", latent_size=10, negative_shift=8.0, optimizer="rmsprop", learning_rate=1e-4,
                batch_size=50, epochs=100)  # fmt: skip
    color = dict(initialization="glorot", latent_size=100, negative_shift=25.0, optimizer="adam", learning_rate=1e-4,
                 batch_size=50, epochs=100)  # fmt: skip
    assert PRESETS["gray"] == {"network": "gray", **gray}
    assert PRESETS["gray-paper"] == {"network": "gray-paper", **gray}
    assert PRESETS["color"] == {"network": "color", **color}


def layers(network):
    """Channels, kernel and stride of every convolution; inputs and outputs of every linear layer."""
    return [
        (layer.in_channels, layer.out_channels, layer.kernel_size[0], layer.stride[0])
        if isinstance(layer, CONVOLUTIONS)
        else (layer.in_features, layer.out_features)
        for layer in network
        if isinstance(layer, CONVOLUTIONS | nn.Linear)
    ]


def test_networks_are_the_paper_s():
    gray = build_vae(small_run("gray-paper"), SHAPES["gray-paper"])
    assert layers(gray.encoder) == [
        (1, 8, 5, 2), (8, 16, 5, 1), (16, 32, 5, 2), (32, 64, 5, 1), (64, 64, 5, 2), (1024, 20)]  # fmt: skip
    assert layers(gray.decoder) == [
        (10, 64 * 7 * 7), (64, 32, 5, 2), (32, 32, 5, 2), (32, 256, 5, 1), (256, 1, 5, 1)]  # fmt: skip
    assert not isinstance(gray.decoder[2], nn.ReLU)  # the linear layer has no activation
    color = build_vae(small_run("color"), SHAPES["color"])
    assert layers(color.encoder) == [(3, 32, 4, 2), (32, 64, 4, 2), (64, 128, 4, 2), (2048, 200)]
    assert layers(color.decoder) == [(100, 2048), (128, 128, 4, 2), (128, 64, 4, 2), (64, 3, 4, 2)]
    norms = [layer.num_features for layer in color.encoder if isinstance(layer, nn.BatchNorm2d)]
    assert norms == [32, 64, 128]


@pytest.mark.parametrize("name", ["gray", "pyramid", "deep", "color"])
def test_he_initialization_starts_near_the_prior(name):
    """The posterior's head has a tenth of the standard deviation that He normal gives."""
    model = build_vae(small_run(name, initialization="he"), SHAPES[name])
    head = model.encoder[-1]
    assert head.weight.std().item() == pytest.approx(0.1 * math.sqrt(2 / head.in_features), rel=0.05)
    first = next(layer for layer in model.encoder if isinstance(layer, nn.Conv2d))
    fan_in = first.in_channels * first.kernel_size[0] ** 2
    assert first.weight.std().item() == pytest.approx(math.sqrt(2 / fan_in), rel=0.25)


def test_the_weight_of_negatives_is_on_their_divergence_alone():
    losses = Losses(*(torch.tensor(value) for value in (1.0, 10.0, 100.0, 1000.0)))
    assert encoder_loss(losses, 3.0) == 311
    assert encoder_loss(losses) == 111


@pytest.mark.parametrize("name", ["rmsprop", "adam"])
def test_optimizers_are_those_of_the_authors_framework(name):
    """Three steps by the formulas: RMSProp with decay 0.9 and epsilon 1e-10, Adam with 0.9 and 0.999."""
    start, gradients = 1.0, (1e-5, -3e-5, 2e-5)  # so small that an epsilon of 1e-6 would show
    parameter = nn.Parameter(torch.tensor([start], dtype=torch.float64))
    optimizer = {"adam": adam, "rmsprop": rmsprop}[name]([parameter], 1e-2, capturable=False)
    expected, mean, square = start, 0.0, 0.0
    for step, gradient in enumerate(gradients, 1):
        parameter.grad = torch.tensor([gradient], dtype=torch.float64)
        optimizer.step()
        if name == "rmsprop":
            square = 0.9 * square + 0.1 * gradient**2
            expected -= 1e-2 * gradient / (math.sqrt(square) + 1e-10)
        else:
            mean, square = 0.9 * mean + 0.1 * gradient, 0.999 * square + 0.001 * gradient**2
            expected -= 1e-2 * (mean / (1 - 0.9**step)) / (math.sqrt(square / (1 - 0.999**step)) + 1e-8)
        assert parameter.item() == pytest.approx(expected, rel=1e-9)


def test_batch_norm_sees_positives_and_negatives_together():
    model = build_vae(small_run("color"), SHAPES["color"]).train()
    images, others = blobs(6, SHAPES["color"]) / 255, 1 - blobs(6, SHAPES["color"], 1) / 255
    norm = model.encoder[1]
    noise = torch.zeros(6, model.latent_size)
    shared_losses(model, images, images, others, noise)
    seen = model.encoder[0](torch.cat([images, others]))
    torch.testing.assert_close(norm.running_mean, 0.1 * seen.mean((0, 2, 3)))
    assert norm.num_batches_tracked == 1


def test_dequantization_adds_one_intensity_step():
    pixels = torch.arange(256.0).repeat(100).reshape(1, 1, 160, 160) / 255
    target = build_likelihood("quantized-gaussian").target(pixels, torch.Generator().manual_seed(0))
    added = (target - pixels) * 255
    assert added.min() >= -1e-4
    assert added.max() == pytest.approx(1, abs=1e-3)
    assert added.mean().item() == pytest.approx(0.5, abs=0.01)
    assert added.std().item() == pytest.approx(1 / math.sqrt(12), abs=0.01)


def test_added_noise_stays_within_the_range_of_pixels():
    images = torch.cat([torch.zeros(4, 1, 8, 8), torch.ones(4, 1, 8, 8)])
    negatives = AddedNoise(0.25).sample(images, None, torch.Generator().manual_seed(0)).images
    assert (negatives.min(), negatives.max()) == (0, 1)
    half = torch.full((64, 1, 16, 16), 0.5)
    spread = AddedNoise(0.1).sample(half, None, torch.Generator().manual_seed(0)).images - half
    assert spread.std().item() == pytest.approx(0.1, rel=0.02)
