"""Needs pytorch-ood, which brings torchvision: `make test-interop` runs it in an environment of its own."""

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from negvae.detector import NegVAEDetector, as_pytorch_ood
from tests.conftest import blobs

api = pytest.importorskip("pytorch_ood.api")

OPTIONS = {"preset": "gray", "epochs": 2, "batch_size": 16, "device": "cpu"}


def test_it_is_fitted_by_a_loader_and_scores_as_the_detector_does() -> None:
    inliers = blobs(120, (1, 28, 28))
    outliers = 255 - blobs(20, (1, 28, 28), 3)
    data = TensorDataset(torch.cat([inliers, outliers]), torch.tensor([0] * 120 + [-1] * 20))
    detector = as_pytorch_ood(**OPTIONS)
    assert isinstance(detector, api.Detector)
    assert detector.fit(DataLoader(data, batch_size=32)) is detector
    fresh = torch.cat([blobs(20, (1, 28, 28), 9), outliers])
    scores = detector.predict(fresh)
    assert isinstance(scores, torch.Tensor)
    assert scores.shape == (40,)
    assert scores[20:].min() > scores[:20].max()  # larger = outlier
    # Rows with a label below 0 are outliers: they were left out.
    alone = NegVAEDetector(**OPTIONS).fit(inliers)
    np.testing.assert_array_equal(scores.numpy(), alone.ood_score(fresh))
    np.testing.assert_array_equal(as_pytorch_ood(alone).predict(fresh).numpy(), scores.numpy())


def test_its_metrics_take_the_scores() -> None:
    from pytorch_ood.metrics import OODMetrics

    draw = np.random.default_rng(0)
    features = torch.from_numpy(draw.normal(size=(300, 4)))
    detector = as_pytorch_ood(epochs=10, device="cpu").fit_features(features)
    metrics = OODMetrics()
    metrics.update(detector.predict_features(features), torch.zeros(300))
    metrics.update(detector.predict_features(features * 6 + 10), -torch.ones(300))
    assert metrics.compute()["AUROC"] > 0.95


def test_a_detector_or_parameters_but_not_both() -> None:
    with pytest.raises(TypeError, match="not both"):
        as_pytorch_ood(NegVAEDetector(), epochs=3)
    with pytest.raises(TypeError, match="colour"):
        as_pytorch_ood(colour="red")
