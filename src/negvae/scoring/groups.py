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

GROUPS = ("folders",)
"""What may name the group of a file."""
UNKNOWN = ""
"""The label of an image whose group is not known."""


def group_of(path: str, known: Collection[str]) -> str:
    """The group of a file: the nearest folder above it that has a group's name, else `UNKNOWN`.

    Args:
        path: Of the file, with / or the system's separator.
        known: Names of groups.
    """
    parts = path.replace(os.sep, "/").split("/")[:-1]
    return next((part for part in reversed(parts) if part in known), UNKNOWN)


def split(scores: ArrayLike, labels: Sequence[str]) -> dict[str, Floats]:
    """The scores of each group, ascending, by the group's name in the order of the alphabet.

    Args:
        scores: n scores.
        labels: Their groups.

    Raises:
        ValueError: Numbers that do not fit each other, or an inlier without a group.
    """
    values, names = np.asarray(scores, np.float64), np.asarray(labels, dtype=str)
    check_labels(labels, len(values))
    if (names == UNKNOWN).any():
        raise ValueError(f"{int((names == UNKNOWN).sum())} held-out inliers have no group: each needs one")
    return {str(name): np.sort(values[names == name]) for name in np.unique(names)}


def largest_by_group(
    groups: Mapping[str, ArrayLike],
    scores: ArrayLike,
    labels: Sequence[str] | None,
    judge: Callable[[ArrayLike, Floats], Floats],
) -> Floats:
    """Judge each image by the held-out inliers of its own group.

    Args:
        groups: The scores of the held-out inliers of each group.
        scores: m scores to judge.
        labels: Their groups, `UNKNOWN` where one is not known; None where none is.
        judge: Gives p-values for held-out scores and scores to judge.

    Returns:
        m values: within the group, or where it is not known, the largest over all groups.

    Raises:
        ValueError: A group that has no held-out inliers, or another number of labels.
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
    """A threshold for each group, and the groups that are too small for the rule.

    Args:
        groups: The scores of the held-out inliers of each group.
        rule: Sets a threshold by scores; raises a ValueError where they are too few.
        otherwise: Sets the threshold where they are.

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
    """The threshold of each image: its group's, or the highest of all where its group is not known.

    Args:
        thresholds: Of each group.
        labels: As of `largest_by_group`.
        count: How many images.

    Raises:
        ValueError: A group without a threshold, or another number of labels.
    """
    check_labels(labels, count, thresholds)
    highest = max(thresholds.values())
    names = [UNKNOWN] * count if labels is None else labels
    return np.array([thresholds[name] if name != UNKNOWN else highest for name in names], np.float64)


def check_labels(labels: Sequence[str] | None, count: int, known: Mapping[str, object] | None = None) -> None:
    """Refuse labels that do not fit.

    Raises:
        ValueError: Another number of them than of images, or a group that is not among the known ones.
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
