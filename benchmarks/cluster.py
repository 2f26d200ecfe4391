"""100,000 images scored by one Ray node with one core, and by two: images per second, and their ratio.

    .venv/bin/python benchmarks/cluster.py [--images 100000] [--rounds 2] [--out benchmarks/results/cluster.json]

Both nodes run on this machine, each bound to a core of its own; the head, which does no work, and this process are
bound to neither. Rounds alternate. Also measured, on one core and without a cluster: how fast images are read from
.npy, from PNG in Parquet and from PNG files. Needs the extra `ray` and two cores with nothing else to do.
"""

import argparse
import json
import os
import platform
import tempfile
import time
from pathlib import Path

# Before anything is started: workers that do not yield to others, one thread each, and nothing sent to anyone.
os.environ.update(RAY_worker_niceness="0", OMP_NUM_THREADS="1", RAY_USAGE_STATS_ENABLED="0")

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image
from ray.cluster_utils import Cluster

from negvae.cluster.score import score_on_cluster
from negvae.config import preset
from negvae.data.batches import InputSpec
from negvae.data.spans import spans
from negvae.data.streams import read
from negvae.runs.train import run
from negvae.version import source_commit

MEMORY = 100 * 2**20
TARGET = 1.7


def spots(count: int, seed: int = 0) -> np.ndarray:
    """Smooth spots with some noise, N x 1 x 28 x 28: as hard to decode as photographs of things."""
    randomness = np.random.default_rng(seed)
    y, x = np.mgrid[0:28, 0:28]
    cy, cx, r = (randomness.uniform(low, high, (count, 1, 1)) for low, high in ((8, 20), (8, 20), (3, 8)))
    images = 220 * np.exp(-((y - cy) ** 2 + (x - cx) ** 2) / (2 * r**2)) + randomness.uniform(0, 30, (count, 28, 28))
    return images.astype(np.uint8)[:, None]


def one_round(cores: list[int], model: Path, images: str, out: Path, shard_rows: int) -> dict[str, float]:
    """Seconds and rates with one node on each of these cores."""
    everywhere = os.sched_getaffinity(0)
    cluster = Cluster(
        initialize_head=True, head_node_args={"num_cpus": 0, "object_store_memory": MEMORY, "include_dashboard": False}
    )
    for core in cores:
        os.sched_setaffinity(0, {core})  # what is started now inherits it
        cluster.add_node(num_cpus=1, object_store_memory=MEMORY)
    os.sched_setaffinity(0, everywhere)
    reached: list[tuple[float, int]] = []
    began = time.monotonic()
    try:
        summary = score_on_cluster(
            model, [images], str(out), address=cluster.address, shard_rows=shard_rows, precision="float32",
            on_rows=lambda rows: reached.append((time.monotonic(), rows)),
        )  # fmt: skip
    finally:
        cluster.shutdown()
    seconds = summary.seconds  # as the command counts: joining the cluster and starting the workers included
    # Nodes start one after the other: what is counted begins when each has given its first part.
    (first, before), (last, rows) = reached[len(cores) - 1], reached[-1]
    return {
        "nodes": len(cores), "rows": summary.rows, "errors": summary.errors, "job_seconds": round(seconds, 2),
        "job_images_per_second": round(rows / seconds, 1), "start_seconds": round(reached[0][0] - began, 2),
        "images_per_second": round((rows - before) / (last - first), 1),
        "images_per_second_per_core": round((rows - before) / (last - first) / len(cores), 1),
    }  # fmt: skip


def reading_rates(folder: Path, images: np.ndarray) -> dict[str, float]:
    """Images per second that one core reads and decodes, by the kind of file."""
    np.save(folder / "rows.npy", images)
    (folder / "png").mkdir()
    encoded = []
    for index, image in enumerate(images[:5000]):
        path = folder / "png" / f"{index:05d}.png"
        Image.fromarray(image[0]).save(path)
        encoded.append(path.read_bytes())
    pq.write_table(pa.table({"image": encoded}), folder / "rows.parquet", row_group_size=1000)
    rates = {}
    for name, path in ((".npy", "rows.npy"), ("PNG in Parquet", "rows.parquet"), ("PNG files", "png")):
        began = time.perf_counter()
        count = sum(map(len, read(spans([str(folder / path)]), InputSpec((1, 28, 28)), threads=1)))
        rates[name] = round(count / (time.perf_counter() - began), 1)
    return rates


def follows(rate: float) -> dict[str, object]:
    """What a rate in images per second per core makes of numbers of images, and the bytes that a core takes."""
    sizes = {}
    for count in (10**5, 10**6, 10**7, 10**8, 10**9):
        hours = count / rate / 3600
        sizes[str(count)] = {
            "core_hours": hours, "minutes_on_a_core": 60 * hours, "minutes_on_16_cores": 60 * hours / 16,
            "hours_on_16_cores": hours / 16, "minutes_on_8_times_16_cores": 60 * hours / 128,
        }  # fmt: skip
    return {"sizes": sizes, "megabytes_per_second_per_core": rate * 28 * 28 / 1e6}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=100_000)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--shard-rows", type=int, default=2_500)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/cluster.json"))
    options = parser.parse_args()
    cores = sorted(os.sched_getaffinity(0))[:2]
    if len(cores) < 2:
        parser.error("two cores are needed")
    with tempfile.TemporaryDirectory(prefix="negvae-") as place:
        folder = Path(place)
        np.save(folder / "in.npy", spots(2_000, 1))
        np.save(folder / "images.npy", spots(options.images))
        config = preset("gray", str(folder / "in.npy"), epochs=1, batch_size=100, precision="float32", calibration=0.2,
                        optimizer="adam", learning_rate=1e-3)  # fmt: skip
        run(config, folder / "model")
        rates = reading_rates(folder, spots(20_000, 2))
        rounds = []
        for number in range(options.rounds):
            for used in (cores[:1], cores):
                out = folder / f"out-{number}-{len(used)}"
                rounds.append(one_round(used, folder / "model", str(folder / "images.npy"), out, options.shard_rows))
                print(rounds[-1], flush=True)
        load = [round(value, 2) for value in os.getloadavg()]
    best = {nodes: max(r["images_per_second"] for r in rounds if r["nodes"] == nodes) for nodes in (1, 2)}
    jobs = {nodes: min(r["job_seconds"] for r in rounds if r["nodes"] == nodes) for nodes in (1, 2)}
    content = {
        "what": f"{options.images} gray images of 28 x 28 from one .npy, preset gray, score auto, float32",
        "ratio": round(best[2] / best[1], 3), "job_ratio": round(jobs[1] / jobs[2], 3), "target": TARGET,
        "images_per_second_per_core": {"one node": best[1], "two nodes": round(best[2] / 2, 1)},
        "reading_images_per_second_per_core": rates, "follows": follows(round(best[2] / 2, 1)), "rounds": rounds,
        "load_average": load,
        "machine": next((line.split(":", 1)[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines()
                         if line.startswith("model name")), platform.processor()),
        "cores": len(os.sched_getaffinity(0)), "commit": source_commit(),
    }  # fmt: skip
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    print(
        f"two nodes / one node: {content['ratio']} while scoring, {content['job_ratio']} whole jobs (target {TARGET})"
    )
    print(f"images/s per core: {content['images_per_second_per_core']}; reading: {rates}")
    print(f"written: {options.out}")


if __name__ == "__main__":
    main()
