"""The parameters of a `negvae.NegVAEDetector`: what they may be, and what saved folders and runs say of them."""

from __future__ import annotations

from numbers import Real
from typing import Any

from negvae.config import RENAMED, RunConfig
from negvae.scoring.table import score_of

RUN_PARAMETERS = (
    "network", "initialization", "likelihood", "sigma", "learn_sigma", "latent_size", "negative_shift",
    "negative_weight", "transformations", "update", "optimizer", "learning_rate", "schedule", "batch_size", "epochs",
    "precision",
)  # fmt: skip
"""Parameters that a `RunConfig` has under the same names."""


def check_parameters(detector: Any, *, trims_held_out: bool) -> None:
    """Refuse parameters that are out of range, or that exclude one another.

    Args:
        detector: the detector.
        trims_held_out: whether inliers are held out of data that may hold outliers.

    Raises:
        ValueError: if a parameter cannot be used.
    """
    score = None if detector.decision_score is None else score_of(detector.decision_score)
    if score is not None and "ensemble" in score.needs:
        raise ValueError(
            f"score {score.name} takes an ensemble, and a detector is one model: negvae.scoring.Scorer takes more"
        )
    for name, clean in (("contamination", "clean data"), ("trim", "X is clean")):
        value = getattr(detector, name)
        if not isinstance(value, Real) or not 0 <= float(value) <= 0.5:
            raise ValueError(f"{name} is {value!r}: it must lie between 0 ({clean}) and 0.5")
    for name in ("target_fpr", "confidence", "calibration_fraction"):
        value = getattr(detector, name)
        if value is not None and (not isinstance(value, Real) or not 0 < float(value) < 1):
            raise ValueError(f"{name} is {value!r}: it must lie between 0 and 1, or be None")
    if detector.confidence is None:
        return
    if detector.target_fpr is None or detector.contamination:
        raise ValueError("confidence is that of target_fpr: give a target_fpr with it, and no contamination")
    if trims_held_out:
        raise ValueError(
            "confidence takes held-out inliers that are clean, and trim says that X is not: give clean inliers as"
            " `calibration`, or leave one of the two out"
        )


def plain_parameters(parameters: dict[str, Any], config: RunConfig) -> dict[str, Any]:
    """Return the parameters that a file can hold, with networks and likelihoods by their names in the config."""
    names = config.to_dict()
    plain = {
        name: names[name] if name in ("network", "likelihood") and value is not None else value
        for name, value in parameters.items()
    }
    return {name: value for name, value in plain.items() if isinstance(value, str | bool | int | float | None)}


def translated(parameters: dict[str, Any]) -> dict[str, Any]:
    """Translate saved parameters of version 0.1 to current names; it called `decision_score` `score`."""
    former: dict[str, dict[str, Any]] = {"preset": {"auto": None}, "decision_score": {"auto": "combined"}, **RENAMED}
    named = {"decision_score" if name == "score" else name: value for name, value in parameters.items()}
    return {
        name: former[name].get(value, value) if name in former and isinstance(value, str) else value
        for name, value in named.items()
    }


def parameters_of(config: RunConfig) -> dict[str, Any]:
    """Return the parameters of a detector that would train with this config."""
    values = {name: getattr(config, name) for name in RUN_PARAMETERS}
    preset_name = "features" if config.takes_features else "general"
    rule = {} if config.target_fpr is None else {"target_fpr": config.target_fpr}
    return {
        **values, **rule, "confidence": config.confidence, "preset": preset_name, "negatives": config.negatives,
        "random_state": config.seed, "calibration_fraction": config.calibration or 0.2,
    }  # fmt: skip
