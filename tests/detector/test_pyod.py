import pickle

import numpy as np
import pytest
from scipy.stats import rankdata
from sklearn.base import clone
from sklearn.metrics import roc_auc_score

from negvae.detector import as_pyod

base = pytest.importorskip("pyod.models.base")


@pytest.fixture(scope="module")
def rows() -> np.ndarray:
    """190 rows of one cluster, then 10 outliers."""
    draw = np.random.default_rng(0)
    return np.concatenate([draw.normal(size=(190, 4)), draw.normal(8, 1, size=(10, 4))])


@pytest.fixture(scope="module")
def fitted(rows: np.ndarray) -> base.BaseDetector:
    return as_pyod(contamination=0.05, epochs=20, negatives="none", device="cpu").fit(rows)


def test_signs_and_attributes_are_pyods(fitted: base.BaseDetector, rows: np.ndarray) -> None:
    assert isinstance(fitted, base.BaseDetector)
    assert fitted.decision_scores_.shape == (200,)
    assert set(fitted.labels_) == {0, 1}
    assert fitted.labels_.sum() == 10
    assert fitted.labels_[190:].mean() >= 0.8  # 1 = outlier
    np.testing.assert_array_equal(fitted.labels_, fitted.decision_scores_ > fitted.threshold_)
    assert fitted.decision_scores_[190:].mean() > fitted.decision_scores_[:190].mean()  # larger = more abnormal
    np.testing.assert_array_equal(fitted.predict(rows), fitted.labels_)
    np.testing.assert_array_equal(fitted.decision_function(rows), fitted.decision_scores_)


def test_probabilities_and_confidence_come_from_pyod(fitted: base.BaseDetector, rows: np.ndarray) -> None:
    for method in ("linear", "unify"):
        probabilities = fitted.predict_proba(rows, method=method)
        assert probabilities.shape == (200, 2)
        np.testing.assert_allclose(probabilities.sum(1), 1)
        assert probabilities[190:, 1].mean() > probabilities[:190, 1].mean()
    labels, confidence = fitted.predict(rows, return_confidence=True)
    assert labels.shape == confidence.shape == (200,)
    assert ((confidence >= 0) & (confidence <= 1)).all()


def test_parameters_and_copies(fitted: base.BaseDetector, rows: np.ndarray) -> None:
    assert fitted.get_params() == {"contamination": 0.05, "epochs": 20, "negatives": "none", "device": "cpu"}
    assert fitted.set_params(epochs=20).contamination == 0.05
    fresh = clone(fitted)
    assert fresh.get_params() == fitted.get_params()
    assert not hasattr(fresh, "detector_")
    again = pickle.loads(pickle.dumps(fitted))
    np.testing.assert_array_equal(again.predict(rows), fitted.predict(rows))


def test_combines_with_pyods_own_detectors(fitted: base.BaseDetector, rows: np.ndarray) -> None:
    from pyod.models.hbos import HBOS

    others = HBOS(contamination=0.05).fit(rows)
    score = sum(detector.predict_proba(rows)[:, 1] for detector in (fitted, others))
    assert set(np.argsort(score)[-8:]) <= set(range(190, 200))


def test_what_pyod_checks_of_each_of_its_own_detectors(fitted: base.BaseDetector, rows: np.ndarray) -> None:
    """The checks that PyOD's test files repeat for every detector: test_prediction_*, test_fit_predict_*, ..."""
    draw = np.random.default_rng(1)
    fresh, truth = np.r_[draw.normal(size=(40, 4)), draw.normal(8, 1, size=(10, 4))], np.repeat([0, 1], [40, 10])
    for name in ("decision_scores_", "labels_", "threshold_", "_mu", "_sigma", "_classes"):
        assert getattr(fitted, name) is not None
    scores = fitted.decision_function(fresh)
    assert scores.shape == (50,)
    assert roc_auc_score(truth, scores) > 0.95
    assert fitted.predict(fresh).shape == (50,)
    probabilities, confidence = fitted.predict_proba(fresh, return_confidence=True)
    assert (probabilities >= 0).all()
    assert (probabilities <= 1).all()
    assert confidence.shape == (50,)
    with pytest.raises(ValueError, match="something"):
        fitted.predict_proba(fresh, method="something")
    ranks = fitted._predict_rank(fresh)
    np.testing.assert_allclose(rankdata(ranks), rankdata(scores), atol=4)
    assert (ranks <= len(rows) + 1).all()
    normalized = fitted._predict_rank(fresh, normalized=True)
    assert ((normalized >= -0.1) & (normalized <= 1.01)).all()
    again = clone(fitted)
    with pytest.warns(FutureWarning, match="deprecated"):
        assert (again.fit_predict(rows) == fitted.labels_).all()
    with pytest.warns(FutureWarning, match="deprecated"), pytest.raises(NotImplementedError):
        again.fit_predict_score(rows, np.repeat([0, 1], [190, 10]), scoring="something")
    rejecting = fitted.predict_with_rejection(fresh, c_r=0.05)
    assert set(np.unique(rejecting)) <= {-2, 0, 1}


def test_pyod_takes_no_clean_data_and_no_unknown_parameter() -> None:
    with pytest.raises(ValueError, match="contamination"):
        as_pyod(contamination=0.0)
    with pytest.raises(TypeError, match="colour"):
        as_pyod(colour="red")
