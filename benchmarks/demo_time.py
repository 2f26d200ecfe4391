"""How long `negvae demo` takes beside two busy processes, on an older processor: `python -m benchmarks.demo_time`.

torch and oneDNN are held to AVX2 and float32, and two processes compute all the while. What the demo said that it would
take and what it took are written to benchmarks/results/demo-time.json.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.workers import busy
from negvae.config import preset
from negvae.files import write_text
from negvae.runs.provenance import provenance

RESULT = Path(__file__).parent / "results" / "demo-time.json"
OLDER = {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2"}


def main() -> None:
    """Run the demo, and write how long it took."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--busy", type=int, default=2, help="number of busy processes beside")
    parser.add_argument("--out", type=Path, default=RESULT)
    asked = parser.parse_args()
    command = [sys.executable, "-c", "from negvae.cli import main; main()", "demo", "--out"]
    with tempfile.TemporaryDirectory() as folder, busy(asked.busy):
        began = time.monotonic()
        done = subprocess.run(
            [*command, folder], env={**os.environ, **OLDER}, capture_output=True, text=True, check=True
        )
        took = time.monotonic() - began
    result = {
        "provenance": provenance(preset("gray", "fashion-mnist", device="cpu")), "held_to": OLDER,
        "busy_processes": asked.busy, "seconds": round(took, 1), "output": done.stdout.splitlines(),
    }  # fmt: skip
    write_text(asked.out, json.dumps(result, indent=1) + "\n")
    print(f"{took:.0f} s beside {asked.busy} busy processes")
    print(done.stdout)


if __name__ == "__main__":
    main()
