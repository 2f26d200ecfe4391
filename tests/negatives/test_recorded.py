"""What transformations and defects make of one batch and one seed is recorded: a run that is trained again must see it.

The figures are the mean of what is made, and its product with a wave; they hold in any order of summation, and change
with any constant, range or formula.
"""

import math

import pytest
import torch

from negvae.negatives import defects, transformations
from tests.conftest import blobs

SIZE = (24, 32)
RECORDED = {
    "jigsaw": (0.50990, -0.02887),
    "cutmix": (0.48969, 0.04492),
    "mixup": (0.53543, 0.00689),
    "rotation": (0.50990, -0.00135),
    "sketch": (0.18692, 0.01051),
    "sketched_jigsaw": (0.10014, 0.08537),
    "strokes": (0.47675, -0.03193),
    "zoom": (0.52617, 0.00202),
    "shuffled": (1.92599, 1.83031),
    "box": (1.64973, 7.57861),
    "spread": (1.85633, 4.89566),
    "shapes": (0.04564, -0.08870),
    "patches": (0.05505, -0.09037),
    "moved": (0.51650, -0.00069),
    "bands": (0.09362, 0.26984),
    "tinted": (0.49719, -0.00490),
    "textures": (0.52068, 0.11547),
    "noise": (-0.01109, 0.22837),
    "seamless": (0.50930, -0.00054),
    "defects": (0.39406, 0.02202),
}


def figures(values: torch.Tensor) -> tuple[float, float]:
    """The mean, and the mean of the products with a wave of a length that fits into no image."""
    flat = values.double().flatten()
    wave = torch.sin(torch.arange(len(flat), dtype=torch.float64) * 0.7317)
    return float(flat.mean()), float((flat * wave).mean() * math.sqrt(len(flat)))


def made(name: str) -> torch.Tensor:
    """What a function makes of 40 images, or of 40 rows, with the seed 7."""
    generator = torch.Generator().manual_seed(7)
    if name in ("shuffled", "box", "spread"):
        rows = 3 * torch.randn(40, 5, 1, 1, generator=torch.Generator().manual_seed(1)) + 2
        return getattr(transformations, name)(rows, generator)
    images = blobs(40, (3, *SIZE)).float() / 255
    images[::2] = 1 - images[::2] / 2
    if hasattr(transformations, name):
        return getattr(transformations, name)(images, generator)
    if name == "noise":
        return defects.noise(images, 2, generator)
    if name == "seamless":
        return defects.seamless(images, images.roll(1, 0), defects.shapes(images, generator))
    if name == "defects":
        return torch.cat([part.flatten() for part in defects.defects(images, generator)])
    return getattr(defects, name)(images, generator)


@pytest.mark.parametrize("name", RECORDED)
def test_what_is_made_is_what_was_recorded(name):
    assert figures(made(name)) == pytest.approx(RECORDED[name], abs=2e-3)
