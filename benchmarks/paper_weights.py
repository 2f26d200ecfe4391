"""Keep models of the paper's tables in half precision: `python benchmarks/paper_weights.py FOLDER NAME...`.

FOLDER holds the runs of a profile, such as runs/paper/cpu. Each run becomes a folder results/weights/NAME of less than
1 MB, which all commands take like the run itself. Kept are models that saw nothing but Fashion-MNIST, whose license
(MIT) allows it. Others are left out: MNIST and KMNIST ask that derived works be shared alike, SVHN allows no commercial
use, and CIFAR-10 and Tiny-ImageNet state no license.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import torch
from safetensors import safe_open

from negvae.files import temporary_folder, write_text
from negvae.runs.artifact import CONFIG, WEIGHTS, read_config
from negvae.runs.card import CARD
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
        out: folder to write to; one that is there is replaced once the new one is complete.

    Raises:
        ValueError: if the run is not finished, or the model saw another data set than Fashion-MNIST, is too large, or
            has weights beyond the range of float16.
    """
    config, _, _ = read_config(run)
    if config.data != "fashion-mnist" or config.negatives.partition(":")[0] not in OF_THE_INLIERS:
        raise ValueError(f"{run}: only models of Fashion-MNIST alone are kept")
    with safe_open(run / WEIGHTS, "pt") as file:
        header = file.metadata()
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
    if header["finished"] != "true":
        raise ValueError(f"{run}: the run is not finished")
    halves = {name: tensor.half() if tensor.is_floating_point() else tensor for name, tensor in tensors.items()}
    if beyond := [name for name, tensor in halves.items() if not torch.isfinite(tensor).all()]:
        raise ValueError(f"{run}: {', '.join(beyond)}: values beyond the range of float16")
    out.parent.mkdir(parents=True, exist_ok=True)
    with temporary_folder(out.parent, out.name) as made:
        save_tensors(made / WEIGHTS, halves, header)
        if (size := (made / WEIGHTS).stat().st_size) > MOST_BYTES:
            raise ValueError(f"{run}: {size:,} bytes in half precision are more than {MOST_BYTES:,}")
        shutil.copyfile(run / CONFIG, made / CONFIG)
        write_text(made / CARD, (run / CARD).read_text(encoding="utf-8") + NOTE)
        if out.exists():
            shutil.rmtree(out)
        shutil.copytree(made, out)


if __name__ == "__main__":
    if len(sys.argv) < 3:
        sys.exit(__doc__)
    for name in sys.argv[2:]:
        keep(Path(sys.argv[1]) / name, OUT / name)
        print(OUT / name, f"{(OUT / name / WEIGHTS).stat().st_size:,} bytes")
