"""The detectors that `benchmarks/rows.py` compares, each with its own defaults."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from scipy.special import logsumexp

Rows = NDArray[np.float64]


class Fitted(Protocol):
    """A detector that has seen the training rows."""

    def score(self, rows: Rows) -> Rows:
        """Scores (N), larger = more abnormal."""

    def alarms(self, inliers: Rows, rate: float) -> dict[str, int] | None:
        """How many inliers lie above the threshold of a false-positive rate, and how many were held out for it."""


@dataclass(frozen=True)
class Method:
    """One line of the table.

    Attributes:
        what: for people.
        fit: gives a fitted detector, from training rows (N x D) and a seed.
        raw: whether it gets the columns as they are, not standardized.
        most_columns: sets with more are left out, because a fit takes many minutes; None for no limit.
    """

    what: str
    fit: Callable[[Rows, int], Fitted]
    raw: bool = False
    most_columns: int | None = None


@dataclass(frozen=True)
class _Scores:
    """A detector that only scores."""

    score: Callable[[Rows], Rows]

    def alarms(self, inliers: Rows, rate: float) -> None:
        """It promises no rate."""


@dataclass(frozen=True)
class _Ours:
    detector: Any

    def score(self, rows: Rows) -> Rows:
        return self.detector.ood_score(rows).astype(np.float64)

    def alarms(self, inliers: Rows, rate: float) -> dict[str, int]:
        p_values = self.detector.p_values(inliers)
        return {"count": int((p_values <= rate).sum()), "held_out": self.detector.calibration_.size}


def _negvae(**parameters: Any) -> Callable[[Rows, int], Fitted]:
    def fit(rows: Rows, seed: int) -> Fitted:
        from negvae import NegVAEDetector

        return _Ours(NegVAEDetector(random_state=seed, device="cpu", **parameters).fit(rows))

    return fit


def _pyod(module: str, name: str, seeded: bool = False) -> Callable[[Rows, int], Fitted]:
    def fit(rows: Rows, seed: int) -> Fitted:
        from importlib import import_module

        made = getattr(import_module(f"pyod.models.{module}"), name)(**({"random_state": seed} if seeded else {}))
        made.fit(rows)
        return _Scores(made.decision_function)

    return fit


def _sklearn(module: str, name: str, seeded: bool = False, **parameters: Any) -> Callable[[Rows, int], Fitted]:
    def fit(rows: Rows, seed: int) -> Fitted:
        from importlib import import_module

        options = {**parameters, **({"random_state": seed} if seeded else {})}
        made = getattr(import_module(f"sklearn.{module}"), name)(**options).fit(rows)
        return _Scores(lambda new: -made.score_samples(new))

    return fit


def _neighbors(count: int) -> Callable[[Rows, int], Fitted]:
    def fit(rows: Rows, seed: int) -> Fitted:
        from sklearn.neighbors import NearestNeighbors

        found = NearestNeighbors(n_neighbors=count).fit(rows)
        return _Scores(lambda new: found.kneighbors(new)[0].mean(1))

    return fit


def _mahalanobis(name: str) -> Callable[[Rows, int], Fitted]:
    def fit(rows: Rows, seed: int) -> Fitted:
        import sklearn.covariance

        return _Scores(getattr(sklearn.covariance, name)().fit(rows).mahalanobis)

    return fit


LEVELS = np.geomspace(1e-4, 1e4, 400)
"""Variances of the noise that DTE-NP chooses from."""


def _diffusion_time(rows: Rows, seed: int) -> Fitted:
    """DTE-NP (Livernoche et al., "On diffusion modeling for anomaly detection", 2024), from its description.

    How much noise would make this row of a training row: with the training rows as the clean distribution, the
    posterior of the noise's variance v is p(v|x) proportional to p(v) sum_i N(x; x_i, v I). The score is its mean.
    The prior is uniform in v over `LEVELS`; the sum takes the 50 nearest training rows.
    """
    from sklearn.neighbors import NearestNeighbors

    found = NearestNeighbors(n_neighbors=min(50, len(rows))).fit(rows)
    log_prior = np.log(np.gradient(LEVELS)) - 0.5 * rows.shape[1] * np.log(LEVELS)

    def score(new: Rows) -> Rows:
        squared = np.square(found.kneighbors(new)[0])
        log_posterior = np.stack([logsumexp(-squared / (2 * v), axis=1) for v in LEVELS], 1) + log_prior
        log_posterior -= logsumexp(log_posterior, axis=1, keepdims=True)
        return np.exp(log_posterior) @ LEVELS

    return _Scores(score)


METHODS = {
    "negvae": Method("negvae, `NegVAEDetector()`", _negvae(), raw=True),
    "knn-1": Method("nearest neighbor (scikit-learn)", _neighbors(1)),
    "knn-5": Method("mean of 5 nearest neighbors (scikit-learn's default number)", _neighbors(5)),
    "pyod-knn": Method("kNN (PyOD)", _pyod("knn", "KNN")),
    "dte-np": Method("DTE-NP (own implementation)", _diffusion_time),
    "lof": Method("LOF (scikit-learn)", _sklearn("neighbors", "LocalOutlierFactor", novelty=True)),
    "pyod-lof": Method("LOF (PyOD)", _pyod("lof", "LOF")),
    "iforest": Method("isolation forest (scikit-learn)", _sklearn("ensemble", "IsolationForest", seeded=True)),
    "pyod-iforest": Method("isolation forest (PyOD)", _pyod("iforest", "IForest", seeded=True)),
    "pyod-ecod": Method("ECOD (PyOD)", _pyod("ecod", "ECOD")),
    "pyod-copod": Method("COPOD (PyOD)", _pyod("copod", "COPOD")),
    "pyod-pca": Method("PCA (PyOD)", _pyod("pca", "PCA", seeded=True)),
    "ocsvm": Method("one-class SVM (scikit-learn)", _sklearn("svm", "OneClassSVM")),
    "pyod-ocsvm": Method("one-class SVM (PyOD)", _pyod("ocsvm", "OCSVM")),
    "mahalanobis": Method("Mahalanobis (scikit-learn)", _mahalanobis("EmpiricalCovariance")),
    "shrunk-mahalanobis": Method("shrunk Mahalanobis (scikit-learn)", _mahalanobis("LedoitWolf")),
    "pyod-mcd": Method("robust Mahalanobis, MCD (PyOD)", _pyod("mcd", "MCD", seeded=True), most_columns=200),
}
"""By the name of their files of results."""
