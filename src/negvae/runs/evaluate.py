"""Evaluate a run against other sets, and show the result."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table
from rich.text import Text
from torch import Tensor

from negvae.data import is_path
from negvae.data.embedding import Encoder
from negvae.device import own_state
from negvae.files import require_writable, write_text
from negvae.messages import Log, silent, visible
from negvae.negatives import auxiliary_names
from negvae.runs.artifact import Artifact, load_artifact
from negvae.runs.embed import FeatureRows, columns_of, encoder_of, read_feature_rows
from negvae.runs.folders import FittedSet, load_fitted
from negvae.runs.provenance import data_hashes, provenance
from negvae.runs.recorded import MEMORY, read_recorded
from negvae.runs.seen import refuse_inliers_of, refuse_seen, refuse_test_split
from negvae.runs.sets import load_as_stored, load_test_photos, load_test_set
from negvae.scoring.comparison import Comparison, compare
from negvae.scoring.table import SCORES, names_of
from negvae.scoring.tiles import UNCALIBRATED

FILE = "evaluation.json"
_DECISION = "decision"
"""Name of the decision score as it is calibrated, where the figures are of another."""


@own_state()
def evaluate_run(
    directory: Path,
    ood: Sequence[str],
    *,
    data: str | None = None,
    samples: int = 1,
    precision: str | None = None,
    device: str = "auto",
    limit: int | None = None,
    embed: Path | str | None = None,
    log: Log = silent,
) -> dict[str, Any]:
    """Compare a run's inlier test set with other sets and write evaluation.json.

    Args:
        directory: folder of the run.
        ood: out-of-distribution sets, by name or path; their test splits are used.
        data: inliers that the model was not trained on, by name (test split) or path; None for the test split of the
            run's data set. For a model of rows of features, `ood` and `data` are files of rows, or, if it was trained
            with an encoder, images; `data` must then be given, except for a named set of images.
        samples: number of posterior samples for "bpd"; alarms are by one, as the calibration.
        precision: precision of all scores: "float32", "bfloat16" or "int8"; None for the calibration's. In int8, scores
            of a network whose decoder has none are computed in float32.
        device: device to compute on: "auto", "cpu", "cuda" or "cuda:N".
        limit: maximum number of images of each set; the first ones are used. None for all.
        embed: present path of the encoder that the model was trained with; None for the path at the time of training.
        log: called with each line that the user should see.

    Returns:
        What was written: {"train", "negatives", "likelihood", "epochs", "finished", "score", "target_fpr", "rows",
        "data", "provenance"}. "score" is the decision score, or "kl" if the run is not calibrated. Each row has
        `served_as_negatives`, which is true if the set was among the training negatives, so that its figures say
        nothing about unseen data; if the run is calibrated, also `alarms_test` and `alarms_ood`, the shares called
        outliers.

    Raises:
        FileNotFoundError: if the run or a set does not exist.
        OSError: if evaluation.json cannot be written, which is found out first.
        ValueError: if the shape of a set differs from the model's, a set is the inliers themselves, or it cannot be
            determined which of the inliers are new to the model.
    """
    if samples < 1:
        raise ValueError(f"samples is {samples}: it must be at least 1")
    data, ood = data and os.path.expanduser(data), [os.path.expanduser(name) for name in ood]  # as in config.data
    artifact = load_artifact(directory, device)
    require_writable(directory / FILE)
    config, calibration = artifact.config, artifact.calibration
    if not artifact.finished:
        log(f"{directory}: training was stopped after {artifact.epochs} of {config.epochs} epochs")
    encoder = encoder_of(artifact, embed)
    load_set = partial(_inliers, encoder=encoder) if config.images is None else _inlier_photos
    load_other = partial(_outliers, encoder=encoder) if config.images is None else _outlier_photos
    test = load_set(artifact, data, limit, log)
    outliers = {name: load_other(name, artifact, limit, log) for name in dict.fromkeys(ood)}
    rule = (calibration.tiles if calibration else "") or UNCALIBRATED
    scorer = artifact.scorer(precision)
    decides = calibration.score if calibration else "kl"
    # Decisions are taken by one sample, as in the calibration; with more asked for, those figures are kept apart.
    judged = _DECISION if decides == "bpd" and samples > 1 else decides
    comparisons = compare(
        artifact.model,
        test.inputs,
        {name: images.inputs for name, images in outliers.items()},
        samples=samples,
        precision=scorer.precision,
        quantized=scorer.quantized,
        seed=config.seed,
        further=(lambda images: {judged: scorer(images, [decides])[decides]}) if calibration else None,
        rule=rule if config.images is not None and config.images.tiled else None,
        owners=[each.owners for each in (test, *outliers.values())],
    )
    content = {
        "train": config.data,
        "negatives": config.negatives,
        "likelihood": config.likelihood,
        "epochs": artifact.epochs,
        "finished": artifact.finished,
        "score": decides,
        "target_fpr": calibration.target_fpr if calibration else None,
        "rows": [_row(each, artifact, outliers[each.ood].sha256, judged) for each in comparisons],
        "data": {"test": test.description, **{f"ood {name}": each.description for name, each in outliers.items()}},
        "provenance": {**provenance(config, scorer), "trained": artifact.provenance, "run": config.to_dict()},
    }
    write_text(directory / FILE, json.dumps(content, indent=1))
    return content


def _inliers(
    artifact: Artifact, data: str | None, limit: int | None, log: Log, *, encoder: Encoder | None
) -> FittedSet:
    """Load the inliers to evaluate on."""
    if artifact.model.takes_features:
        rows = _new_rows(artifact, data, encoder, limit)
        log(f"inliers: {rows.description}")
        return _of_rows(rows)
    shape = artifact.model.shape
    recorded = read_recorded(artifact.directory, artifact.provenance)
    if data is None or (data == artifact.config.data and recorded.source != MEMORY):
        test = load_test_set(artifact.config, shape=shape, limit=limit, recorded=recorded, log=log)
        refuse_test_split(artifact, test.inputs)
    else:
        test = load_as_stored(data, "test", shape=shape, limit=limit, max_broken=artifact.config.max_broken, log=log)
        _refuse_shape(f"--data {data}", test, artifact)
        refuse_inliers_of(artifact, test.inputs, test.sha256, f"--data {data}")
    log(f"inliers: {test.description}")
    return test


def _inlier_photos(artifact: Artifact, data: str | None, limit: int | None, log: Log) -> FittedSet:
    """Load the inliers to evaluate on, of a run whose data is a folder of photos."""
    config, recorded = artifact.config, read_recorded(artifact.directory, artifact.provenance)
    assert config.images is not None
    if data is None or (data == config.data and recorded.source != MEMORY):
        test = load_test_photos(config, limit=limit, recorded=recorded, log=log)
        refuse_test_split(artifact, test.inputs)
    else:
        test = load_fitted(data, "test", config.images, limit=limit, max_broken=config.max_broken, log=log)
        refuse_inliers_of(artifact, test.inputs, test.sha256, f"--data {data}")
    log(f"inliers: {test.description}")
    return test


def _outlier_photos(name: str, artifact: Artifact, limit: int | None, log: Log) -> FittedSet:
    """Load a set that the model was not trained on, decoded and fitted as the run's own images."""
    config = artifact.config
    assert config.images is not None
    if name == config.data:
        raise ValueError(f"--ood {name} is what the model was trained on: name another set")
    images = load_fitted(name, "test", config.images, limit=limit, max_broken=config.max_broken, log=log)
    _refuse_own(name, images.inputs, images.sha256, artifact)
    log(f"out-of-distribution: {images.description}")
    return images


def _of_rows(rows: FeatureRows) -> FittedSet:
    """Return rows of features as a set of the model's inputs."""
    return FittedSet(rows.rows, np.arange(len(rows.rows)), rows.description, rows.sha256)


def _new_rows(artifact: Artifact, data: str | None, encoder: Encoder | None, limit: int | None) -> FeatureRows:
    """Load inliers that a model of rows was not trained on: those that are named, or the test split of a named set."""
    own = artifact.config.data
    if data is None and (encoder is None or is_path(own)):
        raise ValueError(
            f"{artifact.directory} was trained on rows of all of {own}: name inliers that are new to it with --data"
        )
    found = _feature_rows("--data", own if data is None else data, artifact, encoder, limit)
    refuse_inliers_of(artifact, found.rows, None, f"--data {data}")  # all of them together are compared above
    return found


def _feature_rows(what: str, data: str, artifact: Artifact, encoder: Encoder | None, limit: int | None) -> FeatureRows:
    """Load rows of features in the form of the model, and refuse those that it was trained on."""
    found = read_feature_rows(
        data, encoder, columns=columns_of(artifact), limit=limit, split="test", max_broken=artifact.config.max_broken
    )
    _refuse_own(data, found.rows, found.sha256, artifact, what)
    if (width := found.rows.shape[1]) != artifact.model.shape[0]:
        raise ValueError(f"{what} {data} has rows of {width} numbers, the model takes {artifact.model.shape[0]}")
    return found


def _outliers(name: str, artifact: Artifact, limit: int | None, log: Log, *, encoder: Encoder | None) -> FittedSet:
    """Load the test split of a set that the model was not trained on, in the model's shape."""
    if name == artifact.config.data:
        raise ValueError(f"--ood {name} is what the model was trained on: name another set")
    if artifact.model.takes_features:
        rows = _feature_rows("--ood", name, artifact, encoder, limit)
        log(f"out-of-distribution: {rows.description}")
        return _of_rows(rows)
    shape, most = artifact.model.shape, artifact.config.max_broken
    images = load_as_stored(name, "test", limit=limit, shape=shape, max_broken=most, log=log)
    _refuse_shape(f"--ood {name}", images, artifact)
    _refuse_own(name, images.inputs, images.sha256, artifact)
    log(f"out-of-distribution: {images.description}")
    return images


def _refuse_own(name: str, found: Tensor, sha256: str, artifact: Artifact, what: str = "--ood") -> None:
    """Refuse the run's own data, whatever its path is now."""
    recorded = read_recorded(artifact.directory, artifact.provenance)
    if sha256 == recorded.sha256:
        raise ValueError(f"{what} {name} is what the model was trained on: name another set")
    if what == "--ood":  # other inliers are compared where they are read
        refuse_seen(found, recorded.trained, f"{what} {name}", "another set")


def _refuse_shape(what: str, images: FittedSet, artifact: Artifact) -> None:
    if (shape := tuple(images.inputs.shape[1:])) != artifact.model.shape:
        given, wanted = ("x".join(map(str, s)) for s in (shape, artifact.model.shape))
        raise ValueError(f"{what} has {given} images, the model takes {wanted} (C x H x W)")


def _row(comparison: Comparison, artifact: Artifact, sha256: str, judged: str) -> dict[str, Any]:
    """Return the figures of one set, with the shares that the run's decision calls outliers by the scores `judged`."""
    named = comparison.ood in auxiliary_names(artifact.config.negatives)
    hashes = data_hashes(artifact.provenance)
    served = named or sha256 in [each for role, each in hashes.items() if role.startswith("negatives ")]
    shown = {name: metrics for name, metrics in comparison.detection.items() if name != _DECISION}
    values = {**replace(comparison, detection=shown).row(), "served_as_negatives": served}
    if (calibration := artifact.calibration) is not None:
        for part, scores in (("test", comparison.inlier_scores), ("ood", comparison.ood_scores)):
            alarms = calibration.is_outlier(scores[judged].numpy())
            values[f"alarms_{part}"] = float(alarms.mean())
    return values


def evaluation_table(content: dict[str, Any]) -> Table:
    """Return the rows of `evaluate_run` as a table for a terminal."""
    decides, rows = content["score"], content["rows"]
    shown = list(dict.fromkeys([decides, *names_of(lambda score: score.evaluated)]))
    calibrated = bool(rows) and "alarms_test" in rows[0]
    caption = f"AUC with 95% interval; FPR95: of {decides}, where 95% of the outliers are found"
    if calibrated:
        caption += "; alarms: share called outliers"
        caption += "" if content["target_fpr"] is None else f" at target FPR {content['target_fpr']:g}"
    title = f"trained on {content['train']}, negatives {content['negatives']}, {content['likelihood']}"
    table = Table(title=Text(visible(title)), caption=caption)  # brackets in names are no markup
    table.add_column("OOD set", overflow="fold")
    alarms = ("alarms test", "alarms OOD") if calibrated else ()
    areas = [f"AUC {SCORES[score].label}" for score in shown]
    for title in (*areas, "FPR95", *alarms, "nats/dim test", "nats/dim OOD"):
        table.add_column(title, justify="right", overflow="fold")
    for row in rows:
        name = row["ood"] + (" (served as negatives)" if row["served_as_negatives"] else "")
        figures = [with_interval(row[f"auc_{score}"], row[f"auc_{score}_ci"]) for score in shown]
        figures.append(f"{row['metrics'][decides]['fpr_at_95_tpr']:.3f}")
        figures += [f"{row[f'alarms_{part}']:.3f}" for part in ("test", "ood") if calibrated]
        figures += [f"{row[f'nats_per_dim_{part}']:.4g}" for part in ("test", "ood")]
        table.add_row(Text(visible(name)), *figures)
    return table


def with_interval(value: float, interval: Sequence[float]) -> str:
    """Format an AUC and its interval.

    >>> with_interval(0.98765, (0.98, 0.99))
    '0.988 (0.980-0.990)'
    """
    return f"{value:.3f} ({interval[0]:.3f}-{interval[1]:.3f})"
