"""P-values and thresholds within groups of inliers, such as the products that one model looks at. Needs NumPy only.

A rate that holds over all inliers may be far exceeded by one product and never used by another. Ranked among the
held-out inliers of its own group alone, a fresh inlier of any group has a valid p-value (Mondrian conformal prediction:
Vovk, Gammerman and Shafer, "Algorithmic learning in a random world", 2nd edition, 2022, section 4.6). Where the group
of an image is not known, the largest of its p-values over the groups is valid whichever it belongs to.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Mapping, Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]

FOLDERS = "folders"
"""The word for groups that are named by folders; any other word is the name of a column."""
UNKNOWN = ""
"""The label of an image whose group is not known."""


def group_of(path: str, known: Collection[str]) -> str:
    """Return the group of a file: the nearest folder above it that has a group's name, else `UNKNOWN`.

    Args:
        path: path of the file, with / or the system's separator.
        known: names of the groups.

    Returns:
        The name of a group, or `UNKNOWN`.

    >>> group_of("images/cable/good/000.png", ["bottle", "cable"])
    'cable'
    """
    parts = path.replace(os.sep, "/").split("/")[:-1]
    return next((part for part in reversed(parts) if part in known), UNKNOWN)


def split(scores: ArrayLike, labels: Sequence[str]) -> dict[str, Floats]:
    """Split scores by group: each group's scores, ascending, by its name, the names in alphabetical order.

    Args:
        scores: n scores of inliers.
        labels: group of each inlier.

    Returns:
        The scores of each group by its name.

    Raises:
        ValueError: if there are not as many labels as scores, or an inlier has no group.
    """
    values, names = np.asarray(scores, np.float64), np.asarray(labels, dtype=str)
    check_inlier_labels(labels, len(values))
    return {str(name): np.sort(values[names == name]) for name in np.unique(names)}


def describe_absent(labels: Sequence[str], held_out: Sequence[str]) -> str:
    """Describe in one line the groups of inliers of which none is held out; "" if there are none, or none is at all.

    Args:
        labels: group of each inlier.
        held_out: group of each held-out inlier.

    Returns:
        The line.

    >>> describe_absent(["a", "a", "b"], ["a"])
    'no inlier of 1 of 2 groups is held out (b): such a group has no p-values or threshold; give more data of it'
    """
    every, kept = sorted(set(labels)), set(held_out)
    absent = [name for name in every if name not in kept]
    if not absent or not kept:
        return ""
    names = ", ".join(absent[:5]) + (", ..." if len(absent) > 5 else "")
    return (
        f"no inlier of {len(absent)} of {len(every)} groups is held out ({names}): such a group has no p-values or"
        " threshold; give more data of it"
    )


def largest_by_group(
    groups: Mapping[str, ArrayLike],
    scores: ArrayLike,
    labels: Sequence[str] | None,
    judge: Callable[[ArrayLike, Floats], Floats],
) -> Floats:
    """Judge each image by the held-out inliers of its own group.

    Args:
        groups: scores of the held-out inliers of each group, by the group's name.
        scores: m scores to judge.
        labels: group of each image, or `UNKNOWN`; None if no image's group is known.
        judge: function from held-out scores and scores to judge to p-values.

    Returns:
        m values: within the group, or if it is not known, the largest over all groups.

    Raises:
        ValueError: if a group has no held-out inliers, or there are not as many labels as scores.
    """
    values = np.asarray(scores, np.float64).reshape(-1)
    check_labels(labels, len(values), groups)
    names = np.full(len(values), UNKNOWN) if labels is None else np.asarray(labels, dtype=str)
    result = np.zeros(len(values))
    for name, known in groups.items():
        mine, unknown = names == name, names == UNKNOWN
        if mine.any():
            result[mine] = judge(known, values[mine])
        if unknown.any():
            result[unknown] = np.maximum(result[unknown], judge(known, values[unknown]))
    return result


def group_thresholds(
    groups: Mapping[str, ArrayLike], rule: Callable[[ArrayLike], float], otherwise: Callable[[ArrayLike], float]
) -> tuple[dict[str, float], tuple[str, ...]]:
    """Set a threshold for each group, and list the groups that are too small for the rule.

    Args:
        groups: scores of the held-out inliers of each group, by the group's name.
        rule: function that sets a threshold by scores and raises a ValueError if they are too few.
        otherwise: function that sets the threshold if they are too few.

    Returns:
        The thresholds by name, and the names of the groups that `otherwise` was used for.
    """
    thresholds, small = {}, []
    for name, scores in groups.items():
        try:
            thresholds[name] = rule(scores)
        except ValueError:
            thresholds[name] = otherwise(scores)
            small.append(name)
    return thresholds, tuple(small)


def threshold_of(thresholds: Mapping[str, float], labels: Sequence[str] | None, count: int) -> Floats:
    """Return the threshold of each image: its group's, or the highest of all if its group is not known.

    Args:
        thresholds: threshold of each group, by the group's name.
        labels: group of each image, or `UNKNOWN`; None if no image's group is known.
        count: number of images.

    Returns:
        `count` thresholds.

    Raises:
        ValueError: if a group has no threshold, or there are not as many labels as images.
    """
    check_labels(labels, count, thresholds)
    highest = max(thresholds.values())
    names = [UNKNOWN] * count if labels is None else labels
    return np.array([thresholds[name] if name != UNKNOWN else highest for name in names], np.float64)


def check_labels(labels: Sequence[str] | None, count: int, known: Mapping[str, object] | None = None) -> None:
    """Refuse labels that do not fit the images or the groups.

    Args:
        labels: group of each image, or `UNKNOWN`; None if no image's group is known.
        count: number of images.
        known: mapping from the names of the known groups; None allows any group.

    Raises:
        ValueError: if there are not as many labels as images, or a group is not among the known ones.
    """
    if labels is None:
        return
    if len(labels) != count:
        raise ValueError(f"{len(labels)} groups for {count} rows: each row needs one")
    if known is not None and (missing := sorted({str(name) for name in labels} - {*known, UNKNOWN})):
        raise ValueError(
            f"no held-out inliers of group {', '.join(missing[:5])}; calibrated are {', '.join(sorted(known))}."
            f" An empty label stands for a group that is not known"
        )


def check_inlier_labels(labels: Sequence[str] | None, count: int) -> None:
    """Refuse labels of inliers that do not fit them, or that do not name a group for each.

    Args:
        labels: group of each inlier; None if they have no groups.
        count: number of inliers.

    Raises:
        ValueError: if there are not as many labels as inliers, or an inlier has no group; the message gives the first.
    """
    check_labels(labels, count)
    if labels is not None and UNKNOWN in labels:
        names = list(labels)
        raise ValueError(
            f"{names.count(UNKNOWN)} of {count} inliers have no group, the first in row {names.index(UNKNOWN)}: each"
            " needs one"
        )
