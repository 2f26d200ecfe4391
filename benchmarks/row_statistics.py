"""Whether a third statistic improves the score `neighbors` of rows: asked of inliers alone, and then of anomalies.

    python benchmarks/row_statistics.py --data DIRECTORY [--page docs/notes/rows.md]

The score is the larger of two tails: nearest rows in the standardized and in the whitened space. Each further statistic
becomes a third tail on the same scale (of the training rows' own values, each without itself). Rows are drawn as in
`benchmarks/rows.py`, half of them are reference rows, seed 0.

The criterion that needs inliers only is the mean AUROC of fresh inliers against five kinds of outliers that are made of
inliers: columns shuffled among rows ("shuffled"), a third of the columns of another row ("mixed"), noise of half a
standard deviation added ("noise"), rows drawn from the box of the columns ("box"), and half of the way from one inlier
to another ("between"). The anomalies' AUROC is shown beside it and chooses nothing. Results are kept in
results/row-statistics.json.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).parent.parent))

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import logsumexp
from sklearn.metrics import roc_auc_score

from benchmarks.row_methods import LEVELS
from benchmarks.rows import EMBEDDINGS, draw, insert, made
from negvae.files import write_text
from negvae.scoring.neighbors import fit_neighbors, neighbor_score

RESULTS = Path(__file__).parent.parent / "results" / "row-statistics.json"
MOST = 500
"""Largest number of reference rows, and of rows of each kind that are scored."""

Rows = NDArray[np.float64]


def distances(rows: Rows, references: Rows, itself: bool) -> Rows:
    """Squared distances to the references, ascending, without the row itself where it is one of them."""
    squared = np.square(rows).sum(1)[:, None] + np.square(references).sum(1) - 2 * rows @ references.T
    if itself:
        np.fill_diagonal(squared, np.inf)
    return np.sort(np.maximum(squared, 0), axis=1)[:, : len(references) - itself]


def dte_np(rows: Rows, references: Rows, itself: bool) -> Rows:
    """DTE-NP as `benchmarks/row_methods.py` computes it, without the row itself where it is a reference row."""
    squared = distances(rows, references, itself)[:, :50]
    log_prior = np.log(np.gradient(LEVELS)) - 0.5 * rows.shape[1] * np.log(LEVELS)
    log_posterior = np.stack([logsumexp(-squared / (2 * v), axis=1) for v in LEVELS], 1) + log_prior
    log_posterior -= logsumexp(log_posterior, axis=1, keepdims=True)
    return np.asarray(np.exp(log_posterior) @ LEVELS)


def mean_of_five(rows: Rows, references: Rows, itself: bool) -> Rows:
    """Mean distance to the 5 nearest rows, DTE-NP's simple form."""
    return np.asarray(np.sqrt(distances(rows, references, itself)[:, :5]).mean(1))


def relative(rows: Rows, references: Rows, itself: bool) -> Rows:
    """Distance to the 5 nearest rows over their own distance to theirs, as LOF."""
    squared = np.square(rows).sum(1)[:, None] + np.square(references).sum(1) - 2 * rows @ references.T
    if itself:
        np.fill_diagonal(squared, np.inf)
    near = np.argpartition(squared, 4, axis=1)[:, :5]
    own = mean_of_five(references, references, True)
    return np.asarray(
        np.sqrt(np.maximum(np.take_along_axis(squared, near, 1), 0)).mean(1) / np.maximum(own[near].mean(1), 1e-12)
    )


def radius(rows: Rows, references: Rows, itself: bool) -> Rows:
    """Distance from the center, in the standardized space."""
    return np.asarray(np.sqrt(np.square(rows - references.mean(0)).sum(1)))


STATISTICS = {"DTE-NP": dte_np, "mean of 5 nearest": mean_of_five, "relative (LOF)": relative, "radius": radius}


def made_outliers(rows: Rows, random: np.random.Generator) -> dict[str, Rows]:
    """Five kinds of outliers made of inliers."""
    shuffled = np.stack([random.permutation(column) for column in rows.T], 1)
    other = random.permutation(rows)
    chosen = random.uniform(size=rows.shape) < 1 / 3
    box = random.uniform(rows.min(0), rows.max(0), rows.shape)
    return {
        "shuffled": shuffled,
        "mixed": np.where(chosen, other, rows),
        "noise": rows + 0.5 * random.normal(size=rows.shape),
        "box": box,
        "between": (rows + other) / 2,
    }


def tail(values: Rows, known: Rows) -> Rows:
    """-log of the tail probability: empirical up to the 95% quantile of the known values, exponential beyond."""
    known = np.sort(known)
    cut = np.quantile(known, 0.95)
    above = known[known > cut]
    scale = (above - cut).mean() if len(above) else max(abs(cut), 1.0) * 1e-9
    share = (1 + len(known) - np.searchsorted(known, values)) / (len(known) + 1)
    return np.where(values > cut, -np.log(0.05) + (values - cut) / max(scale, 1e-300), -np.log(share))


def measure(path: Path) -> dict[str, dict[str, float]]:
    """AUROC of each choice of statistics against made outliers (mean of five kinds) and against the anomalies."""
    task = draw(path, 0)
    random = np.random.default_rng(0)
    scale = task.train.std(0)
    train, inliers, anomalies = (
        (part - task.train.mean(0)) / scale for part in (task.train, task.inliers, task.anomalies)
    )
    reference, inliers, anomalies = train[:MOST], inliers[:MOST], anomalies[:MOST]
    base = random.permutation(train)[:MOST] if len(train) > MOST else inliers
    groups = {"inliers": inliers, "anomalies": anomalies, **made_outliers(base, random)}
    fitted = fit_neighbors(reference[5:], reference[:5])[0]  # the five are reference rows too
    tensors = fitted.tensors()
    first = {
        name: neighbor_score(torch.from_numpy(rows), tensors, fitted.nearest).numpy() for name, rows in groups.items()
    }
    found: dict[str, dict[str, float]] = {}
    for name, statistic in {"none": None, **STATISTICS}.items():
        scores = first
        if statistic is not None:
            known = statistic(reference, reference, True)
            scores = {
                group: np.maximum(first[group], tail(statistic(rows, reference, False), known))
                for group, rows in groups.items()
            }
        areas = {
            group: float(
                roc_auc_score(np.repeat([0, 1], [len(inliers), len(values)]), np.r_[scores["inliers"], values])
            )
            for group, values in scores.items()
            if group != "inliers"
        }
        anomalous = areas.pop("anomalies")
        found[name] = {"made": float(np.mean(list(areas.values()))), "anomalies": anomalous, **areas}
    return found


def table(results: dict[str, dict[str, dict[str, float]]]) -> str:
    """Means over sets, for tables and for embeddings."""
    kinds = {"tables": False, "embeddings": True}
    lines = [
        "| third statistic | "
        + " | ".join(f"{name}: {what}" for name in kinds for what in ("made outliers", "anomalies"))
        + " |",
        "|---|--:|--:|--:|--:|",
    ]
    for statistic in ("none", *STATISTICS):
        cells = []
        for embeddings in kinds.values():
            own = [found[statistic] for name, found in results.items() if name.startswith(EMBEDDINGS) == embeddings]
            cells += [f"{np.mean([each[what] for each in own]):.3f}" for what in ("made", "anomalies")]
        lines.append(f"| {statistic} | {' | '.join(cells)} |")
    return "\n".join([*lines, "", f"Mean AUROC over {len(results)} sets, {MOST:,} reference rows at most, one seed."])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/adbench"))
    parser.add_argument("--page", type=Path, help="page to write the table to")
    parser.add_argument("--kept", action="store_true", help="measure nothing, and show what is kept")
    chosen = parser.parse_args()
    kept = json.loads(RESULTS.read_text()) if RESULTS.exists() else {"results": {}}
    paths = [] if chosen.kept else sorted(chosen.data.glob("*.npz"), key=lambda path: path.stat().st_size)
    for path in paths:
        if path.stem not in kept["results"]:
            kept["results"][path.stem], kept["made"] = measure(path), made()
            write_text(RESULTS, json.dumps(kept, indent=1) + "\n")
            print(
                path.stem,
                {name: round(each["made"], 3) for name, each in kept["results"][path.stem].items()},
                flush=True,
            )
    text = table(kept["results"])
    print(text)
    if chosen.page:
        insert(chosen.page, text, "statistics", "python benchmarks/row_statistics.py")


if __name__ == "__main__":
    main()
