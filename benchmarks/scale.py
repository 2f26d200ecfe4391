"""Images per second and memory against the size of images and the number of cores: `python -m benchmarks.scale`.

Each figure is of a process of its own, which trains and scores the preset `general` (network `pyramid`) on random color
images for some seconds; training is by one worker a core, scoring by threads inside operators. Results go to
benchmarks/results/scale.json, from which `python -m benchmarks.scale --draw` makes the pictures of docs/benchmarks.md
and puts them there; nothing is measured then. Cores are limited by the operating system. A machine that is not idle
gives other figures.

What more cores than there are would bring is computed from what one thread takes for the parts of a step (`Meeting`).
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
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from negvae.report.tables import replace_table

RESULTS, PAGE = Path("benchmarks/results/scale.json"), Path("docs/benchmarks.md")
MARKS = ("<!-- scale: begin (python -m benchmarks.scale) -->", "<!-- scale: end -->")
SIZES = (16, 32, 64, 128, 256)
BATCH, SECONDS = 64, 2.0
SHARED_BATCH = 256
"""Number of images in a batch that many cores share."""
COUNTS = (1, 2, 4, 8, 16, 32, 64)
COLORS = {"float32": "#0072b2", "bfloat16": "#d55e00"}
PART_ROWS = (2, 4, 8, 16, 32, 64, 128, 256)


@dataclass(frozen=True)
class Meeting:
    """What one thread takes for the parts of a training step that workers share, in seconds.

    Attributes:
        rows: by number of rows, forward and backward pass of a part of the batch.
        add: adding one part's gradients up.
        update: the optimizer's update of all weights.
        draw: drawing the batch, which a free worker does ahead.
    """

    rows: Mapping[int, float]
    add: float
    update: float
    draw: float

    def step(self, workers: int, waiting: bool) -> float:
        """Compute the seconds of a step that a number of workers share, one part each.

        The passes of a part take a time that no number of rows shortens, that of the calls: what the smallest part
        takes. Whether workers wait for one another in it, since the interpreter runs in one thread at a time, depends
        on how much of it is Python.

        Args:
            workers: number of workers, each with a core.
            waiting: whether they make all calls by turns; the truth lies between this and none.

        Returns:
            Seconds.
        """
        part = self.rows[max(SHARED_BATCH // workers, min(self.rows))]
        calls = min(self.rows.values())
        passes = max(part, workers * calls) if waiting else part
        return passes + self.draw / workers + workers * self.add + self.update


def meeting(size: int, precision: str) -> dict[str, Any]:
    """Measure the parts of a step in one thread of this process."""
    import torch

    from negvae.config import preset
    from negvae.negatives import EVERY
    from negvae.training.step import Learner

    torch.set_num_threads(1)
    images = torch.randint(0, 256, (SHARED_BATCH, 3, size, size), dtype=torch.uint8, generator=torch.Generator())
    learners = {
        rows: Learner(preset("general", "random", batch_size=rows, precision=precision, device="cpu"), images, None)
        for rows in PART_ROWS
    }
    whole, both = learners[SHARED_BATCH], [learners[SHARED_BATCH].encoder, learners[SHARED_BATCH].decoder]
    order, gradients = torch.arange(SHARED_BATCH), [torch.zeros_like(each.master) for each in both]

    def add() -> None:
        for weights, gradient in zip(both, gradients, strict=True):
            gradient.add_(weights.master.detach(), alpha=0.5)

    def update() -> None:
        for weights in both:
            weights.update()

    def draw_batch() -> None:
        whole.draw(whole.model, whole.randomness, order, EVERY)

    def step(learner: Learner) -> None:
        learner.begin_epoch(start, 0)
        learner.step()

    start = whole.randomness.get_state()
    costs = {name: seconds_of(work) for name, work in (("add", add), ("update", update), ("draw", draw_batch))}
    steps = {rows: seconds_of(partial(step, learner)) for rows, learner in learners.items()}
    rows = {
        count: max(took - costs["update"] - costs["draw"] * count / SHARED_BATCH, 1e-6) for count, took in steps.items()
    }
    return {"rows": rows, **costs}


def shared(size: int, precision: str) -> dict[str, Any]:
    """Measure a step that this process's cores share, one worker each."""
    from benchmarks.workers import learner_of_config, rate
    from negvae.config import preset

    config = preset("general", "random", batch_size=SHARED_BATCH, precision=precision, device="cpu")
    workers = len(os.sched_getaffinity(0))
    return {"images_per_second": rate(learner_of_config(config, (3, size, size)), workers, 1, SECONDS)}


def seconds_of(work: Callable[[], object]) -> float:
    """Return the median time of a piece of work, after a first one that does not count."""
    work()
    seconds: list[float] = []
    while sum(seconds) < SECONDS / 4 or len(seconds) < 5:
        began = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - began)
    return statistics.median(seconds)


def child(work: str, size: int, precision: str) -> dict[str, Any]:
    """Measure one kind of work in this process."""
    import torch

    from negvae.config import preset
    from negvae.model import build_vae
    from negvae.scoring import Scorer
    from negvae.training.choice import obstacle
    from negvae.training.step import Learner

    cores = len(os.sched_getaffinity(0))
    torch.set_num_threads(cores)
    images = torch.randint(0, 256, (BATCH, 3, size, size), dtype=torch.uint8, generator=torch.Generator())
    config = preset("general", "random", batch_size=BATCH, precision=precision)
    if work == "train":
        learner = Learner(config, images, None)
        if obstacle(learner, cores) == "":
            torch.set_num_threads(1)
            learner.share_among(cores)
        start = learner.randomness.get_state()

        def once() -> None:
            learner.begin_epoch(start, 0)
            learner.step()
            learner.finish()
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
    results: dict[str, Any] = json.loads(out.read_text()) if out.exists() else {"provenance": origin, "rows": []}
    if results["provenance"]["commit"] != origin["commit"]:
        results = {"provenance": origin, "rows": []}
    done = {tuple(row[name] for name in ("work", "size", "precision", "cores")) for row in results["rows"]}
    cores = len(os.sched_getaffinity(0))
    precisions = ("float32", "bfloat16") if computes_in_bfloat16(torch.device("cpu")) else ("float32",)
    plan = [(work, size, precision, cores) for size in SIZES for precision in precisions for work in ("train", "score")]
    counts = [count for count in COUNTS if count < cores]
    plan += [("meeting", 32, precision, 1) for precision in precisions]
    plan += [("shared", 32, precision, count) for precision in precisions for count in (*counts, cores)]
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
    for name, value, label in (
        ("scale-speed", "images_per_second", "images/s"), ("scale-memory", "peak_mb", "peak memory, MB"),
        ("scale-cores", "images_per_second", "images/s"),
    ):  # fmt: skip
        figure = Figure(figsize=(5, 3.4), layout="constrained")
        axes = figure.subplots()
        if name == "scale-cores":
            _draw_cores(axes, rows)
        else:
            for work, dash in (("train", "-"), ("score", "--")):
                for precision, color in COLORS.items():
                    points = sorted(
                        (row["size"], row[value]) for row in rows
                        if (row["work"], row["precision"], row["cores"]) == (work, precision, most)
                    )  # fmt: skip
                    if points:
                        axes.plot(
                            *zip(*points, strict=True), dash, marker="o", color=color, label=f"{work}, {precision}"
                        )
            axes.set_xlabel("side of the image, pixels")
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
        ticks = COUNTS if name == "scale-cores" else sorted({row["size"] for row in rows})
        axes.set_xticks(ticks, [str(tick) for tick in ticks])
        axes.set_ylabel(label)
        axes.legend(fontsize=8)
        axes.grid(alpha=0.3)
        pictures.append(folder / f"{name}.svg")
        figure.savefig(pictures[-1], metadata={"Date": None})
    return pictures


def _draw_cores(axes: Any, rows: list[dict[str, Any]]) -> None:
    """Draw what was measured against cores as points, and what follows from one thread's times as a band."""
    for precision, color in COLORS.items():
        for model in (row for row in rows if (row["work"], row["precision"]) == ("meeting", precision)):
            costs = Meeting({int(count): took for count, took in model["rows"].items()}, model["add"], model["update"],
                            model["draw"])  # fmt: skip
            band = [[SHARED_BATCH / costs.step(count, waiting) for count in COUNTS] for waiting in (True, False)]
            axes.fill_between(COUNTS, *band, color=color, alpha=0.2, label=f"computed, {precision}")
        points = sorted(
            (row["cores"], row["images_per_second"]) for row in rows
            if (row["work"], row["precision"]) == ("shared", precision)
        )  # fmt: skip
        if points:
            axes.plot(*zip(*points, strict=True), "o", color=color, label=f"measured, {precision}")
    axes.set_xlabel("cores, one worker each")


def markdown(results: dict[str, Any], pictures: list[Path]) -> str:
    """Return the pictures and what they were measured on, in Markdown."""
    names = (
        "Speed against the size of images", "Peak memory against the size of images",
        f"Training speed against cores, batches of {SHARED_BATCH} images of 32x32",
    )  # fmt: skip
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
        special = {"meeting": meeting, "shared": shared}
        found = special[work](int(size), precision) if work in special else child(work, int(size), precision)
        print(json.dumps(found))
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
