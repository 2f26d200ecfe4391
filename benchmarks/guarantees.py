"""Whether what docs/guarantees.md promises comes true: simulations, and ten detectors of images.

    python benchmarks/guarantees.py [--part simulations|images] [--page docs/notes/guarantees.md]

Simulations take some minutes; `--scale 0.1` takes a tenth of the trials. For the images, ten detectors are fitted,
each on a random half of the 60,000 training images of Fashion-MNIST, a fifth of which is held out; the certificate of
each (1% at 95%) is compared with its rate of false alarms on 5,000 images of the other half, which are fresh inliers by
construction. What has been done is kept in results/guarantees.jsonl, and a second call goes on from there.
"""

from __future__ import annotations

import argparse
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

import numpy as np
import scipy
import torch
from scipy.stats import betabinom

from benchmarks.simulations import Row, all_simulations
from negvae import NegVAEDetector, RunConfig, load_images
from negvae.files import write_text
from negvae.paper.store import ResultTable
from negvae.runs.provenance import provenance
from negvae.scoring.certificates import certified_rank

RESULTS = ResultTable(Path("results/guarantees.jsonl"), "python benchmarks/guarantees.py", frozenset({"provenance"}))
DETECTORS, FRESH, TARGET, CONFIDENCE = 10, 5_000, 0.01, 0.95
RECIPE: dict[str, Any] = {"preset": "gray", "optimizer": "adam", "learning_rate": 1e-3, "batch_size": 128, "epochs": 1}
SCORE = "kl"


def simulations(scale: float) -> dict[str, Any]:
    began = time.monotonic()
    found = {name: [asdict(row) for row in rows] for name, rows in all_simulations(scale).items()}
    made = {"commit": provenance(RunConfig(data="none"))["commit"], "numpy": np.__version__, "scipy": scipy.__version__}
    return {"simulations": found, "scale": scale, "seconds": time.monotonic() - began, "provenance": made}


def detector(number: int, images: np.ndarray) -> dict[str, Any]:
    """Fit the detector of this number and count its alarms among fresh inliers."""
    order = np.random.default_rng(1_000 + number).permutation(len(images))
    half, other = order[: len(images) // 2], order[len(images) // 2 :]
    began = time.monotonic()
    fitted = NegVAEDetector(
        "none", decision_score=SCORE, target_fpr=TARGET, confidence=CONFIDENCE, random_state=number, **RECIPE
    ).fit(images[half])
    calibration = fitted.calibration_
    bounds = calibration.fpr_bounds(CONFIDENCE)
    plain = calibration.decide_by(target_fpr=TARGET)
    scores = fitted.ood_score(images[other])
    called, called_plain = calibration.is_outlier(scores), plain.is_outlier(scores)
    return {
        "detector": number,
        "held_out": calibration.size,
        "alarms": int(called[:FRESH].sum()),
        "rate": float(called[:FRESH].mean()),
        "rate_other_half": float(called.mean()),
        "bound": bounds.high,
        "plain_rate": float(called_plain[:FRESH].mean()),
        "plain_rate_other_half": float(called_plain.mean()),
        "seconds": time.monotonic() - began,
        "provenance": provenance(fitted.config_),
    }


def images_part() -> None:
    images = load_images("fashion-mnist").images
    for number in range(DETECTORS):
        if RESULTS.get(f"images-{number}") is not None:
            continue
        found = detector(number, images)
        RESULTS.put(f"images-{number}", found)
        print(f"detector {number}: rate {found['rate']:.4f}, certified {found['bound']:.4f}", flush=True)


def simulation_table(content: dict[str, Any]) -> list[str]:
    lines = ["| simulated | came out (s.e.) | promised at most | |", "|---|--:|--:|---|"]
    for rows in content["simulations"].values():
        for row in (Row(**each) for each in rows):
            bound = "none" if row.bound is None else f"{row.bound:.3g}"
            mark = "" if row.holds() else " **VIOLATED**"
            lines.append(f"| {row.what} | {row.rate:.4f} ({row.error:.4f}){mark} | {bound} | {row.note} |")
    made = content["provenance"]
    scale = "" if content["scale"] == 1 else f" {content['scale']:g} of the usual number of trials."
    lines += ["", f"Commit {made['commit']}, NumPy {made['numpy']}, SciPy {made['scipy']}, one core.{scale}"]
    return lines


def image_table() -> list[str]:
    found = [RESULTS.get(name) or {} for name in RESULTS.names() if name.startswith("images-")]
    if not found:
        return []
    lines = [
        "| detector | held out | alarms among 5,000 fresh inliers | rate | rate among all 30,000 of the other half |"
        " plain threshold: rate | and among all 30,000 |",
        "|--:|--:|--:|--:|--:|--:|--:|",
    ]
    lines += [
        f"| {row['detector']} | {row['held_out']:,} | {row['alarms']} | {row['rate']:.4f} |"
        f" {row['rate_other_half']:.4f} | {row['plain_rate']:.4f} | {row['plain_rate_other_half']:.4f} |"
        for row in found
    ]
    above, above_all, plain, plain_all = (
        sum(row[name] > TARGET for row in found)
        for name in ("rate", "rate_other_half", "plain_rate", "plain_rate_other_half")
    )
    held_out, facts = found[0]["held_out"], found[0]["provenance"]
    rank, plain_rank = certified_rank(held_out, TARGET, CONFIDENCE), int(TARGET * (held_out + 1))
    chance, plain_chance = (float(betabinom.sf(TARGET * FRESH, FRESH, k, held_out + 1 - k)) for k in (rank, plain_rank))
    lines += [
        "",
        f"Certified: at most {TARGET:.0%} with {CONFIDENCE:.0%} confidence, by k = {rank} of {held_out:,}. Observed"
        f" above {TARGET:.0%} among {FRESH:,}: {above} of {len(found)}, and {plain} of {len(found)} with the plain"
        f" threshold; among all 30,000: {above_all} and {plain_all}."
        f" An observed rate has a standard error of about {np.sqrt(TARGET * (1 - TARGET) / FRESH):.4f} of its own, so"
        f" that {chance:.0%} are expected to be observed above {TARGET:.0%} with the certificate, whose true rates are"
        f" above it for 5%, and {plain_chance:.0%} with the plain threshold (beta-binomial). Fashion-MNIST, preset gray"
        f" with {RECIPE['epochs']} epoch of Adam, no negatives, score {SCORE}; {facts['device']}, torch"
        f" {facts['torch']}, commit {facts['commit']}.",
    ]
    return lines


def insert(page: Path, name: str, lines: list[str]) -> None:
    """Replace what stands between the marks of this name."""
    begin, end = f"<!-- {name}: begin (python benchmarks/guarantees.py) -->", f"<!-- {name}: end -->"
    before, rest = page.read_text(encoding="utf-8").split(begin)
    write_text(page, before + begin + "\n" + "\n".join(lines) + "\n" + end + rest.split(end)[1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", choices=("simulations", "images"), help="only this part")
    parser.add_argument("--scale", type=float, default=1.0, help="of the number of trials")
    parser.add_argument("--page", type=Path, help="write the tables there, between their marks")
    options = parser.parse_args()
    torch.set_num_threads(1)
    kept = RESULTS.get("simulations")
    if options.part in (None, "simulations") and not (kept and options.part is None):
        kept = simulations(options.scale)
        RESULTS.put("simulations", kept)
    if options.part in (None, "images"):
        images_part()
    tables = {"simulations": simulation_table(kept) if kept else [],
              "images": image_table()}  # fmt: skip
    for name, lines in tables.items():
        print("\n".join(lines))
        if options.page is not None and lines:
            insert(options.page, name, lines)


if __name__ == "__main__":
    main()
