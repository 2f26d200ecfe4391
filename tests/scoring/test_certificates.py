"""Thresholds and bounds that hold with a stated confidence."""

import numpy as np
import pytest
from benchmarks.simulations import certificates, every_cut, plain_average
from scipy.stats import beta, binomtest, multinomial

from negvae.scoring.calibration import Calibration, fpr_threshold
from negvae.scoring.certificates import (
    _level,
    certified_rank,
    certified_threshold,
    conditional_p_values,
    false_alarm_counts,
    false_discovery_bounds,
    fpr_bounds,
    least_certified,
    simultaneous_fpr_bounds,
)


@pytest.mark.parametrize("rate", [0.5, 0.05, 0.01, 0.001])
@pytest.mark.parametrize("confidence", [0.5, 0.95, 0.999])
def test_the_rank_is_the_largest_with_a_certificate_and_the_size_the_smallest(rate, confidence):
    least = least_certified(rate, confidence)
    assert certified_rank(least, rate, confidence) >= 1
    with pytest.raises(ValueError, match=f"at least {least} held-out inliers, there are {least - 1}"):
        certified_rank(least - 1, rate, confidence)
    for count in (least + 1, 3 * least, 20 * least):
        rank = certified_rank(count, rate, confidence)
        assert beta.cdf(rate, rank, count + 1 - rank) >= confidence
        assert rank == count or beta.cdf(rate, rank + 1, count - rank) < confidence


def test_one_percent_at_95_takes_299():
    assert least_certified(0.01, 0.95) == 299


@pytest.mark.parametrize(("rate", "confidence"), [(0, 0.95), (1, 0.95), (0.01, 0), (0.01, 1)])
def test_rates_out_of_range_are_refused(rate, confidence):
    for function in (lambda: certified_rank(100, rate, confidence), lambda: least_certified(rate, confidence)):
        with pytest.raises(ValueError, match="must lie between 0 and 1"):
            function()


def test_bounds_of_a_threshold_are_those_of_clopper_and_pearson():
    scores = np.arange(200.0)
    for threshold, above in ((-1, 200), (149.5, 50), (198, 1), (199, 0)):
        bounds = fpr_bounds(scores, threshold, 0.975)
        interval = binomtest(above, 200).proportion_ci(0.95, method="exact")
        assert bounds.rate == above / 200
        np.testing.assert_allclose([bounds.low, bounds.high], [interval.low, interval.high], rtol=1e-6)


def test_the_upper_bound_of_a_certified_threshold_is_its_own_certificate():
    scores = np.random.default_rng(0).standard_normal(1000)
    threshold = certified_threshold(scores, 0.01, 0.95)
    rank = certified_rank(1000, 0.01, 0.95)
    bounds = fpr_bounds(scores, threshold, 0.95)
    assert bounds.high == pytest.approx(beta.ppf(0.95, rank, 1001 - rank))
    assert bounds.high <= 0.01 < fpr_bounds(scores, np.sort(scores)[-rank - 1], 0.95).high


@pytest.mark.parametrize("rank", [10, None])
def test_the_upper_bound_holds_as_often_as_it_says_where_scores_are_equal(rank):
    """Of 100 scores of 0, 1 and 2, by enumeration of how many are 2 and how many at least 1."""
    top, middle = 0.0475, 0.1525  # probabilities of a 2, and of at least a 1
    failed = 0.0
    for twos in range(20):
        for others in range(40):
            scores = np.repeat([0.0, 1.0, 2.0], [100 - twos - others, others, twos])
            threshold = fpr_threshold(scores, 0.1)  # the tenth largest
            rate = {0: middle, 1: top, 2: 0}[threshold]
            chance = multinomial.pmf([100 - twos - others, others, twos], 100, [1 - middle, middle - top, top])
            failed += chance * (fpr_bounds(scores, threshold, 0.95, rank).high < rate)
    assert failed <= 0.05
    assert (failed > 0.01) == (rank is not None)  # not vacuous; without the rank, the bound cannot be as close


def test_equal_scores_do_not_loosen_the_certificate_of_a_rule():
    scores = {"score": np.repeat([0.0, 1.0], [900, 100])}
    certified = Calibration(scores, "score", 0.0).decide_by(target_fpr=0.05, confidence=0.9)
    assert certified.threshold == 1
    assert 0 < certified.fpr_bounds(0.9).high <= 0.05


def test_certificates_hold_as_often_as_they_say():
    """With 20,000 trials a failure rate of 5.5% in place of 5% lies more than three standard errors away."""
    rows = certificates(20_000, (100, 300, 1_000)) + certificates(1_000, (10_000,))
    assert all(row.holds() for row in rows), rows
    # Not vacuous: within what the whole number k leaves, the failure rate is near 5%.
    assert max(row.rate for row in rows) > 0.03


def test_the_plain_threshold_holds_on_average_only():
    (row,) = plain_average(20_000)
    assert row.holds()
    assert row.note == "the middle 90% of detectors alarm at 0.020 to 0.089"


def test_bounds_of_all_cuts_hold_together():
    bounds = simultaneous_fpr_bounds(500)
    assert (np.diff(bounds) >= 0).all()
    ranks = np.arange(1, 501)
    assert (bounds >= beta.ppf(0.95, ranks, 501 - ranks) - 1e-12).all()  # each is wider than the bound for one cut
    uniform = np.sort(np.random.default_rng(9).uniform(size=(20_000, 500)), axis=1)
    assert 0.03 < (uniform > bounds).any(1).mean() < 0.056
    with pytest.raises(ValueError, match="read-only"):
        bounds[0] = 0
    assert all(row.holds() for row in every_cut(150))


def test_counts_of_false_alarms_bound_what_is_drawn():
    held_out, batch = 100, 60
    most = false_alarm_counts(held_out, batch)
    random = np.random.default_rng(3)
    failed = []
    for _ in range(4_000):
        cuts = np.sort(random.uniform(size=held_out))[::-1]
        fresh = random.uniform(size=batch)
        failed.append(((fresh[:, None] > cuts).sum(0) > most).any())
    assert np.mean(failed) < 0.05 + 4 * np.sqrt(0.05 * 0.95 / 4_000)
    assert np.mean(failed) > 0.02


def test_false_discovery_bounds_count():
    held_out = np.random.default_rng(0).standard_normal(1_000)
    scores = np.r_[np.full(40, 9.0), np.zeros(60)]
    bounds = false_discovery_bounds(held_out, scores)
    assert len(set(bounds[:40])) == 1  # tied scores are called together
    assert bounds[0] <= 4 / 40
    # A cut that calls 60 more calls at most 60 more inliers, and at most as many as all are allowed at that cut.
    assert 0.6 <= bounds[-1] <= (60 + bounds[0] * 40) / 100
    order = np.random.default_rng(1).permutation(100)
    np.testing.assert_array_equal(false_discovery_bounds(held_out, scores[order]), bounds[order])
    assert false_discovery_bounds(held_out, []).shape == (0,)
    assert (false_discovery_bounds([0.0], [5.0, 6.0]) == 1).all()
    with pytest.raises(ValueError, match="not numbers"):
        false_discovery_bounds(held_out, [np.nan])


def test_conditional_p_values_hold_for_the_held_out_set_at_hand():
    random = np.random.default_rng(5)
    broken = 0
    levels = np.linspace(0.005, 0.5, 100)
    for _ in range(400):
        held_out = np.sort(random.uniform(size=200))
        # P(p <= a) given the held-out set, exactly: the chance to lie above the cut of the last bound that is <= a.
        cut = np.array([(simultaneous_fpr_bounds(200) <= level).sum() for level in levels])
        chance = np.where(cut > 0, 1 - held_out[-np.maximum(cut, 1)], 0)
        broken += bool((chance > levels).any())
    assert broken / 400 < 0.05 + 4 * np.sqrt(0.05 * 0.95 / 400)
    p = conditional_p_values(held_out, [2.0, held_out[-1], held_out[-1] - 1e-9, -1.0])
    bounds = simultaneous_fpr_bounds(200)
    np.testing.assert_array_equal(p, [bounds[0], bounds[1], bounds[1], 1.0])
    with pytest.raises(ValueError, match="not numbers"):
        conditional_p_values(held_out, [np.nan])


def calibration(**more):
    scores = np.sort(np.random.default_rng(0).standard_normal(1_000))
    return Calibration({"kl": scores, "bpd": -scores[::-1]}, "kl", float(scores[-1]), **more)


def test_a_calibration_decides_with_confidence():
    plain = calibration().decide_by(target_fpr=0.01)
    certified = calibration().decide_by(target_fpr=0.01, confidence=0.95)
    assert certified.threshold > plain.threshold
    assert certified.threshold == certified_threshold(certified.scores["kl"], 0.01, 0.95)
    assert certified.fpr_bounds().high <= 0.01 < plain.fpr_bounds().high
    assert "target FPR 0.01 with 0.95 confidence" in certified.describe()
    assert certified.decide_by("bpd").confidence == 0.95  # another score keeps the rule
    assert certified.decide_by(target_fpr=0.05).confidence is None  # another rate is another rule
    assert certified.decide_by(confidence=0.5).threshold < certified.threshold
    with pytest.raises(ValueError, match="give target_fpr"):
        calibration().decide_by(confidence=0.9)
    with pytest.raises(ValueError, match="no rate is certified"):
        calibration(contamination=0.1).fpr_bounds()
    with pytest.raises(ValueError, match="at least 2995 held-out inliers"):
        calibration().decide_by(target_fpr=0.001, confidence=0.95)


def test_no_held_out_inlier_certifies_nothing():
    with pytest.raises(ValueError, match="needs at least 299 held-out inliers, there are 0"):
        certified_rank(0, 0.01, 0.95)


def test_a_level_is_the_rank_that_was_meant_where_its_product_is_rounded_down():
    # (1 - 0.9) (99 + 1) is 9.999999999999998.
    assert _level(np.arange(1, 100)[:, None] / 100, 0.9) == 0.1
