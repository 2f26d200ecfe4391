"""The sets of a run: its inliers as training divided them, test sets, and other sets as its model takes them.

Every command that needs a run's images gets them here, so that training, calibration, evaluation and report agree on
which inliers were trained on.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from negvae.config import RunConfig
from negvae.data import DATASETS, ImageSet, Split, is_path, load
from negvae.data.catalog import Shape
from negvae.data.fetch import HUB
from negvae.data.folders import look_at
from negvae.data.formats import DataError
from negvae.data.formats.folder import LeftOut
from negvae.data.load import image_files
from negvae.data.stores import is_uri
from negvae.decoding import Decoding
from negvae.files import home
from negvae.messages import Log, counted, silent
from negvae.runs.division import divide, held_out_rows, rows_to_hold_out
from negvae.runs.folders import (
    FittedSet,
    FolderInliers,
    collector,
    exact,
    folder_inliers,
    load_fitted,
    refuse_fitting,
    with_images,
)
from negvae.runs.groups import groups_of_files, inlier_groups
from negvae.runs.recorded import MEMORY, WHOLE, Recorded, difference
from negvae.scoring.groups import describe_absent
from negvae.scoring.tiles import Owners


@dataclass(frozen=True)
class Inliers:
    """The inliers of a run.

    Attributes:
        training: inliers that are trained on, as stored (uint8, N x C x H x W).
        held_out: inliers that are kept for calibration, M x C x H x W; M may be 0.
        held_out_rows: indices of the held-out inliers in the set.
        description: line that describes the set that both parts come from.
        sha256: SHA-256 of the pixels of that set.
        encoder: facts about the encoder that turned images into rows (`Encoder.facts`); None if there is none.
        columns: names of the columns of rows of features; None if they have none.
        groups: group of each held-out inlier; None if the run has no groups.
        absent: line that names the groups of which no inlier is held out; "" if there are none.
        images: how the images of a folder were decoded; None if they were taken as they are.
        owners: image of each row of `training` and `held_out`, if images are tiled; else None.
        skipped: reason why a file of a folder was left out, by its path.
    """

    training: Tensor
    held_out: Tensor
    held_out_rows: tuple[int, ...]
    description: str
    sha256: str
    encoder: dict[str, Any] | None = None
    columns: tuple[str, ...] | None = None
    groups: tuple[str, ...] | None = None
    absent: str = ""
    images: Decoding | None = None
    owners: Owners | None = None
    skipped: dict[str, str] = field(default_factory=dict)

    @property
    def held_out_images(self) -> int:
        """The number of images that are held out, however many tiles they have."""
        return len(self.held_out) if self.owners is None else len(np.unique(self.owners.held_out))

    @property
    def shape(self) -> Shape:
        """Shape (C, H, W) of every image."""
        channels, height, width = self.training.shape[1:]
        return channels, height, width


def load_inliers(
    config: RunConfig,
    *,
    shape: Shape | None = None,
    fetch: bool = True,
    recorded: Recorded | None = None,
    columns: tuple[str, ...] = (),
    log: Log = silent,
    left_open: Collection[str] = (),
) -> Inliers:
    """Load the inliers of a run, divided as its training divided them.

    Args:
        config: configuration of the run.
        shape: shape (C, H, W) of uniform-noise.
        fetch: whether to look beyond this machine.
        recorded: inliers that the run's folder records; None for a run that is about to start.
        columns: names of the columns of a CSV or Parquet file that the run was trained on; empty for all but that of
            the groups.
        log: called with a line about every step of a fetch.
        left_open: names of the fields that the user did not set; with "calibration", the share of rows of features
            that is held out is that of `rows_to_hold_out`.

    Returns:
        The inliers to train on and the held-out ones.

    Raises:
        FileNotFoundError: if the data do not exist.
        ValueError: if the data were in memory or have changed, so that it cannot be determined which images were held
            out; or if too few would be left to train on.
    """
    known = recorded or Recorded()
    if config.takes_features:
        return _rows(config, known, columns, left_open)
    if recorded is not None:
        refuse_unavailable(config, recorded)
    skipped = collector()
    disjoint = known.source != WHOLE
    files = _folder_files(config, disjoint, skipped, log if recorded is None else silent)
    if recorded is None or config.images is not None:
        config = with_images(config, files, log)
        if config.images is not None and files is not None:
            return _photos(config, files, known, skipped)
    try:
        found = load(
            config.data, "train", fetch=fetch, limit=config.limit, shape=shape, disjoint_from_train=disjoint, log=log
        )
    except DataError as error:
        if where := difference(known, config.data):
            raise ValueError(f"{config.data} has changed since the run was trained ({where}): {error}") from None
        if recorded is not None or not files:
            raise
        # All headers are in order, and some pixels are not: those images are left out.
        return _photos(replace(config, images=exact(files, config.data)), files, known, skipped)
    if known.sha256 is not None and found.sha256 != known.sha256:
        where = difference(known, config.data)
        raise ValueError(
            f"{config.data} has changed since the run was trained ({where + '; ' if where else ''}its pixels have"
            f" sha256 {found.sha256[:16]}, not {known.sha256[:16]}): which of its images were held out cannot be told"
        )
    images = torch.from_numpy(found.images)
    if known.held_out is None:
        rows = held_out_rows(len(images), config.calibration, config.seed)
    else:
        rows = torch.tensor(known.held_out, dtype=torch.long, device="cpu")
    training, held_out = divide(images, rows)
    names = None
    if config.groups is not None:
        names = inlier_groups(config.data, config.groups, "train", disjoint=known.source != WHOLE)
    groups, absent = _groups_of_held_out(names, rows.tolist())
    return Inliers(
        training, held_out, tuple(rows.tolist()), describe(found), found.sha256, groups=groups, absent=absent
    )


def _folder_files(config: RunConfig, disjoint: bool, skipped: LeftOut, log: Log) -> list[str] | None:
    """List the image files to train on and to hold out; None if the data is no folder of them.

    A folder without a part for tests is divided, which the user did not ask for: a line says so.
    """
    files = image_files(config.data, "train", disjoint=disjoint, left_out=skipped)
    if files is None:
        return None
    every = image_files(config.data, "train") or files
    if kept := len(every) - len(files):
        log(f"{config.data}: {len(files):,} of {len(every):,} images; the other {kept:,} are kept for negvae evaluate")
    return files[: config.limit]


def _photos(config: RunConfig, files: list[str], known: Recorded, skipped: LeftOut) -> Inliers:
    """Load the inliers of a run whose data is a folder of photos; see `load_inliers`."""
    named = None if config.groups is None else groups_of_files(config.data, config.groups, files, "train")
    if known.held_out is None:
        rows = held_out_rows(len(files), config.calibration, config.seed).numpy()
    else:
        rows = np.array([row for row in known.held_out if row < len(files)], np.int64)
    found: FolderInliers = folder_inliers(config, files, rows, skipped)
    if known.sha256 is not None and found.sha256 != known.sha256:
        raise ValueError(
            f"{config.data} has changed since the run was trained (its pixels have sha256 {found.sha256[:16]}, not"
            f" {known.sha256[:16]}): which of its images were held out cannot be told"
        )
    owners = Owners(found.training_owners, found.held_out_owners) if found.decoding.tiled else None
    groups, absent = _groups_of_held_out(named, found.held_out_places.tolist())
    return Inliers(
        found.training, found.held_out, tuple(rows.tolist()), found.description, found.sha256,
        images=found.decoding, owners=owners, groups=groups, absent=absent, skipped=found.skipped,
    )  # fmt: skip


def _rows(config: RunConfig, known: Recorded, columns: tuple[str, ...], left_open: Collection[str]) -> Inliers:
    """Load the inliers of a run on rows of features, from a file or from images and an encoder; see `load_inliers`."""
    from negvae.runs.embed import training_rows

    refuse_fitting(config)
    if known.sha256 is not None or known.source == MEMORY:
        refuse_unavailable(config, known)
    found = training_rows(config, columns)
    if known.sha256 is not None and found.sha256 != known.sha256:
        what = config.data if config.embed is None else f"{config.data}, or the encoder {config.embed},"
        raise ValueError(f"{what} has changed since the run was trained")
    fraction = config.calibration
    if "calibration" in left_open and fraction:
        fraction = rows_to_hold_out(len(found.rows)) / len(found.rows)
    numbers = held_out_rows(len(found.rows), fraction, config.seed)
    if known.held_out is not None:
        numbers = torch.tensor(known.held_out, dtype=torch.long, device="cpu")
    training, held_out = divide(found.rows, numbers)
    encoder = found.encoder
    facts = None if encoder is None else encoder.facts()
    groups, absent = _groups_of_held_out(found.groups, numbers.tolist())
    return Inliers(
        training, held_out, tuple(numbers.tolist()), found.description, found.sha256, facts, found.columns, groups,
        absent, skipped=found.skipped,
    )  # fmt: skip


def _groups_of_held_out(names: Sequence[str] | None, rows: Sequence[int]) -> tuple[tuple[str, ...] | None, str]:
    """Return the group of each held-out inlier, and a line about groups without one; None and "" without groups."""
    if names is None:
        return None, ""
    groups = tuple(names[row] for row in rows)
    return groups, describe_absent(names, groups)


def load_test_set(
    config: RunConfig,
    *,
    shape: Shape | None = None,
    limit: int | None = None,
    recorded: Recorded | None = None,
    log: Log = silent,
) -> FittedSet:
    """Load the test split of a run's data; of data without splits, images that were neither trained on nor held out.

    Args:
        config: configuration of the run.
        shape: shape (C, H, W) of uniform-noise.
        limit: maximum number of images; the first ones are kept. None for all.
        recorded: inliers that the run's folder records; None if there is no folder.
        log: called with a line about every step of a fetch.

    Returns:
        The test images.

    Raises:
        FileNotFoundError: if the data do not exist.
        ValueError: if it cannot be determined which images the run was not trained on.
    """
    if recorded is not None:
        refuse_unavailable(config, recorded)
    found = load_as_stored(
        config.data, "test", shape=shape, limit=limit, disjoint=True, max_broken=config.max_broken, log=log
    )
    if recorded is None or not (is_path(config.data) or found.stand_in):
        return found
    if recorded.sha256 is None:
        log(f"caution: the run does not say what it was trained with; {config.data} may have changed since")
        return found
    train = load(config.data, "train", limit=config.limit, shape=shape, disjoint_from_train=True, log=log)
    if train.sha256 != recorded.sha256:
        changed = "has changed since the run was trained, or all of it was trained on"
        raise ValueError(
            f"{config.data} {changed}: which of its images are new to the model cannot be told; name inliers that it"
            " was not trained on with --data"
        )
    return found


def load_test_photos(
    config: RunConfig, *, limit: int | None = None, recorded: Recorded | None = None, log: Log = silent
) -> FittedSet:
    """Load the test part of a run's folder of photos as its model takes them; see `load_test_set`.

    Args:
        config: configuration of the run, with a description of how images are decoded.
        limit: maximum number of images; None for all.
        recorded: inliers that the run's folder records; None if there is no folder.
        log: called with a line about every step of a fetch.

    Returns:
        The test images.

    Raises:
        FileNotFoundError: if the data do not exist.
        ValueError: if it cannot be determined which images the run was not trained on.
    """
    assert config.images is not None
    if recorded is not None:
        refuse_unavailable(config, recorded)
        if recorded.source == WHOLE:
            raise ValueError(f"all of {config.data} was trained on: name other inliers with --data")
        load_inliers(config, recorded=recorded)  # refuses a folder that has changed
    return load_fitted(
        config.data, "test", config.images, limit=limit, disjoint=True, max_broken=config.max_broken, log=log
    )


def load_as_stored(
    name: str,
    split: Split,
    *,
    shape: Shape | None = None,
    limit: int | None = None,
    disjoint: bool = False,
    max_broken: float = 0.1,
    log: Log | None = None,
) -> FittedSet:
    """Load any set by name or path for a run whose images are taken as they are; broken files of a folder are left out.

    Args:
        name: name or path of the set.
        split: "train" or "test".
        shape: shape (C, H, W) of uniform-noise.
        limit: maximum number of images; None for all.
        disjoint: whether a set without splits is divided into images for training and for testing.
        max_broken: largest share of a folder's images that may be broken.
        log: called with a line about every step of a fetch.

    Returns:
        The set.

    Raises:
        FileNotFoundError: if there is no such set.
        ValueError: if it cannot be read, its images differ in size, or too many files are broken.
    """
    try:
        return _as_stored(load(name, split, limit=limit, shape=shape, disjoint_from_train=disjoint, log=log))
    except DataError:
        files = image_files(name, split, limit=limit, disjoint=disjoint)
        if not files:
            raise
        look = look_at([(file, file) for file in files], name)
        if not look.uniform or look.turned or look.bits != 8:  # what was refused is not a broken file
            raise
        return load_fitted(
            name, split, exact(files, name), limit=limit, disjoint=disjoint, max_broken=max_broken, log=log
        )


def _as_stored(images: ImageSet) -> FittedSet:
    """Return a set whose images are a model's inputs."""
    found = torch.from_numpy(images.images)
    stands_in = images.state == "stand-in"
    return FittedSet(found, np.arange(len(found)), describe(images), images.sha256, stand_in=stands_in)


def refuse_unavailable(config: RunConfig, recorded: Recorded) -> None:
    """Refuse to load inliers that the caller held in memory, or whose path leads nowhere from here.

    Args:
        config: configuration of the run.
        recorded: inliers that the run's folder records.

    Raises:
        FileNotFoundError: if the path of the training data is not found.
        ValueError: if the inliers were in memory.
    """
    remote = config.data.startswith(HUB) or is_uri(config.data)
    known = remote or is_path(config.data) or DATASETS.get(config.data) is not None
    if recorded.source == MEMORY or (recorded.sha256 is None and not known):
        raise ValueError(
            f"the inliers ({config.data}) were in memory and are not kept: name others of their kind with --data"
        )
    if not remote and DATASETS.get(config.data) is None and not home(config.data).exists():
        raise FileNotFoundError(
            f"{config.data}: the run was trained on this data, and there is no such file or folder, looked for from"
            f" {os.getcwd()}: run the command where the run was trained, or name inliers with --data"
        )


def describe(images: ImageSet) -> str:
    """Describe a set in one line: size, split, origin, the start of its pixel hash, and its caveats."""
    caveats = "".join(f"; {note}" for note in images.notes)
    return (
        f"{images.name} {images.split}, {counted(len(images.images), 'image')} from {images.origin},"
        f" sha256 {images.sha256[:16]}{caveats}"
    )
