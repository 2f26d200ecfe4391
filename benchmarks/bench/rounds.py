"""Rounds in turn: subjects are asked one after the other, again and again, and each sleeps while others work."""

from __future__ import annotations

import contextlib
import json
import statistics
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

PAUSE = 0.25
"""Seconds between two rounds: idle OpenMP threads spin for a while before they sleep."""


class SubjectError(RuntimeError):
    """A subject ended, or said what it should not."""


class Interval(NamedTuple):
    """Median and quartiles."""

    median: float
    low: float
    high: float


def spread(values: Sequence[float]) -> Interval:
    """Median and quartiles (linear interpolation) of one or more values."""
    if len(values) == 1:
        return Interval(values[0], values[0], values[0])
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return Interval(middle, low, high)


class Subject(Protocol):
    """What is measured."""

    @property
    def facts(self) -> dict[str, Any]:
        """What it says of itself: precision, threads, versions."""

    def round(self) -> float:
        """Work one round; the rate in units per second, or the seconds, as the row says."""

    def close(self) -> None:
        """Let it end."""


def interleave(subjects: Mapping[str, Subject], rounds: int) -> dict[str, list[float]]:
    """Ask every subject once in each round, in order.

    Returns:
        For each subject, one value a round.
    """
    values: dict[str, list[float]] = {name: [] for name in subjects}
    for _ in range(rounds):
        for name, subject in subjects.items():
            time.sleep(PAUSE)
            values[name].append(subject.round())
    return values


class Worker:
    """A process that speaks `benchmarks.bench.peers.protocol`, from its start to being ready.

    Args:
        command: to start, without its specification.
        spec: what it is to do.
        directory: in which it runs; peers leave files behind.

    Raises:
        SubjectError: it ended before it was ready; the message is the last line it wrote.
    """

    def __init__(self, command: Sequence[str], spec: Mapping[str, Any], directory: Path) -> None:
        self._log = tempfile.TemporaryFile("w+")  # noqa: SIM115 - closed with the process
        self._process = subprocess.Popen(
            [*command, json.dumps(spec)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
            cwd=directory,
        )
        self.facts: dict[str, Any] = self._read("ready")["ready"]

    def round(self) -> float:
        """Units per second of one round."""
        done = self._ask("round", "units")
        return float(done["units"] / done["seconds"])

    def profile(self) -> list[dict[str, Any]]:
        """The operators of one round that took the most time."""
        operators: list[dict[str, Any]] = self._ask("profile", "operators")["operators"]
        return operators

    def close(self) -> None:
        """End the process."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.close()
            self._process.wait(timeout=10)
        except (OSError, subprocess.TimeoutExpired):
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()
        self._log.close()

    def _ask(self, word: str, key: str) -> dict[str, Any]:
        assert self._process.stdin is not None
        # Where it has ended, reading its answer says so better.
        with contextlib.suppress(BrokenPipeError):
            print(word, file=self._process.stdin, flush=True)
        return self._read(key)

    def _read(self, key: str) -> dict[str, Any]:
        """The next answer, which must have `key`."""
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        try:
            answer: dict[str, Any] = json.loads(line)
            if key in answer:
                return answer
        except ValueError:
            pass
        try:
            code = self._process.wait(timeout=0 if line else 10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            code = self._process.wait()
        self._log.seek(0)
        said = [text.strip() for text in [*self._log, line] if text.strip()]
        self.close()
        raise SubjectError(f"ended with code {code}: {said[-1] if said else 'it said nothing'}")
