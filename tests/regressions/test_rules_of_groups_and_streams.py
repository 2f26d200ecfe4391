"""Rules that were not those that were promised: of groups without a rate, of streams with a window, of folds."""

import json
import re

import numpy as np
import pytest

from negvae import CrossConformalDetector, NegVAEDetector
from negvae.report.watch import PAGE, write_page
from negvae.runs.score import score_files
from negvae.runs.watch import METRICS, watch
from negvae.scoring.calibration import Calibration
from negvae.scoring.certificates import MOST_CONFIDENT, false_discovery_bounds
from negvae.scoring.monitor import Monitor

ROWS = np.random.default_rng(0).normal(size=(200, 3))
GROUPS = ["a"] * 150 + ["b"] * 50


@pytest.mark.parametrize(("parameters", "share"), [({"target_fpr": None}, 0.0), ({"contamination": 0.1}, 0.1)])
def test_without_a_rate_each_group_has_that_share_of_its_data_above_its_threshold(parameters, share):
    detector = NegVAEDetector(device="cpu", epochs=1, **parameters).fit(ROWS, groups=GROUPS)
    called = detector.predict(ROWS, groups=GROUPS) == -1
    assert called[:150].mean() == pytest.approx(share, abs=1 / 150)
    assert called[150:].mean() == pytest.approx(share, abs=1 / 50)


def test_too_few_held_out_inliers_for_the_rate_put_the_thresholds_of_groups_above_all_data():
    with pytest.warns(UserWarning, match="needs 999 held-out inliers"):
        detector = NegVAEDetector(device="cpu", epochs=1, target_fpr=0.001).fit(ROWS, groups=GROUPS)
    assert (detector.predict(ROWS, groups=GROUPS) == 1).all()


def test_with_given_held_out_inliers_and_no_rate_thresholds_of_groups_lie_above_all_data():
    detector = NegVAEDetector(device="cpu", epochs=1, target_fpr=None)
    detector.fit(ROWS, calibration=ROWS[:50] + 0.01, groups=GROUPS[100:150])
    assert (detector.predict(ROWS) == 1).all()
    assert set(detector.calibration_.thresholds) == {"a"}


def test_photos_without_a_rate_have_thresholds_of_groups_by_their_training_images_too(tmp_path):
    from PIL import Image

    random = np.random.default_rng(1)
    for place in range(24):
        folder = tmp_path / ("ab"[place % 2])
        folder.mkdir(exist_ok=True)
        pixels = random.integers(0, 256, (36 + 4 * (place % 3), 40, 3), np.uint8)
        Image.fromarray(pixels).save(folder / f"{place:02d}.png")
    detector = NegVAEDetector(device="cpu", epochs=1, batch_size=8, target_fpr=None, transformations="none")
    detector.fit(tmp_path, groups="folders")
    assert (detector.predict(tmp_path, groups="folders") == 1).all()


def test_inliers_without_a_group_are_refused_before_training():
    detector = NegVAEDetector(device="cpu")
    detector._train = lambda *data: pytest.fail("it was trained")
    with pytest.raises(ValueError, match="20 of 200 inliers have no group, the first in row 180: each needs one"):
        detector.fit(ROWS, groups=["a"] * 180 + [""] * 20)


def test_a_watch_with_a_window_certifies_no_rate(tmp_path):
    NegVAEDetector(device="cpu", epochs=1).fit(ROWS, calibration=ROWS + 5).save(tmp_path / "run")
    (tmp_path / "inbox").mkdir()
    np.savetxt(tmp_path / "inbox" / "new.csv", ROWS[:30] + 5, delimiter=",", header="x0,x1,x2", comments="")
    texts = {}
    for window in (0, 100):
        out = tmp_path / f"out-{window}"
        watched = watch(tmp_path / "run", str(tmp_path / "inbox"), out, window=window, settle=0, once=True)
        write_page(out, watched, ended=True)
        texts[window] = (out / METRICS).read_text() + (out / PAGE).read_text()
    for words in ("negvae_false_alarm_bound", "with 95% confidence"):
        assert (words in texts[0], words in texts[100]) == (not watched.monitor.calibration.uncertified, False)
    assert "the threshold follows the latest 100 rows of the stream" in texts[100]


def with_groups(window):
    held_out = {"a": np.arange(500.0), "b": np.arange(200.0)}
    every = np.sort(np.concatenate(list(held_out.values())))
    known = Calibration({"kl": every}, "kl", 500.0, 0.05, groups={"kl": held_out})
    return Monitor.start(known.with_thresholds(), fdr=0.5, window=window)


@pytest.mark.parametrize(("window", "groups"), [(0, ["a"]), (100, None)])
def test_a_stream_of_groups_says_when_nothing_can_be_discovered_any_more(window, groups):
    pytest.importorskip("online_fdr")
    monitor = with_groups(window)
    while monitor.can_discover():
        monitor.update([0.0], groups)
        assert monitor.seen < 500
    last = monitor.seen - 1
    assert not monitor.update([1e9], groups).discoveries.any()
    earlier = with_groups(window)
    earlier.update(np.zeros(last), groups and groups * last)
    assert earlier.update([1e9], groups).discoveries.all()


def test_a_rate_of_false_discoveries_that_is_none_is_refused_before_anything_is_scored(tmp_path):
    with pytest.raises(ValueError, match="fdr is 5: it must lie between 0 and 1"):
        score_files(tmp_path / "no run", ["no data"], out=tmp_path / "x.csv", fdr=5)


def test_rows_that_are_decided_later_are_counted_once_as_they_are_scored(tmp_path):
    NegVAEDetector(device="cpu", epochs=1).fit(ROWS).save(tmp_path / "run")
    np.savetxt(tmp_path / "new.csv", ROWS[:100], delimiter=",", header="x0,x1,x2", comments="")
    shown = []
    score_files(
        tmp_path / "run", [str(tmp_path / "new.csv")], out=tmp_path / "x.csv", fdr=0.1, batch_size=40,
        on_rows=shown.append,
    )  # fmt: skip
    assert shown == sorted(set(shown))
    assert shown[-1] == 100


def test_a_fitted_cross_conformal_detector_stays_what_it_is_until_the_next_fit():
    detector = CrossConformalDetector(NegVAEDetector(device="cpu", epochs=1), target_fpr=0.1).fit(ROWS[:40])
    before = detector.predict(ROWS), detector.p_values(ROWS), detector.false_alarm_bound
    detector.set_params(target_fpr=0.5, folds=20, twice_mean=True)
    np.testing.assert_array_equal(detector.predict(ROWS), before[0])
    np.testing.assert_array_equal(detector.p_values(ROWS), before[1])
    assert detector.false_alarm_bound == before[2]
    np.testing.assert_array_equal(detector.predict(ROWS) == -1, detector.decision_function(ROWS) <= 0)


def test_folds_of_rows_are_held_apart_from_the_rows_that_distances_are_measured_to():
    detector = CrossConformalDetector(NegVAEDetector(device="cpu", epochs=1), target_fpr=0.1).fit(ROWS[:40])
    for each in detector.detectors_:
        assert not each.calibration_.joined
        held_out = each.calibration_.scores["neighbors"]
        assert len(held_out) == 8
    # So a held-out row that comes again has the score that its fold has stored.
    first = detector.detectors_[0]
    assert np.isin(first.calibration_.scores["neighbors"].astype(np.float32), first.ood_score(ROWS[:40])).all()


def test_a_batch_whose_state_cannot_be_written_can_be_given_again(tmp_path):
    detector = NegVAEDetector(device="cpu", epochs=1).fit(ROWS)
    with pytest.raises(FileNotFoundError, match=r"there is no folder .*none"):
        detector.monitor(tmp_path / "none" / "state.json")
    folder = tmp_path / "kept"
    folder.mkdir()
    monitor = detector.monitor(folder / "state.json")
    monitor.update(ROWS[:5])
    whole = json.dumps(monitor.monitor.state())
    (folder / "state.json").unlink()
    folder.rmdir()
    with pytest.raises(OSError, match=re.escape(str(folder))):
        monitor.update(ROWS[5:9])
    assert json.dumps(monitor.monitor.state()) == whole
    folder.mkdir()
    assert monitor.update(ROWS[5:9]).seen == 5


def test_bounds_at_an_extreme_confidence_are_refused_before_they_take_all_memory():
    with pytest.raises(ValueError, match=f"take at most {MOST_CONFIDENT}"):
        false_discovery_bounds(np.arange(100.0), [3.0], 0.999999)
