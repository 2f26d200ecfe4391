"""Readers, one module per file format: each probes its files and reads blocks of their rows."""

from negvae.data.formats.base import READ_ERRORS, Block, DataError, Probe, Reader, Source, origin, reading
from negvae.data.formats.batches import Batches
from negvae.data.formats.encoded import MAX_PIXELS, decode_image
from negvae.data.formats.folder import IMAGE_ENDINGS, Folder
from negvae.data.formats.idx import Idx
from negvae.data.formats.mat import Mat
from negvae.data.formats.npy import Npy
from negvae.data.formats.npz import Npz
from negvae.data.formats.parquet import Parquet
from negvae.data.formats.pixels import Decoded, as_images, as_labels, image_digests, pixel_sha256
from negvae.data.formats.whole import read

__all__ = [
    "IMAGE_ENDINGS",
    "MAX_PIXELS",
    "READ_ERRORS",
    "Batches",
    "Block",
    "DataError",
    "Decoded",
    "Folder",
    "Idx",
    "Mat",
    "Npy",
    "Npz",
    "Parquet",
    "Probe",
    "Reader",
    "Source",
    "as_images",
    "as_labels",
    "decode_image",
    "image_digests",
    "origin",
    "pixel_sha256",
    "read",
    "reading",
]
