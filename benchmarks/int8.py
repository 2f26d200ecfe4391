"""What int8 does to scores: `python -m benchmarks.int8 [--keep FOLDER]` writes benchmarks/results/int8.json.

Models of the preset `unsupervised` are trained on the first 8,000 images of each inlier set for two epochs (those in
the folder are used again), and scored in float32 and in int8, each with references of its own: AUROC against each other
set, how far int8 moves the scores of inlier test images, and what `negvae calibrate` would offer. One seed, 1,000 test
images of each set. `--page docs/benchmarks.md` puts the table there.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from negvae.config import preset
from negvae.data import load
from negvae.files import write_text
from negvae.report import tables
from negvae.report.tables import DataTable, replace_table
from negvae.runs.artifact import load_artifact
from negvae.runs.provenance import provenance
from negvae.runs.train import run
from negvae.scoring import Scorer
from negvae.scoring.metrics import detection_metrics
from negvae.scoring.quantization import moved, quantize_model, try_int8

RESULTS = Path("benchmarks/results/int8.json")
SETS = {"fashion-mnist": ("mnist", "kmnist"), "cifar10": ("svhn",)}
SCORES = ("combined", "dose", "bpd", "kl", "prior_ratio")
COMPONENTS = ("dose", "prior_ratio")
TRAINED, EPOCHS, TESTED = 8000, 2, 1000
MARKS = ("<!-- int8: begin (python -m benchmarks.int8 --page docs/benchmarks.md) -->", "<!-- int8: end -->")


def measured(folder: Path, inliers: str, others: tuple[str, ...]) -> list[dict[str, Any]]:
    """Return a row for each score and other set."""
    if not folder.exists():
        run(preset("unsupervised", inliers, limit=TRAINED, epochs=EPOCHS), folder)
    model = load_artifact(folder, "cpu").model
    training = torch.from_numpy(load(inliers, "train", limit=TRAINED).images)
    sets = {
        name: torch.from_numpy(load(name, "test", limit=TESTED, disjoint_from_train=name == inliers).images)
        for name in (inliers, *others)
    }
    exact, rounded = (
        replace(each, references=each.measure(training[::4], COMPONENTS, ["dose"]))
        for each in (Scorer(model), Scorer(model, quantized=quantize_model(model, training)))
    )
    values = {name: [scorer(images, SCORES) for scorer in (exact, rounded)] for name, images in sets.items()}
    rows: list[dict[str, Any]] = []
    for score in SCORES:
        shift = moved(exact, rounded, sets[inliers], score)
        for other in others:
            found = [
                detection_metrics(low[score], high[score]).auroc
                for low, high in zip(values[inliers], values[other], strict=True)
            ]
            rows.append({"train": inliers, "score": score, "ood": other, "float32": found[0], "int8": found[1],
                         "moved": shift})  # fmt: skip
    tried = try_int8(Scorer(model), training, sets[inliers], "combined", COMPONENTS, 0.05)
    rows.append({"train": inliers, "offer": None if tried is None else {**asdict(tried), "text": tried.describe()}})
    return rows


def markdown(results: dict[str, Any]) -> str:
    """Return the table and what the offers say, in Markdown."""
    rows = [row for row in results["rows"] if "score" in row]
    cells = [
        (row["train"], f"`{row['score']}`", row["ood"], f"{row['float32']:.4f}", f"{row['int8']:.4f}",
         f"{row['moved']:.3f}")
        for row in rows
    ]  # fmt: skip
    text = tables.markdown(
        DataTable(("trained on", "score", "against", "float32", "int8", "moved"), cells, align="lllrrr")
    )
    largest = max(abs(row["float32"] - row["int8"]) for row in rows)
    origin = results["provenance"]
    return (
        f"{text.rstrip()}\n\nLargest difference: {largest:.4f}. AUROC, {TESTED:,} test images of each set, one seed,"
        f" the first {TRAINED:,} training images and {EPOCHS} epochs; moved: by how much int8 moves the scores of"
        f" inlier test images, root mean square in their standard deviations. {origin['device']}, torch"
        f" {origin['torch']}, commit {origin['commit']}.\n"
    )


def main() -> None:
    """Measure, write the results, and put the table on a page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--keep", type=Path, default=None, help="folder for the trained models")
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--page", type=Path, default=None)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        folder = options.keep or Path(place)
        rows = [row for name, others in SETS.items() for row in measured(folder / name, name, others)]
    origin = provenance(preset("unsupervised", "fashion-mnist", device="cpu"))
    results = {"rows": rows, "provenance": origin}
    write_text(options.out, json.dumps(results, indent=1) + "\n")
    if options.page:
        replace_table(options.page, *MARKS, markdown(results))
    print(markdown(results))


if __name__ == "__main__":
    main()
