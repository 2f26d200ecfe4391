"""The detector as other libraries' estimator, with those libraries as oracles."""

import numpy as np
import pytest
from sklearn.exceptions import NotFittedError

from negvae import NegVAEClassifier, NegVAEDetector
from negvae.scoring.calibration import p_values
from negvae.scoring.certificates import certified_threshold, fpr_bounds
from negvae.scoring.martingale import bets
from tests.detector.test_guarantees import QUICK, rows


@pytest.fixture(scope="module")
def detector():
    return NegVAEDetector(target_fpr=0.05, calibration_fraction=0.5, **QUICK).fit(rows(400))


def test_the_classifier_orders_as_the_detector_does(detector):
    X = np.r_[rows(50, 1), rows(20, 2, shift=5)]
    classifier = NegVAEClassifier.of(detector)
    shares = classifier.predict_proba(X)
    np.testing.assert_allclose(shares.sum(1), 1)
    np.testing.assert_array_equal(np.argsort(shares[:, 1]), np.argsort(detector.ood_score(X)))
    np.testing.assert_array_equal(shares[:, 1] > 0.5, detector.predict(X) == -1)
    np.testing.assert_array_equal(classifier.predict(X), (detector.predict(X) == -1).astype(int))
    y = np.r_[np.zeros(400), np.ones(30)].astype(int)
    own = NegVAEClassifier(NegVAEDetector(**QUICK)).fit(np.r_[rows(400), rows(30, 3, shift=9)], y)
    assert own.score(np.r_[rows(50, 1), rows(20, 2, shift=9)], np.repeat([0, 1], [50, 20])) > 0.85
    with pytest.raises(ValueError, match="must be 0"):
        NegVAEClassifier().fit(rows(30), np.full(30, 2))
    with pytest.raises(NotFittedError):
        NegVAEClassifier.of(NegVAEDetector())


def test_crepes_gives_the_same_p_values(detector):
    crepes = pytest.importorskip("crepes")
    held_out, X = rows(150, 4), np.r_[rows(40, 5), rows(20, 6, shift=4)]
    wrapped = crepes.WrapClassifier(NegVAEClassifier.of(detector))
    wrapped.calibrate(held_out, np.zeros(150, int))
    theirs = wrapped.predict_p(X, smoothing=False)[:, 0]
    np.testing.assert_allclose(theirs, p_values(detector.ood_score(held_out), detector.ood_score(X)))


def test_crepes_martingale_has_the_same_wealth_on_the_same_bets():
    martingales = pytest.importorskip("crepes.martingales")
    p = np.random.default_rng(0).uniform(size=200) ** 1.3

    class Bets(martingales.BettingFunction):
        def apply(self, p_values):
            return bets(p_values)

    theirs = martingales.SimpleJumper(J=0.01, bf=Bets()).apply(p)
    # Ours with the whole reserve spread at the start is the simple jumper.
    count = bets(0.5).shape[-1]
    accounts, wealth = np.full(count, 1 / count), []
    for each in p:
        accounts = accounts * bets(each)
        wealth.append(accounts.sum())
        accounts = 0.99 * accounts + 0.01 * accounts.sum() / count
    np.testing.assert_allclose(theirs, wealth)


def test_mapie_certifies_the_same_threshold(detector):
    """The most permissive threshold that MAPIE's risk control allows, one after the other, is the certified one."""
    pytest.importorskip("mapie")
    from mapie.risk_control import BinaryClassificationController

    held_out, classifier = rows(600, 7), NegVAEClassifier.of(detector)
    scores = np.sort(classifier.predict_proba(held_out)[:, 1])
    controller = BinaryClassificationController(
        classifier.predict_proba, risk="fpr", target_level=0.05, confidence_level=0.9,
        list_predict_params=scores[-60:], fwer_method="fixed_sequence",
    )  # fmt: skip
    controller.calibrate(held_out, np.zeros(600, int))
    lowest = np.min(controller.valid_predict_params)
    ours = certified_threshold(scores, 0.05, 0.9)
    np.testing.assert_array_equal(scores >= lowest, scores > ours)  # theirs alarms from the threshold on
    assert fpr_bounds(scores, ours, 0.9).high <= 0.05


def test_nonconform_takes_the_detector():
    nonconform = pytest.importorskip("nonconform", reason="nonconform takes Python 3.12")
    conformal = nonconform.ConformalDetector(
        detector=NegVAEDetector(**QUICK), strategy=nonconform.Split(n_calib=100), seed=0,
        score_polarity="higher_is_normal",
    )  # fmt: skip
    X = np.r_[rows(40, 5), rows(20, 6, shift=6)]
    p = conformal.fit(rows(400)).compute_p_values(X)
    assert p[40:].mean() < 0.1 < p[:40].mean()
