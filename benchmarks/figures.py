"""Lists every figure in the docs with its source: `python -m benchmarks.figures`; exit code 1 where one is missing.

A figure is a number with decimals in the text of README.md or docs/, outside of code, and no version of what
`VERSIONS` names. Its source is

- the command in the marker of a generated block, such as `<!-- beyond: begin (negvae paper show ...) -->`, or on a page
  of docs/results/ the command that writes the page;
- or what a comment says: `<!-- source: WHAT -->` holds for the block after it, `<!-- source of this section: WHAT -->`
  until the next heading. WHAT is a file of this repository, a command that begins with negvae, python or make, or where
  a figure was published, such as "arXiv 2401.04933".

Where WHAT names a file of JSON or of JSON lines, every figure of the block must be one of the file's numbers, rounded
to the figure's digits; a percentage may be a hundred times the number. Where it names a page, each figure must stand
there as it is.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).parents[1]
FIGURE = re.compile(r"(?<![\w.^-])[-+]?\d+\.\d+%?(?![\w.]*\d)")
VERSIONS = re.compile(r"Python \d[\d.]*((,| or| to| and) 3\.\d+)*|\b(torch|Ray|buildah) \d[\d.]*")
COMMENT = re.compile(r"<!-- source( of this section)?: (.*?) -->")
BEGIN, END = re.compile(r"<!-- [\w ]+: begin \((?:written by `)?(.*?)`?\) -->"), re.compile(r"<!-- [\w ]+: end -->")
COMMANDS = ("negvae ", "python ", "make ")
PUBLISHED = re.compile(r"arXiv \d{4}\.\d{4,5}|the paper|version \d")


class Found(NamedTuple):
    """A figure on a page.

    Attributes:
        page: relative to the repository.
        line: its number, from 1.
        figure: as it is written.
        source: what gives it; "" where nothing is named.
    """

    page: str
    line: int
    figure: str
    source: str


def pages(root: Path = ROOT) -> list[Path]:
    """README.md and every page of the docs."""
    return [root / "README.md", *sorted((root / "docs").rglob("*.md"))]


def figures(page: Path, root: Path = ROOT) -> Iterator[Found]:
    """Every figure of a page with its source."""
    name = page.relative_to(root).as_posix()
    whole = f"negvae paper show all --page {name}" if name.startswith("docs/results/") else ""
    block = section = generated = ""
    code = False
    for number, line in enumerate(page.read_text(encoding="utf-8").splitlines(), 1):
        if line.startswith("```"):
            code = not code
        elif found := BEGIN.search(line):
            generated = found.group(1)
        elif END.search(line):
            generated = ""
        elif found := COMMENT.search(line):
            block, section = ("", found.group(2)) if found.group(1) else (found.group(2), section)
        elif line.startswith("#"):
            block = section = ""
        elif not line.strip():
            block = ""
        elif not code and not line.startswith("    "):
            for each in FIGURE.findall(VERSIONS.sub(" ", re.sub(r"`[^`]*`|\]\([^)]*\)", " ", line))):
                yield Found(name, number, each, whole or generated or block or section)


def fault(found: Found, root: Path = ROOT) -> str:
    """What is wrong with a figure's source, in words; nothing where it is right."""
    if not found.source:
        return "has no source"
    if found.source.startswith(COMMANDS) or PUBLISHED.match(found.source):
        return ""
    path = root / found.source.split()[0].rstrip(",;")
    if not path.is_file():
        return f"names {found.source!r}: no file of this repository, command or publication"
    if path.suffix in (".json", ".jsonl") and not any(_is_rounded(found.figure, value) for value in numbers(path)):
        return f"is no number of {found.source}"
    if path.suffix == ".md" and found.figure not in FIGURE.findall(path.read_text(encoding="utf-8")):
        return f"does not stand in {found.source}"
    return ""


def numbers(path: Path) -> list[float]:
    """Every number in a file of JSON, or of one JSON value a line."""

    def walk(value: Any) -> Iterator[float]:
        if isinstance(value, dict):
            value = list(value.values())
        if isinstance(value, list):
            for part in value:
                yield from walk(part)
        elif isinstance(value, int | float) and not isinstance(value, bool):
            yield float(value)

    text = path.read_text(encoding="utf-8")
    return list(walk([json.loads(each) for each in (text.splitlines() if path.suffix == ".jsonl" else [text])]))


def _is_rounded(figure: str, value: float) -> bool:
    digits = len(figure.rstrip("%").partition(".")[2])
    shown = float(figure.rstrip("%"))
    scaled = 100 * value if figure.endswith("%") else value
    return abs(abs(shown) - abs(scaled)) <= 0.5 * 10**-digits + 1e-9


def main() -> int:
    """Print every figure with its source, then what is wrong."""
    every = [found for page in pages() for found in figures(page)]
    for found in every:
        print(f"{found.page}:{found.line}: {found.figure}  {found.source or '(no source named)'}")
    faults = [(found, text) for found in every if (text := fault(found))]
    for found, text in faults:
        print(f"{found.page}:{found.line}: {found.figure} {text}", file=sys.stderr)
    print(f"{len(every)} figures, {len(faults)} of them without a source that holds")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
