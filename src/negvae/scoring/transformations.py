"""How far the codes of an image's transformed copies lie from their priors, and whether inliers' copies differ at all.

Each transformation t has a prior N(mu_t, I) (`negvae.model.shifted`). Whether the encoder can tell the transformations
of these inliers is measured on inliers that it was not trained on.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from negvae.fast.int8_decoder import QuantizedNetworks
from negvae.model import VAE
from negvae.model.shifted import trained_on
from negvae.model.shifts import copies
from negvae.scoring.compute import over_blocks
from negvae.scoring.latent_neighbors import IMAGES, NEAREST, to_nearest, whitener
from negvae.scoring.metrics import auroc
from negvae.scoring.passes import Pass, SharedDraws
from negvae.scoring.references import Values, scale
from negvae.scoring.table import Fit
from negvae.spacing import spread_rows

LEAST_IMAGES = 20
"""Number of unseen inliers below which their scores have no scale."""
LEAST_GAIN = 1.2
"""Least ratio of the share of copies that are told apart to that by chance; below it, the transformations are none."""
ERRORS = 2
"""Number of standard errors by which that share must exceed chance as well: among few images luck goes further."""
LEAST_AUROC = 0.9
"""Least AUROC by which "latent_neighbors" finds transformed copies, for it to be part of "combined"."""
MOST_OF_ONE_KIND = 10_000
"""Largest number of training images that are expected to be of one kind. Outliers that resemble one kind of inliers
show in the scores of transformations, and adding up the other scores would add noise. More images are of several kinds;
then each of the other scores finds outliers of its own, and "combined" adds them up (`References.summed`)."""


def transformations_kl(x: Pass) -> Tensor:
    """Return the sum over transformations t of KL(q(z|t(x)) || prior_t) in nats (N).

    It is what section 3 of the paper minimizes for its two priors, with a prior for each transformation, as the mean
    over an image's views. With the identity alone it would be a KL to N(0, I).
    """
    return x.transformed_divergences.diagonal(dim1=1, dim2=2).sum(1)


def transformations_distance(x: Pass) -> Tensor:
    """Return how far the codes of an image's copies lie from their priors, in the metric of training copies (N).

    It is the Mahalanobis distance of `log_odds` from what they are at the priors' means, by the covariance that the
    copies of training images have about their own means, one for all transformations. Where transformations are hard to
    tell apart, the codes of inliers vary, and a deviation there says little; where inliers' codes never vary, a small
    one says much. If the codes of training copies varied alike in all directions, the square would be proportional to
    the part of `transformations_kl` that lies in the directions in which the priors differ.
    """
    return distance(log_odds(x), x.fitted("transformations_distance"))


def log_odds(x: Pass) -> Tensor:
    """Return the log-odds of each transformation against the identity, less their value at the prior's mean.

    For the copy by t they are log p(s|z) - log p(0|z) = KL(q(z|t(x)) || prior_0) - KL(q(z|t(x)) || prior_s), which is
    linear in the mean of q(z|t(x)), for s = 1 to T - 1: all that priors of equal covariance can tell of a code.

    Args:
        x: pass of a model with transformations.

    Returns:
        N x T x (T - 1) values in nats.
    """
    assert x.model.shifted is not None
    means = torch.tensor(x.model.shifted.priors.means, dtype=torch.float64, device=x.images.device)
    at_mean = 0.5 * (means.unsqueeze(1) - means).square().sum(2)
    divergences = x.transformed_divergences - at_mean
    return divergences[:, :, :1] - divergences[:, :, 1:]


def fit(statistics: ArrayLike) -> Values:
    """Return the matrix that whitens the log-odds of training images' copies about their means.

    Args:
        statistics: `log_odds` of N training images, N x T x (T - 1).

    Returns:
        The (T - 1) x (T - 1) matrix that `distance` takes.
    """
    values = np.asarray(statistics, np.float64)
    centered = (values - values.mean(0)).reshape(-1, values.shape[2])
    # The ridge keeps the distance finite in directions in which training copies hardly vary.
    return whitener(centered, 1e-3)


def distance(statistics: Tensor, fitted: Tensor) -> Tensor:
    """Return the distance (N) of log-odds (N x T x (T - 1), float64) from 0, by the matrix that `fit` gives."""
    # Not a matrix product, which may round an image's distance differently in another place of its batch.
    return (statistics.unsqueeze(3) * fitted).sum(2).square().sum((1, 2)).sqrt()


def is_fitted(values: Values) -> bool:
    """Return whether an array has the form that `fit` gives."""
    return values.ndim == 2 and values.shape[0] == values.shape[1] and bool(np.isfinite(values).all())


DISTANCE = Fit(statistics=log_odds, fit=fit, distance=distance, is_fitted=is_fitted)
FITS = {"transformations_distance": DISTANCE, "latent_neighbors": NEAREST}
"""How those scores are fitted whose scales are measured on inliers that the encoder of transformations has not seen."""


@dataclass(frozen=True)
class Judgement:
    """What the encoders make of training images' copies, and of those that the encoder of transformations has not seen.

    Attributes:
        images: number of unseen inliers that were measured.
        accuracy: share of their copies, the identity's among them, whose own prior is the nearest; 0 without any.
        error: standard error of that share, over the images.
        chance: that share by chance.
        auroc: AUROC by which "latent_neighbors" tells their transformed copies from themselves; 0 without any.
        fitted: results of fitting scores to training images, by the score's name.
        scales: scales of the fitted scores and of "transformations_kl" on the unseen inliers
            (`negvae.scoring.references.scale`), by the score's name; none without any.
        several: whether there are too many training images for one kind (`MOST_OF_ONE_KIND`).
    """

    images: int
    accuracy: float
    error: float
    chance: float
    auroc: float
    fitted: Mapping[str, Values]
    scales: Mapping[str, Values]
    several: bool = False

    @property
    def summed(self) -> bool:
        """Return whether "combined" adds up the other scores, too (`References.summed`)."""
        return self.several and bool(self.components)

    @property
    def components(self) -> dict[str, Values]:
        """Return the scales of the scores that "combined" gains by transformations, by name; none if it gains none."""
        least = max(LEAST_GAIN * self.chance, self.chance + ERRORS * self.error)
        if self.images < LEAST_IMAGES or self.accuracy < least:
            return {}
        left_out = () if self.auroc >= LEAST_AUROC else ("latent_neighbors",)
        return {name: values for name, values in self.scales.items() if name not in left_out}

    def describe(self) -> str:
        """Describe the judgement in one line.

        >>> Judgement(9, 0.27, 0.02, 0.25, 0.5, {}, {}).describe()
        'transformations are left out of combined: 9 unseen inliers are fewer than 20'
        """
        left_out = "transformations are left out of combined"
        if self.images < LEAST_IMAGES:
            return f"{left_out}: {self.images} unseen inliers are fewer than {LEAST_IMAGES}"
        told_apart = f"{self.accuracy:.0%} of the copies of {self.images:,} unseen inliers are told apart"
        told_apart += f" ({self.chance:.0%} by chance)"
        if not self.components:
            return f"{left_out}: {told_apart}, with a standard error of {self.error:.1%}"
        neighbors = "latent_neighbors is too" if "latent_neighbors" in self.components else "latent_neighbors is not"
        found = f"it finds copies with an AUROC of {self.auroc:.2f}, and {LEAST_AUROC} is asked for"
        return f"transformations are part of combined: {told_apart}; {neighbors}: {found}"


def judge(model: VAE, training: Tensor, precision: str, quantized: QuantizedNetworks | None = None) -> Judgement:
    """Fit scores to training images, and measure them on those that the encoder of transformations has not seen.

    Args:
        model: trained VAE with transformations, in evaluation mode.
        training: all stored training images, uint8, N x C x H x W.
        precision: precision of the networks.
        quantized: the model's networks in int8, used in place of its own where scores use them; codes of transformed
            copies are compared in `precision`.

    Returns:
        The judgement.
    """
    assert model.shifted is not None

    def measured(mask: Tensor, **more: Callable[[Pass], Tensor]) -> dict[str, Tensor]:
        images = training[spread_rows(mask.nonzero().flatten(), IMAGES)]
        functions = {name: fit.statistics for name, fit in FITS.items()} | more
        return over_blocks(
            model, images, functions, draws=SharedDraws(), precision=precision, quantized=quantized
        )  # fmt: skip

    # An unseen inlier that scores were fitted to would be a neighbor of its own.
    seen = trained_on(training)
    statistics, unseen = measured(seen), ~seen
    fitted = {name: fit.fit(statistics[name].numpy()) for name, fit in FITS.items()}
    chance = 1 / model.shifted.priors.count
    if not unseen.any():
        return Judgement(0, 0.0, 0.0, chance, 0.0, fitted, {})
    found = measured(unseen, transformations_kl=transformations_kl, right=_right, copies=_means_of_copies)
    scores = {"transformations_kl": found["transformations_kl"]}
    kept = {name: torch.from_numpy(values) for name, values in fitted.items()}
    scores |= {name: fit.distance(found[name], kept[name]) for name, fit in FITS.items()}
    of_copies = to_nearest(found["copies"].flatten(0, 1), kept["latent_neighbors"])
    area, _ = auroc(scores["latent_neighbors"].numpy(), of_copies.numpy())
    scales = {name: scale(values.numpy()) for name, values in scores.items()}
    right, count = found["right"], len(found["right"])
    error = float(right.std(correction=0)) / math.sqrt(count)
    several = len(training) > MOST_OF_ONE_KIND
    return Judgement(count, float(right.mean()), error, chance, area, fitted, scales, several)


def _means_of_copies(x: Pass) -> Tensor:
    """Return the means of q(z|t(x)) of an image's content, for all transformations but the identity (N x T - 1 x L)."""
    assert x.model.shifted is not None
    shifts = x.model.shifted.shifts[1:]
    mean = x.model.encode(copies(shifts, x.images)).mean.double()
    return mean.reshape(len(shifts), len(x.images), -1).transpose(0, 1)


def _right(x: Pass) -> Tensor:
    """Return the share of each image's copies whose own prior is the nearest (N)."""
    nearest = x.transformed_divergences.argmin(2)
    return (nearest == torch.arange(nearest.shape[1], device=nearest.device)).double().mean(1)
