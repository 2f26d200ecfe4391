"""The runs of the table `one-class`: resumable, one after the other, each leaving one line in the table of results."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from negvae.data import ImageSet, load
from negvae.files import locked
from negvae.negatives import build_source
from negvae.paper.one_class import BEFORE, SCORES, OneClassProfile, Run, finished, table_of
from negvae.paper.results import order_statistics
from negvae.paper.store import Result
from negvae.runs.calibrate import calibrated
from negvae.runs.provenance import provenance
from negvae.runs.resolve import describe, hold_out
from negvae.scoring.calibration import TARGET_FPR, Calibration
from negvae.scoring.metrics import auroc
from negvae.scoring.references import References
from negvae.scoring.scorer import Scorer
from negvae.training.loop import TrainingResult, train
from negvae.training.reporting import OnProgress
from negvae.version import source_commit


@dataclass(frozen=True)
class OneClassOutcome:
    """What a command did.

    Attributes:
        done: number of runs with a result, earlier ones included.
        left: number of runs without a result.
        stopped_by: "finished", "budget", or a signal's name.
    """

    done: int
    left: int
    stopped_by: str


def run_one_class(
    runs: Sequence[Run],
    profile: OneClassProfile,
    results: Path,
    work: Path,
    *,
    device: str = "auto",
    budget: float | None = None,
    log: Callable[[str], None],
    on_progress: OnProgress | None = None,
) -> OneClassOutcome:
    """Carry out the runs that have no result yet and that no other command is at work on.

    Args:
        runs: runs in the order in which they are taken.
        profile: recipe of the runs.
        results: folder of result files.
        work: folder of checkpoints; a run that was stopped goes on from its own.
        device: device to train on.
        budget: seconds after which to stop with a checkpoint; None for no limit.
        log: called with a line for each run.
        on_progress: called with the progress of training.

    Returns:
        The outcome; SIGINT and SIGTERM end the command early, with a checkpoint.

    Raises:
        ValueError: if a data set has no labels, or a result is damaged.
    """
    deadline, stopped = None if budget is None else time.monotonic() + budget, "finished"
    commit = source_commit()
    for run in runs:
        if deadline is not None and time.monotonic() >= deadline:
            stopped = "budget"
            break
        with locked(work / "one-class" / f"{run.name}.lock") as mine:
            if not mine or finished(run, profile, results) is not None:
                continue
            left = None if deadline is None else max(deadline - time.monotonic(), 1e-3)
            content, ending = _carry_out(run, profile, work / "one-class" / run.name, device, left, log, on_progress)
            if content is None:
                stopped = ending
                break
            content["provenance"]["commit"] = commit
            table_of(profile, results).put(run.name, content)
            areas = content["evaluation"]
            log(f"{run.name}: combined {areas['auc_combined']:.3f}, {content['provenance']['train_seconds']:.0f} s")
    done = sum(finished(run, profile, results) is not None for run in runs)
    return OneClassOutcome(done, len(runs) - done, stopped)


def _carry_out(
    run: Run, profile: OneClassProfile, directory: Path, device: str, budget: float | None,
    log: Callable[[str], None], on_progress: OnProgress | None,
) -> tuple[Result | None, str]:  # fmt: skip
    """Train and test one run; return its result, None if it was stopped, and how training ended."""
    sets = [load(run.data, split, log=log) for split in ("train", "test")]
    images = _of_class(sets[0], run.label, profile.limit)
    config = run.config(profile, len(images), device)
    training, held_out = hold_out(images, config.calibration, config.seed)
    source = build_source(config.negatives, lambda name: images)
    log(f"{run.name}: {len(training):,} images to train on, {config.epochs} epochs")
    result = train(
        config, training, source, directory=directory, resume=True, budget=budget, on_progress=on_progress
    )  # fmt: skip
    if not result.progress.finished:
        return None, result.stopped_by
    lines: list[str] = []
    calibration = calibrated(config, result, training, held_out, target_fpr=TARGET_FPR, log=lines.append)
    inliers, outliers = _of_class(sets[1], run.label, profile.limit), _others(sets[1], run.label, profile.limit)
    content: Result = {
        "run": run.name, "profile": profile.name, "seed": run.seed, "status": "finished", "images": len(images),
        "config": config.to_dict(), **_measured(result, calibration, inliers, outliers),
        "judgement": " ".join(lines), "data": {split.split: describe(split) for split in sets},
        "notes": list(dict.fromkeys(note for one in sets for note in one.notes)),
        "provenance": {**provenance(config), "train_seconds": round(result.progress.seconds, 1)},
    }  # fmt: skip
    for line in lines:
        log(f"{run.name}: {line}")
    return content, result.stopped_by


def _measured(result: TrainingResult, calibration: Calibration, inliers: Tensor, outliers: Tensor) -> Result:
    """Return AUROC with intervals of every score, order statistics of both sides, and the rate of false alarms."""
    names = [name for name in SCORES if not name.startswith("transformations") or result.model.shifted is not None]
    scorer = Scorer(result.model, calibration.reference)
    sides = {side: dict(scorer(images, names)) for side, images in (("inliers", inliers), ("ood", outliers))}
    for scores in sides.values():
        scores[BEFORE] = _without_transformations(scores, calibration.reference)
    areas: dict[str, object] = {"count": len(outliers)}
    for name in sides["ood"]:
        area, interval = auroc(sides["inliers"][name], sides["ood"][name])
        areas |= {f"auc_{name}": area, f"auc_{name}_ci": list(interval)}
    statistics = {name: {side: order_statistics(scores[name]) for side, scores in sides.items()}
                  for name in sides["ood"]}  # fmt: skip
    alarms = float(calibration.is_outlier(sides["inliers"][calibration.score]).mean())
    return {"evaluation": areas, "quantiles": statistics, "false_alarms": alarms}


def _without_transformations(scores: Mapping[str, NDArray[np.float32]], references: References) -> NDArray[np.float32]:
    """Return "combined" (N) as it would be without transformations, made of the other scores and their scales."""
    ratios = []
    for name in references.components:
        if not name.startswith("transformations"):
            _, median, high, _ = references.scales[name]
            ratios.append((scores[name] - median) / max(high - median, 1e-9 * max(abs(median), 1e-9)))
    largest: NDArray[np.float32] = np.max(ratios, axis=0).astype(np.float32)
    return largest


def _labels(images: ImageSet) -> NDArray[np.int64]:
    if images.labels is None:
        raise ValueError(f"{images.name} {images.split} has no labels: one class cannot be taken out of it")
    return images.labels


def _of_class(images: ImageSet, label: int, limit: int | None) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(images.images[_labels(images) == label][:limit]))


def _others(images: ImageSet, label: int, limit: int | None) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(images.images[_labels(images) != label][:limit]))
