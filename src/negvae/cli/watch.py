"""The command `negvae watch`: score images as they arrive, and report changes of the stream."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from negvae.cli.common import Confidence, Device, Embed, Model, Resize, TargetFPR, option, printer, score_help

STREAM = "Stream"


def watch(
    directory: Model,
    source: Annotated[
        str,
        typer.Argument(
            metavar="FOLDER",
            help="Folder that images arrive in; - reads paths from standard input.",
            show_default=False,
        ),
    ],
    out: Annotated[
        Path, typer.Option(help="Folder of rows, state, metrics and page; a watch goes on from the state in it.")
    ] = Path("watch"),
    score: Annotated[
        str | None, option(f"The score that decides. {score_help()}", "name", show_default="the calibrated one")
    ] = None,
    target_fpr: TargetFPR = None,
    confidence: Confidence = None,
    alarm_rate: Annotated[
        float, option("Probability of a false alarm about a change of the stream.", "probability", STREAM)
    ] = 0.01,
    fdr: Annotated[
        float | None,
        option("Also decide image by image at this false-discovery rate; takes the extra watch.", "rate", STREAM),
    ] = None,
    window: Annotated[
        int,
        option("Take p-values and threshold from the latest so many images; 0 for held-out ones.", "images", STREAM),
    ] = 0,
    groups: Annotated[
        str | None,
        option(
            "Decide by the group of each row: folders (a folder above the file has its name), or the name of a column.",
            "name",
            STREAM,
        ),
    ] = None,
    interval: Annotated[float, option("Time between two looks at the folder.", "seconds", STREAM)] = 2.0,
    settle: Annotated[
        float, option("Time that a file must have been left alone before it is read.", "seconds", STREAM)
    ] = 1.0,
    once: Annotated[
        bool, typer.Option("--once", help="Stop when all that is there is scored.", rich_help_panel=STREAM)
    ] = False,
    resize: Resize = False,
    embed: Embed = None,
    device: Device = "auto",
) -> None:
    """Score images as they arrive in a folder, with a page of results; stop with Ctrl-C and start again any time."""
    from rich.console import Console

    from negvae.report.watch import PAGE, REFRESH, write_page
    from negvae.runs.watch import refreshing
    from negvae.runs.watch import watch as run_watch

    log = printer(Console(stderr=True, emoji=False))
    with _stopping() as asked_to_end, refreshing(lambda watched: write_page(out, watched), REFRESH) as update:

        def should_stop() -> bool:
            update(None)  # it is asked while nothing arrives, too
            return asked_to_end()

        watched = run_watch(
            directory, source, out, score=score, target_fpr=target_fpr, confidence=confidence, alarm_rate=alarm_rate,
            fdr=fdr, window=window, groups=groups, interval=interval, settle=settle, once=once, resize=resize,
            embed=embed, device=device, on_update=update, should_stop=should_stop, log=log,
        )  # fmt: skip
    write_page(out, watched, ended=True)
    log(f"{watched.describe()}: {out / PAGE}")


@contextmanager
def _stopping() -> Iterator[Callable[[], bool]]:
    """Provide a function that returns whether the process was asked to end; files being scored are finished first."""
    asked = threading.Event()
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = [signal.signal(number, lambda *_: asked.set()) for number in numbers]
    try:
        yield asked.is_set
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)
