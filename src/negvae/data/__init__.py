"""Images by name or path, as one uint8 array N x C x H x W. This room imports nothing of negvae's models."""

from negvae.data.catalog import CATALOG, ImageSet, SetStatus, fetch, list_sets, load, names, verify

__all__ = ["CATALOG", "ImageSet", "SetStatus", "fetch", "list_sets", "load", "names", "verify"]
