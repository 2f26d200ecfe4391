"""Held-out rows that come again, tables of one column, parameters that are NumPy's numbers, and saving that fails."""

import copy
import pickle

import numpy as np
import pytest

from negvae import NegVAEDetector
from negvae.detector import estimator

QUICK = {"epochs": 1, "device": "cpu", "random_state": 0}


def rows(count, seed, columns=40):
    mixing = np.random.default_rng(99).normal(size=(columns, columns))
    return np.random.default_rng(seed).normal(size=(count, columns)) @ mixing


def test_calibrating_again_with_the_held_out_rows_changes_no_decision():
    held_out, fresh = rows(60, 1), rows(500, 2)
    detector = NegVAEDetector(**QUICK, target_fpr=0.1).fit(rows(100, 0), calibration=held_out)
    before = detector.predict(fresh)
    np.testing.assert_array_equal(detector.recalibrate(held_out, target_fpr=0.1).predict(fresh), before)
    assert detector.calibration_.joined  # these rows are reference rows still
    assert not detector.recalibrate(fresh).calibration_.joined


def test_drift_does_not_ask_the_score_whose_held_out_values_depend_on_one_another():
    for confidence, asked in ((None, False), (0.9, True)):
        detector = NegVAEDetector(**QUICK, target_fpr=0.1, confidence=confidence).fit(rows(200, 0, 3))
        names = {each.name for each in detector.drift(rows(50, 1, 3)).moved}
        assert ("neighbors" in names, "column x0" in names) == (asked, True)


@pytest.mark.parametrize(
    "parameters",
    [
        {"target_fpr": np.float64(0.1)},
        {"target_fpr": np.float32(0.25), "confidence": np.float64(0.5)},
        {"contamination": np.float64(0.1)},
        {"latent_size": np.int64(3), "random_state": np.int64(3)},
    ],
)
def test_numbers_of_numpy_are_saved_as_numbers(parameters, tmp_path):
    detector = NegVAEDetector(**{**QUICK, **parameters}).fit(rows(100, 0, 3))
    detector.save(tmp_path / "run")
    for again in (NegVAEDetector.load(tmp_path / "run"), pickle.loads(pickle.dumps(detector)), copy.deepcopy(detector)):
        np.testing.assert_array_equal(again.predict(rows(50, 1, 3)), detector.predict(rows(50, 1, 3)))
        found = again.get_params()
        assert {name: found[name] for name in parameters} == parameters
        assert {type(found[name]) for name in parameters} <= {int, float}


def test_saving_that_fails_leaves_no_folder(tmp_path, monkeypatch):
    detector = NegVAEDetector(**QUICK).fit(rows(100, 0, 3))
    with monkeypatch.context() as patch:
        patch.setattr(estimator, "write_section", lambda *arguments: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            detector.save(tmp_path / "run")
    assert not (tmp_path / "run").exists()
    detector.save(tmp_path / "run")
    assert NegVAEDetector.load(tmp_path / "run").n_features_in_ == 3
