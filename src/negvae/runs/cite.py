"""The publications that a run, or a named part, comes from."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from negvae.citations import METHOD, Paper, papers_of
from negvae.negatives.notation import parse
from negvae.parts import LIKELIHOODS, NETWORKS, SHIFTS, SOURCES, TRANSFORMATIONS
from negvae.registry import Table, choose
from negvae.runs.artifact import CONFIG, read_config, read_section
from negvae.scoring.table import SCORES

TABLES: tuple[Table[Any], ...] = (LIKELIHOODS, NETWORKS, SOURCES, TRANSFORMATIONS, SHIFTS, SCORES)
"""The tables whose entries may come from publications."""


def cited_by(names: Iterable[str]) -> list[Paper]:
    """Return the publications to cite for runs and parts; the paper that negvae implements is always the first.

    Args:
        names: folders of runs, and names of scores, networks, likelihoods, sources and transformations.

    Returns:
        The publications, each once.

    Raises:
        FileNotFoundError: if a folder is no run.
        ValueError: if a name is neither a folder nor that of a part; the message gives the nearest name.

    >>> [paper.short for paper in cited_by(["dose", "cutmix"])]
    ['Csiszárik et al. 2019', 'Morningstar et al. 2021', 'Yun et al. 2019']
    """
    keys = [METHOD]
    for name in names:
        parts = _parts_of_run(Path(name)) if Path(name).is_dir() else [name]
        keys += [key for part in parts for key in _keys(part)]
    return papers_of(keys)


def _keys(part: str) -> list[str]:
    """Return the keys of a part's publications.

    Raises:
        ValueError: if no table has a part of this name.
    """
    if not any(part in table for table in TABLES):
        SCORES.get(part)  # imports the plugins, one of which may have it
    choose("part or folder", part, dict.fromkeys(name for table in TABLES for name in table))
    return [key for table in TABLES if part in table for key in table[part].papers]


def _parts_of_run(directory: Path) -> list[str]:
    """Return the names of the parts that a run is made of, in the order of `TABLES`; unregistered ones are left out."""
    if not (directory / CONFIG).is_file():
        raise FileNotFoundError(f"{directory}: not a negvae run (it has no {CONFIG})")
    config = read_config(directory)[0]
    names: list[str] = [str(config.likelihood), str(config.network)]
    for spec in parse(config.negatives):
        transformed = spec.argument.split(",") if spec.kind == "augmented" and spec.argument else []
        defaults = [each.name for each in TRANSFORMATIONS.entries() if each.default and each.takes == "images"]
        names += [spec.kind, *(transformed or (defaults if spec.kind == "augmented" else []))]
    names += str(config.transformations).split(",")
    names.append(str(read_section(directory, "calibration").get("score", "")))
    return [name for name in names if any(name in table for table in TABLES)]
