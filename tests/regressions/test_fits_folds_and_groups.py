"""What a fit is told, counts and keeps: inliers beside X, folds, groups, scores that cannot be had, and copies."""

import copy
import pickle
import re
import warnings

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from sklearn.base import clone

from negvae import CrossConformalDetector, NegVAEClassifier, NegVAEDetector, ScoreDetector
from negvae.config import RunConfig
from negvae.detector import fitting, inputs
from negvae.runs.division import held_out_rows
from negvae.training.patches import build_patch_encoder
from tests.conftest import blobs

FEW_STEPS = "ignore:.*training steps? (is|are) few"
pytestmark = pytest.mark.filterwarnings(FEW_STEPS)


def rows(count, seed=0, columns=3):
    return np.random.default_rng(seed).normal(size=(count, columns))


@pytest.fixture
def untrained(monkeypatch):
    """Fail where anything is trained."""

    def refused(*_arguments, **_options):
        pytest.fail("trained before it was refused")

    monkeypatch.setattr(fitting, "train", refused)


# --- inliers beside X -----


def test_all_of_x_counts_as_training_data_where_other_inliers_are_held_out():
    beside = NegVAEDetector().fit(rows(90, columns=8), calibration=rows(40, 1, columns=8)).config_
    halved = NegVAEDetector(calibration_fraction=0.9)
    assert halved.fit(rows(90, columns=8), calibration=rows(40, 1, columns=8)).config_ == beside
    assert beside.calibration == 0
    assert beside.network == "mlp"  # more than ten training rows for each column
    assert beside.epochs * (90 // beside.batch_size) == 500  # whole batches


@pytest.mark.parametrize(("count", "chosen"), [(299, "none"), (300, "turns"), (10_000, "turns"), (10_001, "none")])
def test_quarter_turns_depend_on_all_of_x_where_other_inliers_are_held_out(count, chosen):
    config = NegVAEDetector()._config("x", (count, 1, 28, 28), 0, None, whole=True)
    assert config.transformations == chosen


# --- folds -----


def test_repeated_rows_in_two_folds_are_warned_of_and_not_refused():
    repeated = np.random.default_rng(0).integers(0, 4, (120, 4)).astype(float)
    with pytest.warns(UserWarning, match="are copies of ones that are trained on"):
        fitted = CrossConformalDetector(NegVAEDetector(epochs=1), folds=3, target_fpr=0.1).fit(repeated)
    assert fitted.n_inliers_ == 120
    with pytest.raises(ValueError, match="calibration: 2 of these 2 are inliers that the model was trained on"):
        NegVAEDetector(epochs=1, target_fpr=None).fit(repeated, calibration=repeated[:2])


def test_folds_and_classifiers_take_photos_of_several_sizes():
    photos = [Image.fromarray(image[0].numpy()) for image in blobs(24, (1, 28, 28))]
    photos = [photo.resize((40, 32)) if place % 2 else photo for place, photo in enumerate(photos)]
    base = NegVAEDetector(epochs=1, transformations="none")
    folds = CrossConformalDetector(base, folds=2, target_fpr=0.1).fit(photos)
    assert folds.p_values(photos[:3]).shape == (3,)
    labels = [0] * 20 + [1] * 4
    classifier = NegVAEClassifier(base.set_params(target_fpr=None)).fit(photos, labels)
    assert classifier.predict(photos[:3]).shape == (3,)


def test_photos_are_decoded_alike_in_every_fold():
    photos = [Image.fromarray(image[0].numpy()) for image in blobs(24, (1, 28, 28))]
    photos[3] = photos[3].resize((40, 32))
    photos[5] = photos[5].convert("RGB")
    base = NegVAEDetector(epochs=1, transformations="none")
    folds = CrossConformalDetector(base, folds=2, target_fpr=0.1).fit(photos)
    assert len({each.n_features_in_ for each in folds.detectors_}) == 1
    fitted = clone(base).set_params(target_fpr=None, trim=0.1).fit(photos)
    assert fitted.left_out_.sum() == 2


def test_damaged_pixels_of_one_file_end_neither_folds_nor_classifiers(tmp_path):
    for place, image in enumerate(blobs(24, (1, 28, 28))):
        Image.fromarray(image[0].numpy()).save(tmp_path / f"{place:02}.png")
    whole = (tmp_path / "07.png").read_bytes()
    (tmp_path / "07.png").write_bytes(whole[: len(whole) // 2])
    base = NegVAEDetector(epochs=1, transformations="none", target_fpr=None)
    with pytest.warns(UserWarning, match="1 broken file is left out"):
        folds = CrossConformalDetector(base, folds=2, target_fpr=0.1).fit(tmp_path)
    assert folds.n_inliers_ == 23
    with pytest.warns(UserWarning, match="1 broken file is left out"):
        classifier = NegVAEClassifier(base).fit(tmp_path, [0] * 20 + [1] * 4)
    assert classifier.detector_.calibration_.size == 4  # a fifth of 19


def test_a_classifier_takes_outliers_of_another_size_than_the_inliers():
    photos = [Image.fromarray(image[0].numpy()) for image in blobs(20, (1, 28, 28))]
    photos[16:] = [photo.resize((40, 32)) for photo in photos[16:]]
    base = NegVAEDetector(epochs=1, transformations="none", target_fpr=None)
    classifier = NegVAEClassifier(base).fit(photos, [0] * 16 + [1] * 4)
    assert classifier.predict(photos).shape == (20,)


def test_the_division_into_folds_follows_the_seed(monkeypatch):
    seeds = []

    def noted(make, data, seed, **_options):
        seeds.append(seed)
        raise RuntimeError("enough")

    monkeypatch.setattr(fitting, "cross_fit", noted)
    for seed in (0, 7):
        with pytest.raises(RuntimeError, match="enough"):
            NegVAEDetector(trim=0.1, random_state=seed).fit(rows(60))
    assert seeds == [0, 7]


# --- scores that a model cannot have -----


@pytest.mark.usefixtures("untrained")
@pytest.mark.parametrize("trim", [0.0, 0.1])
@pytest.mark.parametrize(
    ("score", "data", "message"),
    [
        ("defects", blobs(30, (1, 28, 28)).numpy(), "needs heat maps"),
        ("neighbors", blobs(30, (1, 28, 28)).numpy(), "is for rows of features"),
        ("transformations_kl", blobs(30, (1, 28, 28)).numpy(), "trained with transformations"),
        ("latent_neighbors", rows(200), "is for images"),
        ("defects", rows(200), "is for images"),
    ],
)
def test_a_score_that_cannot_be_had_is_refused_before_training(score, data, message, trim):
    kept = None if data.ndim == 2 else "none"
    with pytest.raises(ValueError, match=message):
        NegVAEDetector(decision_score=score, target_fpr=None, transformations=kept, trim=trim).fit(data)


def test_data_is_cleaned_with_a_score_that_the_folds_have():
    images = blobs(45, (1, 28, 28)).numpy()
    options = {"epochs": 1, "trim": 0.1, "target_fpr": None}
    fitted = NegVAEDetector(decision_score="transformations_kl", transformations="turns", **options).fit(images)
    assert fitted.left_out_.sum() == 4
    fitted = NegVAEDetector(decision_score="defects", heatmaps=True, transformations="none", **options).fit(images)
    assert fitted.left_out_.sum() == 4


def test_a_sigma_that_the_likelihood_does_not_have_is_refused():
    with pytest.raises(ValueError, match="sigma: likelihood bernoulli has no sigma; these have: gaussian"):
        RunConfig(data="mnist", sigma=0.05)
    assert RunConfig(data="mnist", sigma=0.05, likelihood="gaussian").sigma == 0.05


def test_a_saved_run_with_a_sigma_that_it_never_used_is_read(tmp_path):
    NegVAEDetector(epochs=1, target_fpr=None).fit(blobs(40, (1, 28, 28)).numpy()).save(tmp_path / "run")
    path = tmp_path / "run" / "config.yaml"
    path.write_text(re.sub(r"sigma: 1\.0", "sigma: 0.5", path.read_text(), count=1))
    assert "sigma: 0.5" in path.read_text()
    assert NegVAEDetector.load(tmp_path / "run").config_.sigma == 1


# --- fit_predict and fit_transform -----


def test_labels_of_what_was_fitted_are_by_group():
    X, groups = np.concatenate([rows(150), 3 * rows(150, 1)]), ["a"] * 150 + ["b"] * 150
    detector = NegVAEDetector(epochs=1, target_fpr=0.1)
    labels = detector.fit_predict(X, groups=groups)
    assert labels.tolist() == detector.predict(X, groups=groups).tolist() != detector.predict(X).tolist()
    table = pd.DataFrame(X, columns=["p", "q", "r"]).assign(g=groups)
    assert NegVAEDetector(epochs=1, target_fpr=0.1).fit_predict(table, groups="g").tolist() == labels.tolist()


def test_codes_of_what_was_fitted_are_without_the_column_of_groups():
    table = pd.DataFrame(rows(200), columns=["p", "q", "r"]).assign(g=["a", "b"] * 100)
    detector = NegVAEDetector(epochs=1, target_fpr=0.1)
    codes = detector.fit_transform(table, groups="g")
    np.testing.assert_array_equal(codes, detector.transform(table.drop(columns="g")))


def test_labels_of_a_group_of_which_no_inlier_is_held_out_are_by_the_highest_threshold():
    X, groups = rows(300), ["a"] * 150 + ["b"] * 149 + ["c"]
    place = next(seed for seed in range(10) if 299 not in held_out_rows(300, 0.2, seed))
    detector = NegVAEDetector(epochs=1, target_fpr=0.1, random_state=place, calibration_fraction=0.2)
    with pytest.warns(UserWarning, match=r"no inlier of 1 of 3 groups is held out \(c\)"):
        labels = detector.fit_predict(X, groups=groups)
    assert labels[-1] == detector.predict(X[-1:])[0]


@pytest.mark.usefixtures("untrained")
def test_what_has_two_parts_is_not_fitted_and_judged_at_once(tmp_path, monkeypatch):
    for part, count in (("train", 12), ("test", 3)):
        (tmp_path / part).mkdir()
        for place, image in enumerate(blobs(count, (1, 28, 28))):
            Image.fromarray(image[0].numpy()).save(tmp_path / part / f"{place}.png")
    np.savez(tmp_path / "s.npz", x_train=blobs(4, (1, 28, 28)).numpy(), x_test=blobs(2, (1, 28, 28)).numpy())
    monkeypatch.setattr(inputs, "from_hub", lambda text, log: (tmp_path, ""))
    for data in (tmp_path, str(tmp_path), tmp_path / "s.npz", "mnist", "hf:owner/name"):
        for judge in (NegVAEDetector().fit_predict, NegVAEDetector().fit_transform,
                      CrossConformalDetector().fit_predict):  # fmt: skip
            with pytest.raises(ValueError, match="a part for training and one for testing"):
                judge(data)


# --- scores of other models -----


def test_a_refused_fit_leaves_the_fitted_scores_as_they_were(tmp_path):
    detector = ScoreDetector(abs, target_fpr=0.01).fit(rows(500, columns=2))
    strange = np.array([[30.0, 30.0]])
    before = detector.p_values(strange), detector.predict(strange)
    with pytest.raises(ValueError, match="needs at least 99 held-out inliers"):
        detector.fit(100 * rows(60, columns=2))
    assert (detector.p_values(strange), detector.predict(strange)) == before


def test_groups_that_are_too_small_or_gone_are_named():
    groups = ["a"] * 990 + ["b"] * 10
    with pytest.warns(UserWarning, match=r"too few held-out inliers for the rate in 1 of 2 groups \(b\)"):
        ScoreDetector(lambda batch: abs(batch[:, 0]), target_fpr=0.01).fit(rows(1000), groups=groups)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fits = [
            ScoreDetector(abs, target_fpr=0.1, random_state=seed).fit(rows(200), groups=["a"] * 199 + ["b"])
            for seed in range(12)
        ]
    gone = [fit for fit in fits if "b" not in fit.calibration_.thresholds]
    assert len(gone) == sum("no inlier of 1 of 2 groups is held out (b)" in str(each.message) for each in caught) > 0


# --- streams -----


def test_a_monitor_finds_numbered_columns_in_a_file(tmp_path):
    X = rows(200)
    groups = ["a", "b"] * 100
    detector = NegVAEDetector(epochs=1, target_fpr=0.2).fit(pd.DataFrame(X), groups=groups)
    new = pd.DataFrame(X[:6, [2, 1, 0]], columns=[2, 1, 0]).assign(other=1, g=groups[:6])
    new.to_csv(tmp_path / "new.csv", index=False)
    expected = detector.p_values(tmp_path / "new.csv", groups="g")
    np.testing.assert_array_equal(detector.monitor().update(tmp_path / "new.csv", groups="g").p_values, expected)
    for options, message in (
        ({"window": 10.5}, "window is 10.5: it must be a number of scores"),
        ({"alarm_rate": "0.1"}, "alarm_rate is '0.1': it must lie between 0 and 1"),
    ):
        with pytest.raises(ValueError, match=message):
            detector.monitor(**options)


# --- copies -----


def test_copies_keep_what_a_user_has_set():
    detector = NegVAEDetector(epochs=1, target_fpr=None).fit(rows(60))
    detector.set_output(transform="pandas")
    detector.note = "of May"
    detector._metadata_request = {"fit": {"groups": True}}  # as `set_fit_request` does where routing is enabled
    for made in (copy.deepcopy(detector), pickle.loads(pickle.dumps(detector))):
        assert made.note == "of May"
        assert made._metadata_request == {"fit": {"groups": True}}
        assert isinstance(made.transform(rows(5)), pd.DataFrame)
        np.testing.assert_array_equal(made.ood_score(rows(5)), detector.ood_score(rows(5)))


def test_the_default_type_of_the_host_program_does_not_change_heat_maps():
    expected = build_patch_encoder(1, 1, 0).state_dict()
    torch.set_default_dtype(torch.float64)
    try:
        found = build_patch_encoder(1, 1, 0).state_dict()
    finally:
        torch.set_default_dtype(torch.float32)
    assert all(torch.equal(found[name], value) for name, value in expected.items())
