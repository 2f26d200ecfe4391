"""SIGKILL at random moments: afterwards every file is whole, and the same command comes to what it comes to unbroken.

Each trial runs in a process forked from this one, which has imported everything and computes nothing itself.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import random
import shutil
import signal
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from tests.cluster.work import figures, paper_plan, write_paper_sets
from tests.conftest import blobs, small_run
from tests.paper.conftest import write_idx

from benchmarks.torture.count import Count
from negvae.data.catalog import CATALOG, Download
from negvae.data.fetch import fetch
from negvae.paper.runner import run_plan
from negvae.runs.artifact import load_artifact
from negvae.runs.calibrate import calibrate_run
from negvae.runs.export import export_onnx
from negvae.runs.parts import score_to_folder
from negvae.runs.train import run

SHAPE = (1, 28, 28)
ENDLESS = 1800.0
"""A trial that takes longer than so many seconds hangs; other work may take most of the machine."""
Outcome = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Command:
    """A command that is to be killed.

    Attributes:
        name: of the command.
        work: carries it out in a folder; called again, it goes on with what is there.
        look: reads what is there, as another process might at any moment; it raises where something is half-written.
        outcome: what the command comes to.
    """

    name: str
    work: Callable[[Path], None]
    look: Callable[[Path], None]
    outcome: Callable[[Path], Outcome]


def digest(path: Path) -> str:
    """SHA-256 of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def rows(path: Path) -> list[dict[str, Any]]:
    """A run's metrics without what depends on the clock."""
    found = [json.loads(line) for line in path.read_text().splitlines()]
    return [{k: v for k, v in row.items() if k not in ("seconds", "images_per_second")} for row in found]


def looks_whole(directory: Path) -> None:
    """Load a run, if it is there; a run that has not come to an end is not half-written."""
    if (directory / "config.yaml").exists():
        with suppress(FileNotFoundError):
            load_artifact(directory)


def commands(place: Path) -> list[Command]:
    """The commands, with their data below `place`."""
    np.save(place / "in.npy", blobs(48, SHAPE).numpy())
    np.save(place / "more.npy", blobs(60, SHAPE, 1).numpy())
    config = dataclasses.replace(small_run(epochs=3, batch_size=12, calibration=0.25), data=str(place / "in.npy"))
    model = place / "model"
    run(config, model)

    def train(folder: Path) -> None:
        run(config, folder / "run", resume=True, checkpoint_seconds=0.02)

    def trained(folder: Path) -> Outcome:
        names = ("weights.safetensors", "calibration.safetensors", "inliers.json")
        return {name: digest(folder / "run" / name) for name in names} | {
            "rows": rows(folder / "run" / "metrics.jsonl")
        }

    os.environ["NEGVAE_DATA"] = str(write_paper_sets(place / "sets", 96))

    def paper(folder: Path) -> None:
        with open(os.devnull, "w") as nowhere:
            outcome = run_plan(paper_plan(folder, "smoke"), console=Console(file=nowhere))
        if outcome.failed:
            raise RuntimeError(str(outcome.failed))

    def score(folder: Path) -> None:
        score_to_folder(model, [str(place / "more.npy")], str(folder / "out"), shard_rows=8, resume=True)

    def scored(folder: Path) -> Outcome:
        return {path.name: digest(path) for path in sorted((folder / "out").glob("part-*"))}

    def look_at_parts(folder: Path) -> None:
        import pyarrow.parquet as pq

        for path in (folder / "out").glob("part-*"):
            pq.read_table(path)

    def copied(folder: Path) -> Path:
        if not (folder / "run").exists():
            shutil.copytree(model, folder / "copy", dirs_exist_ok=True)  # which an earlier try may have begun
            (folder / "copy").rename(folder / "run")
        return folder / "run"

    def calibrate(folder: Path) -> None:
        calibrate_run(copied(folder), str(place / "more.npy"), target_fpr=0.2)

    def calibrated(folder: Path) -> Outcome:
        return {"calibration": digest(folder / "run" / "calibration.safetensors")}

    def export(folder: Path) -> None:
        export_onnx(model, folder / "model.onnx")

    def exported(folder: Path) -> Outcome:
        return {"size": (folder / "model.onnx").stat().st_size}

    def look_at_export(folder: Path) -> None:
        import onnx

        if (folder / "model.onnx").exists():
            onnx.checker.check_model(onnx.load(folder / "model.onnx"))

    name, address = "kmnist", serve(place)
    spec = CATALOG[name]
    group = tuple(
        Download((f"{address}/{file}",), file) for file in sorted(path.name for path in (place / "served").iterdir())
    )
    CATALOG[name] = dataclasses.replace(spec, debian="", npm="", downloads=(group,), known={}, sketch={}, prefix={})

    def download(folder: Path) -> None:
        os.environ["NEGVAE_CACHE"], os.environ["NEGVAE_DATA"] = str(folder / "cache"), ""
        fetch(name, force=True)

    def downloaded(folder: Path) -> Outcome:
        return {path.name: digest(path) for path in sorted((folder / "cache" / name).iterdir())}

    def look_at_download(folder: Path) -> None:
        for path in (folder / "cache" / name).glob("*"):
            if digest(path) != digest(place / "served" / path.name):
                raise ValueError(f"{path} is half-written")

    return [
        Command("train", train, lambda folder: looks_whole(folder / "run"), trained),
        Command("paper run", paper, lambda folder: None, lambda folder: figures(paper_plan(folder, "smoke"))),
        Command("score", score, look_at_parts, scored),
        Command("calibrate", calibrate, lambda folder: looks_whole(folder / "run"), calibrated),
        Command("export", export, look_at_export, exported),
        Command("download", download, look_at_download, downloaded),
    ]


def serve(place: Path) -> str:
    """Serve a small set by HTTP from this process; its address."""
    for stem, count in (("train", 60), ("t10k", 20)):
        write_idx(place / "served" / f"{stem}-images-idx3-ubyte", blobs(count, SHAPE)[:, 0].numpy())

    class Quiet(SimpleHTTPRequestHandler):
        def __init__(self, *arguments: Any) -> None:
            super().__init__(*arguments, directory=str(place / "served"))

        def log_message(self, *arguments: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Quiet)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return f"http://127.0.0.1:{server.server_port}"


def start(work: Callable[[], None], log: Path) -> int:
    """Carry out work in a process of its own, whose output goes to a file; its number."""
    process = os.fork()
    if process:
        return process
    code = 1
    try:
        handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(handle, 1)
        os.dup2(handle, 2)
        work()
        code = 0
    except BaseException as error:
        print(f"{type(error).__name__}: {error}", flush=True)
    finally:
        os._exit(code)


def ended(process: int, seconds: float) -> int | None:
    """The status of a process that ends within some seconds; else None."""
    limit = time.monotonic() + seconds
    while time.monotonic() < limit:
        found, status = os.waitpid(process, os.WNOHANG)
        if found:
            return status
        time.sleep(0.002)
    return None


def kill(process: int) -> None:
    """End a process as a power cut would, unless it is over."""
    os.kill(process, signal.SIGKILL)
    os.waitpid(process, 0)


def leftovers(folder: Path) -> list[str]:
    """Temporary files and folders."""
    return [str(path.relative_to(folder)) for path in folder.rglob("*.tmp")]


def trial(command: Command, folder: Path, after: float, expected: Outcome) -> Iterator[str]:
    """Kill a command after some seconds, and let it go on: what is wrong then, in words."""
    folder.mkdir()
    log = folder.with_suffix(".log")
    process = start(lambda: command.work(folder), log)
    if ended(process, after) is None:
        kill(process)
    looker = start(lambda: command.look(folder), log)
    if (status := ended(looker, ENDLESS)) != 0:
        yield f"what is there cannot be read ({status}): {log.read_text()[-300:]}"
    process = start(lambda: command.work(folder), log)
    if (status := ended(process, ENDLESS)) != 0:
        if status is None:
            kill(process)
        yield f"it does not go on ({status}): {log.read_text()[-300:]}"
        return
    if command.outcome(folder) != expected:
        yield "it comes to something else than unbroken"
    if found := leftovers(folder):
        yield f"left behind: {', '.join(found)}"


def torture(count: Count, times: int, names: list[str]) -> None:
    """Kill each command so many times."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="negvae-torture-") as text:
        place = Path(text)
        for command in commands(place):
            if names and command.name not in names:
                continue
            kind = f"killed: {command.name}"
            if count.done(kind, dict.fromkeys(range(times), 1)):
                for number in range(times):
                    count.trial(kind, number, list)
                continue
            whole = place / f"{command.name} unbroken"
            whole.mkdir()
            began = time.monotonic()
            status = ended(start(lambda command=command, whole=whole: command.work(whole), place / "log"), ENDLESS)
            if status != 0:
                count.trial(kind, "unbroken", lambda s=status: [f"unbroken: {s}: {(place / 'log').read_text()[-300:]}"])
                continue
            seconds, expected = time.monotonic() - began, command.outcome(whole)
            for number in range(times):
                folder = place / f"{command.name} {number}"
                after = random.Random(f"{command.name} {number}").uniform(0, 1.05 * seconds)
                count.trial(kind, number, partial(trial, command, folder, after, expected))
                shutil.rmtree(folder, ignore_errors=True)
