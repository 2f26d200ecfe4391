"""The detector: scikit-learn's contract, every form of data, promised rates, and keeping it."""

import copy
import dataclasses
import pickle
import warnings

import numpy as np
import pytest
import torch
from scipy.stats import betabinom
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import GridSearchCV, StratifiedKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks
from torch.utils.data import DataLoader, TensorDataset

import negvae
from negvae import NegVAEDetector
from negvae.data import ImageSet, load
from negvae.runs.train import run
from negvae.scoring import SCORES
from tests.conftest import blobs, small_run

QUICK = {"preset": "gray", "optimizer": "adam", "learning_rate": 1e-3, "epochs": 2, "precision": "float32"}


# So few rows as scikit-learn's checks often give cannot promise any rate, and the detector says so.
@pytest.mark.filterwarnings("ignore:target_fpr:UserWarning", "ignore::sklearn.exceptions.SkipTestWarning")
@parametrize_with_checks([NegVAEDetector(epochs=1)])
def test_scikit_learns_own_checks(estimator, check):
    check(estimator)


def rows(count, seed=0):
    """Points near a circle in the first two of four features; the third follows them, the fourth is constant."""
    randomness = np.random.default_rng(seed)
    angle = randomness.uniform(0, 2 * np.pi, count)
    x, y = np.cos(angle), np.sin(angle)
    noise = randomness.normal(0, 0.05, (count, 3))
    return np.column_stack(
        [1e6 + 5 * (x + noise[:, 0]), y + noise[:, 1], 100 * (x * y + noise[:, 2]), np.full(count, 7)]
    )


@pytest.fixture(scope="module")
def on_rows():
    return NegVAEDetector(target_fpr=0.1).fit(rows(600))


@pytest.fixture(scope="module")
def on_images():
    return NegVAEDetector(target_fpr=0.1, **QUICK).fit(blobs(160, (1, 28, 28)).numpy())


def test_rows_off_the_manifold_are_found(on_rows):
    fresh = rows(500, 1)
    shuffled = np.column_stack([np.random.default_rng(i).permutation(column) for i, column in enumerate(fresh.T)])
    center = fresh.mean(0) + np.random.default_rng(0).normal(size=(200, 4)) * [0.1, 0.02, 1, 0]
    other_constant = fresh + np.array([0, 0, 0, 3])
    for strange in (shuffled, center, other_constant):
        labels = np.r_[np.zeros(len(fresh)), np.ones(len(strange))]
        assert roc_auc_score(labels, on_rows.ood_score(np.r_[fresh, strange])) > 0.8
    assert (on_rows.predict(other_constant) == -1).mean() > 0.95


def test_the_contract_holds_together(on_rows):
    X = np.r_[rows(100, 2), rows(30, 3) + 2]
    score, decision = on_rows.score_samples(X), on_rows.decision_function(X)
    np.testing.assert_array_equal(score, -on_rows.ood_score(X))
    np.testing.assert_allclose(decision, score - on_rows.offset_)
    np.testing.assert_array_equal(on_rows.predict(X), np.where(decision < 0, -1, 1))
    np.testing.assert_array_equal(on_rows.predict(X) == -1, on_rows.p_values(X) <= 0.1)
    assert (on_rows.predict_fdr(X, 0.3)[100:] == -1).mean() > 0.9
    assert (on_rows.predict_fdr(X[:100], 0.01) == 1).all()
    of_images = {"input_complexity", "defects", "latent_neighbors", "transformations_kl", "transformations_distance"}
    for name in set(SCORES) - of_images - {"waic"}:
        assert np.isfinite(on_rows.ood_score(X, name)).all()
    assert on_rows.n_features_in_ == 4
    with pytest.raises(ValueError, match="no pixels"):
        on_rows.ood_score(X, "input_complexity")


def test_fresh_inliers_alarm_at_the_asked_rate_over_many_fits():
    """Each fit has its own model and its own held-out rows; alarms among fresh rows are then beta-binomial."""
    fits, fresh, held_out, rate = 20, 200, 40, 0.1
    alarms = 0
    for seed in range(fits):
        detector = NegVAEDetector(target_fpr=rate, epochs=1, random_state=seed).fit(rows(200, 100 + seed))
        assert detector.calibration_.size == held_out
        alarms += int((detector.predict(rows(fresh, 1000 + seed)) == -1).sum())
    rank = int(rate * (held_out + 1))
    mean, variance = betabinom.stats(fresh, rank, held_out + 1 - rank)
    assert abs(alarms - fits * mean) < 4 * np.sqrt(fits * variance)
    assert mean / fresh <= rate


def test_fresh_inliers_alarm_at_the_asked_rate_over_many_splits(on_rows):
    """One model, many ways to divide the same inliers into held-out and fresh ones."""
    scores = on_rows.ood_score(rows(6000, 5))
    calibration = on_rows.calibration_
    randomness = np.random.default_rng(0)
    for rate in (0.01, 0.05, 0.2):
        counts = []
        for _ in range(60):
            order = randomness.permutation(scores)
            held_out, fresh = np.sort(order[:100].astype(float)), order[100:200]
            split = dataclasses.replace(calibration, scores={calibration.score: held_out}).decide_by(target_fpr=rate)
            counts.append(split.is_outlier(fresh).sum())
        rank = int(rate * 101 + 1e-9)
        mean, variance = betabinom.stats(100, rank, 101 - rank)
        assert abs(np.mean(counts) - mean) < 4 * np.sqrt(variance / 60)


def test_contamination_and_no_rate_at_all():
    X = rows(300)
    X[:30] += 3
    dirty = NegVAEDetector(contamination=0.1, epochs=3).fit(X)
    assert (dirty.predict(X) == -1).sum() == 30
    clean = NegVAEDetector(target_fpr=None, epochs=3).fit(X[30:])
    assert (clean.predict(X[30:]) == 1).all()
    assert clean.calibration_.false_alarm_rate == pytest.approx(1 / 55)
    with pytest.warns(UserWarning, match="needs 19 held-out inliers, there are 6"):
        few = NegVAEDetector(epochs=1).fit(X[30:60])
    assert (few.predict(X[30:60]) == 1).all()


def test_images_in_every_form(on_images, tmp_path):
    images = blobs(12, (1, 28, 28), 1)
    expected = on_images.ood_score(images)
    array = images.numpy()
    np.save(tmp_path / "x.npy", array)
    np.savez(tmp_path / "x.npz", x_test=array, x_train=array)
    forms = [
        array,
        array[:, 0],
        array.transpose(0, 2, 3, 1),
        array / 255,
        torch.from_numpy(array),
        images.float() / 255,
        str(tmp_path / "x.npy"),
        tmp_path / "x.npz",
        TensorDataset(images, torch.zeros(12)),
        DataLoader(TensorDataset(images, torch.zeros(12)), batch_size=5),
        load(str(tmp_path / "x.npy")),
        array[:, 0].tolist() and list(array[:, 0]),
    ]
    for form in forms:
        np.testing.assert_allclose(on_images.ood_score(form), expected, rtol=1e-5)
    assert isinstance(forms[-2], ImageSet)
    inverted = on_images.predict(255 - array)
    assert (inverted == -1).all()


def test_what_fits_is_what_is_asked_for(on_images):
    assert on_images.model_.shape == (1, 28, 28)
    assert on_images.config_.network == "gray"
    assert on_images.calibration_.size == 32
    assert on_images.transform(blobs(3, (1, 28, 28))).shape == (3, 10)
    assert on_images.get_feature_names_out().tolist()[:2] == ["negvaedetector0", "negvaedetector1"]
    shown = on_images.reconstruct(blobs(3, (1, 28, 28)))
    assert (shown.shape, shown.dtype) == ((3, 1, 28, 28), np.uint8)
    assert on_images.sample(2).shape == (2, 1, 28, 28)
    np.testing.assert_array_equal(on_images.sample(2, random_state=3), on_images.sample(2, random_state=3))
    assert (on_images.sample(2, random_state=3) != on_images.sample(2, random_state=4)).any()
    for count in (0, 1.5, True, "2"):
        with pytest.raises(ValueError, match=f"^n_samples is {count!r}: it must be a whole number of at least 1$"):
            on_images.sample(count)


def test_rows_come_back_in_their_own_units():
    X = rows(400)
    detector = NegVAEDetector("none", latent_size=2).fit(X)
    back = detector.reconstruct(X)
    assert back.shape == X.shape
    spread = X.std(0)[:3]
    assert (np.abs(back - X).mean(0)[:3] < 0.4 * spread).all()
    np.testing.assert_allclose(back[:, 3], 7, atol=0.3)
    samples = detector.sample(300)
    assert (np.abs(samples.mean(0) - X.mean(0))[:3] < 0.5 * spread).all()
    assert (samples.std(0)[:3] > 0.3 * spread).all()


def test_small_data_gets_steps_enough():
    def plan(count, features, **parameters):
        shape = (count, 4, 1, 1) if features else (count, 1, 28, 28)
        return NegVAEDetector(**parameters)._config("x", shape, 0, "none")

    tiny, large = plan(30, True), plan(100_000, True)
    assert (tiny.batch_size, large.batch_size) == (16, 128)
    assert tiny.epochs * (24 // 16) >= 500
    assert large.epochs == 2  # of 390 steps
    assert (tiny.network, large.network) == ("linear", "mlp")
    images = plan(5000, False)
    assert images.epochs * (4000 // images.batch_size) >= 1000
    assert (plan(30, True, epochs=7).epochs, plan(3000, True, batch_size=5).batch_size) == (7, 5)
    assert plan(100, False).likelihood == "bernoulli"
    assert plan(100, True).likelihood == "gaussian"


def test_negatives_may_be_data(tmp_path):
    inliers, others = blobs(60, (1, 28, 28)), 255 - blobs(40, (1, 28, 28), 1)
    detector = NegVAEDetector(**{**QUICK, "epochs": 6}).fit
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        fitted = detector(inliers, negatives=others)
        assert fitted.config_.negatives == "auxiliary:given to fit"
        assert fitted.ood_score(others[:5], "kl").min() > fitted.ood_score(inliers[:5], "kl").max()
        with pytest.raises(ValueError, match="overlap the inliers"):
            detector(inliers, negatives=inliers[:3])
        with pytest.raises(ValueError, match="1x20x20"):
            detector(inliers, negatives=blobs(9, (1, 20, 20)))
        flat = NegVAEDetector(epochs=2).fit(rows(100), negatives=rows(50, 1) + 5)
        assert flat.calibration_.size == 20
        np.save(tmp_path / "far.npy", rows(50, 1) + 5)
        path = str(tmp_path / "far.npy")
        from_file = NegVAEDetector(path, epochs=2).fit(rows(100))
        np.testing.assert_array_equal(from_file.ood_score(rows(9, 1)), flat.ood_score(rows(9, 1)))
        assert NegVAEDetector(epochs=2).fit(rows(100), negatives="augmented:box").config_.negatives == "augmented:box"
        with pytest.raises(ValueError, match="N x 4"):
            NegVAEDetector(epochs=2).fit(rows(100), negatives=np.zeros((9, 3)))
        for text in ("generated", "uniform-noise", "added-noise:0.5", "0.5*augmented:box+0.5*generated", "none"):
            assert np.isfinite(NegVAEDetector(text, epochs=2).fit(rows(100)).ood_score(rows(5, 1))).all()
        with pytest.raises(ValueError, match="does not apply to rows"):
            NegVAEDetector("augmented:jigsaw", epochs=2).fit(rows(100))


@pytest.mark.parametrize("kind", ["rows", "images"])
def test_kept_and_brought_back(kind, on_rows, on_images, tmp_path):
    detector, X = (on_rows, rows(20, 7)) if kind == "rows" else (on_images, blobs(20, (1, 28, 28), 7))
    expected = detector.decision_function(X)
    detector.save(tmp_path / "kept")
    names = {path.name for path in (tmp_path / "kept").iterdir()}
    assert names == {
        "config.yaml", "inliers.json", "trained.safetensors", "weights.safetensors", "calibration.safetensors",
        "metrics.jsonl", "MODEL_CARD.md",
    }  # fmt: skip
    pickled = pickle.dumps(detector)
    assert b"torch" not in pickled.replace(b"torch: ", b"").replace(b"torch\xe2", b"")[:200]
    for again in (NegVAEDetector.load(tmp_path / "kept"), pickle.loads(pickled), copy.deepcopy(detector)):
        np.testing.assert_array_equal(again.decision_function(X), expected)
        np.testing.assert_array_equal(again.p_values(X), detector.p_values(X))
        assert again.get_params() == detector.get_params()
        again.save(tmp_path / f"again{id(again)}")
    with pytest.raises(ValueError, match="not empty"):
        detector.save(tmp_path / "kept")


def test_a_trained_run_is_a_detector_too(blob_files, tmp_path):
    config = dataclasses.replace(small_run("gray", initialization="he", calibration=0.3), data=str(blob_files["in"]))
    run(config, tmp_path / "run")
    detector = NegVAEDetector.load(tmp_path / "run")
    assert detector.get_params()["latent_size"] == 10
    assert detector.predict(blobs(5, (1, 28, 28), 9)).shape == (5,)
    (tmp_path / "run" / "calibration.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match="negvae calibrate"):
        NegVAEDetector.load(tmp_path / "run")
    with pytest.raises(FileNotFoundError, match="not a negvae run"):
        NegVAEDetector.load(tmp_path)


def test_works_with_pipelines_and_searches():
    X = np.r_[rows(120), rows(20, 1) + 3]
    y = np.r_[np.ones(120), -np.ones(20)]
    pipeline = make_pipeline(StandardScaler(), NegVAEDetector(epochs=3, target_fpr=None)).fit(X)
    assert pipeline.predict(X).shape == (140,)
    chosen = clone(NegVAEDetector(epochs=3, decision_score="kl", target_fpr=None))
    assert chosen.get_params()["decision_score"] == "kl"
    search = GridSearchCV(
        chosen, {"decision_score": ["kl", "bpd"], "latent_size": [2]}, scoring="roc_auc", cv=StratifiedKFold(2)
    ).fit(X, y)
    assert search.best_params_["decision_score"] in ("kl", "bpd")
    assert not hasattr(chosen, "score")  # scikit-learn would call it


def test_the_same_seed_gives_the_same_detector():
    X, fresh = rows(80), rows(9, 1)
    fits = [NegVAEDetector(epochs=2, target_fpr=None, random_state=s).fit(X).ood_score(fresh) for s in (1, 1, 2)]
    np.testing.assert_array_equal(fits[0], fits[1])
    assert (fits[0] != fits[2]).any()
    drawn = NegVAEDetector(epochs=1, target_fpr=None, random_state=np.random.RandomState(0)).fit(X)
    assert pickle.loads(pickle.dumps(drawn)).seed_ == drawn.seed_ > 0


def test_a_batch_drifts(on_rows):
    fresh = rows(400, 8)
    assert not on_rows.drift(fresh).alarm
    moved = on_rows.drift(fresh + np.array([2, 0.4, 0, 0]))
    assert moved.alarm
    assert moved.typicality > moved.threshold > on_rows.drift(fresh).threshold * 0.99
    assert on_rows.drift(fresh[:1]).threshold > on_rows.drift(fresh).threshold


@pytest.mark.parametrize(
    ("parameters", "X", "words"),
    [
        ({"decision_score": "klm"}, rows(30), "did you mean kl"),
        ({"decision_score": "waic"}, rows(30), "ensemble"),
        ({"contamination": 0.7}, rows(30), "contamination"),
        ({"contamination": "auto"}, rows(30), "contamination"),
        ({"target_fpr": 1.5}, rows(30), "target_fpr"),
        ({"calibration_fraction": 0}, rows(30), "calibration_fraction"),
        ({"negatives": "augmentd"}, rows(30), "did you mean augmented|augmentd"),
        ({"preset": "grey"}, rows(30), "did you mean gray"),
        ({"epochs": 0}, rows(30), "epochs"),
        ({}, np.full((30, 2), np.nan), "NaN"),
        ({}, np.zeros((9, 28, 28), np.int64), "int64"),
        ({}, np.full((9, 28, 28), 3.0), r"within \[0, 1\]"),
        ({}, np.zeros((2, 28, 28), np.uint8), "2 sample"),
        ({}, np.zeros((5, 8, 8), np.uint8), "16x16"),
        ({"network": "mlp"}, np.zeros((9, 28, 28), np.uint8), "mlp"),
        ({}, "no-such-set", "no-such-set"),
    ],
)
def test_bad_input_says_what_would_be_right(parameters, X, words):
    with pytest.raises((ValueError, FileNotFoundError), match=words):
        NegVAEDetector(**{"target_fpr": None, **parameters}).fit(X)


def test_data_of_another_kind_is_refused_afterwards(on_rows, on_images):
    with pytest.raises(ValueError, match="images of 1x28x28"):
        on_images.predict(rows(3))
    with pytest.raises(ValueError, match="takes 1x28x28"):
        on_images.predict(blobs(3, (1, 20, 20)))
    with pytest.raises(ValueError, match="takes 4x1x1"):
        on_rows.predict(blobs(3, (1, 20, 20)))
    with pytest.raises(NotFittedError):
        NegVAEDetector().p_values(rows(3))
    assert "NegVAEDetector" in dir(negvae)
