"""Priors of transformations, the transformations themselves, and the encoder that tells them apart."""

import itertools
import math

import pytest
import torch
from torch.distributions import Independent, Normal, kl_divergence

from negvae.config import preset
from negvae.model import GaussianPrior, build_vae
from negvae.model.initialization import initialize
from negvae.model.priors import PriorSet
from negvae.model.shifted import HELD_BACK, ShiftEncoder, held_back
from negvae.model.shifts import build_shifts, copies
from negvae.parts import SHIFTS
from tests.conftest import blobs, small_run

RANDOM = torch.Generator().manual_seed(0)
MEAN, LOG_VAR = torch.randn(7, 5, generator=RANDOM), torch.randn(7, 5, generator=RANDOM)


def test_the_papers_two_priors_are_a_set_of_two():
    pair = PriorSet.pair(5, 8.0).kl(MEAN, LOG_VAR)
    for column, shift in enumerate((0.0, 8.0)):
        torch.testing.assert_close(pair[:, column], GaussianPrior(5, shift).kl(MEAN, LOG_VAR))
    assert PriorSet.pair(5, 8.0).distance(0, 1) == pytest.approx(8 * math.sqrt(5))


def test_means_of_a_simplex_are_equally_far_apart_and_divergences_are_torchs():
    priors = PriorSet.simplex(4, 5, 3.0)
    assert {priors.distance(*each) for each in itertools.combinations(range(4), 2)} == {3.0}
    assert priors.means[0] == (0.0,) * 5
    posterior = Independent(Normal(MEAN, (0.5 * LOG_VAR).exp()), 1)
    for number, mean in enumerate(priors.means):
        wanted = kl_divergence(posterior, Independent(Normal(torch.tensor(mean), torch.ones(5)), 1))
        torch.testing.assert_close(priors.kl(MEAN, LOG_VAR)[:, number], wanted)
    with pytest.raises(ValueError, match="latent_size is 5"):
        PriorSet.simplex(6, 5, 3.0)


@pytest.mark.parametrize(("shape", "turns"), [((1, 28, 28), 4), ((3, 32, 32), 4), ((2, 18, 25), 2)])
def test_transformations_keep_shape_and_range_and_differ(shape, turns):
    images = torch.rand(3, *shape, generator=RANDOM)
    assert len(build_shifts("turns", shape)) == turns
    shifts = build_shifts(",".join(SHIFTS), shape)
    assert len(shifts) == turns * 9
    assert torch.equal(shifts[0](images), images)
    every = copies(shifts, images).unflatten(0, (len(shifts), 3))
    assert every.shape[2:] == shape
    assert 0 <= every.min() <= every.max() <= 1
    for first, second in itertools.combinations(every, 2):
        assert not torch.equal(first, second)


@pytest.mark.parametrize(("shape", "by"), [((1, 28, 28), 1), ((3, 128, 96), 3)])
def test_views_are_moved_by_a_pixel_that_the_encoder_sees(shape, by):
    images = torch.rand(2, *shape, generator=RANDOM)
    before, after = ShiftEncoder("turns", shape).views(images)
    assert torch.equal(before[:, :, :-by, :-by], images[:, :, by:, by:])
    assert torch.equal(after[:, :, by:, by:], images[:, :, :-by, :-by])
    assert before.shape == after.shape == images.shape


@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 18, 25), (1, 128, 96)])
def test_divergences_are_those_of_each_copy(shape):
    model = build_vae(preset("unsupervised", "x", transformations="turns,tiles"), shape).eval()
    images = torch.rand(2, *shape, generator=RANDOM)
    with torch.no_grad():
        found = model.shifted.divergences(*model.shifted.posteriors(images))
        count = len(model.shifted.shifts)
        assert found.shape == (2, count, count)
        assert torch.isfinite(found).all()
        height, width = (side - side % model.shifted.pooled for side in shape[1:])  # whole squares
        last = model.shifted.shifts[-1](images[:, :, :height, :width])
        alone = model.shifted.divergences(*model.shifted.posteriors(last))[:, 0]
    torch.testing.assert_close(found[:, -1], alone)


def test_weights_of_the_rest_do_not_depend_on_transformations():
    plain, shifted = (
        build_vae(preset("unsupervised", "x", transformations=names), (1, 28, 28)) for names in ("none", "turns")
    )
    mine = dict(shifted.named_parameters())
    assert all(torch.equal(value, mine[name]) for name, value in plain.named_parameters())
    assert len(mine) > len(dict(plain.named_parameters()))


def test_images_are_held_back_by_their_own_pixels():
    images = blobs(600, (1, 16, 16))
    mask = held_back(images)
    assert 0.5 / HELD_BACK < mask.float().mean() < 2 / HELD_BACK
    order = torch.randperm(600, generator=RANDOM)
    assert torch.equal(held_back(images[order]), mask[order])
    assert 0.3 / HELD_BACK < held_back((images > 60).byte() * 255).float().mean() < 3 / HELD_BACK


@pytest.mark.parametrize("names", ["turn", "turns,", ""])
def test_unknown_transformations_are_refused(names):
    with pytest.raises(ValueError, match="unknown shifting transformation"):
        preset("unsupervised", "x", transformations=names)


def test_rows_have_no_transformations():
    with pytest.raises(ValueError, match="rows of features have none"):
        preset("features", "x", transformations="turns")


def test_one_image_in_ten_is_held_back():
    images = torch.randint(256, (20_000, 1, 2, 2), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    assert float(held_back(images).double().mean()) == pytest.approx(0.1, abs=0.006)


@pytest.mark.parametrize(
    ("shape", "pooled"), [((1, 28, 28), 1), ((1, 64, 200), 2), ((3, 200, 64), 2), ((1, 96, 100), 3)]
)
def test_large_images_are_averaged_to_about_the_size_of_small_ones(shape, pooled):
    with torch.device("meta"):
        assert ShiftEncoder("turns", shape).pooled == pooled


def test_all_copies_of_an_image_lose_the_same_border():
    """A side of 100 is no multiple of the 3 pixels over which is averaged."""
    encoder, seen = ShiftEncoder("turns", (1, 100, 100)), []
    encoder.encoder.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    encoder.posteriors(torch.rand(2, 1, 100, 100))
    plain, *turned = seen[0].chunk(4)
    assert plain.shape == (2, 1, 33, 33)
    for quarter, one in enumerate(turned, 1):
        torch.testing.assert_close(one, plain.rot90(quarter, (2, 3)))


def test_translations_are_by_a_quarter_and_reflect_the_border():
    images = torch.rand(2, 1, 8, 12)
    _, right, down = build_shifts("translations", (1, 8, 12))
    torch.testing.assert_close(right(images)[..., 3:], images[..., :9])
    torch.testing.assert_close(right(images)[..., :3], images[..., 1:4].flip(3))
    torch.testing.assert_close(down(images)[:, :, 2:], images[:, :, :6])


def test_the_encoder_s_first_weights_are_drawn_from_a_seed_of_their_own():
    """So that a run that is trained again has the weights that it had."""
    model = build_vae(small_run("gray", transformations="turns", seed=3), (1, 28, 28))
    wanted = ShiftEncoder("turns", (1, 28, 28)).encoder
    initialize(wanted, "he", torch.Generator().manual_seed(3 + 0x5417))
    for name, value in wanted.state_dict().items():
        assert torch.equal(value, model.shifted.encoder.state_dict()[name]), name


def test_the_images_that_are_held_back_stay_the_same_in_every_version():
    """Saved models are measured and calibrated on them after they were trained."""
    assert held_back(blobs(60, (1, 28, 28))).nonzero().flatten().tolist() == [7, 15, 45]
