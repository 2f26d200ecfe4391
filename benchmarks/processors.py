"""How far scores, p-values and decisions move with the processor's instructions, the number of threads and precision.

Two detectors are trained once, as the machine is: the preset `unsupervised` on Fashion-MNIST, and one of rows of
features (scikit-learn's breast cancer set). Each saved folder is then scored in processes of their own, in which torch
and oneDNN are held to the instructions of lesser processors, and the results are compared with the first process's.

    python benchmarks/processors.py [--out benchmarks/results/processors.json] [--page docs/notes/processors.md]

Takes minutes. Precisions that this machine does not compute in are left out, and named.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from negvae.scoring.calibration import Calibration, fpr_threshold

SETTINGS = {
    "as it is, 2 threads": {"OMP_NUM_THREADS": "2"},
    "as it is, 1 thread": {"OMP_NUM_THREADS": "1"},
    "as it is, 2 threads, reversed order in batches of 7": {"OMP_NUM_THREADS": "2", "NEGVAE_BENCH_BATCH": "7"},
    "AVX2, 2 threads": {"OMP_NUM_THREADS": "2", "ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2"},
    "SSE4.1, 2 threads": {"OMP_NUM_THREADS": "2", "ATEN_CPU_CAPABILITY": "default", "ONEDNN_MAX_CPU_ISA": "SSE41"},
}
MIXED = "judged by float32's calibration (which negvae refuses), beside float32"
IMAGES = 2000


def score(folder: Path, inputs: Path, out: Path) -> None:
    """Score saved inputs with a saved detector; runs in a process of its own."""
    from negvae.runs.artifact import load_artifact

    artifact = load_artifact(folder, "cpu")
    stored = torch.from_numpy(np.load(inputs))
    batch = int(os.environ.get("NEGVAE_BENCH_BATCH", "0"))
    names = [name for name in artifact.calibration.scores if artifact.calibration.precision != "int8" or name == "kl"]
    scorer = artifact.scorer()
    if batch:
        parts = [scorer(part, names) for part in stored.flip(0).split(batch)]
        values = {name: np.concatenate([part[name] for part in parts])[::-1] for name in names}
    else:
        values = scorer(stored, names)
    np.savez(out, **values)


def fitted(place: Path) -> dict[str, tuple[Path, Path, int]]:
    """Folder, inputs and number of inliers, which come first in them, of each detector by what it takes."""
    from sklearn.datasets import load_breast_cancer

    from negvae import NegVAEDetector, load_images
    from negvae.config import preset
    from negvae.runs.train import run

    run(preset("unsupervised", "fashion-mnist", limit=12_000, epochs=3), place / "images")
    pixels = [load_images(name, "test", limit=IMAGES).images for name in ("fashion-mnist", "mnist")]
    np.save(place / "images.npy", np.concatenate(pixels))
    data = load_breast_cancer()
    benign, malignant = data.data[data.target == 1], data.data[data.target == 0]
    NegVAEDetector(epochs=30).fit(benign[:250]).save(place / "rows")
    np.save(place / "rows.npy", np.concatenate([benign[250:], malignant])[:, :, None, None])
    inliers = {"images": len(pixels[0]), "rows": len(benign) - 250}
    return {kind: (place / kind, place / f"{kind}.npy", count) for kind, count in inliers.items()}


def compare(
    calibration: Calibration, inliers: int, first: Path, other: Path, score: str = ""
) -> dict[str, float | str]:
    """The largest changes between two processes' results, which one calibration judges by `score`, or by its own."""
    here, there = np.load(first), np.load(other)
    if score:
        limit = fpr_threshold(calibration.scores[score], calibration.target_fpr)
        calibration = replace(calibration, score=score, threshold=limit)
    name = calibration.score
    p = [calibration.p_values(scores[name]) for scores in (here, there)]
    called = [calibration.is_outlier(scores[name]) for scores in (here, there)]
    changes = {
        key: float((np.abs(here[key] - there[key]) / np.maximum(np.abs(here[key]), np.median(np.abs(here[key])))).max())
        for key in set(here.files) & set(there.files)
    }
    worst = max(changes, key=changes.get)
    return {
        "score": name, "change_of_score": changes[name], "change_of_any_score": changes[worst], "worst_score": worst,
        "change_of_p_value": float(np.abs(p[0] - p[1]).max()), "changed_decisions": int((called[0] != called[1]).sum()),
        "decisions": len(called[0]), "false_alarms": float(called[1][:inliers].mean()),
        "step_of_p_value": 1 / (calibration.size + 1),
    }  # fmt: skip


def refusal(printed: str, folder: Path) -> str:
    """The line with which a process refused, without the place of its folder."""
    return printed.strip().splitlines()[-1].removeprefix("ValueError: ").replace(str(folder), "RUN")


def measure(place: Path) -> list[dict[str, object]]:
    """One row for each detector, precision and setting."""
    from negvae.device import runs_bfloat16
    from negvae.fast.int8 import multiplies_integers
    from negvae.runs.artifact import load_artifact
    from negvae.runs.calibrate import calibrate_run

    available = {"float32": True, "bfloat16": runs_bfloat16(torch.device("cpu")), "int8": multiplies_integers()}
    rows: list[dict[str, object]] = []
    for kind, (folder, inputs, inliers) in fitted(place).items():
        for precision, here in available.items():
            if kind == "rows" and precision != "float32":
                continue
            if not here:
                print(f"{precision}: this machine does not compute in it", file=sys.stderr)
                continue
            if kind == "images":
                calibrate_run(folder, precision=precision)
            calibration = load_artifact(folder, "cpu").calibration
            first = None
            for number, (setting, variables) in enumerate(SETTINGS.items()):
                out = place / f"{kind}-{precision}-{number}.npz"
                done = subprocess.run(
                    [sys.executable, __file__, "--score", folder, inputs, out],
                    env={**os.environ, **variables}, check=False, capture_output=True, text=True,
                )  # fmt: skip
                row = {"detector": kind, "precision": "float64" if kind == "rows" else precision, "setting": setting}
                if done.returncode:
                    rows.append({**row, "refused": refusal(done.stderr, folder)})
                    continue
                first = first or out
                rows.append({**row, **compare(calibration, inliers, first, out)})
                print(rows[-1], file=sys.stderr)
            if precision == "float32":
                exact = calibration, first
            else:
                # What it would come to if a calibration judged scores of another precision, as negvae refuses to do.
                row = {"detector": kind, "precision": precision, "setting": MIXED}
                rows.append({**row, **compare(exact[0], inliers, exact[1], first, calibration.score)})
    return rows


def markdown(rows: list[dict[str, object]]) -> str:
    """The rows as a Markdown table."""
    lines = [
        "| detector | precision | setting | change of the deciding score | of any score | of the p-value | decisions"
        " changed | false alarms |",
        "|---|---|---|--:|--:|--:|--:|--:|",
    ]
    for row in rows:
        start = f"| {row['detector']} | {row['precision']} | {row['setting']} |"
        if "refused" in row:
            lines.append(f"{start} refused: {row['refused']} | | | | |")
        else:
            lines.append(
                f"{start} {row['change_of_score']:.1g} ({row['score']}) | {row['change_of_any_score']:.1g}"
                f" ({row['worst_score']}) | {row['change_of_p_value']:.2g} |"
                f" {row['changed_decisions']} of {row['decisions']:,} | {row['false_alarms']:.3f} |"
            )
    return "\n".join(lines)


def main() -> None:
    """Measure, print the table, and write the figures."""
    from negvae.config import preset
    from negvae.files import write_text
    from negvae.report.tables import replace_table
    from negvae.runs.provenance import provenance

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=None)
    parser.add_argument("--page", type=Path, default=None, help="page with a place for the table")
    parser.add_argument("--score", nargs=3, type=Path, default=None, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.score:
        score(*options.score)
        return
    with tempfile.TemporaryDirectory() as place:
        rows = measure(Path(place))
    print(markdown(rows))
    facts = provenance(preset("unsupervised", "fashion-mnist"))
    if options.out:
        write_text(options.out, json.dumps({"rows": rows, "provenance": facts}, indent=1) + "\n")
    if options.page:
        measured = f"Measured on: {facts['device']}, torch {facts['torch']}, commit {facts['commit']}."
        marks = ("<!-- processors: begin (python benchmarks/processors.py --page docs/notes/processors.md) -->",
                 "<!-- processors: end -->")  # fmt: skip
        replace_table(options.page, *marks, f"{markdown(rows)}\n\n{measured}")


if __name__ == "__main__":
    main()
