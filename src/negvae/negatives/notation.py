"""The text by which run configurations and the command line name a source of negatives.

none                          no negatives: the baseline VAE
emnist-letters                another data set, by name or path; also auxiliary:emnist-letters
zoomed:imagenet32             random parts of its images, enlarged: more variety if a set is small
added-noise[:SIGMA]           the inliers plus Gaussian noise (sigma 0.25)
uniform-noise[:LARGEST]       uniform integer pixels from 0 to LARGEST (255)
generated                     the model's own samples; the decoder is trained against the encoder
augmented[:NAME,NAME...]      transformations of the inliers (`negvae.parts.TRANSFORMATIONS`)
0.7*augmented+0.3*generated   a mixture: each source gives its share of every batch

What exists as a path is a path, whatever its name looks like. In a mixture a path that holds + or * stands in quotes:
0.5*'./C++ parts'+0.5*augmented

Sources that are registered later are written as their entries in `negvae.parts.SOURCES` say.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import NamedTuple

from torch import Tensor

from negvae.data import DATASETS, is_path
from negvae.negatives.sources import Mixture, NegativeSource, check_source
from negvae.parts import SOURCES


class Spec(NamedTuple):
    """One source in the notation: its name, its argument and its weight in the mixture."""

    kind: str
    argument: str
    weight: float


def parse(text: str) -> list[Spec]:
    """Read the notation at the top of this module, without looking up whether a named data set exists.

    Args:
        text: sources in this notation.

    Returns:
        One entry for each source of the mixture; "none" gives an empty list.

    Raises:
        ValueError: if a part is malformed; the message says which and how.

    >>> parse("0.7*augmented:jigsaw+0.3*generated")
    [Spec(kind='augmented', argument='jigsaw', weight=0.7), Spec(kind='generated', argument='', weight=0.3)]
    >>> parse("none")
    []
    >>> parse("generated:kmnist")
    Traceback (most recent call last):
    ValueError: negatives 'generated:kmnist': generated takes no argument, got 'kmnist'
    """
    if text.strip() == "none":
        return []
    if is_there(text):
        return [Spec("auxiliary", text, 1.0)]
    specs = []
    for part in _parts(text):
        weight, star, rest = _weight(part.strip())
        try:
            share = float(weight) if star else 1.0
        except ValueError:
            raise ValueError(f"negatives {text!r}: {weight!r} is not a weight, as in 0.5*augmented") from None
        if not 0 < share < float("inf"):
            raise ValueError(f"negatives {text!r}: the weight {weight.strip()} must be a finite number above 0")
        kind, _, argument = rest.strip().partition(":")
        argument = _unquoted(argument)
        if kind == "none":
            raise ValueError(f"negatives {text!r}: none cannot be part of a mixture")
        if not _is_source(kind, rest.strip()):  # a data set's name, or a path that may hold a colon
            kind, argument = "auxiliary", _unquoted(rest.strip())
        entry = SOURCES[kind]
        if entry.argument == "data set" and not argument:
            raise ValueError(f"negatives {text!r}: a data set's name or path is missing, as in {kind}:kmnist")
        if entry.argument == "nothing" and argument:
            raise ValueError(f"negatives {text!r}: {kind} takes no argument, got {argument!r}")
        specs.append(Spec(kind, argument, share))
    if len(specs) == 1 and star:
        raise ValueError(
            f"negatives {text!r}: a weight is a share of a mixture, and this is one source: leave it out, or set"
            " negative_weight, its weight in the loss"
        )
    return specs


def is_there(text: str) -> bool:
    """Whether a text is the path of something that exists."""
    try:
        return text not in SOURCES and os.path.exists(os.path.expanduser(text))
    except ValueError:  # a null character
        return False


def _parts(text: str) -> list[str]:
    """The parts of a mixture: the text between plus signs that stand outside of quotes.

    Raises:
        ValueError: a quote is not closed.
    """
    parts, quote = [""], ""
    for character in text:
        if character == quote:
            quote = ""
        elif not quote and character in "'\"" and parts[-1].strip()[-1:] in ("", "*", ":"):
            quote = character
        if character == "+" and not quote:
            parts.append("")
        else:
            parts[-1] += character
    if quote:
        raise ValueError(f"negatives {text!r}: the quote {quote} is not closed")
    return parts


def _weight(part: str) -> tuple[str, str, str]:
    """The weight of a part, its star, and the rest; a star in quotes is none."""
    if part[:1] in ("'", '"'):
        return "", "", part
    weight, star, rest = part.partition("*")
    return (weight, star, rest) if star and ":" not in weight else ("", "", part)


def _unquoted(text: str) -> str:
    """The text without the quotes around it."""
    return text[1:-1] if len(text) > 1 and text[0] == text[-1] and text[0] in "'\"" else text


def _is_source(kind: str, text: str) -> bool:
    """Return whether `kind` is a source; plugins are imported only if `text` is no known data set or path either."""
    return kind in SOURCES or (text not in DATASETS and not is_path(text) and SOURCES.get(kind) is not None)


def _value(spec: Spec, images: Mapping[str, Tensor]) -> tuple[()] | tuple[object]:
    """Return the positional arguments from which a source is made: none, or the argument that the text gives."""
    entry = SOURCES[spec.kind]
    if not spec.argument:
        return ()
    if entry.argument == "number":
        try:
            return (float(spec.argument),)
        except ValueError:
            raise ValueError(f"negatives: {spec.argument!r} is not a number: {entry.notation} takes one") from None
    readers: dict[str, Callable[[str], object]] = {
        "data set": images.__getitem__,
        "names": lambda text: tuple(name.strip() for name in text.split(",")),
        "text": str,
    }
    return (readers[entry.argument](spec.argument),)


def auxiliary_names(text: str) -> list[str]:
    """Return the data sets that a source's text names, each once.

    >>> auxiliary_names("kmnist+zoomed:kmnist+generated")
    ['kmnist']
    """
    specs = parse(text)
    return list(dict.fromkeys(spec.argument for spec in specs if SOURCES[spec.kind].argument == "data set"))


def build_source(text: str, load_auxiliary: Callable[[str], Tensor]) -> NegativeSource | None:
    """Return the source of negatives that a text describes.

    Args:
        text: source in the notation of this module.
        load_auxiliary: function that returns a data set's images (uint8, M x C x H x W, on the training device) by name
            or path; it is called once for each set, in the order of `auxiliary_names`.

    Returns:
        The source; None for "none".

    Raises:
        ValueError: if the text or one of its arguments is refused.
        TypeError: if a registered class or function makes what is no source.

    >>> import torch
    >>> images = torch.zeros(10, 1, 28, 28, dtype=torch.uint8)
    >>> source = build_source("0.5*kmnist+0.5*added-noise:0.1", lambda name: images)
    >>> source.weights, source.sources[1]
    ((0.5, 0.5), AddedNoise(sigma=0.1))
    """
    specs = parse(text)
    images = {name: load_auxiliary(name) for name in auxiliary_names(text)}
    sources = [SOURCES[spec.kind].load()(*_value(spec, images)) for spec in specs]
    for source in sources:
        check_source(source)
    if len(sources) < 2:
        return sources[0] if sources else None
    return Mixture(tuple(sources), tuple(spec.weight for spec in specs))
