"""The adapter beside the real `pytorch_ood.api` and `pytorch_ood.metrics`.

The package imports torchvision, for its data sets and networks, which has no build that matches our torch. `make test`
therefore keeps the package's files in .pytorch-ood, and the modules that are named here run without the package's own
__init__; `make test-interop` runs the same tests with the whole package, in an environment of its own.
"""

import importlib.util
import os
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from negvae.detector import NegVAEDetector, as_pytorch_ood
from tests.conftest import blobs

FILES = Path(os.environ.get("NEGVAE_PYTORCH_OOD", Path(__file__).parents[2] / ".pytorch-ood"))
OURS = "negvae.detector.pytorch_ood"


@pytest.fixture(scope="module", autouse=True)
def _package():
    if importlib.util.find_spec("pytorch_ood") and importlib.util.find_spec("torchvision"):
        yield
        return
    if not (FILES / "pytorch_ood").is_dir():
        pytest.skip("pytorch-ood is not there")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(FILES)
        package = importlib.util.module_from_spec(importlib.util.find_spec("pytorch_ood"))
        patch.setitem(sys.modules, "pytorch_ood", package)
        yield
        for name in [name for name in sys.modules if name.startswith(("pytorch_ood.", OURS))]:
            del sys.modules[name]


OPTIONS = {"preset": "gray", "epochs": 2, "batch_size": 16, "device": "cpu"}


def test_it_is_fitted_by_a_loader_and_scores_as_the_detector_does() -> None:
    inliers = blobs(120, (1, 28, 28))
    outliers = 255 - blobs(20, (1, 28, 28), 3)
    data = TensorDataset(torch.cat([inliers, outliers]), torch.tensor([0] * 120 + [-1] * 20))
    detector = as_pytorch_ood(**OPTIONS)
    from pytorch_ood import api

    assert isinstance(detector, api.Detector)
    with pytest.raises(api.RequiresFittingException):
        as_pytorch_ood(**OPTIONS)(blobs(2, (1, 28, 28)))
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
