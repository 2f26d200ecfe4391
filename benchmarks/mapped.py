"""Train on decoded images that are mapped from a file, beside the same images in memory, in turns.

    python -m benchmarks.mapped [--rounds 5] [--images 20000] [--size 64]

The file's pages are dropped from the system's memory before every round of the mapped images where the system lets a
program ask for that, so that each image comes from the disk the first time. Prints the images/s of every round and the
ratio of the medians, and keeps them in benchmarks/results/mapped.json.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
from pathlib import Path

import numpy as np
import torch

from negvae.config import preset
from negvae.files import write_text
from negvae.runs.provenance import provenance
from negvae.training.loop import train

RESULT = Path(__file__).parent / "results" / "mapped.json"


def forget(path: Path) -> bool:
    """Ask the system to drop a file's pages; return whether it can be asked."""
    if not hasattr(os, "posix_fadvise"):
        return False
    with path.open("rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    return True


def rate(images: torch.Tensor) -> float:
    """Return the images/s of one epoch."""
    config = preset(
        "general", "benchmark", negatives="none", calibration=0.0, epochs=1, batch_size=64, network="pyramid",
        device="cpu",
    )  # fmt: skip
    result = train(config, images, workers=2)
    return len(images) // 64 * 64 / result.progress.seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--images", type=int, default=20_000)
    parser.add_argument("--size", type=int, default=64)
    options = parser.parse_args()
    shape = (options.images, 3, options.size, options.size)
    found: dict[str, list[float]] = {"memory": [], "mapped": []}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "images.pixels"
        mapped = np.memmap(path, np.uint8, "w+", shape=shape)
        draw = np.random.default_rng(0)
        for start in range(0, options.images, 1000):
            mapped[start : start + 1000] = draw.integers(
                0, 256, (min(1000, options.images - start), *shape[1:]), np.uint8
            )
        mapped.flush()
        memory = torch.from_numpy(np.array(mapped))
        del mapped
        rate(memory[:640])
        cold = True
        for number in range(options.rounds):
            for name in ("memory", "mapped") if number % 2 else ("mapped", "memory"):
                if name == "mapped":
                    cold = forget(path) and cold
                    images = torch.from_numpy(np.memmap(path, np.uint8, "c", shape=shape))
                else:
                    images = memory
                found[name].append(rate(images))
                print(f"{name}: {found[name][-1]:,.0f} images/s", flush=True)
    ratio = statistics.median(found["mapped"]) / statistics.median(found["memory"])
    print(f"mapped / memory: {ratio:.2f}")
    content = {
        "images": options.images, "size": options.size, "cold": cold, "images_per_second": found, "ratio": ratio,
        "provenance": provenance(preset("general", "benchmark", device="cpu")),
    }  # fmt: skip
    write_text(RESULT, json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
