"""Scores (larger means more out-of-distribution), their table, calibration, metrics and comparison.

Names load on first use: the table of scores needs no torch, and scoring images should not wait for scikit-learn.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from negvae.scoring.calibration import Calibration, benjamini_hochberg, p_values
    from negvae.scoring.compute import compute_scores
    from negvae.scoring.metrics import Detection, detection_metrics
    from negvae.scoring.passes import Draws, Pass, SharedDraws
    from negvae.scoring.references import References
    from negvae.scoring.scorer import Scorer, calibrate
    from negvae.scoring.table import SCORES, Score, register_score

__all__ = [
    "SCORES",
    "Calibration",
    "Detection",
    "Draws",
    "Pass",
    "References",
    "Score",
    "Scorer",
    "SharedDraws",
    "benjamini_hochberg",
    "calibrate",
    "compute_scores",
    "detection_metrics",
    "p_values",
    "register_score",
]

_MODULES = {
    "SCORES": "table",
    "Calibration": "calibration",
    "Detection": "metrics",
    "Draws": "passes",
    "Pass": "passes",
    "References": "references",
    "Score": "table",
    "Scorer": "scorer",
    "SharedDraws": "passes",
    "benjamini_hochberg": "calibration",
    "calibrate": "scorer",
    "compute_scores": "compute",
    "detection_metrics": "metrics",
    "p_values": "calibration",
    "register_score": "table",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module 'negvae.scoring' has no attribute {name!r}")
    return getattr(import_module(f"negvae.scoring.{_MODULES[name]}"), name)
