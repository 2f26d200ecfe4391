"""The recipe of the preset `unsupervised` beside the one it had before: `python -m benchmarks.preset_recipe`.

The former recipe made about twice the passes over the images at a constant rate. For each set of the table without
outside data one model is trained by each and measured as the table's runs are. Figures go to
benchmarks/results/preset-recipe.json; what the file has is not trained again. (Its models by the former recipe are
seed 0 of the table at commit 4392ecd, which had that recipe.) `--pace` measures images/s of both batch sizes in turns
(an idle machine, two minutes), `--trials` trains the recipes among which the present one was chosen.
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path
from typing import Any

from benchmarks.workers import learner_of_config, rate
from negvae.config import RunConfig, preset
from negvae.data import load
from negvae.files import write_text
from negvae.paper import unsupervised as beyond
from negvae.paper.unsupervised_runs import evaluate, fitted
from negvae.runs.provenance import provenance
from negvae.runs.train import run

RESULT = Path(__file__).parent / "results" / "preset-recipe.json"
SCORES = ("combined", "dose", "prior_ratio", "kl")
FORMER = dict(learning_rate=1e-3, schedule="constant", batch_size=128, epochs=6)
"""The former recipe, as changes of the preset."""
EPOCHS = {"fashion-mnist": (4, 3), "mnist": (8, 4), "cifar10": (6, 3), "svhn": (30, 15)}
"""Passes over each set by the former recipe, as the table had them, and by the present one."""
TRIALS: tuple[dict[str, Any], ...] = (
    {"epochs": 3, "batch_size": 128}, {"epochs": 6, "batch_size": 128, "schedule": "constant", "learning_rate": 1e-3},
    {"epochs": 3, "batch_size": 128, "learning_rate": 1e-3}, {"epochs": 3}, {"epochs": 2},
)  # fmt: skip
"""The recipes that were tried on Fashion-MNIST, as changes of the preset."""


def measured(data: str, directory: Path, **changes: Any) -> dict[str, Any]:
    """Train the preset on a set, or a changed one, and measure it like a run of the table."""
    config = preset("unsupervised", data, **changes, device="cpu")
    result = run(config, directory, resume=True, heatmaps=False)
    test = load(data, "test")
    others = {}
    for name in beyond.ood_sets(data):
        shape = test.shape if name == "uniform-noise" else None
        others[name] = fitted(load(name, "test", shape=shape), test.shape)
    # As the ablation's runs are measured: without an ensemble of seeds, of which there is one.
    found = evaluate(beyond.make(data, "no-cutmix"), directory, test, others, None)
    return {**figures(found), "epochs": config.epochs, "seconds": round(result.progress.seconds, 1)}


def figures(found: dict[str, Any]) -> dict[str, Any]:
    """Return the figures of a result: likelihood, mean AUROC over the proxies, AUROC of each set."""
    sets = {
        name: {score: round(areas[f"auc_{score}"], 4) for score in SCORES}
        for name, areas in found["evaluation"].items()
    }
    proxies = {
        score: round(statistics.mean(areas[score] for areas in found["proxies"].values()), 4) for score in SCORES
    }
    others = statistics.mean(areas["combined"] for areas in list(sets.values())[1:])
    return {
        "nats_per_dim_test": round(found["nats_per_dim_test"], 5), "proxies": proxies, "sets": sets,
        "combined_on_others": round(others, 4),
    }  # fmt: skip


def pace(rounds: int) -> dict[str, Any]:
    """Measure images/s of both recipes on both kinds of images, in turns."""
    paces: dict[str, Any] = {}
    for data, shape in (("fashion-mnist", (1, 28, 28)), ("cifar10", (3, 32, 32))):
        configs = {"former": preset("unsupervised", "x", **FORMER, device="cpu"),
                   "present": preset("unsupervised", "x", device="cpu")}  # fmt: skip
        learners = {name: learner_of_config(config, shape) for name, config in configs.items()}
        found: dict[str, list[float]] = {name: [] for name in learners}
        for _ in range(rounds):
            for name, learner in learners.items():
                found[name].append(rate(learner, 2, 1, 2.0))
        for learner in learners.values():
            learner.close()
        rates = {name: statistics.median(values) for name, values in found.items()}
        images = {name: 48_000 * config.epochs for name, config in configs.items()}
        times = [a / b for a, b in zip(found["present"], found["former"], strict=True)]
        share = images["present"] / images["former"] / statistics.median(times)
        paces[data] = {"images_per_second": rates, "images": images, "time_present_over_former": round(share, 3)}
    return paces


def main() -> None:
    """Train, measure and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", default=beyond.DATA, choices=beyond.DATA)
    parser.add_argument("--pace", action="store_true", help="only measure images/s")
    parser.add_argument("--work", type=Path, default=Path("runs/preset-recipe"))
    parser.add_argument("--out", type=Path, default=RESULT)
    parser.add_argument("--trials", action="store_true", help="train only the recipes that were tried")
    asked = parser.parse_args()
    results: dict[str, Any] = json.loads(asked.out.read_text()) if asked.out.exists() else {"sets": {}}
    origin = provenance(RunConfig(data="fashion-mnist", device="cpu"))
    if asked.pace:
        results["pace"] = {"provenance": origin, **pace(5)}
    if asked.trials:
        results["trials"] = []
        for number, changes in enumerate(TRIALS):
            recipe = preset("unsupervised", "fashion-mnist", **changes)
            found = measured("fashion-mnist", asked.work / f"trial-{number}", **changes)
            results["trials"].append({
                "data": recipe.data, "epochs": recipe.epochs, "batch_size": recipe.batch_size,
                "schedule": recipe.schedule, "learning_rate": recipe.learning_rate,
                **{name: found[name] for name in ("nats_per_dim_test", "proxies")},
            })  # fmt: skip
    for data in () if asked.pace or asked.trials else asked.only:
        if data in results["sets"]:
            continue
        former, present = EPOCHS[data]
        results["sets"][data] = {
            "former": measured(data, asked.work / f"{data}-former", **{**FORMER, "epochs": former}),
            "present": measured(data, asked.work / data, epochs=present), "provenance": origin,
        }  # fmt: skip
        write_text(asked.out, json.dumps(results, indent=1) + "\n")
    write_text(asked.out, json.dumps(results, indent=1) + "\n")
    print(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
