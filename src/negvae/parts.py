"""The tables of named parts of a model and its training, and the functions that register further parts.

An entry says what its part means and what it needs; the part itself is imported when it is used, so that help texts
and the validation of a run's configuration import no torch. Data sets have their table in `negvae.data.catalog`.
"""

from __future__ import annotations

import copy
import inspect
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeVar, cast, get_args

from negvae.registry import Entry, Table, choose, require_arguments

if TYPE_CHECKING:
    from negvae.model.initialization import Initialize
    from negvae.model.likelihoods import BuildLikelihood, Likelihood
    from negvae.model.networks import BuildNetworks
    from negvae.model.shifts import Family
    from negvae.negatives.sources import BuildSource
    from negvae.negatives.transformations import Transformation
    from negvae.training.objectives import TakeStep
    from negvae.training.optimizers import BuildOptimizer

Takes = Literal["images", "features"]
"""Images are N x C x H x W, rows of features N x D x 1 x 1."""
Argument = Literal["nothing", "data set", "number", "names", "text"]
"""The kind of a source's argument, which follows its name and a colon."""
SETTINGS = ("sigma", "learn_sigma", "bounded")
"""The keyword arguments that a likelihood may be built with; see `LikelihoodEntry`."""
NETWORK_ARGUMENTS = ("shape", "latent_size")
"""The arguments that a function which makes networks is called with."""
TRANSFORMATION_ARGUMENTS = ("images", "generator")
"""The arguments that a transformation is called with."""


@dataclass(frozen=True, kw_only=True)
class LikelihoodEntry(Entry["BuildLikelihood"]):
    """An observation model p(x|z); the target is a class or function that makes one.

    Attributes:
        needs: keyword arguments that the target takes, among `sigma` (a standard deviation), `learn_sigma` (whether
            sigma is trained) and `bounded` (whether values lie in [0, 1], as those of pixels do and those of
            standardized features do not).
        takes: kinds of data that the likelihood describes.
    """

    needs: tuple[str, ...] = ()
    takes: tuple[Takes, ...] = ("images",)


@dataclass(frozen=True, kw_only=True)
class NetworkEntry(Entry["BuildNetworks"]):
    """An encoder and a decoder; the target makes both from the shape (C, H, W) of the data and the size of the code.

    Attributes:
        takes: kind of data that the networks are made for.
    """

    takes: Takes = "images"


@dataclass(frozen=True, kw_only=True)
class SourceEntry(Entry["BuildSource"]):
    """A source of negative samples; the target makes one, from the source's argument if it has one.

    Attributes:
        argument: kind of the argument that follows the name and a colon. A "data set" is required, and the target gets
            its images (uint8, M x C x H x W); a "number", "names" and "text" are optional.
        placeholder: word that stands for the argument in help texts.

    >>> SOURCES["added-noise"].notation
    'added-noise[:SIGMA]'
    """

    argument: Argument = "nothing"
    placeholder: str = ""

    @property
    def notation(self) -> str:
        """Return how the source is written, as in "added-noise[:SIGMA]"."""
        if self.argument == "nothing":
            return self.name
        shown = f":{self.placeholder or self.argument.upper().replace(' ', '-')}"
        return self.name + (shown if self.argument == "data set" else f"[{shown}]")


@dataclass(frozen=True, kw_only=True)
class TransformationEntry(Entry["Transformation"]):
    """A change of inliers into negatives; the target takes images and a random generator.

    Attributes:
        takes: kind of data that the transformation changes.
        default: whether the source "augmented" uses the transformation when it names none.
    """

    takes: Takes = "images"
    default: bool = False


LIKELIHOODS = Table(
    "likelihood",
    (
        LikelihoodEntry(
            name="bernoulli",
            papers=("kingma2014",),
            meaning="cross-entropy of pixels as probabilities",
            target="negvae.model.likelihoods:Bernoulli",
        ),
        LikelihoodEntry(
            name="gaussian",
            papers=("kingma2014",),
            meaning="a Gaussian with one sigma",
            target="negvae.model.likelihoods:Gaussian",
            needs=SETTINGS,
            takes=("images", "features"),
        ),
        LikelihoodEntry(
            name="quantized-gaussian",
            papers=("theis2016",),
            meaning="a Gaussian on dequantized pixels",
            target="negvae.model.likelihoods:QuantizedGaussian",
            needs=SETTINGS,
        ),
        LikelihoodEntry(
            name="dequantized-gaussian",
            papers=("theis2016",),
            meaning="the same, and the encoder sees the noise",
            target="negvae.model.authors:DequantizedGaussian",
            needs=SETTINGS,
        ),
    ),
)

NETWORKS = Table(
    "network",
    (
        NetworkEntry(
            name="gray",
            papers=("rosca2018",),
            meaning="1x28x28: the paper's encoder, a light decoder",
            target="negvae.model.networks:gray",
        ),
        NetworkEntry(
            name="gray-paper",
            papers=("csiszarik2019", "rosca2018", "nalisnick2018"),
            meaning="the same with the authors' decoder",
            target="negvae.model.networks:gray_paper",
        ),
        NetworkEntry(
            name="color",
            papers=("csiszarik2019",),
            meaning="3x32x32: the paper's",
            target="negvae.model.networks:color",
        ),
        NetworkEntry(
            name="color-authors",
            papers=("csiszarik2019",),
            meaning="the authors', with batch norm",
            target="negvae.model.authors:color_authors",
        ),
        NetworkEntry(
            name="color-authors-affine",
            papers=("csiszarik2019",),
            meaning="with a factor and an offset for each channel",
            target="negvae.model.authors:color_authors_affine",
        ),
        NetworkEntry(
            name="color-authors-spectral",
            papers=("miyato2018",),
            meaning="with spectral norm in the encoder",
            target="negvae.model.authors:color_authors_spectral",
        ),
        NetworkEntry(
            name="color-authors-spectral-norm",
            papers=("miyato2018",),
            meaning="with batch norm in the decoder besides",
            target="negvae.model.authors:color_authors_spectral_norm",
        ),
        NetworkEntry(
            name="pyramid",
            meaning="images from 16x16 to 256x256",
            target="negvae.model.networks:pyramid",
        ),
        NetworkEntry(name="deep", meaning="pyramid with more layers", target="negvae.model.networks:deep"),
        NetworkEntry(
            name="residual",
            papers=("he2016",),
            meaning="pyramid's decoder, an encoder with residual blocks and batch norm",
            target="negvae.model.networks:residual",
        ),
        NetworkEntry(name="mlp", meaning="rows of features", target="negvae.model.networks:mlp", takes="features"),
        NetworkEntry(
            name="linear", meaning="few rows of features", target="negvae.model.networks:linear", takes="features"
        ),
    ),
)

SOURCES = Table(
    "source of negatives",
    (
        SourceEntry(
            name="auxiliary",
            papers=("csiszarik2019", "hendrycks2019"),
            meaning="another data set",
            target="negvae.negatives.sources:Auxiliary",
            argument="data set",
            placeholder="NAME",
        ),
        SourceEntry(
            name="zoomed",
            meaning="enlarged parts of another data set's images",
            target="negvae.negatives.sources:zoomed",
            argument="data set",
            placeholder="NAME",
        ),
        SourceEntry(
            name="added-noise",
            papers=("csiszarik2019",),
            meaning="the inliers plus Gaussian noise",
            target="negvae.negatives.sources:AddedNoise",
            argument="number",
            placeholder="SIGMA",
        ),
        SourceEntry(
            name="uniform-noise",
            papers=("csiszarik2019",),
            meaning="uniform pixels",
            target="negvae.negatives.sources:UniformNoise",
            argument="number",
            placeholder="LARGEST",
        ),
        SourceEntry(
            name="generated",
            papers=("csiszarik2019",),
            meaning="the model's own samples",
            target="negvae.negatives.sources:Generated",
        ),
        SourceEntry(
            name="augmented",
            meaning="transformations of the inliers",
            target="negvae.negatives.sources:Augmented",
            argument="names",
            placeholder="NAME,...",
        ),
    ),
)


def _transformation(
    name: str, meaning: str, *papers: str, takes: Takes = "images", default: bool = False
) -> TransformationEntry:
    target = f"negvae.negatives.transformations:{name.replace('-', '_')}"
    return TransformationEntry(name=name, meaning=meaning, target=target, takes=takes, default=default, papers=papers)


# Rotation and mixup are no defaults: a turned 6 is a 9, and a blend of two like images is one more of them.
TRANSFORMATIONS = Table(
    "transformation",
    (
        _transformation("jigsaw", "shuffled tiles", "noroozi2016", default=True),
        _transformation("cutmix", "a rectangle of another inlier pasted in", "yun2019", default=True),
        _transformation("mixup", "a blend of two inliers", "zhang2018"),
        _transformation("rotation", "quarter turns", "gidaris2018"),
        _transformation("sketch", "edges", default=True),
        _transformation("sketched-jigsaw", "edges of shuffled tiles", default=True),
        _transformation("strokes", "procedural drawings in the inlier's colors", default=True),
        _transformation("zoom", "an enlarged part"),
        _transformation("shuffled", "each feature permuted by itself", takes="features", default=True),
        _transformation("box", "uniform in a box around the rows", takes="features", default=True),
        _transformation("spread", "rows with Gaussian noise", takes="features", default=True),
    ),
)

SHIFTS: Table[Entry[Family]] = Table(
    "shifting transformation",
    (
        Entry(name="turns", papers=("golan2018",), meaning="quarter turns", target="negvae.model.shifts:turns"),
        Entry(
            name="translations",
            papers=("golan2018",),
            meaning="moves by a quarter of the width or the height",
            target="negvae.model.shifts:translations",
        ),
        Entry(name="tiles", papers=("noroozi2016",), meaning="exchanged halves", target="negvae.model.shifts:tiles"),
    ),
)

INITIALIZATIONS: Table[Entry[Initialize]] = Table(
    "initialization",
    (
        Entry(name="normal", meaning="N(0, 0.02)", target="negvae.model.initialization:normal"),
        Entry(name="glorot", meaning="Glorot uniform", target="negvae.model.initialization:glorot"),
        Entry(name="he", meaning="He normal", target="negvae.model.initialization:he"),
    ),
)

UPDATES: Table[Entry[TakeStep]] = Table(
    "update",
    (
        Entry(
            name="alternating",
            meaning="the generator's pull after the encoder's step",
            target="negvae.training.objectives:alternating",
        ),
        Entry(
            name="simultaneous",
            meaning="the generator's pull at the same weights",
            target="negvae.training.objectives:simultaneous",
        ),
    ),
)

OPTIMIZERS: Table[Entry[BuildOptimizer]] = Table(
    "optimizer",
    (
        Entry(name="rmsprop", meaning="the paper's, for gray images", target="negvae.training.optimizers:rmsprop"),
        Entry(
            name="rmsprop-authors",
            meaning="its authors' form of it",
            target="negvae.training.optimizers:rmsprop_authors",
        ),
        Entry(name="adam", meaning="the paper's, for color images", target="negvae.training.optimizers:adam"),
    ),
)

SomeLikelihood = TypeVar("SomeLikelihood", bound="BuildLikelihood")
SomeNetworks = TypeVar("SomeNetworks", bound="BuildNetworks")
SomeSource = TypeVar("SomeSource", bound="BuildSource")
SomeTransformation = TypeVar("SomeTransformation", bound="Transformation")


def register_likelihood(name: str, meaning: str = "") -> Callable[[SomeLikelihood], SomeLikelihood]:
    """Decorate a class (or function) that makes a `negvae.model.Likelihood`, so that it can be named.

    Its constructor may have the arguments `sigma`, `learn_sigma` and `bounded`, whose values then come from the run's
    configuration; a likelihood with `bounded` describes rows of features too.

    Args:
        name: name of the likelihood in YAML files, on the command line and in saved folders.
        meaning: phrase that explains the likelihood in help texts.

    Returns:
        A decorator that registers its argument and returns it unchanged.

    Raises:
        ValueError: if the name is taken.
        TypeError: when the decorator is applied, if its argument cannot be called with those alone.
    """
    LIKELIHOODS.check_name(name)

    def register(part: SomeLikelihood) -> SomeLikelihood:
        if not isinstance(part, type) and hasattr(part, "log_prob"):
            raise TypeError(
                f"likelihood {name} is an object of {described(part)}: register the class, or a function that makes one"
            )
        LIKELIHOODS.add(_likelihood(name, meaning, part))
        return part

    return register


def register_network(
    name: str, meaning: str = "", *, takes: Takes = "images"
) -> Callable[[SomeNetworks], SomeNetworks]:
    """Decorate a function (shape, latent_size) -> (encoder, decoder), so that it can be named.

    Args:
        name: name of the network in YAML files, on the command line and in saved folders.
        meaning: phrase that explains the network in help texts.
        takes: kind of data, "images" (N x C x H x W) or "features" (rows, N x D x 1 x 1).

    Returns:
        A decorator that registers its argument and returns it unchanged.

    Raises:
        ValueError: if the name is taken, or there is no such kind of data.
        TypeError: when the decorator is applied, if its argument cannot be called with a shape and a size.
    """
    NETWORKS.check_name(name)
    choose("kind of data", takes, get_args(Takes))

    def register(part: SomeNetworks) -> SomeNetworks:
        require_arguments(f"network {name}", part, *NETWORK_ARGUMENTS)
        NETWORKS.add(NetworkEntry(name=name, meaning=meaning, target=part, takes=takes))
        return part

    return register


def register_source(
    name: str, meaning: str = "", *, argument: Argument = "nothing"
) -> Callable[[SomeSource], SomeSource]:
    """Decorate a class (or function) that makes a `negvae.negatives.NegativeSource`, so that it can be named.

    Args:
        name: name of the source in YAML files, on the command line and in saved folders.
        meaning: phrase that explains the source in help texts.
        argument: kind of the argument that follows the name and a colon and is passed to the class: "nothing"; a
            "data set", of which the class gets the images (uint8, M x C x H x W) and keeps them as its attribute
            `images`; a "number"; "names", as a tuple; or "text".

    Returns:
        A decorator that registers its argument and returns it unchanged.

    Raises:
        ValueError: if the name is taken, or there is no such kind of argument.
        TypeError: when the decorator is applied, if its argument cannot be called with what may follow the name.
    """
    SOURCES.check_name(name)
    if name == "none":
        raise ValueError("source of negatives 'none': the name stands for no negatives: choose another name")
    choose("argument of a source", argument, get_args(Argument))

    def register(part: SomeSource) -> SomeSource:
        if argument != "data set":  # which is required
            require_arguments(f"source {name}", part)
        if argument != "nothing":
            require_arguments(f"source {name}", part, argument.replace(" ", "_"))
        SOURCES.add(SourceEntry(name=name, meaning=meaning, target=part, argument=argument))
        return part

    return register


def register_transformation(
    name: str, meaning: str = "", *, takes: Takes = "images"
) -> Callable[[SomeTransformation], SomeTransformation]:
    """Decorate a function (images, generator) -> images, so that negatives can be written `augmented:NAME`.

    Args:
        name: name of the transformation in YAML files, on the command line and in saved folders.
        meaning: phrase that explains the transformation in help texts.
        takes: kind of data, "images" (N x C x H x W, floats in [0, 1]) or standardized "features" (N x D x 1 x 1).

    Returns:
        A decorator that registers its argument and returns it unchanged.

    Raises:
        ValueError: if the name is taken, or there is no such kind of data.
        TypeError: when the decorator is applied, if its argument cannot be called with images and a generator.
    """
    TRANSFORMATIONS.check_name(name)
    choose("kind of data", takes, get_args(Takes))

    def register(part: SomeTransformation) -> SomeTransformation:
        require_arguments(f"transformation {name}", part, *TRANSFORMATION_ARGUMENTS)
        TRANSFORMATIONS.add(TransformationEntry(name=name, meaning=meaning, target=part, takes=takes))
        return part

    return register


def likelihood_entry(part: str | BuildLikelihood | Likelihood) -> LikelihoodEntry:
    """Return the entry of a likelihood, which may be an object that is not registered.

    Args:
        part: name of the likelihood, a class or function that makes one, or a likelihood, which the entry's target
            copies, and which describes the kinds of data that its class does.

    Returns:
        The registered entry, or a new one without registration.

    Raises:
        ValueError: if no likelihood has this name.

    >>> likelihood_entry("gaussian").needs
    ('sigma', 'learn_sigma', 'bounded')
    """
    if isinstance(part, str):
        return LIKELIHOODS[part]
    if isinstance(part, type) or not hasattr(part, "log_prob"):
        return _likelihood(described(part), "", cast("BuildLikelihood", part))
    made, kind = cast("Likelihood", part), cast("BuildLikelihood", type(part))
    takes = likelihood_entry(LIKELIHOODS.name_of(kind) or kind).takes
    return LikelihoodEntry(name=described(part), meaning="", target=lambda: copy.deepcopy(made), takes=takes)


def network_entry(part: str | BuildNetworks) -> NetworkEntry:
    """Return the entry of a network, which may be a function that is not registered.

    Args:
        part: name of the network, or the function that makes encoder and decoder, which takes images unless its entry
            says otherwise.

    Returns:
        The registered entry, or a new one without registration.

    Raises:
        ValueError: if no network has this name.

    >>> network_entry("mlp").takes
    'features'
    """
    return NETWORKS[part] if isinstance(part, str) else NetworkEntry(name=described(part), meaning="", target=part)


def described(part: object) -> str:
    """Return a text by which messages refer to an object: the name of a class or function, or of an object's class."""
    return str(getattr(part, "__qualname__", type(part).__qualname__))


def _likelihood(name: str, meaning: str, part: BuildLikelihood) -> LikelihoodEntry:
    if not callable(part):
        raise TypeError(f"likelihood {name} is a {type(part).__name__}: it must be a class or function that makes one")
    signature = inspect.signature(part)
    needs = tuple(each for each in SETTINGS if each in signature.parameters)
    try:
        signature.bind(**dict.fromkeys(needs))
    except TypeError:
        raise TypeError(
            f"likelihood {name} takes {signature}: it is made with sigma, learn_sigma and bounded at most, so give each"
            " other argument a default"
        ) from None
    takes: tuple[Takes, ...] = ("images", "features") if "bounded" in needs else ("images",)
    return LikelihoodEntry(name=name, meaning=meaning, target=part, needs=needs, takes=takes)


def check_device(name: str) -> None:
    """Refuse a text that names no device; whether this machine has the device is not looked up.

    Args:
        name: name of a device.

    Raises:
        ValueError: if the name is none of "auto", "cpu", "cuda" and "cuda:N".

    >>> check_device("cuda:1")
    """
    if re.fullmatch(r"auto|cpu|cuda(:[0-9]+)?", name) is None:
        raise ValueError(f"device is {name!r}: it must be auto, cpu, cuda or cuda:N")


def require_names(values: dict[str, Any], where: str) -> None:
    """Check that the parts that a saved run names are registered; no code from its folder is run.

    Args:
        values: fields of the run's configuration.
        where: file or folder that the fields come from, for the message.

    Raises:
        ValueError: if a part is not registered; the message says how to register it.
    """
    for field, table in (("likelihood", LIKELIHOODS), ("network", NETWORKS)):
        name = values.get(field)
        if isinstance(name, str) and table.get(name) is None:
            raise ValueError(
                f"{where}: {field} {name!r} is not registered: import the module that registers it, or install the"
                " package that does (entry-point group negvae); nothing from the folder is run"
            )
