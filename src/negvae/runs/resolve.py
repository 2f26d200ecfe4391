"""Resolve a run's configuration to plain data: images, held-out part, negatives, device and facts.

Every command that needs a run's images gets them here, so that training, calibration, evaluation and report agree on
which inliers were trained on.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from negvae.config import DEFAULT_PRESET, RunConfig
from negvae.data import DATASETS, ImageSet, Split, is_path, load
from negvae.data.catalog import Shape
from negvae.data.folders import look_at
from negvae.data.formats import DataError
from negvae.data.formats.folder import LeftOut
from negvae.data.load import image_files
from negvae.data.rows import describe_drowned
from negvae.decoding import Decoding
from negvae.device import resolve_device, resolve_precision
from negvae.messages import counted
from negvae.model import build_vae
from negvae.negatives import NegativeSource, auxiliary_names, build_source, refuse_overlap
from negvae.parts import SOURCES
from negvae.registry import choose
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
from negvae.scoring.calibration import TARGET_FPR, least_held_out
from negvae.scoring.certificates import certified_rank
from negvae.scoring.groups import describe_absent
from negvae.scoring.tiles import Owners
from negvae.scoring.transformations import MOST_OF_ONE_KIND
from negvae.training.symmetry import come_mirrored

LEAST_STEPS = 1000
"""Number of training steps on images below which most models are undertrained."""
LARGE, LARGE_BATCH, LARGE_STEPS = 64 * 64, 16, 500
"""If photos are decoded to images or tiles of more pixels than the first, batches have the second's size and there are
about so many steps: each has as many places to learn from as many small images, and takes as long."""
FEW_STEPS = 100
"""Number of training steps below which a run gets a warning."""
ROWS_A_COLUMN = 10
"""Number of training rows per column below which the network is linear."""
ROW_STEPS = 500
"""Number of training steps on rows of features, where the default decision score depends on none of them."""
LEFT_OPEN = ("batch_size", "epochs", "network", "calibration", "transformations")
"""Names of the fields that `resolve` can set: `calibration` for rows of features, the others by `fill_in`."""
FEWEST_TO_TURN = 300
"""Number of training images below which quarter turns get no priors of their own: too few are unseen to measure what
turns are worth. Above `MOST_OF_ONE_KIND` they get some if the images come mirrored, as photos do: there the other
scores leave the most to gain, and elsewhere the time would grow most where the gain is least."""
ROWS_TO_SCALE = 400
"""Number of rows of features that is enough to measure scales on."""
Log = Callable[[str], None]


def silent(text: str) -> None:
    """Ignore a line; the log function that discards everything."""


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


@dataclass(frozen=True)
class ResolvedRun:
    """Everything that training needs.

    Attributes:
        config: configuration, with every open field filled in.
        device: device to train on.
        inliers: inliers to train on and to hold out.
        source: source of negatives, with its images on the device; None for the baseline VAE.
        facts: entries for the run's folder: "data", a line on each set by its role, "data_sha256", and "encoder" if
            there is one.
    """

    config: RunConfig
    device: torch.device
    inliers: Inliers
    source: NegativeSource | None
    facts: dict[str, dict[str, str]] = field(default_factory=dict)


def _names_of_negatives() -> list[str]:
    """Return what can be written for negatives, each once; auxiliary and zoomed need a data set's name or path."""
    sources = [each.notation if each.argument == "data set" else each.name for each in SOURCES.entries()]
    return list(dict.fromkeys([*sources, *DATASETS]))


def resolve(config: RunConfig, log: Log = silent, left_open: Collection[str] = ()) -> ResolvedRun:
    """Load the sets that `config` names, hold out its share of the inliers, and build its source of negatives.

    Args:
        config: configuration of the run.
        log: called with each line that the user should see.
        left_open: names of the fields that are open (see `fields_left_open` and `rows_to_hold_out`).

    Returns:
        Everything that training needs.

    Raises:
        FileNotFoundError: if the data do not exist.
        ValueError: if a device or precision is not available; if negatives are unknown, overlap the inliers or have
            another shape; or if the inliers are too few or do not suit the network.
    """
    device = resolve_device(config.device)
    resolve_precision(config.precision, device)  # refused before anything is loaded
    for name in auxiliary_names(config.negatives):
        if not is_path(name) and DATASETS.get(name) is None:
            choose("source of negatives (and no such path)", name, _names_of_negatives())
    inliers = load_inliers(config, log=log, left_open=left_open)
    config = replace(config, images=inliers.images)
    log(f"inliers: {inliers.description}")
    if config.takes_features and (text := describe_drowned(inliers.training.flatten(1).numpy(), inliers.columns)):
        log(f"warning: {text}")
    if config.takes_features and "calibration" in left_open and config.calibration:
        count = len(inliers.held_out)
        config = replace(config, calibration=count / (count + len(inliers.training)))
    _check_rule(config, inliers.held_out_images)
    build_vae(config, inliers.shape)  # refused before anything else is loaded or written
    data, hashes = {"inliers": inliers.description}, {"inliers": inliers.sha256}
    encoder = {} if inliers.encoder is None else {"encoder": inliers.encoder}

    def load_auxiliary(name: str) -> Tensor:
        if os.path.expanduser(name) == config.data:
            raise ValueError(f"negatives {name} are the inliers themselves: choose another data set")
        if config.images is not None:
            fitted = load_fitted(name, "train", config.images, max_broken=config.max_broken, log=log)
        else:
            fitted = load_as_stored(name, "train", shape=inliers.shape, max_broken=config.max_broken, log=log)
        log(f"negatives: {fitted.description}")
        tiled = inliers.owners
        tiles = None if tiled is None else ([tiled.training, tiled.held_out], fitted.owners)
        refuse_overlap([inliers.training, inliers.held_out], fitted.inputs, config.data, name, tiles)
        data[f"negatives {name}"], hashes[f"negatives {name}"] = fitted.description, fitted.sha256
        return fitted.inputs.to(device)

    source = build_source(config.negatives, load_auxiliary)
    count, columns = len(inliers.training), inliers.shape[0]
    photos = inliers.owners is None and partial(come_mirrored, inliers.training)
    config = fill_in(config, count, left_open, log, columns=columns, photos=photos)
    return ResolvedRun(config, device, inliers, source, {"data": data, "data_sha256": hashes, **encoder})


def _check_rule(config: RunConfig, held_out: int) -> None:
    """Refuse, before anything is trained, a rate of false alarms that the held-out inliers cannot show."""
    if config.confidence is not None:
        certified_rank(held_out, config.target_fpr or TARGET_FPR, config.confidence)
    elif config.target_fpr is not None and held_out < (least := least_held_out(config.target_fpr)):
        raise ValueError(
            f"target_fpr {config.target_fpr:g} needs at least {least} held-out inliers, there are {held_out}: ask for a"
            " higher rate, hold out more, or give more data"
        )


def fields_left_open(preset: str, given: Collection[str]) -> list[str]:
    """Return the names of the fields that the number of inliers decides.

    Args:
        preset: name of the run's preset; transformations are open where it is the default.
        given: names of the fields that the user has set.

    Returns:
        Names in `LEFT_OPEN`.

    >>> fields_left_open("general", ["epochs"])
    ['batch_size', 'network', 'calibration']
    """
    chosen = [*given, *(() if preset == DEFAULT_PRESET else ["transformations"])]
    return [name for name in LEFT_OPEN if name not in chosen]


def fill_in(
    config: RunConfig,
    training: int,
    left_open: Collection[str],
    log: Log = silent,
    *,
    columns: int = 0,
    photos: Callable[[], bool] | bool = False,
    warn: Log | None = None,
) -> RunConfig:
    """Fill in the fields that were left open, so that training on little data takes enough steps.

    Few images get smaller batches and more epochs than the preset has. Rows of features get `ROW_STEPS` steps, and a
    linear network if there are few rows for their number of columns. Quarter turns get priors of their own by the
    number of images and, of many, if they come mirrored (`FEWEST_TO_TURN`). What the user has set is kept, with a
    warning if it makes fewer than `FEW_STEPS` steps.

    Args:
        config: configuration of the run, with a preset's values for the open fields.
        training: number of images or rows that are trained on.
        left_open: names of the fields that are open (see `fields_left_open`).
        log: called with a line about what was filled in.
        columns: number of features in a row.
        photos: whether the training images come mirrored (`negvae.training.symmetry.come_mirrored`), or a function
            that is asked where it matters; tiles of images do not count as photos.
        warn: called with a line if the steps are too few; None to call `log`.

    Returns:
        The configuration with every field set.
    """
    rows, batch_size, epochs = config.takes_features, config.batch_size, config.epochs
    if rows and "network" in left_open and training < ROWS_A_COLUMN * columns:
        config = replace(config, network="linear")
    if not rows and "transformations" in left_open:
        config = replace(config, transformations=_turns(training, photos, log))
    large = config.images is not None and config.images.height * config.images.width > LARGE
    if "batch_size" in left_open:
        batch_size = LARGE_BATCH if large else min(batch_size, max(training // 8, 16))
    an_epoch = steps_of_epoch(training, batch_size)
    enough = math.ceil((ROW_STEPS if rows else LARGE_STEPS if large else LEAST_STEPS) / an_epoch)
    if "epochs" in left_open:
        epochs = max(round(LARGE_STEPS / an_epoch), 1) if large else enough if rows else max(epochs, enough)
    if large:
        log(
            f"{training:,} inputs, {counted(epochs, 'epoch')} with batches of {batch_size}: {an_epoch * epochs:,} steps"
        )
    elif not rows and (batch_size, epochs) != (config.batch_size, config.epochs):
        log(
            f"{training:,} images to train on are few: {counted(epochs, 'epoch')} with batches of"
            f" {min(batch_size, training)} make {an_epoch * epochs:,} steps"
        )
    if an_epoch * epochs < FEW_STEPS:
        are, them = ("step is", "it") if an_epoch * epochs == 1 else ("steps are", "them")
        remedy = f"{counted(enough, 'epoch')} make {them} {an_epoch * enough:,}"
        (warn or log)(f"{an_epoch * epochs} training {are} few: {remedy}")
    return replace(config, batch_size=batch_size, epochs=epochs)


def _turns(training: int, photos: Callable[[], bool] | bool, log: Log) -> str:
    """Return the transformations with priors for so many training images."""
    count = f"{training:,} training images"
    if training < FEWEST_TO_TURN:
        log(f"transformations: none, since {count} are fewer than {FEWEST_TO_TURN}")
        return "none"
    many = training > MOST_OF_ONE_KIND
    if many and not (photos() if callable(photos) else photos):
        log(
            f"transformations: none, since {count} are more than {MOST_OF_ONE_KIND:,} and no whole photos, whose"
            " mirror images would look like training images: ask for turns if all are of one kind"
        )
        return "none"
    log(
        f"transformations: turns, for {count}{' whose mirror images look like them' if many else ''}: none would be"
        " quicker, and find fewer outliers of a similar kind"
    )
    return "turns"


def steps_of_epoch(training: int, batch_size: int) -> int:
    """Return the number of training steps in one pass over a number of images.

    >>> steps_of_epoch(1000, batch_size=128)
    7
    """
    return max(training // max(min(batch_size, training), 1), 1)


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
        refuse_memory(config, recorded)
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
    except DataError:
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


def _groups_of_held_out(names: Sequence[str] | None, rows: Sequence[int]) -> tuple[tuple[str, ...] | None, str]:
    """Return the group of each held-out inlier, and a line about groups without one; None and "" without groups."""
    if names is None:
        return None, ""
    groups = tuple(names[row] for row in rows)
    return groups, describe_absent(names, groups)


def refuse_memory(config: RunConfig, recorded: Recorded) -> None:
    """Refuse to load inliers that the caller held in memory.

    Args:
        config: configuration of the run.
        recorded: inliers that the run's folder records.

    Raises:
        ValueError: if the inliers were in memory.
    """
    known = is_path(config.data) or DATASETS.get(config.data) is not None or config.data.startswith("hf:")
    if recorded.source == MEMORY or (recorded.sha256 is None and not known):
        raise ValueError(
            f"the inliers ({config.data}) were in memory and are not kept: name others of their kind with --data"
        )


def _rows(config: RunConfig, known: Recorded, columns: tuple[str, ...], left_open: Collection[str]) -> Inliers:
    """Load the inliers of a run on rows of features, from a file or from images and an encoder; see `load_inliers`."""
    from negvae.runs.embed import training_rows

    refuse_fitting(config)
    if known.source == MEMORY:
        refuse_memory(config, known)
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
        refuse_memory(config, recorded)
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
        refuse_memory(config, recorded)
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


def describe(images: ImageSet) -> str:
    """Describe a set in one line: size, split, origin, the start of its pixel hash, and its caveats."""
    caveats = "".join(f"; {note}" for note in images.notes)
    return (
        f"{images.name} {images.split}, {counted(len(images.images), 'image')} from {images.origin},"
        f" sha256 {images.sha256[:16]}{caveats}"
    )


def hold_out(images: Tensor, fraction: float, seed: int) -> tuple[Tensor, Tensor]:
    """Divide inliers into those to train on and those to calibrate on.

    Args:
        images: inliers, N on axis 0.
        fraction: share to hold out; above 0, at least one image is held out.
        seed: seed of the division.

    Returns:
        The inliers to train on, and those to calibrate on.

    Raises:
        ValueError: if fewer than 2 would be left to train on.

    >>> training, held_out = hold_out(torch.arange(10), 0.2, seed=0)
    >>> len(training), len(held_out)
    (8, 2)
    """
    return divide(images, held_out_rows(len(images), fraction, seed))


def held_out_rows(count: int, fraction: float, seed: int) -> Tensor:
    """Return the indices of the inliers that are held out, in order; see `hold_out`."""
    held_out = max(round(fraction * count), 1) if fraction else 0
    if fraction and count - held_out < 2:
        right = "give more of them, or hold out none" if count >= 2 else "give more of them"
        raise ValueError(
            f"holding out {fraction:g} of {count} inliers for calibration leaves fewer than 2 to train on: {right}"
        )
    randomness = torch.Generator().manual_seed(seed + 0xCA11B)
    return torch.randperm(count, generator=randomness, device="cpu")[:held_out].sort().values


def rows_to_hold_out(count: int) -> int:
    """Return how many of `count` rows of features to hold out: a fifth, or all but 400 up to half if that is more.

    >>> [rows_to_hold_out(count) for count in (100, 600, 5000)]
    [20, 200, 2500]
    """
    return count - max(count - count // 2, min(count - max(round(count / 5), 1), ROWS_TO_SCALE))


def divide(images: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
    """Return the images that are not among these rows, and those that are."""
    if not len(rows):
        return images, images[:0]
    kept = torch.ones(len(images), dtype=torch.bool, device="cpu")
    kept[rows] = False
    return images[kept], images[rows]
