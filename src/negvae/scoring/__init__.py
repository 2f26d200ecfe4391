"""Scores (larger means more out-of-distribution), metrics and evaluation. Needs the model room only."""

from negvae.scoring.metrics import Detection, detection_metrics
from negvae.scoring.scores import SCORES, bits_per_dim, compute_scores, kl, nats_per_dim, prior_ratio

__all__ = [
    "SCORES",
    "Detection",
    "bits_per_dim",
    "compute_scores",
    "detection_metrics",
    "kl",
    "nats_per_dim",
    "prior_ratio",
]
