"""P-values and thresholds within groups."""

import numpy as np
import pytest
from benchmarks.simulations import marginal_and_groups

from negvae.scoring.calibration import Calibration, fpr_threshold, p_values
from negvae.scoring.groups import check_labels, group_of, largest_by_group, split, threshold_of


def grouped(rate=0.1, confidence=None):
    random = np.random.default_rng(0)
    labels = np.array(["wide"] * 200 + ["narrow"] * 100 + ["tiny"] * 5)
    scores = random.standard_normal(305) * np.where(labels == "wide", 3, 1)
    plain = Calibration({"kl": np.sort(scores)}, "kl", 0.0, target_fpr=rate, confidence=confidence)
    return plain.with_groups({"kl": split(scores, labels)}), scores, labels


def test_rates_hold_within_groups_and_not_when_they_are_pooled():
    rows = marginal_and_groups(17_000)
    assert all(row.holds() for row in rows), rows
    pooled = {row.what[-22:-19]: row.rate for row in rows if row.bound is None}
    assert max(pooled.values()) > 0.1  # the wide group alarms at more than twice the rate


def test_each_group_has_its_own_ranks_and_threshold():
    calibration, scores, labels = grouped()
    assert list(calibration.groups["kl"]) == ["narrow", "tiny", "wide"]
    for name in ("narrow", "wide"):
        own = scores[labels == name]
        assert calibration.thresholds[name] == fpr_threshold(own, 0.1)
        np.testing.assert_array_equal(calibration.p_values([2.0, 0.1], [name] * 2), p_values(own, [2.0, 0.1]))
    assert calibration.small == ("tiny",)
    assert calibration.thresholds["tiny"] > scores[labels == "tiny"].max()
    assert "too small for the rate: tiny" in calibration.describe()


def test_without_a_group_the_largest_p_value_counts():
    calibration, _, _ = grouped()
    values = np.linspace(-4, 12, 50)
    each = [calibration.p_values(values, [name] * 50) for name in ("wide", "narrow", "tiny")]
    np.testing.assert_array_equal(calibration.p_values(values), np.max(each, axis=0))
    np.testing.assert_array_equal(calibration.p_values(values, [""] * 50), np.max(each, axis=0))
    called = calibration.is_outlier(values)
    np.testing.assert_array_equal(called, values > max(calibration.thresholds.values()))
    mixed = calibration.is_outlier([2.5, 2.5, 2.5], ["narrow", "wide", ""])
    assert mixed.tolist() == [True, False, False]


def test_groups_keep_their_rule_with_another_rate_or_confidence():
    calibration, scores, labels = grouped()
    sure = calibration.decide_by(target_fpr=0.1, confidence=0.95)
    for name in ("narrow", "wide"):
        assert sure.group_bounds()[name].high <= 0.1
        assert sure.thresholds[name] > fpr_threshold(scores[labels == name], 0.1)
    assert calibration.group_bounds()["narrow"].high > 0.1


def test_labels_that_do_not_fit_are_refused():
    calibration, _, _ = grouped()
    with pytest.raises(ValueError, match="no held-out inliers of group other; calibrated are narrow, tiny, wide"):
        calibration.p_values([1.0], ["other"])
    with pytest.raises(ValueError, match="2 groups for 1 rows"):
        calibration.is_outlier([1.0], ["wide", "wide"])
    with pytest.raises(ValueError, match="calibrated without groups"):
        Calibration({"kl": np.arange(9.0)}, "kl", 8.0).p_values([1.0], ["wide"])
    with pytest.raises(ValueError, match="1 of 2 inliers have no group, the first in row 1"):
        split([1.0, 2.0], ["a", ""])
    check_labels(None, 3)
    assert largest_by_group({"a": [1.0]}, [], [], p_values).shape == (0,)


def test_the_nearest_folder_with_a_groups_name_is_an_images_group():
    known = ["cable", "inner"]
    assert group_of("cable/inner/1.png", known) == "inner"
    assert group_of("cable/other/1.png", known) == "cable"
    assert group_of("other/inner", known) == ""  # a file's own name is no folder


def test_an_image_of_no_known_group_gets_the_highest_threshold():
    labels = np.array(["a", "", "b"])  # as a table gives them
    assert threshold_of({"a": 1.0, "b": 3.0}, labels, 3).tolist() == [1.0, 3.0, 3.0]
    assert threshold_of({"a": 1.0, "b": 3.0}, None, 2).tolist() == [3.0, 3.0]


def test_what_is_certified_of_groups_is_of_the_thresholds_that_decide():
    random, held = np.random.default_rng(1), 0
    labels = np.repeat(["a", "b", "c"], [40, 100, 200])
    for _ in range(300):
        scores = random.uniform(size=340)
        plain = Calibration({"kl": np.sort(scores)}, "kl", 0.0, target_fpr=0.1).with_thresholds()
        calibration = plain.with_groups({"kl": split(scores, labels)})
        bounds, rates = calibration.fpr_bounds(0.9), [1 - calibration.thresholds[name] for name in "abc"]
        held += bounds.low <= min(rates) and max(rates) <= bounds.high
    assert held >= 300 * 0.8 - 3 * np.sqrt(300 * 0.8 * 0.2)  # each bound has 0.9
    assert calibration.certificate()["at_most"] == calibration.fpr_bounds().high
    called = [scores[labels == name] > calibration.thresholds[name] for name in "abc"]
    assert bounds.rate == pytest.approx(np.concatenate(called).mean())
    assert calibration.false_alarm_rate == pytest.approx(
        sum(len(each) * (1 + each.sum()) / (1 + len(each)) for each in called) / 340
    )
    assert calibration.describe().startswith(f"kl > {max(calibration.thresholds.values()):.6g} ")


@pytest.mark.parametrize("confidence", [0, -0.5, 2, "high"])
def test_a_confidence_out_of_range_is_refused_with_groups_as_without(confidence):
    scores, labels = np.arange(80.0), np.tile(["a", "b"], 40)
    plain = Calibration({"kl": scores}, "kl", 0.0, target_fpr=0.1).with_thresholds()
    for calibration in (plain, plain.with_groups({"kl": split(scores, labels)})):
        with pytest.raises(ValueError, match=f"confidence is {confidence!r}: it must lie between 0 and 1"):
            calibration.fpr_bounds(confidence)


def test_many_groups_that_are_too_small_for_the_rate_certify_little():
    random, labels = np.random.default_rng(2), np.repeat([f"lot {number}" for number in range(60)], 8)
    scores = random.standard_normal(480)
    plain = Calibration({"kl": np.sort(scores)}, "kl", 0.0, target_fpr=0.05).with_thresholds()
    assert plain.false_alarm_rate < 0.05
    calibration = plain.with_groups({"kl": split(scores, labels)})
    fresh = random.standard_normal(60_000)
    rate = calibration.is_outlier(fresh, list(np.tile(labels, 125))).mean()
    assert calibration.false_alarm_rate == pytest.approx(1 / 9)
    assert rate == pytest.approx(1 / 9, abs=0.03)
    assert calibration.fpr_bounds().high > 0.5
