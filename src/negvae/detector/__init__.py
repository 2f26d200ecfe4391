"""The detector (fit, score, predict), and its adapters to the interfaces of other libraries."""

from __future__ import annotations

from typing import Any

from negvae.detector.classifier import NegVAEClassifier
from negvae.detector.crossconformal import CrossConformalDetector
from negvae.detector.estimator import Drift, NegVAEDetector
from negvae.detector.scored import ScoreDetector
from negvae.files import need

__all__ = [
    "CrossConformalDetector", "Drift", "NegVAEClassifier", "NegVAEDetector", "ScoreDetector", "as_pyod",
    "as_pytorch_ood",
]  # fmt: skip


def as_pyod(contamination: float = 0.1, **parameters: Any) -> Any:
    """Make a detector that is a `pyod.models.base.BaseDetector`: label 1 for outliers, larger scores = more abnormal.

    Further keyword arguments are parameters of `negvae.NegVAEDetector`.

    Args:
        contamination: share of outliers in the data given to `fit`, in (0, 0.5]; PyOD has no setting for clean data.

    Returns:
        A `negvae.detector.pyod.PyODNegVAE`, not fitted.

    Raises:
        ImportError: if the extra "pyod" is not installed.
        ValueError: if the contamination is out of range.
        TypeError: if a parameter is unknown.
    """
    need("pyod", "pyod")
    from negvae.detector.pyod import PyODNegVAE

    return PyODNegVAE(contamination, **parameters)


def as_pytorch_ood(detector: Any = None, **parameters: Any) -> Any:
    """Make a detector that is a `pytorch_ood.api.Detector`: fitted on a DataLoader, larger = more out-of-distribution.

    Further keyword arguments are parameters of a new `negvae.NegVAEDetector`.

    Args:
        detector: a `negvae.NegVAEDetector`, fitted or not; None makes a new one.

    Returns:
        A `negvae.detector.pytorch_ood.PytorchOODNegVAE`.

    Raises:
        ImportError: if the extra "pytorch-ood" is not installed.
        TypeError: if a parameter is unknown, or if parameters are given together with a detector.
    """
    need("pytorch_ood", "pytorch-ood")
    from negvae.detector.pytorch_ood import PytorchOODNegVAE

    return PytorchOODNegVAE(detector, **parameters)
