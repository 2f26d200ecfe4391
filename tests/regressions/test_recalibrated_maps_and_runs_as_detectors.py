"""Regressions: heat maps after a recalibration, runs as detectors, negatives as objects, and comparisons in int8."""

import dataclasses

import numpy as np
import pytest
import torch

from negvae import NegVAEDetector, build_vae
from negvae.negatives import Auxiliary, Mixture, UniformNoise
from negvae.runs.artifact import load_artifact
from negvae.runs.calibrate import calibrate_run
from negvae.runs.train import run
from negvae.scoring import columns
from negvae.scoring.comparison import compare
from negvae.scoring.neighbors import fit_neighbors
from tests.conftest import blobs, small_run

SHAPE = (1, 28, 28)
OPTIONS = {"preset": "general", "epochs": 1, "device": "cpu"}


def other_inliers():
    """Give spots on a ground that is not black."""
    return (blobs(60, SHAPE, 5) // 2 + 60).numpy()


def calibrated_by(images, folder):
    """Check that these images are what the maps of a folder are calibrated by."""
    maps = load_artifact(folder, "cpu").maps()
    assert maps.counts.sum() == images.size
    np.testing.assert_array_equal(maps.scores, np.sort(maps.image_scores(torch.from_numpy(images))))


@pytest.mark.parametrize("at_once", [True, False])
def test_recalibrated_maps_are_those_of_the_new_inliers(at_once, tmp_path):
    detector = NegVAEDetector(heatmaps=at_once, **OPTIONS).fit(blobs(100, SHAPE).numpy())
    found = detector.recalibrate(other_inliers()).heatmap(other_inliers())
    assert 0.005 < (found > 2).mean() <= 0.01  # of the pixels that they are compared with
    detector.save(tmp_path / "saved")
    calibrated_by(other_inliers(), tmp_path / "saved")
    np.testing.assert_array_equal(NegVAEDetector.load(tmp_path / "saved", "cpu").heatmap(other_inliers()), found)


def test_the_maps_of_a_folder_are_calibrated_with_it(tmp_path):
    np.save(tmp_path / "in.npy", blobs(100, SHAPE).numpy())
    np.save(tmp_path / "new.npy", other_inliers())
    config = small_run(epochs=1, calibration=0.4)
    run(dataclasses.replace(config, data=str(tmp_path / "in.npy")), tmp_path / "run", heatmaps=True)
    calibrate_run(tmp_path / "run", str(tmp_path / "new.npy"), device="cpu")
    calibrated_by(other_inliers(), tmp_path / "run")


def test_a_run_is_fitted_anew_as_it_was_trained(tmp_path):
    np.save(tmp_path / "in.npy", blobs(100, SHAPE).numpy())
    config = small_run(epochs=1, calibration=0.4, initialization="glorot", schedule="cosine", update="simultaneous")
    run(dataclasses.replace(config, data=str(tmp_path / "in.npy")), tmp_path / "run")
    detector = NegVAEDetector.load(tmp_path / "run", "cpu")
    before = detector.config_
    after = detector.fit(blobs(100, SHAPE).numpy()).config_
    changed = [name for name, value in before.to_dict().items() if after.to_dict()[name] != value]
    assert changed == ["data"]


@pytest.mark.parametrize("mixed", [False, True])
def test_images_of_a_source_that_are_inliers_are_refused(mixed):
    images = blobs(100, SHAPE)
    source = Auxiliary(images[-5:])
    if mixed:
        source = Mixture((UniformNoise(), source), (1.0, 1.0))
    with pytest.raises(ValueError, match="overlap the inliers given to fit: 5 of 5 images are identical"):
        NegVAEDetector(source, **OPTIONS).fit(images.numpy())
    rows = np.random.default_rng(0).normal(size=(100, 3))
    with pytest.raises(ValueError, match="5 of 5 rows are identical"):
        NegVAEDetector(epochs=1).fit(rows, negatives=Auxiliary(torch.from_numpy(rows[-5:])[:, :, None, None]))


class EncoderInInt8:
    """An encoder in int8 that gives the same code for every image, and no decoder."""

    decode = None

    def encode(self, images):
        codes = torch.zeros(len(images), 10)
        return codes, codes


def test_a_comparison_in_int8_is_by_the_networks_in_int8():
    model = build_vae(small_run("gray"), SHAPE).eval()
    inliers, others = blobs(20, SHAPE), {"other": 255 - blobs(20, SHAPE)}
    (plain,) = compare(model, inliers, others)
    (rounded,) = compare(model, inliers, others, quantized=EncoderInInt8())
    assert plain.detection["kl"].auroc != 0.5
    assert rounded.detection["kl"].auroc == rounded.detection["prior_ratio"].auroc == 0.5
    assert torch.equal(rounded.inlier_scores["bpd"], plain.inlier_scores["bpd"])  # which needs a decoder


def test_columns_are_compared_with_few_reference_rows_at_a_time(monkeypatch):
    rows = np.random.default_rng(0).normal(size=(90, 4))
    fitted, _ = fit_neighbors(rows[:40], rows[40:50])
    whole = columns.column_surprise(rows, fitted)
    sizes = []

    def noted(these, references):
        sizes.append(len(these) * len(references))
        return has_copy(these, references)

    has_copy = columns.has_copy
    monkeypatch.setattr(columns, "has_copy", noted)
    monkeypatch.setattr(columns, "_DISTANCES", 500)
    np.testing.assert_allclose(columns.column_surprise(rows, fitted), whole, atol=1e-9)
    assert max(sizes) <= 500
