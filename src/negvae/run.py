"""One run from names to a folder: load the data, check the negatives, train, keep the result."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from negvae.artifact import CONFIG, WEIGHTS, read_config, save_artifact, write_config
from negvae.config import RunConfig
from negvae.data import ImageSet, is_path, load, names
from negvae.model import VAE
from negvae.negatives import SOURCES, auxiliary_names, build_source, refuse_overlap
from negvae.precision import resolve_device
from negvae.provenance import provenance
from negvae.text import choose
from negvae.training.checkpoint import FILE as CHECKPOINT
from negvae.training.loop import Reading, TrainingResult, train

Say = Callable[[str], None]


def describe(images: ImageSet) -> str:
    """One line on a set: size, split, origin, the start of its pixel hash, and its caveats."""
    caveats = "".join(f"; {note}" for note in images.notes)
    return (
        f"{images.name} {images.split}, {len(images.images):,} images from {images.origin},"
        f" sha256 {images.sha256[:16]}{caveats}"
    )


def run(
    config: RunConfig,
    directory: Path,
    *,
    resume: bool = False,
    budget: float | None = None,
    checkpoint_seconds: float = 60.0,
    watch: Callable[[Reading], None] | None = None,
    after_epoch: Callable[[VAE, int], dict[str, Any]] | None = None,
    say: Say = lambda text: None,
) -> TrainingResult:
    """Carry out the run that `config` describes and leave an artifact in `directory`.

    Args:
        config: the run; `data` and auxiliary negatives are loaded by name or path.
        directory: of the run, new or empty unless `resume`.
        resume: go on from the directory's checkpoint, or start where it has none.
        budget: see `negvae.training.loop.train`.
        checkpoint_seconds: see there.
        watch: see there.
        after_epoch: see there.
        say: told what is loaded, one line each.

    Returns:
        What the loop returned; the artifact holds the weights at that point.

    Raises:
        FileNotFoundError: data that is not there.
        ValueError: negatives that overlap the inliers or have another shape; a folder that holds another run.
    """
    _check_directory(config, directory, resume)
    for name in auxiliary_names(config.negatives):
        if not is_path(name):
            choose("source of negatives (and no such path)", name, [*SOURCES, *names()])
    inliers = load(config.data, "train", limit=config.limit, disjoint_from_train=True, say=say)
    say(f"inliers: {describe(inliers)}")
    images = torch.from_numpy(inliers.images)
    device = resolve_device(config.device)
    data = {"inliers": describe(inliers)}

    def load_auxiliary(name: str) -> Tensor:
        if name == config.data:
            raise ValueError(f"negatives {name} are the inliers themselves: choose another data set")
        auxiliary = load(name, "train", shape=inliers.shape, say=say)
        say(f"negatives: {describe(auxiliary)}")
        negatives = torch.from_numpy(auxiliary.images)
        refuse_overlap(images, negatives, config.data, name)
        data[f"negatives {name}"] = describe(auxiliary)
        return negatives.to(device)

    source = build_source(config.negatives, load_auxiliary)
    origin: dict[str, Any] = {**provenance(config), "data": data}
    if not (resume and (directory / CHECKPOINT).exists()):
        write_config(directory, config, inliers.shape, origin)
    result = train(
        config, images, source, directory=directory, resume=resume, budget=budget,
        checkpoint_seconds=checkpoint_seconds, watch=watch, after_epoch=after_epoch,
    )  # fmt: skip
    save_artifact(directory, config, result, origin)
    return result


def resumed_config(directory: Path, asked: dict[str, Any]) -> RunConfig:
    """The description of the run to go on with.

    Args:
        directory: of the run.
        asked: fields the user named again; all but `epochs` must be as they were.

    Raises:
        FileNotFoundError: there is no run.
        ValueError: a field differs; the message names it.
    """
    config, _, _ = read_config(directory)
    for name, value in asked.items():
        if name != "epochs" and value != getattr(config, name):
            raise ValueError(
                f"{directory} was started with {name} {getattr(config, name)}, not {value}:"
                " leave the option out, or take another --out"
            )
    return dataclasses.replace(config, epochs=asked.get("epochs", config.epochs))


def trained_on(config: RunConfig) -> list[str]:
    """Names or paths of the sets that served as negatives."""
    return auxiliary_names(config.negatives)


def _check_directory(config: RunConfig, directory: Path, resume: bool) -> None:
    if directory.exists() and not directory.is_dir():
        raise ValueError(f"{directory} is a file: --out takes a folder")
    if not resume and any((directory / name).exists() for name in (CONFIG, CHECKPOINT, WEIGHTS)):
        raise ValueError(f"{directory} already holds a run: add --resume to go on with it, or take another folder")
    if not resume and directory.is_dir() and any(directory.iterdir()):
        raise ValueError(f"{directory} is not empty: take a new folder")
