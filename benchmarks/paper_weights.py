"""Keep models of the paper's tables in half precision: `python benchmarks/paper_weights.py FOLDER NAME...`.

FOLDER holds the runs of a profile, such as runs/paper/cpu. Each run becomes a folder results/weights/NAME of less than
1 MB, which all commands take like the run itself. Kept are models that saw nothing but Fashion-MNIST, whose license
(MIT) allows it. Others are left out: MNIST and KMNIST ask that derived works be shared alike, SVHN allows no commercial
use, and CIFAR-10, EMNIST and Tiny-ImageNet state no license.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import torch
from safetensors import safe_open

from negvae.files import write_text
from negvae.runs.artifact import CARD, CONFIG, WEIGHTS, read_config
from negvae.training.checkpoint import save_tensors

OUT = Path("results/weights")
MOST_BYTES = 1_000_000
OF_THE_INLIERS = ("none", "uniform-noise", "added-noise", "generated", "augmented")
"""Sources of negatives that take no other data set."""
NOTE = "\nThe weights are rounded to half precision (float16) here; the figures of the run are those of float32.\n"


def keep(run: Path, out: Path) -> None:
    """Write a run's configuration, model card and weights in half precision to a folder.

    Args:
        run: folder of a finished run.
        out: folder to write to.

    Raises:
        ValueError: if the model saw another data set than Fashion-MNIST, or is too large.
    """
    config, _, _ = read_config(run)
    if config.data != "fashion-mnist" or config.negatives.partition(":")[0] not in OF_THE_INLIERS:
        raise ValueError(f"{run}: only models of Fashion-MNIST alone are kept")
    with safe_open(run / WEIGHTS, "pt") as file:
        header = file.metadata()
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
    halves = {name: tensor.half() if tensor.is_floating_point() else tensor for name, tensor in tensors.items()}
    assert all(torch.isfinite(tensor).all() for tensor in halves.values())
    out.mkdir(parents=True, exist_ok=True)
    save_tensors(out / WEIGHTS, halves, header)
    if (size := (out / WEIGHTS).stat().st_size) > MOST_BYTES:
        shutil.rmtree(out)
        raise ValueError(f"{run}: {size:,} bytes in half precision are more than {MOST_BYTES:,}")
    shutil.copyfile(run / CONFIG, out / CONFIG)
    write_text(out / CARD, (run / CARD).read_text(encoding="utf-8") + NOTE)


if __name__ == "__main__":
    if len(sys.argv) < 3:
        sys.exit(__doc__)
    for name in sys.argv[2:]:
        keep(Path(sys.argv[1]) / name, OUT / name)
        print(OUT / name, f"{(OUT / name / WEIGHTS).stat().st_size:,} bytes")
