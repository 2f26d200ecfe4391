"""The command line."""

from negvae.cli.commands import main

__all__ = ["main"]
