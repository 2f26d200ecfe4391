"""Beyond the paper: detection without outside data as a table, with its goals and its ablation. Imports no torch.

Every run is the preset `unsupervised` with some fields changed: a *variant*. Nothing here was chosen by an
out-of-distribution set: the preset comes from transformations of inliers that are not among its negatives
(`negvae.paper.proxies`), and so does the verdict on each ablation.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from negvae.config import PRESETS
from negvae.paper.published import OOD, Setting
from negvae.registry import choose

TABLE = "beyond"
ENSEMBLE = "combined, ensemble"
"""The mean of the score `combined` over models of several seeds."""

MAIN, PLAIN = "unsupervised", "plain"


@dataclass(frozen=True)
class Variant:
    """What a run changes in the preset `unsupervised`.

    Attributes:
        name: part of the run's name.
        changes: what is different, in words.
        fields: of `RunConfig`.
        ablation: whether it is compared on a shorter run, with one seed.
    """

    name: str
    changes: str
    fields: Mapping[str, Any] = field(default_factory=dict)
    ablation: bool = True


_ALL = str(PRESETS["unsupervised"]["negatives"])
_BASE = "ablation-base"


def _without(name: str) -> str:
    kind, _, names = _ALL.partition(":")
    return f"{kind}:{','.join(each for each in names.split(',') if each != name)}"


VARIANTS: dict[str, Variant] = {
    variant.name: variant
    for variant in (
        Variant(MAIN, "the preset", ablation=False),
        Variant(PLAIN, "the same VAE without negatives", {"negatives": "none"}, ablation=False),
        Variant(_BASE, "the preset"),
        Variant("plain-short", "no negatives", {"negatives": "none"}),
        Variant("generated", "generated negatives alone, as in the paper", {"negatives": "generated"}),
        Variant("generated-too", "a sixth of the negatives generated", {"negatives": f"5*{_ALL}+generated"}),
        Variant("shift-8", "negative prior at 8 in every coordinate, as the paper has it for gray images",
                {"negative_shift": 8.0}),
        Variant("network-pyramid", "encoder without layers of stride 1", {"network": "pyramid"}),
        Variant("with-rotation", "and quarter turns as negatives", {"negatives": f"{_ALL},rotation"}),
        *(Variant(f"no-{name}", f"no {name} among the negatives", {"negatives": _without(name)})
          for name in ("cutmix", "strokes", "zoom", "jigsaw")),
        Variant("learned-sigma", "Gaussian likelihood with a learned sigma",
                {"likelihood": "gaussian", "sigma": 0.2, "learn_sigma": True}),
    )
}  # fmt: skip

DATA = ("fashion-mnist", "mnist", "cifar10", "svhn")
ABLATION_DATA = ("fashion-mnist", "cifar10")
OTHERS = ("kmnist", "emnist-letters", "uniform-noise")
"""Out-of-distribution sets of every set beside its counterpart in the paper."""


def ood_sets(data: str) -> tuple[str, ...]:
    """The sets that a run is tested against: its counterpart in the paper, then the others."""
    return OOD[data], *OTHERS


def is_color(data: str) -> bool:
    """Whether a set's images are in color."""
    return Setting(data, "", "").color


@dataclass(frozen=True)
class Goal:
    """A figure that was aimed at: mean AUROC of "combined".

    Attributes:
        data: inlier set.
        ood: set to tell it from; "others" is the mean over the other sets.
        auroc: the goal.
        spread: largest standard deviation over seeds; None where none was named.
        paper: what the paper reports for generated negatives, AUC KL.
    """

    data: str
    ood: str
    auroc: float
    spread: float | None = None
    paper: str = "-"


GOALS = (
    Goal("fashion-mnist", "mnist", 0.99, 0.005, "0.88 (0.07)"),
    Goal("fashion-mnist", "others", 0.98),
    Goal("mnist", "fashion-mnist", 0.999),
    Goal("mnist", "others", 0.98),
    Goal("cifar10", "svhn", 0.95, None, "0.53 - 0.63"),
    Goal("cifar10", "others", 0.90),
)
LIKELIHOOD_GOAL = 0.05
"""Test nats per dimension may exceed those of the same VAE without negatives by this share."""

PUBLISHED: dict[str, dict[tuple[str, str], float]] = {
    name: dict(zip((("cifar10", "svhn"), ("svhn", "cifar10"), ("fashion-mnist", "mnist"), ("mnist", "fashion-mnist")),
                   figures, strict=False))
    for name, figures in {
        "ELBO": (0.08, 0.99, 0.87, 1.00),
        "Likelihood Regret": (0.88, 0.92, 0.99),
        "BIVA LLR": (0.89, 0.99, 0.98, 1.00),
        "DoSE (Glow on color)": (0.97, 0.99, 1.00, 1.00),
        "LPath-1M": (0.99, 0.99, 1.00, 1.00),
    }.items()
}  # fmt: skip
"""AUROC as the LPath paper's table has it (DC-VAE unless said), by pair."""


def settings(only: tuple[str, ...] = ()) -> list[Setting]:
    """The runs of the table in running order: both directions of both pairs, then the ablation.

    Args:
        only: runs by name; none for all.

    Raises:
        ValueError: a name that is not part of the table.
    """
    whole = [(name, data) for data in DATA for name in (MAIN, PLAIN)]
    short = [(v.name, data) for v in VARIANTS.values() if v.ablation for data in ABLATION_DATA]
    known = {setting.name: setting for setting in (make(data, name) for name, data in (*whole, *short))}
    return [known[choose(f"run of {TABLE}", name, known)] for name in only] or list(known.values())


def make(data: str, variant: str) -> Setting:
    """The run of a variant on a data set."""
    fields = {**PRESETS["unsupervised"], **VARIANTS[variant].fields}
    return Setting(data, fields.get("likelihood", "bernoulli"), fields["negatives"], variant)


def seeds(setting: Setting) -> int:
    """How many a full table has: five on gray images, three on color, one in the ablation."""
    return 1 if VARIANTS[setting.variant].ablation else 3 if setting.color else 5
