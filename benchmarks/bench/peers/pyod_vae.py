"""PyOD's VAE, which scores the same images flattened; its networks are its own defaults (fully connected)."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyod
import torch
from pyod.models.vae import VAE

from .protocol import Turns, images_for, rate_of, specification


def main() -> None:
    """Run `decision_function` over all images in each round."""
    spec = specification()
    images, batch = np.load(spec["images"]), spec["batch"]
    detector = VAE(epoch_num=1, batch_size=batch, verbose=0, device=spec["device"])
    detector.fit(_flat(images[: 4 * batch]))

    def score(images: Any) -> None:
        detector.decision_function(_flat(images))

    images = images_for(images, rate_of(score, images, batch), spec["seconds"], batch)
    flat = _flat(images)

    def work() -> float:
        detector.decision_function(flat)
        return len(flat)

    Turns(
        spec["device"], peer=f"PyOD {pyod.__version__}, batch {batch}", torch=str(torch.__version__),
        precision="float32", threads=torch.get_num_threads(),
    ).serve(work)  # fmt: skip


def _flat(images: Any) -> Any:
    return images.reshape(len(images), -1).astype(np.float32) / 255


if __name__ == "__main__":
    main()
