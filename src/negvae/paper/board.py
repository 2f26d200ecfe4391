"""Live progress over many runs, with the time left for all of them: bars on a terminal, plain lines elsewhere."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Literal

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn

from negvae.paper.published import Setting
from negvae.training.reporting import ProgressUpdate

PLAIN_SECONDS = 30.0


@dataclass(frozen=True)
class Event:
    """Message of a worker about a run.

    Attributes:
        kind: "started", "progress", "finished", "diverged", "stopped", "failed", "busy" (locked by another process)
            or "say".
        run: name of the run; empty for "say".
        update: progress that the training loop reports, where the kind is "progress".
        text: seconds that the run took ("finished", "diverged"), reason ("stopped") or message ("failed", "say").
    """

    kind: Literal["started", "progress", "finished", "diverged", "stopped", "failed", "busy", "say"]
    run: str
    update: ProgressUpdate | None = None
    text: str = ""


@dataclass
class Board:
    """State of all runs of a command.

    Attributes:
        runs: settings of the runs by name.
        seconds: seconds that each finished run took, by name; None if unknown.
        jobs: number of workers.
        active: last update of each run under way, by name; None before the first update.
        ended: names of runs that need no more time here: finished, diverged or failed.
    """

    runs: Mapping[str, Setting]
    seconds: dict[str, float | None]
    jobs: int
    active: dict[str, ProgressUpdate | None] = field(default_factory=dict)
    ended: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        """Count finished runs among those that need no more time."""
        self.ended |= self.seconds.keys()

    def hear(self, event: Event) -> None:
        """Take an event into account."""
        if event.kind in ("started", "progress"):
            self.active[event.run] = event.update
        elif event.kind not in ("say", "busy"):
            self.active.pop(event.run, None)
            if event.kind != "stopped" and event.run in self.runs:
                self.ended.add(event.run)
            if event.kind in ("finished", "diverged"):
                self.seconds[event.run] = float(event.text)

    def seconds_left(self) -> float | None:
        """Estimate the seconds until all runs are done; None if unknown.

        A run without progress is expected to take as long as runs of its setting, else of its kind of image, else all.
        """
        total, rates = 0.0, {name: self._expected(name) for name in self.runs if name not in self.ended}
        for name, expected in rates.items():
            update = self.active.get(name)
            if update is not None:
                total += update.seconds_left
            elif expected is None:
                return None
            else:
                total += expected
        return total / max(1, min(max(self.jobs, len(self.active)), len(rates)))

    def _expected(self, name: str) -> float | None:
        setting = self.runs[name]
        known = [
            (self.runs[run], seconds)
            for run, seconds in self.seconds.items()
            if run in self.runs and seconds is not None
        ]
        own = [seconds for other, seconds in known if other == setting]
        family = [seconds for other, seconds in known if other.color == setting.color]
        for found in (own, family, [seconds for _, seconds in known]):
            if found:
                return statistics.fmean(found)
        under_way = [
            update.seconds_left * update.epochs * update.steps / left
            for run, update in self.active.items()
            if update is not None and run in self.runs
            and (left := (update.epochs - update.epoch + 1) * update.steps - update.step) > 0
        ]  # fmt: skip
        return statistics.fmean(under_way) if under_way else None

    def summary(self) -> str:
        """Return the number of runs done and the time left, in one line."""
        left = self.seconds_left()
        return f"{len(self.ended)}/{len(self.runs)} runs, {'time left unknown yet' if left is None else _span(left)}"


@contextmanager
def runs_progress(
    console: Console, runs: Mapping[str, Setting], seconds: Mapping[str, float | None], jobs: int
) -> Iterator[Callable[[Event], None]]:
    """Show the progress of all runs for as long as the context lasts.

    Args:
        console: console that the progress is shown on.
        runs: settings of all runs of the command by name.
        seconds: seconds that each run already finished took, by name; None if unknown.
        jobs: number of workers.

    Yields:
        The function that takes the workers' events and updates what is shown.
    """
    board, said = Board(runs, dict(seconds), jobs), set[str]()

    def line(event: Event) -> str | None:
        """Return the line that stays on the screen for an event; None for an event without one."""
        if event.kind == "say":
            fresh = event.text not in said
            said.add(event.text)
            return event.text if fresh else None
        took = f"{float(event.text):.0f} s" if event.kind in ("finished", "diverged") else event.text
        ends = {"finished": f"finished in {took}", "diverged": f"diverged after {took}", "failed": f"failed: {took}"}
        return f"{event.run}: {ends[event.kind]} ({board.summary()})" if event.kind in ends else None

    def put(text: str) -> None:
        console.print(text, highlight=False, markup=False, soft_wrap=True)

    if not console.is_terminal:
        last = 0.0

        def plain(event: Event) -> None:
            nonlocal last
            board.hear(event)
            text = line(event)
            if event.kind == "progress" and time.monotonic() - last >= PLAIN_SECONDS:
                last = time.monotonic()
                text = f"{board.summary()}: " + "; ".join(
                    f"{run} {_state(update)}" for run, update in board.active.items() if update is not None
                )
            if text:
                put(text)

        yield plain
        return

    with Progress(
        TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[state]}"), console=console
    ) as bars:
        everything = bars.add_task("all runs", total=len(runs), completed=len(board.ended), state=board.summary())
        tasks: dict[str, TaskID] = {}

        def show(event: Event) -> None:
            board.hear(event)
            if event.kind == "started":
                tasks[event.run] = bars.add_task(event.run, total=None, state="")
            elif event.kind == "progress" and event.update is not None and event.run in tasks:
                update = event.update
                done = (update.epoch - 1) * update.steps + update.step
                total = update.epochs * update.steps
                bars.update(tasks[event.run], total=total, completed=done, state=_state(update))
            elif event.run in tasks and event.kind != "say":
                bars.remove_task(tasks.pop(event.run))
            bars.update(everything, completed=len(board.ended), state=board.summary())
            if text := line(event):
                put(text)

        yield show


def _state(update: ProgressUpdate) -> str:
    return (
        f"epoch {update.epoch}/{update.epochs} step {update.step}/{update.steps},"
        f" {update.images_per_second:.0f} images/s"
    )


def _span(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d} left"
