"""Run all parts, or those that are named, and print the counts; the exit code is 1 where anything failed."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable

from benchmarks.torture import disks, guarantees, inputs, kills, mutants, numbers
from benchmarks.torture.count import Count


def parts(quick: bool) -> dict[str, Callable[[Count], None]]:
    """The parts by name; a quick look takes seconds."""
    some = ["train", "score", "calibrate", "download"] if quick else []
    return {
        "kills": lambda count: kills.torture(count, 2 if quick else 100, some),
        "disks": lambda count: disks.torture(count, quick),
        "inputs": lambda count: inputs.torture(count, 200 if quick else 100_000),
        "numbers": lambda count: numbers.torture(count, ("gray",) if quick else numbers.NETWORKS, 2 if quick else 50),
        "guarantees": lambda count: guarantees.torture(count, 200 if quick else 20_000),
        **({} if quick else {"mutants": mutants.torture}),
    }


def main() -> int:
    """Carry out what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, prog="python -m benchmarks.torture")
    parser.add_argument("parts", nargs="*", help=f"of {', '.join(parts(False))}; all if left out")
    parser.add_argument("--quick", action="store_true", help="a look of seconds")
    asked = parser.parse_args()
    count = Count()
    for name, part in parts(asked.quick).items():
        if not asked.parts or name in asked.parts:
            began = time.monotonic()
            part(count)
            print(f"{name}: {time.monotonic() - began:.0f} s", flush=True)
    print(count.table())
    return 1 if count.failures else 0


if __name__ == "__main__":
    sys.exit(main())
