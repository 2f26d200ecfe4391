"""Show the progress of a run: a bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from negvae.training.reporting import OnProgress, ProgressUpdate

PLAIN_SECONDS = 10.0
MOST_LINES = 50
"""Number of epochs that get a line each; of more, about so many do, and the last."""


@contextmanager
def training_progress(console: Console) -> Iterator[OnProgress]:
    """Show the progress of training while the block runs.

    Args:
        console: console to print to.

    Yields:
        The function that `negvae.training.loop.train` takes as `on_progress`.
    """
    if not console.is_terminal:
        yield _plain(console)
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.fields[state]}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console) as bars:
        bar = bars.add_task("training", total=None, state="")

        def show(update: ProgressUpdate) -> None:
            done = (update.epoch - 1) * update.steps + update.step
            bars.update(
                bar,
                total=update.epochs * update.steps,
                completed=done,
                description=f"epoch {update.epoch}/{update.epochs}",
                state=update.losses_and_rate(),
            )
            if update.row is not None and gets_line(update):
                bars.console.print(update.describe(), highlight=False)

        yield show


@contextmanager
def row_progress(console: Console) -> Iterator[Callable[[int], None]]:
    """Provide a function to call with the number of rows scored so far; it prints nothing unless this is a terminal."""
    if not console.is_terminal:
        yield lambda rows: None
        return
    columns = (TextColumn("scoring"), BarColumn(), TextColumn("{task.completed:,.0f} rows, {task.fields[rate]:,.0f}/s"))
    with Progress(*columns, console=console, transient=True) as bars:
        bar, began = bars.add_task("scoring", total=None, rate=0.0), time.monotonic()
        yield lambda rows: bars.update(bar, completed=rows, rate=rows / max(time.monotonic() - began, 1e-9))


def gets_line(update: ProgressUpdate) -> bool:
    """Return whether the end of an epoch is worth a line of its own.

    >>> sum(gets_line(ProgressUpdate(epoch, 250, 4, 4, {}, 1.0, 0.0)) for epoch in range(1, 251))
    50
    """
    return update.epoch == update.epochs or update.epoch % max(update.epochs // MOST_LINES, 1) == 0


def _plain(console: Console) -> OnProgress:
    last = time.monotonic()

    def show(update: ProgressUpdate) -> None:
        nonlocal last
        if (update.row is not None and gets_line(update)) or time.monotonic() - last >= PLAIN_SECONDS:
            last = time.monotonic()
            console.print(update.describe(), highlight=False, soft_wrap=True)

    return show
