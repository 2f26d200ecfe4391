"""Defects put into inliers: the mask names the changed pixels, and nothing else changes."""

import numpy as np
import pytest
import torch

from negvae.negatives.defects import blurred, defects, seamless, visible
from tests.conftest import blobs


@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 32, 20), (5, 17, 16)])
def test_masks_name_what_changed(shape):
    images = blobs(24, shape).float() / 255
    made = defects(images, torch.Generator().manual_seed(1))
    assert made.images.shape == images.shape
    assert made.masks.shape == (24, 1, *shape[1:])
    assert made.images.min() >= 0
    assert made.images.max() <= 1
    assert torch.equal(made.masks, visible(images, made.images))
    shares = made.masks.mean((1, 2, 3))
    assert (shares > 0).float().mean() > 0.5  # black on black does not show
    assert shares.max() < 0.6
    again = defects(images, torch.Generator().manual_seed(1))
    assert torch.equal(again.images, made.images)


def test_seamless_solves_poissons_equation():
    # Five-point Laplacian inside the mask as in the content; outside, the image as it was.
    randomness = torch.Generator().manual_seed(0)
    images, content = torch.rand(2, 3, 24, 24, generator=randomness), torch.rand(2, 3, 24, 24, generator=randomness)
    masks = torch.zeros(2, 1, 24, 24)
    masks[0, :, 5:9, 6:11], masks[1, :, 12:15, 3:9] = 1, 1
    result = seamless(images, content, masks)
    outside = (masks == 0).expand_as(images)
    assert torch.allclose(result[outside], images[outside], atol=1e-6)
    gap = (result - content).double().numpy()
    neighbors = np.mean([np.roll(gap, shift, axis) for shift, axis in ((1, 2), (-1, 2), (1, 3), (-1, 3))], 0)
    wrong = np.abs(neighbors - gap)[(masks == 1).expand_as(images).numpy()]
    assert wrong.max() < 0.05
    # Without the correction, the seam would be as large as the difference of two random images.
    assert np.abs((content - images).numpy()).max() > 0.9


def test_seamless_takes_images_of_a_few_rows():
    images = torch.linspace(0, 1, 16).expand(1, 1, 2, 16)
    masks = torch.zeros(1, 1, 2, 16)
    masks[..., 8:] = 1
    made = seamless(images, torch.zeros_like(images), masks)
    torch.testing.assert_close(made[..., :8], images[..., :8])
    assert ((made[..., 8:] > 0.2) & (made[..., 8:] < 0.8)).all()  # as what is known, from coarser means


def test_edges_are_softened_only_near_the_edge():
    masks = torch.zeros(1, 1, 32, 32)
    masks[..., 8:24, 8:24] = 1
    soft = blurred(masks)
    assert soft[0, 0, 16, 16] == 1
    assert soft[0, 0, 0, 0] == 0
    assert 0 < soft[0, 0, 8, 16] < 1
