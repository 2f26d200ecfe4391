"""Fit, score, predict: the detector, and the contracts of other libraries that it can take on."""

from __future__ import annotations

from typing import Any

from negvae.detector.classifier import NegVAEClassifier
from negvae.detector.crossconformal import CrossConformalDetector
from negvae.detector.estimator import Drift, NegVAEDetector
from negvae.files import need

__all__ = ["CrossConformalDetector", "Drift", "NegVAEClassifier", "NegVAEDetector", "as_pyod", "as_pytorch_ood"]


def as_pyod(contamination: float = 0.1, **parameters: Any) -> Any:
    """A detector that is a `pyod.models.base.BaseDetector`: labels 1 for outliers, larger scores = more abnormal.

    Args:
        contamination: share of outliers in the data given to `fit`, in (0, 0.5]; PyOD knows no clean data.
        **parameters: of `negvae.NegVAEDetector`.

    Raises:
        ImportError: the extra "pyod" is not installed.
        ValueError: the contamination is out of range.
        TypeError: an unknown parameter.
    """
    need("pyod", "pyod")
    from negvae.detector.pyod import PyODNegVAE

    return PyODNegVAE(contamination, **parameters)


def as_pytorch_ood(detector: Any = None, **parameters: Any) -> Any:
    """A detector that is a `pytorch_ood.api.Detector`: fitted by a DataLoader, larger = more out-of-distribution.

    Args:
        detector: a `negvae.NegVAEDetector`, fitted or not; None for a new one.
        **parameters: of the new one.

    Raises:
        ImportError: the extra "pytorch-ood" is not installed.
        TypeError: an unknown parameter, or parameters beside a detector.
    """
    need("pytorch_ood", "pytorch-ood")
    from negvae.detector.pytorch_ood import PytorchOODNegVAE

    return PytorchOODNegVAE(detector, **parameters)
