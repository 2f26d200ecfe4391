"""The model card of a run: what the model is, how it was made, and what its scores and threshold mean."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from negvae.config import RunConfig
from negvae.files import write_text
from negvae.runs.provenance import described_data
from negvae.scoring.calibration import Calibration
from negvae.scoring.certificates import CONFIDENCE
from negvae.scoring.combination import ADDED
from negvae.scoring.table import SCORES
from negvae.scoring.tiles import RULES
from negvae.training.loop import TrainingResult

CARD = "MODEL_CARD.md"
_TITLE = "## Score and threshold"


def write_card(directory: Path, config: RunConfig, result: TrainingResult, provenance: dict[str, Any]) -> None:
    """Write the model card of a run without a calibration, of which `write_calibration_card` adds the description.

    Args:
        directory: folder of the run.
        config: configuration of the run.
        result: what `negvae.train` returned.
        provenance: plain values such as version and commit; under "data", what each role's data is.

    Raises:
        OSError: if the file cannot be written.
    """
    write_text(directory / CARD, _of_run(config, result, provenance))


def write_calibration_card(directory: Path, calibration: Calibration) -> None:
    """Add the score and the threshold to the model card of a run, in place of earlier ones.

    Args:
        directory: folder of the run.
        calibration: the calibration to describe.

    Raises:
        OSError: if the file cannot be read or written.
    """
    card = directory / CARD
    text = card.read_text(encoding="utf-8") if card.exists() else ""
    write_text(card, text.split(_TITLE)[0].rstrip() + "\n\n" + _of_calibration(calibration))


def _of_run(config: RunConfig, result: TrainingResult, provenance: dict[str, Any]) -> str:
    """Say what the model is, what it was trained on, and how it was made."""
    last = result.history[-1] if result.history else {}
    data = described_data(provenance)
    lines = [
        f"# VAE trained on {config.data}",
        "",
        "A variational autoencoder with negative sampling, made by negvae. It scores how far an image lies from"
        f" its training data; larger scores mean farther. Negatives: {config.negatives}.",
        "",
        f"- Training: {result.progress.epoch} of {config.epochs} epochs, {result.progress.seconds:.0f} s",
        f"- Last epoch: {last['nats_per_dim']:.4f} nats per dimension on the training data" if last else "",
        *(f"- Data, {role}: {text}" for role, text in data.items()),
        "",
        "## Run",
        "",
        *(f"- {field.name}: {getattr(config, field.name)}" for field in dataclasses.fields(config)),
        "",
        "## Provenance",
        "",
        *(f"- {name}: {value}" for name, value in provenance.items() if name != "data"),
        "",
    ]
    return "\n".join(lines)


def _of_calibration(calibration: Calibration) -> str:
    """Explain the score and the threshold for the model card."""
    lines = [
        _TITLE,
        "",
        f"- Decision score: {calibration.score}: {SCORES[calibration.score].describe()}",
        "- Larger scores mean farther from the training data.",
        f"- Threshold: {calibration.describe()}",
        f"- Calibration: {calibration.size:,} inliers that the model was not trained on. A p-value is"
        " (1 + the number of them that score at least as high) / (their number + 1); the smallest possible is"
        f" {1 / (calibration.size + 1):.2g}.",
        *_promise(calibration),
        f"- Calibrated scores: {', '.join(calibration.scores)}",
        *_tiles_card(calibration),
        f"- Precision of the scores: {calibration.precision}" + _of_encoder(calibration),
    ]
    if "combined" in calibration.scores:
        of = "; ".join(
            f"{name}: median {middle:.4g}, middle 90% {low:.4g} to {high:.4g}"
            for name in calibration.reference.components
            for low, middle, high, _ in [calibration.reference.scales[name]]
        )
        groups = [[name for name in group if name in calibration.reference.components] for group in ADDED]
        added = [f"the larger of {' and '.join(group)}" if group[1:] else group[0] for group in groups if group]
        of_others = " for each other m" if calibration.reference.summed else ", where m is the largest other,"
        what = f"{' plus '.join(added)} plus sqrt(1 + m) - 1{of_others}" if added else "the largest"
        lines.append(
            f"- combined is {what} of several scores, each as its distance from the training images' median, in"
            f" units of the distance at which their most extreme 5% begin (bpd on both sides): {of}. It was made from"
            " training images alone."
        )
        if "transformations_kl" in calibration.scores and not added:
            lines.append(
                "- The scores of transformations are no part of combined: the encoder did not tell apart the"
                " transformed copies of inliers that it had not seen, or there were too few of those."
            )
    return "\n".join(lines) + "\n"


def _of_encoder(calibration: Calibration) -> str:
    """Return what the card adds to the precision."""
    if calibration.rounding is None:
        return ""
    decodes = any(name.startswith("decoder.") for name in calibration.rounding)
    return ", on a CPU" if decodes else ", of the encoder alone, on a CPU"


def _tiles_card(calibration: Calibration) -> list[str]:
    """Return the line of the model card on how the scores of an image's tiles become one."""
    if not calibration.tiles:
        return []
    return [
        f"- Score of an image: {RULES[calibration.tiles]}. Its p-value and the rate of false alarms are those of whole"
        " images: the inliers were held out by image."
    ]


def _promise(calibration: Calibration) -> list[str]:
    """Return the lines of the model card on what is certified about false alarms."""
    if calibration.uncertified:
        return [f"- No rate of false alarms is certified: {calibration.uncertified}."]
    bounds = calibration.fpr_bounds(calibration.confidence or CONFIDENCE)
    lines = [
        f"- Certificate: with {bounds.confidence:.4g} confidence, the rate of false alarms is at most {bounds.high:.3g}"
        f" (Beta quantile, {bounds.held_out:,} held-out inliers, {bounds.rate:.3g} of them above the threshold). It is"
        " about new images from where the held-out inliers came from, and says nothing about how many outliers are"
        " found.",
    ]
    if calibration.thresholds:
        lines.append("- That bound is for inliers of all groups in any mixture; those below are for each by itself.")
    for group, each in calibration.group_bounds(bounds.confidence).items():
        small = ", too few for the rate" if group in calibration.small else ""
        lines.append(
            f"- Group {group}: threshold {calibration.thresholds[group]:.6g}, {each.held_out:,} held-out"
            f" inliers{small}, false alarms at most {each.high:.3g}"
        )
    return lines
