"""Ranks of a stream, the test martingale, and the monitor that keeps both."""

import json

import numpy as np
import pytest
from benchmarks.simulations import alarmed, ranks_of
from scipy.integrate import quad
from scipy.stats import kstest

from negvae.scoring.calibration import Calibration, p_values
from negvae.scoring.martingale import OnlineRanks, TestMartingale, bets, step
from negvae.scoring.monitor import HISTORY, Monitor


@pytest.mark.parametrize("round_to", [None, 0])
def test_ranks_of_a_stream_are_uniform_and_independent(round_to):
    """Pooled over streams with one and the same few held-out inliers each, also with ties."""
    random = np.random.default_rng(0)
    streams = random.standard_normal((150, 60))
    if round_to is not None:
        streams = np.round(streams, round_to)
    p = np.array([ranks_of(stream, 10, random) for stream in streams])
    assert kstest(p.reshape(-1), "uniform").pvalue > 1e-3
    first, second = p[:, 25:49].reshape(-1), p[:, 26:50].reshape(-1)
    assert abs(np.corrcoef(first, second)[0, 1]) < 4 / np.sqrt(len(first))
    # The mean of a stream's p-values varies as that of independent ones: with fixed ranks it would vary far more.
    assert p.mean(1).var() * 12 * 50 == pytest.approx(1, abs=4 * np.sqrt(2 / 150))


def test_ranks_are_those_among_all_that_came_before():
    random = np.random.default_rng(1)
    scores = random.standard_normal(300)
    p = ranks_of(scores, 20, random)
    for index in (0, 5, 100, 279):
        before, value = scores[: 20 + index], scores[20 + index]
        exact = (before > value).sum()
        # Within the gap between two held-out scores the place is drawn, outside it is counted.
        edges = np.sort(scores[:20])
        gap = np.searchsorted(edges, value)
        low, high = np.r_[-np.inf, edges, np.inf][[gap, gap + 1]]
        inside = ((before > low) & (before < high)).sum()
        assert (before >= high).sum() / (20 + index + 1) <= p[index]
        assert p[index] <= ((before >= high).sum() + inside + 1) / (20 + index + 1)
        assert abs(p[index] - exact / (20 + index + 1)) <= (inside + 1) / (20 + index + 1)
    assert OnlineRanks.of([], random).p_value(1.0, random) == pytest.approx(0.5, abs=0.5)
    with pytest.raises(ValueError, match="not a number"):
        OnlineRanks.of([np.nan], random)


def test_every_bet_is_fair():
    count = bets(0.5).shape[-1]
    for index in range(count):
        assert quad(lambda p, i=index: bets(p)[i], 0, 1)[0] == pytest.approx(1, abs=1e-6)
    assert (bets(np.linspace(0, 1, 1001)) >= 0).all()


def test_wealth_is_conserved_on_average():
    """The expected wealth after a step is the wealth before it, whatever the accounts."""
    random = np.random.default_rng(0)
    accounts = random.uniform(size=bets(0.5).shape[-1])
    for steps in (0, 7, 1000):
        after = quad(lambda p, s=steps: step(accounts, s, np.array(p)).sum() + 1 / (s + 2), 0, 1)[0]
        assert after == pytest.approx(accounts.sum() + 1 / (steps + 1), abs=1e-6)


def test_false_alarms_keep_to_the_rate_and_changes_are_found():
    random = np.random.default_rng(2)
    quiet = random.uniform(size=(4_000, 400))
    rate = (alarmed(quiet, 0.1) >= 0).mean()
    assert 0.02 < rate < 0.1  # Ville's inequality, over whole streams
    scores = random.standard_normal((30, 1_000))
    scores[:, 800:] += 1
    first = np.array([alarmed(ranks_of(row, 400, random)[None], 0.01)[0] for row in scores])
    assert (first >= 400).mean() > 0.9
    assert np.median(first) < 400 + 60
    lower = 1 - np.abs(random.uniform(-1, 1, (1, 400))) ** 3
    assert alarmed(lower, 0.01)[0] >= 0  # scores that fall are a change as well


def test_one_by_one_is_the_same_as_side_by_side():
    p = np.random.default_rng(0).uniform(size=50) ** 2
    martingale = TestMartingale(0.01)
    hits = [index for index, each in enumerate(p) if martingale.update(float(each))]
    assert hits[0] == alarmed(p[None], 0.01)[0]
    assert martingale.starts == 1 + len(hits)
    again = TestMartingale(**{**martingale.state(), "accounts": np.array(martingale.state()["accounts"])})
    assert again.update(0.3) == martingale.update(0.3)
    assert again.wealth == martingale.wealth
    with pytest.raises(ValueError, match="alarm_rate"):
        TestMartingale(0)


def calibration(count=200, rate=0.05):
    scores = np.sort(np.random.default_rng(7).standard_normal(count))
    return Calibration({"kl": scores}, "kl", float(scores[-1])).decide_by(target_fpr=rate)


def test_a_monitor_judges_as_the_calibration_does():
    known = calibration()
    monitor = Monitor.start(known)
    scores = np.random.default_rng(1).standard_normal(300)
    judged = monitor.update(scores)
    np.testing.assert_array_equal(judged.p_values, known.p_values(scores))
    np.testing.assert_array_equal(judged.outliers, known.is_outlier(scores))
    assert judged.changes == ()
    assert (monitor.seen, monitor.outliers) == (300, int(judged.outliers.sum()))
    moved = monitor.update(scores[:100] + 2)
    assert moved.changes
    assert monitor.changes[0] == 301 + moved.changes[0]
    assert monitor.update([np.nan]).outliers.all()  # what is not a number counts as the most conspicuous of all


@pytest.mark.parametrize("window", [0, 50])
def test_a_monitor_goes_on_where_it_stopped(window):
    known = calibration()
    scores = np.round(np.random.default_rng(1).standard_normal(400), 1)
    whole, parts = Monitor.start(known, window=window), Monitor.start(known, window=window)
    expected = whole.update(scores)
    first = parts.update(scores[:150])
    kept = json.loads(json.dumps(parts.state()))
    second = Monitor.restore(known, kept).update(scores[150:])
    for name in ("p_values", "outliers", "wealth"):
        joined = np.concatenate([getattr(first, name), getattr(second, name)])
        np.testing.assert_array_equal(joined, getattr(expected, name))
    with pytest.raises(ValueError, match="200 held-out inliers, the calibration has 100"):
        Monitor.restore(calibration(100), kept)
    with pytest.raises(ValueError, match="damaged"):
        Monitor.restore(known, {"format": 1})
    with pytest.raises(ValueError, match="upgrade"):
        Monitor.restore(known, {**kept, "format": 99})


def test_the_state_of_a_monitor_with_numbers_of_numpy_is_one_for_json():
    pytest.importorskip("online_fdr.p_values")
    calibration = Calibration({"kl": np.arange(99.0)}, "kl", 94.0, 0.05)
    monitor = Monitor.start(calibration, alarm_rate=np.float32(0.25), fdr=np.float32(0.125), window=np.int64(40))
    monitor.update([1.0, 99.0])
    again = Monitor.restore(calibration, json.loads(json.dumps(monitor.state())))
    assert (again.martingale.alarm_rate, again.fdr, again.window, again.seen) == (0.25, 0.125, 40, 2)


def test_a_sliding_window_follows_the_stream():
    known = calibration(1_000)
    random = np.random.default_rng(3)
    scores = random.standard_normal(3_000) + 2
    fixed = Monitor.start(known).update(scores)
    sliding = Monitor.start(known, window=500).update(scores)
    assert fixed.outliers.mean() > 0.4
    settled = sliding.outliers[500:].mean()
    assert settled < 0.05 + 4 * np.sqrt(0.05 / 2_500) * 1.5
    assert settled > 0.02
    with pytest.raises(ValueError, match="needs at least 19"):
        Monitor.start(known, window=10)
    with pytest.raises(ValueError, match="window is -1"):
        Monitor.start(known, window=-1)


def test_the_course_of_the_wealth_has_a_fixed_size():
    monitor = Monitor.start(calibration())
    monitor.update(np.random.default_rng(0).standard_normal(5 * HISTORY))
    assert HISTORY <= len(monitor.history) < 2 * HISTORY
    assert monitor.history[-1][0] > 4.9 * HISTORY


def test_online_discoveries_are_those_of_the_library():
    online = pytest.importorskip("online_fdr.p_values")
    known = calibration(5_000)
    random = np.random.default_rng(0)
    strange = random.uniform(size=200) < 0.2
    scores = random.standard_normal(200) + 6 * strange
    monitor = Monitor.start(known, fdr=0.1)
    first = monitor.update(scores[:90])
    monitor = Monitor.restore(known, json.loads(json.dumps(monitor.state())))
    called = np.concatenate([first.discoveries, monitor.update(scores[90:]).discoveries])
    oracle = online.Lond(alpha=0.1)
    p = p_values(known.scores["kl"], scores)
    assert called.tolist() == [oracle.test_one(float(each)) for each in p]
    assert called[strange].mean() > 0.8
    assert monitor.discoveries == called.sum()
    assert monitor.can_discover()
    few = Monitor.start(calibration(100), fdr=0.1)
    few.update(np.zeros(30))
    assert not few.can_discover()
    with pytest.raises(ValueError, match="fdr is 2"):
        Monitor.start(known, fdr=2)


def test_bets_are_what_they_are_called():
    p = 0.2
    wanted = [1, 0.25 * p**-0.75, 0.5 * p**-0.5, *(1 - slope * -0.3 for slope in (1.9, 1.0, -1.0, -1.9)),
              *(1 + bend * (6 * 0.09 - 0.5) for bend in (0.9, -0.9))]  # fmt: skip
    np.testing.assert_allclose(bets(p), wanted, rtol=1e-12)


def test_the_alarm_comes_at_the_wealth_that_is_named():
    """1 / 0.3 is 3.33: neither 3 nor more than that."""
    for factor, alarmed_at in ((0.999, False), (1.001, True)):
        fresh = np.ones_like(TestMartingale(0.3).accounts)
        gain = step(fresh, 0, np.array(0.4)).sum() - step(0 * fresh, 0, np.array(0.4)).sum()
        rest = step(0 * fresh, 0, np.array(0.4)).sum() + 0.5
        test = TestMartingale(0.3, fresh * (factor / 0.3 - rest) / gain)
        assert test.update(0.4) == alarmed_at
        assert (test.starts, test.steps) == ((2, 0) if alarmed_at else (1, 1))


def started(**options):
    held_out = np.sort(np.random.default_rng(0).normal(size=40))
    return Monitor.start(Calibration({"kl": held_out}, "kl", 2.0, 0.1), **options)


def test_a_window_begins_with_as_many_held_out_scores():
    monitor = started(window=12)
    assert monitor.latest.shape == (12,)
    assert set(monitor.latest) <= set(monitor.calibration.scores["kl"])


def test_an_alarm_is_remembered_between_two_places_of_the_course():
    monitor = started()
    monitor.every, monitor.seen = 2, 1
    monitor._remember(0.9 / monitor.martingale.alarm_rate)
    assert monitor.history == []
    monitor._remember(1.1 / monitor.martingale.alarm_rate)
    assert len(monitor.history) == 1


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda s: s.update(seen=-1), "a count is negative"),
        (lambda s: s.update(every=0), "a count is negative"),
        (lambda s: s["martingale"].update(starts=0), "a count is negative"),
        (lambda s: s["martingale"].update(peak=None), "the peak no number"),
        (lambda s: s.update(seen=1.5), "no whole number"),
        (lambda s: s.update(ties=s["ties"][1:]), "each gap"),
        (lambda s: s.update(weights=s["weights"][1:]), "each gap"),
        (lambda s: s["weights"].__setitem__(0, 0), "a weight is no count"),
        (lambda s: s["weights"].__setitem__(0, 2**62 + 2**55), "a weight is no count"),
        (lambda s: s["martingale"]["accounts"].pop(), "no amounts"),
        (lambda s: s["martingale"]["accounts"].append(0.0), "no amounts"),
        (lambda s: s["martingale"]["accounts"].__setitem__(0, -1.0), "no amounts"),
        (lambda s: s["martingale"]["accounts"].__setitem__(0, float("nan")), "no amounts"),
        (lambda s: s.update(held_out=39), "it is of 39 held-out inliers"),
        (lambda s: s.update(held_out=41), "it is of 41 held-out inliers"),
    ],
)
def test_a_damaged_state_is_refused_by_what_is_wrong(change, words):
    monitor = started()
    monitor.update([0.1, 0.2])
    state = json.loads(json.dumps(monitor.state()))
    assert Monitor.restore(monitor.calibration, json.loads(json.dumps(state))).seen == 2
    change(state)
    with pytest.raises(ValueError, match=words):
        Monitor.restore(monitor.calibration, state)


@pytest.mark.parametrize("latest", [[[0.1, 0.2]], []])
def test_a_saved_window_that_holds_no_row_of_scores_is_refused(latest):
    monitor = started(window=12)
    state = json.loads(json.dumps(monitor.state())) | {"latest": latest}
    with pytest.raises(ValueError, match="latest scores"):
        Monitor.restore(monitor.calibration, state)
