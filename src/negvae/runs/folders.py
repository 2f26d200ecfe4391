"""The inliers of a run whose data is a folder of photos, and other sets in the form that its model takes."""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from negvae.config import RunConfig
from negvae.data import Split, is_path, load
from negvae.data.catalog import lookup
from negvae.data.fetch import HUB
from negvae.data.fit import fit_photo, prepared
from negvae.data.folders import PhotoSet, choose_decoding, look_at, read_photos, refuse_broken
from negvae.data.formats.folder import LeftOut
from negvae.data.load import image_files
from negvae.data.stores import is_uri
from negvae.decoding import Decoding
from negvae.files import home, write_text
from negvae.messages import Log, counted
from negvae.model import build_vae

BROKEN = "broken.tsv"
NETWORKS_OF_ANY_SIZE = ("pyramid", "deep")
"""Networks that the size of the images is chosen for."""
_LISTED = 100_000


@dataclass(frozen=True)
class FolderInliers:
    """The inliers of a folder, divided by image.

    Attributes:
        decoding: how they were decoded.
        training: inputs to train on, uint8, T x C x h x w.
        held_out: inputs of the images that are held out, U x C x h x w.
        training_owners: number of the image of each training input (T), from 0.
        held_out_owners: number of the image of each held-out input (U), from 0.
        training_places: place of each image to train on among all images, broken ones counted, ascending.
        held_out_places: place of each held-out image among all images, broken ones counted, ascending.
        sha256: SHA-256 over the images of the folder.
        skipped: reason why a file was left out, by its path.
        description: line that describes the folder.
    """

    decoding: Decoding
    training: Tensor
    held_out: Tensor
    training_owners: NDArray[np.int64]
    held_out_owners: NDArray[np.int64]
    training_places: NDArray[np.int64]
    held_out_places: NDArray[np.int64]
    sha256: str
    skipped: dict[str, str] = field(default_factory=dict)
    description: str = ""


def with_images(config: RunConfig, files: list[str] | None, log: Log) -> RunConfig:
    """Return the configuration with a description of how its folder is decoded, chosen by a look at the files.

    Args:
        config: configuration of a run that is about to start.
        files: image files of its folder; None if the data is no folder of image files.
        log: called with the line that describes what was found and chosen.

    Returns:
        The configuration; unchanged if the images are taken as they are.

    Raises:
        FileNotFoundError: if a fit or a side is given and there is no such data.
        ValueError: if a fit or a side is given and the data is no folder, too many files are broken, or the network is
            not made for images of the size that they are fitted to.
    """
    if files is None or config.takes_features:
        refuse_fitting(config)
        return config
    if config.fit == "exact" and config.side is not None:
        raise ValueError(
            "side is the size that images are fitted to: with fit exact, which takes them as they are, leave it out"
        )
    if config.images is not None:
        return config
    sources = [(file, file) for file in files]
    look = look_at(sources, config.data)
    refuse_broken(look.broken, len(files), config.data, config.max_broken)
    fit = config.fit
    if fit is None and look.uniform and config.network not in NETWORKS_OF_ANY_SIZE:
        fit = "exact"
    decoding = choose_decoding(look, fit, config.side, sources)
    if decoding is not None:
        log(f"{config.data}: {look.describe(decoding)}")
        build_vae(config, decoding.shape)  # what it refuses is refused before the images are decoded
    return replace(config, images=decoding)


def refuse_fitting(config: RunConfig) -> None:
    """Refuse the fields that say how photos are fitted, for data that is no folder of photos.

    Args:
        config: configuration of a run on other data.

    Raises:
        FileNotFoundError: if one of the fields is set, and there is no such path.
        ValueError: if one of the fields is set.
    """
    if config.fit is not None or config.side is not None or config.images is not None:
        remote = config.data.startswith(HUB) or is_uri(config.data)
        if not remote and not is_path(config.data):
            lookup(config.data)  # says what is wrong with the name of no set
        elif not remote and not home(config.data).exists():
            raise FileNotFoundError(f"{config.data}: no such file or folder")
        raise ValueError(f"{config.data} is no folder of image files, which is what fit, side and images are about")


def left_out(number: int, what: str = "broken") -> str:
    """Say how many files are left out.

    >>> left_out(1), left_out(2, "more broken")
    ('1 broken file is left out', '2 more broken files are left out')
    """
    return f"{counted(number, f'{what} file')} {'is' if number == 1 else 'are'} left out"


def exact(files: list[str], where: object) -> Decoding:
    """Describe images of one size that are taken as they are, without the broken ones among them.

    Args:
        files: image files of a folder.
        where: name of the folder in messages.

    Returns:
        The description.

    Raises:
        ValueError: if the images differ in size.
    """
    look = look_at([(file, file) for file in files], where)
    width, height = look.sizes[0].tolist()
    if not look.uniform or look.bits != 8:
        raise ValueError(f"{where}: images differ in size or have more than 8 bits: name a fit")
    return Decoding(fit="exact", height=height, width=width, channels=look.channels)


def folder_inliers(
    config: RunConfig, files: list[str], rows: NDArray[np.int64], skipped: LeftOut | None = None
) -> FolderInliers:
    """Decode the inliers of a folder.

    Args:
        config: configuration with a description of how images are decoded.
        files: image files of the folder.
        rows: indices of the files that are held out.
        skipped: files of the folder that are no images.

    Returns:
        The inliers.

    Raises:
        ValueError: if too many files are broken.
    """
    assert config.images is not None
    held = np.zeros(len(files), bool)
    held[rows] = True
    order = [*np.flatnonzero(~held), *np.flatnonzero(held)]  # each part is then one stretch of a file, without a copy
    found = read_photos([files[row] for row in order], config.images, config.data, config.max_broken)
    part = len(files) - len(rows)
    cut = int(found.counts[:part].sum())
    owners, inputs = found.owners, torch.from_numpy(found.inputs)
    training, held_out = owners[:cut], owners[cut:]
    if len(np.unique(training)) < 2:
        raise ValueError(f"{config.data}: fewer than 2 images are left to train on")
    others = {} if skipped is None else {path: skipped.reasons.get(path, "not an image") for path in skipped.first}
    reasons = {**found.broken, **others}
    lost = f", {counted(len(reasons), 'file')} left out ({BROKEN})" if reasons else ""
    text = (
        f"{config.data}, {len(np.unique(owners)):,} photos{lost}: {config.images.describe()}, {len(inputs):,} inputs,"
        f" sha256 {found.sha256[:16]}"
    )
    return FolderInliers(
        config.images, inputs[:cut], inputs[cut:], training, held_out - (held_out[:1].sum() if len(held_out) else 0),
        np.flatnonzero(~held)[found.counts[:part] > 0], np.flatnonzero(held)[found.counts[part:] > 0], found.sha256,
        reasons, text,
    )  # fmt: skip


def write_skipped(directory: Path, skipped: dict[str, str]) -> None:
    """Write the files that were left out, with the reasons, to a table in a run's folder; nothing if there are none."""
    if skipped:
        lines = ["\t".join(re.sub(r"[\t\r\n]", " ", text) for text in pair) for pair in skipped.items()]
        write_text(directory / BROKEN, "\n".join(["file\treason", *lines, ""]).encode(errors="replace").decode())


def collector() -> LeftOut:
    """Return a collector that keeps the paths of the files that are no images."""
    return LeftOut(named=_LISTED)


@dataclass(frozen=True)
class FittedSet:
    """A set in the form that a model takes.

    Attributes:
        inputs: inputs of the model, uint8, T x C x h x w.
        owners: number of the image of each input (T), from 0.
        description: line that describes the set.
        sha256: SHA-256 of the images.
        files: path of each image, without the broken ones; empty if the set is no folder of image files.
        stand_in: whether these are other images in the place of those of the set's name.
    """

    inputs: Tensor
    owners: NDArray[np.int64]
    description: str
    sha256: str
    files: tuple[str, ...] = ()
    stand_in: bool = False


def load_fitted(
    name: str,
    split: Split,
    decoding: Decoding,
    *,
    limit: int | None = None,
    disjoint: bool = False,
    max_broken: float = 0.1,
    log: Log | None = None,
) -> FittedSet:
    """Load any set by name or path, decoded and fitted as a description says.

    Args:
        name: name or path of the set.
        split: "train" or "test".
        decoding: how images are decoded.
        limit: maximum number of images; None for all.
        disjoint: whether a folder without parts is divided into one for training and one for testing.
        max_broken: largest share of a folder's images that may be broken.
        log: called with a line about every step of a fetch.

    Returns:
        The set.

    Raises:
        FileNotFoundError: if there is no such set.
        ValueError: if it cannot be read, or its channels cannot be converted.
    """
    files = image_files(name, split, disjoint=disjoint, limit=limit)
    if files is not None:
        found: PhotoSet = read_photos(files, decoding, name, max_broken)
        text = f"{name} {split}, {len(found.counts) - len(found.broken):,} photos, sha256 {found.sha256[:16]}"
        text += f"; {len(found.broken):,} broken" if found.broken else ""
        whole = tuple(file for file, count in zip(files, found.counts, strict=True) if count)
        return FittedSet(torch.from_numpy(found.inputs), found.owners, text, found.sha256, whole)
    images = load(name, split, limit=limit, disjoint_from_train=disjoint, log=log)
    parts = [fit_photo(prepared(image, name, decoding), decoding)[0] for image in images.images]
    owners = np.repeat(np.arange(len(parts)), [len(part) for part in parts])
    text = f"{name} {images.split}, {counted(len(parts), 'image')} from {images.origin}, sha256 {images.sha256[:16]}"
    return FittedSet(torch.from_numpy(np.concatenate(parts)), owners, text, images.sha256)
