"""The encoder of transformations is trained after the rest, exactly resumable, and tells copies of inliers apart."""

import dataclasses
import re

import numpy as np
import pytest
import torch
from scipy.spatial.distance import cdist

from negvae import NegVAEDetector
from negvae.fast.int8 import multiplies_integers
from negvae.model import build_vae
from negvae.model.shifted import held_back, trained_on
from negvae.negatives import build_source
from negvae.scoring import Scorer, calibrate
from negvae.scoring import latent_neighbors as nearest
from negvae.scoring import transformations as judging
from negvae.scoring.metrics import auroc
from negvae.scoring.quantization import quantize_model
from negvae.scoring.references import References
from negvae.training import shifted as shift_training
from negvae.training.loop import train
from negvae.training.symmetry import come_mirrored, nearer_than_mirrored
from tests.conftest import blobs, small_run


def corners(count: int, seed: int = 0) -> torch.Tensor:
    """Blobs with a bright corner, by which their turns differ."""
    images = blobs(count, (1, 16, 16), seed)
    images[:, :, :5, :5] = 255
    return images


IMAGES = corners(240)
OF_TRANSFORMATIONS = ("transformations_kl", "transformations_distance")
ADDED = (*OF_TRANSFORMATIONS, "latent_neighbors")


def run(**fields):
    values = {"network": "pyramid", "negatives": "augmented", "transformations": "turns", "batch_size": 32}
    return small_run(**{**values, **fields})


def trained(config, **options):
    return train(config, IMAGES, build_source(config.negatives, None), **options)


@pytest.fixture(scope="module")
def result():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shift_training, "PASSES", 15)
        return trained(run(epochs=1))


@pytest.fixture(scope="module")
def whole():
    """A run of one epoch that nothing has stopped."""
    return trained(run(epochs=1))


@pytest.mark.parametrize("kinds", ["one", "several"])
def test_copies_of_unseen_inliers_are_told_apart(result, monkeypatch, kinds):
    monkeypatch.setattr(judging, "LEAST_AUROC", 0.0)
    if kinds == "several":
        monkeypatch.setattr(judging, "MOST_OF_ONE_KIND", len(IMAGES) - 1)
    lines = []
    calibration = calibrate(Scorer(result.model), IMAGES, corners(60, 1), log=lines.append)
    assert "transformations are part of combined" in lines[0]
    parts = ["dose", "prior_ratio", *ADDED]
    assert calibration.reference.components == parts
    scorer = Scorer(result.model, calibration.reference)
    inliers, turned = corners(40, 2), corners(40, 3).rot90(1, (2, 3))
    for name in (*OF_TRANSFORMATIONS, "combined"):
        kept, strange = scorer(inliers, [name])[name], scorer(turned, [name])[name]
        assert (strange > kept.max()).mean() > 0.9, name
        assert scorer(inliers[5:6], [name])[name] == kept[5]
    scores, ratios = scorer(torch.cat([inliers, turned]), [*parts, "combined"]), []
    for name in parts:
        _, median, high, _ = calibration.reference.scales[name]
        ratios.append((scores[name].astype(float) - median) / (high - median))
    others = ratios[:2] if kinds == "several" else [np.max(ratios[:2], 0)]
    damped = sum(np.sign(ratio) * (np.sqrt(1 + np.abs(ratio)) - 1) for ratio in others)
    wanted = np.max(ratios[2:4], 0) + ratios[4] + damped
    assert scores["combined"] == pytest.approx(wanted, rel=1e-4, abs=1e-4)


def test_what_cannot_be_told_apart_is_left_out(result, monkeypatch):
    monkeypatch.setattr(judging, "LEAST_GAIN", 4.01)
    lines = []
    calibration = calibrate(Scorer(result.model), IMAGES, corners(60, 1), log=lines.append)
    assert lines[0].startswith("transformations are left out of combined: ")
    assert re.search(r"unseen inliers are told apart \(25% by chance\), with a standard error of \d\.\d%$", lines[0])
    assert calibration.reference.components == ["dose", "prior_ratio"]
    assert set(OF_TRANSFORMATIONS) <= set(calibration.scores)


def test_copies_that_are_told_apart_by_luck_are_left_out():
    scales = {"transformations_kl": np.ones(4)}
    lucky = judging.Judgement(30, 0.33, 0.045, 0.25, 0.5, {}, scales)
    assert not lucky.components
    assert "33% of the copies of 30 unseen inliers are told apart (25% by chance), with a standard error of 4.5%" in (
        lucky.describe()
    )
    assert dataclasses.replace(lucky, error=0.03).components


def test_few_unseen_copies_have_the_standard_error_of_their_share(result):
    found = judging.judge(result.model, IMAGES, "float32")
    images, count = result.model.prepare(IMAGES[held_back(IMAGES)]), int(held_back(IMAGES).sum())
    encoder = result.model.shifted
    with torch.inference_mode():
        own = [encoder.divergences(*encoder.posteriors(view)) for view in encoder.views(images)]
    right = (torch.stack(own).mean(0).argmin(2) == torch.arange(4)).double().mean(1).numpy()
    assert found.images == count
    assert found.accuracy == pytest.approx(right.mean())
    assert found.error == pytest.approx(right.std() / count**0.5)


@pytest.mark.skipif(not multiplies_integers(), reason="no exact 8-bit convolution here")
def test_codes_are_compared_in_int8_where_scores_use_it(result):
    networks = quantize_model(result.model, IMAGES)
    rounded, exact = (judging.judge(result.model, IMAGES, "float32", each).fitted for each in (networks, None))
    scorer = Scorer(result.model, References({}, rounded), quantized=networks)
    nearest_of_own = scorer(IMAGES[trained_on(IMAGES)], ["latent_neighbors"])["latent_neighbors"]
    assert not np.array_equal(rounded["latent_neighbors"], exact["latent_neighbors"])
    codes = torch.from_numpy(rounded["latent_neighbors"])
    size = codes.shape[1]
    assert nearest_of_own == pytest.approx(
        nearest.to_nearest(codes[size:] @ torch.linalg.inv(codes[:size]), codes).numpy(), rel=1e-4, abs=1e-4
    )


def test_latent_neighbors_count_where_they_tell_copies_from_images(result, monkeypatch):
    def mean_neighbors(images):
        return scorer(images, ["latent_neighbors"])["latent_neighbors"]

    found = judging.judge(result.model, IMAGES, "float32")
    scorer = Scorer(result.model, References({}, found.fitted))
    unseen = IMAGES[held_back(IMAGES)]
    turned = np.concatenate([mean_neighbors(unseen.rot90(quarter, (2, 3))) for quarter in (1, 2, 3)])
    assert found.auroc == pytest.approx(auroc(mean_neighbors(unseen), turned)[0], abs=0.01)
    for least, counts in ((found.auroc, True), (found.auroc + 0.001, False)):
        monkeypatch.setattr(judging, "LEAST_AUROC", least)
        lines = []
        calibration = calibrate(Scorer(result.model), IMAGES, corners(60, 1), log=lines.append)
        assert ("latent_neighbors" in calibration.reference.components) == counts
        assert f"latent_neighbors {'is too' if counts else 'is not'}: it finds copies" in lines[0]


def test_latent_neighbors_are_the_nearest_codes_of_training_images():
    model = trained(run(epochs=1, transformations="none")).model
    assert "latent_neighbors" not in calibrate(Scorer(model), IMAGES, corners(60, 1)).reference.fitted  # not asked for
    calibration = calibrate(Scorer(model), IMAGES, corners(60, 1), score="latent_neighbors")
    assert calibration.reference.components == ["dose", "prior_ratio"]
    with torch.inference_mode():
        kept, codes = (model.encode(model.prepare(images)).mean.double().numpy() for images in (IMAGES, corners(30, 5)))
    covariance = np.cov(kept.T, bias=True)
    covariance += (0.1 * np.trace(covariance) / len(covariance) + 1e-4) * np.eye(len(covariance))
    wanted = np.sort(cdist(codes, kept, "mahalanobis", VI=np.linalg.inv(covariance)), 1)[:, 4]
    found = Scorer(model, calibration.reference)(corners(30, 5), ["latent_neighbors"])["latent_neighbors"]
    assert found == pytest.approx(wanted, rel=1e-4)


def test_codes_are_kept_of_all_of_a_set_and_few_will_do():
    rows = np.random.default_rng(0).normal(size=(1500, 3)) + np.arange(1500)[:, None]
    kept = nearest.fit(rows)
    assert kept.shape == (3 + 1000, 3)
    assert np.linalg.solve(kept[:3].T, kept[-1]) == pytest.approx(rows[1498])  # of all of them, not of the first
    twentieth = np.sort(np.linalg.norm(rows[:1] @ kept[:3] - kept[3:], axis=1))[19]
    assert nearest.to_nearest(torch.from_numpy(rows[:1]), torch.from_numpy(kept)).item() == pytest.approx(twentieth)
    few = torch.tensor([[1.0, 0], [0, 2], [6, 8], [0, 4]]).double()
    assert nearest.to_nearest(torch.zeros(1, 2).double(), few) == 10
    assert nearest.is_fitted(nearest.fit(np.ones((2, 3))))  # codes that do not vary
    assert not nearest.is_fitted(kept[:3])


def test_the_distance_is_in_the_metric_of_training_copies(result):
    model, scorer = result.model, Scorer(result.model)
    learned = judging.judge(model, IMAGES, "float32").fitted
    kept = IMAGES[trained_on(IMAGES)]
    priors, encoder = torch.tensor(model.shifted.priors.means, dtype=torch.float64), model.shifted

    def codes(images):
        with torch.inference_mode():
            views = [encoder.posteriors(view)[0] for view in encoder.views(model.prepare(images))]
        return torch.stack(views).mean(0).double().reshape(4, len(images), -1)

    axes = torch.linalg.qr((priors[1:] - priors[0]).T)[0]  # all directions in which the priors' means differ
    of_training = codes(kept) @ axes
    residuals = (of_training - of_training.mean(1, keepdim=True)).flatten(0, 1)
    inverse = torch.linalg.inv(residuals.T @ residuals / len(residuals))
    images = corners(30, 5)
    away = (codes(images) - priors.unsqueeze(1)) @ axes
    wanted = torch.einsum("tni,ij,tnj->n", away, inverse, away).sqrt()
    fitted = dataclasses.replace(scorer, references=References({}, learned))
    found = fitted(images, ["transformations_distance"])["transformations_distance"]
    assert found == pytest.approx(wanted.numpy(), rel=0.05)  # but for the ridge
    assert np.corrcoef(found, wanted)[0, 1] > 0.999


def test_copies_that_do_not_vary_have_a_finite_distance():
    learned = judging.fit(np.ones((5, 4, 3)))
    assert judging.is_fitted(learned)
    assert not judging.is_fitted(learned[:2])
    assert judging.distance(torch.ones(2, 4, 3).double(), torch.from_numpy(learned)).isfinite().all()


def test_a_calibration_from_before_distance_and_neighbors_keeps_its_scores(result):
    reference = calibrate(Scorer(result.model), IMAGES, corners(60, 1)).reference
    scales = {name: reference.scales[name] for name in ("bpd", "dose", "prior_ratio")}
    fitted = {"dose": reference.fitted["dose"]}
    former = References({**scales, "transformations_kl": np.array([1.0, 2.0, 4.0, 2.5])}, fitted)
    names = ["dose", "prior_ratio", "transformations_kl", "combined"]
    found = Scorer(result.model, former)(corners(9, 4), names)
    ratios = [(found[name] - former.scales[name][1]) / np.diff(former.scales[name])[1] for name in names[:3]]
    largest = np.max(ratios[:2], 0)
    wanted = ratios[2] + np.sign(largest) * (np.sqrt(1 + np.abs(largest)) - 1)
    assert found["combined"] == pytest.approx(wanted, rel=1e-4, abs=1e-4)


def test_unseen_images_are_taken_from_all_of_a_sorted_set(result, monkeypatch):
    images = torch.cat([IMAGES, IMAGES.flip(2)])  # two kinds, one after the other
    unseen = int(held_back(images).sum())
    kinds, measure = [], judging.over_blocks

    def watched(model, chosen, *given, **options):
        kinds[:] = [bool((image[:, -5:, :5] == 255).all()) for image in chosen]  # those of the last call
        return measure(model, chosen, *given, **options)

    monkeypatch.setattr(judging, "IMAGES", unseen * 2 // 3)
    monkeypatch.setattr(judging, "over_blocks", watched)
    judging.judge(result.model, images, "float32")
    assert len(kinds) == unseen * 2 // 3
    assert sum(kinds) == pytest.approx(len(kinds) * int(held_back(images)[240:].sum()) / unseen, abs=1)


def test_few_steps_take_a_lower_learning_rate():
    learner = shift_training.ShiftLearner(run(epochs=1), build_vae(run(epochs=1), (1, 16, 16)), IMAGES, "float32")
    rates = []
    with learner.halves:
        while learner.taken < learner.steps:
            learner.step()
            rates.append(learner.weights.optimizer.param_groups[0]["lr"])
    assert max(rates) <= shift_training.RATE_A_STEP * learner.steps < shift_training.LEARNING_RATE
    assert max(rates) > 0.9 * shift_training.RATE_A_STEP * learner.steps
    assert shift_training.highest_rate(10**6) == shift_training.LEARNING_RATE


@pytest.mark.parametrize("side", [28, 31, 50, 64, 100])
def test_images_of_any_size_are_mirrored_if_inliers_come_mirrored(side):
    """Also where the squares over which images are averaged do not fill the side."""
    draw = torch.Generator().manual_seed(0)
    rows = torch.nn.functional.interpolate(torch.rand(1, 1, 9, 9, generator=draw), size=(side, side), mode="bilinear")
    parts = shift_training.moved(rows.expand(300, -1, -1, -1), draw, 2)
    noisy = parts + 0.05 * torch.randn(parts.shape, generator=draw)
    images = (255 * noisy).clamp(0, 255).to(torch.uint8)
    assert not come_mirrored(images)
    assert nearer_than_mirrored(torch.cat([images[::2], images[1::2].flip(3)])) == pytest.approx(0.5, abs=0.12)


@pytest.mark.parametrize(("side", "most"), [(16, 2), (48, 4), (100, 6)])
def test_images_are_moved_by_pixels_that_the_encoder_sees(side, most, monkeypatch):
    moves, move = [], shift_training.moved
    monkeypatch.setattr(shift_training, "moved", lambda *given: moves.append(given[2]) or move(*given))
    config, images = run(epochs=1), blobs(24, (1, side, side))
    learner = shift_training.ShiftLearner(config, build_vae(config, (1, side, side)), images, "float32")
    with learner.halves:
        learner.step()
    assert moves == [most]


def test_images_are_mirrored_if_inliers_come_mirrored():
    assert not come_mirrored(IMAGES)  # the bright corner is always on the left
    both = torch.cat([IMAGES[::2], IMAGES[1::2].flip(3)])
    assert come_mirrored(both)
    assert not come_mirrored(both[:19])
    assert nearer_than_mirrored(both) == pytest.approx(0.5, abs=0.1)
    assert nearer_than_mirrored(torch.zeros_like(IMAGES[:30])) == 0.5
    images = IMAGES[:64].float() / 255
    made = shift_training.mirrored_by_chance(images, torch.Generator().manual_seed(0))
    flipped = (made == images.flip(3)).flatten(1).all(1)
    assert ((made == images).flatten(1).all(1) ^ flipped).all()
    assert 20 < flipped.sum() < 44


def test_training_says_whether_images_are_mirrored():
    lines = []
    trained(run(epochs=1), log=lines.append)
    why = "no image is mirrored in training, since mirror images do not look like training images"
    assert f"transformations turns: {why}" in lines


def test_the_rest_is_trained_as_without_transformations(whole):
    plain = trained(run(epochs=1, transformations="none")).model.state_dict()
    assert all(torch.equal(value, whole.model.state_dict()[name]) for name, value in plain.items())


@pytest.mark.parametrize("after", [3, 7, 8])
def test_a_stopped_run_goes_on_exactly(whole, tmp_path, after):
    config = run(epochs=1)
    assert whole.progress.shift_steps[0] == whole.progress.shift_steps[1] > 2
    calls = iter(range(1000))
    stopped = trained(config, directory=tmp_path, should_stop=lambda: "enough" if next(calls) == after else "")
    assert stopped.stopped_by == "enough"
    assert not stopped.progress.finished
    resumed = trained(config, directory=tmp_path, resume=True)
    assert resumed.stopped_by == "finished"
    for name, value in whole.model.state_dict().items():
        assert torch.equal(resumed.model.state_dict()[name], value), name


def test_a_longer_run_trains_it_anew(tmp_path, monkeypatch):
    monkeypatch.setattr(shift_training, "PASSES", 1)
    trained(run(epochs=1), directory=tmp_path)
    longer = dataclasses.replace(run(epochs=1), epochs=2)
    resumed, whole = trained(longer, directory=tmp_path, resume=True), trained(longer)
    for name, value in whole.model.state_dict().items():
        assert torch.equal(resumed.model.state_dict()[name], value), name


def test_a_model_without_transformations_has_no_such_score():
    model = trained(run(epochs=1, transformations="none")).model
    with pytest.raises(ValueError, match="trained with transformations"):
        Scorer(model)(IMAGES[:2], ["transformations_kl"])
    scores = calibrate(Scorer(model), IMAGES, IMAGES[:20]).scores
    assert not set(OF_TRANSFORMATIONS) & set(scores)


def test_the_card_says_that_combined_has_none_of_them(tmp_path, monkeypatch):
    monkeypatch.setattr(judging, "LEAST_GAIN", 4.01)
    options = {"epochs": 1, "batch_size": 32, "target_fpr": 0.2, "device": "cpu", "precision": "float32"}
    NegVAEDetector(network="pyramid", transformations="turns", **options).fit(IMAGES.numpy()).save(tmp_path / "run")
    card = (tmp_path / "run" / "MODEL_CARD.md").read_text()
    assert "- combined is the largest of several scores" in card
    assert "- The scores of transformations are no part of combined: " in card


@pytest.mark.parametrize(("most", "others"), [(10_000, ", where m is the largest other,"), (100, " for each other m")])
def test_a_detector_is_saved_and_exported_with_them(tmp_path, monkeypatch, most, others):
    monkeypatch.setattr(judging, "LEAST_GAIN", 0)
    monkeypatch.setattr(judging, "LEAST_AUROC", 0)
    monkeypatch.setattr(judging, "MOST_OF_ONE_KIND", most)
    options = {"epochs": 1, "batch_size": 32, "target_fpr": 0.2, "device": "cpu", "precision": "float32"}
    detector = NegVAEDetector(network="pyramid", transformations="turns", **options).fit(IMAGES.numpy())
    assert set(ADDED) <= set(detector.calibration_.reference.components)
    detector.save(tmp_path / "run")
    card = (tmp_path / "run" / "MODEL_CARD.md").read_text()
    largest = "the larger of transformations_kl and transformations_distance"
    assert f"combined is {largest} plus latent_neighbors plus sqrt(1 + m) - 1{others} of" in card
    assert "no part of combined" not in card
    again = NegVAEDetector.load(tmp_path / "run")
    assert (again.ood_score(IMAGES[:40].numpy()) == detector.ood_score(IMAGES[:40].numpy())).all()
    pytest.importorskip("onnxruntime")
    from negvae.runs.export import export_onnx

    assert export_onnx(tmp_path / "run").difference < 1e-4
    for score in OF_TRANSFORMATIONS if most == 100 else ():  # these are the same in both
        exported = export_onnx(tmp_path / "run", score=score)
        assert exported.encoder_only
        assert exported.difference < 1e-4
