"""The configuration of one run, and the presets. Nothing here imports torch."""

from __future__ import annotations

import dataclasses
import os
import re
import reprlib
from collections.abc import Iterable
from dataclasses import dataclass, field
from numbers import Integral, Real
from typing import TYPE_CHECKING, Any

import yaml

from negvae.decoding import FITS, Decoding
from negvae.messages import first_line
from negvae.parts import (
    INITIALIZATIONS,
    LIKELIHOODS,
    NETWORKS,
    OPTIMIZERS,
    SHIFTS,
    SOURCES,
    UPDATES,
    LikelihoodEntry,
    NetworkEntry,
    check_device,
    described,
    likelihood_entry,
    network_entry,
)
from negvae.registry import choose

if TYPE_CHECKING:
    from negvae.model.likelihoods import BuildLikelihood, Likelihood
    from negvae.model.networks import BuildNetworks

PRECISIONS = ("auto", "bfloat16", "float32")
"""The choices for the precision of training."""
SCHEDULES = ("constant", "cosine")
"""The choices for how the learning rate changes in the course of training."""
SCORE_PRECISIONS = ("float32", "bfloat16", "int8")


FORMAT = 4
"""The format of config.yaml. Formats 1 to 3 were written during development: format 1 names no format and has no mark
at its end; format 2 has both, and names from before `RENAMED`; format 3 has no fields about how images are decoded,
which then are all taken as they are."""
OF_LIKELIHOODS = ("sigma", "learn_sigma")
"""Fields that a likelihood given as an object has itself."""
_MOST_VALUES = 100_000
"""So many values may a YAML file hold."""
_EXPONENT = re.compile(r"[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+")
"""Numbers such as 1e-4, which YAML 1.1 takes for text because they lack a point or the exponent's sign."""
RENAMED = {"network": {"auto": "pyramid"}}
"""The present names for those in formats before 3, by field."""
LAST_RENAMED = 2
"""The last format with former names."""


def _shown(panel: str, help: str, unit: str = "", choices: Iterable[str] = ()) -> dict[str, Any]:
    """Return a field's metadata: its panel and help on the command line, the unit of its value, and its choices."""
    return {"panel": panel, "help": help, "unit": unit, "choices": choices}


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """Everything that determines a training run, as plain values.

    The metadata of each field say how the command line shows it: its `panel`, `help`, `unit` and `choices`. Likelihood
    and network may also be given as objects; a registered object becomes its name, and a run with any other object
    trains but cannot be saved.

    Attributes:
        data: name or path of the inlier data set; "~" at its beginning becomes the user's home.
        negatives: source of negative samples, in the notation of `negvae.negatives.parse`.
        likelihood: observation model p(x|z): a name in `negvae.parts.LIKELIHOODS`, a class or function that makes a
            `negvae.model.Likelihood`, or a likelihood, whose sigma is its own.
        sigma: standard deviation of the Gaussian likelihoods, in units of the [0, 1] pixel range; the starting value if
            it is learned.
        learn_sigma: whether one scalar sigma is trained with the decoder.
        network: encoder and decoder: a name in `negvae.parts.NETWORKS`, or a function (shape, latent_size) -> (encoder,
            decoder).
        initialization: name in `negvae.parts.INITIALIZATIONS` of how the weights are drawn.
        latent_size: number of dimensions of the latent code z.
        negative_shift: c in the negative prior N(c 1, I).
        negative_weight: factor of KL(q(z|negative) || negative prior) in the loss; 1 in the paper.
        transformations: names in `negvae.parts.SHIFTS`, separated by commas, of the transformations of inliers that
            have a prior each (`negvae.model.shifted`); "none" for none.
        update: name in `negvae.parts.UPDATES`: whether the generator's term for generated negatives is evaluated after
            the encoder's step, as in the paper, or at the same weights (see `negvae.training.objectives`).
        optimizer: name in `negvae.parts.OPTIMIZERS`; the encoder and the decoder have one optimizer each.
        learning_rate: learning rate of both optimizers; the highest one if it changes.
        schedule: how the learning rate changes: "constant", as in the paper, or "cosine", where it rises over the first
            twentieth of the steps and then falls to 0 like half a cosine. A run that goes on with more epochs goes on
            with the rates of the longer run.
        batch_size: number of images, and of negatives, in each step.
        epochs: number of passes over the training images; the last incomplete batch of each pass is left out.
        seed: seed of the weights, the order of images, the posterior noise and the negatives.
        precision: precision of training: "bfloat16" (autocast), "float32", or "auto", which is bfloat16 if the device
            computes in it. Scores are computed in float32 unless `negvae calibrate` is asked for another precision.
        device: device to train on: "auto", "cpu", "cuda" or "cuda:N".
        limit: number of images to train on, the first ones of the data set; None for all.
        embed: path of an ONNX encoder that makes rows of features of the images, for a network that takes them; None
            for images as they are. The run's folder keeps the SHA-256 of the file.
        calibration: fraction of the inliers that is held out from training to calibrate p-values and the threshold; 0,
            as in the paper, trains on all of them.
        target_fpr: rate of false alarms that the threshold is set for, from the held-out inliers; None for 0.05, or for
            a threshold above all of the data if they are too few for that.
        confidence: confidence with which that rate is to hold; None for a rate that holds on average over held-out
            sets.
        groups: what names the group of a held-out inlier, if each group is to have its own threshold and p-values:
            "folders", or the name of a column of a CSV or Parquet file; None for no groups.
        fit: how the images of a folder are fitted to the network: a name in `negvae.decoding.FITS`; None to choose by a
            look at the folder.
        side: side in pixels of the images, or of the tiles, that the network gets from a folder; None to choose.
        max_broken: largest share of a folder's images that may be broken; they are left out and listed.
        images: complete description of how the images of a folder are decoded; None if they are taken as they are, or
            before a run has looked at its folder.

    >>> config = RunConfig(data="fashion-mnist", epochs=2)
    >>> config.latent_size, config.negative_shift
    (32, 8.0)
    >>> RunConfig(data="fashion-mnist", epochs=0)
    Traceback (most recent call last):
    ValueError: epochs is 0: it must be a whole number of at least 1
    """

    data: str = field(metadata=_shown("Data", "The inliers: a data set's name, or a path.", "name or path"))
    negatives: str = field(
        default="none",
        metadata=_shown(
            "Negatives",
            "Where negative samples come from: none, a data set's name or path, "
            + "".join(f"{SOURCES[name].notation}, " for name in SOURCES)
            + "or a mixture such as 0.7*augmented+0.3*generated.",
            "source",
        ),
    )
    likelihood: str | BuildLikelihood | Likelihood = field(
        default="bernoulli", metadata=_shown("Model", "The observation model p(x|z).", "name", LIKELIHOODS)
    )
    sigma: float = field(
        default=1.0, metadata=_shown("Model", "Standard deviation of the Gaussian likelihoods, for pixels from 0 to 1.")
    )
    learn_sigma: bool = field(
        default=False, metadata=_shown("Model", "Train sigma with the decoder, starting from --sigma.")
    )
    network: str | BuildNetworks = field(
        default="pyramid", metadata=_shown("Model", "The encoder and the decoder.", "name", NETWORKS)
    )
    initialization: str = field(
        default="he", metadata=_shown("Model", "How the weights are drawn.", "name", INITIALIZATIONS)
    )
    latent_size: int = field(default=32, metadata=_shown("Model", "Size of the latent code z.", "dimensions"))
    negative_shift: float = field(default=8.0, metadata=_shown("Negatives", "The c of the negatives' prior N(c 1, I)."))
    negative_weight: float = field(
        default=1.0, metadata=_shown("Negatives", "Weight of the negatives' KL divergence in the loss.")
    )
    transformations: str = field(
        default="none",
        metadata=_shown(
            "Model",
            "Transformations of inliers with a prior each: none, or names joined by commas: "
            + ", ".join(f"{name} ({SHIFTS[name].meaning})" for name in SHIFTS)
            + ".",
            "names",
        ),
    )
    update: str = field(
        default="alternating",
        metadata=_shown(
            "Negatives", "How generator and encoder are updated with generated negatives.", "name", UPDATES
        ),
    )
    optimizer: str = field(
        default="adam", metadata=_shown("Training", "What updates encoder and decoder.", "name", OPTIMIZERS)
    )
    learning_rate: float = field(default=1e-3, metadata=_shown("Training", "Learning rate of encoder and decoder."))
    schedule: str = field(
        default="constant",
        metadata=_shown("Training", "How the learning rate changes in the course of training.", "name", SCHEDULES),
    )
    batch_size: int = field(default=128, metadata=_shown("Training", "Inliers, and negatives, of each step.", "images"))
    epochs: int = field(
        default=10, metadata=_shown("Training", "Passes over the training images; --resume may raise them.", "passes")
    )
    seed: int = field(default=0, metadata=_shown("Training", "Seed of weights, order, posterior noise and negatives."))
    precision: str = field(
        default="auto",
        metadata=_shown(
            "Machine",
            "The arithmetic of training; auto takes bfloat16 where the device computes in it.",
            "name",
            PRECISIONS,
        ),
    )
    device: str = field(
        default="auto", metadata=_shown("Machine", "auto (a GPU where there is one), cpu, cuda or cuda:N.", "device")
    )
    limit: int | None = field(
        default=None, metadata=_shown("Data", "Train on the first so many images, instead of on all.", "images")
    )
    embed: str | None = field(
        default=None,
        metadata=_shown("Data", "An ONNX encoder: train on its embeddings of the images.", "path"),
    )
    calibration: float = field(
        default=0.0,
        metadata=_shown(
            "Calibration",
            "Part of the inliers that is held out, to set p-values and the threshold; 0 trains on all.",
            "fraction",
        ),
    )
    target_fpr: float | None = field(
        default=None,
        metadata=_shown(
            "Calibration", "Rate of false alarms that the threshold is set for; 0.05 where the inliers suffice.", "rate"
        ),
    )
    confidence: float | None = field(
        default=None,
        metadata=_shown(
            "Calibration",
            "Confidence with which that rate is to hold, such as 0.95; on average if left out.",
            "probability",
        ),
    )
    groups: str | None = field(
        default=None,
        metadata=_shown(
            "Calibration",
            "A threshold and p-values for each group: folders (a subfolder of --data for each), or the name of a column"
            " of a CSV or Parquet file.",
            "name",
        ),
    )
    fit: str | None = field(
        default=None,
        metadata=_shown(
            "Data",
            "How a folder's images are fitted to the network; chosen by a look at them if left out.",
            "name",
            FITS,
        ),
    )
    side: int | None = field(
        default=None,
        metadata=_shown("Data", "Side of the images or tiles that the network gets from a folder.", "pixels"),
    )
    max_broken: float = field(
        default=0.1,
        metadata=_shown("Data", "Largest share of a folder's images that may be broken.", "fraction"),
    )
    images: Decoding | None = field(
        default=None,
        metadata=_shown("Data", "How a folder's images are decoded; a run fills this in.", "mapping"),
    )

    def __post_init__(self) -> None:
        """Refuse values that make no sense, with one line that says what would be right."""
        for each in dataclasses.fields(self):
            object.__setattr__(self, each.name, _typed(each.name, getattr(self, each.name), str(each.type)))
        object.__setattr__(self, "data", os.path.expanduser(self.data))
        likelihood, network = self._parts()
        INITIALIZATIONS[self.initialization]
        OPTIMIZERS[self.optimizer]
        UPDATES[self.update]
        choose("precision", self.precision, PRECISIONS)
        choose("schedule", self.schedule, SCHEDULES)
        check_device(self.device)
        for name in ("sigma", "learning_rate", "negative_weight"):
            value = getattr(self, name)
            if not 0 < value < float("inf"):
                raise ValueError(f"{name} is {value}: it must be a finite number above 0")
        if not 0 <= self.negative_shift < float("inf"):
            raise ValueError(f"negative_shift is {self.negative_shift}: it must be a finite number, 0 or more")
        for name, least in (("latent_size", 1), ("batch_size", 2), ("epochs", 1), ("seed", 0), ("limit", 2),
                            ("side", 16)):  # fmt: skip
            value = getattr(self, name)
            if value is not None and value < least:
                raise ValueError(f"{name} is {value}: it must be a whole number of at least {least}")
        if not 0 <= self.max_broken < 1:
            raise ValueError(f"max_broken is {self.max_broken}: it must be a fraction of at least 0 and below 1")
        if self.fit is not None:
            choose("fit", self.fit, FITS)
        if not 0 <= self.calibration < 1:
            raise ValueError(f"calibration is {self.calibration}: it must be a fraction of at least 0 and below 1")
        for name in ("target_fpr", "confidence"):
            value = getattr(self, name)
            if value is not None and not 0 < value < 1:
                raise ValueError(f"{name} is {value}: it must lie between 0 and 1")
        for name in ("target_fpr", "confidence", "groups"):
            if getattr(self, name) is not None and not self.calibration:
                raise ValueError(
                    f"{name} concerns held-out inliers, and calibration is 0: hold out a part, such as 0.2"
                )
        if _is_made(self.likelihood):
            self._check_made_likelihood(network)
        if network.takes not in likelihood.takes:
            right = ", ".join(name for name in LIKELIHOODS if network.takes in LIKELIHOODS[name].takes)
            raise ValueError(
                f"network {network.name} takes {network.takes}, which likelihood {likelihood.name} does not describe;"
                f" these do: {right}"
            )
        if self.embed is not None and network.takes != "features":
            right = ", ".join(name for name in NETWORKS if NETWORKS[name].takes == "features")
            raise ValueError(
                f"embed makes rows of features of images, which network {network.name} does not take; these do: {right}"
            )
        if self.transformations != "none":
            self._check_transformations(network)
        for name, what in zip(OF_LIKELIHOODS, ("sigma", "sigma to learn"), strict=True):
            if getattr(self, name) != RunConfig.__dataclass_fields__[name].default and name not in likelihood.needs:
                right = ", ".join(each for each in LIKELIHOODS if name in LIKELIHOODS[each].needs)
                raise ValueError(f"{name}: likelihood {likelihood.name} has no {what}; these have: {right}")

    def _check_transformations(self, network: NetworkEntry) -> None:
        """Refuse transformations that are not known, are there twice, or are of rows of features."""
        names = self.transformations.split(",")
        for name in names:
            SHIFTS[name]
            if names.count(name) > 1:
                raise ValueError(f"transformations {self.transformations}: {name} is there twice")
        if network.takes == "features":
            raise ValueError(f"transformations {self.transformations}: rows of features have none; leave them out")

    def _check_made_likelihood(self, network: NetworkEntry) -> None:
        """Refuse settings that a likelihood given as an object does not take, and one that is made for other data."""
        name = described(self.likelihood)
        for each in dataclasses.fields(self):
            if each.name in OF_LIKELIHOODS and (value := getattr(self, each.name)) != each.default:
                raise ValueError(
                    f"{each.name} is {value}, and likelihood {name} is an object, which has its own: set {each.name} in"
                    f" the object, and leave it at {each.default} here"
                )
        if network.takes == "features" and getattr(self.likelihood, "bounded", False):
            raise ValueError(
                f"likelihood {name} describes values in [0, 1], and network {network.name} takes rows of features,"
                " which have no bounds: make it with bounded=False"
            )

    def _parts(self) -> tuple[LikelihoodEntry, NetworkEntry]:
        """Return the entries of likelihood and network; registered objects become their names."""
        for name, table in (("likelihood", LIKELIHOODS), ("network", NETWORKS)):
            part = getattr(self, name)
            if not isinstance(part, str) and (registered := table.name_of(part)) is not None:
                object.__setattr__(self, name, registered)
            elif not isinstance(part, str) and not callable(part) and not hasattr(part, "log_prob"):
                given = " ".join(reprlib.repr(part).split())  # modules have several lines
                itself = "likelihood" if name == "likelihood" else "function that makes encoder and decoder"
                raise ValueError(f"{name} is {given}: it must be text, or a {itself}")
        return likelihood_entry(self.likelihood), network_entry(self.network)

    @property
    def takes_features(self) -> bool:
        """Return whether the network takes rows of features (N x D x 1 x 1) instead of images."""
        return network_entry(self.network).takes == "features"

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as plain values, in order.

        Returns:
            A value for the name of each field.

        Raises:
            ValueError: if likelihood or network is an object that is not registered.
        """
        values = {each.name: getattr(self, each.name) for each in dataclasses.fields(self)}
        for name in ("likelihood", "network"):
            if not isinstance(values[name], str):
                raise ValueError(
                    f"{name} {described(values[name])} has no name by which a saved run could know it: register it"
                    f' with @negvae.register_{name}("...")'
                )
        values["images"] = None if self.images is None else self.images.to_dict()
        return values

    @classmethod
    def from_dict(cls, values: dict[str, Any], where: str = "config") -> RunConfig:
        """Make a configuration from the values that `to_dict` returns.

        Args:
            values: value for the name of each field; fields that are left out have their default.
            where: file that the values come from, for the message.

        Returns:
            The configuration.

        Raises:
            ValueError: if a field is unknown, is missing or has a value of the wrong kind.
        """
        known = {each.name for each in dataclasses.fields(cls)}
        for name in values:
            if name not in known:
                choose("field", str(name), sorted(known), where)
        if "data" not in values:
            raise ValueError(f"{where}: field data is missing: it names the inlier data set")
        return cls(**values)

    def to_yaml(self) -> str:
        """Return the fields as YAML, which `from_yaml` reads back to an equal object.

        >>> config = preset("gray", "fashion-mnist", negatives="kmnist")
        >>> RunConfig.from_yaml(config.to_yaml()) == config
        True
        """
        return yaml.safe_dump(self.to_dict(), sort_keys=False)

    @classmethod
    def from_yaml(cls, text: str, where: str = "config") -> RunConfig:
        """Make a configuration from the text that `to_yaml` returns.

        Args:
            text: YAML text.
            where: file that the text comes from, for the message.

        Returns:
            The configuration.

        Raises:
            ValueError: if the text is not YAML or not a mapping, or if `from_dict` refuses it.
        """
        return cls.from_dict(read_yaml_mapping(text, where), where)


def translated(values: dict[str, Any], version: object) -> dict[str, Any]:
    """Return the fields of a run from a file of this format version, with the names that are used today."""
    if not isinstance(version, int) or version > LAST_RENAMED:
        return values
    return {
        name: RENAMED[name].get(value, value) if name in RENAMED and isinstance(value, str) else value
        for name, value in values.items()
    }


DEFAULT_PRESET = "unsupervised"
"""Preset of runs on images that name none, whatever their negatives (benchmarks/known_faults.py)."""
PRESETS: dict[str, dict[str, Any]] = {
    # Appendix A.2.1 of the paper with a decoder that mirrors the encoder.
    "gray": dict(
        network="gray", initialization="normal", latent_size=10, negative_shift=8.0,
        optimizer="rmsprop", learning_rate=1e-4, batch_size=50, epochs=100,
    ),
    # The same with the large decoder of Nalisnick et al. (2018) that the authors ran.
    "gray-paper": dict(
        network="gray-paper", initialization="normal", latent_size=10, negative_shift=8.0,
        optimizer="rmsprop", learning_rate=1e-4, batch_size=50, epochs=100,
    ),
    # Appendix A.2.2 of the paper.
    "color": dict(
        network="color", initialization="glorot", latent_size=100, negative_shift=25.0,
        optimizer="adam", learning_rate=1e-4, batch_size=50, epochs=100,
    ),
    # Any image size from 16x16 to 256x256; a recipe for a first look rather than for the paper's figures.
    "general": dict(
        network="pyramid", initialization="he", latent_size=32, negative_shift=8.0,
        optimizer="adam", learning_rate=1e-3, batch_size=128, epochs=10, calibration=0.2,
    ),
    # The default, which needs nothing but the inliers, of any image size from 16x16 to 256x256. Chosen on transformed
    # inliers of kinds that are not among its negatives (docs/notes/unsupervised.md).
    "unsupervised": dict(
        network="deep", initialization="he", latent_size=32, negative_shift=2.5,
        negatives="augmented:jigsaw,cutmix,sketch,sketched-jigsaw,strokes,zoom",
        optimizer="adam", learning_rate=2e-3, schedule="cosine", batch_size=64, epochs=3, calibration=0.2,
    ),
    # Rows of features, such as embeddings or tables; standardized on the way in.
    "features": dict(
        network="mlp", initialization="he", likelihood="gaussian", learn_sigma=True, latent_size=8,
        negative_shift=8.0, optimizer="adam", learning_rate=3e-3, batch_size=128, epochs=50, precision="float32",
        calibration=0.2,
    ),
}  # fmt: skip


def _is_made(likelihood: Any) -> bool:
    """Return whether this is a likelihood itself, and not its name or what makes one."""
    return hasattr(likelihood, "log_prob") and not isinstance(likelihood, type)


def preset(name: str, data: str, **overrides: Any) -> RunConfig:
    """Return the configuration of a preset for a data set; further keywords override any of its fields.

    Args:
        name: name in `PRESETS`.
        data: name or path of the inlier data set.

    Returns:
        The configuration.

    Raises:
        ValueError: if the preset or a field is unknown, or a value is refused.

    >>> preset("color", "cifar10", seed=3).negative_shift
    25.0
    """
    values = PRESETS[choose("preset", name, PRESETS)]
    if _is_made(overrides.get("likelihood")):
        values = {key: value for key, value in values.items() if key not in OF_LIKELIHOODS}  # which the object has
    return RunConfig.from_dict({"data": data, **values, **overrides}, where=f"preset {name}")


def read_yaml_mapping(text: str, where: str) -> dict[str, Any]:
    """Read YAML text that must be a mapping with string keys.

    Args:
        text: YAML text.
        where: file that the text comes from, for the message.

    Returns:
        The mapping.

    Raises:
        ValueError: if the text is something else; the message says in one line where the error is.

    >>> read_yaml_mapping("epochs: 3", "run.yaml")
    {'epochs': 3}
    """
    try:
        values = yaml.safe_load(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f" at line {mark.line + 1}" if mark else ""
        raise ValueError(f"{where}: not YAML{line}") from None
    except (ValueError, OverflowError) as error:  # a date or a number that is none
        raise ValueError(f"{where}: {first_line(error)[:100]}") from None
    except RecursionError:
        raise ValueError(f"{where}: nested too deeply") from None
    _refuse_large(values, where)
    if not isinstance(values, dict) or not all(isinstance(key, str) for key in values):
        raise ValueError(f"{where}: expected a mapping of names to values")
    return values


def _refuse_large(values: Any, where: str) -> None:
    """Refuse YAML whose aliases stand for more values than any configuration has, before one of them is printed.

    Raises:
        ValueError: if there are too many.
    """
    todo, count = [values], 0
    while todo:
        value = todo.pop()
        count += 1
        if isinstance(value, dict):
            todo += value.values()
        elif isinstance(value, list | tuple | set):
            todo += value
        if count + len(todo) > _MOST_VALUES:
            raise ValueError(f"{where}: holds more than {_MOST_VALUES:,} values, or itself")


def as_field(name: str, value: Any) -> Any:
    """Return a value, such as one that YAML gives, as a `RunConfig` keeps it in a field.

    Args:
        name: name of the field.
        value: value for it.

    Returns:
        The value, of the field's type.

    Raises:
        ValueError: if it has the wrong kind.

    >>> as_field("learning_rate", "1e-3")
    0.001
    """
    kinds = {each.name: str(each.type) for each in dataclasses.fields(RunConfig)}
    return _typed(name, value, kinds[name])


def _typed(name: str, value: Any, kind: str) -> Any:
    """Return `value` as the annotated `kind`, accepting only lossless conversions."""
    base, _, further = kind.partition(" | ")
    if value is None and further == "None":
        return None
    if base == "Decoding":
        if isinstance(value, dict):
            return Decoding.from_dict(value)
        if isinstance(value, Decoding):
            return value
        raise ValueError(f"{name} is {value!r}: it must be a mapping that describes how images are decoded")
    if further not in ("", "None"):
        return value  # the name of a part, or the part itself
    if base == "float" and isinstance(value, str) and _EXPONENT.fullmatch(value):
        value = float(value)
    is_number = isinstance(value, Real) and not isinstance(value, bool)
    if is_number:
        value = int(value) if isinstance(value, Integral) else float(value)  # NumPy's as Python's
    if is_number and isinstance(value, int) and abs(value) >= 2**63:
        raise ValueError(f"{name} is a number of {len(f'{value:x}')} hexadecimal digits: it must be below 2^63")
    if base == "float" and is_number:
        return float(value)
    if base == "int" and is_number and isinstance(value, int):
        return value
    if base == "bool" and isinstance(value, bool):
        return value
    if base == "str" and isinstance(value, str):
        return value
    expected = {"float": "a number", "int": "a whole number", "bool": "true or false", "str": "text"}[base]
    raise ValueError(f"{name} is {reprlib.repr(value)}: it must be {expected}")
