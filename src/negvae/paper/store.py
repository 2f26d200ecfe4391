"""Results of `negvae paper run`: one table for each profile, of one line of JSON for each run. Imports no torch.

A line holds the name of the run and its result, whose entries `negvae.paper.results` lists. Several processes may write
to one table at once: each holds a lock while it reads the lines, puts its own among them and replaces the file, so that
a process that is killed leaves the table as it was, and its run goes on from its checkpoint.
Version 0.1 wrote a folder of JSON files, one for each run; such a folder beside the table is read as well, where the
table has no line of the name.
"""

from __future__ import annotations

import functools
import itertools
import json
import math
import re
import reprlib
import sys
from collections.abc import Callable, Collection, Iterable, Iterator, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from negvae.config import RunConfig
from negvae.files import from_json, locked, write_text

Result = dict[str, Any]
NEEDED = frozenset({"config", "status", "seed"})
"""Entries of every result of `negvae paper run`."""
STATUSES = ("finished", "diverged")
NOT_FINITE = ("inf", "-inf", "nan")
"""Texts that stand for the numbers that JSON has none for."""


@dataclass(frozen=True)
class ResultTable:
    """Results in one file.

    Attributes:
        path: file of the table, such as results/cpu.jsonl; it need not exist.
        made_by: command that writes the table, for messages.
        needed: entries that every result has.
    """

    path: Path
    made_by: str = "negvae paper run"
    needed: frozenset[str] = NEEDED

    @property
    def folder(self) -> Path:
        """Folder in which version 0.1 kept the same results as JSON files."""
        return self.path.with_suffix("")

    def seeds(self, run: str) -> list[int]:
        """Return the seeds that a run has results of, which are named RUN-seedN.

        Args:
            run: name of the run without its seed; "" for any run.

        Returns:
            The seeds, ascending.

        Raises:
            ValueError: if a line of the table is damaged.
        """
        parts = [name.rpartition("-seed") for name in self.names()]
        return sorted({int(end) for start, _, end in parts if end.isdecimal() and (not run or start == run)})

    def names(self) -> list[str]:
        """Return the names of all results, sorted.

        Returns:
            The names.

        Raises:
            ValueError: if a line of the table is damaged.
        """
        return sorted({*self._rows(), *(path.stem for path in self.folder.glob("*-seed*.json"))})

    def get(self, name: str) -> Result | None:
        """Return a result.

        Args:
            name: name of the run.

        Returns:
            The result, which the caller leaves as it is; None where there is none.

        Raises:
            ValueError: if a line of the table, or the result's own file, is damaged.
        """
        found = self._rows().get(name)
        return self._file(self.folder / f"{name}.json") if found is None else found

    def put(self, name: str, content: Result) -> None:
        """Write a result into the table, in place of an earlier one of the same name; no other line changes.

        Args:
            name: name of the run.
            content: result; numbers that JSON has none for become text.

        Raises:
            ValueError: if a line of the table is damaged.
            OSError: if the table cannot be written.
        """
        line = json.dumps({"name": name, **_plain(content)}, allow_nan=False, separators=(",", ":"))
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with locked(self.path.with_name(f".{self.path.name}.lock"), wait=True):
            lines = {each: text for each, (text, _) in self._lines().items()} | {name: line}
            write_text(self.path, "".join(f"{lines[each]}\n" for each in sorted(lines)))

    def _rows(self) -> dict[str, Result]:
        """Return the results of the file by name."""
        try:
            facts = self.path.stat()
        except FileNotFoundError:
            return {}
        return _parsed(self, (facts.st_mtime_ns, facts.st_size, facts.st_ino))

    def _lines(self) -> dict[str, tuple[str, Result]]:
        """Return the lines of the file, as text and as results, by name."""
        lines, places = dict[str, tuple[str, Result]](), dict[str, int]()
        text = self.path.read_bytes() if self.path.exists() else b""
        for number, line in enumerate(text.split(b"\n"), 1):
            if line.strip():
                result = self._result(line, f"{self.path}, line {number}", "the line", {"name"})
                name, read = str(result.pop("name")), (line.decode(), result)
                if lines.setdefault(name, read) != read:
                    raise ValueError(
                        f"{self.path}: lines {places[name]} and {number} are different results of {name}; remove one"
                    )
                places.setdefault(name, number)
        return lines

    def _file(self, path: Path) -> Result | None:
        """Return the result in a file of its own, as version 0.1 wrote it; None where there is no such file."""
        try:
            text = path.read_bytes()
        except FileNotFoundError:
            return None
        return self._result(text, str(path), "it")

    def _result(self, text: bytes, where: str, what: str, further: Set[str] = frozenset()) -> Result:
        """Return the result in a text, which has `further` entries too, with the present names of scores."""
        try:
            content = from_json(text)
        except ValueError:
            content = None
        if not isinstance(content, dict) or not content.keys() >= self.needed | further:
            raise ValueError(
                f"{where}: not a result of `{self.made_by}`; remove {what}, and that command makes it anew"
            )
        for section in ("evaluation", "proxies"):
            if section in content:
                content[section] = _named(content[section])
        return content


@functools.lru_cache(maxsize=4)
def _parsed(table: ResultTable, stamp: tuple[int, int, int]) -> dict[str, Result]:
    """Return the results of a table as it is at `stamp`: one page reads it some hundred times."""
    return {name: result for name, (_, result) in table._lines().items()}


def _named(content: Any) -> Any:
    """Rename figures to the scores' present names: version 0.1 called "combined" "auto"."""
    if not isinstance(content, dict):
        return content
    return {re.sub("^(auc_)?auto(?![a-z])", r"\1combined", name): _named(value) for name, value in content.items()}


def _plain(value: Any) -> Any:
    """Return the value with non-finite floats as text."""
    if isinstance(value, dict):
        return {key: _plain(part) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(part) for part in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value


def same_run(stored: Any, config: RunConfig, where: str) -> bool:
    """Return whether a stored configuration equals `config` in everything but the device.

    Args:
        stored: `RunConfig.to_dict` of an earlier run; fields missing from it have their defaults.
        config: configuration of the run now asked for.
        where: place of the stored configuration, for the error message.

    Returns:
        Whether the two configurations make the same run.

    Raises:
        ValueError: if `stored` is not a configuration.
    """
    if not isinstance(stored, dict):
        raise ValueError(f"{where}: {wrong('config', stored, 'a mapping of fields to values')}")
    try:
        return RunConfig.from_dict({**stored, "device": config.device}, where) == config
    except ValueError as error:
        message = str(error)  # that of a refused value lacks the place
        raise ValueError(message if message.startswith(where) else f"{where}: {message}") from None


def up_to_date(
    table: ResultTable,
    name: str,
    config: RunConfig,
    figures: Collection[str] = (),
    faults: Callable[[Result], Iterator[str]] = lambda content: iter(()),
) -> Result | None:
    """Return a table's result of this name if it was made with certain settings.

    Args:
        table: table that may hold the result.
        name: name of the run.
        config: the settings.
        figures: names of figures that a finished run has for each OOD set.
        faults: function that says what else is wrong with the entries of a result.

    Returns:
        The result; None if there is none, or one that was made with other settings, which nothing is read from.

    Raises:
        ValueError: if the result is not as `negvae paper run` writes it: edited by hand, or of another program.
    """
    content, where = table.get(name), f"{table.path}, {name}"
    if content is None or not same_run(content["config"], config, where):
        return None
    if fault := next(itertools.chain(_faults(content, figures), faults(content)), None):
        raise damaged(table, name, fault)
    return content


def damaged(table: ResultTable, name: str, fault: str) -> ValueError:
    """Return the error that says what is wrong with a result of a table, and what to do about it."""
    return ValueError(f"{table.path}, {name}: {fault}; remove that result, and `{table.made_by}` makes it anew")


def _faults(content: Result, figures: Collection[str]) -> Iterator[str]:
    """Say what is wrong with the entries that tables are made from, and what would be right."""
    status, seed, notes = content["status"], content["seed"], content.get("notes")
    if status not in STATUSES:
        yield wrong("status", status, " or ".join(STATUSES))
    if not isinstance(seed, int) or isinstance(seed, bool):
        yield wrong("seed", seed, "a whole number")
    if not isinstance(notes, list) or not all(isinstance(note, str) for note in notes):
        yield wrong("notes", notes, "a list of texts")
    origin = content.get("provenance")
    if not isinstance(origin, dict):
        yield wrong("provenance", origin, "a mapping")
    else:
        for name in ("commit", "device"):
            if not isinstance(origin.get(name), str):
                yield wrong(f"provenance {name}", origin.get(name), "a text")
    evaluation = content.get("evaluation")
    if status != "finished":
        return
    if not isinstance(evaluation, dict) or (figures and not evaluation):
        yield wrong("evaluation", evaluation, "a mapping of OOD sets to figures, for the run is finished")
        return
    for ood, row in evaluation.items() if figures else ():
        yield from wrong_figures(f"evaluation {ood}", row, figures)


def wrong_figures(entry: str, row: Any, names: Iterable[str]) -> Iterator[str]:
    """Say which of some figures in an entry are none, or that the entry holds no figures."""
    if not isinstance(row, dict):
        yield wrong(entry, row, "a mapping of figures")
        return
    for name in names:
        if not is_number(row.get(name)):
            yield wrong(f"{entry} {name}", row.get(name), "a number")


def wrong_areas(entry: str, row: Any, *needed: str) -> Iterator[str]:
    """Say which AUROCs in an entry are none: those of the scores that it needs, and all others that it has."""
    others = (
        [name for name in row if name.startswith("auc_") and not name.endswith("_ci")] if isinstance(row, dict) else []
    )
    yield from wrong_figures(entry, row, dict.fromkeys([*(f"auc_{score}" for score in needed), *others]))


def wrong(entry: str, value: Any, right: str) -> str:
    """Say that an entry, None if it is missing, is not what is right."""
    return f"{entry} is {'missing' if value is None else reprlib.repr(value)}: it must be {right}"


def is_number(value: Any) -> bool:
    """Return whether a value from a table is a number, which may be one that JSON has none for."""
    if isinstance(value, str):
        return value in NOT_FINITE
    return isinstance(value, float) or (
        isinstance(value, int) and not isinstance(value, bool) and abs(value) <= sys.float_info.max
    )
