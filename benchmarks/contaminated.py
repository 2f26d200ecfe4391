"""What outliers among the training rows do to `NegVAEDetector`, and what leaving a share of the rows out does.

    python benchmarks/contaminated.py --data DIRECTORY [--page docs/notes/rows.md]

Rows are drawn as in `benchmarks/rows.py`, seed 0; anomalies are added to the training rows until they are the given
share of them, on the sets that have twice as many. The network is trained for one epoch only: it has no say here.
Results are kept in results/rows-contaminated.json.
"""

from __future__ import annotations

import argparse
import json
import sys
import warnings
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

import numpy as np
from sklearn.metrics import roc_auc_score

from benchmarks.rows import EMBEDDINGS, draw, insert, made
from negvae import NegVAEDetector
from negvae.files import write_text

RESULTS = Path(__file__).parent.parent / "results" / "rows-contaminated.json"
SHARES = (0.0, 0.01, 0.05, 0.1)
SETS = (
    "2_annthyroid", "6_cardio", "10_cover", "12_fault", "19_landsat", "22_magic.gamma", "28_pendigits", "31_satimage-2",
    "35_SpamBase", "MVTec-AD_bottle", "MVTec-AD_grid", "MVTec-AD_pill", "MVTec-AD_tile", "MVTec-AD_zipper",
)  # fmt: skip
RATE = 0.05


def measure(data: Path, name: str, share: float) -> dict[str, list[float]] | None:
    """AUROC, false alarms and share of anomalies found, as it is and with the share left out."""
    task = draw(data / f"{name}.npz", 0)
    added = round(share * len(task.train) / (1 - share))
    if 2 * added > len(task.anomalies) or (share and not added):
        return None
    rows, anomalies = np.concatenate([task.train, task.anomalies[:added]]), task.anomalies[added:]
    labels = np.repeat([0, 1], [len(task.inliers), len(anomalies)])
    found = {}
    for way, trim in (("as it is", 0.0), ("trim", share)):
        if way == "trim" and not share:
            continue
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            detector = NegVAEDetector(trim=trim, epochs=1, device="cpu").fit(rows)
        test = np.concatenate([task.inliers, anomalies])
        auroc, called = roc_auc_score(labels, detector.ood_score(test)), detector.p_values(test) <= RATE
        found[way] = [float(auroc), float(called[labels == 0].mean()), float(called[labels == 1].mean())]
    return found


def table(results: dict[str, dict[str, list[float]]]) -> str:
    """Means over the sets that have every share's anomalies, for tables and for embeddings."""
    lines = [
        "| rows | outliers in training | sets | AUROC | false alarms | found | AUROC, `trim` | false alarms | found |",
        "|---|--:|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for group in ("tables", "embeddings"):
        for share in SHARES:
            own = [
                found
                for key, found in results.items()
                if key.endswith(f"/{share:g}") and key.startswith(EMBEDDINGS) == (group == "embeddings")
            ]
            cells = []
            for way in ("as it is", "trim"):
                values = [found[way] for found in own if way in found]
                cells += [f"{value:.3f}" for value in np.mean(values, 0)] if values else ["", "", ""]
            lines.append(f"| {group} | {share:.0%} | {len(own)} | {' | '.join(cells)} |")
    return "\n".join([*lines, "", f"False alarms and anomalies found at an asked rate of {RATE:g}; one seed."])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/adbench"))
    parser.add_argument("--page", type=Path)
    chosen = parser.parse_args()
    kept = json.loads(RESULTS.read_text()) if RESULTS.exists() else {"results": {}}
    for name in SETS:
        for share in SHARES:
            key = f"{name}/{share:g}"
            if key not in kept["results"] and (found := measure(chosen.data, name, share)) is not None:
                kept["results"][key], kept["made"] = found, made()
                write_text(RESULTS, json.dumps(kept, indent=1) + "\n")
                print(key, found, flush=True)
    text = table(kept["results"])
    print(text)
    if chosen.page:
        insert(chosen.page, text, "contaminated", "python benchmarks/contaminated.py")


if __name__ == "__main__":
    main()
