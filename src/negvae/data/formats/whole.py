"""Read a whole set with any reader."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import chain

import numpy as np
from numpy.typing import NDArray

from negvae.data.formats.base import Block, DataError, Reader, Source, origin
from negvae.data.formats.encoded import decode_images
from negvae.data.formats.folder import Folder
from negvae.data.formats.parquet import Parquet, shard_note
from negvae.data.formats.pixels import Decoded, as_images, as_labels


def read(reader: Reader, limit: int | None = None) -> Decoded:
    """Read all images and labels of a set.

    Args:
        reader: reader of the set.
        limit: maximum number of images; the first ones are read. None for all.

    Returns:
        The images, uint8, N x C x H x W, labels if every image has one, and notes.

    Raises:
        ValueError: if the files are damaged, hold no images or do not fit in memory, or if the images differ in size.
    """
    where = origin(reader)
    found: list[NDArray[np.generic]] = []
    blocks = _labels_kept(reader.rows(0, limit, labels=True), found)
    first = next(blocks, None)
    total = 0 if first is not None and limit is None and isinstance(first.rows, np.ndarray) else reader.probe().count
    if first is None:
        raise DataError(f"{where}: holds no images")
    blocks = chain([first], blocks)
    if isinstance(first.rows, np.ndarray):
        parts = [as_images(np.asarray(block.rows), where) for block in blocks]
        images = parts[0].images if len(parts) == 1 else np.concatenate([part.images for part in parts])
        notes = tuple(dict.fromkeys(note for part in parts for note in part.notes))
    else:
        images, notes = decode_images(_named(blocks, where), min(limit or total, total), where)
    count = len(images)
    labels = None
    if found and sum(map(len, found)) == count:
        try:
            labels = as_labels(np.concatenate(found), count, f"{where} labels")
        except DataError as error:
            if not isinstance(reader, Parquet):  # in other formats labels are not just one more column
                raise
            notes = (*notes, f"labels left out: {error}")
    if count < total:
        notes = (*notes, f"{where}: the first {count:,} of {total:,} images")
    if isinstance(reader, Folder) and (passed := reader.left_out().describe()):
        notes = (*notes, f"{where}: {passed}")
    if isinstance(reader, Parquet) and (missing := shard_note(reader.files)):
        notes = (*notes, missing)
    return Decoded(images, labels, notes)


def _labels_kept(blocks: Iterable[Block], labels: list[NDArray[np.generic]]) -> Iterator[Block]:
    for block in blocks:
        if block.labels is not None:
            labels.append(block.labels)
        yield block


def _named(blocks: Iterable[Block], where: object) -> Iterator[tuple[str, Source]]:
    for block in blocks:
        for row, source in enumerate(block.rows, block.start):
            yield (source if isinstance(source, str) else f"{where} row {row}"), source
