"""Multiply-adds against counts by hand, and against what a forward pass does."""

import pytest
import torch
from benchmarks.bench.work import multiply_adds, scoring_multiply_adds, training_multiply_adds
from torch import nn

from negvae.config import preset
from negvae.model import build_vae
from tests.conftest import SHAPES


def test_layers_by_hand():
    assert multiply_adds(nn.Linear(10, 7)) == 70
    # 28x28 at stride 2 with padding 2: 14x14 positions.
    assert multiply_adds(nn.Conv2d(1, 8, 5, 2, padding=2), (28, 28)) == 14 * 14 * 25 * 8
    # Each of the 7x7 inputs is spread over the whole kernel.
    up = nn.ConvTranspose2d(64, 32, 5, stride=2, padding=2, output_padding=1)
    assert multiply_adds(up, (7, 7)) == 7 * 7 * 25 * 64 * 32
    assert multiply_adds(nn.Conv2d(8, 8, 3, groups=4), (6, 5)) == 4 * 3 * 9 * 2 * 8


def test_gray_by_hand():
    model = build_vae(preset("gray", "x"), (1, 28, 28))
    encoder = 25 * (14**2 * 8 + 14**2 * 8 * 16 + 7**2 * 16 * 32 + 7**2 * 32 * 64 + 4**2 * 64 * 64) + 1024 * 20
    decoder = 10 * 3136 + 25 * (7**2 * 64 * 64 + 7**2 * 64 * 32 + 14**2 * 32 * 16 + 14**2 * 16 * 8 + 28**2 * 8)
    assert multiply_adds(model.encoder, (28, 28)) == encoder
    assert multiply_adds(model.decoder) == decoder
    assert training_multiply_adds(model) == 3 * (encoder + decoder)
    assert training_multiply_adds(model, negatives=True) == 3 * (2 * encoder + decoder)
    assert scoring_multiply_adds(model, "kl") == encoder
    assert scoring_multiply_adds(model, "bpd") == encoder + decoder


@pytest.mark.parametrize("network", SHAPES)
def test_sizes_follow_the_layers(network):
    """The count's own idea of each convolution's output is what the layer gives."""
    shape = SHAPES[network]
    model = build_vae(preset("general", "x", network=network), shape)
    counts = []

    def count(layer, inputs, output):
        positions = inputs[0] if isinstance(layer, nn.ConvTranspose2d) else output
        taps = layer.weight[0].numel() * layer.weight.shape[0]
        counts.append(taps * positions[0, 0].numel() if layer.weight.dim() == 4 else layer.weight.numel())

    plain = nn.ModuleList([model.encoder, model.decoder])
    for layer in plain.modules():
        if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d | nn.Linear):
            layer.register_forward_hook(count)
    model.encoder.eval()(torch.zeros(1, *shape))
    model.decoder.eval()(torch.zeros(1, model.latent_size))
    assert sum(counts) == multiply_adds(model.encoder, shape[1:]) + multiply_adds(model.decoder)


def test_unknown_layer_is_refused():
    with pytest.raises(ValueError, match="multiply-adds of a Conv1d"):
        multiply_adds(nn.Sequential(nn.Conv1d(1, 1, 3)), (8, 8))
