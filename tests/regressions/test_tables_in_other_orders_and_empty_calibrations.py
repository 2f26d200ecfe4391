"""Regressions: columns in another order, inliers given apart, archives of one part, and bounds that were not proved."""

import numpy as np
import pandas as pd
import pytest

from negvae import NegVAEDetector
from negvae.data import load
from negvae.detector import ScoreDetector
from negvae.scoring.crossconformal import cross_bound

OPTIONS = {"epochs": 1, "device": "cpu"}


def table(count, seed, columns="abc"):
    return pd.DataFrame(np.random.default_rng(seed).normal(size=(count, 3)) * [1, 10, 100], columns=list(columns))


@pytest.mark.parametrize("part", ["train", "test"])
def test_an_archive_with_one_part_alone_has_no_splits(part, tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (50, 16, 16), dtype=np.uint8)
    np.savez(tmp_path / "one.npz", **{f"x_{part}": images})
    train, test = (load(tmp_path / "one.npz", split, disjoint_from_train=True).images for split in ("train", "test"))
    assert (len(train), len(test)) == (40, 10)
    assert not {each.tobytes() for each in train} & {each.tobytes() for each in test}
    rows = np.random.default_rng(0).normal(size=(120, 3))
    np.savez(tmp_path / "rows.npz", **{f"x_{part}": rows})
    assert len(NegVAEDetector(**OPTIONS).fit_predict(str(tmp_path / "rows.npz"))) == 120


def test_numbered_columns_in_another_order_are_refused_everywhere():
    inliers, others = table(200, 0, range(3)), table(60, 1, range(3))
    message = "column 0 of {} is '2', of the inliers '0'"
    turned = others[[2, 1, 0]]
    for data in ({"calibration": turned}, {"negatives": turned + 1}):
        with pytest.raises(ValueError, match=message.format("the negatives or held-out inliers")):
            NegVAEDetector(**OPTIONS).fit(inliers, **data)
    detector = ScoreDetector(lambda batch: batch.abs()[:, 0]).fit(inliers)
    with pytest.raises(ValueError, match=message.format("X")):
        detector.predict(turned)
    with pytest.raises(ValueError, match="column 1 of X is missing"):
        detector.predict(others[[0]])
    assert (detector.predict(others) < 0).mean() < 0.2
    assert (detector.predict(others.set_axis([4, 5, 6], axis=1)) == detector.predict(others)).all()  # other places


def test_the_order_of_numbered_columns_is_kept_in_a_folder(tmp_path):
    inliers, others = table(200, 0, range(3)), table(60, 1, range(3))
    found = ScoreDetector(first_column).fit(inliers)
    found.save(tmp_path / "kept")
    again = ScoreDetector.load(tmp_path / "kept", first_column)
    np.testing.assert_array_equal(again.predict(others), found.predict(others))
    with pytest.raises(ValueError, match="column 0 of X is '2'"):
        again.predict(others[[2, 1, 0]])


def first_column(batch):
    return batch.abs()[:, 0]


def test_a_function_that_works_in_place_leaves_the_frame_alone():
    frame = pd.DataFrame({"a": np.random.default_rng(0).normal(size=200)})
    before = frame.copy(deep=True)

    def score(batch):
        batch -= 5
        return batch.abs().sum(1)

    ScoreDetector(score).fit(frame).predict(frame)
    pd.testing.assert_frame_equal(frame, before)
    foreign = pd.DataFrame({"a": before["a"].to_numpy().astype(">f8")})
    assert len(ScoreDetector(score).fit(foreign).predict(before)) == 200


def test_without_a_rate_no_inlier_is_called_an_outlier_by_several_scores():
    for seed in range(20):
        inliers = np.random.default_rng(seed).normal(size=(100, 3))
        assert (ScoreDetector(np.abs, target_fpr=None).fit_predict(inliers) == 1).all()


def test_the_bound_by_comparing_inliers_counts_for_equal_folds_alone():
    assert cross_bound(0.05, 30, 15) == pytest.approx(0.1 + (1 - 15 / 30) / 16)
    assert cross_bound(0.05, 30, 20) == pytest.approx(0.1 + 2 * 0.95 * 19 / 50)
    assert cross_bound(0.05, 30, 30) == pytest.approx(0.1)


def test_held_out_inliers_of_a_file_are_found_by_their_columns(tmp_path):
    held_out = table(60, 1).assign(group=["p", "q"] * 30, note="x")
    held_out[["group", "c", "note", "a", "b"]].to_csv(tmp_path / "held-out.csv", index=False)
    inliers = table(200, 0)
    detector = NegVAEDetector(**OPTIONS).fit(inliers, calibration=str(tmp_path / "held-out.csv"), groups="group")
    assert set(detector.calibration_.thresholds) == {"p", "q"}
    same = NegVAEDetector(**OPTIONS).fit(inliers, calibration=table(60, 1), groups=["p", "q"] * 30)
    assert detector.calibration_.thresholds == same.calibration_.thresholds


def test_an_empty_calibration_is_refused_before_the_training():
    with pytest.raises(ValueError, match="calibration is empty: give inliers that are not in X"):
        NegVAEDetector(**OPTIONS).fit(table(200, 0), calibration=table(60, 1)[:0])


def test_a_column_may_have_the_name_of_an_attribute_of_sources():
    names = {"a": "adversarial"}
    detector = NegVAEDetector(**OPTIONS).fit(table(200, 0).rename(columns=names), negatives=table(60, 1).rename(
        columns=names) * 9)  # fmt: skip
    assert detector.config_.negatives == "auxiliary:given to fit"
