"""Runs on rows of features: rows from a file, or images that an encoder turns into rows."""

from __future__ import annotations

import hashlib
import reprlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from negvae.config import RunConfig
from negvae.data import Split, is_path, load
from negvae.data.batches import Batch, InputSpec, fitted
from negvae.data.embedding import Encoder, load_encoder
from negvae.data.fetch import HUB
from negvae.data.folders import refuse_broken
from negvae.data.formats import MAX_PIXELS, Folder, Parquet
from negvae.data.formats.base import check_limit
from negvae.data.load import reader_of
from negvae.data.rows import feature_columns, load_rows
from negvae.data.spans import PACKED
from negvae.data.stores import is_uri
from negvae.data.streams import stream
from negvae.data.tables import is_table, texts
from negvae.files import home
from negvae.messages import counted
from negvae.runs.artifact import CONFIG, Artifact, read_section
from negvae.runs.folders import BROKEN
from negvae.runs.groups import check_named, groups_of_files
from negvae.scoring.groups import FOLDERS

_BATCH = 64


def spec_of(artifact: Artifact, encoder: Encoder | None, resize: bool, max_pixels: int = MAX_PIXELS) -> InputSpec:
    """Return the form of a model's inputs: images or rows of its shape, or images for its encoder, always resized."""
    if encoder is not None:
        return InputSpec(encoder.shape, False, True, max_pixels, upright=encoder.upright)
    model, decoding = artifact.model, artifact.config.images
    columns = columns_of(artifact) if model.takes_features else ()
    if decoding is not None and resize and decoding.fit == "exact":
        decoding = replace(decoding, fit="resize")
    return InputSpec(model.shape, model.takes_features, resize, max_pixels, columns, decoding)


def columns_of(artifact: Artifact) -> tuple[str, ...]:
    """Return the names of the columns that a model of rows was trained on; empty if they had none."""
    section = read_section(artifact.directory, "detector")
    columns = section.get("feature_names") or section.get("columns") or ()
    if not isinstance(columns, list | tuple):
        raise ValueError(
            f"{artifact.directory / CONFIG}: the names of columns are {reprlib.repr(columns)}, expected a list"
        )
    return tuple(map(str, columns))


def inputs_of(images: NDArray[Any], encoder: Encoder | None) -> NDArray[Any]:
    """Return what the model takes of images as they were read: rows (N x D x 1 x 1) if there is an encoder."""
    return images if encoder is None else encoder.rows(images)


def embedded(batch: Batch, encoder: Encoder | None) -> Batch:
    """Return a batch as the model takes it: an image whose embedding is not finite becomes a row with an error.

    Args:
        batch: rows as they were read.
        encoder: encoder that turns images into rows of features; None if the model takes the inputs themselves.

    Returns:
        The same rows, with features (float64, N x D x 1 x 1) in place of images if there is an encoder.
    """
    if encoder is None:
        return batch
    errors, good = list(batch.errors), [index for index, error in enumerate(batch.errors) if not error]
    rows = np.zeros((len(batch), encoder.size, 1, 1))
    rows[good] = encoder.embed(batch.images[good])
    for index in np.flatnonzero(~np.isfinite(rows).all((1, 2, 3))):
        errors[index], rows[index] = f"its embedding by {encoder.path.name} is not finite", 0.0
    return Batch(batch.paths, batch.indices, errors, rows)


def encoder_of(artifact: Artifact, path: Path | str | None = None) -> Encoder | None:
    """Load the encoder that a model was trained with.

    Args:
        artifact: trained model.
        path: present path of the encoder; None for the path at the time of training.

    Returns:
        The encoder; None if the model was trained without one.

    Raises:
        FileNotFoundError: if the encoder does not exist at that path.
        ValueError: if the encoder is another one, `path` is given and the model was trained without an encoder, or
            config.yaml is damaged.
    """
    known = artifact.provenance.get("encoder")
    if not known:
        if path is not None:
            raise ValueError(f"{artifact.directory} was trained without an encoder: leave out --embed")
        return None
    if not (isinstance(known, dict) and "sha256" in known):
        raise ValueError(f"{artifact.directory / CONFIG}: encoder in provenance has no sha256")
    encoder = load_encoder(path or str(artifact.config.embed), str(known["sha256"]))
    return replace(encoder, upright=bool(known.get("upright")))


@dataclass(frozen=True)
class FeatureRows:
    """Rows of features, and what is known about them.

    Attributes:
        rows: rows as models take them, float64, N x D x 1 x 1.
        description: line that describes them.
        sha256: SHA-256 of their numbers.
        encoder: encoder that made them of images; None if they are those of a file.
        columns: names of the columns; None if they have none.
        groups: group of each row; None if no groups were asked for.
        skipped: reason why an image was left out, by its path.
    """

    rows: torch.Tensor
    description: str
    sha256: str
    encoder: Encoder | None = None
    columns: tuple[str, ...] | None = None
    groups: tuple[str, ...] | None = None
    skipped: dict[str, str] = field(default_factory=dict)


def training_rows(config: RunConfig, columns: tuple[str, ...] = ()) -> FeatureRows:
    """Return the rows of features of a run, those of a file or embeddings of its images; see `read_feature_rows`."""
    encoder = None if config.embed is None else load_encoder(config.embed)
    return read_feature_rows(
        config.data, encoder, columns=columns, limit=config.limit, groups=config.groups, max_broken=config.max_broken
    )


def read_feature_rows(
    data: str,
    encoder: Encoder | None = None,
    *,
    columns: tuple[str, ...] = (),
    limit: int | None = None,
    groups: str | None = None,
    split: Split = "train",
    max_broken: float = 0.1,
) -> FeatureRows:
    """Read rows of features: those of a file, or embeddings of images.

    Args:
        data: path of a file of rows, or, with an encoder, name or path of images.
        encoder: encoder that turns images into rows; None for a file of rows.
        columns: names of the columns to read from a CSV or Parquet file; empty for all but that of the groups.
        limit: maximum number of rows; the first ones are read. None for all.
        groups: "folders", or the name of a column, that names the group of each row; None for no groups.
        split: split of a named set of images, or of an .npz file that has both.
        max_broken: largest share of the images that may be broken; these are left out.

    Returns:
        The rows, with what is known about them.

    Raises:
        FileNotFoundError: if the data does not exist.
        ValueError: if too many images cannot be read, there are no rows, or the data or the groups cannot be used.
    """
    check_limit(limit)
    names, labels, broken = None, None, dict[str, str]()
    if encoder is None:
        if not home(data).is_file():
            raise FileNotFoundError(f"{data}: no such file of rows of features (.npy, .npz, CSV or Parquet)")
        if groups is not None:
            labels = _column_groups(data, groups)
        names = feature_columns(data, groups, columns) or columns or None
        numbers = load_rows(data, limit, names, split)
        rows = numbers.reshape(*numbers.shape, 1, 1)
        text = f"{data}, {rows.shape[0]:,} rows of {rows.shape[1]:,} numbers"
    else:
        batches: Iterable[Batch] = encoder_images(data, encoder, limit, split, max_broken, broken)
        if groups is not None:  # refused before the images are embedded, which takes longer than reading them
            batches = list(batches)
            labels = _image_groups(data, groups, [path for batch in batches for path in batch.paths], split)
        rows = np.concatenate([encoder.rows(batch.images) for batch in batches])
        lost = f", {counted(len(broken), 'image')} left out ({BROKEN})" if broken else ""
        text = f"{data}, {len(rows):,} images{lost} as rows by {encoder.describe()}"
    if not len(rows):
        raise ValueError(f"{data}: holds no rows")
    sha256 = hashlib.sha256(np.ascontiguousarray(rows).data).hexdigest()
    known = None if labels is None else tuple(labels[: len(rows)])
    return FeatureRows(torch.from_numpy(rows), f"{text}, sha256 {sha256[:16]}", sha256, encoder, names, known, broken)


def _column_groups(data: str, groups: str) -> list[str]:
    """Return the group of each row of a table."""
    if groups == FOLDERS or not is_table(data):
        raise ValueError(f"groups {groups}: rows of features have groups in a column of a CSV or Parquet file")
    names = texts(data, groups)
    check_named(names, groups, data)
    return names


def _image_groups(data: str, groups: str, paths: list[str], split: Split) -> list[str]:
    """Return the group of each image of a folder that an encoder turns into rows."""
    if groups != FOLDERS or not home(data).is_dir():
        raise ValueError(f"groups {groups}: with an encoder, groups are subfolders of a folder of images (folders)")
    return groups_of_files(data, groups, paths, split)


def _images_of(data: str, split: Split) -> list[str] | None:
    """Return the files of a split of data, of which images of any size can be read; None if `load` has to read them."""
    if not is_path(data) or data.startswith(HUB):
        return None
    place = home(data)
    if is_uri(data) or not (place.is_dir() or place.suffix.lower() == ".npz"):
        return [data]
    try:
        reader, has_parts = reader_of(place, split)
    except ValueError:  # a folder of other files than those that `load` takes
        return [data]
    if not has_parts:
        return [data]
    return list(map(str, reader.files)) if isinstance(reader, Parquet | Folder) else None


def encoder_images(
    data: str,
    encoder: Encoder,
    limit: int | None,
    split: Split,
    max_broken: float = 0.1,
    broken: dict[str, str] | None = None,
) -> Iterator[Batch]:
    """Yield batches of images, resized for the encoder; see `read_feature_rows` for the arguments and errors.

    Images that cannot be read are left out, and named in `broken` with the reasons.
    """
    broken = {} if broken is None else broken
    spec = InputSpec(encoder.shape, resize=True, upright=encoder.upright)
    if (inputs := _images_of(data, split)) is None:
        found = load(data, split, limit=limit, disjoint_from_train=True).images
        parts = np.array_split(found, max(len(found) // _BATCH, 1))
        yield from (Batch([data] * len(part), [None] * len(part), [], fitted(part, spec)) for part in parts)
        return
    count = 0
    for batch in stream(inputs, spec, batch_size=_BATCH):
        rows = zip(batch.paths, batch.indices, batch.errors, strict=True)
        broken.update((_named(path, index), error) for path, index, error in rows if error)
        kept = _whole(batch)[: None if limit is None else limit - count]
        count += len(kept)
        yield kept
        if limit is not None and count >= limit:
            break
    refuse_broken(broken, count + len(broken), data, max_broken)
    if not count:
        raise ValueError(f"{data}: there are no images in there")


def _named(path: str, index: int | None) -> str:
    """Return the name of an image: its path, and its row in a file of many."""
    return f"{path}, row {index}" if index is not None and path.lower().endswith(PACKED) else path


def _whole(batch: Batch) -> Batch:
    """Return a batch of images without the rows that are errors."""
    good = batch.good().tolist()
    if len(good) == len(batch):
        return batch
    paths, indices = [batch.paths[row] for row in good], [batch.indices[row] for row in good]
    return Batch(paths, indices, [""] * len(good), batch.images[good])
