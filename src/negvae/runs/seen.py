"""The check that inliers a person names, to calibrate or evaluate with, are not those that the model was trained on."""

from __future__ import annotations

from torch import Tensor

from negvae.runs.artifact import Artifact
from negvae.runs.fingerprints import Fingerprints
from negvae.runs.recorded import Recorded, read_recorded
from negvae.runs.sets import load_inliers

TOLERATED = 0.1
"""So much larger may the share of named inliers that equal a training image be than that of the held-out ones."""


def refuse_seen(
    found: Tensor, trained: Fingerprints | None, what: str, wanted: str = "inliers that are new to it"
) -> None:
    """Refuse inliers of which many are, number by number, ones that were trained on, whatever their files are called.

    A few are usual: many sets hold some image twice. Where the run held out inliers, as many as among them are usual.

    Args:
        found: inliers that were named, as the model takes them, N x C x H x W.
        trained: what is kept of the inliers that were trained on; None if nothing is, and nothing can be compared.
        what: what was named, in the message.
        wanted: what should have been named, in the message.

    Raises:
        ValueError: if more than usual were trained on.
    """
    if trained is None:
        return
    share = trained.share_of(found)
    if share > trained.repeats + TOLERATED:
        about = "" if trained.whole else "about "
        raise ValueError(
            f"{what}: {about}{round(share * len(found)):,} of these {len(found):,} are inliers that the model was"
            f" trained on: name {wanted}"
        )


def refuse_test_split(artifact: Artifact, found: Tensor) -> None:
    """Refuse the test split of a run's own data if many of its images were trained on, as where the splits overlap.

    Args:
        artifact: the run.
        found: the test split as the model takes it, N x C x H x W.

    Raises:
        ValueError: if more than usual were trained on (`refuse_seen`).
    """
    trained = read_recorded(artifact.directory, artifact.provenance).trained
    refuse_seen(found, trained, f"the test split of {artifact.config.data}")


def caution(trained: Fingerprints) -> str:
    """Return a warning if many of the held-out inliers equal ones that are trained on, else an empty text.

    >>> import numpy as np
    >>> caution(Fingerprints(np.empty(0, np.uint64), repeats=0.25))[:67]
    '25% of the held-out inliers are copies of ones that are trained on:'
    """
    if trained.repeats <= TOLERATED:
        return ""
    return (
        f"{trained.repeats:.0%} of the held-out inliers are copies of ones that are trained on: unless new inliers are"
        " copies as often, false alarms will be more frequent than asked for; leave the copies out"
    )


def refuse_inliers_of(artifact: Artifact, found: Tensor, sha256: str | None, what: str) -> None:
    """Refuse inliers that are those of a run, held out or not, or of which many were trained on.

    Args:
        artifact: the run.
        found: inliers that were named, as the model takes them, N x C x H x W.
        sha256: SHA-256 of all of them as they are stored; None if it is not known.
        what: what was named, in the message.

    Raises:
        ValueError: if they are the run's own, or more than usual were trained on (`refuse_seen`).
    """
    recorded = read_recorded(artifact.directory, artifact.provenance)
    if sha256 is not None and sha256 == recorded.sha256:
        raise ValueError(f"{what} is what the model was trained on: name inliers that are new to it")
    refuse_seen(found, _trained_on(artifact, recorded), what)


def _trained_on(artifact: Artifact, recorded: Recorded) -> Fingerprints | None:
    """Return what a run's folder keeps of the inliers that it was trained on.

    A folder of an earlier version keeps nothing: then it is that of the inliers as they lie at their path now, and None
    if they cannot be loaded or take an encoder.
    """
    if recorded.trained is not None:
        return recorded.trained
    if artifact.config.embed is not None:
        return None
    try:
        inliers = load_inliers(artifact.config, shape=artifact.model.shape, recorded=Recorded(source=recorded.source))
    except (ValueError, FileNotFoundError):
        return None
    return Fingerprints.of(inliers.training, inliers.held_out)
