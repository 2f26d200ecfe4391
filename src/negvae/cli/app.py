"""The command `negvae`: its subcommands and their errors. torch is imported only by the commands that need it."""

from __future__ import annotations

import io
import os
import sys
import warnings
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Annotated, Any, NoReturn

import typer

from negvae.cli import cite, clean, data, evaluate, paper, score, serve, train, watch
from negvae.cli.common import refusing_uris
from negvae.messages import shown, visible, with_type
from negvae.registry import place_in_plugin

app = typer.Typer(
    help="Train variational autoencoders that detect out-of-distribution images, test them and use them.",
    epilog="Begin with `negvae demo --quick`, or with `negvae train --data FOLDER --out RUN`, then"
    " `negvae score RUN FOLDER`. `negvae COMMAND --help` explains a command.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
COMMANDS: dict[str, tuple[Callable[..., None], ...]] = {
    "Make a model": (train.train, evaluate.evaluate, evaluate.calibrate),
    "Use a model": (score.score, watch.watch, score.report, score.export, serve.serve),
    "Data and paper": (clean.clean, paper.demo, cite.cite),
}
for panel, commands in COMMANDS.items():
    for command in commands:
        kind = train.ShowsPreset if command is train.train else None
        app.command(cls=kind, rich_help_panel=panel)(command)
app.add_typer(data.app, name="data", rich_help_panel="Data and paper")
app.add_typer(paper.app, name="paper", rich_help_panel="Data and paper")
for part in (app, data.app, paper.app):
    for registered in part.registered_commands:
        if registered.callback is not None:
            registered.callback = refusing_uris(registered.callback)


@app.callback(invoke_without_command=True)
def _version(
    version: Annotated[bool, typer.Option("--version", help="Show the version and the commit, and exit.")] = False,
) -> None:
    if version:
        from negvae.version import described_version

        print(described_version())
        raise typer.Exit


def main() -> NoReturn:
    """Run the command line and exit.

    An expected error, such as bad input, a missing file or a full disk, ends with one line and exit code 2, and so does
    any error in a plugin's part; with NEGVAE_DEBUG set it keeps its traceback. Where the reader of the output has
    closed the pipe, the exit code is 1 and nothing is printed.
    """
    _fill_closed()
    for stream in (sys.stdout, sys.stderr):  # a name that is not UTF-8 is shown with codes and ends nothing
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    if sys.stderr is sys.__stderr__ and sys.stderr is not None:
        sys.stderr = _lenient(sys.stderr)
    try:
        with warnings.catch_warnings():
            warnings.showwarning = partial(_show_warning, set[str]())
            warnings.simplefilter("default", UserWarning)  # a warning is a line, also where PYTHONWARNINGS says error
            code = app(standalone_mode=False)
        sys.stdout.flush()  # a full disk shows here, and not while Python exits
    except BrokenPipeError:
        _forget_output()
        sys.exit(1)
    except (ValueError, TypeError, ImportError, OSError) as error:
        _fail(error, _describe(error))
    except (typer.Abort, KeyboardInterrupt):  # the second one before the parser is there to turn it into the first
        sys.exit(130)
    except Exception as error:
        if not hasattr(error, "format_message"):  # which the parser's own errors have, whichever package they live in
            if place_in_plugin(error):
                _fail(error, _describe(error))
            raise
        _suggest(error)
        _show_given(error)
        if not (message := error.format_message()):  # the help was printed in place of an error
            sys.exit(2)
        _fail(error, f"{message} (see --help)")
    sys.exit(code if isinstance(code, int) else 0)


def _suggest(error: Any) -> None:
    """Let the parser suggest the options that end like an unknown one, if there are any, as --target-fpr for --fpr.

    What it finds by the letters alone may mean something else, as --fdr does.
    """
    if getattr(error, "ctx", None) is not None and hasattr(error, "possibilities") and hasattr(error, "option_name"):
        ending = f"-{error.option_name.lstrip('-')}"
        names = [name for parameter in error.ctx.command.params for name in parameter.opts]
        error.possibilities = [name for name in names if name.endswith(ending)] or error.possibilities


def _show_given(error: Any) -> None:
    """Add the value to the parser's message where it says only what kind of value is needed."""
    if hasattr(cause := error.__cause__, "errors") and hasattr(error, "message"):  # of Pydantic, in later typer
        given, message = cause.errors()[0]["input"], error.message
        error.message = f"{given!r} ({message[:1].lower()}{message[1:]})"


def _show_warning(shown: set[str], message: Warning | str, *place: object) -> None:
    """Print a warning of the library as one line, once, without the place in the code, which no user can change."""
    if (text := visible(" ".join(str(message).split()))) not in shown:
        shown.add(text)
        print(f"warning: {text}", file=sys.stderr)


def _fill_closed() -> None:
    """Put the null device in the place of standard streams that the caller has closed, which no file may take."""
    opened = os.open(os.devnull, os.O_RDWR)
    while opened <= 2:
        opened = os.dup(opened)
    os.close(opened)
    for name, number in (("stdout", 1), ("stderr", 2)):
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(number, "w", encoding="utf-8", closefd=False))


def _describe(error: Exception) -> str:
    """Return the message of an error and, where it arose in the code of a plugin, the place there."""
    place = place_in_plugin(error)
    message = _message(error)
    return f"{message} (in {shown(place)}; NEGVAE_DEBUG=1 shows the traceback)" if place else message


def _message(error: Exception) -> str:
    """Return the text of an error; for an error of the system, the file first and no error number."""
    if not isinstance(error, OSError) or not error.strerror:
        expected = isinstance(error, ValueError | TypeError | ImportError | OSError)
        return shown((expected and str(error)) or with_type(error))
    where = "" if error.filename is None else f"{shown(os.fsdecode(error.filename))}: "
    return f"{where}{error.strerror[0].lower()}{error.strerror[1:]}"


def _fail(error: Exception, message: str) -> NoReturn:
    """Print one line and exit with code 2; with NEGVAE_DEBUG set, raise the error."""
    try:
        sys.stdout.flush()
    except OSError:
        _forget_output()
    if os.environ.get("NEGVAE_DEBUG"):
        raise error
    print(f"negvae: {visible(' '.join(message.split()))}", file=sys.stderr)
    sys.exit(2)


class _Lenient(io.FileIO):
    """A stream of messages that loses what cannot be written, as on a full disk, rather than the work."""

    def write(self, content: Any) -> int:
        """Write what can be written, and report all of it as written."""
        with suppress(OSError):
            super().write(content)
        return len(content)


def _lenient(stream: Any) -> io.TextIOWrapper:
    raw = io.BufferedWriter(_Lenient(stream.fileno(), "w", closefd=False))
    return io.TextIOWrapper(raw, stream.encoding, stream.errors, line_buffering=True)


def _forget_output() -> None:
    """Discard what standard output still holds, which Python would otherwise try to write again at exit."""
    with suppress(OSError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
