"""Tiles of images of any size, and maps of tiles blended into one."""

import numpy as np
import pytest

from negvae.data.tiling import blend, cut, tiling

SIZES = [(128, 128), (129, 128), (301, 517), (1000, 131), (64, 64), (50, 300), (1, 1), (127, 400)]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("small", ["enlarge", "pad"])
@pytest.mark.parametrize(("tile", "overlap"), [((128, 128), 0.25), ((64, 96), 0.5), ((31, 32), 0.0)])
def test_blending_the_tiles_gives_the_image_back(size, small, tile, overlap):
    plan = tiling(size, tile, overlap, small)
    image = np.random.default_rng(0).integers(0, 256, (3, *size), dtype=np.uint8)
    tiles = cut(image, plan)
    assert tiles.shape == (len(plan), 3, *tile)
    assert tiles.dtype == np.uint8
    if plan.padded or plan.canvas == size:
        back = np.stack([blend(tiles[:, channel], plan) for channel in range(3)])
        np.testing.assert_allclose(back, image, atol=1e-9)


@pytest.mark.parametrize("size", SIZES)
def test_tiles_lie_in_the_image_and_share_what_was_asked(size):
    plan = tiling(size, (64, 64), 0.25)
    for starts, length in ((plan.tops, plan.canvas[0]), (plan.lefts, plan.canvas[1])):
        assert starts[0] == 0
        assert starts[-1] == length - 64
        assert all(0 < step <= 48 for step in np.diff(starts))
    assert len(plan) == len(plan.corners)


def test_image_of_a_tiles_size_is_one_tile_as_it_is():
    image = np.arange(3 * 32 * 32, dtype=np.uint8).reshape(3, 32, 32)
    plan = tiling((32, 32), (32, 32))
    np.testing.assert_array_equal(cut(image, plan), image[None])


def test_blended_map_has_no_seams_where_tiles_disagree():
    plan = tiling((64, 200), (64, 64), 0.5)
    values = np.random.default_rng(1).uniform(0, 1, (len(plan), 1, 1)) * np.ones((1, 64, 64))
    steps = np.abs(np.diff(blend(values, plan), axis=1))
    assert steps.max() < 0.1  # a hard border would step by about 0.5


def test_map_of_a_small_image_has_the_images_size():
    for small in ("enlarge", "pad"):
        plan = tiling((20, 45), (64, 64), small=small)
        slope = np.broadcast_to(np.linspace(0, 1, plan.canvas[1]), plan.canvas)
        found = blend(cut(slope[None].astype(np.float32), tiling(plan.canvas, (64, 64)))[:, 0], plan)
        assert found.shape == (20, 45)
        assert (np.diff(found[0]) > 0).all()


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
def test_enlarging_keeps_the_type_and_the_range(dtype):
    image = np.full((5, 10, 20), 200, dtype)
    tiles = cut(image, tiling((10, 20), (32, 32)))
    assert tiles.dtype == dtype
    assert (tiles == 200).all()


def test_wrong_shapes_are_refused_in_one_line():
    plan = tiling((40, 40), (32, 32))
    with pytest.raises(ValueError, match="its tiling is for"):
        cut(np.zeros((1, 41, 40), np.uint8), plan)
    with pytest.raises(ValueError, match="the tiling takes"):
        blend(np.zeros((1, 32, 32)), plan)
    with pytest.raises(ValueError, match="overlap is 1"):
        tiling((40, 40), (32, 32), 1.0)
    with pytest.raises(ValueError, match="at least 1 pixel"):
        tiling((0, 40), (32, 32))
