"""Scores (larger means more out-of-distribution), calibration, metrics and evaluation. Needs the model room only.

Metrics and the scores of modules of their own load on first use: scoring images should not wait for scikit-learn.
"""

from importlib import import_module
from typing import Any

from negvae.scoring.calibration import Calibration, benjamini_hochberg, p_values
from negvae.scoring.scorer import ALL_SCORES, Scorer, calibrate
from negvae.scoring.scores import (
    SCORES,
    bits_per_dim,
    compute_scores,
    iwae,
    kl,
    latent_norm,
    nats_per_dim,
    prior_ratio,
    reconstruction,
)

_HOMES = {
    "Detection": "metrics",
    "detection_metrics": "metrics",
    "input_complexity": "complexity",
    "likelihood_regret": "regret",
    "waic": "ensemble",
}

__all__ = [
    "ALL_SCORES",
    "SCORES",
    "Calibration",
    "Scorer",
    "benjamini_hochberg",
    "bits_per_dim",
    "calibrate",
    "compute_scores",
    "iwae",
    "kl",
    "latent_norm",
    "nats_per_dim",
    "p_values",
    "prior_ratio",
    "reconstruction",
    *_HOMES,
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'negvae.scoring' has no attribute {name!r}")
    return getattr(import_module(f"negvae.scoring.{_HOMES[name]}"), name)
