"""Table `one-class` for a terminal, as JSON and as Markdown. Imports no torch."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from negvae.paper.one_class import (
    BEFORE,
    CLASSES,
    DATA,
    GOALS,
    LOSS,
    NEAR_GOALS,
    PUBLISHED,
    PUBLISHED_NEAR,
    RULES,
    SCORES,
    WHOLE,
    OneClassProfile,
    finished,
    runs,
    table_of,
    without,
)
from negvae.paper.show import short_commit
from negvae.paper.store import Result
from negvae.paper.unsupervised import ood_sets
from negvae.paper.unsupervised_show import Spread, sheet, spread
from negvae.report.tables import DataTable, markdown, replace_table

BEGIN, END = "<!-- one class: begin (negvae paper show one-class --page FILE) -->", "<!-- one class: end -->"
Found = dict[str, dict[int | None, list[Result]]]
"""Results by data set and class (None for the whole set), in the order of the seeds."""
SHOWN = (SCORES[0], BEFORE, *SCORES[1:])


def gather(profile: OneClassProfile, results: Path) -> Found:
    """Gather the up-to-date results.

    Args:
        profile: recipe of the runs.
        results: folder of result files.

    Returns:
        The results by data set and class, None for the whole set.

    Raises:
        ValueError: if a result is damaged.
    """
    found: Found = {data: {label: [] for label in (*range(CLASSES), None)} for data in WHOLE}
    for run in runs(profile, seeds=tuple(table_of(profile, results).seeds(""))):
        if (content := finished(run, profile, results)) is not None:
            found[run.data][run.label].append(content)
    return found


def sheets(found: Found) -> list[DataTable]:
    """Tabulate the means over the classes beside goals and published means, every class, parts and whole sets."""
    wholes = [whole(found)] if any(each[None] for each in found.values()) else []
    return [means(found), *(classes(data, found[data]) for data in DATA), additions(found), *wholes]


def means(found: Found) -> DataTable:
    """Tabulate the mean over the classes that have a result, beside the goal and published means."""
    lines = []
    for data in DATA:
        have = {label: each for label, each in found[data].items() if each and label is not None}
        ours = [spread([_area(one, "combined") for one in each]) for each in have.values()]
        figures = [each.mean for each in ours if each is not None]
        average = sum(figures) / len(figures) if figures else math.nan
        mean = f"{average:.3f}" if figures else "-"
        seeds = [len(each) for each in have.values()]
        count = " to ".join(map(str, sorted({min(seeds), max(seeds)}))) if seeds else "-"
        reached = "-" if len(figures) < CLASSES else "yes" if average >= GOALS[data] else "no"
        others = [f"{one[data]:.3f}" if data in one else "-" for one in PUBLISHED.values()]
        lines.append((data, f"{GOALS[data]:g}", mean, f"{len(figures)} of {CLASSES}", count, reached, *others))
    published = (f"{name}, published" for name in PUBLISHED)
    heads = ("data", "goal", "ours, combined", "classes", "seeds", "reached", *published)
    return sheet("One class against the others: mean AUROC over the classes that were run", heads, lines)


def classes(data: str, found: dict[int | None, list[Result]]) -> DataTable:
    """Tabulate the scores of each class, mean over its seeds (standard deviation), and their mean over the classes."""
    lines, every = [], []
    for label in range(CLASSES):
        results = found[label]
        figures = [
            spread([_area(one, name) for one in results if f"auc_{name}" in one["evaluation"]]) for name in SHOWN
        ]
        lines.append((str(label), str(len(results)), *("-" if each is None else str(each) for each in figures)))
        every.append([None if each is None else each.mean for each in figures])
    columns = [[value for value in column if value is not None] for column in zip(*every, strict=True)]
    shown = [f"{sum(values) / len(values):.3f}" if values else "-" for values in columns]
    lines.append(("mean", str(sum(len(found[label]) for label in range(CLASSES))), *shown))
    return sheet(f"{data}: AUROC of each class against the other nine", ("class", "seeds", *SHOWN), lines)


def additions(found: Found) -> DataTable:
    """Tabulate what each score adds to "combined": its AUROC less that without the score, by the same models.

    The mean is over the classes of which the score is a part, of each the mean over its seeds. The standard error is
    that over the classes, since the seeds of a class have much the same gain.
    """
    lines = []
    for name in SCORES[1:]:
        cells = []
        for data in DATA:
            by_class = (
                [
                    _area(one, "combined") - _area(one, without(name))
                    for one in found[data][label] if f"auc_{without(name)}" in one["evaluation"]
                ]
                for label in range(CLASSES)
            )  # fmt: skip
            gains = spread([sum(values) / len(values) for values in by_class if values])
            cells += ["-", "0"] if gains is None else [_with_error(gains), str(gains.seeds)]
        if any(cell not in ("-", "0") for cell in cells):
            lines.append((name, *cells))
    heads = ("score", *(head for data in DATA for head in (data, "classes")))
    return sheet("What each score adds to the AUROC of `combined`, mean over classes (standard error)", heads, lines)


def whole(found: Found) -> DataTable:
    """Tabulate whole sets against others: what the priors of transformations gain or lose in the same models."""
    lines = []
    shown = (SCORES[0], BEFORE, *RULES, *SCORES[1:])
    for data in WHOLE:
        results = found[data][None]
        for ood in dict.fromkeys(name for one in results for name in one["evaluation"]):
            have = [one["evaluation"][ood] for one in results if ood in one["evaluation"]]
            figures = [spread([float(one[f"auc_{name}"]) for one in have if f"auc_{name}" in one]) for name in shown]
            gains = spread([float(one["auc_combined"]) - float(one[f"auc_{BEFORE}"]) for one in have])
            goal = NEAR_GOALS.get((data, ood))
            assert gains is not None  # there is a result
            published = PUBLISHED_NEAR.get((data, ood), {})
            kept = "-" if ood not in ood_sets(data) else "yes" if gains.mean >= -LOSS else "no"
            lines.append((
                data, ood, str(len(have)), "-" if goal is None else f"{goal:g}",
                *("-" if each is None else str(each) for each in figures), f"{gains.mean:+.3f}", kept,
                ", ".join(f"{name} {area:.2f}" for name, area in published.items()) or "-",
            ))  # fmt: skip
    heads = ("inliers", "tested against", "seeds", "goal", *shown, "gain", f"loses at most {LOSS:g}", "published")
    return sheet("Whole sets against others: what the transformations add to `combined`", heads, lines)


def _with_error(gains: Spread) -> str:
    """Return a mean with its sign, and its standard error in brackets."""
    error = "" if gains.std is None else f" ({gains.std / math.sqrt(gains.seeds):.4f})"
    return f"{gains.mean:+.4f}{error}"


def _area(result: Result, score: str) -> float:
    return float(result["evaluation"][f"auc_{score}"])


def remarks(found: Found, profile: OneClassProfile) -> list[str]:
    """Return what must be said beside the figures: hardware, commits, notes on the data, and false alarms."""
    every = [one for by_class in found.values() for each in by_class.values() for one in each]
    if not every:
        return ["no results yet; make them with: negvae paper run one-class"]
    processors = sorted({one["provenance"]["device"] for one in every})
    commits = sorted({short_commit(str(one["provenance"]["commit"])) for one in every})
    alarms = sum(float(one["false_alarms"]) for one in every) / len(every)
    notes = sorted({note for one in every for note in one["notes"]})
    return [
        f"profile {profile.name}; {' and '.join(processors)}; commit {', '.join(commits)}; {len(every)} runs",
        f"false alarms on the test images of the inliers: {alarms:.3f}, where 0.05 was asked for",
        *notes,
    ]


def as_json(found: Found) -> list[dict[str, Any]]:
    """Return one entry for each result, without its order statistics."""
    return [
        {"run": one["run"], "seed": one["seed"], "judgement": one["judgement"], **one["evaluation"]}
        for by_class in found.values() for each in by_class.values() for one in each
    ]  # fmt: skip


def fill_page(page: Path, found: Found, profile: OneClassProfile) -> None:
    """Replace the tables between the marks of a Markdown file.

    Args:
        page: Markdown file.
        found: results, as `gather` returns them.
        profile: recipe of the runs.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if the file does not have the marks.
    """
    tables = "\n".join(markdown(sheet) for sheet in sheets(found))
    replace_table(page, BEGIN, END, f"{tables}\nMeasured on: {'; '.join(remarks(found, profile))}.\n")
