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
from negvae.training.progress import ProgressUpdate

PLAIN_SECONDS = 30.0


@dataclass(frozen=True)
class Event:
    """What a worker tells.

    Attributes:
        kind: "started", "progress", "finished", "diverged", "stopped", "failed", "busy" (locked by another process)
            or "say".
        run: its name; empty for "say".
        update: what the training loop reports, where the kind is "progress".
        text: seconds, reason or message.
    """

    kind: Literal["started", "progress", "finished", "diverged", "stopped", "failed", "busy", "say"]
    run: str
    update: ProgressUpdate | None = None
    text: str = ""


@dataclass
class Board:
    """What is known of all runs of a command.

    Attributes:
        runs: their settings by name.
        seconds: that finished runs took.
        jobs: workers.
        active: last update of those under way; None before the first.
        ended: names of runs that need no more time here: finished, diverged or failed.
    """

    runs: Mapping[str, Setting]
    seconds: dict[str, float]
    jobs: int
    active: dict[str, ProgressUpdate | None] = field(default_factory=dict)
    ended: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        """Finished runs need no more time."""
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
        """Until all runs are done, estimated from runs of the same setting, else kind of image; None if unknown."""
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
        known = [(self.runs[run], seconds) for run, seconds in self.seconds.items() if run in self.runs]
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
        """Runs done and time left, in one line."""
        left = self.seconds_left()
        return f"{len(self.ended)}/{len(self.runs)} runs, {'time left unknown yet' if left is None else _span(left)}"


@contextmanager
def runs_progress(
    console: Console, runs: Mapping[str, Setting], seconds: Mapping[str, float], jobs: int
) -> Iterator[Callable[[Event], None]]:
    """Give the function that hears the workers' events and shows where all runs are.

    Args:
        console: where to show it.
        runs: all runs of the command by name.
        seconds: that those already finished took.
        jobs: workers.
    """
    board, said = Board(runs, dict(seconds), jobs), set[str]()

    def line(event: Event) -> str | None:
        """What is worth a line that stays."""
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
