"""The report: one HTML page, and the tables as Markdown and LaTeX. Made from result files alone; needs no weights."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from negvae import html
from negvae.files import write_text
from negvae.paper.profiles import Profile
from negvae.paper.reading import CLAIMS, explanation, judge
from negvae.paper.results import CellResult
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
    printed_in_bits,
    remarks,
    with_spread,
)  # fmt: skip
from negvae.paper.tables import ROWS, TABLES, Setting, Table
from negvae.pictures import Pictures, read_strips
from negvae.scoring.metrics import roc_curve

SCORES = {"bpd": "bits per dimension (negative ELBO)", "kl": "KL to the prior, nats"}
NO_BREAK = "\N{NO-BREAK SPACE}"
FILES = ("report.html", "tables.md", "tables.tex")
Found = dict[str, CellResult]


def write_report(out: Path, profile: Profile, results: Path) -> list[Path]:
    """Write report.html, tables.md and tables.tex.

    Args:
        out: folder for the three.
        profile: whose results are shown.
        results: folder of result files.

    Returns:
        The files written.

    Raises:
        FileNotFoundError: there is not a single result.
        ValueError: a result file is damaged.
    """
    found = gather(TABLES.values(), profile, results)
    if not any(cell.results for cell in found.values()):
        raise FileNotFoundError(f"{results / profile.name} has no results: make some with `negvae paper run`")
    paths = [out / name for name in FILES]
    html.write(paths[0], page(found, profile, results))
    write_text(paths[1], markdown(found, profile))
    write_text(paths[2], latex(found, profile))
    return paths


@dataclass(frozen=True)
class Line:
    """One line of a table: its title, one text for each cell, and whether it holds our figures."""

    title: str
    texts: list[str]
    ours: bool = False


def table_lines(table: Table, found: Found) -> list[Line]:
    """A table in the paper's layout, each row as ours, the paper's and the difference; nats in bits as well."""
    lines = []
    for row, title in ROWS.items():
        figures = [found[cell.name].figures.get(row) for cell in table.cells]
        published = [cell.paper.get(row) for cell in table.cells]
        ours = [with_spread(f.mean, f.std) if f else "-" for f in figures]
        apart = [difference(f) + {True: ", in", False: ", out", None: ""}[f.within] if f else "-" for f in figures]
        lines += [
            Line(f"{title}, ours", ours, ours=True),
            Line(f"{title}, paper", [as_printed(p) for p in published]),
            Line("difference", apart),
        ]
        if row.startswith("nats"):
            bits = [in_bits(f.mean, f.std) if f else "-" for f in figures]
            lines += [
                Line(f"{title.partition(',')[0]}, bits/dim, ours", bits),
                Line(f"{title.partition(',')[0]}, bits/dim, paper", [printed_in_bits(p) for p in published]),
            ]
    return lines


def markdown(found: Found, profile: Profile) -> str:
    """All tables as Markdown."""

    def line(cells: Sequence[str]) -> str:
        return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"

    blocks = ["# The paper's tables, ours beside the published figures", _legend(found, profile)]
    for table in TABLES.values():
        header = ["", *(label(cell) for cell in table.cells)]
        rows = [[each.title, *each.texts] for each in table_lines(table, found)]
        rule = ["---", *("---:" for _ in table.cells)]
        notes = [f"- {remark}" for remark in remarks([found[cell.name] for cell in table.cells], profile)]
        blocks += [f"## {table.title}", "\n".join(line(cells) for cells in (header, rule, *rows)), "\n".join(notes)]
    return "\n\n".join(block for block in blocks if block) + "\n"


def latex(found: Found, profile: Profile) -> str:
    """All tables as one LaTeX document that needs booktabs and geometry."""
    parts = [
        r"\documentclass{article}",
        r"\usepackage[landscape,margin=15mm]{geometry}",
        r"\usepackage{booktabs}",
        r"\begin{document}",
        _tex(_legend(found, profile)),
    ]
    for table in TABLES.values():
        notes = "; ".join(remarks([found[cell.name] for cell in table.cells], profile))
        rows = []
        for position, each in enumerate(table_lines(table, found)):
            rule = [r"\midrule"] if each.ours and position else []
            rows += [*rule, " & ".join(_tex(text) for text in (each.title, *each.texts)) + r" \\"]
        parts += [
            "",
            r"\begin{table}[p]",
            r"\centering\footnotesize\setlength{\tabcolsep}{4pt}",
            rf"\textbf{{{_tex(table.title)}}}\par",
            *([_tex(notes) + r"\par"] if notes else []),
            r"\smallskip",
            rf"\begin{{tabular}}{{l{'r' * len(table.cells)}}}",
            r"\toprule",
            " & ".join(["", *(_tex(label(cell)) for cell in table.cells)]) + r" \\",
            r"\midrule",
            *rows,
            r"\bottomrule",
            r"\end{tabular}",
            r"\end{table}",
        ]
    return "\n".join([*parts, r"\end{document}", ""])


def page(found: Found, profile: Profile, results: Path) -> str:
    """The HTML page."""
    strips = {cell.cell.setting: _strips(cell, profile, results) for cell in found.values() if cell.results}
    sections = [_reading(found)]
    for table in TABLES.values():
        here = [found[cell.name] for cell in table.cells]
        lines = table_lines(table, found)
        body = html.table(
            ["", *(label(cell) for cell in table.cells)],
            [[line.title.replace(" ", NO_BREAK), *line.texts] for line in lines],
            caption="; ".join(remarks(here, profile)),
            highlight=[number for number, line in enumerate(lines) if line.ours],
            align=["left", *["right"] * len(here)],
        )
        if table.name == "table5":
            body += _samples(table, strips)
        title, _, intro = table.title.partition(": ")
        sections.append(html.Section(title, body, intro))
    sections.append(_misses(found, profile))
    shown = {cell.cell.setting: cell for cell in found.values() if cell.results}
    sections += [
        html.Section(_title(setting), _details(cell, strips[setting]), _summary(cell))
        for setting, cell in shown.items()
    ]
    sections.append(_provenance(list(shown.values())))
    return html.page(
        "Negative sampling in variational autoencoders: ours beside the paper's",
        sections,
        subtitle=f"{measured_on(list(found.values()), profile)}. Standard deviations over seeds in parentheses.",
        footer=f"{SPREAD} {LOOSE} {UNIT}",
    )


def _legend(found: Found, profile: Profile) -> str:
    ours = measured_on(list(found.values()), profile)
    return f"Ours: {ours}. Standard deviations over seeds in parentheses. {SPREAD} {LOOSE} {UNIT}"


def _title(setting: Setting) -> str:
    return ", ".join(LABELS[name] for name in (setting.data, setting.likelihood, setting.negatives))


def _reading(found: Found) -> html.Section:
    """What reproduces and what does not: the claims, and the count of figures."""
    figures = [figure for cell in found.values() for figure in cell.figures.values()]
    judged = [figure.within for figure in figures if figure.within is not None]
    printed = sum(len(cell.cell.paper) for cell in found.values())
    judgments = [judge(claim, found) for claim in CLAIMS]
    words = {True: "yes", False: "no", None: "results missing"}
    claims = html.table(
        ["What the paper says", "Holds here", "Our figures"],
        [[j.claim.text, words[j.holds], j.evidence or "-"] for j in judgments],
        align=["left"] * 3,
    )
    counted = (
        f"{sum(j.holds is True for j in judgments)} of {len(judgments)} claims hold."
        f" Of {printed} published figures, {sum(judged)} lie within the combined spread of ours and"
        f" {len(judged) - sum(judged)} outside; {printed - len(judged)} have no result yet."
        " A figure that several tables print is counted in each."
    )
    return html.Section("What reproduces and what does not", claims, counted)


def _misses(found: Found, profile: Profile) -> html.Section:
    """The figures outside the combined spread, and what people have to say about them."""
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
    body = html.definition_list({name: text for name, text in why.items() if text}) if any(why.values()) else ""
    if rows:
        body += html.table(header, rows, align=["left", "left", *["right"] * 4])
    intro = f"{len(rows)} figures. {SPREAD}" if rows else "There are none."
    return html.Section("Figures outside the combined spread", body, intro)


def _strips(cell: CellResult, profile: Profile, results: Path) -> dict[str, Pictures]:
    """The pictures of a run's seed 0, where they are there."""
    for result in cell.results:
        if "pictures" in result:
            path = results / profile.name / f"{cell.cell.setting.name}.png"
            if path.exists():
                return read_strips(path, result["pictures"]["captions"], result["pictures"]["count"])
    return {}


def _samples(table: Table, strips: dict[Setting, dict[str, Pictures]]) -> str:
    """The last row of Table 5: what the sets and the negatives look like."""
    grids, sets = [], ""
    for cell in table.cells:
        shown = strips.get(cell.setting, {})
        if shown and not sets:
            pair = {LABELS[cell.setting.data]: shown["Inliers"], LABELS[cell.ood]: shown["Outliers"]}
            sets = html.figure_row(*(_grid(images, name, name) for name, images in pair.items()))
        if "Negatives" in shown:
            name = f"Negatives: {LABELS[cell.setting.negatives]}"
            grids.append(_grid(shown["Negatives"], name, name))
    return sets + (html.figure_row(*grids) if grids else "")


def _grid(images: Pictures, caption: str, alt: str) -> str:
    return html.image_grid(images, columns=8, scale=2, caption=caption, alt=alt)


def _summary(cell: CellResult) -> str:
    figures = "; ".join(f"{ROWS[row]} {with_spread(f.mean, f.std)}" for row, f in cell.figures.items())
    notes = f" Data: {'; '.join(cell.notes)}." if cell.notes else ""
    return (
        f"Tested against {LABELS[cell.cell.ood]}. {figures}. Seeds {', '.join(map(str, cell.seeds))};"
        f" score distributions, ROC and pictures of seed {cell.seeds[0]}.{notes}"
    )


def _details(cell: CellResult, strips: dict[str, Pictures]) -> str:
    """Curves over epochs, score distributions, ROC curves and pictures of one configuration."""
    name, other = LABELS[cell.cell.setting.data], LABELS[cell.cell.ood]
    first = cell.results[0]
    quantiles = first["quantiles"][cell.cell.ood]
    scores = {
        key: {side: np.array(values, float) for side, values in sides.items()} for key, sides in quantiles.items()
    }
    histograms = [
        html.histogram({f"{name} (inliers)": pair["inliers"], f"{other} (OOD)": pair["ood"]}, xlabel=SCORES[key],
                       bins=40)
        for key, pair in scores.items()
    ]  # fmt: skip
    row = first["evaluation"][cell.cell.ood]
    curves = {
        f"{key.upper()}, AUC {float(row[f'auc_{key}']):.3f}": roc_curve(pair["inliers"], pair["ood"])
        for key, pair in scores.items()
    }
    body = html.figure_row(*_curves(cell)) + html.figure_row(*histograms, html.roc(curves))
    if strips:
        grids = [
            _grid(images, caption, f"{caption}, {_title(cell.cell.setting)}") for caption, images in strips.items()
        ]
        body += html.figure_row(*grids)
    return body


def _curves(cell: CellResult) -> list[str]:
    """AUCs and likelihoods over the epochs: means over the seeds, with bands from the least to the largest."""
    images = cell.results[0]["curve_images"]
    count = max(len(result["curve"]) for result in cell.results)
    epochs = np.arange(1, count + 1)

    def over_seeds(key: str) -> NDArray[np.float64]:
        values = np.full((len(cell.results), count), math.nan)
        for seed, result in enumerate(cell.results):
            for position, row in enumerate(result["curve"]):
                values[seed, position] = float(row.get(key, math.nan))
        return values

    figures = []
    likelihoods = {"nats_per_dim_test": "test", "nats_per_dim_ood": "OOD", "nats_per_dim": "training"}
    areas = {"auc_bpd": "AUC BPD", "auc_kl": "AUC KL", "auc_prior_ratio": "AUC prior ratio"}
    for names, ylabel in ((areas, "AUC"), (likelihoods, "nats per dimension")):
        values = {key: over_seeds(key) for key in names}
        values = {key: v for key, v in values.items() if np.isfinite(v).any()}
        note = ""
        if names is likelihoods:  # generated negatives can send the OOD set beyond any axis
            most = max(
                (float(v[np.isfinite(v)].max()) for k, v in values.items() if k != "nats_per_dim_ood"), default=1.0
            )
            far = values.get("nats_per_dim_ood")
            if far is not None and float(far[np.isfinite(far)].max()) > 20 * abs(most):
                del values["nats_per_dim_ood"]
                note = f" (OOD left out: up to {float(far[np.isfinite(far)].max()):.2g})"
        if not values:
            continue
        bands = {names[key]: (v.min(0), v.max(0)) for key, v in values.items() if len(v) > 1}
        series = {names[key]: (epochs, v.mean(0)) for key, v in values.items()}
        figures.append(
            html.lines(series, xlabel=f"epoch ({images:,} images of each test set)", ylabel=ylabel + note,
                       bands=bands)
        )  # fmt: skip
    return figures


def _provenance(found: Sequence[CellResult]) -> html.Section:
    """Where every number comes from."""
    header = ["Run", "Seeds", "Epochs", "Training, s", "Images/s", "Machine", "Precision", "torch", "negvae, commit"]
    rows: list[list[str | float]] = []
    data: dict[str, str] = {}
    for cell in found:
        origins = [result["provenance"] for result in cell.results]

        def each(key: str, origins: list[dict[str, Any]] = origins) -> str:
            return ", ".join(dict.fromkeys(str(origin[key]) for origin in origins))

        commits = ", ".join(dict.fromkeys(origin["commit"][:10] for origin in origins))
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
    body = html.table(header, rows, caption="Seconds and images per second are means over the seeds.")
    return html.Section("Provenance", body + html.definition_list(data))


def _tex(text: str) -> str:
    """Plain text for LaTeX."""
    special = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "<": "$<$", ">": "$>$", "^": r"\textasciicircum{}"}
    power = r"(?:([\d.]+)x)?10\^(-?\d+)"
    parts, last = [], 0

    def plain(piece: str) -> str:
        escaped = "".join(special.get(c, f"\\{c}" if c in "&%$#_{}" else c) for c in piece)
        return re.sub(r"(?<![\w)])-(?=\d|$)", "$-$", escaped)

    for match in re.finditer(power, text):
        lead = f"{match[1]}\\times " if match[1] else ""
        parts += [plain(text[last : match.start()]), f"${lead}10^{{{match[2]}}}$"]
        last = match.end()
    return "".join([*parts, plain(text[last:])])
