"""A look of seconds at `make torture`: processes are killed, disks are full, files are damaged."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="trials run in forked processes")
def test_nothing_breaks_under_a_little_torture():
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.torture", "--quick"],
        cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=280, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert "killed: train" in done.stdout
    assert "damaged files" in done.stdout
