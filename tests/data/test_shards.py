"""Shards: a fixed division of a stream that gives each row once, and each error once."""

import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from pyarrow import csv

from negvae.data.batches import InputSpec
from negvae.data.shards import shards
from negvae.data.spans import spans
from negvae.data.streams import read
from tests.cli.test_commands import call
from tests.data.test_streams import GRAY, collect, pictures


@pytest.fixture
def mixed(tmp_path):
    """Every kind of file, whole and broken."""
    root = tmp_path / "mixed"
    root.mkdir()
    images = pictures(90)
    for index in range(45):
        Image.fromarray(images[index]).save(root / f"a{index:02d}.png")
    (root / "a07.png").write_bytes(b"broken")
    np.save(root / "b.npy", images)
    np.save(root / "c-other-size.npy", pictures(30, (9, 9)))
    np.save(root / "d-integers.npy", images.astype(np.int64))
    floats = images / np.float32(255)
    floats[33] = 7
    np.save(root / "e-floats.npy", floats)
    whole = (root / "b.npy").read_bytes()
    (root / "f-cut.npy").write_bytes(whole[: len(whole) // 2])
    np.savez(root / "g.npz", images=images)
    data = [(root / f"a{index:02d}.png").read_bytes() for index in range(45)]
    pq.write_table(pa.table({"image": [*data[:40], None]}), root / "h.parquet", row_group_size=7)
    (root / "i.parquet").write_bytes(b"PAR1 broken")
    pq.write_table(pa.table({"image": data[:5]}), root / "j.parquet")
    return root


def rows_of(division, wanted=GRAY):
    batches = [batch for shard in division for batch in read(shard, wanted, batch_size=16, threads=1)]
    return (
        [p for b in batches for p in b.paths],
        [i for b in batches for i in b.indices],
        [e for b in batches for e in b.errors],
        np.concatenate([b.images for b in batches]),
    )


@pytest.mark.parametrize("rows", [1, 16, 1000])
def test_every_row_once(mixed, rows):
    division = list(shards(spans([str(mixed)]), GRAY, rows))
    found, streamed = rows_of(division), collect([mixed])
    assert found[:3] == streamed[:3]
    np.testing.assert_array_equal(found[3], streamed[3])
    assert sum(map(bool, found[2])) == 1 + 1 + 1 + 1 + 1 + 2 + 1
    assert division == list(shards(spans([str(mixed)]), GRAY, rows))
    if rows == 16:
        cut = [(s.start, s.stop) for shard in division for s in shard if s.path.endswith("/b.npy")]
        assert cut == [(0, 16), (16, 32), (32, 48), (48, 64), (64, 80), (80, 90)]
        groups = [(s.start, s.stop) for shard in division for s in shard if s.path.endswith("h.parquet")]
        assert groups == [(0, 14), (14, 28), (28, 41)]  # two row groups each


def test_sets_by_name_travel_with_their_shards(blob_files, monkeypatch):
    images = np.load(blob_files["in"])
    named = type("Set", (), {"images": images})
    monkeypatch.setattr(sys.modules["negvae.data.load"], "load", lambda name, split: named)
    wanted = InputSpec((1, 28, 28))
    division = list(shards(spans(["mnist"]), wanted, 25))
    assert [span.images.shape[0] for shard in division for span in shard] == [25, 25, 10]
    paths, indices, errors, found = rows_of(division, wanted)
    assert set(paths) == {"mnist"}
    assert indices == list(range(60))
    assert not any(errors)
    np.testing.assert_array_equal(found, images)


def test_rows_of_features_are_cut_too(tmp_path):
    rows = np.random.default_rng(0).normal(size=(20, 3))
    np.save(tmp_path / "rows.npy", rows)
    wanted = InputSpec((3, 1, 1), features=True)
    division = list(shards(spans([str(tmp_path / "rows.npy")]), wanted, 6))
    assert len(division) == 4
    np.testing.assert_array_equal(rows_of(division, wanted)[3][:, :, 0, 0], rows)


def test_a_table_of_rows_of_features_is_one_shard_as_the_help_says(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "300")
    table = pa.table({"a": np.zeros(50), "b": np.zeros(50)})
    csv.write_csv(table, tmp_path / "t.csv")
    pq.write_table(table, tmp_path / "t.parquet", row_group_size=5)
    files = spans([str(tmp_path)], features=True)
    assert [len(shard) for shard in shards(files, InputSpec((2, 1, 1), features=True), 10)] == [1, 1]
    assert "a table of rows of features is one part" in call(capsys, "score", "--help")[1]
