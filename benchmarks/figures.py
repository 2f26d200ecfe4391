"""Lists every figure in the docs with its source: `python -m benchmarks.figures`; exit code 1 where one is missing.

A figure is a number with decimals in the text of README.md or docs/, or a whole number with a unit of `UNITS` or a
percent sign, outside of code; it is no version of what `VERSIONS` names, and no usual level such as 95%. Its source is

- the command in the marker of a generated block, such as `<!-- beyond: begin (negvae paper show ...) -->`, or on a page
  of docs/results/ the command that writes the page;
- or what a comment says: `<!-- source: WHAT -->` holds for the block after it, `<!-- source of this section: WHAT -->`
  until the next heading.

WHAT is one source, or several with "; " between them, of which one must have the figure:

- a file of JSON of this repository: the figure is one of its numbers, rounded to the figure's digits; a percentage may
  be a hundred times the number. Of files with more than `MANY` numbers, in which any figure could be found, it is said
  which: `FILE: KEY of NAME, NAME`, with names of lines that may hold `*`. The figure is then the value of the key in
  one of the lines, its mean over the seeds of a run, or the mean of these over the runs of a NAME;
- another file of this repository: the figure stands there as it is, a percentage perhaps as a share;
- a command that begins with negvae, python or make, and that there is;
- or where a figure was published, such as "arXiv 2401.04933".
"""

from __future__ import annotations

import itertools
import json
import re
import statistics
import sys
from collections.abc import Iterator
from fnmatch import fnmatch
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).parents[1]
UNITS = r"(?:seconds?|minutes?|hours?|days?|ms|s|kB|MB|GB|MiB|GiB|images/s|times|nats|million)"
FIGURE = re.compile(
    rf"(?<![\w.^-])[-+]?\d+\.\d+%?(?![\w.]*\d)|(?<![\w.,^/-])\d{{1,3}}(?:,\d{{3}})*(?:%| {UNITS}(?![\w/]))"
)
LEVELS = {"0%", "1%", "5%", "10%", "50%", "90%", "95%", "99%", "100%"}
"""Usual rates, levels of confidence and quantiles, which are no measurements."""
MANY = 2000
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
                if each not in LEVELS:
                    yield Found(name, number, each, whole or generated or block or section)


def fault(found: Found, root: Path = ROOT) -> str:
    """What is wrong with a figure's source, in words; nothing where it is right."""
    if not found.source:
        return "has no source"
    faults = [_fault_of(found.figure, source, root) for source in found.source.split("; ")]
    return "" if "" in faults else ", and ".join(faults)


def _fault_of(figure: str, source: str, root: Path) -> str:
    """What is wrong with one of a figure's sources."""
    if source.startswith(COMMANDS):
        return "" if _is_command(source, root) else f"names {source!r}: no such command"
    if PUBLISHED.match(source):
        return ""
    name, _, which = source.partition(": ")
    path = root / name.split()[0].rstrip(",")
    if not path.is_file():
        return f"names {source!r}: no file of this repository, command or publication"
    if path.suffix in (".json", ".jsonl"):
        values = chosen(path, which) if which else numbers(path)
        if not which and len(values) > MANY:
            return f"is one of {len(values):,} numbers of {source}: name the key and the lines"
        return "" if any(_is_rounded(figure, value) for value in values) else f"is no number of {source}"
    text = path.read_text(encoding="utf-8")
    return "" if any(re.search(rf"(?<![\d.]){re.escape(form)}(?!\d)", text) for form in _forms(figure)) else (
        f"does not stand in {source}"
    )  # fmt: skip


def _is_command(source: str, root: Path) -> bool:
    """Whether a command names a file, a module, a target or a command of negvae that there is."""
    program, first, *more = re.split(r"[\s,;]+", source)
    if program == "make":
        return bool(re.search(rf"^{re.escape(first)}:", (root / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    if program == "python" and first == "-m":
        module = root / more[0].replace(".", "/")
        return module.with_suffix(".py").is_file() or (module / "__main__.py").is_file()
    if program == "python":
        return (root / first).is_file()
    texts = (path.read_text(encoding="utf-8") for path in (root / "src" / "negvae" / "cli").glob("*.py"))
    return any(f"def {first}(" in text or f'"{first}"' in text for text in texts)


def _forms(figure: str) -> list[str]:
    """The ways in which a file may write a figure: without its sign and unit, and a percentage as a share."""
    number = figure.lstrip("+-").rstrip("%").split()[0]
    forms = [figure, number, number.replace(",", ""), number.replace(",", "_")]
    if figure.endswith("%"):
        forms.append(f"{float(number) / 100:g}")
    elif figure.endswith((" MB", " million")):
        forms.append(f"{number}_000_000")
    elif float(number.replace(",", "")) < 0.1:
        forms.append(re.sub(r"\.?0*e-0", "e-", f"{float(number):e}"))
    return forms


@cache  # a file is asked for each of a page's figures
def _lines(path: Path) -> list[Any]:
    text = path.read_text(encoding="utf-8")
    return [json.loads(each) for each in (text.splitlines() if path.suffix == ".jsonl" else [text])]


def _walk(value: Any, key: str = "") -> Iterator[float]:
    """Every number in a value, or every one that stands under a key."""
    if isinstance(value, dict):
        for name, part in value.items():
            yield from _walk(part, "" if name == key else key)
    elif isinstance(value, list):
        for part in value:
            yield from _walk(part, key)
    elif not key and isinstance(value, int | float) and not isinstance(value, bool):
        yield float(value)


def numbers(path: Path) -> list[float]:
    """Every number in a file of JSON, or of one JSON value a line."""
    return list(_walk(_lines(path)))


def chosen(path: Path, which: str) -> list[float]:
    """The values that "KEY of NAME, NAME" names in a file of JSON lines, and their means.

    A mean is over the seeds of a run, or over the means of the runs of a NAME.
    """
    key, _, names = which.partition(" of ")
    found = []
    for pattern in names.split(", "):
        runs: dict[str, list[float]] = {}
        for line in _lines(path):
            if fnmatch(line["name"], pattern):
                runs.setdefault(line["name"].partition("-seed")[0], []).extend(_walk(line, key))
        means = [statistics.fmean(values) for values in runs.values() if values]
        found += [*itertools.chain(*runs.values()), *means, *([statistics.fmean(means)] if means else [])]
    return found


def _is_rounded(figure: str, value: float) -> bool:
    number = figure.rstrip("%").split()[0].replace(",", "")
    digits = len(number.partition(".")[2])
    shown = float(number)
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
