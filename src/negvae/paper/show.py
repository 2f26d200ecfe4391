"""Our figures beside the paper's, for a terminal and as JSON. Nothing here imports torch."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import rich.table

from negvae.paper.profiles import Profile
from negvae.paper.published import ENLARGED, LEARNED, ROWS, PaperTable, Published, cells
from negvae.paper.results import CellResult, Figure, collect
from negvae.report.tables import DataTable, terminal

LABELS = {
    "fashion-mnist": "Fashion-MNIST", "mnist": "MNIST", "cifar10": "CIFAR-10", "svhn": "SVHN",
    "bernoulli": "Bernoulli", "gaussian": "Gaussian", "quantized-gaussian": "Q. Gaussian",
    LEARNED: "Gaussian, learned sigma", "dequantized-gaussian": "Gaussian on dequantized pixels",
    "none": "no negatives", "emnist-letters": "EMNIST-Letters", "kmnist": "KMNIST", "imagenet32": "ImageNet 32x32",
    ENLARGED: "ImageNet 32x32, half enlarged",
    "uniform-noise": "uniform noise", "added-noise:0.25": "added noise", "generated": "generated",
}  # fmt: skip
"""Display names of sets, likelihoods and negatives."""

SPREAD = (
    "Combined spread: sqrt(ours^2 + paper's^2 + 2 x 0.005^2), standard deviations over seeds; the last term because"
    " the paper's mean and spread are both rounded to 0.01. A difference no larger than it counts as within (in)."
)
LOOSE = "Where the paper's spread exceeds its mean, lying within it says little."
UNIT = "The paper calls the last two rows BPD; they are in nats per dimension (bits = nats / ln 2)."


def label(found: CellResult) -> str:
    """Return the heading of a column, which differs within its table, such as "Bernoulli, generated".

    It names the negatives that the runs were trained with, where the profile varies the paper's.
    """
    own, parts = found.cell.setting.negatives, found.cell.name.split("/")[1:]
    return ", ".join(negatives_label(found.negatives) if part == own else LABELS[part] for part in parts)


def negatives_label(text: str) -> str:
    """Return the display name of a source of negatives; of a mixture, the names of its parts.

    >>> negatives_label("imagenet32+zoomed:svhn")
    'ImageNet 32x32 + enlarged SVHN'
    """
    if text in LABELS:
        return LABELS[text]
    parts = [part.strip().partition("zoomed:") for part in text.split("+")]
    return " + ".join(
        f"{before}enlarged {LABELS.get(name, name)}" if zoomed else LABELS.get(before, before)
        for before, zoomed, name in parts
    )


def gather(tables: Iterable[PaperTable], profile: Profile, results: Path) -> dict[str, CellResult]:
    """Gather the results of all cells of some tables.

    Args:
        tables: tables whose cells are gathered.
        profile: profile that the runs were made with.
        results: folder of result files, with one table for each profile.

    Returns:
        The results by the cell's name.

    Raises:
        ValueError: if a result is damaged.
    """
    return {cell.name: collect(cell, profile, results) for table in tables for cell in table.cells}


def with_spread(mean: float, std: float | None, digits: int = 3) -> str:
    """Format mean and standard deviation as the paper does; the mean alone for a single seed.

    >>> with_spread(0.461, 0.052), with_spread(0.461, None)
    ('0.461 (0.052)', '0.461')
    """
    return _number(mean, digits) + (f" ({_number(std, digits)})" if std is not None else "")


def as_printed(figure: Published | None) -> str:
    """Format a published figure as the paper prints it; a dash where there is none.

    >>> as_printed(Published(0.46, 0.05)), as_printed(Published(1e18, 1e19, power=True)), as_printed(None)
    ('0.46 (0.05)', '10^18 (10^19)', '-')
    """
    if figure is None:
        return "-"
    if figure.power:
        return f"10^{round(math.log10(figure.mean))} (10^{round(math.log10(figure.std))})"
    return f"{figure.mean:.2f} ({figure.std:.2f})"


def difference(figure: Figure) -> str:
    """Format our mean minus the paper's, with its sign; a dash where the paper prints none."""
    if figure.difference is None:
        return "-"
    text = _number(figure.difference, 3)
    return text if text.startswith("-") else f"+{text}"


def verdict(figure: Figure) -> str:
    """Return "yes" if a figure lies within the combined spread, "no" if not, a dash without a published figure."""
    return {True: "yes", False: "no", None: "-"}[figure.within]


def in_bits(mean: float, std: float | None) -> str:
    """Format our figure, given in nats per dimension, in bits per dimension."""
    return with_spread(mean / math.log(2), std if std is None else std / math.log(2))


def printed_in_bits(figure: Published | None) -> str:
    """Format a published figure, given in nats per dimension, in bits per dimension; a dash where there is none.

    Figures that the paper prints as powers of ten stay in nats.
    """
    if figure is None or figure.power:
        return as_printed(figure)
    return with_spread(figure.mean / math.log(2), figure.std / math.log(2), 2)


def measured_on(found: Sequence[CellResult], profile: Profile) -> str:
    """Name the profile, seeds, machines and commits of some results, in one line."""
    results = [result for cell in found for result in cell.results]
    if not results:
        return f"profile {profile.name}: no results yet"
    seeds = sorted({result["seed"] for result in results})
    devices = sorted({result["provenance"]["device"] for result in results})
    commits = sorted({short_commit(result["provenance"]["commit"]) for result in results})
    return (
        f"profile {profile.name} ({profile.description}); seeds {', '.join(map(str, seeds))};"
        f" {' and '.join(devices)}; commit {', '.join(commits)}"
    )


def remarks(found: Sequence[CellResult], profile: Profile) -> list[str]:
    """List the notes on some results: unofficial data, other negatives or likelihoods, seeds that do not count."""
    lines = list(dict.fromkeys(note for cell in found for note in cell.notes))
    for cell in {cell.cell.setting: cell for cell in found}.values():
        if cell.negatives != cell.cell.setting.negatives:
            paper, ours = (negatives_label(text) for text in (cell.cell.setting.negatives, cell.negatives))
            lines.append(f"{cell.cell.setting.name}: trained with {ours}, where the paper has {paper}")
        if cell.likelihood != cell.cell.setting.likelihood:
            paper, ours = LABELS[cell.cell.setting.likelihood], LABELS.get(cell.likelihood, cell.likelihood)
            lines.append(f"{cell.cell.setting.name}: trained with {ours}, where the paper has {paper}")
    for what, seeds in (("training diverged", "diverged"), ("made with other settings, not counted", "outdated")):
        for cell in {cell.cell.setting: cell for cell in found if getattr(cell, seeds)}.values():
            listed = ", ".join(map(str, getattr(cell, seeds)))
            lines.append(f"{cell.cell.setting.name}, seed {listed}: {what}")
    for cell in {cell.cell.setting: cell for cell in found}.values():
        if cell.results and len(cell.results) + len(cell.diverged) < profile.seeds:
            lines.append(f"{cell.cell.setting.name}: {len(cell.results)} of {profile.seeds} seeds so far")
    return lines


WIDE = 150
"""Number of columns of a terminal from which a table has what was run, and bits per dimension, in columns."""


def show_table(table: PaperTable, found: dict[str, CellResult], width: int = WIDE) -> rich.table.Table:
    """Make a terminal table with one line for each figure, ours beside the paper's.

    Args:
        table: table of the paper.
        found: results of all cells by name.
        width: number of columns there are; below `WIDE`, what was run stands in a line of its own above the figures.

    Returns:
        The table.
    """
    if width < WIDE:
        return _narrow_table(table, found)
    header = ("trained on", "against", "likelihood", "negatives", "", "ours", "paper", "difference", "within",
              "ours, bits/dim", "paper, bits/dim")  # fmt: skip
    rows: list[list[str]] = []
    for cell in table.cells:
        setting = cell.setting
        names = [LABELS[name] for name in (setting.data, cell.ood, setting.likelihood)]
        names.append(negatives_label(found[cell.name].negatives))
        for row, title in ROWS.items():
            figure, published = found[cell.name].figures.get(row), cell.paper.get(row)
            ours = [with_spread(figure.mean, figure.std), as_printed(published), difference(figure), verdict(figure)] \
                if figure else ["-", as_printed(published), "-", "-"]  # fmt: skip
            bits = ["", ""]
            if row.startswith("nats"):
                bits = [in_bits(figure.mean, figure.std) if figure else "-", printed_in_bits(published)]
            rows.append([*names, title, *ours, *bits])
            names = [""] * 4
    groups = range(0, len(rows), len(ROWS))
    return terminal(DataTable(header, rows, title=table.title, align="lllllrrrrrr", groups=groups), whole=range(4, 10))


def _narrow_table(table: PaperTable, found: dict[str, CellResult]) -> rich.table.Table:
    """Make the table for a terminal of 80 columns, without bits per dimension."""
    rows: list[list[str]] = []
    groups = []
    for cell in table.cells:
        groups.append(len(rows))
        parts = [LABELS[cell.setting.likelihood], negatives_label(found[cell.name].negatives)]
        rows.append([", ".join([f"{LABELS[cell.setting.data]} > {LABELS[cell.ood]}", *parts]), "", "", "", ""])
        for row, title in ROWS.items():
            figure, published = found[cell.name].figures.get(row), cell.paper.get(row)
            ours = [with_spread(figure.mean, figure.std), as_printed(published), difference(figure), verdict(figure)] \
                if figure else ["-", as_printed(published), "-", "-"]  # fmt: skip
            rows.append([f"  {title}", *ours])
    header = ("", "ours", "paper", "difference", "within")
    return terminal(DataTable(header, rows, title=table.title, align="lrrrr", groups=groups), whole=range(1, 5))


def as_json(found: dict[str, CellResult], profile: Profile) -> list[dict[str, Any]]:
    """Return one entry for each figure of each cell; "ours" is None where there is no result.

    Non-finite numbers stand as text, since JSON has none.
    """
    entries = []
    for name, result in found.items():
        cell = cells()[name]
        for row in ROWS:
            figure, published = result.figures.get(row), cell.paper.get(row)
            ours = None
            if figure is not None:
                welch = figure.welch
                ours = {"mean": _json(figure.mean), "std": _json(figure.std), "seeds": result.seeds,
                        "values": [_json(value) for value in figure.values], "profile": profile.name,
                        "difference": _json(figure.difference), "combined_spread": _json(figure.combined_spread),
                        "welch_95": welch and [_json(end) for end in welch], "within": figure.within,
                        "run_negatives": result.results[0]["config"]["negatives"],
                        "run_likelihood": result.likelihood,
                        "data_notes": result.notes}  # fmt: skip
            entries.append({
                "table": cell.table, "row": row, "train": cell.setting.data, "ood": cell.ood,
                "likelihood": cell.setting.likelihood, "negatives": result.negatives,
                "paper_negatives": cell.setting.negatives,
                "paper": {"mean": published and published.mean, "std": published and published.std}, "ours": ours,
            })  # fmt: skip
    return entries


def command(table: str, profile: Profile) -> str:
    """Return the command that makes the results of a table."""
    return f"negvae paper run {table}" + ("" if profile.name == "cpu" else f" --profile {profile.name}")


def _number(value: float, digits: int) -> str:
    """Format a number with so many decimals, from 1000 on in powers of ten."""
    if not math.isfinite(value):
        return str(value)
    if abs(value) < 1000:
        return f"{round(value, digits) + 0.0:.{digits}f}"  # adding zero turns -0.0 into 0.0
    mantissa, exponent = f"{value:.1e}".split("e")
    return f"{mantissa}x10^{int(exponent)}"


def short_commit(text: str) -> str:
    """Return the first ten characters of a commit's name, with its mark for changed sources."""
    name, _, changed = text.partition(" ")
    return name[:10] + (f" {changed}" if changed else "")


def _json(value: float | None) -> float | str | None:
    return value if value is None or math.isfinite(value) else str(value)
