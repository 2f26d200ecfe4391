"""`negvae score` on many images: peak memory for few and many, and speed against scoring in memory.

    python benchmarks/stream.py runs/some-run --images 1000000

The images are noise in one .npy. Memory is that of a process of its own for a tenth and for all of them; speed is
measured in this process, rounds of in-memory and streamed scoring taking turns, and shown as the ratio's median. What
is measured is kept in benchmarks/results/stream.json.
"""

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from negvae.files import write_text
from negvae.runs.artifact import load_artifact
from negvae.runs.provenance import provenance
from negvae.runs.score import score_files

RESULT = Path(__file__).parent / "results" / "stream.json"
CHILD = """
import re, sys
from pathlib import Path
from negvae.runs.score import score_files
print(score_files(Path(sys.argv[1]), [sys.argv[2]], Path(sys.argv[3]), names=sys.argv[4:]).describe())
print(re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1])
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--images", type=int, default=1_000_000)
    parser.add_argument("--score", action="append")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--round-images", type=int, default=20_000)
    parser.add_argument("--out", type=Path, default=RESULT)
    options = parser.parse_args()
    names = options.score or ["kl"]
    artifact = load_artifact(options.run)
    scorer = artifact.scorer()
    speed: dict[str, dict[str, object]] = {}
    peaks: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as place:
        files = {}
        for count in (options.round_images, options.images // 10, options.images):
            files[count] = Path(place) / f"{count}.npy"
            array = np.lib.format.open_memmap(files[count], "w+", np.uint8, (count, *artifact.model.shape))
            for start in range(0, count, 10_000):
                part = array[start : start + 10_000]
                part[:] = np.random.default_rng(start).integers(0, 256, part.shape, np.uint8)
            array.flush()
            del array
        images = torch.from_numpy(np.load(files[options.round_images]))
        scorer(images[:2000], names)
        for form in ("parquet", "csv", "jsonl"):
            ratios = []
            for _ in range(options.rounds):
                started = time.perf_counter()
                scorer(images, names)
                memory = time.perf_counter() - started
                started = time.perf_counter()
                score_files(options.run, [str(files[options.round_images])], Path(place) / f"o.{form}", names=names)
                ratios.append(memory / (time.perf_counter() - started))
            speed[form] = {"median": statistics.median(ratios), "rounds": ratios}
            spread = f"{min(ratios):.2f} to {max(ratios):.2f}"
            print(
                f"{form}: {statistics.median(ratios):.2f} of in-memory speed ({spread}, loading included)", flush=True
            )
        for count in (options.images // 10, options.images):
            command = [sys.executable, "-c", CHILD, str(options.run), str(files[count]), f"{place}/out.parquet", *names]
            lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split("\n")
            peaks[str(count)] = int(re.sub(r"[^0-9]", "", lines[1])) / 1024
            print(f"{lines[0]}; peak memory {peaks[str(count)]:.0f} MB", flush=True)
    content = {
        "what": f"{options.round_images} images of {'x'.join(map(str, artifact.model.shape))} from one .npy a round,"
        f" network {artifact.config.network}, score {', '.join(names)}, {scorer.computes_in}",
        "share_of_in_memory_speed": speed, "peak_mb_by_images": peaks,
        "load_average": [round(value, 2) for value in os.getloadavg()], "provenance": provenance(artifact.config),
    }  # fmt: skip
    write_text(options.out, json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
