"""Tables of named parts: likelihoods, networks, negative sources, transformations, scores and data sets.

A part is needed by name in YAML, on the command line and in saved folders only; Python code passes the object itself.
Each kind of part has one `Table`, in the package that owns the kind, and a typed `register_...` function beside it.
Choices, help texts, validation, artifacts and reports all read the table, so that no other list of names exists.
"""

from __future__ import annotations

import difflib
import inspect
import traceback
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from typing import Any, Generic, TypeVar, cast

GROUP = "negvae"
"""Entry-point group of installed packages that register parts when they are imported."""
_DIVIDES = " \t\n:,+*"
"""Characters that no name may hold: the notation of negatives separates names and their arguments by them."""

Target = TypeVar("Target")
Part = TypeVar("Part", bound="Entry[Any]")


@dataclass(frozen=True, kw_only=True)
class Entry(Generic[Target]):
    """A named part.

    Attributes:
        name: name of the part in YAML files, on the command line and in saved folders.
        meaning: phrase that explains the part in help texts and reports.
        target: the part itself, or its place as "module:attribute", which is imported when the part is first used.
        papers: keys of the publications that the part comes from, in `negvae.citations.PAPERS`.

    >>> Entry(name="sqrt", meaning="the square root", target="math:sqrt").load()(9.0)
    3.0
    """

    name: str
    meaning: str
    target: Target | str
    papers: tuple[str, ...] = ()

    def load(self) -> Target:
        """Return the part itself, and import it first if that has not been done."""
        return cast(Target, _imported(self.target)) if isinstance(self.target, str) else self.target


class Table(Generic[Part]):
    """The named parts of one kind, in the order in which they were registered.

    Args:
        kind: word for such a part in messages, such as "score".
        entries: parts to register at once.

    Raises:
        ValueError: if two entries have the same name.

    >>> colors = Table("color", [Entry(name="red", meaning="a warm color", target=0xFF0000)])
    >>> colors.add(Entry(name="blue", meaning="a cold color", target=0x0000FF))
    >>> list(colors), colors["blue"].meaning
    (['red', 'blue'], 'a cold color')
    >>> colors["bleu"]
    Traceback (most recent call last):
    ValueError: unknown color 'bleu': did you mean blue? Known: red, blue
    """

    def __init__(self, kind: str, entries: Iterable[Part] = ()) -> None:
        self.kind = kind
        self._entries: dict[str, Part] = {}
        for entry in entries:
            self.add(entry)

    def add(self, entry: Part) -> None:
        """Register a part.

        Args:
            entry: the part, with a name that no other part of the table has.

        Raises:
            ValueError: if the name is taken, or is no text by which a part can be named.
        """
        self.check_name(entry.name)
        self._entries[entry.name] = entry

    def check_name(self, name: object) -> None:
        """Refuse a name that cannot be registered, such as the part itself where a decorator stands without its name.

        Args:
            name: name to register.

        Raises:
            ValueError: if the name is taken, or is no text by which a part can be named.
        """
        if not isinstance(name, str) or not name or set(name) & set(_DIVIDES):
            raise ValueError(f"{self.kind} {name!r}: a name is a text without blanks and without : , + *")
        if name in self._entries:
            raise ValueError(f"{self.kind} {name!r} is registered already: choose another name")

    def __getitem__(self, name: str) -> Part:
        """Return the part with this name; installed plugins are imported if it is not known without them.

        A saved folder cannot bring a part along, because loading a folder runs none of its content: the package that
        registers the part has to be installed.

        Args:
            name: name of the part.

        Returns:
            The part's entry.

        Raises:
            ValueError: if no part has this name; the message gives the nearest name and lists all of them.
        """
        found = self.get(name)
        if found is None:
            choose(self.kind, name, self._entries)
        return self._entries[name]

    def get(self, name: str) -> Part | None:
        """Return the part with this name, or None; installed plugins are imported if it is not known without them."""
        if name not in self._entries:
            _import_plugins()
        return self._entries.get(name)

    def name_of(self, part: object) -> str | None:
        """Return the name under which an object is registered, or None if it is not registered."""
        where = f"{getattr(part, '__module__', '')}:{getattr(part, '__qualname__', '')}"
        return next((each.name for each in self.entries() if each.target is part or each.target == where), None)

    def __contains__(self, name: object) -> bool:
        """Return whether a part with this name is registered; plugins that are not imported yet do not count."""
        return name in self._entries

    def __iter__(self) -> Iterator[str]:
        """Iterate over the names, in the order of registration."""
        return iter(self._entries)

    def __len__(self) -> int:
        """Return the number of parts."""
        return len(self._entries)

    def entries(self) -> list[Part]:
        """Return the entries of all parts, in the order of registration."""
        return list(self._entries.values())


@cache
def _imported(path: str) -> Any:
    """Return what "module:attribute" names; the result is cached, because parts are loaded in inner loops."""
    module, _, attribute = path.partition(":")
    return getattr(import_module(module), attribute)


@cache
def _import_plugins() -> None:
    """Import the installed packages of the entry-point group, once; importing them registers their parts.

    Raises:
        ImportError: if one of them cannot be imported, for whatever reason.
    """
    from importlib.metadata import entry_points  # here, since the command line's help is quicker without it

    for plugin in entry_points(group=GROUP):
        try:
            plugin.load()
        except Exception as error:
            raise ImportError(
                f"the plugin {plugin.name} = {plugin.value} (entry-point group {GROUP}) cannot be imported: {error}"
            ) from error


def place_in_plugin(error: BaseException) -> str:
    """Return where an error arose in the code of an installed plugin, or an empty text if it arose elsewhere.

    Args:
        error: error, or one that was raised from an error of the plugin's.

    Returns:
        The function, file and line that the plugin had come to.

    >>> place_in_plugin(ValueError("of nobody's part"))
    ''
    """
    from importlib.metadata import entry_points  # here, since the command line's help is quicker without it

    if not _import_plugins.cache_info().currsize:
        return ""
    packages = {plugin.module.partition(".")[0] for plugin in entry_points(group=GROUP)}
    cause: BaseException | None = error
    while cause is not None:
        for frame, line in reversed(list(traceback.walk_tb(cause.__traceback__))):
            if str(frame.f_globals.get("__name__")).partition(".")[0] in packages:
                return f"{frame.f_code.co_qualname}, {frame.f_code.co_filename}, line {line}"
        cause = cause.__cause__
    return ""


def require_arguments(what: str, part: object, *names: str) -> None:
    """Refuse a part that cannot be called with positional arguments of these names.

    Args:
        what: words for the part in the message.
        part: function, class or other object that is to be called.

    Raises:
        TypeError: if the part cannot be called, or not with so many arguments.

    >>> require_arguments("score double", lambda x: 2 * x, "x")
    >>> require_arguments("score sum", lambda x, y: x + y, "x")
    Traceback (most recent call last):
    TypeError: score sum takes (x, y): it is called with (x)
    """
    called = f"({', '.join(names)})"
    if not callable(part):
        raise TypeError(
            f"{what} is a {type(part).__name__}: it must be a function or class that is called with {called}"
        )
    try:
        signature = inspect.signature(part)
    except (ValueError, TypeError):  # some of those in C have none
        return
    try:
        signature.bind(*names)
    except TypeError:
        raise TypeError(f"{what} takes {signature}: it is called with {called}") from None


def choose(what: str, name: str, known: Iterable[str], where: str = "") -> str:
    """Return `name` if it is among the known names.

    Args:
        what: word for the thing that is named, for the message, such as "preset".
        name: name to look for.
        known: all names that are allowed.
        where: file or section that the name comes from, with which the message begins; empty for none.

    Returns:
        The name, unchanged.

    Raises:
        ValueError: if the name is unknown; the message gives the nearest known name and lists all of them.

    >>> choose("preset", "gray", ["gray", "color"])
    'gray'
    >>> choose("preset", "grey", ["gray", "color"])
    Traceback (most recent call last):
    ValueError: unknown preset 'grey': did you mean gray? Known: gray, color
    >>> choose("field", "x", ["data"], where="config.yaml")
    Traceback (most recent call last):
    ValueError: config.yaml: unknown field 'x'. Known: data
    """
    names = list(known)
    if name in names:
        return name
    place = f"{where}: " if where else ""
    raise ValueError(f"{place}unknown {what} {name!r}{suggestion(str(name), names)}")


def suggestion(name: str, known: Iterable[str]) -> str:
    """Return the end of a message about an unknown name: the nearest known one if any is near, and all of them.

    >>> suggestion("blu", ["red", "blue"]), suggestion("x", ["red", "blue"])
    (': did you mean blue? Known: red, blue', '. Known: red, blue')
    """
    names = list(known)
    near = difflib.get_close_matches(name.lower(), names, n=1, cutoff=0.5)
    return f"{f': did you mean {near[0]}?' if near else '.'} Known: {', '.join(names)}"
