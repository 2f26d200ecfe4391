"""Sentences, made from result files, on how a figure that misses the paper's went over the epochs.

The explanation of a miss is written by hand (`negvae.paper.claims`); the figures that support it come from here, and so
from the result files.
Nothing here imports torch.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

from negvae.paper.published import ROWS
from negvae.paper.results import CellResult, Figure

FAR = 1000.0
"""Mean KL divergence over the first epoch, in nats, beyond which a start is called far from the prior."""


def curve(cell: CellResult, row: str) -> list[list[float]]:
    """Return a figure (key of `ROWS`) after each epoch, seed by seed; not a number where an epoch has no figure."""
    return [[float(epoch.get(row, math.nan)) for epoch in result["curve"]] for result in cell.results]


def movement(curves: Sequence[Sequence[float]]) -> tuple[float, float | None] | None:
    """Return the last epoch's change, its mean and spread over the seeds; None for fewer than two epochs.

    >>> movement([[0.5, 0.75], [0.5, 0.75]])
    (0.25, 0.0)
    >>> movement([[0.5, 0.75]])  # one seed has no spread
    (0.25, None)
    """
    steps = [values[-1] - values[-2] for values in curves if len(values) > 1]
    steps = [step for step in steps if math.isfinite(step)]
    if not steps:
        return None
    return statistics.fmean(steps), statistics.stdev(steps) if len(steps) > 1 else None


def still_moves(curves: Sequence[Sequence[float]], gap: float) -> bool:
    """Return whether the last epoch moved every seed towards the paper's figure.

    Args:
        curves: figure after each epoch, seed by seed.
        gap: the paper's figure minus ours.

    Returns:
        Whether every seed with two epochs or more moved towards it; False if there is no such seed.

    >>> still_moves([[0.5, 0.6], [0.5, 0.4]], gap=0.3)
    False
    """
    steps = [values[-1] - values[-2] for values in curves if len(values) > 1]
    return bool(steps) and all(step * gap > 0 for step in steps)


def sentence(cell: CellResult, figure: Figure) -> str:
    """Describe how a figure went over the epochs, and whether it still moved towards the paper's at the end."""
    curves = curve(cell, figure.row)
    moved = movement(curves)
    if moved is None or figure.difference is None:
        return ""
    change, spread = moved
    means = [statistics.fmean(values) for values in zip(*curves, strict=False)]
    shown = _thinned(means)
    moves = still_moves(curves, -figure.difference)
    epochs = len(means)
    images = cell.results[0]["curve_images"]
    if spread is None:
        whose, by, every = "one seed", f"{change:+.4f}", "" if moves else "not "
    else:
        whose, by = "means over the seeds", f"{change:+.3f} ({spread:.3f})"
        every = "in every seed " if moves else "not in every seed "
    return (
        f"{ROWS[figure.row]}: {', '.join(shown)} over {epochs} epochs ({whose}, {images:,} images of each test set);"
        f" the last epoch changed it by {by}, {every}towards the paper's figure."
    )


def _thinned(means: Sequence[float], most: int = 6) -> list[str]:
    """Return at most so many of the means as text, the first and the last included."""
    count = min(len(means), most)
    places = [round(step * (len(means) - 1) / max(count - 1, 1)) for step in range(count)]
    return [f"{means[place]:.3f}" for place in places]


def starts(cell: CellResult) -> str:
    """Name the seeds that began far from the prior, in a sentence; empty if none or all did."""
    far = {
        result["seed"]: float(result["curve"][0]["kl"])
        for result in cell.results
        if result["curve"] and float(result["curve"][0].get("kl", 0)) > FAR and not _negatives(result)
    }
    if not far or len(far) == len(cell.results):
        return ""
    listed = ", ".join(f"{seed} ({value:,.0f} nats)" for seed, value in far.items())
    return (
        f"Seed {listed} began far from the prior: the mean KL divergence of its first epoch. Adam's large steps"
        " meet the large first weights there; with smaller ones no seed does (docs/reproduction.md)."
    )


def _negatives(result: dict[str, object]) -> bool:
    """Return whether a run on color images was trained with negatives, which are far from the prior by design."""
    config = result["config"]
    return isinstance(config, dict) and config["negatives"] != "none" and str(config["network"]).startswith("color")
