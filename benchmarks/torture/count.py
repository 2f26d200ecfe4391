"""How many trials there were, and what failed; kept in a journal, so that a run that was stopped goes on."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

Faults = Iterable[str]


@dataclass
class Count:
    """Trials by kind.

    Attributes:
        journal: file of one JSON line for each trial, after a first line that says of what; None keeps none.
        trials: how many of each kind.
        failures: what went wrong, by kind.
        skipped: kinds that cannot be tried here, and why.
        seconds: how long the trials of each kind took.
        known: what the journal holds of an earlier call, by kind and key.
    """

    journal: Path | None = None
    trials: dict[str, int] = field(default_factory=dict)
    failures: dict[str, list[str]] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    known: dict[tuple[str, str], dict[str, Any]] = field(default_factory=dict)

    @classmethod
    def open(cls, journal: Path, subject: dict[str, Any]) -> Count:
        """Go on with a journal, or begin one.

        Args:
            journal: of the trials.
            subject: what is tried, whichever of the parts; a journal of something else, or one that came to its end, is
                begun anew.

        Returns:
            The count, of what the journal holds.
        """
        count = cls(journal)
        lines = journal.read_text().splitlines() if journal.exists() else []
        try:
            entries = [json.loads(line) for line in lines if line.endswith("}")]
        except json.JSONDecodeError:
            entries = []
        if entries and entries[0] == subject and "ended" not in entries[-1]:
            count.known = {(entry["kind"], entry["key"]): entry for entry in entries[1:]}
            journal.write_text("".join(json.dumps(entry) + "\n" for entry in entries))
            print(f"going on after {len(count.known):,} entries of {journal}", flush=True)
        else:
            journal.parent.mkdir(parents=True, exist_ok=True)
            journal.write_text(json.dumps(subject) + "\n")
        return count

    def trial(self, kind: str, key: object, work: Callable[[], Faults], number: int = 1) -> None:
        """Carry out a trial, unless the journal has it with this number, and count it.

        Args:
            kind: of trial.
            key: tells the trials of a kind from one another.
            work: carries it out; what was wrong, in words.
            number: how many trials that was.
        """
        entry = self.known.get((kind, str(key)))
        if entry is None or entry["number"] != number:
            began = time.monotonic()
            faults = list(work())
            entry = {"kind": kind, "key": str(key), "number": number, "faults": faults,
                     "seconds": round(time.monotonic() - began, 3)}  # fmt: skip
            self._note(entry)
        self.trials[kind] = self.trials.get(kind, 0) + entry["number"]
        self.seconds[kind] = self.seconds.get(kind, 0.0) + entry["seconds"]
        for fault in entry["faults"]:
            self.failures.setdefault(kind, []).append(fault)
            print(f"FAILED {kind}: {fault}", flush=True)

    def done(self, kind: str, numbers: Mapping[Any, int]) -> bool:
        """Whether the journal has all these trials, by key with their numbers, and nothing needs to be prepared."""
        known = ((self.known.get((kind, str(key))), number) for key, number in numbers.items())
        return all(entry is not None and entry["number"] == number for entry, number in known)

    def skip(self, kind: str, why: str) -> None:
        """Note that a kind is not tried."""
        self.skipped[kind] = why

    def close(self) -> None:
        """Note that all trials are done: the next run begins anew."""
        self._note({"ended": True})

    def _note(self, entry: dict[str, Any]) -> None:
        if self.journal is not None:
            with self.journal.open("a") as file:
                file.write(json.dumps(entry) + "\n")

    def table(self) -> str:
        """One line for each kind: trials, survivors, failures."""
        lines = [f"{'trials':>8} {'survived':>8} {'failed':>8} {'seconds':>8}  kind"]
        for kind, number in self.trials.items():
            failed = min(len(self.failures.get(kind, [])), number)
            lines.append(f"{number:8,} {number - failed:8,} {failed:8,} {self.seconds[kind]:8,.0f}  {kind}")
        lines += [f"{'':35}  {kind}: not tried here ({why})" for kind, why in self.skipped.items()]
        return "\n".join(lines)

    def to_dict(self) -> dict[str, Any]:
        """All counts, as plain values."""
        kinds = {
            kind: {"trials": number, "failed": min(len(self.failures.get(kind, [])), number),
                   "seconds": round(self.seconds[kind], 1), "failures": self.failures.get(kind, [])}
            for kind, number in self.trials.items()
        }  # fmt: skip
        return {"kinds": kinds, "not_tried": self.skipped}
