"""Regressions: names of columns, data that was trimmed, held-out rows that come again, groups; each was once wrong."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from sklearn.exceptions import NotFittedError
from torch.utils.data import DataLoader, TensorDataset

from negvae import CrossConformalDetector, NegVAEClassifier, NegVAEDetector, ScoreDetector
from negvae.data.tables import texts
from negvae.detector.cleaning import clean
from negvae.detector.groups import with_groups
from negvae.detector.inputs import seed_of
from negvae.runs.artifact import load_artifact
from negvae.runs.calibrate import calibrate_run
from negvae.scoring.crossconformal import twice_mean_p_values
from negvae.scoring.neighbors import fit_neighbors

OPTIONS = {"epochs": 2, "batch_size": 32, "precision": "float32", "device": "cpu"}
pytestmark = pytest.mark.filterwarnings("ignore:.*(training step|held-out inlier):UserWarning")


def rows(count: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(count, 3))


def table(count: int, seed: int) -> pd.DataFrame:
    return pd.DataFrame(rows(count, seed) * [1, 100, 10_000], columns=["small", "middle", "large"])


# --- names of columns -----


@pytest.mark.parametrize("form", ["frame", "file"])
def test_folds_and_classifiers_find_columns_by_their_names(tmp_path: Path, form: str) -> None:
    inliers, new = table(90, 0), table(30, 1)
    given: list = [inliers, new]
    if form == "file":
        for number, each in enumerate((inliers, new[new.columns[::-1]])):
            given[number] = tmp_path / f"{number}.csv"
            each.to_csv(given[number], index=False)
    folds = CrossConformalDetector(NegVAEDetector(**OPTIONS), folds=2, target_fpr=0.1).fit(given[0])
    assert folds.feature_names_in_.tolist() == list(inliers.columns)
    assert (folds.predict(given[1]) > 0).mean() > 0.7
    labels = np.r_[np.zeros(60, int), np.ones(30, int)]
    classifier = NegVAEClassifier(NegVAEDetector(**OPTIONS)).fit(given[0], labels)
    assert classifier.feature_names_in_.tolist() == list(inliers.columns)
    assert classifier.predict(given[1]).mean() < 0.3
    if form == "frame":
        with pytest.raises(ValueError, match="feature names"):
            folds.predict(new[new.columns[::-1]])
    folds.save(tmp_path / "folds")
    assert CrossConformalDetector.load(tmp_path / "folds").feature_names_in_.tolist() == list(inliers.columns)


def test_a_detector_of_a_table_keeps_no_names_when_it_is_fitted_to_photos(tmp_path: Path) -> None:
    detector = NegVAEDetector(**{**OPTIONS, "epochs": 1, "batch_size": 8}, transformations="none").fit(table(40, 0))
    draw = np.random.default_rng(0)
    for number, side in enumerate([40, 48] * 8):
        Image.fromarray(draw.integers(0, 255, (side, side + 4, 3), dtype=np.uint8)).save(tmp_path / f"{number:02}.png")
    detector.set_params(batch_size=4).fit(str(tmp_path))
    assert not hasattr(detector, "feature_names_in_")
    with pytest.raises(ValueError, match=r"overlap the inliers|identical"):
        detector.fit(str(tmp_path), negatives=str(tmp_path))


# --- trimmed data -----


def test_nothing_is_certified_of_data_that_was_trimmed(tmp_path: Path) -> None:
    options = {**OPTIONS, "decision_score": "kl", "target_fpr": 0.1}
    detector = NegVAEDetector(**options, trim=0.1).fit(rows(120, 0))
    assert "about" in detector.calibration_.describe()
    detector.save(tmp_path / "run")
    for each in (detector, NegVAEDetector.load(tmp_path / "run")):
        assert each.calibration_.certificate() == {}
        with pytest.raises(ValueError, match="trim"):
            each.fpr_bounds()
    detector.recalibrate(rows(100, 1))
    assert detector.fpr_bounds().held_out == 100
    with pytest.raises(ValueError, match=r"^confidence takes held-out inliers that are clean"):
        NegVAEDetector(**options, trim=0.1, confidence=0.9).fit(rows(120, 0))
    clean_ones = NegVAEDetector(**options, trim=0.1, confidence=0.9).fit(rows(120, 0), calibration=rows(100, 2))
    assert clean_ones.calibration_.certificate()["held_out"] == 100


def test_held_out_rows_of_trimmed_data_certify_nothing_when_they_calibrate_again(tmp_path: Path) -> None:
    table(120, 0).to_csv(tmp_path / "x.csv", index=False)
    options = {**OPTIONS, "decision_score": "kl", "target_fpr": 0.1}
    NegVAEDetector(**options, trim=0.1).fit(str(tmp_path / "x.csv")).save(tmp_path / "run")
    before = load_artifact(tmp_path / "run", "cpu").calibration
    assert before is not None
    found = calibrate_run(tmp_path / "run", device="cpu")
    assert (found.trimmed, found.certificate()) == (0.1, {})
    np.testing.assert_allclose(found.scores["kl"], before.scores["kl"], rtol=1e-6)
    with pytest.raises(ValueError, match=r"\(trim\) before inliers were held out"):
        calibrate_run(tmp_path / "run", target_fpr=0.1, confidence=0.9, device="cpu")
    table(100, 3).to_csv(tmp_path / "clean.csv", index=False)
    clean_ones = calibrate_run(tmp_path / "run", str(tmp_path / "clean.csv"), confidence=0.9, device="cpu")
    assert clean_ones.certificate()["held_out"] == 100
    with pytest.raises(ValueError, match=r"\(trim\) before inliers were held out"):
        calibrate_run(tmp_path / "run", device="cpu")  # by the present rule, which has a confidence
    assert calibrate_run(tmp_path / "run", device="cpu", target_fpr=0.2).trimmed == 0.1


# --- calibrating again -----


@pytest.fixture
def fitted() -> tuple[NegVAEDetector, np.ndarray]:
    """Return a detector, and the rows that it has held out."""
    given = rows(100, 0)
    detector = NegVAEDetector(**OPTIONS, target_fpr=0.2).fit(given)
    return detector, given[list(detector._recorded.held_out or ())]


def test_held_out_rows_that_are_references_certify_nothing_after_other_rows_either(fitted: tuple) -> None:
    detector, held_out = fitted
    detector.recalibrate(rows(50, 5))
    assert detector.fpr_bounds().held_out == 50
    detector.recalibrate(held_out)
    with pytest.raises(ValueError, match="reference rows too"):
        detector.fpr_bounds()


def test_a_rate_with_a_confidence_is_refused_where_nothing_is_certified(fitted: tuple) -> None:
    detector, held_out = fitted
    for options in ({"confidence": 0.9}, {"confidence": 0.9, "target_fpr": 0.3}):
        with pytest.raises(ValueError, match="no rate is certified"):
            detector.recalibrate(held_out, **options)
    assert detector.calibration_.confidence is None


def test_enough_inliers_give_the_rate_that_was_asked_for_and_could_not_be_had() -> None:
    with pytest.warns(UserWarning, match="needs 99 held-out inliers") as caught:
        detector = NegVAEDetector(**OPTIONS, target_fpr=0.01).fit(rows(60, 0))
    assert {Path(each.filename).name for each in caught if "needs 99" in str(each.message)} == {Path(__file__).name}
    assert detector.calibration_.target_fpr is None
    with pytest.warns(UserWarning, match="needs 99 held-out inliers, there are 40: .*; give more of them"):
        detector.recalibrate(rows(40, 1))
    assert detector.recalibrate(rows(150, 2)).calibration_.target_fpr == 0.01


# --- few rows -----


@pytest.mark.parametrize(("training", "held_out", "contamination"), [(3, 10, 0), (50, 500, 0.2), (20, 180, 0.1)])
def test_neighbors_take_few_training_rows_and_many_held_out(training: int, held_out: int, contamination: float) -> None:
    fitted, scores = fit_neighbors(rows(training, 0), rows(held_out, 1), contamination)
    assert fitted.nearest < training
    assert np.isfinite(scores).all()
    with pytest.raises(ValueError, match="copies of one another"):
        fit_neighbors(np.zeros((2, 3)), rows(10, 1))


def test_twice_the_mean_p_value_reaches_the_level_that_fit_allows() -> None:
    for size, level in ((39, 0.05), (19, 0.1), (9, 0.2)):
        assert twice_mean_p_values([np.zeros(size)] * 3, np.ones((3, 1)))[0] <= level
    with pytest.raises(ValueError, match="smallest p-value"):
        CrossConformalDetector(folds=3, target_fpr=0.05, twice_mean=True).fit(rows(116, 0))


# --- groups, passes over the data, other small things -----


def test_groups_of_a_score_detector_may_be_numbers_columns_and_missing(tmp_path: Path) -> None:
    data = table(60, 0)
    detector = ScoreDetector(lambda batch: abs(np.asarray(batch, float)[:, 0]), target_fpr=0.2)
    numbers = [1] * 30 + [2] * 30
    detector.fit(data, groups=numbers)
    assert len(detector.predict(data[:2], groups=[1, 2])) == len(detector.p_values(data[:2], groups=[1, 2])) == 2
    by_column = ScoreDetector(detector.score, target_fpr=0.2).fit(data.assign(site=numbers), groups="site")
    assert by_column.calibration_.thresholds == detector.calibration_.thresholds
    assert (by_column.predict_fdr(data.assign(site=numbers), groups="site") == 1).any()
    with pytest.raises(ValueError, match="group"):
        detector.fit(data, groups=[None, *numbers[1:]])
    whole = pd.Series([1, None, 2]).rename("site")
    for column in (whole, whole.astype("Int64"), np.array([1, None, 2], object)):
        assert with_groups(data[:3], column)[1] == ["1", "", "2"]
    data[:3].assign(site=whole).to_csv(tmp_path / "t.csv", index=False)  # which writes 1.0 and 2.0
    assert texts(tmp_path / "t.csv", "site") == ["1", "", "2"]


def test_a_score_detector_that_is_not_fitted_says_so() -> None:
    detector = ScoreDetector(lambda batch: batch.sum(1))
    uses: list[Callable] = [detector.predict, detector.p_values, detector.predict_fdr, detector.drift]
    for use in uses:
        with pytest.raises(NotFittedError):
            use(rows(5, 0))


@pytest.mark.filterwarnings("ignore:(the DataLoader shuffles|.*new inliers are unlike):UserWarning")
def test_scores_and_weights_belong_together_where_a_loader_shuffles() -> None:
    detector = NegVAEDetector(**OPTIONS, target_fpr=0.2).fit(rows(100, 0))
    old = rows(40, 1)
    loader = DataLoader(TensorDataset(torch.from_numpy(old)), batch_size=10, shuffle=True)
    shuffled = detector.shifted(rows(20, 2) + 0.3, loader)
    straight = detector.shifted(rows(20, 2) + 0.3, old)
    pairs = [sorted(zip(each.scores, each.weights, strict=True)) for each in (shuffled, straight)]
    np.testing.assert_allclose(*pairs, rtol=1e-6)


def test_a_state_without_its_monitor_is_named(tmp_path: Path) -> None:
    detector = NegVAEDetector(**OPTIONS, target_fpr=0.2).fit(rows(60, 0))
    path = tmp_path / "state.json"
    scores = detector.calibration_.scores[detector.calibration_.score].tolist()
    path.write_text(json.dumps({"scores": scores}))
    with pytest.raises(ValueError, match=r"state\.json: not the state of a stream"):
        detector.monitor(path)


def test_cleaning_takes_every_random_state(tmp_path: Path) -> None:
    np.save(tmp_path / "rows.npy", rows(40, 0))
    for state in (None, np.random.RandomState(3)):
        clean(str(tmp_path / "rows.npy"), tmp_path / "out.csv", folds=2, random_state=state, log=lambda text: None,
              **OPTIONS)  # fmt: skip
    assert seed_of(np.int64(4)) == 4


def test_as_many_reference_rows_are_kept_as_may_be(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("negvae.scoring.neighbors.REFERENCE_ROWS", 40)
    for count, kept in ((40, 40), (41, 40), (79, 40), (90, 40)):
        assert len(fit_neighbors(rows(count, 0), rows(10, 1))[0].whitened) == kept
