"""Tables of the bench's results."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import rich.table

from negvae.report import tables
from negvae.report.tables import DataTable

BEGIN, END = "<!-- bench: begin (written by `make bench`) -->", "<!-- bench: end -->"
COLUMNS = ("work", "ours", "peer or roofline", "ratio [quartiles]", "target", "reached")


def lines(rows: Sequence[Mapping[str, Any]]) -> list[tuple[str, ...]]:
    """Return a line of cells for each comparison of the results' rows, and one for each row that has none."""
    table: list[tuple[str, ...]] = []
    for row in rows:
        work = row["work"] if row["device"] in ("cpu", "auto") else f"{row['work']} ({row['device']})"
        for comparison in row["comparisons"]:
            figure = comparison["figure"]
            other = comparison["other"]
            if figure is None:
                cells = ("", other or "", f"not measured: {comparison['reason']}", _target(comparison, row["unit"]), "")
            else:
                unit = "MB" if comparison["ours"] != "negvae" else row["unit"]
                text = f"{_number(figure)} [{_number(comparison['low'])}, {_number(comparison['high'])}]"
                cells = (
                    _value(comparison["ours_value"], unit),
                    f"{comparison['label']}: {_value(comparison['other_value'], unit)}" if other else "",
                    text if other else f"{text} {unit}",
                    _target(comparison, row["unit"]),
                    {True: "yes", False: "**no**", None: ""}[comparison["reached"]],
                )
            table.append((work, *cells))
    return table


def markdown(results: Mapping[str, Any]) -> str:
    """Return the table, the machine and versions, and the profiles of the rows that miss a target, in Markdown."""
    origin = results["provenance"]
    text = [
        f"Measured {origin['written']} on {origin['device']}, {origin['cores']} cores, torch {origin['torch']},"
        f" Python {origin['python']}, negvae {origin['negvae']} at commit {origin['commit']},"
        f" {origin['precision']}; {results['rounds']} rounds of about {results['seconds']:g} s each;"
        f" load average before: {origin['load']:.2f}.",
        "",
        tables.markdown(_left(COLUMNS, lines(results["rows"]))).rstrip("\n"),
    ]
    earlier: dict[str, list[str]] = {}
    for row in results["rows"]:
        if "commit" in row:
            earlier.setdefault(row["commit"], []).append(f"`{row['key']}`")
    text += [f"\nMeasured at commit {commit}, on the same day: {', '.join(keys)}." for commit, keys in earlier.items()]
    for row in results["rows"]:
        if row["operators"]:
            text += ["", f"Where the time goes: {row['work']} (`{row['key']}`, torch.profiler).", ""]
            operators = [
                (f"`{item['operator']}`", f"{item['share']:.1%}", f"{item['calls']:,}") for item in row["operators"][:8]
            ]
            text.append(tables.markdown(_left(("operator", "share", "calls"), operators)).rstrip("\n"))
    return "\n".join(text) + "\n"


def rich_table(rows: Sequence[Mapping[str, Any]]) -> rich.table.Table:
    """Return the table for a terminal, without the marks of Markdown."""
    plain = [[cell.replace("`", "").replace("**", "") for cell in cells] for cells in lines(rows)]
    return tables.terminal(_left(COLUMNS, plain))


def operator_table(row: Mapping[str, Any]) -> rich.table.Table:
    """Return a row's time by operator as a table for a terminal."""
    cells = [
        (item["operator"], f"{item['share']:.1%}", f"{item['seconds']:.3f}", f"{item['calls']:,}")
        for item in row["operators"]
    ]
    title = f"{row['key']}: one round"
    return tables.terminal(DataTable(("operator", "share", "seconds", "calls"), cells, title=title))


def _left(header: Sequence[str], rows: Sequence[Sequence[str]]) -> DataTable:
    return DataTable(header, rows, align="l" * len(header))


def _number(value: float) -> str:
    return f"{value:.3g}" if value < 100 else f"{value:,.0f}"


def _value(value: float, unit: str) -> str:
    return f"{_number(value)} {unit}"


def _target(comparison: Mapping[str, Any], unit: str) -> str:
    if comparison["target"] is None:
        return ""
    sign = "at most" if comparison["at_most"] else "at least"
    return f"{sign} {comparison['target']:g}{'' if comparison['other'] else ' ' + unit}"
