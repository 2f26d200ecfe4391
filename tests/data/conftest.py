"""Small sets in the layouts that people have."""

import gzip
import io
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from negvae.data import pixel_sha256
from negvae.data.catalog import CATALOG, Known
from negvae.data.fetch import failed

TRAIN, TEST = 20, 10


class Maker:
    """Writes images into files of every layout, below one folder."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def path(self, name: str) -> Path:
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def pixels(self, seed: int, count: int, channels: int = 1, side: int = 28) -> np.ndarray:
        return np.random.default_rng(seed).integers(0, 256, (count, channels, side, side), np.uint8)

    def idx(self, name: str, array: np.ndarray) -> Path:
        array = array[:, 0] if array.ndim == 4 else array
        header = bytes([0, 0, 8, array.ndim]) + b"".join(n.to_bytes(4, "big") for n in array.shape)
        data = header + array.astype(np.uint8).tobytes()
        path = self.path(name)
        path.write_bytes(gzip.compress(data, 1) if name.endswith(".gz") else data)
        return path

    def encode(self, image: np.ndarray, kind: str = "PNG") -> bytes:
        stream = io.BytesIO()
        pixels = image.transpose(1, 2, 0)
        Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels).save(stream, kind, lossless=True)
        return stream.getvalue()

    def parquet(self, name: str, images: np.ndarray, labels=None, column: str = "image", kind: str = "PNG") -> Path:
        import pyarrow as pa
        import pyarrow.parquet as pq

        rows = [{"bytes": self.encode(image, kind), "path": None} for image in images]
        table = {column: pa.array(rows, pa.struct([("bytes", pa.binary()), ("path", pa.string())]))}
        if labels is not None:
            table["label"] = pa.array(labels)
        path = self.path(name)
        pq.write_table(pa.table(table), path, row_group_size=7)
        return path

    def image(self, name: str, image: np.ndarray | Image.Image) -> Path:
        path = self.path(name)
        if isinstance(image, Image.Image):
            image.save(path)
        else:
            path.write_bytes(self.encode(image))
        return path


@pytest.fixture
def make(tmp_path: Path) -> Maker:
    return Maker(tmp_path / "data")


@pytest.fixture(autouse=True)
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A data folder and an empty cache of the test's own; returns the cache."""
    (tmp_path / "data").mkdir()
    monkeypatch.setenv("NEGVAE_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("NEGVAE_CACHE", str(tmp_path / "cache"))
    failed.clear()
    monkeypatch.setattr("negvae.data.find.DEBIAN_FOLDER", tmp_path / "no-debian")
    return tmp_path / "cache"


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch, make: Maker) -> dict[str, dict[str, np.ndarray]]:
    """Every set shrunk to 20 and 10 images whose hashes the catalog knows; returns the pixels."""
    pixels: dict[str, dict[str, np.ndarray]] = {}
    for i, (name, spec) in enumerate(list(CATALOG.items())):
        if name == "uniform-noise":
            continue
        channels, side, _ = spec.shape
        sets = {
            "train": make.pixels(2 * i, TRAIN, channels, side),
            "test": make.pixels(2 * i + 1, TEST, channels, side),
        }
        known = {split: {pixel_sha256(images): Known("official")} for split, images in sets.items()}
        shrunk = replace(
            spec, sizes={"train": TRAIN, "test": TEST}, known=known, sketch={}, prefix={}, other_sizes=(),
            file_md5=dict.fromkeys(spec.file_md5, "none"),
        )  # fmt: skip
        monkeypatch.setitem(CATALOG, name, shrunk)
        pixels[name] = sets
    return pixels
