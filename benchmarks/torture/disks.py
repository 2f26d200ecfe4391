"""Disks that are full or may not be written, and two processes in one folder."""

from __future__ import annotations

import dataclasses
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from tests.conftest import blobs, small_run

from benchmarks.torture.count import Count
from benchmarks.torture.kills import ENDLESS, ended, leftovers, looks_whole, start
from negvae.runs.calibrate import calibrate_run
from negvae.runs.export import export_onnx
from negvae.runs.parts import score_to_folder
from negvae.runs.score import score_files
from negvae.runs.train import run

SHAPE = (1, 28, 28)


@contextmanager
def mounted(place: Path, kilobytes: int, *options: str) -> Iterator[Path]:
    """A small disk of its own, in memory; needs root."""
    place.mkdir()
    settings = ",".join([f"size={kilobytes}k", *options])
    subprocess.run(["mount", "-t", "tmpfs", "-o", settings, "tmpfs", str(place)], check=True, capture_output=True)
    try:
        yield place
    finally:
        subprocess.run(["umount", "-l", str(place)], check=True)


def can_mount() -> str:
    """Why small disks cannot be had here; empty where they can."""
    with tempfile.TemporaryDirectory() as place:
        try:
            with mounted(Path(place) / "disk", 64):
                return ""
        except (OSError, subprocess.CalledProcessError) as error:
            return getattr(error, "stderr", b"").decode().strip() or str(error)


def works(place: Path) -> dict[str, Callable[[Path], object]]:
    """What writes to a folder, by name; the model and the data are elsewhere."""
    config = dataclasses.replace(small_run(epochs=2, batch_size=12, calibration=0.25), data=str(place / "in.npy"))
    data = [str(place / "more.npy")]
    return {
        "train": lambda folder: run(config, folder / "run", checkpoint_seconds=0.01),
        "score": lambda folder: score_files(place / "model", data, folder / "scores.csv"),
        "score, parts": lambda folder: score_to_folder(place / "model", data, str(folder / "out"), shard_rows=8),
        "export": lambda folder: export_onnx(place / "model", folder / "model.onnx"),
    }


def problems(work: Callable[[Path], object], folder: Path) -> Iterator[str]:
    """Work on a disk that refuses: one error of the system, and nothing half-written."""
    try:
        work(folder)
    except (OSError, ValueError) as error:
        if "\n" in str(error):
            yield f"several lines: {error}"
    except BaseException as error:
        yield f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
    if found := leftovers(folder):
        yield f"left behind: {found}"
    try:
        looks_whole(folder / "run")
    except (ValueError, OSError) as error:
        yield f"half-written: {error}"


def refused(work: Callable[[Path], object], place: Path, *disk: Any) -> list[str]:
    """Work on a disk of its own, of so many kilobytes and with these options: what is wrong."""
    with mounted(place, *disk) as folder:
        found = list(problems(work, folder))
    place.rmdir()
    return found


def torture(count: Count, quick: bool) -> None:
    """Full disks of several sizes, a read-only disk, and two processes at once."""
    with tempfile.TemporaryDirectory(prefix="negvae-torture-") as text:
        place = Path(text)
        np.save(place / "in.npy", blobs(48, SHAPE).numpy())
        np.save(place / "more.npy", blobs(60, SHAPE, 1).numpy())
        run(dataclasses.replace(small_run(epochs=1, calibration=0.25), data=str(place / "in.npy")), place / "model")
        together(count, place, *((1, 2) if quick else (10, 5)))
        if reason := can_mount():
            count.skip("full and read-only disks", reason)
            return
        for name, work in works(place).items():
            if quick and name == "export":
                continue
            for size in (4, 300) if quick else (4, 16, 64, 200, 300, 500, 900, 1500, 2500, 3500):
                count.trial(f"full disk: {name}", size, partial(refused, work, place / "disk", size))
            count.trial(f"read-only disk: {name}", "", partial(refused, work, place / "disk", 9000, "ro"))


def together(count: Count, place: Path, times: int, turns: int) -> None:
    """Two processes write the same files at the same time, in several turns: what is there afterwards is whole."""
    for number in range(times):
        folder = place / f"together {number}"
        folder.mkdir()
        config = dataclasses.replace(small_run(epochs=1, calibration=0.25), data=str(place / "in.npy"))
        run(config, folder / "run")

        def calibrate(folder: Path = folder) -> None:
            done = 0
            while done < turns:
                try:
                    calibrate_run(folder / "run", str(place / "more.npy"), target_fpr=0.2)
                    done += 1
                except ValueError as error:  # the other process has the run: wait, as the message says
                    if "by another process: wait" not in str(error):
                        raise
                    time.sleep(0.01)

        def score(folder: Path = folder) -> None:
            for _ in range(turns):
                score_files(place / "model", [str(place / "more.npy")], folder / "scores.csv")

        def at_once(work: Callable[[], None], folder: Path = folder) -> Iterator[str]:
            pair = [start(work, folder / "log") for _ in range(2)]
            found = [ended(process, ENDLESS) for process in pair]
            if found != [0, 0]:
                yield f"{found}: {(folder / 'log').read_text()[-300:]}"
            try:
                looks_whole(folder / "run")
            except ValueError as error:
                yield f"half-written: {error}"
            if left := leftovers(folder):
                yield f"left behind: {left}"

        for kind, work in (("calibrate", calibrate), ("score", score)):
            count.trial(f"two processes: {kind}", number, partial(at_once, work))
