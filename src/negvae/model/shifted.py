"""The part of the code that says which transformation made an image, with one prior for each transformation.

Section 3 of the paper has two classes of inputs, inliers and negatives, and a prior for each. Here every shifting
transformation t of the inliers (`negvae.model.shifts`) is a class of its own with the prior N(mu_t, I); the identity is
the class of the inliers, with mu_0 = 0. The encoder minimizes KL(q(z|t(x)) || N(mu_t, I)) for all of them, so that it
learns what distinguishes an inlier from the same inlier turned or moved. Images of another kind lack those marks, and
their copies fall elsewhere. Two priors, as with one transformation beside the identity, are the paper's pair but for a
rotation of the latent space.

The code of a VAE then has two parts, one of the image's content and one of its transformation. The decoder reads the
content alone, so the other part is integrated out of the bound on log p(x), and "kl" and "bpd" stay what they were.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, pad

from negvae.model.likelihoods import wide
from negvae.model.networks import Shape, residual_encoder
from negvae.model.priors import PriorSet
from negvae.model.shifts import build_shifts, copies

SIZE = 64
"""Number of latent dimensions of the transformation's part of the code, or of the transformations if they are more."""
DISTANCE = 6.0
"""Distance of any two priors' means, in standard deviations."""
SIDE = 32
"""Side in pixels of the images that the encoder sees, about; larger ones are averaged over squares of pixels."""
HELD_BACK = 10
"""One image in so many is not trained on: what the encoder makes of unseen inliers is measured on it."""
_MANY = 1_000_003


class ShiftEncoder(nn.Module):
    """q(z|x) of the transformation's part of the code, and a prior for each of T transformations.

    Args:
        names: names of the transformations in `negvae.parts.SHIFTS`, separated by commas.
        shape: shape (C, H, W) of the images.

    Attributes:
        encoder: network from images (N x C x H x W) to N x 2L numbers.
        shifts: the T transformations; the first is the identity.
        priors: the T priors.
        pooled: side in pixels of the squares over which images are averaged for the encoder.

    >>> encoder = ShiftEncoder("turns", (1, 28, 28)).eval()
    >>> encoder.divergences(*encoder.posteriors(torch.rand(5, 1, 28, 28))).shape
    torch.Size([5, 4, 4])
    """

    def __init__(self, names: str, shape: Shape) -> None:
        super().__init__()
        self.shifts = build_shifts(names, shape)
        size = max(SIZE, len(self.shifts))
        self.priors = PriorSet.simplex(len(self.shifts), size, DISTANCE)
        self.pooled = max(1, round(min(shape[1:]) / SIDE))
        self.encoder = residual_encoder(shape[0], size)

    def posteriors(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Compute q(z|t(x)) for all transformations t.

        Args:
            images: prepared images, N x C x H x W, in [0, 1].

        Returns:
            Means and log-variances, each (T N) x L: those of the first transformation, then those of the next.
        """
        # Cut to whole squares first, so that all copies lose the same border.
        height, width = (side - side % self.pooled for side in images.shape[2:])
        shifted = copies(self.shifts, images[:, :, :height, :width])
        if self.pooled > 1:
            shifted = avg_pool2d(shifted, self.pooled)
        shifted = shifted.contiguous(memory_format=torch.channels_last)
        mean, log_var = wide(self.encoder(shifted)).chunk(2, dim=1)
        return mean, log_var.clamp(-12, 12)  # exp() of an image unlike all others stays finite

    def views(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return images moved up and left, and down and right, by a pixel of those that the encoder sees.

        What is computed of both and averaged depends less on where an image was cut. The reflected border comes in.

        Args:
            images: prepared images, N x C x H x W, in [0, 1].

        Returns:
            Two batches of the same shape.
        """
        by, (height, width) = self.pooled, images.shape[2:]
        framed = pad(images, (by, by, by, by), mode="reflect")
        return framed[:, :, 2 * by :, 2 * by :], framed[:, :, :height, :width]

    def divergences(self, mean: Tensor, log_var: Tensor) -> Tensor:
        """Compute KL(q(z|t(x)) || prior_s) in nats for all transformations t and priors s.

        Args:
            mean: means that `posteriors` gives, (T N) x L.
            log_var: log-variances that `posteriors` gives, (T N) x L.

        Returns:
            N x T x T values, the transformation on axis 1 and the prior on axis 2.
        """
        divergences = self.priors.kl(mean, log_var)
        return divergences.reshape(self.priors.count, -1, self.priors.count).transpose(0, 1)


def trained_on(images: Tensor) -> Tensor:
    """Return which images the encoder of transformations is trained on: all but those of `held_back`, or all of them.

    Args:
        images: uint8 images, N x C x H x W.

    Returns:
        A mask (N), on the images' device.
    """
    back = held_back(images)
    return back if back.all() else ~back


def held_back(images: Tensor) -> Tensor:
    """Return which images the encoder of transformations is not trained on, about one in `HELD_BACK`.

    An image's own pixels decide, so that the answer does not depend on its place, and copies of an image agree.

    Args:
        images: uint8 images, N x C x H x W.

    Returns:
        A mask (N), on the images' device.
    """
    weights = torch.arange(1, images[:1].numel() + 1, device=images.device).square_().remainder_(_MANY)
    # Written in place: a small result kept after each large product would keep the products' memory from being reused.
    sums = torch.empty(len(images), dtype=torch.int64, device=images.device)
    for start in range(0, len(images), 256):
        part = images[start : start + 256].flatten(1)
        torch.sum(part * weights, 1, out=sums[start : start + 256])
    # The remainder by a prime first, since sums of few distinct intensities have common divisors.
    return sums.remainder(_MANY).remainder(HELD_BACK) == 0
