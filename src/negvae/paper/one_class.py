"""One class against the world: the table `one-class`, which is not in the paper. Imports no torch.

A detector is trained on the training images of one class, and tested on the test images of that class against those of
the other nine. Each run is the preset `one-class`.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from negvae.config import RunConfig, preset
from negvae.paper.store import Result, ResultTable, up_to_date
from negvae.registry import choose

TABLE = "one-class"
DATA = ("fashion-mnist", "cifar10")
CLASSES = 10
GOALS = {"fashion-mnist": 0.94, "cifar10": 0.86}
"""Mean AUROC over the classes that is aimed at."""
PUBLISHED: dict[str, dict[str, float]] = {
    "DeepSVDD": {"fashion-mnist": 0.848, "cifar10": 0.648},
    "GEOM": {"fashion-mnist": 0.935, "cifar10": 0.860},
    "GOAD": {"fashion-mnist": 0.941, "cifar10": 0.882},
    "CSI": {"cifar10": 0.943},
}
"""Published means over the ten classes, without outside data."""
SCORES = ("combined", "transformations_kl", "dose", "prior_ratio", "kl", "bpd")
"""Scores that are measured."""
BEFORE = "combined, without transformations"
"""The score "combined" of the same model, made of the other scores alone."""


@dataclass(frozen=True)
class OneClassProfile:
    """Recipe for the runs of the table.

    Attributes:
        name: key of `PROFILES`.
        description: purpose of the profile, in one line.
        seeds: number of seeds (0, 1, ...) of a full table.
        fields: fields of `RunConfig` that differ from the preset `one-class`.
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
        label: class of the inliers.
        seed: seed of the run.
    """

    data: str
    label: int
    seed: int

    @property
    def name(self) -> str:
        """Name of the run's result and working folder."""
        return f"{self.data}-class{self.label}-seed{self.seed}"

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

        config = preset(
            "one-class", f"class {self.label} of {self.data}", seed=self.seed, device=device, **profile.fields
        )
        kept = training - max(round(config.calibration * training), 1)
        return fill_in(config, kept, [name for name in ("batch_size", "epochs") if name not in profile.fields])


def runs(profile: OneClassProfile, only: tuple[str, ...] = (), seeds: tuple[int, ...] | None = None) -> list[Run]:
    """Return the runs of the table in running order: all classes with seed 0, the data sets by turns; then seed 1.

    Args:
        profile: recipe of the runs.
        only: names of data sets, or of runs without their seed, such as cifar10-class3; empty for all.
        seeds: seeds; None for those of the profile.

    Returns:
        The runs.

    Raises:
        ValueError: if a name is not part of the table.

    >>> [run.name for run in runs(PROFILES["cpu"])[:3]]
    ['fashion-mnist-class0-seed0', 'cifar10-class0-seed0', 'fashion-mnist-class1-seed0']
    """
    known = {f"{data}-class{label}": (data, label) for label in range(CLASSES) for data in DATA}
    for name in only:
        choose(f"run of {TABLE}", name, [*DATA, *known])
    chosen = [pair for name, pair in known.items() if not only or name in only or pair[0] in only]
    numbers = tuple(range(profile.seeds)) if seeds is None else seeds
    return [Run(data, label, seed) for seed in numbers for data, label in chosen]


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
    content = table.get(run.name)
    return content and up_to_date(table, run.name, run.config(profile, int(content["images"])))
