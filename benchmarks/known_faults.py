"""What known faults are worth as negatives, by recipe: one class as inliers, a few images of another as faults.

    python benchmarks/known_faults.py run [--seeds 1]             # resumable
    python benchmarks/known_faults.py show --page docs/negatives.md

2,000 images of one class are the inliers, and 300 of another class the faults that are known. AUROC of `combined`
against test images of that other class ("like them"), and against those of the other eight classes ("others"), which no
recipe has seen. Results are kept in results/known-faults.json, which is written after every fit.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).parent.parent))

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.rows import insert
from negvae import NegVAEDetector
from negvae.data import load
from negvae.files import write_text
from negvae.negatives import Augmented, Auxiliary, Mixture
from negvae.paper.unsupervised_show import spread
from negvae.runs.provenance import provenance
from negvae.scoring.metrics import auroc

RESULTS = Path(__file__).parent / "results" / "known-faults.json"
INLIERS, FAULTS, TEST = 2000, 300, 1000
Images = NDArray[np.uint8]


class Task(NamedTuple):
    """One class as inliers and another as faults.

    Attributes:
        data: name of the set.
        inliers: label of the inliers.
        faults: label of the faults.
        meaning: both in words.
    """

    data: str
    inliers: int
    faults: int
    meaning: str


TASKS = (
    Task("fashion-mnist", 0, 6, "Fashion-MNIST: T-shirts, faults are shirts"),
    Task("fashion-mnist", 8, 5, "Fashion-MNIST: bags, faults are sandals"),
    Task("cifar10", 3, 5, "CIFAR-10: cats, faults are dogs"),
)


def _half(faults: Images) -> Mixture:
    return Mixture((Auxiliary(torch.from_numpy(faults)), Augmented()), (0.5, 0.5))


RECIPES: dict[str, Callable[[Images], dict[str, Any]]] = {
    "preset `general`, faults": lambda faults: {"negatives": Auxiliary(torch.from_numpy(faults)), "preset": "general"},
    "preset `unsupervised`, faults": lambda faults: {
        "negatives": Auxiliary(torch.from_numpy(faults)), "preset": "unsupervised"
    },
    "preset `unsupervised`, half faults and half `augmented`": lambda faults: {
        "negatives": _half(faults), "preset": "unsupervised"
    },
    "preset `unsupervised`, no faults": lambda faults: {},
}  # fmt: skip


def draw(task: Task, seed: int) -> tuple[Images, Images, Images, Images, Images]:
    """Return inliers and faults to train on, and inliers, further faults and other outliers to test on."""
    random = np.random.default_rng(seed)
    (train, labels), (test, others) = ((part.images, np.asarray(part.labels)) for part in
                                       (load(task.data, "train"), load(task.data, "test")))  # fmt: skip
    inliers = random.permutation(train[labels == task.inliers])[:INLIERS]
    faults = random.permutation(train[labels == task.faults])[:FAULTS]
    unseen = random.permutation(test[(others != task.inliers) & (others != task.faults)])[:TEST]
    return inliers, faults, test[others == task.inliers], test[others == task.faults], unseen


def measure(task: Task, recipe: str, seed: int) -> dict[str, Any]:
    """Fit by one recipe, and compare test inliers with the faults' like and with others."""
    inliers, faults, test, like, unseen = draw(task, seed)
    started = time.perf_counter()
    detector = NegVAEDetector(device="cpu", random_state=seed, **RECIPES[recipe](faults)).fit(inliers)
    seconds = time.perf_counter() - started
    normal = detector.ood_score(test)
    return {
        "like": auroc(normal, detector.ood_score(like))[0], "others": auroc(normal, detector.ood_score(unseen))[0],
        "seconds": seconds, "provenance": provenance(detector.config_),
    }  # fmt: skip


def table(results: dict[str, dict[str, Any]]) -> str:
    """Return a line for each task and recipe: mean (standard deviation over seeds)."""
    lines = [
        "| inliers and faults | recipe | AUROC, like the faults | AUROC, others | seconds |",
        "|---|---|--:|--:|--:|",
    ]
    facts: set[str] = set()
    for task in TASKS:
        for recipe in RECIPES:
            found = [one for key, one in results.items() if key.startswith(f"{task.meaning}/{recipe}/")]
            if found:
                cells = [str(spread([one[name] for one in found])) for name in ("like", "others")]
                cells.append(f"{np.mean([one['seconds'] for one in found]):.0f}")
                lines.append(f"| {task.meaning} | {recipe} | {' | '.join(cells)} |")
                facts |= {f"{one['provenance']['device']}, commit {one['provenance']['commit'][:10]}" for one in found}
    seeds = len({key.rpartition("/")[2] for key in results})
    note = (
        f"{INLIERS:,} inliers of which a fifth is held out, {FAULTS} faults, score `combined`, {TEST:,} other outliers"
        f" of eight classes; {seeds} seed{'s' if seeds > 1 else ''}; {'; '.join(sorted(facts))}."
    )
    return "\n".join([*lines, "", note])


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("action", choices=("run", "show"))
    parser.add_argument("--seeds", type=int, default=1, help="number of seeds that run carries out")
    parser.add_argument("--page", type=Path, help="page that show writes the table to")
    given = parser.parse_args()
    results: dict[str, dict[str, Any]] = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    if given.action == "show":
        print(text := table(results))
        if given.page:
            insert(given.page, text, "known faults", "python benchmarks/known_faults.py show")
        return
    for seed in range(given.seeds):
        for task in TASKS:
            for recipe in RECIPES:
                if (key := f"{task.meaning}/{recipe}/{seed}") not in results:
                    results[key] = measure(task, recipe, seed)
                    write_text(RESULTS, json.dumps(results, indent=1) + "\n")
                    shown = {name: round(results[key][name], 3) for name in ("like", "others", "seconds")}
                    print(key, shown, flush=True)


if __name__ == "__main__":
    main()
