"""Rows of a sample that is spread evenly over a set. Imports nothing else of the package."""

from __future__ import annotations

from typing import Any, Protocol, TypeVar, cast


class _Rows(Protocol):
    """An array or tensor."""

    def __len__(self) -> int: ...

    def __getitem__(self, rows: Any, /) -> Any: ...


Array = TypeVar("Array", bound=_Rows)


def evenly_spaced(count: int, most: int) -> list[int]:
    """Return the numbers of up to `most` rows of a set, spread over all of it, since sets may come sorted.

    Args:
        count: number of rows of the set.
        most: largest number of rows to take.

    Returns:
        Row numbers in ascending order; all of them where there are no more than `most`.

    >>> evenly_spaced(10, 4)
    [0, 2, 5, 7]
    """
    kept = min(count, most)
    return [row * count // kept for row in range(kept)]


def spread_rows(data: Array, most: int) -> Array:
    """Return up to `most` rows of an array or tensor, spread over all of it; itself, and no copy, if it has no more.

    Args:
        data: array or tensor.
        most: largest number of rows to take.

    Returns:
        The rows in their order.
    """
    return data if len(data) <= most else cast(Array, data[evenly_spaced(len(data), most)])
