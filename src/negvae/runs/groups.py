"""What names the group of an inlier or of a scored row: the folder above its file, or a column of its table."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from pathlib import Path

import numpy as np

from negvae.data import Split
from negvae.data.formats import IMAGE_ENDINGS, Folder
from negvae.data.formats.folder import walk
from negvae.data.load import reader_of
from negvae.data.tables import ENDINGS, GroupColumn, texts
from negvae.files import home
from negvae.scoring.groups import FOLDERS, UNKNOWN, group_of

Label = Callable[[Sequence[str], Sequence[int | None]], list[str]]
"""A function from the files of rows, and the index of each row in its file, to the groups of the rows."""


def labeling(groups: str, known: Collection[str]) -> Label:
    """Return the function that names the groups of rows that are scored.

    Args:
        groups: "folders", or the name of a column of CSV and Parquet files.
        known: names of the calibrated groups.

    Returns:
        A function that gives `UNKNOWN` for a row whose group was not calibrated or is not named.
    """
    if groups == FOLDERS:
        return lambda paths, indices: [group_of(path, known) for path in paths]
    column = GroupColumn(groups)
    return lambda paths, indices: [name if name in known else UNKNOWN for name in column(paths, indices)]


def inlier_groups(data: str | None, groups: str, split: Split = "test", *, disjoint: bool = False) -> list[str]:
    """Return the group of each inlier of a file or folder, in the order in which `negvae.data.load` gives them.

    Args:
        data: path of a folder with a subfolder for each group, or, for a column, of a CSV or Parquet file.
        groups: "folders", or the name of a column.
        split: split that is loaded.
        disjoint: whether images are divided if the path has no splits (see `negvae.data.load`).

    Returns:
        N groups.

    Raises:
        ValueError: if the data does not name a group for each inlier.
    """
    place = home(data or "")
    if groups == FOLDERS:
        if data is None or not place.is_dir():
            raise ValueError(
                "groups folders takes a folder of inliers with a subfolder for each group: name it with --data"
            )
        reader, has_splits = reader_of(place, split)
        names = subfolders(place, reader.path) if isinstance(reader, Folder) else subfolders(place)
    else:
        if data is None or place.suffix.lower() not in ENDINGS or not place.is_file():
            raise ValueError(
                f"groups {groups} is a column, which takes a CSV or Parquet file of inliers: name one with --data, or"
                " ask for groups folders"
            )
        names, has_splits = texts(place, groups), False
    check_named(names, groups, str(place))
    if disjoint and not has_splits:
        held_out = np.arange(len(names)) % 5 == 4
        names = [name for name, apart in zip(names, held_out, strict=True) if apart == (split == "test")]
    return names


def subfolders(place: Path, root: Path | None = None, files: Sequence[str] | None = None) -> list[str]:
    """Return the subfolder of each image of a folder.

    Args:
        place: the folder, for the message.
        root: folder below which the subfolders lie; None for `place`.
        files: paths of the images; None for all below `root`, in order.

    Returns:
        N names of subfolders.

    Raises:
        ValueError: if an image lies in no subfolder.
    """
    root = place if root is None else root
    found = walk(str(root), IMAGE_ENDINGS) if files is None else files
    below = [Path(file).relative_to(root).parts for file in found]
    if loose := [parts[0] for parts in below if len(parts) == 1]:
        raise ValueError(f"{place}: {loose[0]} lies in no subfolder, and groups folders takes one for each group")
    return [parts[0] for parts in below]


def check_named(names: Sequence[str], groups: str, where: str) -> None:
    """Refuse inliers that have no group.

    Args:
        names: group of each inlier.
        groups: what names the groups.
        where: name of the data in the message.

    Raises:
        ValueError: if a name is missing; the message gives the first row without one.
    """
    if UNKNOWN in names:
        row = list(names).index(UNKNOWN)
        raise ValueError(
            f"{where}: column {groups!r} is empty in row {row} (of {list(names).count(UNKNOWN):,} such rows): each"
            " inlier needs a group"
        )
