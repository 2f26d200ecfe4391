"""Files written whole or not at all, and locks between processes."""

import subprocess
import sys

from negvae.files import locked

HOLD = """
import sys
from pathlib import Path
from negvae.files import locked
with locked(Path(sys.argv[1])) as mine:
    print(mine, flush=True)
    sys.stdin.read()
"""


def test_a_lock_is_held_by_one_process_and_freed_by_its_death(tmp_path):
    path = tmp_path / "below" / "run.lock"
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout.readline() == "True\n"
        with locked(path) as mine:
            assert not mine
        other.kill()
    for _ in range(2):
        with locked(path) as mine:
            assert mine
            with locked(path) as again:
                assert not again
