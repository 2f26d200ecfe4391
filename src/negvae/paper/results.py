"""Result of one run, and many of them as the figures of a table of the paper. Nothing here imports torch.

A result's content, written by `negvae.paper.runner` into the table of its profile (`negvae.paper.store`):

    run, profile, seed, status      which run; "finished", or "diverged" with the reason under "error"
    config                          the `RunConfig`
    evaluation                      last epoch, by OOD set: AUCs with intervals, mean nats and bits per dimension
    quantiles                       last epoch, by OOD set and score: {"inliers": [...], "ood": [...]}, order
                                    statistics from the least to the largest score, for histograms and ROC curves
    curve, curve_images             one row for each epoch: losses, and AUCs on so many test images
    data, notes                     the sets used, in words, and what must be said wherever figures are shown
    pictures                        seed 0: captions and count for `negvae.report.samples.read_strips`; the images are
                                    in the folder of the run, under `PICTURES`
    provenance                      versions, commit, machine, seconds, images per second

Numbers that JSON has none for stand as text: "inf", "-inf", "nan".
"""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import stdtrit

from negvae.paper.profiles import Profile
from negvae.paper.published import LEARNED, ROWS, Cell, Setting
from negvae.paper.store import Result, ResultTable, up_to_date

PICTURES = "pictures.png"
"""File in the folder of a run of seed 0: images of both sets, reconstructions, samples and negatives."""
PAPER_SEEDS = 5
"""Number of runs behind each published figure."""


QUANTILES = 401
"""Number of order statistics that are kept of a score."""


def order_statistics(scores: NDArray[Any]) -> list[float]:
    """Return `QUANTILES` evenly spaced order statistics of scores (N), to five digits; all where N is smaller.

    >>> order_statistics(np.array([3.0, 1.0, 2.0]))
    [1.0, 2.0, 3.0]
    """
    ordered = np.sort(scores)
    chosen = np.unique(np.linspace(0, len(ordered) - 1, QUANTILES).round().astype(int))
    return [float(f"{value:.5g}") for value in ordered[chosen]]


def run_name(setting: Setting, seed: int | str) -> str:
    """Return the name of a run's result and working folder."""
    return f"{setting.name}-seed{seed}"


def table_of(results: Path, profile: Profile) -> ResultTable:
    """Return the table of a profile's results."""
    return ResultTable(results / f"{profile.name}.jsonl")


@dataclass(frozen=True)
class Figure:
    """One row of a cell: our figure beside the paper's.

    Attributes:
        row: key of `ROWS`.
        mean: our mean over the seeds.
        std: our standard deviation over the seeds, with n - 1 in the denominator; None for a single seed.
        paper_mean: published mean; None where the paper prints no figure.
        paper_std: published standard deviation; None where the paper prints no figure.
        values: our figure for each seed, in order.
    """

    row: str
    mean: float
    std: float | None
    paper_mean: float | None
    paper_std: float | None
    values: tuple[float, ...] = ()

    @property
    def difference(self) -> float | None:
        """Our mean minus the paper's; None without a published figure."""
        return None if self.paper_mean is None else self.mean - self.paper_mean

    @property
    def combined_spread(self) -> float | None:
        """Square root sqrt(ours^2 + paper's^2 + 2 x 0.005^2): the paper's mean and spread are both rounded to 0.01."""
        if self.paper_std is None:
            return None
        return math.hypot(self.std or 0.0, self.paper_std, 0.005, 0.005)

    @property
    def welch(self) -> tuple[float, float] | None:
        """Welch's 95% interval of the difference between the means over seeds, the paper's being of `PAPER_SEEDS` runs.

        None without a published figure or a spread of ours. Published spreads are rounded to 0.01: one printed as 0.00
        counts as 0, and the interval is then ours alone.
        """
        ours, theirs, count = self.std, self.paper_std, len(self.values)
        if self.difference is None or ours is None or theirs is None or count < 2:
            return None
        shares = ours**2 / count, theirs**2 / PAPER_SEEDS
        error = math.sqrt(sum(shares))
        if not 0 < error < math.inf:
            return (self.difference, self.difference) if error == 0 else None
        freedom = error**4 / (shares[0] ** 2 / (count - 1) + shares[1] ** 2 / (PAPER_SEEDS - 1))
        half = float(stdtrit(freedom, 0.975)) * error
        return self.difference - half, self.difference + half

    @property
    def within(self) -> bool | None:
        """Whether the difference is no larger than the combined spread; None without a published figure."""
        if self.difference is None or self.combined_spread is None:
            return None
        return abs(self.difference) <= self.combined_spread


@dataclass(frozen=True)
class CellResult:
    """Cell of a table with the results of its runs.

    Attributes:
        cell: column of the table.
        results: results of the finished seeds, in order.
        diverged: seeds whose training diverged; they have no figures.
        outdated: seeds whose result was made with other settings than the profile now has; they do not count.
        figures: figures by row (key of `ROWS`); empty without results.
        negatives: source of negatives that the runs are trained with, which a profile may vary; in the notation of
            `RunConfig.negatives`.
        likelihood: likelihood that the runs are trained with, which a profile may vary; as in `Setting.likelihood`.
    """

    cell: Cell
    results: tuple[Result, ...]
    diverged: tuple[int, ...]
    outdated: tuple[int, ...]
    figures: dict[str, Figure]
    negatives: str
    likelihood: str

    @property
    def seeds(self) -> list[int]:
        """Seeds that have a finished result."""
        return [result["seed"] for result in self.results]

    @property
    def notes(self) -> list[str]:
        """Notes on the data that must stand beside the figures, each once."""
        return list(dict.fromkeys(note for result in self.results for note in result["notes"]))


def collect(cell: Cell, profile: Profile, results: Path) -> CellResult:
    """Gather the results of a cell's run over all seeds that have one.

    Args:
        cell: cell whose results are gathered.
        profile: profile that the runs were made with.
        results: folder of result files, with one table for each profile.

    Returns:
        The cell with its results and figures.

    Raises:
        ValueError: if a result is damaged, or lacks what a table is made from.
    """
    good, diverged, outdated = [], [], []
    table = table_of(results, profile)
    for seed in table.seeds(cell.setting.name):
        content = up_to_date(table, run_name(cell.setting, seed), profile.config(cell.setting, seed), ROWS)
        if content is None:
            outdated.append(seed)
        elif content["status"] == "diverged":
            diverged.append(seed)
        elif cell.ood in content["evaluation"]:
            good.append(content)
    figures = {}
    for row in ROWS if good else ():
        values = [float(result["evaluation"][cell.ood][row]) for result in good]
        published = cell.paper.get(row)
        figures[row] = Figure(
            row,
            _mean(values),
            _std(values),
            published and published.mean,
            published and published.std,
            tuple(values),
        )
    own = profile.config(cell.setting)
    likelihood = LEARNED if own.learn_sigma else str(own.likelihood)
    return CellResult(cell, tuple(good), tuple(diverged), tuple(outdated), figures, own.negatives, likelihood)


def _mean(values: list[float]) -> float:
    return math.fsum(values) / len(values) if all(map(math.isfinite, values)) else sum(values) / len(values)


def _std(values: list[float]) -> float | None:
    if len(values) < 2:
        return None
    return statistics.stdev(values) if all(map(math.isfinite, values)) else math.nan
