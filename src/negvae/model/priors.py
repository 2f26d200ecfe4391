"""Priors over the latent codes: diagonal Gaussians with a closed-form KL divergence from the posterior."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from negvae.model.likelihoods import HALF_LOG_TWO_PI, wide


@dataclass(frozen=True)
class GaussianPrior:
    """The prior N(shift 1, I) over `size` latent dimensions.

    The positive prior has shift 0; the negative prior (section 3 of the paper) has shift c, 8 for gray images and 25
    for color in the paper, which is large enough that the two typical regions do not overlap.

    Attributes:
        size: number of latent dimensions.
        shift: mean of the prior in every dimension.
    """

    size: int
    shift: float = 0.0

    def kl(self, mean: Tensor, log_var: Tensor) -> Tensor:
        """Compute KL(N(mean, exp(log_var)) || this prior) in nats.

        Args:
            mean: posterior means, N x size.
            log_var: logarithms of the posterior variances, N x size.

        Returns:
            N values, computed in float32 at least.

        >>> GaussianPrior(size=2, shift=8.0).kl(torch.zeros(1, 2), torch.zeros(1, 2))
        tensor([64.])
        """
        mean, log_var = wide(mean), wide(log_var)
        return 0.5 * ((mean - self.shift).square() + log_var.exp() - log_var - 1).sum(-1)

    def kl_excess(self, mean: Tensor) -> Tensor:
        """Compute the KL to N(0, I) minus the KL to this prior, in nats (N), given posterior means (N x size).

        All terms but shift sum(mean) - size shift^2 / 2 cancel. If the shift is large, each divergence is thousands of
        nats, and subtracting the rounded divergences would lose the significant digits.

        >>> GaussianPrior(size=2, shift=8.0).kl_excess(torch.full((1, 2), 8.0))
        tensor([64.])
        """
        return self.shift * wide(mean).sum(-1) - 0.5 * self.size * self.shift**2

    def log_prob(self, z: Tensor) -> Tensor:
        """Compute log p(z) in nats (N), given z (N x size)."""
        return -0.5 * (z - self.shift).square().sum(-1) - self.size * HALF_LOG_TWO_PI

    def sample(
        self, n: int, generator: torch.Generator | None = None, device: torch.device | str | None = None
    ) -> Tensor:
        """Draw n codes (n x size)."""
        place = device if device is not None else generator.device if generator is not None else "cpu"
        return torch.randn(n, self.size, generator=generator, device=place, dtype=torch.float32) + self.shift


@dataclass(frozen=True)
class PriorSet:
    """Priors N(mu_t, I) for T classes of inputs, with means that are equally far apart.

    The first class, the inliers, has its mean at zero. The two priors of section 3 of the paper are the case T = 2:
    `PriorSet.pair(size, c)` has the means 0 and c 1, which are c sqrt(size) apart.

    Attributes:
        means: mean of each prior, T rows of `size` numbers.
    """

    means: tuple[tuple[float, ...], ...]

    @classmethod
    def pair(cls, size: int, shift: float) -> PriorSet:
        """Make the paper's two priors, N(0, I) and N(shift 1, I)."""
        return cls(((0.0,) * size, (shift,) * size))

    @classmethod
    def simplex(cls, count: int, size: int, distance: float) -> PriorSet:
        """Make priors whose means are the corners of a regular simplex with a corner at zero.

        With unit vectors e_t the means are distance / sqrt(2) (e_t - e_0).

        Args:
            count: T, the number of priors, at most `size`.
            size: number of latent dimensions.
            distance: distance of any two means.

        Returns:
            The priors.

        Raises:
            ValueError: if there are more priors than dimensions.

        >>> PriorSet.simplex(3, size=3, distance=2.0).distance(1, 2)
        2.0
        """
        if not 1 <= count <= size:
            raise ValueError(f"{count} priors take as many latent dimensions at least: latent_size is {size}")
        side = distance / math.sqrt(2)
        rows = ([side * ((column == t) - (column == 0)) for column in range(size)] for t in range(count))
        return cls(tuple(map(tuple, rows)))

    @property
    def count(self) -> int:
        """Return T, the number of priors."""
        return len(self.means)

    def distance(self, first: int, second: int) -> float:
        """Return the distance of two means."""
        return round(math.dist(self.means[first], self.means[second]), 12)

    def kl(self, mean: Tensor, log_var: Tensor) -> Tensor:
        """Compute KL(N(mean, exp(log_var)) || each prior) in nats.

        Args:
            mean: posterior means, N x size.
            log_var: logarithms of the posterior variances, N x size.

        Returns:
            N x T values, computed in float32 at least.

        >>> PriorSet.pair(size=2, shift=8.0).kl(torch.zeros(1, 2), torch.zeros(1, 2))
        tensor([[ 0., 64.]])
        """
        mean, log_var = wide(mean), wide(log_var)
        means = torch.tensor(self.means, dtype=mean.dtype, device=mean.device)
        spread = 0.5 * (log_var.exp() - log_var - 1).sum(-1, keepdim=True)
        return spread + 0.5 * (mean.unsqueeze(1) - means).square().sum(-1)
