"""Load image sets by name or path as one uint8 array, N x C x H x W.

This package imports only `files` and `registry` from the rest of negvae.
"""

from negvae.data.catalog import CATALOG, DATASETS, ImageSet, SetStatus, Shape, Split, names, register_dataset
from negvae.data.fetch import fetch
from negvae.data.formats import pixel_sha256
from negvae.data.load import is_path, list_sets, load, verify

__all__ = [
    "CATALOG",
    "DATASETS",
    "ImageSet",
    "SetStatus",
    "Shape",
    "Split",
    "fetch",
    "is_path",
    "list_sets",
    "load",
    "names",
    "pixel_sha256",
    "register_dataset",
    "verify",
]
