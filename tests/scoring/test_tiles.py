"""One score for an image from those of its tiles, and p-values that hold for each image."""

import numpy as np
import pytest
import torch

from negvae.model import build_vae
from negvae.scoring import Scorer, calibrate, compute_scores
from negvae.scoring.calibration import p_values
from negvae.scoring.tiles import RULES, Owners, choose_rule, combine
from tests.conftest import blobs, small_run

SIZES = np.array([1, 4, 3, 12])
OWNERS = np.repeat(np.arange(4), SIZES)


@pytest.mark.parametrize("rule", RULES)
def test_rules_by_hand(rule):
    values = np.random.default_rng(0).normal(size=len(OWNERS)).astype(np.float32)
    by_hand = {"mean": np.mean, "max": np.max, "top": lambda x: np.sort(x)[::-1][: -(-len(x) // 4)].mean()}[rule]
    found = combine(values, OWNERS, rule)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, [by_hand(values[image == OWNERS]) for image in range(4)], rtol=1e-6)


def test_unknown_rule_is_refused():
    with pytest.raises(ValueError, match="rule for tiles"):
        combine(np.ones(2), np.zeros(2, int), "median")


@pytest.mark.parametrize("rule", RULES)
def test_p_values_hold_for_images_whose_tiles_are_alike_and_differ_in_number(rule):
    """A false-alarm rate by tile would be off: tiles of one image share what the image is like."""
    random = np.random.default_rng(3)

    def scores(count):
        sizes = random.integers(1, 20, count)
        owners = np.repeat(np.arange(count), sizes)
        return combine(random.normal(size=count)[owners] + random.normal(size=len(owners)), owners, rule)

    alarms = [(p_values(scores(60), scores(40)) <= 0.1).mean() for _ in range(200)]
    # 6 of 61 ranks; the held-out part of 200 trials varies the mean by about 0.003.
    assert abs(np.mean(alarms) - 6 / 61) < 0.012


def test_rule_is_chosen_by_what_tells_changed_images():
    random = np.random.default_rng(0)
    images = torch.from_numpy(random.integers(0, 256, (120, 1, 8, 8)).astype(np.uint8))
    images[:, :, :4] = 0  # so that a turn or a blend is seen
    owners = np.repeat(np.arange(20), 6)

    draw = np.random.default_rng(0)

    def sensitive(tiles):  # about 64 for changed tiles, and noise
        return tiles[:, 0, :4].float().mean((1, 2)).numpy() + draw.normal(0, 15, len(tiles))

    def saturated(tiles):  # 10 for changed tiles, and for every other one that is not
        return np.where(tiles[:, 0, :4].float().mean((1, 2)).numpy() > 20, 10, 10 * draw.integers(0, 2, len(tiles)))

    assert choose_rule(sensitive, images, owners) in ("max", "top")  # one changed tile stands out
    assert choose_rule(saturated, images, owners) == "mean"  # the highest tile is the same in all images


def test_a_share_of_outliers_is_one_of_images_not_of_tiles():
    model = build_vae(small_run("gray", initialization="he"), (1, 28, 28)).eval()
    tiles = {"training": blobs(40, (1, 28, 28), 1), "held_out": blobs(24, (1, 28, 28), 2)}
    owners = Owners(np.repeat(np.arange(10), 4), np.repeat(np.arange(6), 4))
    calibration = calibrate(
        Scorer(model), *tiles.values(), score="kl", contamination=0.25, target_fpr=None, owners=owners, rule="mean"
    )
    scores = [
        combine(compute_scores(model, part, ["kl"])["kl"].numpy(), getattr(owners, name), "mean")
        for name, part in tiles.items()
    ]
    assert (np.concatenate(scores) > calibration.threshold).sum() == 4  # of 16 images


def test_changed_tiles_are_blends_of_two_or_turns():
    tiles, seen = torch.arange(24, dtype=torch.uint8).mul(10).reshape(24, 1, 1, 1).expand(24, 1, 4, 4), []
    choose_rule(lambda given: seen.append(given) or np.zeros(len(given)), tiles, np.repeat(np.arange(6), 4))
    before, after = (part[:, 0, 0, 0].int() for part in seen)
    mean = (before + before.roll(12)) // 2
    blended = after != before  # a turn does not change a tile of one color
    assert torch.equal(after[blended], mean[blended])
    assert 4 < blended.sum() < 20
