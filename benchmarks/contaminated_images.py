"""What outliers among the training images do to `NegVAEDetector`, and what leaving a share of the images out does.

    python benchmarks/contaminated_images.py [--page docs/notes/rows.md]

Small enough for one core: 1,500 training images and 200 steps a fit, so the figures compare the columns of the table
with one another and say little about a full training. Two tasks on Fashion-MNIST: all classes are inliers, and images
of MNIST are the outliers; or one class (sandals) is, and other classes are the outliers. The share of outliers among
the training images is 0, 1, 5 or 10%. With `trim`, that share is left out before the fit. Results are kept in
results/images-contaminated.json, which is written after each task and share.
"""

from __future__ import annotations

import argparse
import json
import sys
import warnings
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score

from benchmarks.rows import insert, made
from negvae import NegVAEDetector
from negvae.data import load
from negvae.files import write_text

RESULTS = Path(__file__).parent.parent / "results" / "images-contaminated.json"
SHARES = (0.0, 0.01, 0.05, 0.1)
TASKS = {"all classes, with MNIST": None, "sandals, with other classes": 5}
TRAIN, TEST, STEPS, BATCH, RATE = 1500, 1000, 200, 64, 0.05

Images = NDArray[np.uint8]


def draw(inlier_class: int | None, share: float, seed: int = 0) -> tuple[Images, NDArray[np.bool_], Images, Images]:
    """Return training images, which of them are outliers, and inliers and outliers to test on."""
    random = np.random.default_rng(seed)
    train, test = load("fashion-mnist", "train"), load("fashion-mnist", "test")
    parts: list[tuple[Images, Images]] = []
    for part in (train, test):
        labels = np.asarray(part.labels)
        inliers = part.images if inlier_class is None else part.images[labels == inlier_class]
        others = (
            load("mnist", "train" if part is train else "test").images
            if inlier_class is None
            else part.images[labels != inlier_class]
        )
        parts.append((random.permutation(inliers), random.permutation(others)))
    added = round(share * TRAIN)
    mixed = np.concatenate([parts[0][0][: TRAIN - added], parts[0][1][:added]])
    order = random.permutation(TRAIN)
    return mixed[order], (np.arange(TRAIN) >= TRAIN - added)[order], parts[1][0][:TEST], parts[1][1][:TEST]


def measure(inlier_class: int | None, share: float, trim: bool) -> dict[str, Any]:
    """AUROC, false alarms and share of outliers found, and of the outliers in the training how many were left out."""
    images, outlying, inliers, outliers = draw(inlier_class, share)
    epochs = max(round(STEPS / ((TRAIN * 0.8) // BATCH)), 1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        detector = NegVAEDetector(
            trim=share if trim else 0.0,
            epochs=epochs,
            batch_size=BATCH,
            target_fpr=RATE,
            device="cpu",
            transformations="none",  # trimming is what is measured; turns would multiply the time
        ).fit(images)
    scores = [detector.ood_score(part) for part in (inliers, outliers)]
    called = [float((detector.calibration_.p_values(part) <= RATE).mean()) for part in scores]
    labels = np.repeat([0, 1], [len(part) for part in scores])
    left = float(detector.left_out_[outlying].mean()) if trim else None
    return {
        "auroc": float(roc_auc_score(labels, np.concatenate(scores))),
        "false_alarms": called[0],
        "found": called[1],
        "left_out": left,
    }


def table(results: dict[str, dict[str, Any]]) -> str:
    """One line for each task and share."""
    lines = [
        "| images | outliers in training | AUROC | false alarms | found | AUROC, `trim` | false alarms | found"
        " | outliers left out |",
        "|---|--:|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for task in TASKS:
        for share in SHARES:
            cells = []
            for way, names in (
                ("as it is", ("auroc", "false_alarms", "found")),
                ("trim", ("auroc", "false_alarms", "found", "left_out")),
            ):
                found = results.get(f"{task}/{share:g}/{way}")
                cells += [f"{found[name]:.3f}" for name in names] if found else [""] * len(names)
            lines.append(f"| {task} | {share:.0%} | {' | '.join(cells)} |")
    note = (
        f"{TRAIN:,} training images, {STEPS} steps of {BATCH}, {TEST:,} test inliers and as many outliers, asked rate"
        f" {RATE:g}; one seed."
    )
    return "\n".join([*lines, "", note])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--page", type=Path, help="page to write the table to")
    parser.add_argument("--kept", action="store_true", help="measure nothing, and show what is kept")
    chosen = parser.parse_args()
    kept = json.loads(RESULTS.read_text()) if RESULTS.exists() else {"results": {}}
    for share in () if chosen.kept else SHARES:
        for task, inlier_class in TASKS.items():
            for way in ("as it is", "trim") if share else ("as it is",):
                key = f"{task}/{share:g}/{way}"
                if key not in kept["results"]:
                    kept["results"][key] = measure(inlier_class, share, way == "trim")
                    kept["made"] = made()
                    write_text(RESULTS, json.dumps(kept, indent=1) + "\n")
                    print(key, kept["results"][key], flush=True)
    text = table(kept["results"])
    print(text)
    if chosen.page:
        insert(chosen.page, text, "contaminated images", "python benchmarks/contaminated_images.py")


if __name__ == "__main__":
    main()
