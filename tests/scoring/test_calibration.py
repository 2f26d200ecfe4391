"""p-values, thresholds and false-discovery control: the mathematics, on scores alone."""

import numpy as np
import pytest
from scipy.stats import binom

from negvae.scoring.calibration import (
    Calibration,
    benjamini_hochberg,
    contamination_threshold,
    discovery_level,
    fpr_threshold,
    least_held_out,
    p_values,
)


def test_p_values_are_the_formula():
    held_out, scores = [3.0, 1.0, 2.0, 2.0], [0.0, 1.0, 2.0, 2.5, 3.0, 9.0]
    expected = [(1 + sum(c >= s for c in held_out)) / 5 for s in scores]
    np.testing.assert_allclose(p_values(held_out, scores), expected)


def test_threshold_decides_as_the_p_value_does():
    randomness = np.random.default_rng(0)
    held_out, scores = randomness.normal(size=157), np.concatenate([randomness.normal(size=2000), [99.0]])
    held_out[:40] = np.round(held_out[:40], 1)  # with ties
    scores[:500] = np.round(scores[:500], 1)
    for rate in (1 / 158, 0.01, 0.05, 0.1, 0.5, 0.99):
        np.testing.assert_array_equal(scores > fpr_threshold(held_out, rate), p_values(held_out, scores) <= rate)


@pytest.mark.parametrize("rate", [0.01, 0.05, 0.2])
@pytest.mark.parametrize("count", [99, 250])
def test_fresh_inliers_alarm_at_the_asked_rate(rate, count):
    """Over many splits, each fresh inlier alarms with probability k / (n + 1): the number of alarms is binomial."""
    randomness = np.random.default_rng(count)
    splits = 4000
    alarms = 0
    for _ in range(splits):
        scores = randomness.gamma(0.7, size=count + 1)
        alarms += scores[0] > fpr_threshold(scores[1:], rate)
    probability = np.floor(rate * (count + 1)) / (count + 1)
    low, high = binom.ppf([1e-4, 1 - 1e-4], splits, probability)
    assert low <= alarms <= high
    assert probability <= rate


def test_a_rate_that_cannot_be_promised_is_refused():
    assert [least_held_out(rate) for rate in (0.01, 0.05, 0.5, 0.3)] == [99, 19, 1, 3]
    for rate in (0.01, 0.05, 0.3):
        fpr_threshold(np.arange(least_held_out(rate)), rate)
        with pytest.raises(ValueError, match=f"at least {least_held_out(rate)} held-out"):
            fpr_threshold(np.arange(least_held_out(rate) - 1), rate) if least_held_out(rate) > 1 else None
    for rate in (0, 1, -0.1):
        with pytest.raises(ValueError, match="between 0 and 1"):
            fpr_threshold([1.0], rate)


def test_a_rate_next_to_1_takes_the_lowest_held_out_score():
    held_out = np.arange(20.0)
    for rate in (1 - 1e-12, np.nextafter(1, 0)):
        assert fpr_threshold(held_out, rate) == 0
        assert p_values(held_out, [0.0, 0.5]).tolist() == [1, 20 / 21]


def test_the_stated_rate_bounds_that_of_tied_scores_on_average():
    """Of binary scores as many lie above the threshold as chance has it: what is stated covers what happens."""
    share, count, rate = 0.05, 999, 0.05
    stated = happens = 0.0
    for ones in range(count + 1):
        held_out = {"score": np.repeat([0.0, 1.0], [count - ones, ones])}
        made = Calibration(held_out, "score", 0.0, rate).with_thresholds()
        chance = binom.pmf(ones, count, share)
        stated += chance * made.false_alarm_rate
        happens += chance * share * made.is_outlier([1.0])[0]
    assert happens <= stated
    assert stated == pytest.approx(rate)


def test_contamination_flags_its_share_and_clean_data_none():
    scores = np.random.default_rng(0).normal(size=300)
    assert (scores > contamination_threshold(scores, 0.1)).sum() == 30
    for values in (scores, scores * 1e-9, np.zeros(4), np.full(3, -7.0)):
        assert (values <= contamination_threshold(values, 0)).all()
    assert contamination_threshold(scores) < scores.max() + 1e-3
    for share in (-0.1, 0.6):
        with pytest.raises(ValueError, match="contamination"):
            contamination_threshold(scores, share)
    with pytest.raises(ValueError, match="no calibration scores"):
        contamination_threshold([])


@pytest.mark.parametrize(("infinite", "flagged"), [(5, 10), (10, 10), (20, 0)])
def test_a_share_of_scores_is_flagged_where_some_are_infinite(infinite, flagged):
    scores = np.concatenate([np.arange(101.0 - infinite), np.full(infinite, np.inf)])
    assert (scores > contamination_threshold(scores, 0.1)).sum() == flagged
    assert contamination_threshold(scores) == np.inf


def test_benjamini_hochberg_by_hand():
    # Sorted: 0.01 <= 0.02, 0.03 <= 0.04, 0.06 <= 0.06, 0.5 > 0.08, 0.9 > 0.1.
    np.testing.assert_array_equal(
        benjamini_hochberg([0.5, 0.01, 0.06, 0.9, 0.03], 0.1), [False, True, True, False, True]
    )
    assert not benjamini_hochberg([0.2, 0.9], 0.1).any()
    assert not benjamini_hochberg([], 0.1).size
    assert discovery_level([0.1, 0.5], [0, 0], 0.1) == -1
    assert discovery_level([0.5, 0.9], [1, 1], 0.1) == -1
    with pytest.raises(ValueError, match="within 0 and 1"):
        benjamini_hochberg([1.5], 0.1)
    with pytest.raises(ValueError, match="fdr"):
        benjamini_hochberg([0.5], 1.0)


def test_false_discoveries_stay_at_the_asked_rate():
    randomness = np.random.default_rng(1)
    shares, found = [], 0
    for _ in range(300):
        held_out = randomness.normal(size=400)
        scores = np.concatenate([randomness.normal(size=80), randomness.normal(5, 1, size=20)])
        called = benjamini_hochberg(p_values(held_out, scores), 0.2)
        shares.append(called[:80].sum() / max(called.sum(), 1))
        found += called[80:].sum()
    assert np.mean(shares) <= 0.2 * 0.8 + 4 * np.std(shares) / np.sqrt(len(shares))
    assert found > 0.8 * 300 * 20


def test_another_decision_from_the_same_inliers():
    randomness = np.random.default_rng(2)
    scores = {name: np.sort(randomness.normal(size=200)) for name in ("combined", "kl")}
    first = Calibration(scores, "combined", fpr_threshold(scores["combined"], 0.05), 0.05)
    assert first.decide_by() is first
    by_kl = first.decide_by("kl")
    assert (by_kl.score, by_kl.target_fpr, by_kl.threshold) == ("kl", 0.05, fpr_threshold(scores["kl"], 0.05))
    assert first.decide_by(target_fpr=0.01).threshold == scores["combined"][-2]
    assert first.false_alarm_rate == pytest.approx(10 / 201)
    above_all = Calibration(scores, "combined", contamination_threshold(scores["combined"]), None)
    assert above_all.decide_by("kl").threshold > scores["kl"][-1]
    assert above_all.false_alarm_rate == pytest.approx(1 / 201)
    with pytest.raises(ValueError, match="bpd was not calibrated"):
        first.decide_by("bpd")
    with pytest.raises(ValueError, match="not numbers"):
        first.p_values([np.nan])


def test_what_is_no_p_value_is_refused_and_of_none_nothing_is_called():
    for wrong in ([0.5, 1.5], [-0.1]):
        with pytest.raises(ValueError, match="within 0 and 1"):
            benjamini_hochberg(wrong, 0.1)
    assert benjamini_hochberg([], 0.1).tolist() == []
    assert discovery_level([], [], 0.1) == discovery_level([0.9], [0], 0.1) == -1
