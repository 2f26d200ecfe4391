"""Adapter of `NegVAEDetector` to pytorch-ood (Kirchheim et al., "PyTorch-OOD", CVPR workshops 2022)."""

from __future__ import annotations

from typing import Any, Self

import numpy as np
import torch
from pytorch_ood.api import Detector, RequiresFittingException
from sklearn.exceptions import NotFittedError
from torch import Tensor

from negvae.detector.estimator import NegVAEDetector


class PytorchOODNegVAE(Detector):  # type: ignore[misc]
    """A detector for pytorch-ood: fitted to a DataLoader or to features, scores as tensors, larger = more OOD.

    Further keyword arguments are parameters of a new `negvae.NegVAEDetector`.

    Args:
        detector: a `negvae.NegVAEDetector`, fitted or not; None makes a new one.

    Attributes:
        detector: the `NegVAEDetector`.
    """

    requires_fit = True

    def __init__(self, detector: NegVAEDetector | None = None, **parameters: Any) -> None:
        super().__init__()
        if detector is not None and parameters:
            raise TypeError("give a detector or the parameters of a new one, not both")
        self.detector = detector if detector is not None else NegVAEDetector(**parameters)

    def fit(self, data_loader: Any) -> Self:
        """Fit to the images of a DataLoader; if it gives labels, images with labels below 0 (outliers) are left out."""
        images, labels = [], []
        for batch in data_loader:
            first, *rest = batch if isinstance(batch, list | tuple) else (batch,)
            images.append(first.detach().cpu())
            labels.append(rest[0].detach().cpu() if rest else torch.zeros(len(first)))
        return self.fit_features(torch.cat(images), torch.cat(labels))

    def fit_features(self, x: Tensor, y: Tensor | None = None) -> Self:
        """Fit to a tensor of images or of rows of features (N x D); rows with y below 0 (outliers) are left out."""
        inliers = x if y is None else x[(y >= 0).to(x.device)]
        self.detector.fit(inliers)
        return self

    def predict(self, x: Tensor) -> Tensor:
        """Compute N scores of images or rows of features, larger = more out-of-distribution."""
        return self.predict_features(x)

    def predict_features(self, x: Tensor) -> Tensor:
        """Compute N scores of images or rows of features, on the device of x; before `fit` this is an error."""
        try:
            scores = self.detector.ood_score(x)
        except NotFittedError:
            raise RequiresFittingException() from None
        return torch.from_numpy(np.asarray(scores)).to(x.device)
