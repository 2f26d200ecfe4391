"""Detection without outside data, which the paper lacks, as a table with goals and an ablation. Imports no torch.

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
"""Mean of the score `combined` over models of several seeds."""

MAIN, PLAIN = "unsupervised", "plain"


@dataclass(frozen=True)
class Variant:
    """Changes that a run makes to the preset `unsupervised`.

    Attributes:
        name: name of the variant, which is part of the run's name.
        changes: description of the changes, in words.
        fields: fields of `RunConfig` that differ from the preset.
        ablation: whether the variant is compared on a shorter run.
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
"""Out-of-distribution sets that every set is tested against, beside its counterpart in the paper."""


def ood_sets(data: str) -> tuple[str, ...]:
    """Return the sets that a run is tested against: its counterpart in the paper, then the others.

    >>> ood_sets("cifar10")
    ('svhn', 'kmnist', 'emnist-letters', 'uniform-noise')
    """
    return OOD[data], *OTHERS


@dataclass(frozen=True)
class Goal:
    """Goal for the mean AUROC of the score "combined".

    Attributes:
        data: name of the inlier set.
        ood: name of the out-of-distribution set; "others" for the mean over `OTHERS`.
        auroc: least mean AUROC over seeds that reaches the goal.
        spread: upper limit of the standard deviation over seeds, exclusive; None for no limit.
        paper: AUC KL that the paper reports for generated negatives, as text.
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
    Goal("cifar10", "svhn", 0.95, None, "0.51 - 0.63"),
    Goal("cifar10", "others", 0.90),
)
LIKELIHOOD_GOAL = 0.05
"""Share by which test nats per dimension may exceed those of the same VAE without negatives."""

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
"""AUROC from Table 1 of the LPath paper (arXiv 2401.04933; base model DC-VAE unless named otherwise), by pair."""


def settings(only: tuple[str, ...] = ()) -> list[Setting]:
    """Return the runs of the table in running order: both directions of both pairs, then the ablation.

    Args:
        only: names of runs; empty for all.

    Returns:
        The settings of the runs.

    Raises:
        ValueError: if a name is not part of the table.
    """
    whole = [(name, data) for data in DATA for name in (MAIN, PLAIN)]
    short = [(v.name, data) for v in VARIANTS.values() if v.ablation for data in ABLATION_DATA]
    known = {setting.name: setting for setting in (make(data, name) for name, data in (*whole, *short))}
    return [known[choose(f"run of {TABLE}", name, known)] for name in only] or list(known.values())


def make(data: str, variant: str) -> Setting:
    """Return the setting of a variant on a data set.

    >>> make("mnist", "plain").name
    'mnist-plain'
    """
    fields = {**PRESETS["unsupervised"], **VARIANTS[variant].fields}
    return Setting(data, fields.get("likelihood", "bernoulli"), fields["negatives"], variant)


def seeds(setting: Setting) -> int:
    """Return how many seeds a full table has: five on gray images, three on color and in the ablation.

    >>> seeds(make("mnist", "unsupervised"))
    5
    """
    return 3 if VARIANTS[setting.variant].ablation or setting.color else 5
