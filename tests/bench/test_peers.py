"""The peers' networks are negvae's."""

import torch
from benchmarks.bench.peers.networks import gray_decoder, gray_encoder
from benchmarks.bench.peers.protocol import images_for
from benchmarks.bench.peers.textbook import TextbookVAE, loss_function

from negvae.config import preset
from negvae.model import build_vae
from negvae.training.objectives import shared_losses
from tests.conftest import blobs


def as_peer(model):
    """The textbook VAE with the weights of negvae's model."""
    peer = TextbookVAE(model.latent_size)
    encoder, decoder = model.encoder.state_dict(), model.decoder.state_dict()
    *_, weight, bias = encoder
    heads = [tensor.chunk(2) for tensor in (encoder.pop(weight), encoder.pop(bias))]
    convolutions = dict(zip(peer.encoder.state_dict(), encoder.values(), strict=True))
    peer.encoder.load_state_dict(convolutions)
    peer.decoder.load_state_dict(dict(zip(peer.decoder.state_dict(), decoder.values(), strict=True)))
    for head, part in ((peer.mean, 0), (peer.log_var, 1)):
        head.load_state_dict({"weight": heads[0][part], "bias": heads[1][part]})
    return peer


def test_same_networks_and_same_loss(monkeypatch):
    model = build_vae(preset("gray", "blobs", initialization="he"), (1, 28, 28))
    peer = as_peer(model)
    assert sum(p.numel() for p in peer.parameters()) == sum(p.numel() for p in model.parameters())
    x = blobs(6, (1, 28, 28)).float() / 255
    noise = torch.randn(6, 10, generator=torch.Generator().manual_seed(1))
    monkeypatch.setattr(torch, "randn_like", lambda like: noise)
    losses = shared_losses(model, x, x, None, noise)
    torch.testing.assert_close(loss_function(x, *peer(x)), losses.reconstruction + losses.kl, rtol=1e-4, atol=1e-3)


def test_plain_networks_have_the_papers_sizes():
    assert gray_encoder()(torch.zeros(2, 1, 28, 28)).shape == (2, 1024)
    assert gray_decoder(10)(torch.zeros(2, 10)).shape == (2, 1, 28, 28)


def test_rounds_are_whole_batches():
    images = blobs(7, (1, 28, 28)).numpy()
    assert [len(images_for(images, 0, 1, batch)) for batch in (32, 50, 500)] == [256, 300, 2000]
    many = images_for(images, 1010, 1, 50)
    assert len(many) == 1000
    assert (many[7:14] == images).all()
