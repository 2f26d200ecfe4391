"""The text by which run descriptions and the command line name a source of negatives.

none                          no negatives: the baseline VAE
emnist-letters                another data set, by name or path; also auxiliary:emnist-letters
zoomed:imagenet32             random parts of its images, enlarged: more variety where a set is small
added-noise[:SIGMA]           the inliers plus Gaussian noise (sigma 0.25)
uniform-noise                 uniform integer pixels
generated                     the model's own samples; the decoder is trained against the encoder
augmented[:NAME,NAME...]      transformations of the inliers (`negvae.parts.TRANSFORMATIONS`)
0.7*augmented+0.3*generated   a mixture: each source gives its share of every batch

Further sources are written as their entries in `negvae.parts.SOURCES` say.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

from torch import Tensor

from negvae.data import DATASETS, is_path
from negvae.negatives.sources import Mixture, NegativeSource
from negvae.parts import SOURCES


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
        if not _is_source(kind, rest.strip()):  # a data set's name, or a path that may hold a colon
            kind, argument = "auxiliary", rest.strip()
        entry = SOURCES[kind]
        if entry.argument == "data set" and not argument:
            raise ValueError(f"negatives {text!r}: a data set's name or path is missing, as in {kind}:kmnist")
        if entry.argument == "nothing" and argument:
            raise ValueError(f"negatives {text!r}: {kind} takes no argument, got {argument!r}")
        specs.append(Spec(kind, argument, share))
    return specs


def _is_source(kind: str, text: str) -> bool:
    """Whether `kind` is a source; plugins are looked for where `text` is not known as a data set or path either."""
    return kind in SOURCES or (text not in DATASETS and not is_path(text) and SOURCES.get(kind) is not None)


def _value(spec: Spec, images: Mapping[str, Tensor]) -> tuple[()] | tuple[object]:
    """What a source is made from: nothing, or its argument."""
    entry = SOURCES[spec.kind]
    if not spec.argument:
        return ()
    if entry.argument == "number":
        try:
            return (float(spec.argument),)
        except ValueError:
            wanted = entry.placeholder.lower() or "number"
            raise ValueError(f"negatives: {spec.argument!r} is not a {wanted}, as in {entry.name}:0.25") from None
    readers: dict[str, Callable[[str], object]] = {
        "data set": images.__getitem__,
        "names": lambda text: tuple(name.strip() for name in text.split(",")),
        "text": str,
    }
    return (readers[entry.argument](spec.argument),)


def auxiliary_names(text: str) -> list[str]:
    """The data sets that a source's text draws on, each once."""
    specs = parse(text)
    return list(dict.fromkeys(spec.argument for spec in specs if SOURCES[spec.kind].argument == "data set"))


def build_source(text: str, load_auxiliary: Callable[[str], Tensor]) -> NegativeSource | None:
    """The source that `text` describes; None for "none".

    Args:
        text: in the notation of this module.
        load_auxiliary: gives a data set's images (uint8, M x C x H x W, on the training device) by name or path; it is
            called once for each set, in the order of `auxiliary_names`.

    Raises:
        ValueError: the text or one of its arguments is refused.
    """
    specs = parse(text)
    images = {name: load_auxiliary(name) for name in auxiliary_names(text)}
    sources = [SOURCES[spec.kind].load()(*_value(spec, images)) for spec in specs]
    if len(sources) < 2:
        return sources[0] if sources else None
    return Mixture(tuple(sources), tuple(spec.weight for spec in specs))
