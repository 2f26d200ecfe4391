"""Where negative samples come from.

A source is written as text, in run descriptions and on the command line (`parse`):

    none                          no negatives: the baseline VAE
    emnist-letters                another data set, by name or path; also auxiliary:emnist-letters
    zoomed:imagenet32             random parts of its images, enlarged: more variety where a set is small
    added-noise[:SIGMA]           the inliers plus Gaussian noise (sigma 0.25)
    uniform-noise                 uniform integer pixels
    generated                     the model's own samples; the decoder is trained against the encoder
    augmented[:NAME,NAME...]      transformations of the inliers (`negvae.transformations`)
    0.7*augmented+0.3*generated   a mixture: each source gives its share of every batch
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from negvae.model import VAE
from negvae.text import choose
from negvae.transformations import DEFAULT_TRANSFORMATIONS, FEATURE_TRANSFORMATIONS, TRANSFORMATIONS, box, zoom

SOURCES = ("none", "auxiliary", "zoomed", "added-noise", "uniform-noise", "generated", "augmented")
DEFAULT_NOISE = 0.25


EVERY = slice(None)


class NegativeBatch(NamedTuple):
    """One batch of negatives.

    Attributes:
        given: images from outside the model (K x C x H x W, in [0, 1]); None where there are none.
        generated: images from the generator (M x C x H x W), with the gradient to the decoder attached, so that it
            can be trained to pull them back; None where there are none.
    """

    given: Tensor | None
    generated: Tensor | None = None

    @property
    def images(self) -> Tensor:
        """What the encoder sends to the negative prior (K + M x C x H x W), without gradient."""
        parts = [part.detach() for part in self if part is not None]
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    @property
    def size(self) -> int:
        """K + M."""
        return sum(len(part) for part in self if part is not None)


class NegativeSource(Protocol):
    """What the training loop asks of a source of negatives."""

    @property
    def adversarial(self) -> bool:
        """Whether the generator network is trained against this source's negatives."""

    def sample(self, positives: Tensor, model: VAE, generator: torch.Generator, rows: slice = EVERY) -> NegativeBatch:
        """As many negatives as there are positives (B x C x H x W, in [0, 1]), or the given rows of them.

        The same random numbers are drawn for some of the rows as for all.
        """


@dataclass(frozen=True)
class Auxiliary:
    """Random images of another data set.

    Args:
        images: the whole set as it is stored (uint8, M x C x H x W), on the training device.
    """

    images: Tensor
    adversarial = False

    def sample(self, positives: Tensor, model: VAE, generator: torch.Generator, rows: slice = EVERY) -> NegativeBatch:
        """Rows drawn uniformly with replacement."""
        size, device = (len(positives),), self.images.device
        chosen = torch.randint(len(self.images), size, generator=generator, device=device)
        return NegativeBatch(model.prepare(self.images[chosen[rows]]))


@dataclass(frozen=True)
class Zoomed:
    """Random parts of another data set's images, enlarged by 1 to 4 and some of them mirrored.

    Args:
        images: the whole set, uint8, M x C x H x W, on the training device.
    """

    images: Tensor
    adversarial = False

    def sample(self, positives: Tensor, model: VAE, generator: torch.Generator, rows: slice = EVERY) -> NegativeBatch:
        """Rows drawn uniformly with replacement, each zoomed anew."""
        drawn = Auxiliary(self.images).sample(positives, model, generator).images
        return NegativeBatch(zoom(drawn, generator, least=1.0)[rows])


@dataclass(frozen=True)
class AddedNoise:
    """The inliers with isotropic Gaussian noise, clipped to [0, 1] (section 4.3 of the paper).

    Rows of features are standardized and have no bounds: their noise is not clipped.
    """

    sigma: float = DEFAULT_NOISE
    adversarial = False

    def __post_init__(self) -> None:
        """Refuse a sigma that adds nothing."""
        if not 0 < self.sigma < float("inf"):
            raise ValueError(f"added-noise: sigma is {self.sigma}: it must be a finite number above 0")

    def sample(self, positives: Tensor, model: VAE, generator: torch.Generator, rows: slice = EVERY) -> NegativeBatch:
        """One noisy copy of each positive."""
        noise = torch.empty_like(positives).normal_(0, self.sigma, generator=generator)
        noisy = (positives + noise)[rows]
        return NegativeBatch(noisy if _are_rows(positives) else noisy.clamp_(0, 1))


@dataclass(frozen=True)
class UniformNoise:
    """Each pixel a uniform integer in 0..255 (Table 5, "random"); rows of features: uniform in a box around them."""

    adversarial = False

    def sample(self, positives: Tensor, model: VAE, generator: torch.Generator, rows: slice = EVERY) -> NegativeBatch:
        """Fresh noise for every batch."""
        if _are_rows(positives):
            return NegativeBatch(box(positives, generator)[rows])
        noise = torch.randint(256, positives.shape, generator=generator, device=positives.device)[rows]
        return NegativeBatch(noise.to(positives.dtype).div_(255))


@dataclass(frozen=True)
class Generated:
    """G(z), z ~ N(0, I): the model's own samples, the paper's fully unsupervised variant (section 3).

    The encoder sends them to the negative prior, with the gradient stopped at the image; the generator is
    trained to bring them back to the positive one.
    """

    adversarial = True

    def sample(self, positives: Tensor, model: VAE, generator: torch.Generator, rows: slice = EVERY) -> NegativeBatch:
        """Mean images of fresh codes."""
        z = model.prior.sample(len(positives), generator, positives.device)
        images = model.generate(z[rows])
        return NegativeBatch(None, images)


@dataclass(frozen=True)
class Augmented:
    """Label-free transformations of the batch itself; each gets an equal share of it.

    Args:
        names: keys of `negvae.transformations.TRANSFORMATIONS`, or for rows of features of
            `FEATURE_TRANSFORMATIONS`; None for the defaults: `DEFAULT_TRANSFORMATIONS`, or all of the latter.
    """

    names: tuple[str, ...] | None = None
    adversarial = False

    def __post_init__(self) -> None:
        """Refuse unknown or no transformations."""
        if self.names is None:
            return
        if not self.names:
            raise ValueError(f"augmented needs a transformation. Known: {', '.join(TRANSFORMATIONS)}")
        for name in self.names:
            choose("transformation", name, [*TRANSFORMATIONS, *FEATURE_TRANSFORMATIONS])

    def sample(self, positives: Tensor, model: VAE, generator: torch.Generator, rows: slice = EVERY) -> NegativeBatch:
        """One transformed copy of each positive."""
        known = FEATURE_TRANSFORMATIONS if _are_rows(positives) else TRANSFORMATIONS
        chosen = self.names or (tuple(known) if _are_rows(positives) else DEFAULT_TRANSFORMATIONS)
        for name in chosen:
            if name not in known:
                what = "rows of features" if _are_rows(positives) else "images"
                raise ValueError(f"augmented:{name} does not apply to {what}; these do: {', '.join(known)}")
        # Some transformations mix images, so a share is two images at least.
        if len(positives) < 2 * len(chosen):
            every = torch.stack([known[name](positives, generator) for name in chosen])
            size, device = (len(positives),), positives.device
            choice = torch.randint(len(chosen), size, generator=generator, device=device)
            return NegativeBatch(every[choice, torch.arange(len(positives), device=device)][rows])
        pairs = zip(chosen, positives.tensor_split(len(chosen)), strict=True)
        return NegativeBatch(torch.cat([known[name](part, generator) for name, part in pairs])[rows])


def _are_rows(prepared: Tensor) -> bool:
    """Whether these are rows of features, N x D x 1 x 1, and not images."""
    return prepared.shape[2:] == (1, 1)


@dataclass(frozen=True)
class Mixture:
    """Several sources, each giving a fixed share of every batch.

    Args:
        sources: the parts.
        weights: their shares, positive; they need not sum to one.
    """

    sources: tuple[NegativeSource, ...]
    weights: tuple[float, ...]

    def __post_init__(self) -> None:
        """Refuse weights that are not shares."""
        if len(self.sources) != len(self.weights) or len(self.sources) < 2:
            raise ValueError("a mixture takes two or more sources and one weight for each")
        if not all(0 < weight < float("inf") for weight in self.weights):
            raise ValueError(f"mixture weights are {self.weights}: they must be finite numbers above 0")

    @property
    def adversarial(self) -> bool:
        """Whether any part is."""
        return any(source.adversarial for source in self.sources)

    def sample(self, positives: Tensor, model: VAE, generator: torch.Generator, rows: slice = EVERY) -> NegativeBatch:
        """The parts' batches one after the other, over consecutive shares of the (shuffled) positives."""
        cumulative, total = 0.0, sum(self.weights)
        cuts = []
        for weight in self.weights[:-1]:
            cumulative += weight
            cuts.append(round(len(positives) * cumulative / total))
        parts, start = list[NegativeBatch](), 0
        for source, share in zip(self.sources, positives.tensor_split(cuts), strict=True):
            within = [row - start for row in range(len(positives))[rows] if start <= row < start + len(share)]
            if len(share):
                every = slice(within[0], within[-1] + 1, rows.step) if within else slice(0)
                parts.append(source.sample(share, model, generator, every))
            start += len(share)
        given = [part.given for part in parts if part.given is not None and len(part.given)]
        generated = [part.generated for part in parts if part.generated is not None and len(part.generated)]
        return NegativeBatch(torch.cat(given) if given else None, torch.cat(generated) if generated else None)


class Spec(NamedTuple):
    """One parsed part of a source's text: its kind, its argument and its weight in the mixture."""

    kind: str
    argument: str
    weight: float


def parse(text: str) -> list[Spec]:
    """Read the notation at the top of this module; "none" gives an empty list.

    Whether a data set of that name exists is not looked up here.

    Raises:
        ValueError: a part is malformed; the message says which and how.
    """
    if text.strip() == "none":
        return []
    specs = []
    for part in text.split("+"):
        weight, star, rest = part.strip().rpartition("*")
        try:
            share = float(weight) if star else 1.0
        except ValueError:
            raise ValueError(f"negatives {text!r}: {weight!r} is not a weight, as in 0.5*augmented") from None
        kind, _, argument = rest.strip().partition(":")
        if kind == "none":
            raise ValueError(f"negatives {text!r}: none cannot be part of a mixture")
        if kind not in SOURCES:  # a data set's name, or a path that may hold a colon
            kind, argument = "auxiliary", rest.strip()
        if kind in ("auxiliary", "zoomed") and not argument:
            raise ValueError(f"negatives {text!r}: a data set's name or path is missing, as in {kind}:kmnist")
        if kind in ("generated", "uniform-noise") and argument:
            raise ValueError(f"negatives {text!r}: {kind} takes no argument, got {argument!r}")
        if kind == "added-noise" and argument:
            try:
                float(argument)
            except ValueError:
                message = f"negatives {text!r}: {argument!r} is not a sigma, as in added-noise:0.25"
                raise ValueError(message) from None
        specs.append(Spec(kind, argument, share))
    return specs


def auxiliary_names(text: str) -> list[str]:
    """The data sets that a source's text draws on, each once."""
    return list(dict.fromkeys(spec.argument for spec in parse(text) if spec.kind in ("auxiliary", "zoomed")))


def build_source(text: str, load_auxiliary: Callable[[str], Tensor]) -> NegativeSource | None:
    """The source that `text` describes; None for "none".

    Args:
        text: in the notation of this module.
        load_auxiliary: gives a data set's images (uint8, M x C x H x W, on the training device) by name or path.

    Raises:
        ValueError: the text or one of its arguments is refused.
    """
    sources: list[NegativeSource] = []
    specs = parse(text)
    for spec in specs:
        if spec.kind == "auxiliary":
            sources.append(Auxiliary(load_auxiliary(spec.argument)))
        elif spec.kind == "zoomed":
            sources.append(Zoomed(load_auxiliary(spec.argument)))
        elif spec.kind == "added-noise":
            sources.append(AddedNoise(float(spec.argument or DEFAULT_NOISE)))
        elif spec.kind == "uniform-noise":
            sources.append(UniformNoise())
        elif spec.kind == "generated":
            sources.append(Generated())
        else:
            names = tuple(name.strip() for name in spec.argument.split(",")) if spec.argument else None
            sources.append(Augmented(names) if names else Augmented())
    if len(sources) < 2:
        return sources[0] if sources else None
    return Mixture(tuple(sources), tuple(spec.weight for spec in specs))


def refuse_overlap(inliers: Tensor, auxiliary: Tensor, inlier_name: str, auxiliary_name: str) -> None:
    """Check that no image is both an inlier and a negative.

    Args:
        inliers: uint8, N x C x H x W.
        auxiliary: uint8, M x C x H x W.
        inlier_name: for the message.
        auxiliary_name: for the message.

    Raises:
        ValueError: the shapes differ, or an image stands in both sets.
    """
    shapes = ["x".join(map(str, images.shape[1:])) for images in (inliers, auxiliary)]
    if shapes[0] != shapes[1]:
        raise ValueError(
            f"negatives {auxiliary_name} are {shapes[1]}, the inliers {inlier_name} are {shapes[0]} (C x H x W):"
            " they must have the same shape"
        )
    places = {digest: row for row, digest in enumerate(_digests(inliers))}
    shared = [(places[d], row) for row, d in enumerate(_digests(auxiliary)) if d in places]
    if shared:
        raise ValueError(
            f"negatives {auxiliary_name} overlap the inliers {inlier_name}: {len(shared)} of {len(auxiliary)} images"
            f" are identical (first: negative {shared[0][1]} is inlier {shared[0][0]}); take another set or"
            " remove them"
        )


def _digests(images: Tensor) -> Sequence[bytes]:
    """One 128-bit hash for each image's pixels."""
    rows = images.cpu().flatten(1).numpy()
    return [hashlib.blake2b(row.tobytes(), digest_size=16).digest() for row in rows]
