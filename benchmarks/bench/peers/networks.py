"""The `gray` networks in plain layers, for the peers; a test compares them with negvae's own."""

from __future__ import annotations

from torch import nn

FEATURES = 64 * 4 * 4


def gray_encoder() -> nn.Sequential:
    """Make the layers from images (N x 1 x 28 x 28) to features (N x 1024), without the posterior's heads."""
    layers: list[nn.Module] = []
    channels = 1
    for filters, stride in ((8, 2), (16, 1), (32, 2), (64, 1), (64, 2)):
        layers += [nn.Conv2d(channels, filters, 5, stride, padding=2), nn.ReLU()]
        channels = filters
    return nn.Sequential(*layers, nn.Flatten())


def gray_decoder(latent_size: int) -> nn.Sequential:
    """Make the layers from codes (N x L) to logits of pixels (N x 1 x 28 x 28)."""
    return nn.Sequential(
        nn.Linear(latent_size, 64 * 7 * 7),
        nn.Unflatten(1, (64, 7, 7)),
        nn.ReLU(),
        nn.Conv2d(64, 64, 5, padding=2),
        nn.ReLU(),
        nn.ConvTranspose2d(64, 32, 5, stride=2, padding=2, output_padding=1),
        nn.ReLU(),
        nn.Conv2d(32, 16, 5, padding=2),
        nn.ReLU(),
        nn.ConvTranspose2d(16, 8, 5, stride=2, padding=2, output_padding=1),
        nn.ReLU(),
        nn.Conv2d(8, 1, 5, padding=2),
    )
