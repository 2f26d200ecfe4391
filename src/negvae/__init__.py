"""Variational autoencoders that know what they have not seen.

The names below load on first use, so that ``import negvae`` and ``negvae --help`` stay quick.
"""

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_HOMES = {
    "NegVAEDetector": "negvae.detector",
    "RunConfig": "negvae.config",
    "VAE": "negvae.model.vae",
    "build_vae": "negvae.model.vae",
    "load_artifact": "negvae.runs.artifact",
    "load_images": "negvae.data",
    "save_artifact": "negvae.runs.artifact",
    "train": "negvae.training.loop",
}

__all__ = ["__version__", *_HOMES]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'negvae' has no attribute {name!r}")
    source = {"load_images": "load"}.get(name, name)
    return getattr(import_module(_HOMES[name]), source)


def __dir__() -> list[str]:
    return sorted(__all__)
