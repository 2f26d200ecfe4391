"""Page of the docs with our tables beside the paper's, seed by seed, from result files. Nothing here imports torch."""

from __future__ import annotations

import math

from negvae.paper import evidence
from negvae.paper.claims import CLAIMS, explanation, judge
from negvae.paper.profiles import Profile
from negvae.paper.published import ROWS, TABLES, PaperTable
from negvae.paper.results import CellResult, Figure
from negvae.paper.show import (
    LOOSE,
    SPREAD,
    UNIT,
    as_printed,
    difference,
    label,
    measured_on,
    remarks,
    verdict,
    with_spread,
)  # fmt: skip
from negvae.report.tables import DataTable, markdown

WIDTH = 25
"""Number of places of a strip of dots."""
WELCH = (
    "Welch: the 95% interval of the difference between the two means over seeds, with unequal variances and the paper's"
    " five runs; its spreads are taken as printed, so that 0.00 counts as none."
)
DOTS = "Seeds: each of ours (o) and the paper's mean (x), or both in one place (@), between the two numbers."
Found = dict[str, CellResult]


def results_page(found: Found, profile: Profile) -> str:
    """Write the page of a profile as Markdown.

    Args:
        found: results of all cells by name.
        profile: profile that the results were made with.

    Returns:
        The Markdown text of the page.
    """
    results = list(found.values())
    within, judged, printed = count(found)
    blocks = [
        f"# The paper's tables under profile `{profile.name}`",
        f"This page is made of results/{profile.name}.jsonl by `negvae paper show all --profile {profile.name}"
        f" --page docs/results/{profile.name}.md`; a test holds it to them.",
        f"**{within} of {printed} published figures lie within the combined spread, {judged - within} do not,"
        f" {printed - judged} have no result yet.** A figure that several tables print is counted in each.",
        f"Ours: {measured_on(results, profile)}. Standard deviations over seeds in parentheses. {SPREAD} {LOOSE} {UNIT}"
        f" {WELCH} {DOTS}",
        "## What the paper says",
        _claims(found),
    ]
    for table in TABLES.values():
        notes = [f"- {line}" for line in remarks([found[cell.name] for cell in table.cells], profile)]
        blocks += [f"## {table.title}", _table(table, found), "\n".join(notes)]
    blocks += [
        "## Figures outside the combined spread",
        *_misses(found, profile),
        "## Where they were made",
        _made(found),
    ]
    return "\n\n".join(block.strip("\n") for block in blocks if block) + "\n"


def count(found: Found) -> tuple[int, int, int]:
    """Count the published figures within the combined spread, those with a result, and all."""
    judged = [figure.within for cell in found.values() for figure in cell.figures.values() if figure.within is not None]
    return sum(judged), len(judged), sum(len(cell.cell.paper) for cell in found.values())


def dots(figure: Figure, width: int = WIDTH) -> str:
    """Draw our seeds and the paper's mean as characters between two numbers; a dash for none, or any of 1,000 or more.

    AUCs lie between 0 and 1; other figures between the least and the largest of ours and the paper's.

    >>> dots(Figure("auc_kl", 0.5, 0.7, 1.0, 0.0, (0.0, 1.0)), width=9)
    '0 `o.......@` 1'
    """
    places = [*figure.values, *([] if figure.paper_mean is None else [figure.paper_mean])]
    if not places or not all(math.isfinite(place) and abs(place) < 1000 for place in places):
        return "-"
    low, high = (0.0, 1.0) if figure.row.startswith("auc") else (min(places), max(places))
    if high - low < 0.005:  # one place, to the digits that the paper prints
        low, high = low - 0.005, high + 0.005
    strip = ["."] * width

    def place(value: float) -> int:
        return round((value - low) / (high - low) * (width - 1))

    for value in figure.values:
        strip[place(value)] = "o"
    if figure.paper_mean is not None:
        at = place(figure.paper_mean)
        strip[at] = "@" if strip[at] == "o" else "x"
    digits = 0 if figure.row.startswith("auc") else 3
    return f"{low:.{digits}f} `{''.join(strip)}` {high:.{digits}f}"


def _table(table: PaperTable, found: Found) -> str:
    header = ["column", "figure", "ours", "paper", "difference", "Welch 95%", "within", "seeds"]
    rows: list[list[str]] = []
    for cell in table.cells:
        name = label(found[cell.name])
        for row, title in ROWS.items():
            figure, published = found[cell.name].figures.get(row), cell.paper.get(row)
            if figure is None:
                rows.append([name, title, "-", as_printed(published), "-", "-", "-", "-"])
            else:
                rows.append([
                    name, title, with_spread(figure.mean, figure.std), as_printed(published), difference(figure),
                    _interval(figure), verdict(figure), dots(figure),
                ])  # fmt: skip
            name = ""
    return markdown(DataTable(header, rows, align="llrrrrrl"))


def _interval(figure: Figure) -> str:
    ends = figure.welch
    if ends is None or abs(ends[0]) >= 1000:
        return "-"
    return f"{ends[0]:+.3f} to {ends[1]:+.3f}"


def _claims(found: Found) -> str:
    words = {True: "yes", False: "no", None: "results missing"}
    judgments = [judge(claim, found) for claim in CLAIMS]
    rows = [[j.claim.text, words[j.published], words[j.holds], j.evidence or "-"] for j in judgments]
    header = ["what the paper says", "by its own figures", "by ours", "our figures"]
    return markdown(DataTable(header, rows, align="llll"))


def _misses(found: Found, profile: Profile) -> list[str]:
    """Explain each cell with figures outside the spread: the explanation by hand, then sentences on its curves."""
    blocks, shown = [], set[tuple[str, ...]]()
    for name, cell in found.items():
        outside = [figure for figure in cell.figures.values() if figure.within is False]
        if not outside:
            continue
        lines = [
            f"- {line}" for line in (*(evidence.sentence(cell, f) for f in outside), evidence.starts(cell)) if line
        ]
        key = (cell.cell.setting.name, *lines)
        same = key in shown  # several tables print one run
        shown.add(key)
        why = explanation(cell, profile.name)
        text = [f"**{name}**: {why or 'No explanation has been looked for yet.'}"]
        blocks.append("\n\n".join(text if same else [*text, "\n".join(lines)]))
    return blocks or ["There are none."]


def _made(found: Found) -> str:
    """Tabulate the commits, machines and versions that made the results."""
    runs = {(cell.cell.setting.name, r["seed"]): r["provenance"] for cell in found.values() for r in cell.results}
    made: dict[tuple[str, ...], int] = {}
    for origin in runs.values():
        key = tuple(str(origin[name]) for name in ("commit", "device", "precision", "torch"))
        made[key] = made.get(key, 0) + 1
    rows = [[*key, str(number)] for key, number in sorted(made.items())]
    return markdown(DataTable(["commit", "device", "precision", "torch", "runs"], rows, align="llllr"))
