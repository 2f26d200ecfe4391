"""Tables of the paper as data, and the training runs that their columns refer to. Nothing here imports torch.

Source: "Negative Sampling in Variational Autoencoders", tables 1 to 5 and section 4.3. Published figures are means
(standard deviations) of 5 runs, as printed; where the same run is printed twice with different figures (generated
negatives in tables 3 and 5), each table keeps its own.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

from negvae.registry import choose

ROWS = {
    "auc_bpd": "AUC BPD",
    "auc_kl": "AUC KL",
    "nats_per_dim_test": "Test, nats/dim",
    "nats_per_dim_ood": "OOD, nats/dim",
}
"""Figures of each column, by title. The paper calls the last two "Test BPD" and "OOD BPD"; they are nats/dimension."""

LEARNED = "gaussian-learned-sigma"


class Published(NamedTuple):
    """Figure as the paper prints it.

    Attributes:
        mean: mean over 5 runs.
        std: standard deviation over 5 runs.
        power: whether the figure is printed as powers of ten rather than with two decimals.
    """

    mean: float
    std: float
    power: bool = False


@dataclass(frozen=True)
class Setting:
    """Training setting that a column of a table names; a profile and a seed make it a run.

    Attributes:
        data: name of the inlier data set.
        likelihood: one of `negvae.parts.LIKELIHOODS`, or `LEARNED`: a Gaussian whose sigma is trained.
        negatives: source of negatives, in the notation of `negvae.negatives.parse`.
        variant: key of `negvae.paper.unsupervised.VARIANTS`; "" for the paper's own runs.
    """

    data: str
    likelihood: str
    negatives: str
    variant: str = ""

    @property
    def name(self) -> str:
        """Name of the run in files and on the command line."""
        negatives = self.negatives.replace(":", "-").replace("+", "-and-")
        return f"{self.data}-{self.variant or self.likelihood + '-' + negatives}"

    @property
    def color(self) -> bool:
        """Whether the images are 32x32 in color, rather than 28x28 in gray."""
        return self.data in ("cifar10", "svhn")


@dataclass(frozen=True)
class Cell:
    """Column of a table: a run, the set that it is tested against, and the figures that the paper reports.

    Attributes:
        table: key of `TABLES`.
        name: name of the cell, such as table3/bernoulli/generated.
        setting: training setting of the run.
        ood: name of the out-of-distribution test set.
        paper: published figures by row (key of `ROWS`); empty where the paper prints none.
    """

    table: str
    name: str
    setting: Setting
    ood: str
    paper: dict[str, Published]


@dataclass(frozen=True)
class PaperTable:
    """Table of the paper.

    Attributes:
        name: key of `TABLES`.
        title: number of the table in the paper and its subject.
        cells: columns of the table, left to right.
    """

    name: str
    title: str
    cells: tuple[Cell, ...]


OOD = {"fashion-mnist": "mnist", "mnist": "fashion-mnist", "cifar10": "svhn", "svhn": "cifar10"}
"""Out-of-distribution set that the paper tests each inlier set against."""


def _table(name: str, title: str, varies: tuple[str, ...], columns: dict[tuple[str, str, str], str]) -> PaperTable:
    """Build a table from lines such as "0.46 (0.05), 0.61 (0.09)": one figure for each row, in the order of `ROWS`.

    Args:
        name: name of the table.
        title: title of the table.
        varies: fields of `Setting` in which the columns differ.
        columns: printed figures by (data, likelihood, negatives).

    Returns:
        The table, with one cell for each column.
    """
    cells = []
    for key, text in columns.items():
        setting = Setting(*key)
        figures = [_published(part) for part in text.split(", ") if part]
        cell = "/".join([name, *(getattr(setting, field) for field in varies)])
        cells.append(Cell(name, cell, setting, OOD[setting.data], dict(zip(ROWS, figures, strict=False))))
    return PaperTable(name, title, tuple(cells))


def _published(text: str) -> Published:
    mean, std = text.rstrip(")").split(" (")
    if mean.startswith("10^"):
        return Published(float(f"1e{mean[3:]}"), float(f"1e{std[3:]}"), power=True)
    return Published(float(mean), float(std))


_F, _M, _C, _S = "fashion-mnist", "mnist", "cifar10", "svhn"
_B, _G, _Q = "bernoulli", "gaussian", "quantized-gaussian"
_LETTERS, _IMAGENET = "emnist-letters", "imagenet32"
ENLARGED = "imagenet32+zoomed:imagenet32"
"""ImageNet's negatives, half of each batch enlarged parts of them: not the paper's, for a set that stands in for it."""

TABLES: dict[str, PaperTable] = {
    table.name: table
    for table in (
        _table("table1", "Table 1: Baseline VAEs, noise models, Fashion-MNIST and MNIST", ("data", "likelihood"), {
            (_F, _B, "none"): "0.46 (0.05), 0.61 (0.09), 0.30 (0.00), 0.35 (0.08)",
            (_F, _G, "none"): "0.98 (0.00), 0.26 (0.03), 0.94 (0.00), 0.96 (0.00)",
            (_M, _B, "none"): "1.00 (0.00), 0.73 (0.14), 0.13 (0.00), 1.36 (0.03)",
            (_M, _G, "none"): "0.97 (0.00), 0.71 (0.04), 0.94 (0.00), 0.99 (0.00)",
        }),
        _table("table2", "Table 2: Baseline VAEs, noise models, CIFAR-10 and SVHN", ("data", "likelihood"), {
            (_C, _B, "none"): "0.59 (0.00), 0.29 (0.00), 0.59 (0.00), 0.60 (0.00)",
            (_C, _G, "none"): "0.25 (0.02), 0.25 (0.01), 0.93 (0.00), 0.93 (0.00)",
            (_C, _Q, "none"): "0.19 (0.00), 0.28 (0.01), 0.93 (0.00), 0.93 (0.00)",
            (_S, _B, "none"): "0.51 (0.00), 0.87 (0.00), 0.60 (0.00), 0.62 (0.01)",
            (_S, _G, "none"): "0.92 (0.00), 0.74 (0.01), 0.93 (0.00), 0.94 (0.00)",
        }),
        _table("table3", "Table 3: Negative sampling, Fashion-MNIST against MNIST", ("likelihood", "negatives"), {
            (_F, _B, "none"): "0.46 (0.05), 0.61 (0.09), 0.30 (0.00), 0.35 (0.08)",
            (_F, _G, "none"): "0.98 (0.00), 0.26 (0.03), 0.94 (0.00), 0.96 (0.00)",
            (_F, _B, _LETTERS): "1.00 (0.00), 1.00 (0.00), 0.30 (0.00), 1.45 (0.19)",
            (_F, _G, _LETTERS): "1.00 (0.00), 1.00 (0.00), 0.94 (0.00), 1.38 (0.01)",
            (_F, _B, "generated"): "0.70 (0.13), 0.88 (0.07), 0.47 (0.09), 10^18 (10^19)",
            (_F, _G, "generated"): "0.80 (0.04), 0.74 (0.05), 1.04 (0.01), 42.40 (76.21)",
        }),
        _table("table4", "Table 4: Negative sampling, CIFAR-10 against SVHN", ("likelihood", "negatives"), {
            (_C, _B, _IMAGENET): "0.90 (0.05), 0.90 (0.06), 0.77 (0.15), 2.09 (0.34)",
            (_C, _G, _IMAGENET): "0.93 (0.01), 0.93 (0.01), 1.02 (0.02), 2.63 (0.13)",
            (_C, _Q, _IMAGENET): "0.92 (0.03), 0.92 (0.03), 1.06 (0.08), 2.51 (0.53)",
            (_C, _B, ENLARGED): "",
            (_C, _G, ENLARGED): "",
            (_C, _Q, ENLARGED): "",
            (_C, _B, "generated"): "0.53 (0.09), 0.53 (0.10), 1.99 (0.16), 2.52 (0.86)",
            (_C, _G, "generated"): "0.63 (0.15), 0.63 (0.14), 2.29 (0.36), 4.43 (2.30)",
            (_C, _Q, "generated"): "0.50 (0.08), 0.51 (0.08), 2.29 (0.27), 2.39 (0.48)",
        }),
        _table("table5", "Table 5: Sources of negatives, Fashion-MNIST against MNIST, Bernoulli", ("negatives",), {
            (_F, _B, "none"): "0.46 (0.05), 0.61 (0.09), 0.30 (0.00), 0.35 (0.08)",
            (_F, _B, "uniform-noise"): "0.47 (0.05), 0.56 (0.08), 0.30 (0.00), 0.32 (0.04)",
            (_F, _B, "kmnist"): "1.00 (0.00), 1.00 (0.00), 0.30 (0.00), 1.10 (0.09)",
            (_F, _B, _LETTERS): "1.00 (0.00), 1.00 (0.00), 0.30 (0.00), 1.44 (0.20)",
            (_F, _B, "generated"): "0.76 (0.14), 0.89 (0.08), 0.47 (0.09), 10^18 (10^19)",
        }),
        _table("noise", "Section 4.3: Gaussian noise (sigma 0.25) added to the inliers as negatives", ("negatives",), {
            (_F, _B, "added-noise:0.25"): "0.44 (0.01), 0.70 (0.09)",
        }),
        _table("sigma", "Learned sigma: Gaussian whose sigma is trained; named in section 1, no figures printed",
               ("data", "negatives"), {
            (_F, LEARNED, "none"): "",
        }),
    )
}  # fmt: skip

ORDER = ("table3", "table5", "table1", "table4", "table2", "noise", "sigma")
"""Order in which the tables are run when all are asked for."""


def cells() -> dict[str, Cell]:
    """Return every cell by its name, in the order of `ORDER`."""
    return {cell.name: cell for name in ORDER for cell in TABLES[name].cells}


def settings() -> dict[str, Setting]:
    """Return the setting of every run by the run's name, each once, in the order of `ORDER`."""
    return {cell.setting.name: cell.setting for cell in cells().values()}


def select_tables(name: str) -> list[PaperTable]:
    """Return the table of this name, or every table, in the paper's order, for "all".

    Args:
        name: key of `TABLES`, or "all".

    Returns:
        One table, or all of them.

    Raises:
        ValueError: if there is no table of this name; the message lists all tables.

    >>> [table.title for table in select_tables("table3")]
    ['Table 3: Negative sampling, Fashion-MNIST against MNIST']
    """
    if name == "all":
        return list(TABLES.values())
    return [TABLES[choose("table", name, ["all", *TABLES])]]


def select_settings(table: str, only: Iterable[str] = ()) -> list[Setting]:
    """Return the runs that a table needs, in running order.

    Args:
        table: key of `TABLES`, or "all".
        only: names of cells or runs; empty for all runs of the table.

    Returns:
        The settings of the runs, each once.

    Raises:
        ValueError: if a name is unknown or not part of the table.

    >>> [setting.name for setting in select_settings("table3", ["table3/bernoulli/generated"])]
    ['fashion-mnist-bernoulli-generated']
    """
    chosen = {t.name for t in select_tables(table)}
    known = {name: cell.setting for name, cell in cells().items() if cell.table in chosen}
    runs = {setting.name: setting for setting in known.values()}
    wanted = [{**runs, **known}[choose(f"cell or run of {table}", name, [*known, *runs])] for name in only]
    return list(dict.fromkeys(wanted or runs.values()))
