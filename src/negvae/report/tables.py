"""Tables as plain data, and their rendering as Markdown, HTML, LaTeX or for a terminal. Nothing here imports torch."""

from __future__ import annotations

import math
import re
from collections.abc import Container, Sequence
from dataclasses import dataclass
from numbers import Integral
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from rich.table import Table as TerminalTable
from rich.text import Text

from negvae.files import write_text

if TYPE_CHECKING:
    from markupsafe import Markup

Justify = Literal["left", "right", "center"]
MINUS = "\N{MINUS SIGN}"
NUMBER = re.compile(r"[+~<>\u2212-]?[\d.][\d\s.,%()\[\]e+\u00b1\u00d7\u2013\u2212-]*")  # "0.91 [0.90, 0.92]"
NO_NUMBER = {"", "-", "\N{EN DASH}", "\N{EM DASH}", "n/a", "NaN"}  # what stands in its place
SIDES: dict[str, tuple[Justify, str]] = {"l": ("left", "---"), "r": ("right", "--:"), "c": ("center", ":-:")}
"""The name of each alignment, as HTML and rich have it, and its mark in Markdown; the keys are LaTeX's."""
TEX = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "<": "$<$", ">": "$>$", "^": r"\textasciicircum{}",
       MINUS: "$-$", **{c: f"\\{c}" for c in "&%$#_{}"}}  # fmt: skip


@dataclass(frozen=True)
class DataTable:
    """A table as plain data.

    Attributes:
        header: One name for each column.
        rows: The cells. Text is shown as it is; the floats of a column get the same number of decimals.
        title: Plain text above.
        caption: Plain text below.
        align: A letter for each column, l(eft), r(ight) or c(enter); by default, columns of numbers are right-aligned.
        highlight: The numbers, from 0, of the rows that a page and a terminal highlight.
        groups: The numbers of the rows that begin a new group. A rule separates it from the one before, except in
            Markdown, which has no such rule.

    Raises:
        ValueError: If a row or `align` does not fit the header, or `highlight` or `groups` names no row.

    >>> table = DataTable(["negatives", "AUROC"], [["none", 0.3512], ["kmnist", 0.9984]])
    >>> print(markdown(table), end="")
    | negatives | AUROC |
    | --- | --: |
    | none | 0.3512 |
    | kmnist | 0.9984 |
    >>> latex(table).count("midrule")
    1
    """

    header: Sequence[str]
    rows: Sequence[Sequence[str | float]]
    title: str = ""
    caption: str = ""
    align: str = ""
    highlight: Sequence[int] = ()
    groups: Sequence[int] = ()

    def __post_init__(self) -> None:
        """Refuse rows, alignments and row numbers that do not fit the table."""
        for index, row in enumerate(self.rows):
            if len(row) != len(self.header):
                raise ValueError(f"table: row {index} has {len(row)} cells, the header {len(self.header)}")
        for name, numbers in (("highlight", self.highlight), ("groups", self.groups)):
            if not {*numbers} <= {*range(len(self.rows))}:
                raise ValueError(f"table: {name} {list(numbers)} names rows beyond the {len(self.rows)} there are")
        if self.align and (len(self.align) != len(self.header) or not {*self.align} <= {*SIDES}):
            raise ValueError(f"table: align {self.align!r} is not a letter l, r or c for {len(self.header)} columns")

    def texts(self) -> list[list[str]]:
        """Return the cells as text, row by row."""
        columns = [_column([row[number] for row in self.rows]) for number in range(len(self.header))]
        return [list(row) for row in zip(*columns, strict=True)]

    def sides(self) -> str:
        """Return the alignment of each column, as a letter each, chosen by the cells if `align` is empty."""
        texts, numbers = self.texts(), range(len(self.header))
        return self.align or "".join("r" if _numeric([row[number] for row in texts]) else "l" for number in numbers)


def markdown(table: DataTable) -> str:
    """Render a table in Markdown, title and caption as paragraphs around it; cells may hold Markdown."""

    def line(cells: Sequence[str]) -> str:
        return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |\n"

    rule = [SIDES[side][1] for side in table.sides()]
    title = f"**{table.title}**\n\n" if table.title else ""
    caption = f"\n{table.caption}\n" if table.caption else ""
    return title + "".join(map(line, [table.header, rule, *table.texts()])) + caption


def html(table: DataTable) -> Markup:
    """Render a table for a page; it scrolls within its own frame if the screen is narrow."""
    from negvae.report.document import render

    sides = [SIDES[side][0] for side in table.sides()]
    rows = [
        {"cells": list(zip(sides, cells, strict=True)), "highlighted": index in table.highlight}
        for index, cells in enumerate(table.texts())
    ]
    starts = sorted({0, *table.groups})
    groups = [rows[start:end] for start, end in zip(starts, [*starts[1:], len(rows)], strict=True)]
    return render(
        "table", title=table.title, caption=table.caption, head=list(zip(sides, table.header, strict=True)),
        groups=groups, named=sides[0] == "left",  # text in front names its row
    )  # fmt: skip


def latex(table: DataTable) -> str:
    """Render a table as a LaTeX float, which needs the package booktabs."""

    def line(cells: Sequence[str]) -> str:
        return " & ".join(map(tex, cells)) + r" \\"

    body = []
    for index, cells in enumerate(table.texts()):
        body += [r"\midrule"] * (index > 0 and index in table.groups) + [line(cells)]
    parts = [
        r"\begin{table}[p]",
        r"\centering\footnotesize\setlength{\tabcolsep}{4pt}",
        *([rf"\textbf{{{tex(table.title)}}}\par"] if table.title else []),
        *([tex(table.caption) + r"\par"] if table.caption else []),
        r"\smallskip",
        rf"\begin{{tabular}}{{{table.sides()}}}",
        r"\toprule",
        line(table.header),
        r"\midrule",
        *body,
        r"\bottomrule",
        r"\end{tabular}",
        r"\end{table}",
    ]
    return "\n".join(parts) + "\n"


def terminal(table: DataTable, whole: Container[int] = ()) -> TerminalTable:
    """Render a table for a terminal; text in brackets is no markup.

    Args:
        table: The table.
        whole: The numbers of the columns whose cells are never broken.

    Returns:
        The table for rich's console.
    """
    shown = TerminalTable(title=Text(table.title) if table.title else None, caption=Text(table.caption) or None)
    for number, (name, side) in enumerate(zip(table.header, table.sides(), strict=True)):
        shown.add_column(Text(name), justify=SIDES[side][0], overflow="fold", no_wrap=number in whole)
    for index, cells in enumerate(table.texts()):
        style = "bold" if index in table.highlight else None
        shown.add_row(*map(Text, cells), end_section=index + 1 in table.groups, style=style)
    return shown


def tex(text: str) -> str:
    r"""Escape plain text for LaTeX, with powers of ten such as 1.0x10^18 and minus signs as mathematics.

    >>> print(tex("95% of 10^6"))
    95\% of $10^{6}$
    """

    def plain(piece: str) -> str:
        escaped = "".join(TEX.get(c, c) for c in piece)
        return re.sub(r"(?<![\w)])-(?=\d|$)", "$-$", escaped)

    parts, last = [], 0
    for match in re.finditer(r"(?:([\d.]+)x)?10\^(-?\d+)", text):
        lead = f"{match[1]}\\times " if match[1] else ""
        parts += [plain(text[last : match.start()]), f"${lead}10^{{{match[2]}}}$"]
        last = match.end()
    return "".join([*parts, plain(text[last:])])


def replace_table(path: Path, begin: str, end: str, text: str) -> None:
    """Replace the text between two markers of a Markdown file, and leave the rest as it is.

    Args:
        path: The Markdown file.
        begin: The marker before the table.
        end: The marker after the table.
        text: The new table.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it does not have both markers, in order.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path} is not there: it must be a Markdown file with the lines {begin} and {end}")
    before, begun, rest = path.read_text(encoding="utf-8").partition(begin)
    _, ended, after = rest.partition(end)
    if not (begun and ended):
        raise ValueError(f"{path} has no place for the table: it needs the lines {begin} and {end}")
    write_text(path, f"{before}{begin}\n\n{text}\n{end}{after}")


def _column(cells: Sequence[str | float]) -> list[str]:
    """Return the cells as text, floats with the decimals that give the largest of them four digits."""
    exact = (str, Integral)
    sizes = [abs(float(c)) for c in cells if not isinstance(c, exact) and math.isfinite(c)]
    decimals = min(6, max(0, 3 - math.floor(math.log10(max(sizes, default=0.0) or 1.0))))
    fixed = all(size == 0 or 10.0 ** (1 - decimals) <= size < 1e7 for size in sizes)  # all keep two digits
    texts = []
    for cell in cells:
        form = f".{decimals}f" if fixed else ".4g"
        text = str(cell) if isinstance(cell, exact) else f"{float(cell):{form}}".replace("nan", "NaN")
        texts.append(text if isinstance(cell, str) else text.replace("-", MINUS))
    return texts


def _numeric(cells: Sequence[str]) -> bool:
    """Return whether all cells that are not empty or a dash are numbers, and there is at least one."""
    given = [cell for cell in map(str.strip, cells) if cell not in NO_NUMBER]
    return bool(given) and all(NUMBER.fullmatch(cell) for cell in given)
