"""The check that inliers a person names, to calibrate or evaluate with, are not those that the model was trained on."""

from __future__ import annotations

from torch import Tensor

from negvae.negatives.overlap import digests
from negvae.runs.artifact import Artifact
from negvae.runs.recorded import Recorded, read_recorded
from negvae.runs.resolve import Inliers, load_inliers

TOLERATED = 0.1
"""So much larger may the share of named inliers that equal a training image be than that of the held-out ones."""


def refuse_seen(found: Tensor, inliers: Inliers | None, what: str) -> None:
    """Refuse inliers of which many are, number by number, ones that were trained on, whatever their files are called.

    A few are usual: many sets hold some image twice. Where the run held out inliers, as many as among them are usual.

    Args:
        found: inliers that were named, as the model takes them, N x C x H x W.
        inliers: inliers of the run; None if they are not there any more, and nothing can be compared.
        what: what was named, in the message.

    Raises:
        ValueError: if more than usual were trained on.
    """
    if inliers is None or not len(found) or found.dtype != inliers.training.dtype:
        return
    known = set(digests(inliers.training))
    seen = sum(digest in known for digest in digests(found))
    usual = sum(digest in known for digest in digests(inliers.held_out)) / max(len(inliers.held_out), 1)
    if seen / len(found) > usual + TOLERATED:
        raise ValueError(
            f"{what}: {seen:,} of these {len(found):,} inliers are ones that the model was trained on: name inliers"
            " that are new to it"
        )


def trained_on(artifact: Artifact) -> Inliers | None:
    """Return the inliers of a run as they lie at their path now; None if they cannot be loaded or take an encoder."""
    if artifact.config.embed is not None:
        return None
    source = read_recorded(artifact.directory, artifact.provenance).source
    try:
        return load_inliers(artifact.config, shape=artifact.model.shape, recorded=Recorded(source=source))
    except (ValueError, FileNotFoundError):
        return None
