"""Inputs that a fuzzer makes by watching which lines of the package they reach (atheris, after libFuzzer).

Each reader is tried in a process of its own, which ends at the first exception that is not documented, at a crash, and
where it takes too much memory. An input that ended it is kept.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from benchmarks.torture.count import Count

ROOT = Path(__file__).parents[2]
KEPT = ROOT / "runs" / "torture-inputs"
MEMORY = 2500
"""So many MB may a process take that has torch loaded, and the fuzzer."""
SLOW = 600
"""A single input may take so many seconds, on a machine that may be paused."""
ARTIFACT = ("config.yaml", "weights.safetensors", "calibration.safetensors", "checkpoint.safetensors", "inliers.json",
            "metrics.jsonl", "state.json", "rows.jsonl")  # fmt: skip
FILES = {
    "images": ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "PPM", "AVIF", "JPEG2000"),
    "npy": ("npy", "npy of floats", "npy of objects"), "npz": ("npz", "npz, packed"), "parquet": ("parquet",),
    "mat": ("mat",), "idx": ("idx",), "batches": ("batch, protocol 0", "batch, protocol 2", "batch, hostile"),
}  # fmt: skip
TEXTS = ("config", "negatives", "result")
TARGETS = (*FILES, *TEXTS, *ARTIFACT)


def torture(count: Count, number: int) -> None:
    """Let the fuzzer make so many inputs, for all readers together."""
    kind = "coverage-guided inputs"
    if importlib.util.find_spec("atheris") is None:
        count.skip(kind, "atheris is not installed")
        return
    slow = max(number // 80, 1)  # a run is loaded in some 25 ms
    each = (number - slow * len(ARTIFACT)) // (len(TARGETS) - len(ARTIFACT))
    numbers = {name: slow if name in ARTIFACT else each for name in TARGETS}
    with tempfile.TemporaryDirectory(prefix="negvae-torture-") as text:
        place = Path(text)
        if not count.done(kind, numbers):
            prepare(place)
        for name, runs in numbers.items():
            count.trial(kind, name, partial(fuzzed, name, runs, place), runs)


def prepare(place: Path) -> None:
    """Write a run and a watch of it, and what the fuzzer starts from: a folder of good inputs for each target."""
    from benchmarks.torture.inputs import good_artifact, seeds

    good_artifact(place)
    known = seeds()
    texts = {
        "config": (place / "model" / "config.yaml").read_bytes(),
        "negatives": b"0.5*augmented+generated+'a b'",
        "result": b'{"name": "a-seed0", "config": {}, "status": "finished", "seed": 0}',
    }
    for name in TARGETS:
        (place / name).mkdir()
        if name in FILES:
            contents = [known[kind][0] for kind in FILES[name] if kind in known]
        else:
            contents = [texts[name]] if name in texts else [found(place, name).read_bytes()]
        for index, content in enumerate(contents):
            (place / name / f"good-{index}").write_bytes(content)


def found(place: Path, name: str) -> Path:
    """The file of the good run, or of its watch, of this name."""
    return next(place / folder / name for folder in ("model", "watched") if (place / folder / name).exists())


def fuzzed(name: str, runs: int, place: Path) -> Iterator[str]:
    """Fuzz a target in a process of its own: what ended it before its time."""
    command = [sys.executable, "-m", "benchmarks.torture.coverage", name, str(runs), str(place)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, errors="replace", check=False)
    report = done.stdout + done.stderr
    if done.returncode == 0 and re.search(r"Done \d+ (runs|in)", report):
        return
    KEPT.mkdir(parents=True, exist_ok=True)
    kept = [shutil.copy(path, KEPT / f"{name}-{path.name}") for path in sorted((place / "ended").glob("*"))]
    shutil.rmtree(place / "ended", ignore_errors=True)
    lines = [line for line in report.splitlines() if re.search(r"Error|Exception|Warning|ERROR|negvae/", line)]
    yield f"{name}: ended with {done.returncode}: {' | '.join(lines[-8:])[:1500]}; kept: {', '.join(map(str, kept))}"


def reader(name: str, place: Path) -> Callable[[bytes], None]:
    """A function that reads a target's content by every way of the package that takes it."""
    from benchmarks.torture.inputs import read_all, read_folder, stored, streamed
    from negvae.config import RunConfig
    from negvae.negatives import parse
    from negvae.paper.store import ResultTable

    work = place / f"work-{name}"
    if name in ARTIFACT:
        for folder in ("model", "watched"):
            shutil.copytree(place / folder, work / folder)
        path = found(work, name)

        def look(content: bytes) -> None:
            path.write_bytes(content)
            attempted(read_folder(work))

        return look
    if name == "config":
        return lambda content: attempted([lambda: RunConfig.from_yaml(content.decode("utf-8", "replace"))])
    if name == "negatives":
        return lambda content: attempted([lambda: parse(content.decode("utf-8", "replace"))])
    if name == "result":
        return lambda content: attempted([ResultTable(stored(work, "cpu.jsonl", content)).names])
    file, kind = {"images": ("a.png", "PNG"), "idx": ("train-images-idx3-ubyte", "idx"), "mat": ("a.mat", "mat"),
                  "batches": ("data_batch_1", "batch")}.get(name, (f"a.{name}", name))  # fmt: skip

    def read(content: bytes) -> None:
        path = stored(work / "in", file, content)
        attempted([lambda: read_all(path, kind)])
        if file.startswith("a.") and kind != "mat":
            streamed(path)

    return read


def attempted(works: list[Callable[[], object]]) -> None:
    """Carry out each of several readings, which may refuse what they read as documented."""
    from benchmarks.torture.inputs import attempt

    for work in works:
        if fault := attempt(work):
            raise RuntimeError(fault)


def main() -> None:
    """Fuzz one target in this process; it ends with code 0 where nothing was found."""
    import atheris

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("target", choices=TARGETS)
    parser.add_argument("runs", type=int)
    parser.add_argument("place", type=Path, help="of the good inputs")
    asked = parser.parse_args()
    with atheris.instrument_imports(include=["negvae"]):
        import negvae.paper.results
        import negvae.runs.watch  # noqa: F401 - with all that reads
    os.environ["NEGVAE_CACHE"] = str(asked.place / "cache")
    (asked.place / "ended").mkdir(exist_ok=True)
    read = reader(asked.target, asked.place)
    grown = asked.place / f"grown-{asked.target}"
    grown.mkdir(exist_ok=True)
    options = [f"-runs={asked.runs}", "-max_len=20000", "-seed=1", f"-timeout={SLOW}", f"-rss_limit_mb={MEMORY}",
               f"-artifact_prefix={asked.place / 'ended'}/", "-print_final_stats=1"]  # fmt: skip
    atheris.Setup([sys.argv[0], str(grown), str(asked.place / asked.target), *options], read)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
