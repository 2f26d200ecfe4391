"""The jobs of test_jobs.py, in a process of their own.

Threads of Ray's library may crash in a process that has connected to a cluster several times, minutes after the last
connection has ended (https://github.com/ray-project/ray/issues/31145): in a process of all tests, whichever comes then.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.timeout(1500)
def test_the_jobs_pass():
    pytest.importorskip("ray")
    command = [sys.executable, "-m", "pytest", "-m", "ray", "-p", "no:cacheprovider", "tests/cluster/test_jobs.py"]
    surroundings = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    for _ in range(2):  # once more where Ray's library has crashed
        process = subprocess.run(
            command, cwd=Path(__file__).parents[2], env=surroundings, capture_output=True, text=True, check=False
        )
        if process.returncode >= 0:
            break
    assert process.returncode == 0, (process.stdout + process.stderr)[-5000:]
    assert " passed" in process.stdout
    assert "skipped" not in process.stdout
