"""Options and printing functions that the commands share."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from negvae.config import SCORE_PRECISIONS
from negvae.messages import visible
from negvae.registry import Table, choose
from negvae.scoring.table import SCORES

if TYPE_CHECKING:
    from rich.console import Console

Complete = Callable[[str], list[str]]


def completing(names: Iterable[str]) -> Complete:
    """Return a shell completion function for the names that begin with what has been typed.

    >>> completing(["float32", "bfloat16"])("b")
    ['bfloat16']
    """
    return lambda incomplete: [name for name in names if name.startswith(incomplete)]


def option(help: str, unit: str = "", panel: str | None = None, **more: Any) -> Any:
    """Return an option whose help shows `unit` in place of its value, such as <images> or <path>."""
    return typer.Option(help=help, metavar=f"<{unit}>" if unit else None, rich_help_panel=panel, **more)


def one_of(what: str, names: Iterable[str], help: str, **more: Any) -> Any:
    """Return an option that takes one of these names; its help lists them, and the shell completes them."""

    def known(name: str) -> str:
        try:
            return choose(what, name, names)
        except ValueError as error:
            raise typer.BadParameter(str(error)) from None

    return option(f"{help} {listed(names)}", "name", parser=known, autocompletion=completing(names), **more)


def listed(names: Iterable[str]) -> str:
    """Return a sentence for help texts that lists names; entries of a table are listed with their meanings.

    >>> listed(["float32", "int8"])
    'One of: float32, int8.'
    """
    if isinstance(names, Table):
        names = (f"{entry.name} ({entry.meaning})" if entry.meaning else entry.name for entry in names.entries())
    return f"One of: {', '.join(names)}."


def score_help() -> str:
    """Return a sentence for help texts that lists the scores that --score takes."""
    return listed(SCORES)


def set_names(incomplete: str) -> list[str]:
    """Return the names of data sets that begin with what has been typed, for a shell's completion."""
    from negvae.data import names

    return completing(names())(incomplete)


CALIBRATED = "the calibrated one"
"""Default of --score for a calibrated model, as help texts show it."""

Model = Annotated[Path, typer.Argument(metavar="DIRECTORY", help="Folder of a trained model.", show_default=False)]
Inputs = Annotated[
    list[str],
    typer.Argument(
        help="Folders, image files, .npy, .npz, CSV, Parquet, patterns, or names of data sets.", show_default=False
    ),
]
Device = Annotated[str, option("auto (a GPU where there is one), cpu, cuda or cuda:N.", "device", "Machine")]
Precision = Annotated[
    str | None,
    one_of(
        "precision",
        SCORE_PRECISIONS,
        "The arithmetic of the scores.",
        panel="Machine",
        show_default="as calibrated, else float32",
    ),
]
TargetFPR = Annotated[
    float | None, option("Set the threshold for this rate of false alarms.", "rate", show_default=CALIBRATED)
]
Confidence = Annotated[
    float | None,
    option("Confidence with which that rate is to hold, such as 0.95.", "probability", show_default="on average"),
]
Embed = Annotated[
    Path | None,
    option("The ONNX encoder that the model was trained with.", "path", show_default="where it was then"),
]
Resize = Annotated[bool, typer.Option("--resize", help="Resize images of another size.")]
Cluster = Annotated[
    str | None,
    option(
        "Work on a Ray cluster: HOST:PORT of its head, auto (the Ray of this machine, else a new one) or local (always"
        " a new one).",
        "address",
        "Cluster",
    ),
]


Workers = Annotated[
    int | None,
    option(
        "Threads that score on a CPU, each its own images: their number changes no score.",
        "threads",
        "Machine",
        show_default="as many as torch may use",
    ),
]


@contextmanager
def scoring_by(workers: int | None) -> Iterator[None]:
    """Let this number of threads score within the block.

    Args:
        workers: number of threads; None changes nothing.

    Raises:
        ValueError: if the number is below 1.
    """
    if workers is None:
        yield
        return
    if workers < 1:
        raise ValueError(f"--workers is {workers}: it must be at least 1")
    from negvae.training.helpers import threads_of_operators

    with threads_of_operators(workers):  # as many threads as torch may use score blocks of images
        yield


def given(**options: Any) -> dict[str, Any]:
    """Return the options that have a value.

    >>> given(epochs=3, seed=None)
    {'epochs': 3}
    """
    return {name: value for name, value in options.items() if value is not None}


def refusing_uris(command: Callable[..., None]) -> Callable[..., None]:
    """Return a command that refuses a URI in the place of a path, which would make folders named s3: and the like."""

    @wraps(command)
    def checked(*arguments: Any, **options: Any) -> None:
        for value in (*arguments, *options.values()):
            for path in value if isinstance(value, list) else [value]:
                if isinstance(path, Path):
                    _refuse_uri(path)
        command(*arguments, **options)

    return checked


def _refuse_uri(path: Path) -> None:
    """Refuse a path that was a URI before its slashes were joined, unless there is a folder of that odd name."""
    scheme, colon, rest = path.as_posix().partition(":/")
    if colon and re.fullmatch(r"[A-Za-z][A-Za-z0-9+.-]+", scheme) and not Path(f"{scheme}:").is_dir():
        uri = f"{scheme}:{'///' if scheme == 'file' else '//'}{rest}"
        raise ValueError(f"{uri}: runs and outputs lie on this machine: give a path, not a URI")


def only_with_cluster(**options: Any) -> None:
    """Refuse options that require --cluster if that option is not given.

    Raises:
        ValueError: if one of the options has a value.
    """
    for name in given(**options):
        raise ValueError(f"--{name.replace('_', '-')} goes with --cluster")


def make_console() -> Console:
    """Return a console for standard output; for a file or a pipe, wide enough that no table is cut."""
    from rich.console import Console

    console = Console(emoji=False)
    return console if console.is_terminal else Console(width=160, emoji=False)


def printer(console: Console) -> Callable[[str], None]:
    """Return a function that prints lines unchanged, without markup and without wrapping."""
    return lambda text: console.print(visible(text), highlight=False, markup=False, soft_wrap=True)
