"""Tables of named parts: likelihoods, networks, negative sources, transformations, scores and data sets.

A part is needed by name in YAML, on the command line and in saved folders only; Python code passes the object itself.
Each kind of part has one `Table`, in the package that owns the kind, and a typed `register_...` function beside it.
Choices, help texts, validation, artifacts and reports all read the table, so that no other list of names exists.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from typing import Any, Generic, TypeVar, cast

GROUP = "negvae"
"""Entry-point group of installed packages that register parts when they are imported."""

Target = TypeVar("Target")
Part = TypeVar("Part", bound="Entry[Any]")


@dataclass(frozen=True, kw_only=True)
class Entry(Generic[Target]):
    """One named part.

    Attributes:
        name: by which YAML, command line and saved folders know it.
        meaning: one phrase for help texts and reports.
        target: the part itself, or where it is, as "module:attribute": then nothing is imported before it is used.
    """

    name: str
    meaning: str
    target: Target | str

    def load(self) -> Target:
        """The part, imported where that has not been done."""
        return cast(Target, _imported(self.target)) if isinstance(self.target, str) else self.target


class Table(Generic[Part]):
    """The named parts of one kind, in the order in which they were registered.

    Args:
        kind: what they are called in messages, such as "score".
        entries: the library's own.

    Raises:
        ValueError: two entries have one name.
    """

    def __init__(self, kind: str, entries: Iterable[Part] = ()) -> None:
        self.kind = kind
        self._entries: dict[str, Part] = {}
        for entry in entries:
            self.add(entry)

    def add(self, entry: Part) -> None:
        """Register a part.

        Raises:
            ValueError: its name is taken.
        """
        if entry.name in self._entries:
            raise ValueError(f"{self.kind} {entry.name!r} is registered already: choose another name")
        self._entries[entry.name] = entry

    def __getitem__(self, name: str) -> Part:
        """The part of this name; installed plugins are imported where it is not known without them.

        Raises:
            ValueError: there is none; the message names the nearest and lists all. Nothing from a saved folder is
                run, so a folder that names a part of somebody's own needs the package that registers it.
        """
        found = self.get(name)
        if found is None:
            choose(self.kind, name, self._entries)
        return self._entries[name]

    def get(self, name: str) -> Part | None:
        """The part of this name, or None; installed plugins are imported where it is not known without them."""
        if name not in self._entries:
            _import_plugins()
        return self._entries.get(name)

    def name_of(self, part: object) -> str | None:
        """The name under which an object is registered; None where it is not."""
        where = f"{getattr(part, '__module__', '')}:{getattr(part, '__qualname__', '')}"
        return next((each.name for each in self.entries() if each.target is part or each.target == where), None)

    def __contains__(self, name: object) -> bool:
        """Whether a part of this name is registered, plugins that were not imported yet aside."""
        return name in self._entries

    def __iter__(self) -> Iterator[str]:
        """The names, in order."""
        return iter(self._entries)

    def __len__(self) -> int:
        """How many parts there are."""
        return len(self._entries)

    def entries(self) -> list[Part]:
        """All parts, in order."""
        return list(self._entries.values())


@cache
def _imported(path: str) -> Any:
    """What "module:attribute" names; it is looked up once, since parts are loaded in inner loops."""
    module, _, attribute = path.partition(":")
    return getattr(import_module(module), attribute)


@cache
def _import_plugins() -> None:
    """Import the installed packages of the entry-point group, once; importing them registers their parts.

    Raises:
        ImportError: one of them fails, in whatever way.
    """
    from importlib.metadata import entry_points  # here, since the command line's help is quicker without it

    for plugin in entry_points(group=GROUP):
        try:
            plugin.load()
        except Exception as error:
            raise ImportError(
                f"the plugin {plugin.name} = {plugin.value} (entry-point group {GROUP}) cannot be imported: {error}"
            ) from error


def choose(what: str, name: str, known: Iterable[str]) -> str:
    """Return `name` if it is known.

    Raises:
        ValueError: it is not; the message names the nearest known name and lists all.
    """
    names = list(known)
    if name in names:
        return name
    near = difflib.get_close_matches(name.lower(), names, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]}? " if near else ""
    raise ValueError(f"unknown {what} {name!r}: {hint}Known: {', '.join(names)}")
