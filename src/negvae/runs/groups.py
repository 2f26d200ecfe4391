"""What names the group of an inlier or of a scored row: the folder above its file, or a column of its table."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from negvae.data import Split, is_path
from negvae.data.batches import Batch
from negvae.data.formats import IMAGE_ENDINGS, Folder
from negvae.data.formats.folder import walk
from negvae.data.load import reader_of
from negvae.data.tables import ENDINGS, GroupColumn, check_columns, column_names, texts
from negvae.files import home
from negvae.scoring.groups import FOLDERS, UNKNOWN, group_of


@dataclass
class Label:
    """A function that names the groups of rows that are scored.

    Attributes:
        known: names of the calibrated groups.
        column: column of CSV and Parquet files that names the groups; None if the folders above files do.
        named: whether a file had the column.
        looked: whether `require_column` has found it.
        unknown: number of rows by each name, of up to 1,000, that is no calibrated group.
        outside: number of rows whose file lies in no folder that is named like a calibrated group.
    """

    known: Collection[str]
    column: GroupColumn | None = None
    named: bool = False
    looked: bool = False
    unknown: dict[str, int] = dataclasses.field(default_factory=dict)
    outside: int = 0

    def __call__(self, paths: Sequence[str], indices: Sequence[int | None], *, count: bool = False) -> list[str]:
        """Return the group of each row; `UNKNOWN` if it was not calibrated or is not named.

        Args:
            paths: file of each row.
            indices: index of each row in its file.
            count: whether to count the rows of unknown group, which is to be done for each row once.

        Returns:
            The groups.

        Raises:
            ValueError: if a CSV or Parquet file has no such column, or no such row.
        """
        if self.column is None:
            found = [group_of(path, self.known) for path in paths]
            self.outside += found.count(UNKNOWN) if count else 0
            return found
        names = self.column(paths, indices)
        self.named = True
        for name in names if count else ():
            if name not in self.known and (name in self.unknown or len(self.unknown) < 1_000):
                self.unknown[name] = self.unknown.get(name, 0) + 1
        return [name if name in self.known else UNKNOWN for name in names]

    def require_column(self, paths: Iterable[str]) -> None:
        """Refuse a column that the first table lacks: its name may be mistaken. In later tables, its lack is an error.

        Args:
            paths: files in the order in which they are scored.

        Raises:
            ValueError: if the first table that can be read has no such column.
        """
        for path in paths:
            if self.column is None or self.looked:
                return
            if path.lower().endswith(ENDINGS):
                try:
                    column_names(path)
                except (ValueError, OSError):  # its rows will be errors
                    continue
                check_columns(path, [self.column.name])
                self.looked = True

    def describe_unknown(self) -> str:
        """Describe in one line the rows of unknown group; "" if there are none.

        >>> Label(("1", "2"), unknown={"1.0": 3, "": 1}).describe_unknown()
        "4 rows have a group that was not calibrated ('1.0', ''): they get the largest p-value over all groups"
        """
        if self.outside:
            lie, get = ("row lies", "it gets") if self.outside == 1 else ("rows lie", "they get")
            return (
                f"{self.outside:,} {lie} in no folder that is named like a calibrated group ({_some(self.known)}):"
                f" {get} the largest p-value over all groups"
            )
        if not self.unknown:
            return ""
        names = _some(self.unknown)
        count = sum(self.unknown.values())
        have, get = ("row has", "it gets") if count == 1 else ("rows have", "they get")
        return f"{count:,} {have} a group that was not calibrated ({names}): {get} the largest p-value over all groups"


def _some(names: Collection[str]) -> str:
    """Return up to five of the names for a message, with dots if there are more."""
    return ", ".join(map(repr, list(names)[:5])) + (", ..." if len(names) > 5 else "")


def labeling(groups: str, known: Collection[str]) -> Label:
    """Return the function that names the groups of rows that are scored.

    Args:
        groups: "folders", or the name of a column of CSV and Parquet files.
        known: names of the calibrated groups.

    Returns:
        The function.
    """
    return Label(known, None if groups == FOLDERS else GroupColumn(groups))


def labeled(batch: Batch, label: Label | None, *, strict: bool = False) -> Batch:
    """Return a batch in which rows of a file that names no groups are errors: a table without the column, or changed.

    Args:
        batch: rows as they were read.
        label: function that names the groups; None if no group is wanted.
        strict: whether to refuse a column that no file had so far: its name may be mistaken.

    Returns:
        The same rows, of which `label` can name the group of every one without an error.

    Raises:
        ValueError: if no file had the column so far, and `strict`.
    """
    if label is None:
        return batch
    errors = list(batch.errors)
    lasts = {batch.paths[row]: int(row) for row in batch.good()}  # a table that became shorter lacks the last rows
    for path, row in lasts.items():
        try:
            label([path], [batch.indices[row]])
        except (ValueError, OSError) as error:
            if strict and not label.named:
                raise
            text = getattr(error, "strerror", None) or str(error)
            what = text.removeprefix(path).removeprefix(":").strip()
            errors = [old or (what if each == path else "") for old, each in zip(errors, batch.paths, strict=True)]
    return dataclasses.replace(batch, errors=errors)


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
        if data is None or not is_path(data) or not place.is_dir():
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


def groups_of_files(data: str, groups: str, files: Sequence[str], split: Split = "test") -> list[str]:
    """Return the group of each image file of a folder, as `inlier_groups` names it.

    Args:
        data: path of a folder with a subfolder for each group.
        groups: what names the groups, which can only be "folders" here.
        files: some of the files below the folder.
        split: split that the files are of, if the folder has such parts.

    Returns:
        N groups.

    Raises:
        ValueError: if a column is asked for, there are no files, or a file lies in no subfolder.
    """
    if groups != FOLDERS:
        raise ValueError(f"groups {groups} is a column, and {data} holds images: ask for groups folders")
    if not files:
        raise ValueError(f"groups folders takes a folder of images with a subfolder for each group: {data} is none")
    place = home(data)
    reader, _ = reader_of(place, split)
    return subfolders(place, reader.path if isinstance(reader, Folder) else None, files)


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
