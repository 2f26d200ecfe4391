"""From a run's description to plain data: images, held-out part, negatives, device and facts.

Every command that needs a run's images asks here, so that training, calibration, evaluation and report agree on which
inliers were trained on.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from negvae.config import RunConfig
from negvae.data import DATASETS, ImageSet, is_path, load
from negvae.data.catalog import Shape
from negvae.device import resolve_device, resolve_precision
from negvae.negatives import NegativeSource, auxiliary_names, build_source, refuse_overlap
from negvae.parts import SOURCES
from negvae.registry import choose

Log = Callable[[str], None]


def silent(text: str) -> None:
    """A log that nobody reads."""


@dataclass(frozen=True)
class Inliers:
    """The inliers of a run.

    Attributes:
        training: those that are trained on, as they are stored (uint8, N x C x H x W).
        held_out: those that are kept to calibrate on, M x C x H x W; M may be 0.
        description: one line on the set that both come from.
        sha256: of that set's pixels.
        encoder: path, sha256 and images of the encoder that made rows of them; None where there is none.
    """

    training: Tensor
    held_out: Tensor
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
        config: the description.
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


def resolve(config: RunConfig, log: Log = silent) -> ResolvedRun:
    """Load what `config` names, hold out its share of the inliers, and make its source of negatives.

    Args:
        config: the run.
        log: is called with one line on each set that is loaded.

    Raises:
        FileNotFoundError: data that is not there.
        ValueError: a device or precision that is not available; negatives that are unknown, overlap the inliers or
            have another shape; too few inliers.
    """
    device = resolve_device(config.device)
    resolve_precision(config.precision, device)  # refused before anything is loaded
    for name in auxiliary_names(config.negatives):
        if not is_path(name) and DATASETS.get(name) is None:
            choose("source of negatives (and no such path)", name, [*SOURCES, *DATASETS])
    inliers = load_inliers(config, log=log)
    log(f"inliers: {inliers.description}")
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
    return ResolvedRun(config, device, inliers, source, {"data": data, "data_sha256": hashes, **encoder})


def load_inliers(
    config: RunConfig,
    *,
    shape: Shape | None = None,
    fetch: bool = True,
    sha256: str | None = None,
    log: Log = silent,
) -> Inliers:
    """The inliers of a run, divided as its training divides them.

    Args:
        config: the run.
        shape: C, H, W of uniform-noise.
        fetch: whether to look beyond this machine.
        sha256: of the pixels that the run was trained with; None where its folder does not say.
        log: is called with a line about every step of a fetch.

    Raises:
        FileNotFoundError: the data is not there.
        ValueError: the data is not what the run was trained with, so that nobody can tell which images were held out;
            or too few would be left to train on.
    """
    if config.takes_features:
        return _rows(config, sha256)
    found = load(
        config.data, "train", fetch=fetch, limit=config.limit, shape=shape, disjoint_from_train=True, log=log
    )  # fmt: skip
    if sha256 is not None and found.sha256 != sha256:
        raise ValueError(
            f"{config.data} has changed since the run was trained (its pixels have sha256 {found.sha256[:16]}, not"
            f" {sha256[:16]}): which of its images were held out cannot be told"
        )
    training, held_out = hold_out(torch.from_numpy(found.images), config.calibration, config.seed)
    return Inliers(training, held_out, describe(found), found.sha256)


def _rows(config: RunConfig, sha256: str | None) -> Inliers:
    """`load_inliers` for rows of features, from a file or from images by an encoder."""
    from negvae.runs.embed import training_rows

    rows, description, found, encoder = training_rows(config)
    if sha256 is not None and found != sha256:
        raise ValueError(f"{config.data}, or the encoder, has changed since the run was trained")
    training, held_out = hold_out(rows, config.calibration, config.seed)
    facts = None if encoder is None else {"sha256": encoder.sha256, "describes": encoder.describe()}
    return Inliers(training, held_out, description, found, facts)


def load_test_set(
    config: RunConfig, *, shape: Shape | None = None, limit: int | None = None, log: Log = silent
) -> ImageSet:
    """The test split of a run's data; of data without splits, the images that no run trains on or holds out.

    Raises:
        FileNotFoundError: the data is not there.
    """
    return load(config.data, "test", limit=limit, shape=shape, disjoint_from_train=True, log=log)


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
    if not fraction:
        return images, images[:0]
    count = max(round(fraction * len(images)), 1)
    if len(images) - count < 2:
        raise ValueError(
            f"holding out {fraction:g} of {len(images)} inliers for calibration leaves fewer than 2 to train on"
        )
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed + 0xCA11B))
    return images[order[count:].sort().values], images[order[:count].sort().values]
