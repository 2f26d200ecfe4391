"""Weighted and cross-conformal p-values, and what has moved."""

import numpy as np
import pytest
from benchmarks.simulations import covariate_shift, cross_conformal

from negvae.scoring.calibration import p_values
from negvae.scoring.crossconformal import cross_bound, cross_p_values, fold_numbers, twice_mean_p_values
from negvae.scoring.drift import movements
from negvae.scoring.weighted import density_ratio, overlap, weighted_p_values


def test_equal_weights_give_plain_p_values():
    random = np.random.default_rng(0)
    held_out, scores = np.round(random.standard_normal(50), 1), np.round(random.standard_normal(30), 1)
    weighted = weighted_p_values(held_out, np.full(50, 7.0), scores, np.full(30, 7.0))
    np.testing.assert_allclose(weighted, p_values(held_out, scores))
    # A weight of two is an inlier that occurs twice.
    doubled = weighted_p_values(held_out, np.r_[2.0, np.ones(49)], scores, np.ones(30))
    np.testing.assert_allclose(doubled, p_values(np.r_[held_out[0], held_out], scores))


def test_known_weights_hold_under_a_shift_and_none_do_not():
    known, estimated, plain = covariate_shift(5_000, fits=100)
    assert known.holds()
    assert known.rate > 0.07
    assert plain.rate > 0.18
    assert estimated.rate < 0.1 + 4 * estimated.error


def test_weights_say_where_they_cannot_hold():
    random = np.random.default_rng(0)
    old = random.standard_normal((400, 2))
    near, far = random.standard_normal((200, 2)) + 0.3, random.standard_normal((200, 2)) + 6
    ratio = density_ratio(old, near)
    fine = overlap(ratio(old), ratio(near))
    assert fine.holds
    assert 200 < fine.effective <= 400
    ratio = density_ratio(old, far)
    bad = overlap(ratio(old), ratio(far))
    assert not bad.holds
    assert bad.uncovered > 0.9
    assert bad.smallest_p > 0.5  # nothing could be called an outlier there
    assert any("cannot hold" in line for line in bad.concerns())
    assert not overlap(np.zeros(5), np.ones(5)).holds


def test_weights_that_are_none_are_refused():
    with pytest.raises(ValueError, match="each needs one"):
        weighted_p_values([1.0], [1.0, 2.0], [1.0], [1.0])
    with pytest.raises(ValueError, match="finite and at least 0"):
        weighted_p_values([1.0], [-1.0], [1.0], [1.0])
    with pytest.raises(ValueError, match="all held-out weights are 0"):
        weighted_p_values([1.0], [0.0], [1.0], [1.0])
    with pytest.raises(ValueError, match="same d"):
        density_ratio(np.zeros((20, 2)), np.zeros((20, 3)))
    with pytest.raises(ValueError, match="at least 10 of each"):
        density_ratio(np.zeros((20, 2)), np.zeros((5, 2)))


def test_cross_conformal_rates_and_power():
    rows = {row.what.split(": ")[1]: row for row in cross_conformal(400)}
    assert all(row.holds() for row in rows.values()), rows

    def power(name):
        return float(rows[name].note.split()[2])

    # What is promised is 2a and more; what comes out is near a, and more outliers are found than with a fifth held out.
    for name in ("cross-conformal, 10 folds", "jackknife+"):
        assert rows[name].rate < 0.13
        assert power(name) > power("a fifth held out") + 0.05


def test_cross_conformal_counts():
    held_out = [[1.0, 3.0], [2.0, 4.0, 6.0]]
    scores = [[3.0, 0.0], [5.0, 7.0]]
    np.testing.assert_allclose(cross_p_values(held_out, scores), [(1 + 1 + 1) / 6, (1 + 2 + 0) / 6])
    np.testing.assert_allclose(twice_mean_p_values(held_out, scores), [2 / 3 + 2 / 4, 1.0][1:] * 2)
    assert cross_bound(0.1, 50, 50) == pytest.approx(0.2)
    assert cross_bound(0.1, 100, 5) == pytest.approx(0.2 + min(2 * 0.9 * 4 / 105, 0.95 / 6))
    with pytest.raises(ValueError, match="folds x images"):
        cross_p_values(held_out, [[1.0]])
    with pytest.raises(ValueError, match="empty"):
        cross_p_values([[1.0], []], [[1.0], [1.0]])


def test_folds_share_out_everything():
    folds = fold_numbers(23, 5, seed=3)
    assert sorted(np.bincount(folds)) == [4, 4, 5, 5, 5]
    assert (folds == fold_numbers(23, 5, seed=3)).all()
    assert sorted(fold_numbers(7, 7)) == list(range(7))
    for count in (1, 8):
        with pytest.raises(ValueError, match="from 2 to the number of inliers, 7"):
            fold_numbers(7, count)


def test_what_has_moved_is_named_and_nothing_else():
    random = np.random.default_rng(0)
    held_out = {name: random.standard_normal(500) for name in "abc"}
    batch = {name: random.standard_normal(100) for name in "abc"}
    assert not any(each.moved for each in movements(held_out, batch, 0.01))
    batch["b"] = batch["b"] - 1
    first, *others = movements(held_out, batch, 0.01)
    assert (first.name, first.moved) == ("b", True)
    assert first.higher == pytest.approx(0.24, abs=0.06)
    assert "b: higher than held out with probability 0.2" in first.describe()
    assert not any(each.moved for each in others)
    with pytest.raises(ValueError, match="rate of false alarms"):
        movements(held_out, batch, 0)


def test_movements_keep_to_their_rate():
    random = np.random.default_rng(1)
    alarms = []
    for _ in range(1_500):
        values = random.standard_normal((3, 90))
        held_out = {name: row[:60] for name, row in zip("abc", values, strict=True)}
        batch = {name: row[60:] for name, row in zip("abc", values, strict=True)}
        alarms.append(any(each.moved for each in movements(held_out, batch, 0.1)))
    assert np.mean(alarms) < 0.1 + 4 * np.sqrt(0.09 / 1_500)


def test_cross_conformal_bounds_by_hand_and_shapes_that_do_not_fit():
    assert cross_bound(0.2, 60, 20) == pytest.approx(0.4 + (1 - 20 / 60) / 21)
    assert cross_bound(0.2, 100, 2) == pytest.approx(0.4 + 2 * 0.8 * 1 / 102)
    assert cross_bound(0.9, 10, 2) == 1
    for scores in ([[1.0, 2.0]], [1.0, 2.0], [[[1.0]], [[2.0]]], [[1.0]] * 3):
        for function in (cross_p_values, twice_mean_p_values):
            with pytest.raises(ValueError, match="folds x images"):
                function([[1.0], [2.0]], scores)


def test_features_and_weights_that_do_not_fit_are_refused():
    random = np.random.default_rng(0)
    old, new = random.normal(size=(10, 2)), random.normal(size=(10, 2))
    assert density_ratio(old, new)(old).shape == (10,)
    for wrong in ((old[:9], new), (old, new[:9])):
        with pytest.raises(ValueError, match="at least 10"):
            density_ratio(*wrong)
    for wrong in ((old[:, 0], new), (old, new[:, 0]), (old, new[:, :1]), (old[:, 0], new[:, 0])):
        with pytest.raises(ValueError, match="both must be N x d"):
            density_ratio(*wrong)
    with pytest.raises(ValueError, match="2 held-out scores with 1 weights"):
        weighted_p_values([1.0, 2.0], [1.0], [1.0], [1.0])
