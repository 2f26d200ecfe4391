"""Measures of maps by masks, against their definitions."""

import numpy as np
import pytest

from negvae.scoring.localization import localization, region_overlap


def test_overlap_is_the_mean_over_regions_at_each_threshold():
    draw = np.random.default_rng(0)
    masks = np.zeros((3, 12, 12), bool)
    masks[0, 1:3, 1:3], masks[0, 6:11, 5:10], masks[1, 4:6, :2] = True, True, True
    maps = draw.integers(0, 30, masks.shape) + 15.0 * masks
    regions = [(0, np.s_[1:3, 1:3]), (0, np.s_[6:11, 5:10]), (1, np.s_[4:6, :2])]
    curve = [(0.0, 0.0)]
    for threshold in np.unique(maps)[::-1]:
        above = maps >= threshold
        curve.append((above[~masks].mean(), np.mean([above[image][place].mean() for image, place in regions])))
    rates, overlaps = np.array(curve).T
    grid = np.linspace(0, 0.3, 200_001)
    assert region_overlap(maps, masks) == pytest.approx(np.interp(grid, rates, overlaps).mean(), abs=1e-4)


def test_no_masks_and_other_shapes_are_refused():
    with pytest.raises(ValueError, match="mark no pixel"):
        localization(np.zeros((2, 4, 4)), np.zeros((2, 4, 4), bool))
    with pytest.raises(ValueError, match="both must be"):
        localization(np.zeros((2, 4, 4)), np.zeros((2, 4, 5), bool))
    masks = np.zeros((2, 4, 4), bool)
    masks[1, 0] = True
    assert localization(np.zeros((2, 4, 4)), masks, np.zeros(2)).image_auroc == 0.5
