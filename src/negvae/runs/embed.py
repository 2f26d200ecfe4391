"""Runs on rows of features: rows from a file, or images that an encoder turns into rows."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from negvae.config import RunConfig
from negvae.data import is_path, load
from negvae.data.embedding import Encoder, load_encoder
from negvae.data.formats import MAX_PIXELS
from negvae.data.rows import load_rows
from negvae.data.streams import Batch, InputSpec, fitted, stream
from negvae.runs.artifact import Artifact

_BATCH = 64


def spec_of(artifact: Artifact, encoder: Encoder | None, resize: bool, max_pixels: int = MAX_PIXELS) -> InputSpec:
    """Return the form of a model's inputs: images or rows of its shape, or images for its encoder, always resized."""
    if encoder is not None:
        return InputSpec(encoder.shape, False, True, max_pixels)
    decoding = artifact.config.images
    if decoding is not None and resize and decoding.fit == "exact":
        decoding = replace(decoding, fit="resize")
    return InputSpec(artifact.model.shape, artifact.model.takes_features, resize, max_pixels, decoding)


def inputs_of(images: NDArray[Any], encoder: Encoder | None) -> NDArray[Any]:
    """Return what the model takes of images as they were read: rows (N x D x 1 x 1) if there is an encoder."""
    return images if encoder is None else encoder.rows(images)


def encoder_of(artifact: Artifact, path: Path | str | None = None) -> Encoder | None:
    """Load the encoder that a model was trained with.

    Args:
        artifact: trained model.
        path: present path of the encoder; None for the path at the time of training.

    Returns:
        The encoder; None if the model was trained without one.

    Raises:
        FileNotFoundError: if the encoder does not exist at that path.
        ValueError: if the encoder is another one, or `path` is given and the model was trained without an encoder.
    """
    known = artifact.provenance.get("encoder")
    if not known:
        if path is not None:
            raise ValueError(f"{artifact.directory} was trained without an encoder: leave out --embed")
        return None
    return load_encoder(path or str(artifact.config.embed), str(known["sha256"]))


def training_rows(config: RunConfig) -> tuple[torch.Tensor, str, str, Encoder | None]:
    """Return the rows of features of a run: those of a file, or embeddings of its images.

    Args:
        config: configuration of a network that takes features.

    Returns:
        Rows (float64, N x D x 1 x 1), a line that describes them, the SHA-256 of their numbers, and the encoder.

    Raises:
        FileNotFoundError: if the data or the encoder does not exist.
        ValueError: if an image cannot be read, or the data cannot be used.
    """
    if config.embed is None:
        numbers, encoder = load_rows(config.data, config.limit), None
        rows = numbers.reshape(*numbers.shape, 1, 1)
        text = f"{config.data}, {rows.shape[0]:,} rows of {rows.shape[1]:,} numbers"
    else:
        encoder = load_encoder(config.embed)
        rows = np.concatenate([encoder.rows(batch.images) for batch in _images(config, encoder)])
        text = f"{config.data}, {len(rows):,} images as rows by {encoder.describe()}"
    sha256 = hashlib.sha256(np.ascontiguousarray(rows).data).hexdigest()
    return torch.from_numpy(rows), f"{text}, sha256 {sha256[:16]}", sha256, encoder


def _images(config: RunConfig, encoder: Encoder) -> list[Batch]:
    """Read the images of a run in batches, resized for the encoder."""
    spec = InputSpec(encoder.shape, resize=True)
    if not is_path(config.data):
        found = load(config.data, "train", limit=config.limit, disjoint_from_train=True).images
        parts = np.array_split(found, max(len(found) // _BATCH, 1))
        return [Batch([config.data] * len(part), [None] * len(part), [], fitted(part, spec)) for part in parts]
    batches, count = [], 0
    for batch in stream([config.data], spec, batch_size=_BATCH):
        for path, error in zip(batch.paths, batch.errors, strict=True):
            if error:
                raise ValueError(f"{path}: {error}: leave it out of the inliers")
        batches.append(batch[: None if config.limit is None else config.limit - count])
        count += len(batches[-1])
        if config.limit is not None and count >= config.limit:
            break
    if not count:
        raise ValueError(f"{config.data}: there are no images in there")
    return batches
