"""The models behind the service: what each one offers, by name, and how one is replaced while requests run."""

from __future__ import annotations

import re
import threading
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from negvae.data.batches import Batch, InputSpec
from negvae.scoring.calibration import Calibration
from negvae.scoring.monitor import Monitor

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
EXTRAS = ("reconstruction", "position", "heatmap")
"""What a request may ask for beside the verdicts, where the model offers it."""


@dataclass(frozen=True)
class Inputs:
    """Images or rows to score.

    Attributes:
        stored: images (uint8, N x C x H x W), rows (float64, N x D x 1 x 1), or for a model of tiled images the tiles
            of all images, one image after the other (uint8, T x C x h x w).
        owners: number of the image that each tile belongs to (T), from 0; None if images are not tiled.
    """

    stored: NDArray[Any]
    owners: NDArray[np.int64] | None = None

    def __len__(self) -> int:
        """Return the number of images or rows."""
        return len(self.stored) if self.owners is None else int(self.owners[-1]) + 1

    @property
    def size(self) -> int:
        """Return the number of images, rows or tiles that the model computes."""
        return len(self.stored)

    @classmethod
    def joined(cls, parts: Sequence[Inputs]) -> Inputs:
        """Return the inputs of several requests to one model as one, in a copy that torch may hold."""
        stored = np.concatenate([part.stored for part in parts])
        if parts[0].owners is None:
            return cls(stored)
        starts = np.cumsum([0, *map(len, parts)])
        owners = [part.owners + start for part, start in zip(parts, starts, strict=False) if part.owners is not None]
        return cls(stored, np.concatenate(owners))


class Served(Protocol):
    """The interface of a loaded model.

    Attributes:
        path: folder of the run, or exported file.
        platform: name of the software that computes, for the model's metadata.
        spec: form of the images or rows that it takes, without resizing.
        calibration: held-out scores, threshold and decision score.
        unit: unit of the decision score.
        meaning: meaning of the decision score.
        offers: what the model offers of `EXTRAS`, and "samples".
        no_score: reason why an image has no score, where `scores` gives none.
    """

    path: Path
    platform: str
    spec: InputSpec
    calibration: Calibration
    unit: str
    meaning: str
    offers: frozenset[str]
    no_score: str

    def scores(self, inputs: Inputs) -> NDArray[np.float32]:
        """Compute the decision scores (N) of images or rows; NaN for an image that the model has no score for."""

    def look(self, batch: Batch, rows: NDArray[np.int64], wanted: Collection[str]) -> dict[str, list[NDArray[Any]]]:
        """Compute some of `EXTRAS` for rows of a batch: for each image uint8 C x H x W, 2 numbers, and float H x W."""

    def samples(self, count: int, seed: int) -> NDArray[np.uint8]:
        """Generate images from the prior (uint8, count x C x H x W)."""

    def priors(self, count: int) -> dict[str, NDArray[np.float64]]:
        """Draw codes from the prior and the negative prior, and return their places on the latent map (count x 2)."""


def open_model(path: Path, threads: int) -> Served:
    """Load the folder of a run, for which torch is imported, or an exported .onnx file, for which it is not.

    Args:
        path: folder or file.
        threads: number of threads that compute.

    Returns:
        The model.

    Raises:
        FileNotFoundError: if there is no such folder or file.
        ImportError: if what the model needs is not installed.
        ValueError: if the model is damaged or not calibrated.
    """
    if path.suffix.lower() == ".onnx":
        from negvae.service.onnx_model import load_onnx

        return load_onnx(path, threads)
    if not path.is_dir():
        raise FileNotFoundError(f"{path}: expected the folder of a run, or an exported .onnx file")
    from negvae.files import need

    need("torch", "serve")
    from negvae.service.run_model import load_run

    return load_run(path, threads)


@dataclass
class Slot:
    """A place for one model, which can be filled anew while the service runs.

    Attributes:
        name: name of the model.
        path: folder or file that the model is loaded from.
        model: the loaded model; None if it was unloaded.
        monitor: drift monitor of the scores; None if no model was ever loaded.
        reason: reason why there is no model.
    """

    name: str
    path: Path
    model: Served | None = None
    monitor: Monitor | None = None
    reason: str = ""
    lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def load(self, threads: int, alarm_rate: float) -> None:
        """Load the model, and put it in the place of the former one, which finishes what it was given.

        If the held-out scores are still the same, the drift monitor continues, with the rule of the new calibration;
        otherwise it starts anew.

        Args:
            threads: number of threads that compute.
            alarm_rate: probability of a false alarm of the drift monitor.

        Raises:
            OSError: if the model does not exist.
            ValueError: if the model cannot be loaded; the former one then stays in its place.
        """
        with self.lock:
            model = open_model(self.path, threads)
            monitor, now = self.monitor, model.calibration
            if monitor is not None and is_same_stream(monitor.calibration, now):
                monitor.calibration = now
            else:
                self.monitor = Monitor.start(now, alarm_rate=alarm_rate)
            self.model, self.reason = model, ""

    def unload(self) -> None:
        """Take the model away; requests that it was given are finished."""
        with self.lock:
            self.model, self.reason = None, "unloaded"


def is_same_stream(before: Calibration, now: Calibration) -> bool:
    """Return whether two calibrations decide by one score, and hold the same scores of inliers; rules may differ."""
    if before is now:
        return True
    return before.score == now.score and np.array_equal(before.scores[before.score], now.scores[now.score])


def named_paths(arguments: Sequence[str]) -> dict[str, Path]:
    """Return the models' paths by name: of NAME=PATH, or the name of the folder or of the file without its ending.

    Args:
        arguments: paths, or NAME=PATH.

    Returns:
        Path by name.

    Raises:
        ValueError: if a name has other characters than letters, digits, dots, dashes and underscores, or occurs twice.

    >>> named_paths(["runs/photos", "guard=export/model.onnx"])
    {'photos': PosixPath('runs/photos'), 'guard': PosixPath('export/model.onnx')}
    """
    paths: dict[str, Path] = {}
    for argument in arguments:
        name, given, rest = argument.partition("=")
        if given and not rest and NAME.fullmatch(name):
            raise ValueError(f"{argument}: a path is missing after =")
        path = Path(rest if given and NAME.fullmatch(name) else argument)
        if not (given and NAME.fullmatch(name)):
            name = path.stem if path.suffix.lower() == ".onnx" else path.resolve().name
        if not NAME.fullmatch(name):
            raise ValueError(f"{argument}: {name!r} cannot be a model's name: give one as NAME=PATH")
        if name in paths:
            raise ValueError(f"{argument}: a model named {name} is there already: give another name as NAME=PATH")
        paths[name] = path
    return paths
