"""The command `negvae clean`: rank a mixed, unlabeled set."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from negvae.cli.common import Device, given, make_console, option, printer


def clean(
    data: Annotated[
        str, typer.Argument(help="A folder, .npy, .npz, CSV or Parquet file, or a data set's name.", show_default=False)
    ],
    out: Annotated[Path, typer.Option(help="The list to write, a .csv file.")] = Path("clean.csv"),
    folds: Annotated[int, option("Parts that are judged by a model of the others.", "parts")] = 3,
    epochs: Annotated[int | None, option("Passes of each training.", "passes", show_default="as in `train`")] = None,
    limit: Annotated[int | None, option("Look at the first so many rows.", "rows", show_default="all")] = None,
    seed: Annotated[int, option("Seed of the division and of the models.", "number")] = 0,
    device: Device = "auto",
) -> None:
    """Rank images or rows of a mixed, unlabeled set, the least usual first, and write the list; change nothing."""
    from negvae.detector.cleaning import clean as write_list

    log = printer(make_console())
    options: dict[str, Any] = given(epochs=epochs)
    found = write_list(data, out, folds=folds, limit=limit, log=log, random_state=seed, device=device, **options)
    log(f"{found.rows:,} ranked, the least usual first: {found.path}")
