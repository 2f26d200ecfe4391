"""What every score finds and what it costs: the table in docs/notes/scores.md.

    python benchmarks/scores.py --train fashion-mnist --limit 5000 --ood mnist --ood kmnist --seeds 3

Fits one default `NegVAEDetector` for each seed, and scores inlier test images and each other set with every score.
AUROC is shown as mean (lowest to highest) over the seeds; for waic, the seeds are one ensemble. Cost is the time for
an image relative to "kl", the median of interleaved rounds on one machine in one process.
"""

import argparse
import statistics
import time
from pathlib import Path

import numpy as np
import torch

from negvae import NegVAEDetector, load_images
from negvae.files import write_text
from negvae.runs.provenance import provenance
from negvae.scoring import SCORES, detection_metrics

FEWER = {"likelihood_regret": 250, "iwae": 500}
"""Slow scores are measured on fewer images."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--train", default="fashion-mnist")
    parser.add_argument("--ood", action="append", required=True)
    parser.add_argument("--limit", type=int, default=5000, help="training images, held-out ones included")
    parser.add_argument("--count", type=int, default=1000, help="test images of each set")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=3, help="of the timing")
    parser.add_argument("--keep", type=Path, help="folder for the fitted detectors; those there are used again")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/scores.md"))
    options = parser.parse_args()
    if options.seeds < 2:
        parser.error("--seeds must be at least 2: waic takes an ensemble")

    images = load_images(options.train, limit=options.limit).images
    detectors = [fitted(images, seed, options.keep) for seed in range(options.seeds)]
    members = tuple(detector.model_ for detector in detectors)
    scorers = [
        detector._artifact.scorer(ensemble=(*members[:index], *members[index + 1 :]))
        for index, detector in enumerate(detectors)
    ]
    sets = {name: torch.from_numpy(load_images(name, "test", limit=options.count).images) for name in options.ood}
    inliers = torch.from_numpy(load_images(options.train, "test", limit=options.count).images)

    alarms = [float((detector.predict(inliers) == -1).mean()) for detector in detectors]
    found: dict[str, dict[str, list[float]]] = {name: {ood: [] for ood in sets} for name in SCORES}
    for name in SCORES:
        count = FEWER.get(name, options.count)
        for scorer in scorers if name != "waic" else scorers[:1]:
            low = scorer(inliers[:count], [name])[name]
            for ood, others in sets.items():
                found[name][ood].append(detection_metrics(low, scorer(others[:count], [name])[name]).auroc)
        print(name, found[name], flush=True)
    costs = relative_costs(scorers[0], inliers, options.rounds)
    write_text(options.out, table(options, found, costs, alarms, detectors[0]))
    print(options.out.read_text())


def fitted(images: np.ndarray, seed: int, keep: Path | None) -> NegVAEDetector:
    place = None if keep is None else keep / f"seed{seed}"
    if place is not None and place.exists():
        return NegVAEDetector.load(place)
    detector = NegVAEDetector(random_state=seed).fit(images)
    if place is not None:
        place.parent.mkdir(parents=True, exist_ok=True)
        detector.save(place)
    return detector


def relative_costs(scorer, images: torch.Tensor, rounds: int) -> dict[str, float]:
    """Seconds for an image divided by those of "kl"."""
    counts = {name: 64 if name in FEWER else 500 for name in SCORES}
    seconds: dict[str, list[float]] = {name: [] for name in SCORES}
    for turn in range(rounds + 1):
        for name, count in counts.items():
            started = time.perf_counter()
            scorer(images[:count], [name])
            if turn:  # the first round warms up
                seconds[name].append((time.perf_counter() - started) / count)
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    return {name: value / medians["kl"] for name, value in medians.items()}


def cell(values: list[float]) -> str:
    return f"{np.mean(values):.3f}" + (f" ({min(values):.3f}-{max(values):.3f})" if len(values) > 1 else "")


def table(options, found, costs, alarms, detector) -> str:
    facts = provenance(detector.config_)
    lines = [
        "| score | " + " | ".join(f"AUROC {ood}" for ood in options.ood) + " | cost, kl = 1 |",
        "|---|" + "---|" * len(options.ood) + "--:|",
    ]
    for name in SCORES:
        cells = [cell(values) for values in found[name].values()]
        lines.append(f"| {name} | {' | '.join(cells)} | {costs[name]:.3g} |")
    config = detector.config_
    lines += [
        "",
        f"Trained on the first {options.limit:,} images of {options.train} ({detector.calibration_.size:,} of them held"
        f" out), network {config.network}, {config.likelihood}, negatives {config.negatives}, {config.epochs} epochs of"
        f" batch {config.batch_size}; {options.count:,} test images of each set"
        f" ({', '.join(f'{count} for {name}' for name, count in FEWER.items())}); {options.seeds} seeds: mean"
        " (lowest to highest); waic: the seeds as one ensemble. False alarms among the inlier test images at target FPR"
        f" {detector.calibration_.target_fpr:g}: {', '.join(f'{alarm:.3f}' for alarm in alarms)}."
        f" {facts['device']}, torch {facts['torch']}, {facts['precision']}, commit {facts['commit']}.",
        "",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
