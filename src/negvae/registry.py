"""Names of parts: which are known, and what is said where one is not."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


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
