"""Rows of features: `NegVAEDetector` beside the usual detectors on sets of ADBench, by one protocol.

    python benchmarks/rows.py [run] [--data DIRECTORY] [--method NAME ...] [--set NAME ...] [--seeds 3]
    python benchmarks/rows.py table [--page docs/notes/rows.md]
    python benchmarks/rows.py time
    python benchmarks/rows.py alarms --set NAME

Without a command it runs all methods on all sets with 3 seeds, and prints the tables. DIRECTORY holds npz files with X
(rows x columns) and y (1 = anomaly), as ADBench (Han et al. 2022) publishes them.

The protocol: half of the inliers, 2,000 at most, train; up to 3,000 other inliers and up to 3,000 anomalies test, all
drawn by the seed. Columns that are constant in the training rows are dropped; the peers get standardized columns, with
their own defaults otherwise, and negvae gets the numbers as they are. Every result is kept in results/rows.jsonl, one
line for each method, which is written after each set and seed; what is there is not computed again.
"""

from __future__ import annotations

import argparse
import copy
import os
import platform
import subprocess
import sys
import time
import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).parent.parent))

import numpy as np
from numpy.typing import NDArray
from scipy.stats import betabinom, rankdata
from sklearn.metrics import roc_auc_score

from benchmarks import row_methods
from negvae.files import write_text
from negvae.paper.store import ResultTable

RESULTS = Path(__file__).parent.parent / "results" / "rows.jsonl"
TRAIN, TEST = 2000, 3000
RATES = (0.05, 0.01)
"""False-positive rates that are asked of negvae."""
EMBEDDINGS = "MVTec-AD_"
"""How the names of sets of embeddings begin; the others are tables."""

Rows = NDArray[np.float64]


@dataclass(frozen=True)
class Task:
    """Rows to train on, and inliers and anomalies to tell apart (each rows x columns)."""

    train: Rows
    inliers: Rows
    anomalies: Rows


def draw(path: Path, seed: int) -> Task:
    """The task that the protocol makes of one file."""
    with np.load(path, allow_pickle=False) as file:
        rows, labels = file["X"].astype(np.float64), file["y"].ravel()
    random = np.random.default_rng(seed)
    inliers, anomalies = (random.permutation(np.flatnonzero(labels == label)) for label in (0, 1))
    count = min(len(inliers) // 2, TRAIN)
    train = rows[inliers[:count]]
    varies = train.min(0) < train.max(0)
    test = rows[inliers[count : count + TEST]], rows[anomalies[:TEST]]
    return Task(train[:, varies], *(part[:, varies] for part in test))


def measure(method: row_methods.Method, task: Task, seed: int) -> dict[str, Any]:
    """Fit and score once: AUROC, seconds, and where the method has a threshold, its false alarms."""
    parts = [task.train, task.inliers, task.anomalies]
    if not method.raw:
        mean, scale = task.train.mean(0), task.train.std(0)
        parts = [(part - mean) / scale for part in parts]
    train, *test = parts
    start = time.perf_counter()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        fitted = method.fit(train, seed)
        fit_seconds = time.perf_counter() - start
        scores = [np.asarray(fitted.score(part), np.float64) for part in test]
        alarms = {str(rate): found for rate in RATES if (found := fitted.alarms(test[0], rate)) is not None}
    labels = np.repeat([0, 1], [len(part) for part in scores])
    return {
        "auroc": float(roc_auc_score(labels, np.nan_to_num(np.concatenate(scores)))),
        "fit_seconds": round(fit_seconds, 3),
        "seconds": round(time.perf_counter() - start, 3),
        "train": len(train),
        "columns": train.shape[1],
        "inliers": len(test[0]),
        "anomalies": len(test[1]),
        **({"alarms": alarms} if alarms else {}),
    }


def run(data: Path, methods: Iterable[str], sets: Iterable[str], seeds: int, out: Path) -> None:
    """Measure what is not measured yet."""
    paths = sorted(data.glob("*.npz"), key=lambda path: (path.stat().st_size, path.stem))
    if not paths:
        raise SystemExit(f"{data} has no .npz files: name the folder with ADBench's sets")
    chosen = set(sets)
    results = table_of(out)
    for name in methods:
        method = row_methods.METHODS[name]
        kept = copy.deepcopy(results.get(name)) or {"method": name, "what": method.what, "runs": {}}
        for source in paths:
            for seed in range(seeds):
                key = f"{source.stem}/{seed}"
                if key in kept["runs"] or (chosen and source.stem not in chosen):
                    continue
                task = draw(source, seed)
                if method.most_columns is not None and task.train.shape[1] > method.most_columns:
                    continue
                result = measure(method, task, seed)
                kept["runs"][key] = result
                kept["made"] = made()
                results.put(name, kept)
                print(f"{name:22} {key:28} {result['auroc']:.3f} {result['seconds']:7.2f} s", flush=True)


def made() -> dict[str, str]:
    """Versions, commit and machine."""
    commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, cwd=Path(__file__).parent)
    versions = {name: version(name) for name in ("numpy", "scikit-learn", "pyod", "torch")}
    return {**versions, "python": platform.python_version(), "commit": commit.stdout.strip(), "threads": "1"}


def fit_times() -> None:
    """Print how long a fit takes: seconds of the clock and of the processor, without the imports."""
    from negvae import NegVAEDetector

    random = np.random.default_rng(0)
    NegVAEDetector(epochs=1, target_fpr=None).fit(random.normal(size=(50, 3)))
    for count, columns in ((2000, 30), (200, 1000)):
        rows = random.normal(size=(count, columns)) @ random.normal(size=(columns, columns))
        start = time.perf_counter(), time.process_time()
        NegVAEDetector().fit(rows)
        seconds = time.perf_counter() - start[0], time.process_time() - start[1]
        print(f"{count:,} x {columns:,}: {seconds[0]:.1f} s, {seconds[1]:.1f} s of one core")


def alarms_with_all_columns(path: Path, seeds: int) -> None:
    """Print negvae's rate of false alarms at 5% on half of the inliers of a set, with no column dropped.

    The protocol drops what is constant in the training rows, so that test rows, but not training rows, lose values that
    they alone have.
    """
    from negvae import NegVAEDetector

    with np.load(path, allow_pickle=False) as file:
        rows = file["X"].astype(np.float64)[file["y"].ravel() == 0]
    rates = []
    for seed in range(seeds):
        order = np.random.default_rng(seed).permutation(len(rows))
        count = min(len(rows) // 2, TRAIN)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            # One epoch: the network has no say in the score.
            detector = NegVAEDetector(random_state=seed, epochs=1, device="cpu").fit(rows[order[:count]])
        rates.append(float((detector.p_values(rows[order[count : count + TEST]]) <= RATES[0]).mean()))
        print(f"{path.stem} seed {seed}: {rates[-1]:.4f}", flush=True)
    print(f"{path.stem}: {np.mean(rates):.4f} on average")


# --- the table -----


def table_of(path: Path) -> ResultTable:
    """Results by the name of the method."""
    return ResultTable(path, "python benchmarks/rows.py run", frozenset({"method", "runs"}))


def table(path: Path) -> str:
    """All results as two tables in Markdown: by method, and negvae's false alarms by set."""
    results = table_of(path)
    files = {name: results.get(name) or {} for name in results.names()}
    if not files:
        raise SystemExit(f"{path} has no results: run `python benchmarks/rows.py run` first")
    means = {name: by_set(content["runs"]) for name, content in files.items()}
    sets = sorted(set().union(*means.values()))
    complete = [name for name in means if set(means[name]) == set(sets)]
    ranks = dict(
        zip(complete, rankdata([[-means[name][each] for each in sets] for name in complete], axis=0), strict=True)
    )
    groups = {
        "tables": [each for each in sets if not each.startswith(EMBEDDINGS)],
        "embeddings": [each for each in sets if each.startswith(EMBEDDINGS)],
    }
    lines = [
        f"| method | {' | '.join(f'{name} ({len(of)})' for name, of in groups.items())} | all ({len(sets)}) | mean rank"
        " | farthest behind the best | s a fit |",
        "|---|--:|--:|--:|--:|--:|--:|",
    ]
    best = {each: max(means[name].get(each, 0.0) for name in means) for each in sets}
    for name in sorted(means, key=lambda name: ranks[name].mean() if name in ranks else 99):
        own = means[name]
        cells = [mean(own, of) for of in [*groups.values(), sets]]
        rank = f"{ranks[name].mean():.2f}" if name in ranks else "-"
        behind = max(best[each] - own[each] for each in own)
        seconds = np.mean([run["fit_seconds"] for run in files[name]["runs"].values()])
        lines.append(f"| {files[name]['what']} | {' | '.join(cells)} | {rank} | {behind:.3f} | {seconds:.2f} |")
    count = {len([key for key in files[name]["runs"] if key.startswith(f"{sets[0]}/")]) for name in files}
    facts = files[complete[0]]["made"]
    where = ", ".join(f"{name} {facts[name]}" for name in ("scikit-learn", "pyod", "torch"))
    lines += ["", f"Mean AUROC over sets, each the mean of {max(count)} seeds; one thread; {where}.", ""]
    return "\n".join([*lines, *alarm_table(files, sets), "", *set_table(means, complete, sets)])


def by_set(runs: dict[str, dict[str, Any]]) -> dict[str, float]:
    """Mean AUROC over the seeds, by set."""
    found: dict[str, list[float]] = {}
    for key, run in runs.items():
        found.setdefault(key.rsplit("/", 1)[0], []).append(run["auroc"])
    return {name: float(np.mean(values)) for name, values in found.items()}


def mean(values: dict[str, float], sets: list[str]) -> str:
    """Mean over sets; a dash where one is missing."""
    return f"{np.mean([values[each] for each in sets]):.3f}" if set(sets) <= set(values) else "-"


def alarm_table(files: dict[str, Any], sets: list[str]) -> list[str]:
    """False alarms of negvae on test inliers, all seeds of a set together, and the bounds of 99% for one seed."""
    lines = [
        "| set | rows | columns | " + " | ".join(f"alarms at {rate:g}" for rate in RATES) + " | runs outside |",
        "|---|--:|--:|--:|--:|--:|",
    ]
    outside, total = 0, 0
    for each in sets:
        runs = [run for key, run in files.get("negvae", {"runs": {}})["runs"].items() if key.startswith(f"{each}/")]
        if not runs:
            continue
        cells, missed = [], 0
        for rate in map(str, RATES):
            alarms = [run["alarms"][rate] for run in runs]
            tested = sum(run["inliers"] for run in runs)
            cells.append(f"{sum(found['count'] for found in alarms) / tested:.4f}")
            for run, found in zip(runs, alarms, strict=True):
                low, high = bounds(found["held_out"], float(rate), run["inliers"])
                missed += not low <= found["count"] <= high
                total += 1
        outside += missed
        lines.append(
            f"| {each} | {runs[0]['train']:,} | {runs[0]['columns']:,} | {' | '.join(cells)} | {missed} of"
            f" {len(runs) * len(RATES)} |"
        )
    lines += ["", f"Outside the bounds of 99%: {outside} of {total} runs, {0.01 * total:.1f} expected at most."]
    return lines


def bounds(held_out: int, rate: float, tested: int, level: float = 0.99) -> tuple[int, int]:
    """Between which numbers of false alarms among `tested` inliers lie with probability `level`.

    The threshold is an order statistic of `held_out` scores, so that the number is beta-binomial.
    """
    rank = int(np.floor(rate * (held_out + 1) + 1e-9))
    if not rank:
        return 0, tested
    law = betabinom(tested, rank, held_out + 1 - rank)
    return int(law.ppf((1 - level) / 2)), int(law.ppf((1 + level) / 2))


def set_table(means: dict[str, dict[str, float]], complete: list[str], sets: list[str]) -> list[str]:
    """AUROC of every method on every set."""
    lines = [f"| set | {' | '.join(complete)} |", f"|---|{'--:|' * len(complete)}"]
    return lines + [f"| {each} | {' | '.join(f'{means[name][each]:.3f}' for name in complete)} |" for each in sets]


def insert(page: Path, text: str, name: str = "rows", command: str = "python benchmarks/rows.py table") -> None:
    """Put a table between its two marks in a page."""
    begin, end = f"<!-- {name}: begin ({command}) -->", f"<!-- {name}: end -->"
    before, _, rest = page.read_text(encoding="utf-8").partition(begin)
    _, found, after = rest.partition(end)
    if not found:
        raise SystemExit(f"{page} has no marks for the table: {begin} and {end}")
    write_text(page, f"{before}{begin}\n\n{text}\n{end}{after}")


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True, dest="command")
    measured = commands.add_parser("run")
    measured.add_argument("--data", type=Path, default=Path("../shared/adbench"))
    measured.add_argument("--method", action="append", choices=list(row_methods.METHODS))
    measured.add_argument("--set", action="append", default=[])
    measured.add_argument("--seeds", type=int, default=3)
    shown = commands.add_parser("table")
    shown.add_argument("--page", type=Path)
    commands.add_parser("time")
    counted = commands.add_parser("alarms")
    counted.add_argument("--data", type=Path, default=Path("../shared/adbench"))
    counted.add_argument("--set", required=True)
    counted.add_argument("--seeds", type=int, default=6)
    for each in (measured, shown):
        each.add_argument("--results", type=Path, default=RESULTS)
    given = sys.argv[1:] if arguments is None else arguments
    named = bool(given) and (given[0] in commands.choices or given[0] in ("-h", "--help"))
    chosen = parser.parse_args(given if named else ["run", *given])
    if chosen.command == "run":
        run(chosen.data, chosen.method or row_methods.METHODS, chosen.set, chosen.seeds, chosen.results)
        print(table(chosen.results))
        return
    if chosen.command == "alarms":
        alarms_with_all_columns(chosen.data / f"{chosen.set}.npz", chosen.seeds)
        return
    if chosen.command == "time":
        fit_times()
        return
    text = table(chosen.results)
    print(text)
    if chosen.page:
        insert(chosen.page, text)


if __name__ == "__main__":
    sys.exit(main())
