"""One class against the world: the table `one-class`, which is not in the paper. Imports no torch.

A detector is trained on the training images of one class, and tested on the test images of that class against those of
the other nine. So that it shows what the preset loses where the default is good, there are runs on whole sets too,
tested against other sets. Each run is the preset `unsupervised` with quarter turns.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from negvae.config import RunConfig, preset
from negvae.paper import unsupervised as beyond
from negvae.paper.store import Result, ResultTable, damaged, is_number, up_to_date, wrong, wrong_areas
from negvae.registry import choose

TABLE = "one-class"
DATA = ("fashion-mnist", "cifar10")
CLASSES = 10
WHOLE = beyond.DATA
"""Sets that there is a run on as a whole."""
GOALS = {"fashion-mnist": 0.94, "cifar10": 0.86}
"""Mean AUROC over the classes that is aimed at."""
PUBLISHED: dict[str, dict[str, float]] = {
    "DeepSVDD": {"fashion-mnist": 0.848, "cifar10": 0.648},
    "GEOM": {"fashion-mnist": 0.935, "cifar10": 0.860},
    "GOAD": {"fashion-mnist": 0.941, "cifar10": 0.882},
    "CSI": {"cifar10": 0.943},
}
"""Published means over the ten classes, without outside data.

Ruff et al. 2018 (DeepSVDD), arXiv 1805.10917 (GEOM), 2005.02359 (GOAD, which has the others' on Fashion-MNIST, too) and
2007.08176 (CSI).
"""
SCORES = (
    "combined", "transformations_distance", "transformations_kl", "latent_neighbors",
    "dose", "prior_ratio", "kl", "bpd",
)  # fmt: skip
"""Scores that are measured."""
BEFORE = "combined, without transformations"
"""The score "combined" of the same model, as it would be if the model had no transformations."""

RULES = {"combined, all others added": True, "combined, the largest other added": False}
"""The score "combined" of the same model by either rule for the scores that are not those of transformations, and
whether it adds them all up (`negvae.scoring.references.References.summed`)."""
TRANSFORMED = "transformed inliers"
"""What a run on a whole set is tested against first: proxies made of held-out inliers (`negvae.paper.proxies`)."""

NEAR: dict[str, tuple[str, ...]] = {"cifar10": ("imagenet32", "cifar100")}
"""Sets of much the same kind of images, which a run on a whole set is tested against too; those at hand."""
NEAR_GOALS = {("cifar10", "svhn"): 0.99, ("cifar10", "imagenet32"): 0.93, ("mnist", "fashion-mnist"): 1.0}
"""AUROC of whole sets that is aimed at; everywhere, no more than `LOSS` may be lost."""
PUBLISHED_NEAR: dict[tuple[str, str], dict[str, float]] = {
    ("cifar10", "cifar100"): {"CSI": 0.89, "LPath": 0.62, "DoSE": 0.57},
}
"""Published AUROC of whole sets against near ones, without outside data.

arXiv 2007.08176 (CSI, which is contrastive) and 2401.04933 (LPath, and DoSE as LPath's authors have it).
"""
LOSS = 0.003
RESAMPLED = {"cifar10": {"resampled": False, "resampled, JPEG": True}}
"""Controls: the run's own test images, enlarged and reduced as those of a set that was resampled; by name, whether they
are kept as JPEG in between."""


def without(score: str) -> str:
    """Return the name under which "combined" with one of its scores left out is measured.

    >>> without("dose")
    'combined, without dose'
    """
    return f"combined, without {score}"


@dataclass(frozen=True)
class OneClassProfile:
    """Recipe for the runs of the table.

    Attributes:
        name: key of `PROFILES`.
        description: purpose of the profile, in one line.
        seeds: number of seeds (0, 1, ...) of a full table.
        fields: fields of `RunConfig` that differ from the preset `unsupervised` with quarter turns.
        limit: largest number of images of each class, for training and for testing; None for all.
    """

    name: str
    description: str
    seeds: int
    fields: dict[str, Any]
    limit: int | None = None


PROFILES = {
    profile.name: profile
    for profile in (
        OneClassProfile("cpu", "the preset, 3 seeds: about ten minutes of a core for each run", 3, {}),
        OneClassProfile(
            "smoke",
            "seconds, to see that everything works: the figures mean nothing",
            1,
            {"epochs": 1, "batch_size": 32},
            200,
        ),
    )
}


@dataclass(frozen=True)
class Run:
    """One run of the table.

    Attributes:
        data: name of the data set.
        label: class of the inliers; None for all classes.
        seed: seed of the run.
    """

    data: str
    label: int | None
    seed: int

    @property
    def name(self) -> str:
        """Name of the run's result and working folder."""
        return f"{_name(self.data, self.label)}-seed{self.seed}"

    @property
    def inliers(self) -> str:
        """The inliers in words.

        >>> Run("cifar10", 3, 0).inliers
        'class 3 of cifar10'
        """
        return self.data if self.label is None else f"class {self.label} of {self.data}"

    @property
    def others(self) -> tuple[str, ...]:
        """Sets that a run on a whole set is tested against."""
        return (*beyond.ood_sets(self.data), *NEAR.get(self.data, ()))

    def config(self, profile: OneClassProfile, training: int, device: str = "auto") -> RunConfig:
        """Return the configuration of the run.

        Args:
            profile: recipe of the run.
            training: number of images of the class that are given to the detector.
            device: device to train on.

        Returns:
            The configuration, with epochs and batch size as the library takes them for so many images.
        """
        from negvae.runs.resolve import fill_in

        fields = {"transformations": "turns", **profile.fields}
        config = preset("unsupervised", self.inliers, seed=self.seed, device=device, **fields)
        kept = training - max(round(config.calibration * training), 1)
        return fill_in(config, kept, [name for name in ("batch_size", "epochs") if name not in profile.fields])


def runs(profile: OneClassProfile, only: tuple[str, ...] = (), seeds: tuple[int, ...] | None = None) -> list[Run]:
    """Return the runs of the table in running order: seed 0, classes by turns and then whole sets; then seed 1.

    Args:
        profile: recipe of the runs.
        only: names of data sets, or of runs without their seed, such as cifar10-class3 or cifar10-whole; empty for
            all.
        seeds: seeds; None for those of the profile.

    Returns:
        The runs.

    Raises:
        ValueError: if a name is not part of the table.

    >>> [run.name for run in runs(PROFILES["cpu"])[:3]]
    ['fashion-mnist-class0-seed0', 'cifar10-class0-seed0', 'fashion-mnist-class1-seed0']
    """
    inliers: list[tuple[str, int | None]] = [(data, label) for label in range(CLASSES) for data in DATA]
    known = {_name(*pair): pair for pair in [*inliers, *((data, None) for data in WHOLE)]}
    for name in only:
        choose(f"run of {TABLE}", name, [*WHOLE, *known])
    chosen = [pair for name, pair in known.items() if not only or name in only or pair[0] in only]
    numbers = tuple(range(profile.seeds)) if seeds is None else seeds
    return [Run(data, label, seed) for seed in numbers for data, label in chosen]


def _name(data: str, label: int | None) -> str:
    return f"{data}-whole" if label is None else f"{data}-class{label}"


def table_of(profile: OneClassProfile, results: Path) -> ResultTable:
    """Return the table of a profile's results."""
    return ResultTable(results / (f"{TABLE}.jsonl" if profile.name == "cpu" else f"{TABLE}-{profile.name}.jsonl"))


def finished(run: Run, profile: OneClassProfile, results: Path) -> Result | None:
    """Return the result of a run if there is one and it was made with the present settings.

    Args:
        run: run that is asked for.
        profile: recipe of the run.
        results: folder of result files.

    Returns:
        The result, or None.

    Raises:
        ValueError: if a result is damaged.
    """
    table = table_of(profile, results)
    if (content := table.get(run.name)) is None:
        return None
    images = content.get("images")
    if not isinstance(images, int) or not 2 <= images < 10**9:
        raise damaged(table, run.name, wrong("images", images, "a whole number of at least 2"))
    return up_to_date(table, run.name, run.config(profile, images), faults=lambda found: _faults(run, found))


def _faults(run: Run, content: Result) -> Iterator[str]:
    """Say what is wrong with the entries that only results of this table have."""
    if content["status"] != "finished":
        yield wrong("status", content["status"], "finished")
    for name in ("run", "judgement"):
        if not isinstance(content.get(name), str):
            yield wrong(name, content.get(name), "a text")
    if not is_number(alarms := content.get("false_alarms")):
        yield wrong("false_alarms", alarms, "a number")
    if run.label is not None:
        yield from wrong_areas("evaluation", content["evaluation"], "combined")
        return
    for ood, row in content["evaluation"].items():
        yield from wrong_areas(f"evaluation {ood}", row, "combined", BEFORE)
