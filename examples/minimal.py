"""Negative Sampling in Variational Autoencoders: the whole paper in one file of plain torch.

It reads as the paper does: the model, the two losses, their separate updates, the scores, and one column of Table 3
or 5. Of the library it takes the images only; tests/test_minimal.py checks that the library computes the same.

    python examples/minimal.py --negatives emnist-letters     # or: none, generated, uniform-noise, a path
"""

import argparse
import math

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits

from negvae import load_images

LATENT_SIZE, NEGATIVE_SHIFT = 10, 8.0  # section 4: z has 10 dimensions, and the negative prior is centered at 8 1
BATCH_SIZE = 50  # appendix A.2.1, as is RMSProp; its decay and epsilon are those of the authors' framework
OPTIMIZERS = {
    "rmsprop": lambda parameters: torch.optim.RMSprop(parameters, lr=1e-4, alpha=0.9, eps=1e-10),
    "adam": lambda parameters: torch.optim.Adam(parameters, lr=1e-3),  # for fewer steps than the paper's 120,000
}


class VAE(nn.Module):
    """q(z|x) and p(x|z) for 28x28 gray images x, pixels in [0, 1] (appendix A.2.1).

    The encoder is that of Rosca et al. (2018), appendix K, table 4; the decoder has its filters in reverse, and is
    ten times quicker than that of Nalisnick et al. (2018).
    """

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(
            nn.Conv2d(1, 8, 5, stride=2, padding=2), nn.ReLU(),
            nn.Conv2d(8, 16, 5, stride=1, padding=2), nn.ReLU(),
            nn.Conv2d(16, 32, 5, stride=2, padding=2), nn.ReLU(),
            nn.Conv2d(32, 64, 5, stride=1, padding=2), nn.ReLU(),
            nn.Conv2d(64, 64, 5, stride=2, padding=2), nn.ReLU(),
            nn.Flatten(), nn.Linear(64 * 4 * 4, 2 * LATENT_SIZE),
        )  # fmt: skip
        self.decoder = nn.Sequential(
            nn.Linear(LATENT_SIZE, 64 * 7 * 7), nn.Unflatten(1, (64, 7, 7)), nn.ReLU(),
            nn.Conv2d(64, 64, 5, padding=2), nn.ReLU(),
            nn.ConvTranspose2d(64, 32, 5, stride=2, padding=2, output_padding=1), nn.ReLU(),
            nn.Conv2d(32, 16, 5, padding=2), nn.ReLU(),
            nn.ConvTranspose2d(16, 8, 5, stride=2, padding=2, output_padding=1), nn.ReLU(),
            nn.Conv2d(8, 1, 5, padding=2),
        )  # fmt: skip

    def initialize(self, generator: torch.Generator) -> None:
        """Convolutions from N(0, 0.02); linear layers Glorot uniform, means and log-variances as two layers."""
        for layer in [*self.encoder, *self.decoder]:
            if isinstance(layer, nn.Linear):
                for weight in layer.weight.chunk(2 if layer is self.encoder[-1] else 1):
                    nn.init.xavier_uniform_(weight, generator=generator)
                nn.init.zeros_(layer.bias)
            else:
                for parameter in layer.parameters():
                    nn.init.normal_(parameter, 0, math.sqrt(0.02), generator=generator)

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Means and log-variances (N x L each) of q(z|x), a diagonal Gaussian for each image."""
        mean, log_var = self.encoder(x).chunk(2, dim=1)
        return mean, log_var

    def log_likelihood(self, x: Tensor, z: Tensor) -> Tensor:
        """Bernoulli log p(x|z) in nats (N); a gray pixel is taken as the probability of "on"."""
        return -binary_cross_entropy_with_logits(self.decoder(z), x, reduction="none").sum((1, 2, 3))

    def generate(self, z: Tensor) -> Tensor:
        """The generator's images, which are the means of p(x|z)."""
        images: Tensor = self.decoder(z).sigmoid()
        return images


def sample(mean: Tensor, log_var: Tensor, noise: Tensor) -> Tensor:
    """A code z ~ q(z|x) for each image (N x L), given standard normal noise."""
    return mean + (0.5 * log_var).exp() * noise


def kl(mean: Tensor, log_var: Tensor, shift: float = 0.0) -> Tensor:
    """KL(q(z|x) || N(shift 1, I)) in nats (N): the prior p(z) has shift 0, the negative prior NEGATIVE_SHIFT."""
    return 0.5 * ((mean - shift) ** 2 + log_var.exp() - log_var - 1).sum(1)


def encoder_loss(vae: VAE, x: Tensor, q: tuple[Tensor, Tensor], z: Tensor, negatives: Tensor | None) -> Tensor:
    """Section 3: L = -ELBO(x) + KL(q(z|negative) || negative prior); negatives are not reconstructed."""
    loss = -vae.log_likelihood(x, z).mean() + kl(*q).mean()
    if negatives is not None:
        loss = loss + kl(*vae.encode(negatives), NEGATIVE_SHIFT).mean()
    return loss


def decoder_loss(vae: VAE, x: Tensor, z: Tensor, generated: Tensor | None) -> Tensor:
    """The reconstruction in L; section 4.3: the generator also learns to map its images into the prior."""
    loss = -vae.log_likelihood(x, z.detach()).mean()
    if generated is not None:
        loss = loss + kl(*vae.encode(generated)).mean()
    return loss


def update(network: nn.Module, optimizer: torch.optim.Optimizer, loss: Tensor) -> None:
    """Move one network, and no other, down its loss."""
    optimizer.zero_grad()
    torch.autograd.backward(loss, inputs=list(network.parameters()))
    optimizer.step()


def train_step(
    vae: VAE,
    optimizers: list[torch.optim.Optimizer],
    x: Tensor,
    noise: Tensor,
    negatives: Tensor | None = None,
    generated: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Appendix A.2: one update of the encoder, then one of the decoder; returns the two losses in nats per image.

    Negatives are given, or they are generated and still have the graph that made them.
    """
    if generated is not None:
        negatives = generated.detach()  # to the encoder they are images like any other
    q = vae.encode(x)
    z = sample(*q, noise)  # for both updates, drawn before either
    loss = encoder_loss(vae, x, q, z, negatives)
    update(vae.encoder, optimizers[0], loss)
    next_loss = decoder_loss(vae, x, z, generated)  # the encoder that judges the generated images has just moved
    update(vae.decoder, optimizers[1], next_loss)
    return loss.detach(), next_loss.detach()


@torch.no_grad()
def scores(vae: VAE, x: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
    """Section 4: -ELBO in bits per dimension, KL(q(z|x) || p(z)) in nats (N each); larger means out of distribution."""
    q = vae.encode(x)
    negative_elbo = kl(*q) - vae.log_likelihood(x, sample(*q, noise))
    return negative_elbo / (x[0].numel() * math.log(2)), kl(*q)


def auroc(inliers: Tensor, outliers: Tensor) -> float:
    """Probability that an outlier scores above an inlier; a tie counts one half."""
    inliers = inliers.sort().values
    below, not_above = (torch.searchsorted(inliers, outliers, right=ties) for ties in (False, True))
    return (below + not_above).double().mean().item() / (2 * len(inliers))


def load(name: str, split: str, limit: int) -> Tensor:
    """The first images of a data set (N x 1 x 28 x 28), in [0, 1]: no other preprocessing (appendix A.1)."""
    images = torch.from_numpy(load_images(name, split, limit=limit, shape=(1, 28, 28)).images)
    if images.shape[1:] != (1, 28, 28):
        raise ValueError(f"{name}: its images are {tuple(images.shape[1:])}, these networks take (1, 28, 28)")
    return images / 255


def main(arguments: list[str] | None = None) -> None:
    """Train on one data set, test against another, and print a column of the paper's Table 3 or 5."""
    parser = argparse.ArgumentParser(description=main.__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--inliers", default="fashion-mnist", help="28x28 gray images, by name or path")
    parser.add_argument("--ood", default="mnist", help="out-of-distribution test images")
    parser.add_argument("--negatives", default="generated", help="none, generated, or the name or path of a data set")
    parser.add_argument("--optimizer", default="adam", choices=OPTIMIZERS, help="the paper: rmsprop, 100 epochs")
    parser.add_argument("--epochs", type=int, default=4, help="passes over the inliers")
    parser.add_argument("--limit", type=int, default=5000, help="use the first so many images of each data set")
    options = parser.parse_args(arguments)
    try:
        inliers = load(options.inliers, "train", options.limit)
        tests = [load(name, "test", options.limit) for name in (options.inliers, options.ood)]
        named = options.negatives not in ("none", "generated")
        others = load(options.negatives, "train", options.limit) if named else None
    except (ValueError, FileNotFoundError) as error:
        parser.error(str(error))
    torch.manual_seed(0)
    vae = VAE()
    vae.initialize(torch.default_generator)
    optimizers = [OPTIMIZERS[options.optimizer](network.parameters()) for network in (vae.encoder, vae.decoder)]
    for epoch in range(options.epochs):
        for rows in torch.randperm(len(inliers)).split(BATCH_SIZE):
            noise, codes = torch.randn(2, len(rows), LATENT_SIZE)
            negatives = None if others is None else others[torch.randint(len(others), rows.shape)]
            generated = vae.generate(codes) if options.negatives == "generated" else None
            losses = train_step(vae, optimizers, inliers[rows], noise, negatives, generated)
        print("epoch {}: loss of the encoder {:.1f}, of the decoder {:.1f}".format(epoch + 1, *losses), flush=True)
    results = []
    for images in tests:
        parts = [scores(vae, x, torch.randn(len(x), LATENT_SIZE)) for x in images.split(500)]
        results.append([torch.cat(part) for part in zip(*parts, strict=True)])
    (test_bits, test_kl), (ood_bits, ood_kl) = results
    print(f"AUC BPD  {auroc(test_bits, ood_bits):.3f}\nAUC KL   {auroc(test_kl, ood_kl):.3f}")
    for name, bits in (("Test BPD", test_bits.mean()), ("OOD BPD ", ood_bits.mean())):
        print(f"{name} {bits * math.log(2):.3f} nats per dimension, the tables' unit; {bits:.3f} bits")


if __name__ == "__main__":
    main()
