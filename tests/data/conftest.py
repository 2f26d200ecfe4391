"""Small sets in the layouts that people have."""

import gzip
import io
import pickle
import tarfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from negvae.data import load, pixel_sha256
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


STEMS = {"train": "train", "test": "t10k"}


def write_idx(make, folder, pixels, gz=""):
    for split, stem in STEMS.items():
        make.idx(f"{folder}/{stem}-images-idx3-ubyte{gz}", pixels[split])
        make.idx(f"{folder}/{stem}-labels-idx1-ubyte{gz}", np.arange(len(pixels[split])) % 10)


def check(name, pixels, labels=True):
    for split in ("train", "test"):
        found = load(name, split, fetch=False)
        np.testing.assert_array_equal(found.images, pixels[name][split])
        assert found.state == "complete"
        assert found.notes == ()
        assert found.sha256 == pixel_sha256(found.images)
        assert (found.labels is not None) == labels
        if labels:
            assert found.labels.dtype == np.int64


def batches(pixels):
    parts = {f"data_batch_{i + 1}": part for i, part in enumerate(np.split(pixels["train"], 5))}
    return {
        name: pickle.dumps({b"data": part.reshape(len(part), -1), b"labels": [1] * len(part)}, 2)
        for name, part in (parts | {"test_batch": pixels["test"]}).items()
    }


def tar_of(files, folder="cifar-10-batches-py/"):
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:gz") as archive:
        for name, data in files.items():
            entry = tarfile.TarInfo(folder + name)
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))
    return stream.getvalue()


def one_line(error: BaseException) -> bool:
    return "\n" not in str(error) and len(str(error)) > 10
