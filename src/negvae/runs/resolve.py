"""From a run's description to plain data: images, held-out part, negatives, device and facts.

Every command that needs a run's images asks here, so that training, calibration, evaluation and report agree on which
inliers were trained on.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from negvae.config import RunConfig
from negvae.data import DATASETS, ImageSet, is_path, load
from negvae.data.catalog import Shape
from negvae.device import resolve_device, resolve_precision
from negvae.model import build_vae
from negvae.negatives import NegativeSource, auxiliary_names, build_source, refuse_overlap
from negvae.parts import SOURCES
from negvae.registry import choose
from negvae.runs.recorded import MEMORY, WHOLE, Recorded, difference

LEAST_STEPS = 1000
"""Fewer training steps than that leave most models unfinished."""
FEW_STEPS = 100
"""Fewer than that are worth a warning where someone has asked for them."""
ROWS_A_COLUMN = 10
"""With fewer training rows for each column the network is linear."""
ROW_STEPS = 500
"""Training steps on rows of features: the score that decides takes none of them."""
LEFT_OPEN = ("batch_size", "epochs", "network")
"""The fields that `fill_in` fills in."""
Log = Callable[[str], None]


def silent(text: str) -> None:
    """A log that nobody reads."""


@dataclass(frozen=True)
class Inliers:
    """The inliers of a run.

    Attributes:
        training: those that are trained on, as they are stored (uint8, N x C x H x W).
        held_out: those that are kept to calibrate on, M x C x H x W; M may be 0.
        held_out_rows: which images of the set they are.
        description: one line on the set that both come from.
        sha256: of that set's pixels.
        encoder: path, sha256 and images of the encoder that made rows of them; None where there is none.
    """

    training: Tensor
    held_out: Tensor
    held_out_rows: tuple[int, ...]
    description: str
    sha256: str
    encoder: dict[str, str] | None = None

    @property
    def shape(self) -> Shape:
        """C, H, W of every image."""
        channels, height, width = self.training.shape[1:]
        return channels, height, width


@dataclass(frozen=True)
class ResolvedRun:
    """All that training takes.

    Attributes:
        config: the description, with what was left open filled in.
        device: to train on.
        inliers: see `Inliers`.
        source: of negatives, its images on the device; None for the baseline VAE.
        facts: what is written into the run's folder: "data", one line on each set by its role, and "data_sha256".
    """

    config: RunConfig
    device: torch.device
    inliers: Inliers
    source: NegativeSource | None
    facts: dict[str, dict[str, str]] = field(default_factory=dict)


def resolve(config: RunConfig, log: Log = silent, left_open: Collection[str] = ()) -> ResolvedRun:
    """Load what `config` names, hold out its share of the inliers, and make its source of negatives.

    Args:
        config: the run.
        log: is called with one line on each set that is loaded.
        left_open: see `fill_in`.

    Raises:
        FileNotFoundError: data that is not there.
        ValueError: a device or precision that is not available; negatives that are unknown, overlap the inliers or
            have another shape; too few inliers, or a network that is not made for such images.
    """
    device = resolve_device(config.device)
    resolve_precision(config.precision, device)  # refused before anything is loaded
    for name in auxiliary_names(config.negatives):
        if not is_path(name) and DATASETS.get(name) is None:
            choose("source of negatives (and no such path)", name, [*SOURCES, *DATASETS])
    inliers = load_inliers(config, log=log)
    log(f"inliers: {inliers.description}")
    build_vae(config, inliers.shape)  # refused before anything else is loaded or written
    data, hashes = {"inliers": inliers.description}, {"inliers": inliers.sha256}
    encoder = {} if inliers.encoder is None else {"encoder": inliers.encoder}
    everything = torch.cat([inliers.training, inliers.held_out])

    def load_auxiliary(name: str) -> Tensor:
        if name == config.data:
            raise ValueError(f"negatives {name} are the inliers themselves: choose another data set")
        auxiliary = load(name, "train", shape=inliers.shape, log=log)
        log(f"negatives: {describe(auxiliary)}")
        negatives = torch.from_numpy(auxiliary.images)
        refuse_overlap(everything, negatives, config.data, name)
        data[f"negatives {name}"], hashes[f"negatives {name}"] = describe(auxiliary), auxiliary.sha256
        return negatives.to(device)

    source = build_source(config.negatives, load_auxiliary)
    config = fill_in(config, len(inliers.training), left_open, log, columns=inliers.shape[0])
    return ResolvedRun(config, device, inliers, source, {"data": data, "data_sha256": hashes, **encoder})


def fill_in(
    config: RunConfig,
    training: int,
    left_open: Collection[str],
    log: Log = silent,
    *,
    columns: int = 0,
    warn: Log | None = None,
) -> RunConfig:
    """A run with what was left open filled in, so that little data is trained on for enough steps.

    Few images get smaller batches and more epochs than the preset gives. Rows of features get `ROW_STEPS` steps,
    and a linear network where there are few of them for their columns. What a person has fixed stays, and is warned
    of where it makes fewer than `FEW_STEPS` steps.

    Args:
        config: the run, with a preset's values for what was left open.
        training: number of images or rows that are trained on.
        left_open: which of `LEFT_OPEN` nobody has asked for.
        log: is called with a line on what was filled in.
        columns: number of features in a row.
        warn: is called with a line on what was fixed and is too little; `log` if left out.
    """
    rows, batch_size, epochs = config.takes_features, config.batch_size, config.epochs
    if rows and "network" in left_open and training < ROWS_A_COLUMN * columns:
        config = replace(config, network="linear")
    if "batch_size" in left_open:
        batch_size = min(batch_size, max(training // 8, 16))
    an_epoch = steps_of_epoch(training, batch_size)
    enough = math.ceil((ROW_STEPS if rows else LEAST_STEPS) / an_epoch)
    if "epochs" in left_open:
        epochs = enough if rows else max(epochs, enough)
    if not rows and (batch_size, epochs) != (config.batch_size, config.epochs):
        log(
            f"{training:,} images to train on are few: {epochs:,} epochs with batches of"
            f" {min(batch_size, training)} make {an_epoch * epochs:,} steps"
        )
    if an_epoch * epochs < FEW_STEPS:
        (warn or log)(f"{an_epoch * epochs} training steps are few: {enough} epochs make them {an_epoch * enough:,}")
    return replace(config, batch_size=batch_size, epochs=epochs)


def steps_of_epoch(training: int, batch_size: int) -> int:
    """Training steps in one pass over so many images."""
    return max(training // max(min(batch_size, training), 1), 1)


def load_inliers(
    config: RunConfig,
    *,
    shape: Shape | None = None,
    fetch: bool = True,
    recorded: Recorded | None = None,
    log: Log = silent,
) -> Inliers:
    """The inliers of a run, divided as its training divided them.

    Args:
        config: the run.
        shape: C, H, W of uniform-noise.
        fetch: whether to look beyond this machine.
        recorded: what the run's folder remembers of them; None for a run that is about to start.
        log: is called with a line about every step of a fetch.

    Raises:
        FileNotFoundError: the data is not there.
        ValueError: the data was in memory, or is not what the run was given, so that nobody can tell which images
            were held out; or too few would be left to train on.
    """
    known = recorded or Recorded()
    if config.takes_features:
        return _rows(config, known)
    if recorded is not None:
        refuse_memory(config, recorded)
    found = load(
        config.data, "train", fetch=fetch, limit=config.limit, shape=shape,
        disjoint_from_train=known.source != WHOLE, log=log,
    )  # fmt: skip
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
    return Inliers(training, held_out, tuple(rows.tolist()), describe(found), found.sha256)


def refuse_memory(config: RunConfig, recorded: Recorded) -> None:
    """Refuse to look for inliers that were in memory.

    Raises:
        ValueError: they were.
    """
    known = is_path(config.data) or DATASETS.get(config.data) is not None or config.data.startswith("hf:")
    if recorded.source == MEMORY or (recorded.sha256 is None and not known):
        raise ValueError(
            f"the inliers ({config.data}) were in memory and are not kept: name others of their kind with --data"
        )


def _rows(config: RunConfig, known: Recorded) -> Inliers:
    """`load_inliers` for rows of features, from a file or from images by an encoder."""
    from negvae.runs.embed import training_rows

    rows, description, found, encoder = training_rows(config)
    if known.sha256 is not None and found != known.sha256:
        raise ValueError(f"{config.data}, or the encoder, has changed since the run was trained")
    numbers = held_out_rows(len(rows), config.calibration, config.seed)
    training, held_out = divide(rows, numbers)
    facts = None if encoder is None else {"sha256": encoder.sha256, "describes": encoder.describe()}
    return Inliers(training, held_out, tuple(numbers.tolist()), description, found, facts)


def load_test_set(
    config: RunConfig,
    *,
    shape: Shape | None = None,
    limit: int | None = None,
    recorded: Recorded | None = None,
    log: Log = silent,
) -> ImageSet:
    """The test split of a run's data; of data without splits, the images that the run did not train on or hold out.

    Args:
        config: the run.
        shape: C, H, W of uniform-noise.
        limit: the first so many images.
        recorded: what the run's folder remembers of its inliers; None where there is no folder.
        log: is called with a line about every step of a fetch.

    Raises:
        FileNotFoundError: the data is not there.
        ValueError: nobody can tell which images the run did not train on.
    """
    if recorded is not None:
        refuse_memory(config, recorded)
    found = load(config.data, "test", limit=limit, shape=shape, disjoint_from_train=True, log=log)
    if recorded is None or not (is_path(config.data) or found.state == "stand-in"):
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


def describe(images: ImageSet) -> str:
    """One line on a set: size, split, origin, the start of its pixel hash, and its caveats."""
    caveats = "".join(f"; {note}" for note in images.notes)
    return (
        f"{images.name} {images.split}, {len(images.images):,} images from {images.origin},"
        f" sha256 {images.sha256[:16]}{caveats}"
    )


def hold_out(images: Tensor, fraction: float, seed: int) -> tuple[Tensor, Tensor]:
    """Divide inliers into those to train on and those to calibrate on.

    Args:
        images: N of anything.
        fraction: to hold out; above 0 it takes one image at least.
        seed: the same seed gives the same division.

    Raises:
        ValueError: fewer than 2 would be left to train on.
    """
    return divide(images, held_out_rows(len(images), fraction, seed))


def held_out_rows(count: int, fraction: float, seed: int) -> Tensor:
    """The rows of so many inliers that are held out, in order; see `hold_out`."""
    held_out = max(round(fraction * count), 1) if fraction else 0
    if fraction and count - held_out < 2:
        raise ValueError(f"holding out {fraction:g} of {count} inliers for calibration leaves fewer than 2 to train on")
    randomness = torch.Generator().manual_seed(seed + 0xCA11B)
    return torch.randperm(count, generator=randomness, device="cpu")[:held_out].sort().values


def divide(images: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
    """The images that are not among these rows, and those that are."""
    if not len(rows):
        return images, images[:0]
    kept = torch.ones(len(images), dtype=torch.bool, device="cpu")
    kept[rows] = False
    return images[kept], images[rows]
