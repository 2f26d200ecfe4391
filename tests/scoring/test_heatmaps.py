"""Maps of where an image is out-of-distribution: trained, calibrated, and a function of the image alone."""

import numpy as np
import pytest
import torch

from negvae.model.patches import PatchEncoder, _with_places, patch_stride, with_details
from negvae.scoring.blocks import in_this_thread
from negvae.scoring.heatmaps import (
    BINS,
    HIGH,
    LOW,
    Heatmaps,
    bins,
    calibrated_heatmaps,
    surprise,
    surprise_table,
    top_mean,
)
from negvae.training.patches import patch_loss, train_patches
from tests.conftest import blobs


@pytest.fixture(scope="module")
def maps():
    images = blobs(200, (1, 24, 28))
    return calibrated_heatmaps(train_patches(images[:150], steps=120, device="cpu"), images[150:])


def test_a_bright_square_is_found(maps):
    images = blobs(20, (1, 24, 28), 5)
    broken = images.clone()
    broken[:, :, 4:9, 3:8] = 255
    clean, found = maps(images), maps(broken)
    inside = np.zeros((24, 28), bool)
    inside[4:9, 3:8] = True
    assert (found[:, inside].mean(1) > clean[:, inside].mean(1) + 0.5).all()
    assert found[:, inside].mean() > 2 * found[:, ~inside].mean()
    assert (maps.image_scores(broken) > maps.image_scores(images)).mean() > 0.9
    assert np.median(maps.p_values(maps.image_scores(broken))) < 0.1


def test_inliers_have_the_stated_share_of_surprising_pixels(maps):
    fresh = maps(blobs(200, (1, 24, 28), 9))
    for level in (1, 2):
        assert 0.3 * 10**-level < (fresh > level).mean() < 3 * 10**-level


def test_a_map_depends_on_its_image_alone(maps):
    images = blobs(40, (1, 24, 28), 3)
    together = maps(images)
    assert np.array_equal(maps(images.flip(0))[::-1], together)
    assert np.array_equal(maps(images[7:8])[0], together[7])
    assert np.array_equal(maps.image_scores(images[7:9]), maps.image_scores(images)[7:9])


def test_maps_are_in_float32_whatever_the_program_computes_in(maps):
    images, threads = blobs(8, (1, 24, 28), 3), torch.get_num_threads()
    expected = maps(images), maps.image_scores(images)
    torch.set_num_threads(1)
    try:
        # On a GPU the calling thread computes them, with what the program has set for it.
        with in_this_thread(), torch.autocast("cpu", dtype=torch.bfloat16):
            found = maps(images), maps.image_scores(images)
    finally:
        torch.set_num_threads(threads)
    for there, here in zip(expected, found, strict=True):
        np.testing.assert_array_equal(here, there)


def test_table_is_the_conformal_p_value_at_the_edges():
    values = np.random.default_rng(0).normal(0, 1, 5000)
    table = surprise_table(np.bincount(bins(values), minlength=BINS))
    edges = torch.from_numpy(np.linspace(-6, 6, BINS + 1))
    p = 10 ** -surprise(edges, torch.from_numpy(table)).numpy()
    exact = (1 + (values[:, None] >= edges.numpy()).sum(0)) / 5001
    assert np.allclose(p, exact)
    beyond = surprise(torch.tensor([-100.0, 100.0], dtype=torch.float64), torch.from_numpy(table))
    assert beyond.tolist() == pytest.approx([0, np.log10(5001)])


def test_top_mean_is_the_mean_of_the_highest():
    odds = torch.rand(3, 25, 30, generator=torch.Generator().manual_seed(0)).double()
    wanted = np.sort(odds.flatten(1).numpy(), 1)[:, -8:].mean(1)
    assert top_mean(odds).numpy() == pytest.approx(wanted)


@pytest.mark.parametrize("size", [(16, 16), (28, 28), (33, 64), (100, 128), (256, 256)])
def test_any_size_has_a_patch_for_every_mask(size):
    network = PatchEncoder(2, patch_stride(*size)).eval()
    images, masks = torch.rand(1, 2, *size), torch.zeros(1, 1, *size)
    masks[..., : size[0] // 2, :] = 1
    odds, shares = network.log_odds(images), network.grid(masks)
    assert odds.shape == shares.shape
    assert shares.mean() == pytest.approx(0.5, abs=0.02)
    assert torch.isfinite(patch_loss(network, network(images), shares))


def test_log_odds_are_those_of_the_priors():
    network = PatchEncoder(1).eval()
    images = torch.rand(2, 1, 16, 16)
    mean, log_var = (part.reshape(-1, 8) for part in network(images).movedim(1, -1).chunk(2, -1))
    wanted = network.prior.kl(mean, log_var) - network.negative_prior.kl(mean, log_var)
    assert torch.allclose(network.log_odds(images).flatten(), wanted / (8 * 4), atol=1e-4)


def test_what_does_not_belong_together_is_refused(maps):
    with pytest.raises(ValueError, match="uint8 N x 1x24x28"):
        maps(torch.zeros(2, 1, 28, 28, dtype=torch.uint8))
    with pytest.raises(ValueError, match="counts"):
        Heatmaps(maps.network, maps.shape, np.zeros(BINS, np.int64), maps.scores)
    with pytest.raises(ValueError, match="held out"):
        calibrated_heatmaps(maps.network, torch.zeros(0, 1, 24, 28, dtype=torch.uint8))
    with pytest.raises(ValueError, match="uint8"):
        train_patches(torch.zeros(4, 1, 16, 16), steps=1)


def test_places_run_from_minus_one_to_one():
    found = _with_places(torch.zeros(2, 1, 3, 5))
    assert found.shape == (2, 3, 3, 5)
    for image in found:
        assert image[1].tolist() == [[-1.0] * 5, [0.0] * 5, [1.0] * 5]
        assert image[2].tolist() == [[-1.0, -0.5, 0.0, 0.5, 1.0]] * 3


def test_counts_of_pixels_are_1024_numbers_of_which_none_is_negative(maps):
    """As in folders of before."""
    assert BINS == 1024
    assert bins(np.array([-6.0, -5.999, -7.0, 5.999])).tolist() == [0, 0, 0, 1023]
    counts = maps.counts.copy()
    counts[3] = -1
    with pytest.raises(ValueError, match="at least 0"):
        Heatmaps(maps.network, maps.shape, counts, maps.scores)
    values = np.array([maps.scores[0], maps.scores[-1], maps.scores[-1] + 1])
    count = len(maps.scores)
    assert maps.p_values(values).tolist() == pytest.approx([1.0, 2 / (count + 1), 1 / (count + 1)])


def test_a_p_value_at_either_end_of_the_table_is_that_of_the_end():
    table = torch.arange(BINS + 1, dtype=torch.float64)
    odds = torch.tensor([LOW - 1, LOW, (LOW + HIGH) / 2, HIGH, HIGH + 1], dtype=torch.float64)
    torch.testing.assert_close(surprise(odds, table), torch.tensor([0, 0, BINS / 2, BINS, BINS]).double())


def test_details_are_differences_from_two_means_enlarged():
    image = torch.zeros(1, 1, 9, 9)
    image[0, 0, 4, 4] = 1
    plain, near, far = with_details(image)[0]
    assert torch.equal(plain, image[0, 0])
    # Beside the bright pixel, both windows hold it; three pixels away, the larger one alone.
    assert near[4, 5] == pytest.approx(-4 / 9)
    assert far[4, 5] == pytest.approx(-2 / 49)
    assert near[4, 7] == 0
    assert far[4, 7] == pytest.approx(-2 / 49)
    assert far[4, 8] == 0
