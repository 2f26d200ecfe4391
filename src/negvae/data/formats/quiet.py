"""Suppress Pillow's warnings while images are read, in any number of threads at once.

`warnings.catch_warnings` saves the process's filters and restores them at its end. Where threads or generators end in
another order than they began, what it restores is not what the host program had; so one filter is added here, and
removed when the last reader ends.
"""

from __future__ import annotations

import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, cast

_LOCK = threading.Lock()
_readers = 0
_added: list[Any] = []
"""The filter in place, while there are readers."""


@contextmanager
def without_pillows_warnings() -> Iterator[None]:
    """Ignore the warnings of Pillow's modules within the block; errors and all other warnings stay as they are.

    Pillow warns of large images before they are refused by their size, and of what it mends in damaged files.

    >>> before = list(warnings.filters)
    >>> with without_pillows_warnings(), without_pillows_warnings():
    ...     len(warnings.filters) - len(before)
    1
    >>> warnings.filters == before
    True
    """
    global _readers
    with _LOCK:
        _readers += 1
        if _readers == 1:
            warnings.filterwarnings("ignore", module=r"PIL\.")
            _added.append(warnings.filters[0])
    try:
        yield
    finally:
        with _LOCK:
            _readers -= 1
            if _readers == 0:
                with suppress(ValueError):  # the host program may have reset its filters
                    cast(list[Any], warnings.filters).remove(_added.pop())
