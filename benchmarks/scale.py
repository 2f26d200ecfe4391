"""Images per second and memory against the size of images and the number of cores: `python -m benchmarks.scale`.

Each figure is of a process of its own, which trains and scores the preset `general` (network `pyramid`) on random color
images for some seconds. Results go to benchmarks/results/scale.json, from which `python -m benchmarks.scale --draw`
makes the pictures of docs/benchmarks.md and puts them there; nothing is measured then. Cores are limited by the
operating system. A machine that is not idle gives other figures.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from negvae.report.tables import replace_table

RESULTS, PAGE = Path("benchmarks/results/scale.json"), Path("docs/benchmarks.md")
MARKS = ("<!-- scale: begin (python -m benchmarks.scale) -->", "<!-- scale: end -->")
SIZES = (16, 32, 64, 128, 256)
BATCH, SECONDS = 64, 2.0


def child(work: str, size: int, precision: str) -> dict[str, Any]:
    """Measure one kind of work in this process."""
    import torch

    from negvae.config import preset
    from negvae.model import build_vae
    from negvae.scoring import Scorer
    from negvae.training.step import Learner

    torch.set_num_threads(len(os.sched_getaffinity(0)))
    images = torch.randint(0, 256, (BATCH, 3, size, size), dtype=torch.uint8, generator=torch.Generator())
    config = preset("general", "random", batch_size=BATCH, precision=precision)
    if work == "train":
        learner = Learner(config, images, None)
        start = learner.randomness.get_state()

        def once() -> None:
            learner.begin_epoch(start, 0)
            learner.step()
    else:
        scorer = Scorer(build_vae(config, (3, size, size)).eval(), precision=precision)

        def once() -> None:
            scorer(images, ["bpd"])

    once()
    seconds: list[float] = []
    while sum(seconds) < SECONDS or len(seconds) < 3:
        began = time.perf_counter()
        once()
        seconds.append(time.perf_counter() - began)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"images_per_second": BATCH / statistics.median(seconds), "peak_mb": peak, "steps": len(seconds)}


def measured(work: str, size: int, precision: str, cores: int) -> dict[str, Any]:
    """Measure one kind of work in a process of its own, on as many cores."""
    command = [sys.executable, "-m", "benchmarks.scale", "--child", work, str(size), precision]
    here = sorted(os.sched_getaffinity(0))[:cores]
    variables = {
        name: value for name, value in os.environ.items() if name not in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")
    }
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, env=variables,
        preexec_fn=lambda: os.sched_setaffinity(0, here),
    )  # fmt: skip
    row = {"work": work, "size": size, "precision": precision, "cores": cores}
    if done.returncode:
        return {**row, "refused": done.stderr.strip().splitlines()[-1].removeprefix("ValueError: ")}
    return {**row, **json.loads(done.stdout)}


def measure(out: Path) -> None:
    """Measure everything and write the results; what the file already has of this commit is kept."""
    import torch

    from negvae.config import preset
    from negvae.device import computes_in_bfloat16
    from negvae.files import write_text
    from negvae.runs.provenance import provenance

    origin = provenance(preset("general", "random", device="cpu"))
    results = json.loads(out.read_text()) if out.exists() else {"provenance": origin, "rows": []}
    if results["provenance"]["commit"] != origin["commit"]:
        results = {"provenance": origin, "rows": []}
    done = {tuple(row[name] for name in ("work", "size", "precision", "cores")) for row in results["rows"]}
    cores = len(os.sched_getaffinity(0))
    precisions = ("float32", "bfloat16") if computes_in_bfloat16(torch.device("cpu")) else ("float32",)
    plan = [(work, size, precision, cores) for size in SIZES for precision in precisions for work in ("train", "score")]
    counts = [count for count in (1, 2, 4, 8, 16, 32, 64) if count < cores]
    plan += [
        (work, 32, precision, count) for count in counts for precision in precisions for work in ("train", "score")
    ]
    for item in plan:
        if item in done:
            continue
        results["rows"].append(measured(*item))
        print(results["rows"][-1], flush=True)
        write_text(out, json.dumps(results, indent=1) + "\n")


def draw(results: dict[str, Any], folder: Path) -> list[Path]:
    """Draw speed and memory against the size of images, and speed against cores; return the pictures' paths."""
    from matplotlib.figure import Figure

    rows = [row for row in results["rows"] if "refused" not in row]
    most = max(row["cores"] for row in rows)
    pictures = []
    for name, axis, value, where, label in (
        ("scale-speed", "size", "images_per_second", {"cores": most}, "images/s"),
        ("scale-memory", "size", "peak_mb", {"cores": most}, "peak memory, MB"),
        ("scale-cores", "cores", "images_per_second", {"size": 32}, "images/s"),
    ):
        figure = Figure(figsize=(5, 3.4), layout="constrained")
        axes = figure.subplots()
        for work, dash in (("train", "-"), ("score", "--")):
            for precision, color in (("float32", "#0072b2"), ("bfloat16", "#d55e00")):
                fixed = {"work": work, "precision": precision, **where}
                points = sorted(
                    (row[axis], row[value]) for row in rows if all(row[key] == wanted for key, wanted in fixed.items())
                )
                if points:
                    axes.plot(*zip(*points, strict=True), dash, marker="o", color=color, label=f"{work}, {precision}")
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
        ticks = sorted({row[axis] for row in rows})
        axes.set_xticks(ticks, [str(tick) for tick in ticks])
        axes.set_xlabel("side of the image, pixels" if axis == "size" else "cores")
        axes.set_ylabel(label)
        axes.legend(fontsize=8)
        axes.grid(alpha=0.3)
        pictures.append(folder / f"{name}.svg")
        figure.savefig(pictures[-1], metadata={"Date": None})
    return pictures


def markdown(results: dict[str, Any], pictures: list[Path]) -> str:
    """Return the pictures and what they were measured on, in Markdown."""
    names = ("Speed against the size of images", "Peak memory against the size of images", "Speed against cores")
    lines = [f"![{name}]({path.name})" for name, path in zip(names, pictures, strict=True)]
    refused = sorted({f"{row['size']}x{row['size']}: {row['refused']}" for row in results["rows"] if "refused" in row})
    origin = results["provenance"]
    lines += ["", f"{origin['device']}, torch {origin['torch']}, commit {origin['commit']}.", *refused]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--draw", action="store_true", help="draw what has been measured, and measure nothing")
    parser.add_argument("--child", nargs=3, default=None, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        work, size, precision = options.child
        print(json.dumps(child(work, int(size), precision)))
        return
    if not options.draw:
        measure(options.out)
    results = json.loads(options.out.read_text())
    pictures = draw(results, PAGE.parent)
    if options.out == RESULTS:
        replace_table(PAGE, *MARKS, markdown(results, pictures))
    for path in pictures:
        print(path)


if __name__ == "__main__":
    main()
