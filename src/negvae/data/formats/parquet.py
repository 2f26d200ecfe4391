"""Parquet files in Hugging Face's layout: encoded images in one column, labels in another."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from negvae.data import stores
from negvae.data.formats.base import Block, DataError, Probe, reading

IMAGE_COLUMNS = ("image", "img", "images", "jpg", "png")
LABEL_COLUMNS = ("label", "labels", "fine_label", "y", "target")
_BLOCK = 256


@dataclass(frozen=True)
class Parquet:
    """Parquet shards of one set, read as one.

    Attributes:
        paths: paths or URIs of the shards, in order. The images are encoded files in a column "image" or "img" (binary,
            or struct(bytes, path)), labels in "label", "labels", "fine_label", "y" or "target".
    """

    paths: Sequence[Path | str]
    label_file: ClassVar[None] = None
    slow: ClassVar[bool] = True

    @property
    def files(self) -> tuple[Path, ...]:
        """The shards."""
        return tuple(Path(path) for path in self.paths)

    def probe(self) -> Probe:
        """See `Reader.probe`."""
        groups: list[int] = []
        for path in self.paths:
            with _opened(path) as (file, sizes):
                _columns(file.schema_arrow, path)  # a file without images is refused once, not in every group
                groups += sizes
        return Probe(sum(groups), groups=tuple(groups))

    def rows(
        self, start: int = 0, stop: int | None = None, *, size: int | None = None, labels: bool = False
    ) -> Iterator[Block]:
        """See `Reader.rows`; without a `size`, blocks have at most 256 rows."""
        row = 0
        for path in self.paths:
            with _opened(path) as (file, sizes), reading(path, "Parquet file"):
                image, label = _columns(file.schema_arrow, path)
                for group, count in enumerate(sizes):
                    if row + count > start and (stop is None or row < stop):
                        for block in _group(file, group, row, size or _BLOCK, image, label if labels else None):
                            if len((part := _within(block, start, stop)).rows):
                                yield part
                    row += count


def may_be_images(kind: Any) -> bool:
    """Return whether a column of this type can hold encoded images: bytes, or a struct with a field "bytes"."""
    import pyarrow as pa

    if pa.types.is_struct(kind):
        return any(kind.field(index).name == "bytes" for index in range(kind.num_fields))
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def holds_images(path: Path | str) -> bool:
    """Return whether a Parquet file has a column of encoded images, or cannot be read, as its reader will say."""
    try:
        with _opened(path) as (file, _):
            schema = file.schema_arrow
    except (DataError, OSError):
        return True
    try:
        _columns(schema, path)
    except DataError:
        return False
    return True


@contextmanager
def _opened(path: Path | str) -> Iterator[tuple[Any, list[int]]]:
    """Open a Parquet file, and return it with the number of rows in each row group."""
    import pyarrow.parquet as pq

    with ExitStack() as stack:
        with reading(path, "Parquet file"):
            source = stack.enter_context(stores.open_for_arrow(str(path)))
            file = stack.enter_context(pq.ParquetFile(source))
        yield file, [file.metadata.row_group(group).num_rows for group in range(file.num_row_groups)]


def _group(file: Any, group: int, row: int, size: int, image: str, label: str | None) -> Iterator[Block]:
    """Read one row group, the first row of which is row `row` of the shards."""
    import pyarrow as pa

    for batch in file.iter_batches(batch_size=size, row_groups=[group], columns=[c for c in (image, label) if c]):
        values = batch.column(image)
        if pa.types.is_struct(values.type):
            values = values.field("bytes")
        found = None
        if label is not None and not batch.column(label).null_count:  # a set with an image without one has none
            found = np.asarray(batch.column(label).to_numpy(zero_copy_only=False))
        yield Block(row, values.to_pylist(), found)
        row += len(batch)


def _within(block: Block, start: int, stop: int | None) -> Block:
    low = max(start - block.start, 0)
    rows = slice(low, None if stop is None else max(stop - block.start, 0))
    return Block(block.start + low, block.rows[rows], None if block.labels is None else block.labels[rows])


def _columns(schema: Any, where: object) -> tuple[str, str | None]:
    """Return the columns of encoded images ("image" or "img", or else the only suitable one) and of labels."""
    fitting = [column.name for column in schema if may_be_images(column.type)]
    image = next((name for name in IMAGE_COLUMNS if name in fitting), None)
    if image is not None or len(fitting) == 1:
        return image or fitting[0], next((name for name in LABEL_COLUMNS if name in schema.names), None)
    raise DataError(
        f"{where}: no image column among ({', '.join(schema.names[:8])}); call it 'image', of type binary or "
        "struct(bytes, path)"
    )


def shard_note(paths: Sequence[Path]) -> str:
    """Return a note on shards missing from a series named -00000-of-00005; empty if none are missing.

    >>> shard_note([Path("set/train-00000-of-00002.parquet")])
    'set: only 1 of 2 Parquet shards are here'
    """
    numbered = [m for p in paths if (m := re.search(r"-(\d{5})-of-(\d{5})\.parquet$", p.name))]
    if not numbered:
        return ""
    total = max(int(m[2]) for m in numbered)
    have = len({int(m[1]) for m in numbered})
    return "" if have >= total else f"{paths[0].parent}: only {have} of {total} Parquet shards are here"
