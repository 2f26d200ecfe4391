"""What a fitted detector promises, and how it is kept."""

import json
import pickle

import numpy as np
import pytest
import torch
from safetensors import safe_open
from sklearn.base import clone

from negvae import CrossConformalDetector, NegVAEDetector
from negvae.checksums import CHECKSUM
from negvae.detector.estimator import Drift
from negvae.runs.artifact import load_artifact, read_section
from negvae.scoring.calibration import fpr_threshold
from negvae.scoring.certificates import certified_threshold, false_discovery_bounds

QUICK = {"negatives": "none", "decision_score": "kl", "epochs": 1, "latent_size": 2, "batch_size": 128}


def rows(count, seed=0, shift=0.0):
    """Four correlated columns."""
    random = np.random.default_rng(seed)
    base = random.standard_normal((count, 2))
    return (
        np.column_stack([base, base.sum(1), base[:, 0] - base[:, 1]]) + 0.1 * random.standard_normal((count, 4)) + shift
    )


@pytest.fixture(scope="module")
def fitted():
    return NegVAEDetector(target_fpr=0.02, confidence=0.9, calibration_fraction=0.5, **QUICK).fit(rows(800))


@pytest.fixture
def detector(fitted):
    return pickle.loads(pickle.dumps(fitted))


@pytest.fixture(scope="module")
def grouped():
    groups = np.where(np.arange(800) % 4 == 0, "rare", "common")
    X = rows(800)
    X[groups == "rare"] *= 2
    detector = NegVAEDetector(target_fpr=0.05, calibration_fraction=0.5, **QUICK)
    return detector.fit(X, groups=groups)


def test_a_certificate_is_in_threshold_card_and_config(fitted, tmp_path):
    calibration = fitted.calibration_
    assert calibration.threshold == certified_threshold(calibration.scores["kl"], 0.02, 0.9)
    assert fitted.fpr_bounds(0.9).high <= 0.02
    fitted.save(tmp_path / "kept")
    card = (tmp_path / "kept" / "MODEL_CARD.md").read_text()
    assert "Certificate: with 0.9 confidence, the rate of false alarms is at most 0.0" in card
    section = read_section(tmp_path / "kept", "calibration")
    assert section["confidence"] == 0.9
    assert section["false_alarm_bound"]["at_most"] == calibration.fpr_bounds(0.9).high
    with safe_open(tmp_path / "kept" / "calibration.safetensors", "np") as file:
        assert json.loads(file.metadata()["rule"])["confidence"] == 0.9
    again = NegVAEDetector.load(tmp_path / "kept")
    assert again.calibration_.confidence == 0.9
    assert again.get_params()["confidence"] == 0.9
    np.testing.assert_array_equal(again.calibration_.columns, calibration.columns)
    assert clone(again).get_params()["confidence"] == 0.9


def test_too_few_held_out_inliers_are_refused_before_training(monkeypatch):
    detector = NegVAEDetector(target_fpr=0.01, confidence=0.95, **QUICK)
    monkeypatch.setattr(NegVAEDetector, "_train", lambda *args: pytest.fail("it trained"))
    with pytest.raises(ValueError, match="needs at least 299 held-out inliers, there are 100"):
        detector.fit(rows(500))
    with pytest.raises(ValueError, match="give a target_fpr with it"):
        NegVAEDetector(target_fpr=None, confidence=0.95).fit(rows(500))
    with pytest.raises(ValueError, match="confidence is 2"):
        NegVAEDetector(confidence=2).fit(rows(500))


def test_discoveries_are_bounded_at_every_cut(detector):
    X = np.r_[rows(100, 1), rows(60, 2, shift=8)]
    bounds = detector.false_discovery_bounds(X)
    scores = detector.ood_score(X)
    np.testing.assert_array_equal(bounds, false_discovery_bounds(detector.calibration_.scores["kl"], scores))
    order = np.argsort(-scores)
    assert bounds[order[50]] < 0.3
    assert (np.cumsum(order < 100) / np.arange(1, 161) <= bounds[order] + 1e-9).all()


def test_held_out_inliers_may_be_given():
    X, held_out = rows(300), rows(150, 1)
    detector = NegVAEDetector(target_fpr=0.1, **QUICK).fit(X, calibration=held_out)
    assert detector.calibration_.size == 150
    np.testing.assert_array_equal(np.sort(detector.ood_score(held_out)), detector.calibration_.scores["kl"])
    with pytest.raises(ValueError, match="N x 4"):
        NegVAEDetector(**QUICK).fit(X, calibration=held_out[:, :3])


def test_recalibration_moves_the_threshold_and_trains_nothing(detector):
    weights = {name: tensor.clone() for name, tensor in detector.model_.state_dict().items()}
    moved = rows(300, 3, shift=2)
    assert (detector.predict(rows(300, 4, shift=2)) == -1).mean() > 0.3
    assert detector.recalibrate(moved) is detector
    calibration = detector.calibration_
    assert calibration.size == 300
    assert calibration.confidence == 0.9
    np.testing.assert_array_equal(calibration.scores["kl"], np.sort(detector.ood_score(moved)))
    assert detector.offset_ == -calibration.threshold
    assert (detector.predict(rows(300, 4, shift=2)) == -1).mean() < 0.05
    assert all((weights[name] == tensor).all() for name, tensor in detector.model_.state_dict().items())
    detector.recalibrate(moved, target_fpr=0.2)
    assert detector.calibration_.threshold == fpr_threshold(calibration.scores["kl"], 0.2)
    with pytest.raises(ValueError, match="at least 114 held-out inliers, there are 50"):
        detector.recalibrate(moved[:50], target_fpr=0.02, confidence=0.9)
    assert detector.calibration_.size == 300  # what is refused changes nothing


def test_groups_have_thresholds_of_their_own(grouped, tmp_path):
    calibration = grouped.calibration_
    counts = {name: each.held_out for name, each in calibration.group_bounds().items()}
    assert sum(counts.values()) == calibration.size == 400
    X = rows(400, 5)
    common, rare = grouped.p_values(X, ["common"] * 400), grouped.p_values(X, ["rare"] * 400)
    assert (common <= 0.05).mean() == pytest.approx(0.05, abs=0.05)
    assert (common <= rare).mean() > 0.9  # the wide group finds the same rows less odd
    np.testing.assert_array_equal(grouped.p_values(X), np.maximum(common, rare))
    np.testing.assert_array_equal(grouped.predict(X) == -1, grouped.p_values(X) <= 0.05)
    np.testing.assert_array_equal(grouped.predict(X, ["common"] * 400) == -1, common <= 0.05)
    np.testing.assert_array_equal(grouped.predict(X) == -1, grouped.decision_function(X) < 0)
    grouped.save(tmp_path / "kept")
    again = NegVAEDetector.load(tmp_path / "kept")
    np.testing.assert_array_equal(again.p_values(X, ["rare"] * 400), rare)
    assert again.calibration_.thresholds == calibration.thresholds
    card = (tmp_path / "kept" / "MODEL_CARD.md").read_text()
    assert f"- Group common: threshold {calibration.thresholds['common']:.6g}, {counts['common']} held-out" in card
    with pytest.raises(ValueError, match="no held-out inliers of group other"):
        grouped.predict(X, ["other"] * 400)


def test_groups_too_small_are_named(detector):
    X = rows(200, 6)
    with pytest.warns(UserWarning, match=r"1 of 2 groups \(tiny\)"):
        detector.recalibrate(X, target_fpr=0.05, groups=["big"] * 190 + ["tiny"] * 10)
    assert detector.calibration_.small == ("tiny",)
    with pytest.raises(ValueError, match="3 groups for 200 rows"):
        detector.recalibrate(X, groups=["a"] * 3)
    with pytest.raises(ValueError, match="3 groups for 200 rows"):
        NegVAEDetector(**QUICK).fit(X, groups=["a"] * 3)


def test_drift_names_what_has_moved(detector):
    quiet = detector.drift(rows(200, 7))
    assert isinstance(quiet, Drift)
    assert not any(each.moved for each in quiet.moved)
    X = rows(200, 7)
    X[:, 3] += 1.5
    X[17] += 30
    found = detector.drift(X)
    moved = [each.name for each in found.moved if each.moved]
    assert "column x3" in moved
    assert not {"column x0", "column x1", "column x2"} & set(moved)
    assert found.furthest[0] == 17
    assert len(found.furthest) == 10


def test_a_monitor_keeps_its_state_in_a_file(detector, tmp_path):
    batches = [rows(60, 8), rows(60, 9), rows(60, 10, shift=3)]
    whole = detector.monitor()
    expected = [whole.update(batch) for batch in batches]
    found = [detector.monitor(tmp_path / "state.json").update(batch) for batch in batches]
    for one, other in zip(expected, found, strict=True):
        np.testing.assert_array_equal(one.wealth, other.wealth)
        np.testing.assert_array_equal(one.p_values, other.p_values)
        assert one.changes == other.changes
    assert not found[1].changes
    assert found[2].changes
    with pytest.raises(ValueError, match=r"alarm_rate 0.01, not 0.05"):
        detector.monitor(tmp_path / "state.json", alarm_rate=0.05)
    detector.recalibrate(rows(300, 11))
    with pytest.raises(ValueError, match="another detector or calibration"):
        detector.monitor(tmp_path / "state.json")
    (tmp_path / "state.json").write_text("{}")
    with pytest.raises(ValueError, match="not the state of a stream"):
        detector.monitor(tmp_path / "state.json")


def test_weights_for_a_new_place(detector):
    old, new = rows(1_500, 12), rows(200, 13, shift=0.5)
    place = detector.shifted(new, old)
    assert place.overlap.held_out == 1_500
    fresh = rows(1_000, 14, shift=0.5)
    plain, weighted = (detector.p_values(fresh) <= 0.1).mean(), (place.p_values(fresh) <= 0.1).mean()
    assert weighted < plain
    with pytest.warns(UserWarning, match="cannot hold"):
        detector.shifted(rows(100, 15, shift=40), old)
    with pytest.raises(ValueError, match="of these 800 are inliers that the model was trained on"):
        detector.shifted(new, rows(800))


@pytest.fixture(scope="module")
def crossed():
    detector = CrossConformalDetector(NegVAEDetector(**QUICK), folds=3, target_fpr=0.1)
    return detector.fit(rows(60))


def test_k_models_rank_all_inliers(crossed, tmp_path):
    assert sum(each.calibration_.size for each in crossed.detectors_) == 60
    X = np.r_[rows(100, 1), rows(40, 2, shift=8)]
    p = crossed.p_values(X)
    counts = [(each.calibration_.scores["kl"][:, None] >= each.ood_score(X)).sum(0) for each in crossed.detectors_]
    np.testing.assert_allclose(p, (1 + np.sum(counts, axis=0)) / 61)
    np.testing.assert_array_equal(crossed.predict(X) == -1, p <= 0.1)
    np.testing.assert_array_equal(crossed.decision_function(X) <= 0, p <= 0.1)
    assert (crossed.predict(X)[100:] == -1).mean() > 0.8
    assert 0.2 < crossed.false_alarm_bound < 0.3
    crossed.save(tmp_path / "kept")
    again = CrossConformalDetector.load(tmp_path / "kept", target_fpr=0.1)
    np.testing.assert_array_equal(again.p_values(X), p)
    assert again.false_alarm_bound == crossed.false_alarm_bound
    valid = CrossConformalDetector.load(tmp_path / "kept", target_fpr=0.1, twice_mean=True)
    assert (valid.p_values(X) >= p).all()
    assert valid.false_alarm_bound == 0.1
    with pytest.raises(ValueError, match=r"of 60 inliers in 3 folds is 0\.0952, above target_fpr 0\.05"):
        CrossConformalDetector.load(tmp_path / "kept", twice_mean=True)
    with pytest.raises(ValueError, match="not empty"):
        crossed.save(tmp_path / "kept")
    with pytest.raises(FileNotFoundError, match="fold-000"):
        CrossConformalDetector.load(tmp_path)


def test_what_k_models_cannot_promise_is_refused():
    for parameters, words in (
        ({"folds": 1}, "folds is 1"),
        ({"target_fpr": 0.01}, "smallest p-value of 60 inliers in 5 folds is 0.0164"),
        ({"twice_mean": True}, "is 0.154, above"),
        ({"target_fpr": 0}, "target_fpr is 0"),
    ):
        with pytest.raises(ValueError, match=words):
            CrossConformalDetector(**parameters).fit(rows(60))


def test_artifacts_without_a_confidence_load_as_before(fitted, tmp_path):
    """A calibration that version 0.1 wrote has neither confidence nor groups nor columns."""
    from safetensors.torch import save_file

    fitted.save(tmp_path / "kept")
    path = tmp_path / "kept" / "calibration.safetensors"
    with safe_open(path, "pt") as file:
        header = dict(file.metadata())
        tensors = {key: file.get_tensor(key) for key in file.keys() if not key.startswith("columns")}  # noqa: SIM118
    rule = json.loads(header["rule"])
    del rule["confidence"], header[CHECKSUM]
    save_file(tensors, path, {**header, "rule": json.dumps(rule)})
    calibration = load_artifact(tmp_path / "kept").calibration
    assert calibration.confidence is None
    assert calibration.columns is None
    assert isinstance(tensors["held_out.kl"], torch.Tensor)


def test_a_threshold_by_contamination_has_no_certificate(tmp_path):
    detector = NegVAEDetector(contamination=0.1, **QUICK).fit(rows(200))
    with pytest.raises(ValueError, match="no rate is certified"):
        detector.fpr_bounds()
    detector.save(tmp_path / "kept")
    assert "No rate of false alarms is certified" in (tmp_path / "kept" / "MODEL_CARD.md").read_text()
    assert "false_alarm_bound" not in read_section(tmp_path / "kept", "calibration")
    with pytest.raises(ValueError, match="give a target_fpr"):
        detector.recalibrate(rows(100, 1))
    assert detector.recalibrate(rows(100, 1), target_fpr=0.1).fpr_bounds().high < 0.2


def curve(count, seed):
    """Four columns that lie on a closed curve: neighbors on it share their neighbors."""
    angle = np.random.default_rng(seed).uniform(0, 2 * np.pi, count)
    return np.column_stack([np.cos(angle), np.sin(angle), np.cos(2 * angle), np.sin(2 * angle)])


def test_held_out_rows_that_are_reference_rows_certify_nothing(tmp_path):
    options = {"negatives": "none", "epochs": 1, "latent_size": 2, "batch_size": 128}
    detector = NegVAEDetector(target_fpr=0.1, **options).fit(curve(300, 0))
    why = "no rate is certified: the held-out rows are reference rows too"
    for promise in (detector.fpr_bounds, lambda: detector.false_discovery_bounds(curve(20, 1))):
        with pytest.raises(ValueError, match=why):
            promise()
    with pytest.raises(ValueError, match=why):
        detector.calibration_.decide_by(target_fpr=0.2, confidence=0.9)
    assert "neighbors" not in [each.name for each in detector.drift(curve(50, 2)).moved]
    detector.save(tmp_path / "kept")
    assert (
        f"- {why[0].upper()}{why[1:]}".replace("rate is", "rate of false alarms is")
        in (tmp_path / "kept" / "MODEL_CARD.md").read_text()
    )
    assert "false_alarm_bound" not in read_section(tmp_path / "kept", "calibration")
    again = NegVAEDetector.load(tmp_path / "kept")
    assert again.calibration_.certificate() == {}
    again.recalibrate(curve(300, 3), target_fpr=0.1, confidence=0.9)  # none of which are reference rows
    assert again.fpr_bounds(0.9).high <= 0.1
    again.save(tmp_path / "again")
    assert load_artifact(tmp_path / "again").calibrated().certificate()["held_out"] == 300
    sure = NegVAEDetector(target_fpr=0.1, confidence=0.9, **options).fit(curve(300, 0))
    kept = sure.calibration_
    assert len(kept.reference.neighbors.whitened) == 300 - kept.size
    assert sure.fpr_bounds(0.9).high <= 0.1
    assert (sure.false_discovery_bounds(curve(20, 1)) <= 1).all()
    assert "neighbors" in [each.name for each in sure.drift(curve(50, 2)).moved]
