"""The networks that the paper's authors ran, against facts about their layers and plain arithmetic."""

import pytest
import torch
from torch import nn
from torch.nn.functional import conv2d, pad

from negvae.model import VAE, build_vae
from negvae.model.likelihoods import build_likelihood
from negvae.negatives import Auxiliary, build_source
from negvae.training.loop import train
from tests.conftest import PRECISIONS, SHAPES, blobs, small_run

SHAPE = (3, 32, 32)
NAMES = [name for name in SHAPES if name.startswith("color-authors")]


def built(name, **fields):
    return build_vae(small_run(name, **fields), SHAPE)


def convolutions(network):
    return [layer for layer in network if isinstance(layer, nn.Conv2d)]


@pytest.mark.parametrize("name", NAMES)
def test_filters_strides_and_sizes(name):
    model = built(name)
    assert [(c.out_channels, c.stride[0]) for c in convolutions(model.encoder)] == [
        (32, 1),
        (64, 2),
        (128, 2),
        (256, 2),
    ]
    assert [(c.out_channels, c.stride[0]) for c in convolutions(model.decoder)] == [(128, 1), (64, 1), (32, 1), (3, 1)]
    assert model.encoder[-1].in_features == 4096
    sizes = []
    for layer in convolutions(model.encoder) + convolutions(model.decoder):
        layer.register_forward_hook(lambda layer, inputs, output: sizes.append(output.shape[-1]))
    model.plain = True
    model.decode(model.encode(torch.rand(2, *SHAPE)).mean)
    assert sizes == [32, 16, 8, 4, 4, 8, 16, 32]


def test_padding_is_one_pixel_before_and_two_after():
    model = built("color-authors").double()
    layer = model.encoder[1]
    image = torch.rand(1, *SHAPE, dtype=torch.float64)
    expected = conv2d(pad(image, (1, 2, 1, 2)), layer.weight)
    torch.testing.assert_close(layer(model.encoder[0](image)), expected)
    # The output's first pixel sees the image from its first row and column on, with taps 1 to 3.
    first = (layer.weight[:, :, 1:, 1:] * image[:, :, :3, :3]).sum((1, 2, 3))
    torch.testing.assert_close(expected[0, :, 0, 0], first)


@pytest.mark.parametrize("name", ["color-authors-spectral", "color-authors-spectral-norm"])
def test_spectral_norm_is_one_of_every_encoder_convolution_and_of_no_other_layer(name):
    model = built(name).train()
    for _ in range(50):  # each a power iteration
        model.encode(torch.rand(1, *SHAPE))
    vectors = [c.parametrizations.weight[0].vector.clone() for c in convolutions(model.encoder)]
    model.eval().encode(torch.rand(2, *SHAPE))
    assert all(
        torch.equal(c.parametrizations.weight[0].vector, v)
        for c, v in zip(convolutions(model.encoder), vectors, strict=True)
    )
    largest = [torch.linalg.matrix_norm(c.weight.flatten(1), 2).item() for c in convolutions(model.encoder)]
    assert largest == pytest.approx([1] * 4, abs=0.02)
    assert not any(hasattr(c, "parametrizations") for c in convolutions(model.decoder))
    assert not any(isinstance(layer, nn.BatchNorm2d) for layer in model.encoder)


@pytest.mark.parametrize(("name", "norms"), list(zip(NAMES, (7, 0, 0, 3), strict=True)))
def test_batch_norm_follows_the_hidden_convolutions(name, norms):
    model = built(name)
    layers = [*model.encoder, *model.decoder]
    assert sum(isinstance(layer, nn.BatchNorm2d) for layer in layers) == norms
    assert all(isinstance(layers[i - 1], nn.Conv2d) for i, n in enumerate(layers) if isinstance(n, nn.BatchNorm2d))


def of_kind(network, kind):
    return [layer for layer in network if isinstance(layer, kind)]


def test_affine_is_batch_norm_at_its_initial_statistics():
    affine, normed = built("color-authors-affine"), built("color-authors").eval()
    randomness = torch.Generator().manual_seed(1)
    for ours, theirs in ((affine.encoder, normed.encoder), (affine.decoder, normed.decoder)):
        for mine, other in zip(of_kind(ours, nn.Linear), of_kind(theirs, nn.Linear), strict=True):
            other.load_state_dict(mine.state_dict())
        norms = of_kind(theirs, nn.BatchNorm2d)
        for mine, other in zip(convolutions(ours), convolutions(theirs), strict=True):
            if not hasattr(mine, "parametrizations"):  # the decoder's last
                other.weight.data = mine.weight.data
                continue
            step, norm = mine.parametrizations.weight[0], norms.pop(0)
            other.weight.data = mine.parametrizations.weight.original.data
            norm.weight.data = step.scale.data.uniform_(0.5, 1.5, generator=randomness)
            norm.bias.data = mine.bias.data.normal_(generator=randomness)
        assert not norms
    images, codes = torch.rand(3, *SHAPE), torch.randn(3, affine.latent_size)
    torch.testing.assert_close(affine.encode(images).mean, normed.encode(images).mean, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(affine.decode(codes), normed.decode(codes), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("name", NAMES)
def test_a_run_that_is_stopped_goes_on_as_if_it_had_not(name, precision, tmp_path):
    """Factors and singular vectors are part of the checkpoint, and learned weights stay in float32."""
    config = small_run(name, negatives="generated", likelihood="gaussian", precision=precision, batch_size=2)
    source, images = build_source("generated", lambda _: None), blobs(4, SHAPE)
    whole = train(config, images, source)
    taken = 0

    def stop():
        nonlocal taken
        taken += 1
        return "test" if taken == 2 else ""

    train(config, images, source, directory=tmp_path, should_stop=stop)
    resumed = train(config, images, source, directory=tmp_path, resume=True)
    for key, value in whole.model.state_dict().items():
        assert torch.equal(value, resumed.model.state_dict()[key]), key
        assert value.dtype in (torch.float32, torch.int64)


def test_the_encoder_sees_the_noise_of_the_dequantized_likelihood():
    plain, noisy = build_likelihood("quantized-gaussian"), build_likelihood("dequantized-gaussian")
    images = torch.rand(4, *SHAPE)
    targets = [each.target(images, torch.Generator().manual_seed(0)) for each in (plain, noisy)]
    assert torch.equal(*targets)


@pytest.mark.parametrize("likelihood", ["quantized-gaussian", "dequantized-gaussian"])
def test_what_the_encoder_is_given_in_training(likelihood, monkeypatch):
    seen = []
    encode = VAE.encode
    monkeypatch.setattr(VAE, "encode", lambda model, images: seen.append(images) or encode(model, images))
    config = small_run("color", likelihood=likelihood, epochs=1, batch_size=8)
    train(
        config,
        torch.full((8, *SHAPE), 100, dtype=torch.uint8),
        Auxiliary(torch.full((8, *SHAPE), 7, dtype=torch.uint8)),
    )
    (images,) = seen
    levels = images * 255
    if likelihood == "quantized-gaussian":
        assert levels.round().unique().tolist() == [7, 100]
        return
    for part, level in ((levels[:8], 100), (levels[8:], 7)):
        assert level - 1e-3 <= part.min() < level + 0.01
        assert level + 0.99 < part.max() <= level + 1 + 1e-3
