"""`python -m benchmarks.bench`: speed in comparison with peers and with the machine's own limit."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from benchmarks.bench.run import run_bench


def main(
    out: Annotated[Path, typer.Option(help="Folder for the results.")] = Path("runs/bench"),
    quick: Annotated[bool, typer.Option("--quick", help="Few and short rounds: does it run?")] = False,
    only: Annotated[list[str] | None, typer.Option(help="Measure this row only; may be repeated.")] = None,
    profile: Annotated[
        list[str] | None, typer.Option(help="Measure this row and show where its time goes; may be repeated.")
    ] = None,
    device: Annotated[str, typer.Option(help="To train on: cpu, cuda, or all that are here.")] = "all",
    pythae: Annotated[Path | None, typer.Option(help="A Python interpreter that has pythae.")] = None,
    pyod: Annotated[Path | None, typer.Option(help="A Python interpreter that has PyOD and torch.")] = None,
    table: Annotated[Path | None, typer.Option(help="Markdown file whose table to replace.")] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Measure only what today's results do not have yet.")
    ] = False,
) -> None:
    """Measure training and scoring in comparison with peers and this machine's matrix-product rate."""
    pythons = {name: path for name, path in (("pythae", pythae), ("pyod", pyod)) if path is not None}
    well = run_bench(
        out, quick=quick, only=only or (), profile=profile or (), device=device, pythons=pythons, table=table,
        resume=resume, console=Console(),
    )  # fmt: skip
    if not well:
        raise typer.Exit(1)


def run() -> None:
    """Run the command; bad input ends it with one line and exit code 2."""
    try:
        typer.run(main)
    except (ValueError, FileNotFoundError) as error:
        print(f"benchmarks.bench: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    run()
