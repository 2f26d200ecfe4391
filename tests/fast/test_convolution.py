"""The networks as `convolution.run` arranges them against their plain layers, value by value."""

import pytest
import torch
from torch import nn

from negvae.fast import convolution
from negvae.model import build_vae
from negvae.model.reparametrized import SpectralNorm
from tests.conftest import SHAPES, needs_bfloat16, small_run


def values_and_gradients(network, inputs, plain):
    inputs = inputs.clone().requires_grad_()
    network.zero_grad()
    outputs = network(inputs) if plain else convolution.run(network, inputs)
    weights = torch.randn(outputs.shape, generator=torch.Generator().manual_seed(0))
    (outputs.float() * weights).sum().backward()
    return [outputs.detach().float(), inputs.grad, *(p.grad.clone() for p in network.parameters())]


def networks(name):
    model = build_vae(small_run(name, initialization="glorot"), SHAPES[name]).train()
    for module in model.modules():
        if isinstance(module, SpectralNorm):  # whose vector stays where it is
            module.eval()
    randomness = torch.Generator().manual_seed(0)
    yield model.encoder, torch.rand(5, *SHAPES[name], generator=randomness)
    yield model.decoder, torch.randn(5, model.latent_size, generator=randomness)


def relative(ours, theirs):
    return ((ours - theirs).norm() / theirs.norm().clamp_min(1e-6)).item()


@pytest.mark.parametrize("name", list(SHAPES))
def test_outputs_and_gradients_are_those_of_the_plain_layers(name):
    for network, inputs in networks(name):
        pairs = zip(
            values_and_gradients(network, inputs, False), values_and_gradients(network, inputs, True), strict=True
        )
        assert max(relative(*pair) for pair in pairs) < 1e-5


@pytest.mark.parametrize("name", list(SHAPES))
@needs_bfloat16
def test_in_bfloat16_they_are_as_near_to_float32_as_the_plain_layers(name):
    for network, inputs in networks(name):
        exact = values_and_gradients(network, inputs, True)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            ours = values_and_gradients(network, inputs, False)
            plain = values_and_gradients(network, inputs, True)
        for a, b, c in zip(ours, plain, exact, strict=True):
            assert relative(a, c) < 1.5 * relative(b, c) + 0.01


@pytest.mark.parametrize("name", list(SHAPES))
def test_without_gradients_the_values_are_the_same(name):
    for network, inputs in networks(name):
        network.eval()
        with torch.no_grad():
            torch.testing.assert_close(convolution.run(network, inputs), network(inputs), rtol=1e-4, atol=1e-5)


def test_frozen_weights_get_no_gradient_and_let_it_through():
    network, inputs = next(networks("gray"))
    network.requires_grad_(False)
    inputs.requires_grad_()
    convolution.run(network, inputs).sum().backward()
    ours = inputs.grad.clone()
    inputs.grad = None
    network(inputs).sum().backward()
    torch.testing.assert_close(ours, inputs.grad, rtol=1e-4, atol=1e-6)
    assert all(p.grad is None for p in network.parameters())


@pytest.mark.parametrize(
    "layers",
    [
        [nn.Conv2d(2, 3, (3, 5), stride=(2, 1), padding=(1, 2)), nn.Tanh(), nn.ConvTranspose2d(3, 2, 3, 3), nn.ReLU()],
        [nn.Conv2d(2, 4, 3, dilation=2), nn.ReLU(), nn.Conv2d(4, 4, 3, groups=2), nn.ReLU()],
        [nn.Conv2d(2, 4, 3, padding="same"), nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect")],
        [nn.Conv2d(2, 3, 5, stride=2, padding=2), nn.ReLU(), nn.Conv2d(3, 5, 4, stride=2, padding=1)],
        [nn.ConvTranspose2d(2, 3, 4, 2, 1), nn.Conv2d(3, 2, 5, padding=2), nn.ReLU()],
        [nn.Conv2d(2, 1, 5, padding=2), nn.ReLU(), nn.Conv2d(1, 1, 5, padding=2, bias=False)],
    ],
)
@pytest.mark.parametrize("size", [(9, 11), (8, 12)])
def test_other_layers_are_themselves(layers, size):
    network = nn.Sequential(*layers)
    for index, p in enumerate(network.parameters()):
        nn.init.normal_(p, 0, 0.5, generator=torch.Generator().manual_seed(index))
    inputs = torch.rand(2, 2, *size, generator=torch.Generator().manual_seed(0))
    pairs = zip(values_and_gradients(network, inputs, False), values_and_gradients(network, inputs, True), strict=True)
    assert max(relative(*pair) for pair in pairs) < 1e-4


def test_training_follows_scoring_in_one_process():
    convolution._transposed_index.cache_clear()
    convolution._convolution_index.cache_clear()
    network = nn.Sequential(nn.ConvTranspose2d(16, 8, 5, 2, 2, 1), nn.ReLU(), nn.Conv2d(8, 1, 5, padding=2))
    codes = torch.randn(2, 16, 7, 7)
    with torch.inference_mode():
        scored = convolution.run(network, codes)
    trained = convolution.run(network, codes)
    trained.sum().backward()
    torch.testing.assert_close(trained.detach(), scored.clone())


@pytest.mark.parametrize("name", ["gray", "color"])
def test_float64_runs_by_torchs_own_layers(name):
    """The arranged kernels know no float64, in which tests and gradient checks are made."""
    model = build_vae(small_run(name), SHAPES[name]).double().eval()
    x = torch.rand(3, *SHAPES[name], dtype=torch.float64)
    torch.testing.assert_close(convolution.run(model.encoder, x), model.encoder(x))
    codes = torch.randn(3, model.latent_size, dtype=torch.float64)
    torch.testing.assert_close(convolution.run(model.decoder, codes), model.decoder(codes))


class Centered(nn.Sequential):
    def forward(self, x):
        return super().forward(2 * x - 1)


class Standardized(nn.Conv2d):
    def _conv_forward(self, x, weight, bias):
        return super()._conv_forward(x, weight - weight.mean((1, 2, 3), keepdim=True), bias)


class Normalized(nn.Linear):
    def forward(self, x):
        return super().forward(nn.functional.normalize(x, dim=1))


class Leaky(nn.ReLU):
    def forward(self, x):
        return nn.functional.leaky_relu(x, 0.5)


def hooked(layer, before=False):
    if before:
        layer.register_forward_pre_hook(lambda layer, inputs: (2 * inputs[0],))
    else:
        layer.register_forward_hook(lambda layer, inputs, output: 2 * output)
    return layer


def changed(layer):
    layer.forward = lambda x: torch.ones_like(x)
    return layer


@pytest.mark.parametrize(
    "network",
    [
        nn.Sequential(Standardized(1, 4, 3), nn.ReLU()),
        nn.Sequential(nn.Conv2d(1, 4, 3), Leaky()),
        nn.Sequential(nn.Flatten(), Normalized(36, 4)),
        nn.Sequential(nn.Flatten(), hooked(nn.Linear(36, 4))),
        nn.Sequential(hooked(nn.Conv2d(1, 4, 3)), nn.ReLU()),
        nn.Sequential(hooked(nn.Conv2d(1, 4, 3), before=True), nn.ReLU()),
        nn.Sequential(nn.Conv2d(1, 4, 3), hooked(nn.ReLU())),
        nn.Sequential(nn.Conv2d(1, 4, 3), changed(nn.ReLU())),
        Centered(nn.Conv2d(1, 4, 3), nn.ReLU()),
        hooked(nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU())),
    ],
)
@pytest.mark.parametrize("gradients", [True, False])
def test_layers_that_compute_otherwise_than_torchs_own_run_as_they_are(network, gradients):
    inputs = torch.rand(3, 1, 6, 6, generator=torch.Generator().manual_seed(0))
    with torch.set_grad_enabled(gradients):
        torch.testing.assert_close(convolution.run(network, inputs), network(inputs), rtol=1e-4, atol=1e-5)
