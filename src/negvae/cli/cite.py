"""The command `negvae cite`: BibTeX for the paper, negvae and the publications that parts and runs come from."""

from __future__ import annotations

from typing import Annotated

import typer


def cite(
    what: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[RUN|PART]...",
            help="Folders of runs, or names of scores, networks, likelihoods, sources and transformations.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Print BibTeX entries: of negvae, of the paper it implements, and of what the runs or parts come from."""
    from negvae.citations import software_bibtex
    from negvae.runs.cite import cited_by

    print("\n\n".join([software_bibtex(), *(paper.bibtex() for paper in cited_by(what or []))]))
