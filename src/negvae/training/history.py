"""The history of a run: one row of plain values for each epoch, in metrics.jsonl."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from torch import Tensor

from negvae.config import RunConfig
from negvae.files import from_json, write_text
from negvae.model import VAE
from negvae.training.checkpoint import Progress

METRICS = "metrics.jsonl"

Row = dict[str, Any]


class History:
    """The rows so far, in memory and, if there is a folder, in its metrics.jsonl.

    Args:
        rows: rows of the epochs already completed, with which a folder's file is rewritten.
        directory: folder of the run; None keeps the rows in memory only.

    >>> history = History()
    >>> history.append({"epoch": 1, "nats_per_dim": 0.36, "seconds": 2.5})
    >>> len(history.rows)
    1
    """

    def __init__(self, rows: Iterable[Row] = (), directory: Path | None = None) -> None:
        self.rows, self.directory = list(rows), directory
        if directory is not None:
            write_metrics(directory, self.rows)

    def append(self, row: Row) -> None:
        """Add the row of an epoch, which is on disk before a checkpoint that counts it."""
        self.rows.append(row)
        if self.directory is not None:
            with (self.directory / METRICS).open("a", encoding="utf-8") as file:
                file.write(_line(row))
                file.flush()
                os.fsync(file.fileno())


def read_metrics(directory: Path) -> list[Row]:
    """Read the rows of a run's metrics.jsonl, one for each epoch, up to the first row that is incomplete.

    >>> import tempfile
    >>> row = {"epoch": 1, "nats_per_dim": 0.36, "seconds": 2.5}
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     write_metrics(Path(folder), [row])
    ...     read_metrics(Path(folder)) == [row]
    True
    """
    rows = []
    path = directory / METRICS
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines() if path.exists() else []:
        try:
            row = from_json(line)
        except ValueError:
            break
        if not (isinstance(row, dict) and {"epoch", "nats_per_dim", "seconds"} <= row.keys()):
            break
        rows.append(row)
    return rows


def write_metrics(directory: Path, rows: Iterable[Row]) -> None:
    """Write a run's metrics.jsonl anew."""
    write_text(directory / METRICS, "".join(map(_line, rows)))


def epoch_row(progress: Progress, config: RunConfig, images: int, model: VAE) -> Row:
    """Summarize an epoch that has just ended, as means over its steps, in nats per image unless named otherwise.

    Args:
        progress: progress of the run at the end of the epoch.
        config: configuration of the run.
        images: number of images that were trained on in the epoch.
        model: the VAE, whose learned sigma, in units of the [0, 1] pixel range, is added to the row.

    Returns:
        The row for metrics.jsonl.
    """
    means = {name: total / progress.step for name, total in progress.sums.items()}
    row: Row = {"epoch": progress.epoch + 1, **means}
    row["nats_per_dim"] = (means["reconstruction"] + means["kl"]) / model.dimensions
    if config.learn_sigma and isinstance(sigma := getattr(model.likelihood, "sigma", None), Tensor):
        row["sigma"] = float(sigma.detach())
    row["images_per_second"] = round(images / max(progress.epoch_seconds, 1e-9), 1)
    row["seconds"] = round(progress.seconds, 3)
    return row


def _line(row: Row) -> str:
    return json.dumps(row) + "\n"
