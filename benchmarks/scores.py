"""What every score of images finds and what it costs: the table in docs/notes/scores.md.

    python benchmarks/scores.py [--page docs/notes/scores.md]

Fits one default `NegVAEDetector` for each seed to the first images of Fashion-MNIST, and scores inlier test images and
three other sets with every score that needs neither rows of features nor heat maps. AUROC is shown as mean (lowest to
highest) over the seeds; for waic, the seeds are one ensemble. Cost is the time for an image relative to "kl", the
median of rounds in turn in one process. Results stand in benchmarks/results/scores.json; fitted detectors are kept in
runs/scores, from which a run that was stopped goes on.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

import numpy as np
import torch
from torch import Tensor

from benchmarks.rows import insert
from negvae import NegVAEDetector, load_images
from negvae.files import write_text
from negvae.runs.provenance import provenance
from negvae.scoring import SCORES, Scorer, detection_metrics

RESULTS = Path(__file__).parent / "results" / "scores.json"
KEPT = Path("runs") / "scores"
INLIERS, OTHERS = "fashion-mnist", ("mnist", "kmnist", "emnist-letters")
TRAINING, TESTED, SEEDS = 5000, 1000, 3
"""Number of training images, held-out ones included; of test images of each set; and of seeds."""
FEWER = {"likelihood_regret": 250, "iwae": 500}
"""Numbers of test images of scores that are slow."""
ROUNDS = 3
"""Rounds of the timing, after one that warms up."""


def fitted(seed: int) -> NegVAEDetector:
    """Return the detector of a seed, from its folder if it is there."""
    place = KEPT / f"seed{seed}"
    if not place.exists():
        place.parent.mkdir(parents=True, exist_ok=True)
        NegVAEDetector(random_state=seed).fit(load_images(INLIERS, limit=TRAINING).images).save(place)
    return NegVAEDetector.load(place)


def measure(detectors: list[NegVAEDetector]) -> dict[str, Any]:
    """Return AUROC of every score by set and seed, the costs, and the shares of inliers that are called outliers."""
    members = tuple(detector.model_ for detector in detectors)
    scorers = [
        detector._artifact.scorer(ensemble=(*members[:seed], *members[seed + 1 :]))
        for seed, detector in enumerate(detectors)
    ]
    names = [name for name in SCORES if applies(scorers[0], name)]
    inliers = torch.from_numpy(load_images(INLIERS, "test", limit=TESTED).images)
    sets = {name: torch.from_numpy(load_images(name, "test", limit=TESTED).images) for name in OTHERS}
    found: dict[str, dict[str, list[float]]] = {name: {other: [] for other in sets} for name in names}
    for name in names:
        count = FEWER.get(name, TESTED)
        for scorer in scorers if name != "waic" else scorers[:1]:
            low = scorer(inliers[:count], [name])[name]
            for other, images in sets.items():
                area = detection_metrics(low, scorer(images[:count], [name])[name]).auroc
                found[name][other].append(round(area, 5))
        print(name, found[name], flush=True)
    config = detectors[0].config_
    return {
        "auroc": found,
        "cost": relative_costs(scorers[0], inliers, names),
        "false_alarms": [float((detector.predict(inliers) == -1).mean()) for detector in detectors],
        "combined_of": list(detectors[0].calibration_.reference.components),
        "training": {"images": TRAINING, "held_out": detectors[0].calibration_.size},
        "config": config.to_dict(),
        "provenance": provenance(config),
    }


def applies(scorer: Scorer, name: str) -> bool:
    """Return whether a score is one of these models'."""
    try:
        scorer.check([name])
    except ValueError:
        return False
    return name != "neighbors"


def relative_costs(scorer: Scorer, images: Tensor, names: list[str]) -> dict[str, float]:
    """Return the seconds for an image divided by those of "kl"."""
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for turn in range(ROUNDS + 1):
        for name in names:
            count = 64 if name in FEWER else 500
            started = time.perf_counter()
            scorer(images[:count], [name])
            if turn:
                seconds[name].append((time.perf_counter() - started) / count)
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    return {name: round(value / medians["kl"], 3) for name, value in medians.items()}


def table(result: dict[str, Any]) -> str:
    """Return the results as Markdown."""
    lines = [
        "| score | " + " | ".join(f"AUROC {other}" for other in OTHERS) + " | cost, kl = 1 |",
        "|---|" + "--:|" * len(OTHERS) + "--:|",
    ]
    for name, areas in result["auroc"].items():
        cells = " | ".join(_cell(areas[other]) for other in OTHERS)
        lines.append(f"| {name} | {cells} | {result['cost'][name]:.3g} |")
    config, facts, training = result["config"], result["provenance"], result["training"]
    alarms = ", ".join(f"{alarm:.3f}" for alarm in result["false_alarms"])
    fewer = ", ".join(f"{count} for {name}" for name, count in FEWER.items())
    lines += [
        "",
        f"Trained on the first {training['images']:,} images of {INLIERS} ({training['held_out']:,} of them held out),"
        f" network {config['network']}, transformations {config['transformations']}, {config['epochs']} epochs of batch"
        f" {config['batch_size']}; {TESTED:,} test images of each set ({fewer}); {SEEDS} seeds: mean (lowest to"
        f" highest); waic: the seeds as one ensemble. combined is made of {', '.join(result['combined_of'])}. False"
        f" alarms among the inlier test images, of 0.05 asked for: {alarms}. {facts['device']}, torch {facts['torch']},"
        f" {facts['precision']}, commit {facts['commit']}.",
    ]
    return "\n".join(lines)


def _cell(values: list[float]) -> str:
    spread = f" ({min(values):.3f}-{max(values):.3f})" if len(values) > 1 else ""
    return f"{np.mean(values):.3f}{spread}"


def main() -> None:
    """Measure what has no results yet, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--page", type=Path, help="page to write the table to")
    chosen = parser.parse_args()
    if not RESULTS.exists():
        write_text(RESULTS, json.dumps(measure([fitted(seed) for seed in range(SEEDS)]), indent=1) + "\n")
    text = table(json.loads(RESULTS.read_text(encoding="utf-8")))
    print(text)
    if chosen.page:
        insert(chosen.page, text, "scores", "python benchmarks/scores.py")


if __name__ == "__main__":
    main()
