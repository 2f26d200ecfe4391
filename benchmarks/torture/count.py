"""How many trials there were, and what failed."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field


@dataclass
class Count:
    """Trials by kind.

    Attributes:
        trials: how many of each kind.
        failures: what went wrong, by kind.
        skipped: kinds that cannot be tried here, and why.
    """

    trials: dict[str, int] = field(default_factory=dict)
    failures: dict[str, list[str]] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)

    def add(self, kind: str, problems: Iterable[str] = (), number: int = 1) -> None:
        """Count trials of a kind, with what was wrong."""
        self.trials[kind] = self.trials.get(kind, 0) + number
        for problem in problems:
            self.failures.setdefault(kind, []).append(problem)
            print(f"FAILED {kind}: {problem}", flush=True)

    def skip(self, kind: str, why: str) -> None:
        """Note that a kind is not tried."""
        self.skipped[kind] = why

    def table(self) -> str:
        """One line for each kind: trials, survivors, failures."""
        lines = [f"{'trials':>8} {'survived':>8} {'failed':>8}  kind"]
        for kind, number in self.trials.items():
            failed = min(len(self.failures.get(kind, [])), number)
            lines.append(f"{number:8,} {number - failed:8,} {failed:8,}  {kind}")
        lines += [f"{'':26}  {kind}: not tried here ({why})" for kind, why in self.skipped.items()]
        return "\n".join(lines)
