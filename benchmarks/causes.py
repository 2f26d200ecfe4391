"""Why figures of profile `cpu` miss the paper's: a run of the profile with one setting changed.

    python benchmarks/causes.py run [NAME...] [--seeds 1]        # resumable: a result file for each run
    python benchmarks/causes.py show --page docs/reproduction.md

Each run is trained like that of the table, and after every epoch tested on as many images as the table's curves are,
for the tables' sake alone: no preset or score is chosen by it. The rows of the table's own runs stand beside them, from
the curves in results/cpu.jsonl: after as many epochs as an experiment had, and at their end.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from dataclasses import dataclass
from pathlib import Path
from statistics import correlation, mean
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

import torch
from torch import nn

from benchmarks.color_networks import MEASURED, ROWS, rows_after_epochs
from benchmarks.rows import insert
from negvae.config import RunConfig
from negvae.data import load
from negvae.files import write_text
from negvae.model.initialization import Layer, normal
from negvae.model.reparametrized import learned_weight
from negvae.negatives import build_source
from negvae.paper.profiles import PROFILES
from negvae.paper.published import settings
from negvae.paper.results import run_name, table_of
from negvae.paper.store import ResultTable
from negvae.paper.unsupervised_show import spread
from negvae.parts import INITIALIZATIONS
from negvae.registry import Entry
from negvae.runs.provenance import provenance
from negvae.training.loop import train

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "causes"
PROFILE = PROFILES["cpu"]
SEEDS = 3
SMALLER = "normal-0.05"


def smaller(layer: Layer, generator: torch.Generator) -> None:
    """Draw convolutions and their biases with a standard deviation of 0.05 in place of 0.141."""
    normal(layer, generator)
    if isinstance(layer, nn.Linear):
        return
    with torch.no_grad():
        for drawn in (learned_weight(layer), layer.bias):
            if drawn is not None:
                drawn.mul_(0.05 / math.sqrt(0.02))


@dataclass(frozen=True)
class Cause:
    """An experiment on a run of the tables.

    Attributes:
        run: name of the run without its seed.
        meaning: what is changed, in words.
        fields: fields of the configuration that differ from the profile's.
        ood: test set of the table.
    """

    run: str
    meaning: str
    fields: dict[str, Any]
    ood: str


FEW = 4
"""Number of epochs after which the curves of longer runs are shown as well."""
LONGER = (
    "fashion-mnist-bernoulli-none", "fashion-mnist-gaussian-none", "cifar10-bernoulli-none",
    "cifar10-bernoulli-imagenet32", "cifar10-gaussian-imagenet32", "cifar10-quantized-gaussian-imagenet32",
)  # fmt: skip
"""Runs of the table that the profile trains for more than `FEW` epochs because their figures ask for it."""
SWINGING = ("cifar10-bernoulli-imagenet32", "cifar10-gaussian-imagenet32", "cifar10-quantized-gaussian-imagenet32")
"""Runs of the table whose figures differ from one epoch to the next by more than from one seed to the next."""
_LONGER = "24 epochs instead of 4"
CAUSES = {
    "initialization": Cause(
        "fashion-mnist-bernoulli-none", "convolutions drawn with a standard deviation of 0.05 instead of 0.141",
        {"initialization": SMALLER, "epochs": 4}, "mnist",
    ),
    "float32": Cause(
        "fashion-mnist-bernoulli-none", "float32 instead of bfloat16", {"precision": "float32"}, "mnist"
    ),
    "gray-paper": Cause(
        "fashion-mnist-bernoulli-none", "the paper's decoder (network `gray-paper`) instead of the light one",
        {"network": "gray-paper"}, "mnist",
    ),
    "fashion-mnist-gaussian-epochs": Cause(
        "fashion-mnist-gaussian-none", "32 epochs instead of 24", {"epochs": 32}, "mnist"
    ),
    "mnist-adam": Cause(
        "mnist-gaussian-none", "4 epochs of Adam 1e-3 and batches of 128 instead of RMSProp 1e-4 and 50",
        {"optimizer": "adam", "learning_rate": 1e-3, "batch_size": 128, "epochs": 4}, "fashion-mnist",
    ),
    "cifar10-gaussian-epochs": Cause("cifar10-gaussian-none", _LONGER, {"epochs": 24}, "svhn"),
    "cifar10-float32": Cause(
        "cifar10-gaussian-none", "float32 instead of bfloat16", {"precision": "float32"}, "svhn"
    ),
    "cifar10-quantized-epochs": Cause("cifar10-quantized-gaussian-none", _LONGER, {"epochs": 24}, "svhn"),
    "imagenet-falling-rate": Cause(
        "cifar10-bernoulli-imagenet32", "8 epochs at a rate that rises to 4e-4 and falls, instead of 24 at 1e-4",
        {"schedule": "cosine", "learning_rate": 4e-4, "epochs": 8}, "svhn",
    ),
}  # fmt: skip


def config_of(cause: Cause, seed: int) -> RunConfig:
    """Return the configuration of an experiment."""
    if SMALLER not in INITIALIZATIONS:
        INITIALIZATIONS.add(Entry(name=SMALLER, meaning="convolutions N(0, 0.0025)", target=smaller))
    known = {run_name(setting, seed): setting for setting in settings().values()}
    config = PROFILE.config(known[f"{cause.run}-seed{seed}"], seed, "cpu")
    return RunConfig.from_dict({**config.to_dict(), **cause.fields})


def run(name: str, seed: int) -> None:
    """Carry out one run that has no result yet; one that was stopped goes on from its checkpoint."""
    cause, path = CAUSES[name], RESULTS / f"{name}-seed{seed}.json"
    if path.exists():
        return
    config, folder = config_of(cause, seed), ROOT / "runs" / "causes" / f"{name}-seed{seed}"
    path.parent.mkdir(parents=True, exist_ok=True)
    images = torch.from_numpy(load(config.data).images)
    content = {"experiment": name, "seed": seed, "config": config.to_dict(), "curve_images": MEASURED,
               "provenance": provenance(config)}  # fmt: skip
    source = build_source(config.negatives, lambda text: torch.from_numpy(load(text).images))
    measure = rows_after_epochs(config.data, cause.ood)
    curve = train(config, images, source, directory=folder, resume=True, after_epoch=measure).history
    write_text(path, json.dumps({**content, "curve": curve}) + "\n")
    print(name, seed, {key: round(curve[-1][key], 3) for key in ROWS}, flush=True)


def table() -> str:
    """Return the last epochs' figures as a Markdown table: mean (standard deviation over seeds)."""
    heads = ("run", "setting", "seeds", "KL of training images, first epoch", "the last", "AUC BPD", "AUC KL",
             "test, nats/dim", "OOD, nats/dim")  # fmt: skip
    lines, facts = [], set[str]()
    results = table_of(ROOT / "results", PROFILE)
    for run_of_table in dict.fromkeys((*LONGER, *(cause.run for cause in CAUSES.values()))):
        found = {name: _results(name) for name, cause in CAUSES.items() if cause.run == run_of_table}
        ours = [one for results_of_cause in found.values() for one in results_of_cause]
        theirs = [one["curve"] for seed in range(SEEDS) if (one := results.get(f"{run_of_table}-seed{seed}"))]
        if not theirs or (not ours and run_of_table not in LONGER):
            continue
        trained = min(map(len, theirs))
        for epochs in sorted({trained, min(FEW, trained), *(min(len(one["curve"]), trained) for one in ours)}):
            lines.append(
                _line(run_of_table, f"as in the table, after {epochs} epochs", [one[:epochs] for one in theirs])
            )
        lines += [_line(run_of_table, CAUSES[name].meaning, [one["curve"] for one in found[name]])
                  for name in found if found[name]]  # fmt: skip
        facts |= {f"{one['provenance']['device']}, commit {one['provenance']['commit'][:10]}" for one in ours}
    head = f"| {' | '.join(heads)} |\n|---|---|{'--:|' * (len(heads) - 2)}"
    where = "; ".join(sorted(facts))
    note = f"On {MEASURED:,} images of each test set; changed settings: {where}."
    return f"{head}\n" + "\n".join([*lines, "", note, "", swings(results)])


def swings(results: ResultTable) -> str:
    """Return as a Markdown table how far AUC BPD swings over the second half of the epochs, all seeds together."""
    lines = [
        "| run | epochs | AUC BPD, mean | least | most | correlation with test nats/dim |", "|---|--:|--:|--:|--:|--:|"
    ]  # fmt: skip
    for run_of_table in SWINGING:
        curves = [one["curve"] for seed in range(SEEDS) if (one := results.get(f"{run_of_table}-seed{seed}"))]
        if not curves:
            continue
        half = len(curves[0]) // 2
        rows = [row for curve in curves for row in curve[half:]]
        found, nats = ([row[name] for row in rows] for name in ("auc_bpd", "nats_per_dim_test"))
        cells = [f"{value:.2f}" for value in (mean(found), min(found), max(found), correlation(found, nats))]
        lines.append(f"| {run_of_table} | {half + 1} to {len(curves[0])} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _results(name: str) -> list[dict[str, Any]]:
    return [json.loads(path.read_text()) for path in sorted(RESULTS.glob(f"{name}-seed*.json"))]


def _line(name: str, meaning: str, curves: list[list[dict[str, float]]]) -> str:
    kl = [[f"{curve[place]['kl']:,.3g}" for curve in curves] for place in (0, -1)]
    cells = [", ".join(values) for values in kl]
    cells += [str(spread([curve[-1][row] for curve in curves])) for row in ROWS]
    return f"| {name} | {meaning} | {len(curves)} | {' | '.join(cells)} |"


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("action", choices=("run", "show"))
    parser.add_argument("names", nargs="*", help=f"of {', '.join(CAUSES)}; all if left out")
    parser.add_argument("--seeds", type=int, default=SEEDS, help="number of seeds that run carries out")
    parser.add_argument("--page", type=Path, help="page that show writes the table to")
    given = parser.parse_args()
    if unknown := set(given.names) - CAUSES.keys():
        parser.error(f"no such experiment: {', '.join(sorted(unknown))}")
    if given.action == "show":
        text = table()
        print(text)
        if given.page:
            insert(given.page, text, "causes", "python benchmarks/causes.py show")
        return
    for seed in range(given.seeds):
        for name in given.names or CAUSES:
            run(name, seed)


if __name__ == "__main__":
    main()
