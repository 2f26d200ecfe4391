"""The runs of the table `one-class`: resumable, one after the other, each leaving one line in the table of results."""

from __future__ import annotations

import io
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from negvae.data import ImageSet, list_sets, load
from negvae.files import locked
from negvae.messages import with_type
from negvae.negatives import build_source
from negvae.paper.one_class import (
    BEFORE,
    NEAR,
    RESAMPLED,
    RULES,
    SCORES,
    TRANSFORMED,
    OneClassProfile,
    Run,
    finished,
    table_of,
    without,
)
from negvae.paper.results import order_statistics
from negvae.paper.runner import set_aside_other_run
from negvae.paper.store import Result
from negvae.paper.unsupervised_runs import TEST_IMAGES, against_proxies, evenly, fitted
from negvae.runs.artifact import CONFIG, write_config
from negvae.runs.calibrate import calibrated
from negvae.runs.division import hold_out
from negvae.runs.provenance import provenance
from negvae.runs.sets import describe
from negvae.scoring.calibration import TARGET_FPR, Calibration
from negvae.scoring.combination import ADDED, combine, ratio
from negvae.scoring.metrics import auroc
from negvae.scoring.scorer import Scorer
from negvae.training.loop import TrainingResult, train
from negvae.training.reporting import OnProgress
from negvae.version import source_commit

OTHER_CLASSES = "other classes"
"""What a run on one class is tested against."""


@dataclass(frozen=True)
class OneClassOutcome:
    """What a command did.

    Attributes:
        done: number of runs with a result, earlier ones included.
        left: number of runs without a result.
        stopped_by: "finished", "budget", or a signal's name.
        failed: messages of runs that ended with an error, by name.
    """

    done: int
    left: int
    stopped_by: str
    failed: Mapping[str, str] = field(default_factory=dict)


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
        The outcome; SIGINT and SIGTERM end the command early, with a checkpoint. A run that ends with an error leaves
        the others as they are.

    Raises:
        ValueError: if a result is damaged.
    """
    deadline, stopped = None if budget is None else time.monotonic() + budget, "finished"
    commit, failed = source_commit(), dict[str, str]()
    for run in runs:
        if deadline is not None and time.monotonic() >= deadline:
            stopped = "budget"
            break
        with locked(work / "one-class" / f"{run.name}.lock") as mine:
            if not mine:
                continue
            if (content := finished(run, profile, results)) is not None:
                if not (further := _further_sets(run, content)):
                    continue
                log(f"{run.name}: once more, since {', '.join(further)} is at hand now")
            left = None if deadline is None else max(deadline - time.monotonic(), 1e-3)
            try:
                content, ending = _carry_out(
                    run, profile, work / "one-class" / run.name, device, left, log, on_progress
                )
            except Exception as error:  # one run's missing data or memory must not end a night of others
                failed[run.name] = with_type(error)
                continue
            if content is None:
                stopped = ending
                break
            content["provenance"]["commit"] = commit
            table_of(profile, results).put(run.name, content)
            areas = content["evaluation"].values() if run.label is None else [content["evaluation"]]
            figures = ", ".join(f"{one['auc_combined']:.3f}" for one in areas)
            log(f"{run.name}: combined {figures}, {content['provenance']['train_seconds']:.0f} s")
    done = sum(finished(run, profile, results) is not None for run in runs)
    return OneClassOutcome(done, len(runs) - done, stopped, failed)


def _further_sets(run: Run, content: Result) -> list[str]:
    """Return the sets that a whole set is to be tested against, and that were not at hand when its result was made."""
    missing = [] if run.label is not None else [name for name in run.others if name not in content["evaluation"]]
    states = {one.name: one.state for one in list_sets() if one.split == "test"} if missing else {}
    return [name for name in missing if states.get(name) not in ("missing", "damaged")]


def _carry_out(
    run: Run, profile: OneClassProfile, directory: Path, device: str, budget: float | None,
    log: Callable[[str], None], on_progress: OnProgress | None,
) -> tuple[Result | None, str]:  # fmt: skip
    """Train and test one run; return its result, None if it was stopped, and how training ended."""
    sets = [load(run.data, split, disjoint_from_train=run.label is None, log=log) for split in ("train", "test")]
    images = _inliers(sets[0], run, profile.limit)
    config = run.config(profile, len(images), device)
    training, held_out = hold_out(images, config.calibration, config.seed)
    source = build_source(config.negatives, lambda name: images)
    log(f"{run.name}: {len(training):,} images to train on, {config.epochs} epochs")
    set_aside_other_run(directory, config, log)
    if not (directory / CONFIG).exists():
        write_config(directory, config, sets[0].shape, provenance(config))
    result = train(
        config, training, source, directory=directory, resume=True, budget=budget, on_progress=on_progress
    )  # fmt: skip
    if not result.progress.finished:
        return None, result.stopped_by
    lines: list[str] = []
    calibration = calibrated(config, result, training, held_out, target_fpr=TARGET_FPR, log=lines.append)
    inliers, (outliers, further) = _inliers(sets[1], run, profile.limit), _outliers(sets[1], run, profile.limit, log)
    sets += further
    content: Result = {
        "run": run.name, "profile": profile.name, "seed": run.seed, "status": "finished", "images": len(images),
        "config": config.to_dict(),
        **_measured(result, calibration, inliers, outliers, held_out if run.label is None else None),
        "judgement": " ".join(lines), "data": {f"{one.name} {one.split}": describe(one) for one in sets},
        "notes": list(dict.fromkeys(note for one in sets for note in one.notes)),
        "provenance": {**provenance(config), "train_seconds": round(result.progress.seconds, 1)},
    }  # fmt: skip
    for line in lines:
        log(f"{run.name}: {line}")
    return content, result.stopped_by


def _measured(
    result: TrainingResult,
    calibration: Calibration,
    inliers: Tensor,
    outliers: Mapping[str, Tensor],
    held_out: Tensor | None,
) -> Result:
    """Return AUROC with intervals of every score, order statistics of both sides, and the rate of false alarms.

    Of whole sets, of which the held-out inliers are given, the first two are by set of outliers.
    """
    references = calibration.reference
    scorer, counted = Scorer(result.model, references), {name for group in ADDED for name in group}
    names = [name for name in SCORES if result.model.shifted is not None or name not in counted]

    def scored(images: Tensor) -> dict[str, NDArray[np.float32]]:
        scores = dict(scorer(images, names))
        ratios = {
            name: ratio(name, torch.from_numpy(scores[name]), references.scales[name].tolist())
            for name in references.components
        }
        plain = {name: values for name, values in ratios.items() if name not in counted}
        scores |= {BEFORE: combine(plain).numpy()}
        scores |= {name: combine(ratios, summed=summed).numpy() for name, summed in RULES.items()}
        for left_out in ratios if len(plain) < len(ratios) else ():
            kept = {name: values for name, values in ratios.items() if name != left_out}
            scores[without(left_out)] = combine(kept, summed=references.summed).numpy()
        return scores

    usual = scored(inliers)
    areas: dict[str, Result] = {} if held_out is None else {TRANSFORMED: _of_transformed(held_out, scored)}
    ordered: dict[str, Result] = {}
    for ood, images in outliers.items():
        scores = scored(images)
        areas[ood] = {"count": len(images)}
        for name in scores:
            area, interval = auroc(usual[name], scores[name])
            areas[ood] |= {f"auc_{name}": area, f"auc_{name}_ci": list(interval)}
        ordered[ood] = {name: {"inliers": order_statistics(usual[name]), "ood": order_statistics(scores[name])}
                           for name in (*names, BEFORE)}  # fmt: skip
    alarms = float(calibration.is_outlier(usual[calibration.score]).mean())
    if OTHER_CLASSES in outliers:
        areas, ordered = areas[OTHER_CLASSES], ordered[OTHER_CLASSES]
    return {"evaluation": areas, "quantiles": ordered, "false_alarms": alarms}


def _of_transformed(held_out: Tensor, scored: Callable[[Tensor], dict[str, NDArray[np.float32]]]) -> Result:
    """Return the mean AUROC of every score against transformed held-out inliers, over the transformations."""
    areas = list(against_proxies(held_out, scored).values())
    return {f"auc_{name}": round(statistics.mean(one[name] for one in areas), 5) for name in areas[0]}


def _labels(images: ImageSet) -> NDArray[np.int64]:
    if images.labels is None:
        raise ValueError(f"{images.name} {images.split} has no labels: one class cannot be taken out of it")
    return images.labels


def _inliers(images: ImageSet, run: Run, limit: int | None) -> Tensor:
    if run.label is not None:
        return _tensor(images.images[_labels(images) == run.label][:limit])
    chosen = torch.from_numpy(images.images)
    most = min(limit or len(chosen), len(chosen) if images.split == "train" else TEST_IMAGES)
    return evenly(chosen, most)


def _outliers(
    test: ImageSet, run: Run, limit: int | None, log: Callable[[str], None]
) -> tuple[dict[str, Tensor], list[ImageSet]]:
    """Return the images that a run is tested against by name, and the further sets that they come from."""
    if run.label is not None:
        return {OTHER_CLASSES: _tensor(test.images[_labels(test) != run.label][:limit])}, []
    outliers, sets = {}, []
    for name in run.others:
        try:
            one = fitted(load(name, "test", shape=test.shape, log=log), test.shape)
        except FileNotFoundError as error:
            if name not in NEAR.get(run.data, ()):
                raise
            log(f"{run.name}: without {name}, which is not at hand ({error})")
            continue
        sets.append(one)
        outliers[name] = evenly(torch.from_numpy(one.images), min(limit or TEST_IMAGES, TEST_IMAGES))
    for name, jpeg in RESAMPLED.get(run.data, {}).items():
        outliers[name] = resampled(_inliers(test, run, limit), jpeg=jpeg)
    return outliers, sets


def resampled(images: Tensor, *, jpeg: bool) -> Tensor:
    """Enlarge images to twice the side and reduce them again, as those of a set that was made so from other images.

    Args:
        images: images, uint8, N x C x H x W.
        jpeg: whether the enlarged images are kept as JPEG of quality 90 in between.

    Returns:
        Images of the same shape: enlarged by bicubic interpolation, and reduced by the mean of each 2 x 2 pixels.
    """
    found = []
    for pixels in images.permute(0, 2, 3, 1).numpy():
        height, width = pixels.shape[:2]
        image = Image.fromarray(pixels.squeeze()).resize((2 * width, 2 * height), Image.Resampling.BICUBIC)
        if jpeg:
            stream = io.BytesIO()
            image.save(stream, "JPEG", quality=90)
            image = Image.open(stream)
        found.append(np.asarray(image.reduce(2)).reshape(pixels.shape))
    return torch.from_numpy(np.stack(found)).permute(0, 3, 1, 2).contiguous()


def _tensor(images: NDArray[np.uint8]) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(images))
