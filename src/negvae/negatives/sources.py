"""Sources of negatives: each makes a batch from the positives, the model and a random generator."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from negvae.model import VAE
from negvae.negatives.transformations import Transformation, box, zoom
from negvae.parts import TRANSFORMATION_ARGUMENTS, TRANSFORMATIONS, Takes, described
from negvae.registry import require_arguments

DEFAULT_NOISE = 0.25
LARGEST = 255
EVERY = slice(None)
_ROUNDING = 0.01
"""By so much may pixels leave [0, 1]: the nearest bfloat16 of a computed value may."""


class NegativeBatch(NamedTuple):
    """One batch of negatives.

    Attributes:
        given: images that do not come from the model, K x C x H x W, in [0, 1]; None if there are none.
        generated: images from the generator, M x C x H x W, with the gradient to the decoder attached, so that the
            decoder can be trained against the encoder; None if there are none.
    """

    given: Tensor | None
    generated: Tensor | None = None

    @property
    def images(self) -> Tensor:
        """Return all images of the batch (K + M x C x H x W), without gradient, as the encoder gets them."""
        parts = [part.detach() for part in self if part is not None]
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    @property
    def size(self) -> int:
        """Return the number of images, K + M."""
        return sum(len(part) for part in self if part is not None)


class NegativeSource(Protocol):
    """A source of negatives, as the training loop uses it."""

    @property
    def adversarial(self) -> bool:
        """Return whether the generator network is trained against this source's negatives."""

    def sample(self, positives: Tensor, model: VAE, generator: torch.Generator, rows: slice = EVERY) -> NegativeBatch:
        """Return as many negatives as there are positives (B x C x H x W, in [0, 1]), or only the given rows of them.

        The same random numbers are drawn for some of the rows as for all.
        """


def reads_model(source: NegativeSource) -> bool:
    """Return whether a source's negatives depend on the model's weights, so that no batch can be drawn before a step.

    Args:
        source: source of negatives; one without the attribute `reads_model` may depend on them.

    Returns:
        The attribute `reads_model`, or True.

    >>> reads_model(AddedNoise()), reads_model(Generated())
    (False, True)
    """
    return bool(getattr(source, "reads_model", True))


@contextmanager
def unchanged(images: Tensor, who: str) -> Iterator[None]:
    """Refuse that a block changes images in place: the inliers of a batch are trained on after their negatives.

    Args:
        images: images, or rows of features.
        who: what is called in the block, for the message.

    Raises:
        ValueError: if they were changed by an operation of torch's.

    >>> images = torch.ones(2, 1, 8, 8)
    >>> with unchanged(images, "transformation dark"):
    ...     dark = images / 2
    """
    before = None if images.is_inference() else images._version
    yield
    if before is not None and images._version != before:
        raise ValueError(f"{who} changes the inliers that it is given: let it change a copy, as images.clone() makes")


def check_source(source: Any) -> None:
    """Refuse what is no source of negatives, such as a class in place of an object.

    Args:
        source: object that is to make negatives.

    Raises:
        TypeError: if it is not an object with `adversarial` and `sample`, or `sample` does not take the four arguments.

    >>> check_source(Generated())
    >>> check_source(Generated)
    Traceback (most recent call last):
    TypeError: the source of negatives is the class Generated: it must be an object, as Generated(...) makes one
    """
    if isinstance(source, type):
        name = source.__name__
        raise TypeError(f"the source of negatives is the class {name}: it must be an object, as {name}(...) makes one")
    if isinstance(source, str):
        raise TypeError(
            f"the source of negatives is the text {source!r}: it must be an object, as negvae.negatives.build_source"
            " makes one of text"
        )
    if missing := [each for each in ("adversarial", "sample") if not hasattr(source, each)]:
        raise TypeError(
            f"the source of negatives {described(source)} has no {', '.join(missing)}: see"
            " negvae.negatives.NegativeSource; Auxiliary makes one of images"
        )
    arguments = ("positives", "model", "generator", "rows")
    require_arguments(f"the source of negatives {described(source)}: sample", source.sample, *arguments)


def check_negatives(source: NegativeSource, negatives: NegativeBatch, positives: Tensor, rows: slice = EVERY) -> None:
    """Refuse a batch of negatives that is not what `NegativeSource.sample` promises, but for its values.

    Args:
        source: source of the batch, for the message.
        negatives: batch that it gave.
        positives: positives that it was given, B x C x H x W.
        rows: rows of them that were asked for.

    Raises:
        TypeError: if it is no `NegativeBatch` of floating-point tensors.
        ValueError: if it has another number of images, or images of another shape or on another device; or if the
            decoder is to be trained against generated ones and no gradient is attached to them.
    """
    name = f"the source of negatives {type(source).__name__}"
    if not isinstance(negatives, NegativeBatch):
        raise TypeError(f"{name} gave a {type(negatives).__name__}: sample must return a NegativeBatch")
    for part in negatives:
        if part is not None and not (isinstance(part, Tensor) and part.is_floating_point()):
            what = f"a tensor of {part.dtype}" if isinstance(part, Tensor) else f"a {type(part).__name__}"
            raise TypeError(f"{name} gave {what}: images must be a tensor of floating-point numbers in [0, 1]")
        if part is not None and part.shape[1:] != positives.shape[1:]:
            raise ValueError(
                f"{name} gave images of shape {tuple(part.shape[1:])}: these inliers have {tuple(positives.shape[1:])}"
            )
        if part is not None and part.device != positives.device:
            raise ValueError(f"{name} gave images on {part.device}: these inliers are on {positives.device}")
    generated = negatives.generated
    if source.adversarial and generated is not None and len(generated) and not generated.requires_grad:
        raise ValueError(
            f"{name} gave generated images without gradient: the decoder is trained against them, so leave out detach()"
            " and torch.no_grad()"
        )
    wanted = len(range(*rows.indices(len(positives))))
    if negatives.size != wanted:
        raise ValueError(f"{name} gave {negatives.size} images: {wanted} were asked for")


def as_declared(source: NegativeSource, negatives: NegativeBatch) -> NegativeBatch:
    """Return a batch whose generated images count as given, unless its source says that it is adversarial.

    Args:
        source: source of the batch.
        negatives: batch that it gave.

    Returns:
        The batch, in which `generated` holds only images that the decoder is to be trained against.
    """
    return negatives if source.adversarial or negatives.generated is None else NegativeBatch(negatives.images)


def unchanged_images(source: NegativeSource | None) -> list[Tensor]:
    """Return the images that a source gives as they are, one tensor for each set, of a mixture those of all parts.

    Args:
        source: source of negatives; None for none.

    Returns:
        Tensors M x C x H x W as they are stored.

    >>> source = Mixture((Auxiliary(torch.zeros(5, 1, 4, 4, dtype=torch.uint8)), UniformNoise()), (1.0, 1.0))
    >>> [len(images) for images in unchanged_images(source)]
    [5]
    """
    if isinstance(source, Mixture):
        return [images for part in source.sources for images in unchanged_images(part)]
    return [source.images] if isinstance(source, Auxiliary) and source.change is None else []


def check_values(source: NegativeSource, negatives: NegativeBatch) -> None:
    """Refuse given negatives with NaN or infinity, and images whose pixels do not lie in [0, 1].

    This waits for the device, so training does it for the first batch only.

    Args:
        source: source of the batch, for the message.
        negatives: batch that it gave.

    Raises:
        ValueError: if a value is not allowed.
    """
    given = negatives.given
    if given is None or not given.numel():
        return
    least, most = given.detach().aminmax()
    bounded = _are_rows(given) or (least >= -_ROUNDING and most <= 1 + _ROUNDING)
    if not (bounded and torch.isfinite(least) and torch.isfinite(most)):
        right = "finite numbers" if _are_rows(given) else "pixels in [0, 1]"
        raise ValueError(
            f"the source of negatives {type(source).__name__} gave values from {least:g} to {most:g}: they must be"
            f" {right}"
        )


BuildSource = Callable[..., NegativeSource]
"""A function that makes a source, from its argument if it has one."""


@dataclass(frozen=True)
class Auxiliary:
    """Random images of another data set (section 4.2 of the paper).

    Args:
        images: all images of the set as they are stored (uint8, M x C x H x W), on the training device.
        change: transformation of the images that are drawn; None leaves them as they are.
    """

    images: Tensor
    change: Transformation | None = None
    adversarial = False
    reads_model = False

    def __post_init__(self) -> None:
        """Refuse what is no tensor, and a set without images."""
        if not isinstance(self.images, Tensor):
            kind = type(self.images).__name__
            raise TypeError(
                f"the negatives are a {kind}: they must be a tensor, N x C x H x W, as torch.from_numpy makes"
            )
        if not len(self.images):
            raise ValueError("the negatives' data set holds no images: give at least one, or take no negatives")

    def sample(self, positives: Tensor, model: VAE, generator: torch.Generator, rows: slice = EVERY) -> NegativeBatch:
        """Draw images uniformly with replacement, and transform each anew."""
        if self.images.is_floating_point() and not model.takes_features:  # which would be divided by 255 once more
            raise ValueError(
                f"negatives are {self.images.dtype} {tuple(self.images.shape)}: this model takes {model.inputs.stored}"
                " images, with intensities from 0 to 255"
            )
        size, device = (len(positives),), self.images.device
        chosen = torch.randint(len(self.images), size, generator=generator, device=device)
        if self.change is None:
            return NegativeBatch(model.prepare(self.images[chosen[rows]]))
        return NegativeBatch(self.change(model.prepare(self.images[chosen]), generator)[rows])


def zoomed(images: Tensor) -> Auxiliary:
    """Return a source of random parts of another data set's images, enlarged by 1 to 4 and half of them mirrored."""
    return Auxiliary(images, partial(zoom, least=1.0))


@dataclass(frozen=True)
class AddedNoise:
    """The inliers with isotropic Gaussian noise, clipped to [0, 1] (section 4.3 of the paper).

    Rows of features are standardized and have no bounds: their noise is not clipped.

    Args:
        sigma: standard deviation of the noise, in units of the [0, 1] pixel range or of the features' standard
            deviation.

    >>> positives = torch.full((4, 1, 8, 8), 0.5)
    >>> AddedNoise(0.1).sample(positives, model=None, generator=torch.Generator()).given.shape
    torch.Size([4, 1, 8, 8])
    """

    sigma: float = DEFAULT_NOISE
    adversarial = False
    reads_model = False

    def __post_init__(self) -> None:
        """Refuse a sigma that adds no noise."""
        if not 0 < self.sigma < float("inf"):
            raise ValueError(f"added-noise: sigma is {self.sigma}: it must be a finite number above 0")

    def sample(self, positives: Tensor, model: VAE, generator: torch.Generator, rows: slice = EVERY) -> NegativeBatch:
        """Return one noisy copy of each positive."""
        noise = torch.empty_like(positives).normal_(0, self.sigma, generator=generator)
        noisy = (positives + noise)[rows]
        return NegativeBatch(noisy if _are_rows(positives) else noisy.clamp_(0, 1))


@dataclass(frozen=True)
class UniformNoise:
    """Uniform integer pixels (Table 5, "random"); for rows of features, values in a box around them.

    Args:
        largest: intensity of the range 0..largest, a whole number; 254 in the authors' runs.
    """

    largest: float = LARGEST
    adversarial = False
    reads_model = False

    def __post_init__(self) -> None:
        """Refuse what is no intensity above 0."""
        if self.largest not in range(1, LARGEST + 1):
            raise ValueError(
                f"uniform-noise: the largest intensity is {self.largest:g}: it must be a whole number, from 1 to"
                f" {LARGEST}"
            )

    def sample(self, positives: Tensor, model: VAE, generator: torch.Generator, rows: slice = EVERY) -> NegativeBatch:
        """Draw new noise for every batch."""
        if _are_rows(positives):
            return NegativeBatch(box(positives, generator)[rows])
        noise = torch.randint(int(self.largest) + 1, positives.shape, generator=generator, device=positives.device)[
            rows
        ]
        return NegativeBatch(noise.to(positives.dtype).div_(255))


@dataclass(frozen=True)
class Generated:
    """The model's own samples G(z), z ~ N(0, I): the paper's fully unsupervised variant (section 3).

    The encoder sends them to the negative prior, with the gradient stopped at the image; the generator is
    trained to bring them back to the positive one.
    """

    adversarial = True
    reads_model = True

    def sample(self, positives: Tensor, model: VAE, generator: torch.Generator, rows: slice = EVERY) -> NegativeBatch:
        """Return the mean images of new codes."""
        z = model.prior.sample(len(positives), generator, positives.device)
        images = model.generate(z[rows].to(positives.dtype))
        return NegativeBatch(None, images)


@dataclass(frozen=True)
class Augmented:
    """Label-free transformations of the batch itself; each gets an equal share of it.

    Args:
        transformations: functions of images and a random generator, or names in `negvae.parts.TRANSFORMATIONS`; None
            for those that are the default for the kind of data.

    >>> positives = torch.rand(6, 1, 8, 8)
    >>> Augmented(("jigsaw", "mixup")).sample(positives, model=None, generator=torch.Generator()).size
    6
    """

    transformations: tuple[str | Transformation, ...] | None = None
    adversarial = False
    reads_model = False

    def __post_init__(self) -> None:
        """Refuse unknown transformations, what is no tuple of them, and an empty one."""
        if self.transformations is None:
            return
        if isinstance(self.transformations, str) or callable(self.transformations):
            name = isinstance(self.transformations, str)
            one = self.transformations if name else described(self.transformations)
            written = repr(one) if name else one
            raise TypeError(f"augmented takes a tuple of transformations, and got {one} alone: write ({written},)")
        if not self.transformations:
            raise ValueError(f"augmented needs a transformation. Known: {', '.join(TRANSFORMATIONS)}")
        for each in self.transformations:
            if isinstance(each, str):
                TRANSFORMATIONS[each]
            else:
                require_arguments(f"transformation {described(each)}", each, *TRANSFORMATION_ARGUMENTS)

    def sample(self, positives: Tensor, model: VAE, generator: torch.Generator, rows: slice = EVERY) -> NegativeBatch:
        """Return one transformed copy of each positive."""
        chosen = _applying(self.transformations, "features" if _are_rows(positives) else "images")
        # Some transformations mix images, so a share is two images at least.
        if len(positives) < 2 * len(chosen):
            every = torch.stack([_changed(change, positives, generator) for change in chosen])
            size, device = (len(positives),), positives.device
            choice = torch.randint(len(chosen), size, generator=generator, device=device)
            return NegativeBatch(every[choice, torch.arange(len(positives), device=device)][rows])
        pairs = zip(chosen, positives.tensor_split(len(chosen)), strict=True)
        return NegativeBatch(torch.cat([_changed(change, part, generator) for change, part in pairs])[rows])


def _changed(change: Transformation, images: Tensor, generator: torch.Generator) -> Tensor:
    """Return the changed images, and refuse a transformation that works on the inliers or returns anything else."""
    name = f"transformation {described(change)}"
    with unchanged(images, name):
        changed = change(images, generator)
    if not isinstance(changed, Tensor) or changed.shape != images.shape:
        given = tuple(changed.shape) if isinstance(changed, Tensor) else type(changed).__name__
        raise ValueError(
            f"{name} gave {given} for images of {tuple(images.shape)}: it must give a tensor of that shape"
        )
    return changed


def _applying(chosen: tuple[str | Transformation, ...] | None, kind: Takes) -> list[Transformation]:
    """Return the transformations themselves, and refuse names that are not for this kind of data."""
    known = {entry.name: entry for entry in TRANSFORMATIONS.entries() if entry.takes == kind}
    if chosen is None:
        return [entry.load() for entry in known.values() if entry.default]
    for each in chosen:
        if isinstance(each, str) and each not in known:
            what = "rows of features" if kind == "features" else "images"
            raise ValueError(f"augmented:{each} does not apply to {what}; these do: {', '.join(known)}")
    return [known[each].load() if isinstance(each, str) else each for each in chosen]


def _are_rows(prepared: Tensor) -> bool:
    """Return whether these are rows of features, N x D x 1 x 1, instead of images."""
    return prepared.shape[2:] == (1, 1)


@dataclass(frozen=True)
class Mixture:
    """Several sources, each with a fixed share of every batch.

    Args:
        sources: sources of the mixture.
        weights: share of each source, positive; the sum need not be 1.

    >>> mixture = Mixture((AddedNoise(0.1), UniformNoise()), (3.0, 1.0))
    >>> mixture.adversarial, mixture.sample(torch.rand(8, 1, 4, 4), None, torch.Generator()).size
    (False, 8)
    """

    sources: tuple[NegativeSource, ...]
    weights: tuple[float, ...]

    def __post_init__(self) -> None:
        """Refuse weights that are not shares, and what is no source."""
        for source in self.sources:
            check_source(source)
        if len(self.sources) != len(self.weights) or len(self.sources) < 2:
            raise ValueError("a mixture takes two or more sources and one weight for each")
        if not all(0 < weight < float("inf") for weight in self.weights):
            raise ValueError(f"mixture weights are {self.weights}: they must be finite numbers above 0")

    @property
    def adversarial(self) -> bool:
        """Return whether the generator network is trained against any of the sources."""
        return any(source.adversarial for source in self.sources)

    @property
    def reads_model(self) -> bool:
        """Return whether the negatives of any of the sources depend on the model's weights."""
        return any(reads_model(source) for source in self.sources)

    def sample(self, positives: Tensor, model: VAE, generator: torch.Generator, rows: slice = EVERY) -> NegativeBatch:
        """Return the sources' batches one after the other, over consecutive shares of the (shuffled) positives."""
        parts, start = list[NegativeBatch](), 0
        for source, share in zip(self.sources, positives.tensor_split(self._cuts(len(positives))), strict=True):
            within = [row - start for row in range(len(positives))[rows] if start <= row < start + len(share)]
            if len(share):
                every = slice(within[0], within[-1] + 1, rows.step) if within else slice(0)
                with unchanged(share, f"the source of negatives {type(source).__name__}"):
                    parts.append(as_declared(source, source.sample(share, model, generator, every)))
            start += len(share)
        given = [part.given for part in parts if part.given is not None and len(part.given)]
        generated = [part.generated for part in parts if part.generated is not None and len(part.generated)]
        return NegativeBatch(torch.cat(given) if given else None, torch.cat(generated) if generated else None)

    def check(self, count: int) -> None:
        """Refuse shares that are too small for a batch.

        Args:
            count: number of images in a batch.

        Raises:
            ValueError: if a source gets no image of it, or `augmented`, which may mix images, fewer than two.
        """
        for source, (start, end) in zip(self.sources, pairwise([0, *self._cuts(count), count]), strict=True):
            least = 2 if isinstance(source, Augmented) else 1
            if end - start < least:
                raise ValueError(
                    f"the share of {type(source).__name__} is {end - start} of the {count} images of a batch, and must"
                    f" be {least} at least: give it more weight, or take larger batches"
                )
            if isinstance(source, Mixture):
                source.check(end - start)

    def _cuts(self, count: int) -> list[int]:
        """Return where each source's share of a batch ends, but for the last."""
        cumulative, total = 0.0, sum(self.weights)
        cuts = []
        for weight in self.weights[:-1]:
            cumulative += weight
            cuts.append(round(count * cumulative / total))
        return cuts
