"""The images of a source of negatives: none at all, and intensities that are floats."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from negvae.model.inputs import Features, Pixels
from negvae.negatives.sources import Auxiliary, zoomed

IMAGES = torch.arange(8 * 256).remainder(256).to(torch.uint8).reshape(8, 1, 16, 16)


@pytest.mark.parametrize("source", [Auxiliary, zoomed])
def test_a_set_without_images_is_refused(source) -> None:
    """Drawing from it would end in an error of torch's about the bounds of random integers."""
    with pytest.raises(ValueError, match="the negatives' data set holds no images: give at least one"):
        source(IMAGES[:0])


def test_pixels_as_floats_are_refused() -> None:
    """Divided by 255 once more they would be black images, and the model would learn to find those."""
    model = SimpleNamespace(takes_features=False, inputs=Pixels())  # a network would take seconds to build
    pixels = IMAGES.float() / 255
    with pytest.raises(ValueError, match=r"negatives are torch.float32 \(8, 1, 16, 16\): this model takes uint8"):
        Auxiliary(pixels).sample(pixels, model, torch.Generator())


def test_rows_of_features_are_floats() -> None:
    """Negatives of a model of rows are stored as its inliers are."""
    rows = torch.randn(16, 3, 1, 1, generator=torch.Generator().manual_seed(0))
    inputs = Features(3)
    model = SimpleNamespace(takes_features=True, inputs=inputs, prepare=inputs)
    assert Auxiliary(rows + 5).sample(rows, model, torch.Generator()).size == 16
