"""Commands in processes of their own, without the seconds that each would take to import torch.

A server imports the libraries once, computes nothing and starts no thread; every command runs in a process forked from
it, with its own arguments, environment and working folder, and ends as a process of its own would.
"""

from __future__ import annotations

import atexit
import json
import os
import runpy
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import negvae

ROOT = Path(__file__).parents[1]
_servers: list[subprocess.Popen[str]] = []


def run(
    arguments: Sequence[object], *, script: Path | None = None, path: Sequence[Path] = (), strict: bool = False
) -> subprocess.CompletedProcess[str]:
    """Run `negvae` with these arguments, or a script, and wait for it.

    Args:
        arguments: of the command.
        script: a file of Python to run in place of the command line.
        path: folders of further installed packages.
        strict: warnings are errors.

    Returns:
        The exit code (minus the signal that ended it), and what it printed.
    """
    with tempfile.TemporaryDirectory() as place:
        outputs = [Path(place) / name for name in ("out", "error")]
        wish = {
            "arguments": [str(argument) for argument in arguments], "script": script and str(script), "strict": strict,
            "path": [str(folder) for folder in path], "folder": os.getcwd(), "environment": dict(os.environ),
            "outputs": [str(output) for output in outputs],
        }  # fmt: skip
        server = _server()
        assert server.stdin is not None
        assert server.stdout is not None
        print(json.dumps(wish), file=server.stdin, flush=True)
        code = int(server.stdout.readline())
        return subprocess.CompletedProcess(wish["arguments"], code, *(output.read_text() for output in outputs))


def _server() -> subprocess.Popen[str]:
    """The server of this process; started where there is none yet."""
    if not _servers:
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(negvae.__file__).parents[1]), str(ROOT)])}
        command = [sys.executable, "-W", "error", "-m", "tests.processes"]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        _servers.append(subprocess.Popen(command, text=True, cwd=ROOT, env=environment, **pipes))
        atexit.register(_servers[0].communicate)
    return _servers[0]


def _serve() -> None:
    """Import what commands need, then fork for each line of standard input until it ends."""
    import negvae.cli.app
    import negvae.detector.estimator
    import negvae.runs.score
    import negvae.runs.train  # noqa: F401

    for line in sys.stdin:
        wish = json.loads(line)
        process = os.fork()
        if not process:
            return _carry_out(wish)
        print(os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]), flush=True)
    return None


def _carry_out(wish: dict[str, Any]) -> None:
    """Become the process that was asked for."""
    inputs = os.open(os.devnull, os.O_RDONLY)
    outputs = [os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600) for output in wish["outputs"]]
    for number, handle in enumerate([inputs, *outputs]):
        os.dup2(handle, number)
    os.environ.clear()
    os.environ.update(wish["environment"])
    os.chdir(wish["folder"])
    sys.argv = [wish["script"] or "negvae", *wish["arguments"]]
    sys.path[:0] = wish["path"]
    if not wish["strict"]:
        warnings.resetwarnings()  # to what Python starts with
        for kind in (DeprecationWarning, PendingDeprecationWarning, ImportWarning, ResourceWarning):
            warnings.simplefilter("ignore", kind)
    if wish["script"]:
        sys.path.insert(0, str(Path(wish["script"]).parent))
        runpy.run_path(wish["script"], run_name="__main__")
    else:
        from negvae.cli import main

        main()


if __name__ == "__main__":
    _serve()
