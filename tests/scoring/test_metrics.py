import numpy as np
import pytest
from scipy.stats import norm
from sklearn.metrics import auc, roc_auc_score

from negvae.scoring.metrics import auroc, detection_metrics, fpr_at_tpr, roc_curve


@pytest.mark.parametrize("ties", [False, True])
def test_auroc_is_exact_with_ties(ties):
    randomness = np.random.default_rng(0)
    low, high = randomness.normal(0, 1, 300), randomness.normal(0.7, 2, 200)
    if ties:
        low, high = low.round(), high.round()
    expected = roc_auc_score([0] * 300 + [1] * 200, [*low, *high])
    area, interval = auroc(low, high)
    assert area == pytest.approx(expected, abs=1e-12)
    assert interval[0] < area < interval[1]


def test_the_interval_covers_the_truth_as_often_as_it_says():
    randomness = np.random.default_rng(0)
    truth = 0.8413447  # P(N(sqrt 2, 1) > N(0, 1))
    covered = 0
    for _ in range(400):
        _, (low, high) = auroc(randomness.normal(0, 1, 60), randomness.normal(2**0.5, 1, 80))
        covered += low <= truth <= high
    assert 0.92 <= covered / 400 <= 0.98


@pytest.mark.parametrize("few", [2, 5, 20])
def test_the_interval_covers_the_truth_where_outliers_are_few(few):
    randomness = np.random.default_rng(few)
    truth = 0.9614501  # P(N(2.5, 1) > N(0, 1))
    covered = 0
    for _ in range(200):
        _, (low, high) = auroc(randomness.normal(0, 1, 300), randomness.normal(2.5, 1, few))
        covered += low <= truth <= high
    assert covered >= 190


@pytest.mark.parametrize(("truth", "outliers"), [(0.98, 100), (0.99, 100), (0.995, 200)])
def test_the_interval_covers_the_truth_where_few_scores_are_out_of_order(truth, outliers):
    # Outliers that scatter three times as widely as inliers: the few among the inliers decide, and many samples have
    # hardly any. DeLong's interval alone covers the truth 86%, 79% and 78% of the time.
    randomness = np.random.default_rng(0)
    distance = 10**0.5 * norm.ppf(truth)
    covered = 0
    for _ in range(200):
        _, (low, high) = auroc(randomness.normal(0, 1, 500), randomness.normal(distance, 3, outliers))
        covered += low <= truth <= high
    assert covered >= 188


def test_perfect_separation_still_has_an_interval():
    area, (low, high) = auroc(np.zeros(100), np.ones(50))
    assert (area, high) == (1.0, 1.0)
    assert low == pytest.approx(0.025 ** (1 / 50))
    assert auroc(np.ones(9), np.zeros(9))[1][0] == 0.0


@pytest.mark.parametrize("count", [4, 5, 100])
def test_a_constant_score_still_has_an_interval(count):
    area, (low, high) = auroc(np.ones(count), np.ones(2 * count))
    assert area == 0.5
    assert high == pytest.approx(1 - low)
    assert low < 0.5 - 0.8 / count**0.5 < 0.5 < high
    assert detection_metrics([2, 2], [2, 2]).auroc_ci == pytest.approx((1 - 0.975**0.5, 0.975**0.5))


def test_metrics_by_hand():
    metrics = detection_metrics([1, 2, 3, 4], [3.5, 5, 6, np.inf])
    assert metrics.auroc == 15 / 16
    assert metrics.fpr_at_95_tpr == 0.25
    assert metrics.aupr_out == pytest.approx((1 + 1 + 1 + 4 / 5) / 4)
    assert metrics.aupr_in == pytest.approx((1 + 1 + 1 + 4 / 5) / 4)
    assert (metrics.inliers, metrics.outliers) == (4, 4)
    assert fpr_at_tpr([1, 2, 3, 4], [3.5, 5, 6, 7], tpr=0.75) == 0.0
    # 0.55 times 100 is more than 55 in floating point; the 55th largest score is 45.
    assert fpr_at_tpr([44.5], range(100), tpr=0.55) == 0.0


def test_roc_curve_ends_and_area():
    randomness = np.random.default_rng(0)
    low, high = randomness.normal(0, 1, 200).round(1), randomness.normal(1, 1, 100).round(1)
    fpr, tpr = roc_curve(low, high)
    assert (fpr[0], tpr[0], fpr[-1], tpr[-1]) == (0, 0, 1, 1)
    assert auc(fpr, tpr) == pytest.approx(auroc(low, high)[0])


@pytest.mark.parametrize(("low", "high"), [([], [1]), ([1], []), ([np.nan], [1])])
def test_scores_that_cannot_be_compared_are_refused(low, high):
    with pytest.raises(ValueError, match="scores"):
        detection_metrics(low, high)


@pytest.mark.parametrize("rate", [0.0, 1.5])
def test_rates_out_of_range_are_refused(rate):
    with pytest.raises(ValueError, match="level"):
        auroc([0.0, 1.0], [1.0, 2.0], level=rate)
    with pytest.raises(ValueError, match="tpr"):
        fpr_at_tpr([0.0, 1.0], [1.0, 2.0], tpr=rate)
