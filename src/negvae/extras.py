"""Packages that not everybody needs: imported where they are used, and named with the extra that brings them."""

from __future__ import annotations

from importlib import import_module
from typing import Any


def need(module: str, extra: str) -> Any:
    """Import a module of an extra.

    Raises:
        ImportError: it is not installed; the message says how to install it.
    """
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        if error.name and error.name.split(".")[0] != module.split(".")[0]:
            raise  # the module is there, and something that it needs is not
        raise ImportError(f"{module.split('.')[0]} is not installed: pip install 'negvae[{extra}]'") from None
