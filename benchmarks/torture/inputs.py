"""Damaged and hostile input: every reader, config and artifact raises what it documents, runs nothing, stays small.

Files are made from good ones by chance: bytes turned, cut out, put in, numbers in headers blown up. Configs and
notations are Hypothesis's. Each few hundred inputs are read in a process of their own, so that a crash is counted.
"""

from __future__ import annotations

import io
import json
import os
import pickle
import random
import resource
import shutil
import tempfile
import traceback
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from tests.conftest import blobs, small_run

from benchmarks.torture.count import Count
from benchmarks.torture.kills import ENDLESS, ended, kill, start
from negvae.config import RunConfig
from negvae.data import load
from negvae.data.batches import InputSpec
from negvae.data.formats import Batches, Idx, Mat
from negvae.data.formats import read as read_set
from negvae.data.streams import stream
from negvae.negatives import parse
from negvae.runs.artifact import load_artifact
from negvae.runs.recorded import read_recorded
from negvae.runs.train import run
from negvae.runs.watch import Watch, prometheus, watch
from negvae.runs.watch import _begin as begin
from negvae.scoring.monitor import Monitor
from negvae.training.checkpoint import read_progress
from negvae.training.history import read_metrics

EXPECTED = (ValueError, FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError)
CHUNK = 250
MEMORY = 600 * 2**20
"""So much may a process grow while it reads small files."""
STATE_OF_WATCH, ROWS_OF_WATCH = Path("watched/state.json"), Path("watched/rows.jsonl")


def stored(place: Path, name: str, content: bytes) -> Path:
    """A file with this content."""
    path = place / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def seeds() -> dict[str, tuple[bytes, str]]:
    """Good files by kind: content, and the name under which it is read."""
    import pyarrow as pa
    import pyarrow.parquet as pq
    from scipy.io import savemat

    images = blobs(6, (3, 16, 16)).numpy()
    gray = images[:, 0]
    found: dict[str, tuple[bytes, str]] = {}

    def keep(kind: str, name: str, write: Callable[[io.BytesIO], Any]) -> None:
        content = io.BytesIO()
        write(content)
        found[kind] = (content.getvalue(), name)

    picture = Image.fromarray(images[0].transpose(1, 2, 0))
    for kind in ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "PPM", "AVIF", "JPEG2000"):
        try:
            keep(kind, f"a.{ {'JPEG2000': 'jp2', 'JPEG': 'jpg', 'TIFF': 'tif'}.get(kind, kind.lower())}",
                 partial(lambda kind, file: picture.save(file, kind), kind))  # fmt: skip
        except (OSError, KeyError):
            continue
    keep("npy", "a.npy", lambda file: np.save(file, images))
    keep("npy of floats", "a.npy", lambda file: np.save(file, images / 255))
    keep("npy of objects", "a.npy", lambda file: np.save(file, np.array([Trap()], object), allow_pickle=True))
    keep("npz", "a.npz", lambda file: np.savez(file, x_train=images, y_train=np.arange(6)))
    keep("npz, packed", "a.npz", lambda file: np.savez_compressed(file, images=images))
    png = found["PNG"][0]
    keep("parquet", "a.parquet", lambda file: pq.write_table(pa.table({"image": [png] * 3, "label": [0, 1, 2]}), file))
    keep("mat", "a.mat", lambda file: savemat(file, {"X": images.transpose(2, 3, 1, 0), "y": np.ones((6, 1))}))
    header = bytes([0, 0, 8, 3]) + b"".join(n.to_bytes(4, "big") for n in gray.shape)
    found["idx"] = (header + gray.tobytes(), "train-images-idx3-ubyte")
    batch = {b"data": np.zeros((4, 3072), np.uint8), b"labels": [0] * 4}
    for protocol in (0, 2, 4):
        found[f"batch, protocol {protocol}"] = (pickle.dumps(batch, protocol), "data_batch_1")
    found["batch, hostile"] = (pickle.dumps(Trap()), "data_batch_1")
    return found


class Trap:
    """Writes a file where a reader runs what it reads."""

    place = ""

    def __reduce__(self) -> tuple[Any, ...]:
        """Code that an unpickler would run."""
        return (os.system, (f"touch {Trap.place}/trapped",))


def damaged(content: bytes, draw: random.Random) -> bytes:
    """The content with a few faults; now and then as it is."""
    data = bytearray(content)
    for _ in range(draw.choice((0, 1, 1, 1, 2, 3, 8))):
        place = draw.randrange(len(data)) if data else 0
        head = draw.randrange(min(len(data), 200)) if data else 0
        match draw.randrange(7):
            case 0:
                data[place : place + 1] = bytes([draw.randrange(256)])
            case 1:
                del data[place : place + draw.choice((1, 4, 100, 10_000))]
            case 2:
                data[place:place] = draw.randbytes(draw.choice((1, 4, 100)))
            case 3:
                data[head : head + 4] = draw.choice((b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff", b"\0\0\0\0", b"9999"))
            case 4:
                data[head : head + 1] = bytes([draw.randrange(256)])
            case 5:
                data[place:] = b""
            case _:
                data += data[: draw.randrange(1000)]
    return bytes(data)


def read_all(path: Path, kind: str) -> None:
    """Read a file by every way that takes it."""
    if kind.startswith("batch"):
        read_set(Batches((path,), (3, 32, 32)))
    elif kind == "idx":
        read_set(Idx(path))
    elif kind == "mat":
        read_set(Mat(path))
    else:
        load(path.parent if kind.isupper() or kind == "JPEG2000" else path)


def streamed(path: Path) -> None:
    """Score's reading: no exception whatever the file."""
    for batch in stream([str(path)], InputSpec((3, 16, 16), max_pixels=10**6)):
        len(batch)


def attempt(function: Callable[[], Any], allowed: tuple[type[BaseException], ...] = EXPECTED) -> str:
    """What is wrong with how a call ended; empty where nothing is."""
    try:
        function()
    except allowed as error:
        return "" if "\n" not in str(error) else f"several lines: {error}"
    except BaseException as error:
        return f"{type(error).__name__}: {error} ({''.join(traceback.format_tb(error.__traceback__)[-2:])})"
    return ""


def files(place: Path, seed: int, number: int) -> list[str]:
    """Damage and read so many files; what is wrong."""
    draw, kinds, problems = random.Random(seed), list(seeds().items()), []
    os.environ["NEGVAE_CACHE"] = str(place / "cache")
    for _ in range(number):
        kind, (content, name) = draw.choice(kinds)
        shutil.rmtree(place / "in", ignore_errors=True)
        path = stored(place / "in", name, damaged(content, draw))
        faults = [attempt(lambda path=path, kind=kind: read_all(path, kind))]
        if name.startswith("a.") and kind != "mat":
            faults.append(attempt(lambda path=path: streamed(path), ()))
        for fault in filter(None, faults):
            kept = place.parent / f"kept-{seed}-{len(problems)}-{name}"
            shutil.copy(path, kept)
            problems.append(f"{kind}: {fault}; kept as {kept}")
    return problems


def good_artifact(place: Path) -> None:
    """Train a run in the folder `model`, and watch a stream with it, in `watched`."""
    (place / "arriving").mkdir(parents=True)
    np.save(place / "in.npy", blobs(30, (1, 28, 28)).numpy())
    np.save(place / "arriving" / "a.npy", blobs(8, (1, 28, 28), 1).numpy())
    run(RunConfig.from_dict({**small_run(epochs=1, calibration=0.3).to_dict(), "data": str(place / "in.npy")}),
        place / "model")  # fmt: skip
    watch(place / "model", str(place / "arriving"), place / "watched", once=True, settle=0.0)


def read_folder(place: Path) -> list[Callable[[], Any]]:
    """The ways in which the package reads a run and a watch of it."""
    run_folder, watched = place / "model", place / "watched"

    def load_and_go_on() -> None:
        calibration = load_artifact(run_folder).calibration
        if calibration is not None:
            new = Watch(run_folder, str(place / "arriving"), Monitor.start(calibration, alarm_rate=0.01))
            found, _ = begin(new, watched)
            found.monitor.update(np.linspace(-1, 200, 5))
            json.dumps([found.monitor.state(), found.rows + 1, found.errors + 1, found.latest, prometheus(found)])

    return [load_and_go_on, lambda: read_recorded(run_folder, {}),
            lambda: read_progress(run_folder), lambda: read_metrics(run_folder)]  # fmt: skip


def artifacts(place: Path, seed: int, number: int) -> list[str]:
    """Damage one file of a run, or of a watch of it, and read them."""
    draw, problems = random.Random(seed), []
    good = {folder: place.parent / folder for folder in ("model", "watched")}
    names = sorted(path.relative_to(place.parent) for folder in good.values() for path in folder.iterdir())
    for folder, source in good.items():
        shutil.copytree(source, place / folder)
    for _ in range(number):
        name = draw.choice(names)
        content = (place.parent / name).read_bytes()
        (place / name).write_bytes(damaged(content, draw))
        for work in read_folder(place):
            if fault := attempt(work):
                kept = place.parent / f"kept-{seed}-{len(problems)}-{name.name}"
                shutil.copy(place / name, kept)
                problems.append(f"artifact with damaged {name}: {fault}; kept as {kept}")
        for each in {name, STATE_OF_WATCH, ROWS_OF_WATCH}:
            shutil.copy(place.parent / each, place / each)
    return problems


def configs(number: int) -> list[str]:
    """Hypothesis over descriptions of runs, YAML and the notation of negatives."""
    problems: list[str] = []
    plain = st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
        max_leaves=6,
    )
    fields = st.dictionaries(st.sampled_from([*RunConfig(data="x").to_dict(), "other"]), plain, max_size=5)
    words = st.sampled_from(
        ["generated", "augmented", "none", "kmnist", "zoomed:", ":", "*", "+", "0.5", "'", '"', "/"]
    )
    quiet = settings(max_examples=number, database=None, deadline=None, suppress_health_check=list(HealthCheck))

    def check(work: Callable[[], Any], what: object) -> None:
        if fault := attempt(work, (ValueError,)):
            problems.append(f"{what!r}: {fault}")

    @quiet
    @given(fields)
    def descriptions(values: dict[str, Any]) -> None:
        check(lambda: RunConfig.from_dict({"data": "x", **values}), values)

    @quiet
    @given(st.text(max_size=200) | fields.map(lambda values: json.dumps(values)))
    def texts(text: str) -> None:
        check(lambda: RunConfig.from_yaml(text), text)

    @quiet
    @given(st.text(max_size=40) | st.lists(words, max_size=8).map("".join))
    def notations(text: str) -> None:
        check(lambda: parse(text), text)

    for test in (descriptions, texts, notations):
        test()
    return problems


def torture(count: Count, number: int) -> None:
    """Read so many inputs: three quarters are files, a twelfth artifacts, the others configs."""
    with tempfile.TemporaryDirectory(prefix="negvae-torture-") as text:
        place = Path(text)
        Trap.place = text
        good_artifact(place)
        shares = {"damaged files": (files, number * 3 // 4), "damaged artifacts": (artifacts, number // 12)}
        for kind, (work, total) in shares.items():
            for chunk in range(0, total, CHUNK):
                few = min(CHUNK, total - chunk)
                count.trial(
                    kind, chunk, partial(apart, partial(work, seed=chunk, number=few), place / "work", chunk), few
                )
        each = max(number // 18, 1)
        count.trial(
            "configs and notations", "", partial(apart, lambda where: configs(each), place / "work", 0), 3 * each
        )
        trapped = ["code of a file was run"] if (place / "trapped").exists() else []
        count.trial("files that ran code", "", lambda: trapped)


def apart(work: Callable[[Path], list[str]], place: Path, seed: int) -> list[str]:
    """What work finds wrong, in a process of its own; its crash, or its growth, is wrong too."""
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir()
    report = place.parent / "report.json"
    report.unlink(missing_ok=True)

    def carry_out() -> None:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        problems = work(place)
        grown = 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
        if grown > MEMORY:
            problems.append(f"memory grew by {grown >> 20} MB (seed {seed})")
        report.write_text(json.dumps(problems))

    log = place.parent / "log"
    process = start(carry_out, log)
    if (status := ended(process, ENDLESS)) != 0 or not report.exists():
        if status is None:
            kill(process)
        return [f"process ended with {status} (seed {seed}): {log.read_text()[-500:]}"]
    problems: list[str] = json.loads(report.read_text())
    return problems
