"""Report of a profile: one HTML page, and the tables as Markdown and LaTeX, made from result files without weights."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup
from matplotlib.figure import Figure
from numpy.typing import NDArray

from negvae.files import write_text
from negvae.paper.claims import CLAIMS, explanation, judge
from negvae.paper.profiles import Profile
from negvae.paper.published import ROWS, TABLES, PaperTable, Setting
from negvae.paper.results import PICTURES, CellResult
from negvae.paper.show import (
    LABELS,
    LOOSE,
    SPREAD,
    UNIT,
    as_printed,
    difference,
    gather,
    in_bits,
    label,
    measured_on,
    negatives_label,
    printed_in_bits,
    remarks,
    short_commit,
    with_spread,
)  # fmt: skip
from negvae.report import document, figures, tables
from negvae.report.document import Section
from negvae.report.samples import Pictures, read_strips
from negvae.report.tables import DataTable
from negvae.scoring.metrics import roc_curve
from negvae.scoring.table import SCORES

EPOCHS = ("auc", "likelihood")
"""Names of the charts over the epochs, as `charts` uses them."""
NO_BREAK = "\N{NO-BREAK SPACE}"
FILES = ("report.html", "tables.md", "tables.tex", "figures")
CellResults = dict[str, CellResult]


def write_report(out: Path, profile: Profile, results: Path, work: Path) -> list[Path]:
    """Write report.html, tables.md, tables.tex, and every chart of the page as PDF and PNG in figures/.

    Args:
        out: folder that the files are written into.
        profile: profile whose results are shown.
        results: folder of result files, with one table for each profile.
        work: folder of the runs' own folders, with the pictures of each seed 0; without them, the page has none.

    Returns:
        The paths of the files written, and of the folder of the charts.

    Raises:
        FileNotFoundError: if there is not a single result.
        ValueError: if a result is damaged.
    """
    found = gather(TABLES.values(), profile, results)
    drawn = {cell.cell.setting: charts(cell) for cell in found.values() if cell.results}
    if not drawn:
        raise FileNotFoundError(
            f"{results} has no results of profile {profile.name}: make some with `negvae paper run`"
        )
    paths = [out / name for name in FILES]
    document.write(paths[0], page(found, drawn, profile, (work / profile.name, results / profile.name)))
    write_text(paths[1], markdown(found, profile))
    write_text(paths[2], latex(found, profile))
    paths[3].mkdir(exist_ok=True)
    for setting, kinds in drawn.items():
        for kind, figure in kinds.items():
            figures.save(figure, paths[3] / f"{setting.name}-{kind}")
    return paths


def data_table(table: PaperTable, found: CellResults) -> DataTable:
    """Make a table in the paper's layout, each row as ours, the paper's and the difference; nats in bits as well."""
    rows: list[list[str]] = []
    ours: list[int] = []
    for row, title in ROWS.items():
        measured = [found[cell.name].figures.get(row) for cell in table.cells]
        published = [cell.paper.get(row) for cell in table.cells]
        apart = [difference(f) + {True: ", in", False: ", out", None: ""}[f.within] if f else "-" for f in measured]
        ours.append(len(rows))
        rows += [
            [f"{title}, ours", *(with_spread(f.mean, f.std) if f else "-" for f in measured)],
            [f"{title}, paper", *map(as_printed, published)],
            ["difference", *apart],
        ]
        if row.startswith("nats"):
            name = title.partition(",")[0]
            rows += [
                [f"{name}, bits/dim, ours", *(in_bits(f.mean, f.std) if f else "-" for f in measured)],
                [f"{name}, bits/dim, paper", *map(printed_in_bits, published)],
            ]
    header = ["figure", *(label(found[cell.name]) for cell in table.cells)]
    return DataTable(header, rows, align="l" + "r" * len(table.cells), highlight=ours, groups=ours)


def markdown(found: CellResults, profile: Profile) -> str:
    """Write all tables as Markdown."""
    blocks = ["# The paper's tables, ours beside the published figures", _legend(found, profile)]
    for table in TABLES.values():
        notes = "\n".join(f"- {remark}" for remark in _remarks(table, found, profile))
        blocks += [f"## {table.title}", tables.markdown(data_table(table, found)).rstrip("\n"), notes]
    return "\n\n".join(block for block in blocks if block) + "\n"


def latex(found: CellResults, profile: Profile) -> str:
    """Write all tables as one LaTeX document that needs booktabs and geometry."""
    parts = [
        r"\documentclass{article}",
        r"\usepackage[landscape,margin=15mm]{geometry}",
        r"\usepackage{booktabs}",
        r"\begin{document}",
        tables.tex(_legend(found, profile)),
        "",
    ]
    for table in TABLES.values():
        notes = "; ".join(_remarks(table, found, profile))
        parts.append(tables.latex(replace(data_table(table, found), title=table.title, caption=notes)))
    return "\n".join([*parts[:-1], parts[-1].rstrip("\n"), r"\end{document}", ""])


def _remarks(table: PaperTable, found: CellResults, profile: Profile) -> list[str]:
    return remarks([found[cell.name] for cell in table.cells], profile)


def page(
    found: CellResults, drawn: Mapping[Setting, Mapping[str, Figure]], profile: Profile, folders: Sequence[Path] = ()
) -> str:
    """Write the HTML page.

    Args:
        found: results of all cells by name.
        drawn: charts of each run.
        profile: profile that the results were made with.
        folders: folders in which the pictures of the runs are looked for.

    Returns:
        The page.
    """
    strips = {cell.cell.setting: _strips(cell, folders) for cell in found.values() if cell.results}
    sections = [_reading(found)]
    for table in TABLES.values():
        shown = data_table(table, found)
        rows = [[str(first).replace(" ", NO_BREAK), *rest] for first, *rest in shown.rows]
        body = tables.html(replace(shown, rows=rows, caption="; ".join(_remarks(table, found, profile))))
        if table.name == "table5":
            body += _samples(table, found, strips)
        title, _, intro = table.title.partition(": ")
        sections.append(Section(title, body, intro))
    sections.append(_misses(found, profile))
    ran = {cell.cell.setting: cell for cell in found.values() if cell.results}
    sections += [
        Section(_title(cell), _details(_title(cell), drawn[setting], strips[setting]), _summary(cell))
        for setting, cell in ran.items()
    ]
    sections.append(_provenance(list(ran.values())))
    return document.page(
        "Negative sampling in variational autoencoders: ours beside the paper's",
        sections,
        subtitle=f"{measured_on(list(found.values()), profile)}. Standard deviations over seeds in parentheses.",
        footer=f"{SPREAD} {LOOSE} {UNIT}",
    )


def _legend(found: CellResults, profile: Profile) -> str:
    ours = measured_on(list(found.values()), profile)
    return f"Ours: {ours}. Standard deviations over seeds in parentheses. {SPREAD} {LOOSE} {UNIT}"


def _title(cell: CellResult) -> str:
    setting = cell.cell.setting
    return ", ".join([LABELS[setting.data], LABELS[setting.likelihood], negatives_label(cell.negatives)])


def _reading(found: CellResults) -> Section:
    """Make the section on what reproduces and what does not: the claims, and the count of figures."""
    figures = [figure for cell in found.values() for figure in cell.figures.values()]
    judged = [figure.within for figure in figures if figure.within is not None]
    printed = sum(len(cell.cell.paper) for cell in found.values())
    judgments = [judge(claim, found) for claim in CLAIMS]
    words = {True: "yes", False: "no", None: "results missing"}
    claims = DataTable(
        ["What the paper says", "Holds by its own figures", "Holds here", "Our figures"],
        [[j.claim.text, words[j.published], words[j.holds], j.evidence or "-"] for j in judgments],
        align="llll",
    )
    counted = (
        f"{sum(j.holds is True for j in judgments)} of {len(judgments)} claims hold."
        f" Of {printed} published figures, {sum(judged)} lie within the combined spread of ours and"
        f" {len(judged) - sum(judged)} outside; {printed - len(judged)} have no result yet."
        " A figure that several tables print is counted in each."
    )
    return Section("What reproduces and what does not", tables.html(claims), counted)


def _misses(found: CellResults, profile: Profile) -> Section:
    """Make the section of figures outside the combined spread, with their explanations."""
    misses = [(c, figure) for c in found.values() for figure in c.figures.values() if figure.within is False]
    header = ["Cell", "Figure", "Ours", "Paper", "Difference", "Combined spread"]
    rows: list[list[str | float]] = [
        [
            cell.cell.name, ROWS[figure.row], with_spread(figure.mean, figure.std),
            as_printed(cell.cell.paper[figure.row]), difference(figure), f"{figure.combined_spread or 0:.3f}",
        ]
        for cell, figure in misses
    ]  # fmt: skip
    why = {cell.cell.name: explanation(cell, profile.name) for cell, _ in misses}
    body = document.facts({name: text for name, text in why.items() if text}) if any(why.values()) else Markup()
    if rows:
        body += tables.html(DataTable(header, rows, align="llrrrr"))
    intro = f"{len(rows)} figures. {SPREAD}" if rows else "There are none."
    return Section("Figures outside the combined spread", body, intro)


def _strips(cell: CellResult, folders: Sequence[Path]) -> dict[str, Pictures]:
    """Read the pictures of a run's seed 0; empty where they are missing. Version 0.1 kept them beside the results."""
    name = cell.cell.setting.name
    places = [folder / end for folder in folders for end in (f"{name}-seed0/{PICTURES}", f"{name}.png")]
    described = next((result["pictures"] for result in cell.results if "pictures" in result), None)
    path = next((path for path in places if path.exists()), None)
    return read_strips(path, described["captions"], described["count"]) if path and described else {}


def _samples(table: PaperTable, found: CellResults, strips: dict[Setting, dict[str, Pictures]]) -> Markup:
    """Show sample images of the sets and the negatives, as the last row of Table 5 does."""
    grids, sets = [], Markup()
    for cell in table.cells:
        shown = strips.get(cell.setting, {})
        if shown and not sets:
            pair = {LABELS[cell.setting.data]: shown["Inliers"], LABELS[cell.ood]: shown["Outliers"]}
            sets = document.row(*(_grid(images, name, name) for name, images in pair.items()))
        if "Negatives" in shown:
            name = f"Negatives: {negatives_label(found[cell.name].negatives)}"
            grids.append(_grid(shown["Negatives"], name, name))
    return sets + (document.row(*grids) if grids else Markup())


def _grid(images: Pictures, caption: str, alt: str) -> Markup:
    return document.image_grid(images, columns=8, scale=2, caption=caption, alt=alt)


def _summary(cell: CellResult) -> str:
    figures = "; ".join(f"{ROWS[row]} {with_spread(f.mean, f.std)}" for row, f in cell.figures.items())
    notes = f" Data: {'; '.join(cell.notes)}." if cell.notes else ""
    return (
        f"Tested against {LABELS[cell.cell.ood]}. {figures}. Seeds {', '.join(map(str, cell.seeds))};"
        f" score distributions, ROC and pictures of seed {cell.seeds[0]}.{notes}"
    )


def _details(title: str, drawn: Mapping[str, Figure], strips: dict[str, Pictures]) -> Markup:
    """Lay out curves over epochs, score distributions, ROC curves and pictures of one configuration."""
    epochs = [document.chart(figure) for kind, figure in drawn.items() if kind in EPOCHS]
    scores = [document.chart(figure) for kind, figure in drawn.items() if kind not in EPOCHS]
    body = document.row(*epochs) + document.row(*scores)
    if strips:
        grids = [_grid(images, caption, f"{caption}, {title}") for caption, images in strips.items()]
        body += document.row(*grids)
    return body


def charts(cell: CellResult) -> dict[str, Figure]:
    """Draw a run's charts, by name: "auc" and "likelihood" over the epochs, the scores "bpd" and "kl", "roc"."""
    name, other = LABELS[cell.cell.setting.data], LABELS[cell.cell.ood]
    first = cell.results[0]
    quantiles = first["quantiles"][cell.cell.ood]
    scores = {
        key: {side: np.array(values, float) for side, values in sides.items()} for key, sides in quantiles.items()
    }
    histograms = {
        key: figures.histogram(
            {f"{name} (inliers)": pair["inliers"], f"{other} (OOD)": pair["ood"]}, xlabel=SCORES[key].axis, bins=40
        )
        for key, pair in scores.items()
    }
    row = first["evaluation"][cell.cell.ood]
    curves = {
        f"{key.upper()}, AUC {float(row[f'auc_{key}']):.3f}": roc_curve(pair["inliers"], pair["ood"])
        for key, pair in scores.items()
    }
    return {**_over_epochs(cell), **histograms, "roc": figures.roc(curves)}


def _over_epochs(cell: CellResult) -> dict[str, Figure]:
    """Draw AUCs and likelihoods over the epochs: means over the seeds, with bands from the least to the largest."""
    images = cell.results[0]["curve_images"]
    count = max((row["epoch"] for result in cell.results for row in result["curve"]), default=0)
    epochs = np.arange(1, count + 1)

    def over_seeds(key: str) -> NDArray[np.float64]:
        values = np.full((len(cell.results), count), math.nan)
        for seed, result in enumerate(cell.results):
            for row in result["curve"]:
                values[seed, row["epoch"] - 1] = float(row.get(key, math.nan))
        return values

    drawn = {}
    likelihoods = {"nats_per_dim_test": "test", "nats_per_dim_ood": "OOD", "nats_per_dim": "training"}
    areas = {"auc_bpd": "AUC BPD", "auc_kl": "AUC KL", "auc_prior_ratio": "AUC prior ratio"}
    for kind, names, ylabel in zip(EPOCHS, (areas, likelihoods), ("AUC", "nats per dimension"), strict=True):
        values = {key: v for key in names if np.isfinite(v := over_seeds(key)).any()}
        ood = values.get("nats_per_dim_ood")
        if ood is not None:  # generated negatives can send the OOD set beyond any axis
            others = [float(v[np.isfinite(v)].max()) for key, v in values.items() if key != "nats_per_dim_ood"]
            far = float(ood[np.isfinite(ood)].max())
            if far > 20 * abs(max(others, default=1.0)):
                del values["nats_per_dim_ood"]
                ylabel += f" (OOD left out: up to {far:.2g})"
        if values:
            drawn[kind] = figures.lines(
                {names[key]: (epochs, v.mean(0)) for key, v in values.items()},
                xlabel=f"epoch ({images:,} images of each test set)",
                ylabel=ylabel,
                bands={names[key]: (v.min(0), v.max(0)) for key, v in values.items() if len(v) > 1},
            )
    return drawn


def _provenance(found: Sequence[CellResult]) -> Section:
    """Make the section on which machine, version and data each run's figures come from."""
    header = ["Run", "Seeds", "Epochs", "Training, s", "Images/s", "Machine", "Precision", "torch", "negvae, commit"]
    rows: list[list[str | float]] = []
    data: dict[str, str] = {}
    for cell in found:
        origins = [result["provenance"] for result in cell.results]

        def each(key: str, origins: list[dict[str, Any]] = origins) -> str:
            return ", ".join(dict.fromkeys(str(origin[key]) for origin in origins))

        commits = ", ".join(dict.fromkeys(short_commit(origin["commit"]) for origin in origins))
        seconds, speeds = ([float(origin[key]) for origin in origins] for key in ("train_seconds", "images_per_second"))
        rows.append(
            [
                cell.cell.setting.name, ", ".join(map(str, cell.seeds)), str(cell.results[0]["config"]["epochs"]),
                f"{sum(seconds) / len(seconds):.0f}", f"{sum(speeds) / len(speeds):.0f}", each("device"),
                each("precision"), each("torch"), f"{each('negvae')}, {commits}",
            ]
        )  # fmt: skip
        for result in cell.results:
            data |= {f"{cell.cell.setting.data}: {role}": text for role, text in result["data"].items()}
    table = DataTable(header, rows, caption="Seconds and images per second are means over the seeds.")
    return Section("Provenance", tables.html(table) + document.facts(data))
