"""Subjects that are whole commands: how soon they answer, and how fast they run with how much memory."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.bench.rounds import Subject, SubjectError

NEGVAE = (sys.executable, "-P", "-c", "from negvae.cli import main; main()")
"""The command that starts negvae's command line as its script does."""
SETTLES = 0.1
"""Seconds after which the system has given processes that go on their share of the cores."""


class Start:
    """A subject that starts a new process in each round: the seconds until its first row of data, or until it ends.

    Args:
        command: command to start, as a list of arguments.
        first_row: whether to stop the clock, and the process, at the first row of CSV or JSON lines that it prints.
    """

    def __init__(self, command: Sequence[str], *, first_row: bool = False) -> None:
        self._command, self._first_row = command, first_row
        self.facts: dict[str, Any] = {}
        self.round()  # brings the files into memory; what is measured is a new process, not a cold disk

    def round(self) -> float:
        """Measure one start, in seconds."""
        started = time.perf_counter()
        with _Running(self._command) as running:
            if self._first_row:
                running.read_rows(1)
            else:
                running.finish()
            return time.perf_counter() - started

    def close(self) -> None:
        """Do nothing, because no process is left between rounds."""


class Streaming:
    """A subject that is one command, which prints a row for each image; it is halted between rounds.

    Args:
        command: command to start, as a list of arguments.
        rows: number of rows that the command prints in all.
        rounds: number of rounds into which the rows after the first are divided.
    """

    def __init__(self, command: Sequence[str], rows: int, rounds: int) -> None:
        self.facts: dict[str, Any] = {}
        self._running = _Running(command)
        self._running.read_rows(1)
        self._running.halt()
        self._rows = (rows - 1) // rounds

    def round(self) -> float:
        """Measure one round, in rows per second."""
        self._running.go_on()
        started = time.perf_counter()
        done = self._running.read_rows(self._rows)
        seconds = time.perf_counter() - started
        self._running.halt()
        return done / seconds

    def finish(self) -> dict[str, float]:
        """Let the command run to its end.

        Returns:
            Its peak memory in MB: peak_rss as the system counts it (with the pages of mapped files, which the
            system takes back when it needs them), and peak_own without those.
        """
        self._running.go_on()
        return self._running.finish()

    def close(self) -> None:
        """End the command if it still runs."""
        self._running.close()


class Beside:
    """A subject beside other processes that are busy while it works its round, and halted otherwise.

    Args:
        subject: subject that is measured.
        others: number of busy processes.
    """

    def __init__(self, subject: Subject, others: int) -> None:
        self.facts, self._subject = {**subject.facts, "beside": others}, subject
        spin = [sys.executable, "-c", "while True: sum(range(100_000))"]
        self._others = [subprocess.Popen(spin) for _ in range(others)]
        self._signal(signal.SIGSTOP)

    def round(self) -> float:
        """Measure one round, in the subject's unit."""
        self._signal(signal.SIGCONT)
        time.sleep(SETTLES)
        try:
            return self._subject.round()
        finally:
            self._signal(signal.SIGSTOP)

    def close(self) -> None:
        """End the subject and the other processes."""
        for other in self._others:
            other.kill()
            other.wait()
        self._subject.close()

    def _signal(self, number: signal.Signals) -> None:
        for other in self._others:
            other.send_signal(number)


class _Running:
    """A process in a group of its own, whose rows are counted as they are printed."""

    def __init__(self, command: Sequence[str]) -> None:
        self._errors = tempfile.TemporaryFile("w+")  # noqa: SIM115 - closed with the process
        # Without a buffer, Python loses what a halted process was writing; without bytecode, it starts slowly.
        switches = ("PYTHONUNBUFFERED", "PYTHONDONTWRITEBYTECODE")
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            start_new_session=True,
            env={name: value for name, value in os.environ.items() if name not in switches},
        )
        self._surplus, self._begun, self._peak_own = 0, False, 0.0

    def __enter__(self) -> _Running:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def read_rows(self, count: int) -> int:
        """Read until `count` more rows have been printed.

        Args:
            count: number of rows to wait for; rows that are read beyond them count for the next call.

        Returns:
            The number of rows, which is `count`.
        """
        assert self._process.stdout is not None
        got = self._surplus
        while got < count:
            block = os.read(self._process.stdout.fileno(), 1 << 16)
            if not block:
                raise SubjectError(f"printed {got} of {count} rows: {self._complaint()}")
            if not self._begun:
                self._begun = True
                got -= not block.startswith(b"{")  # the header of a CSV file is no row
            got += block.count(b"\n")
            self._peak_own = max(self._peak_own, _own_memory(self._process.pid))
        self._surplus = got - count
        return count

    def finish(self) -> dict[str, float]:
        """Read to the end of the output and wait for the process.

        Returns:
            Its peak memory in MB; see `Streaming.finish`.

        Raises:
            SubjectError: if the process failed.
        """
        assert self._process.stdout is not None
        while os.read(self._process.stdout.fileno(), 1 << 16):
            self._peak_own = max(self._peak_own, _own_memory(self._process.pid))
        _, status, usage = os.wait4(self._process.pid, 0)
        self._process.returncode = os.waitstatus_to_exitcode(status)
        if self._process.returncode:
            raise SubjectError(self._complaint())
        kilobytes = usage.ru_maxrss / (1024 if sys.platform == "darwin" else 1)
        return {"peak_rss": kilobytes / 1024, "peak_own": self._peak_own}

    def halt(self) -> None:
        os.killpg(self._process.pid, signal.SIGSTOP)

    def go_on(self) -> None:
        os.killpg(self._process.pid, signal.SIGCONT)

    def close(self) -> None:
        if self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
        assert self._process.stdout is not None
        self._process.stdout.close()
        self._errors.close()

    def _complaint(self) -> str:
        self._errors.seek(0)
        said = [text.strip() for text in self._errors if text.strip()]
        return said[-1] if said else "it said nothing"


def _own_memory(process: int) -> float:
    """Return a process's memory in MB without mapped files, or 0 if the system does not report it."""
    try:
        lines = Path(f"/proc/{process}/status").read_text(encoding="ascii").splitlines()
    except OSError:
        return 0.0
    return sum(int(line.split()[1]) for line in lines if line.startswith("RssAnon")) / 1024
