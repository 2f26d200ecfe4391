"""Resolve a run's configuration to what training needs: fields left open, inliers, negatives, device and facts."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Collection
from dataclasses import dataclass, field, replace
from functools import partial

import torch
from torch import Tensor

from negvae.config import DEFAULT_PRESET, RunConfig
from negvae.data import DATASETS, is_path
from negvae.data.rows import describe_drowned
from negvae.device import resolve_device, resolve_precision
from negvae.messages import Log, counted, silent
from negvae.model import build_vae
from negvae.negatives import NegativeSource, auxiliary_names, build_source, refuse_overlap
from negvae.parts import SOURCES
from negvae.registry import choose
from negvae.runs.folders import load_fitted
from negvae.runs.sets import Inliers, load_as_stored, load_inliers
from negvae.scoring.calibration import TARGET_FPR, least_held_out
from negvae.scoring.certificates import certified_rank
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
        auxiliary: the sets that the source of negatives draws on, as its notation names them, on the device.
    """

    config: RunConfig
    device: torch.device
    inliers: Inliers
    source: NegativeSource | None
    facts: dict[str, dict[str, str]] = field(default_factory=dict)
    auxiliary: dict[str, Tensor] = field(default_factory=dict)


def _names_of_negatives() -> list[str]:
    """Return what can be written for negatives, each once; auxiliary and zoomed need a data set's name or path."""
    sources = [each.notation if each.argument == "data set" else each.name for each in SOURCES.entries()]
    return list(dict.fromkeys([*sources, *DATASETS]))


def resolve(config: RunConfig, log: Log = silent, left_open: Collection[str] = ()) -> ResolvedRun:
    """Load the sets that `config` names, hold out its share of the inliers, and build its source of negatives.

    Args:
        config: configuration of the run.
        log: called with each line that the user should see.
        left_open: names of the fields that are open; see `fields_left_open` and
            `negvae.runs.division.rows_to_hold_out`.

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
        if name in auxiliary:  # several sources may draw on one set
            return auxiliary[name]
        if config.images is not None:
            fitted = load_fitted(name, "train", config.images, max_broken=config.max_broken, log=log)
        else:
            fitted = load_as_stored(name, "train", shape=inliers.shape, max_broken=config.max_broken, log=log)
        log(f"negatives: {fitted.description}")
        tiled = inliers.owners
        tiles = None if tiled is None else ([tiled.training, tiled.held_out], fitted.owners)
        refuse_overlap([inliers.training, inliers.held_out], fitted.inputs, config.data, name, tiles)
        data[f"negatives {name}"], hashes[f"negatives {name}"] = fitted.description, fitted.sha256
        return auxiliary.setdefault(name, fitted.inputs.to(device))

    auxiliary: dict[str, Tensor] = {}
    source = build_source(config.negatives, load_auxiliary)
    count, columns = len(inliers.training), inliers.shape[0]
    photos = inliers.owners is None and partial(come_mirrored, inliers.training)
    config = fill_in(config, count, left_open, log, columns=columns, photos=photos)
    facts = {"data": data, "data_sha256": hashes, **encoder}
    return ResolvedRun(config, device, inliers, source, facts, auxiliary)


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
            f"transformations: none, since {count} are more than {MOST_OF_ONE_KIND:,}, and are tiles or do not look"
            " like their mirror images: ask for turns if all are of one kind"
        )
        return "none"
    log(
        f"transformations: quarter turns, for {count}{' that look like their mirror images' if many else ''};"
        " without them (none) training is quicker, and fewer outliers that resemble the inliers are found"
    )
    return "turns"


def steps_of_epoch(training: int, batch_size: int) -> int:
    """Return the number of training steps in one pass over a number of images.

    >>> steps_of_epoch(1000, batch_size=128)
    7
    """
    return max(training // max(min(batch_size, training), 1), 1)
