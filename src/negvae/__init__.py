"""Variational autoencoders with negative sampling, for out-of-distribution detection.

The names below load on first use, so that ``import negvae`` and ``negvae --help`` stay quick.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from negvae.config import RunConfig
    from negvae.data import load as load_images
    from negvae.data import register_dataset
    from negvae.detector import (
        CrossConformalDetector,
        NegVAEClassifier,
        NegVAEDetector,
        ScoreDetector,
        as_pyod,
        as_pytorch_ood,
    )
    from negvae.model import VAE, build_vae
    from negvae.parts import register_likelihood, register_network, register_source, register_transformation
    from negvae.runs.artifact import load_artifact, save_artifact
    from negvae.scoring.table import register_score
    from negvae.training.loop import train

__version__ = "0.1.0"

__all__ = [
    "VAE",
    "CrossConformalDetector",
    "NegVAEClassifier",
    "NegVAEDetector",
    "RunConfig",
    "ScoreDetector",
    "__version__",
    "as_pyod",
    "as_pytorch_ood",
    "build_vae",
    "load_artifact",
    "load_images",
    "register_dataset",
    "register_likelihood",
    "register_network",
    "register_score",
    "register_source",
    "register_transformation",
    "save_artifact",
    "train",
]

_MODULES = {
    "CrossConformalDetector": "negvae.detector",
    "NegVAEClassifier": "negvae.detector",
    "NegVAEDetector": "negvae.detector",
    "RunConfig": "negvae.config",
    "ScoreDetector": "negvae.detector",
    "VAE": "negvae.model",
    "as_pyod": "negvae.detector",
    "as_pytorch_ood": "negvae.detector",
    "build_vae": "negvae.model",
    "load_artifact": "negvae.runs.artifact",
    "load_images": "negvae.data",
    "register_dataset": "negvae.data",
    "register_likelihood": "negvae.parts",
    "register_network": "negvae.parts",
    "register_score": "negvae.scoring.table",
    "register_source": "negvae.parts",
    "register_transformation": "negvae.parts",
    "save_artifact": "negvae.runs.artifact",
    "train": "negvae.training.loop",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module 'negvae' has no attribute {name!r}")
    return getattr(import_module(_MODULES[name]), {"load_images": "load"}.get(name, name))


def __dir__() -> list[str]:
    return sorted(__all__)
