"""Rows of a sample that is spread evenly over a set. Imports nothing else of the package."""

from __future__ import annotations


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
