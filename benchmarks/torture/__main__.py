"""Run all parts, or those that are named, and print the counts; the exit code is 1 where anything failed."""

from __future__ import annotations

import argparse
import hashlib
import json
import platform
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from benchmarks.torture import coverage, disks, guarantees, inputs, kills, mutants, numbers
from benchmarks.torture.count import Count
from negvae.config import RunConfig
from negvae.runs.provenance import provenance

ROOT = Path(__file__).parents[2]
JOURNAL = ROOT / "runs" / "torture.jsonl"
INPUTS = 60_000, 40_000
"""So many inputs are made by chance, and so many by a fuzzer."""


def parts(quick: bool, share: float = 1.0) -> dict[str, Callable[[Count], None]]:
    """The parts by name, with a share of their numbers of trials; a quick look takes seconds."""
    some = ["train", "score", "calibrate", "download"] if quick else []

    def many(number: int) -> int:
        return max(round(share * number), 1)

    return {
        "guarantees": lambda count: guarantees.torture(count, 100 if quick else many(20_000)),
        "disks": lambda count: disks.torture(count, quick),
        "inputs": lambda count: inputs.torture(count, 200 if quick else many(INPUTS[0])),
        **({} if quick else {"coverage": lambda count: coverage.torture(count, many(INPUTS[1]))}),
        "numbers": lambda count: numbers.torture(
            count, ("gray",) if quick else numbers.NETWORKS, 2 if quick else many(50)
        ),
        "kills": lambda count: kills.torture(count, 1 if quick else many(100), some),
        **({} if quick else {"mutants": mutants.torture}),
    }


def subject() -> dict[str, Any]:
    """What is tried: the package and the trials, as they are in this checkout."""
    digest = hashlib.sha256()
    for path in sorted([*(ROOT / "src").rglob("*.py"), *(ROOT / "benchmarks" / "torture").glob("*.py")]):
        digest.update(path.read_bytes())
    return {"source_sha256": digest.hexdigest()}


def result(count: Count, names: list[str], share: float) -> dict[str, Any]:
    """The counts, with what they were made from and on."""
    facts = provenance(RunConfig(data="fashion-mnist"))
    machine = {name: facts[name] for name in ("negvae", "commit", "python", "torch", "device")}
    return {"made_by": " ".join(["make torture", *([f'PARTS="{" ".join(names)}"'] if names else []),
                                 *([f"SHARE={share:g}"] if share < 1 else [])]), "share": share, **subject(), **machine,
            "system": platform.platform(), "written": datetime.now(UTC).isoformat(timespec="seconds"),
            "seconds": round(sum(count.seconds.values())), **count.to_dict()}  # fmt: skip


def main() -> int:
    """Carry out what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, prog="python -m benchmarks.torture")
    parser.add_argument("parts", nargs="*", help=f"of {', '.join(parts(False))}; all if left out")
    parser.add_argument("--share", type=float, default=1.0,
                        help="of the trials; with a larger one a later run goes on")  # fmt: skip
    parser.add_argument("--quick", action="store_true", help="a look of seconds, without a journal")
    parser.add_argument("--journal", type=Path, default=JOURNAL, help="of trials; a run that was stopped goes on")
    parser.add_argument("--out", type=Path, help="a JSON file of the counts")
    asked = parser.parse_args()
    if unknown := set(asked.parts) - parts(False).keys():
        parser.error(f"no such part: {', '.join(sorted(unknown))}")
    if not 0 < asked.share <= 1:
        parser.error(f"--share is {asked.share}: above 0 and at most 1")
    count = Count() if asked.quick else Count.open(asked.journal, subject())
    for name, part in parts(asked.quick, asked.share).items():
        if not asked.parts or name in asked.parts:
            part(count)
            print(f"{name}: done", flush=True)
    if asked.share == 1 and not asked.parts:
        count.close()
    print(count.table())
    if asked.out:
        asked.out.write_text(json.dumps(result(count, asked.parts, asked.share), indent=1) + "\n")
    return 1 if count.failures else 0


if __name__ == "__main__":
    sys.exit(main())
