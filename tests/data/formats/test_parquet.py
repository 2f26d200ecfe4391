"""Parquet files."""

import numpy as np
import pytest

from negvae.data import load


@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
@pytest.mark.parametrize("column", ["image", "img", "picture"])
def test_parquet(make, kind, column):
    pixels = make.pixels(0, 20, 3, 8)
    path = make.parquet("a.parquet", pixels, list(range(20)), column, kind)
    for _ in range(2):  # decoded, then from the cache
        found = load(path)
        np.testing.assert_array_equal(found.images, pixels)
        assert found.labels.tolist() == list(range(20))
    found = load(path, limit=9)
    np.testing.assert_array_equal(found.images, pixels[:9])
    assert found.labels.tolist() == list(range(9))


def test_more_rows_than_one_chunk(make):
    pixels = make.pixels(0, 300, 1, 4)
    np.testing.assert_array_equal(load(make.parquet("a.parquet", pixels)).images, pixels)


@pytest.mark.parametrize("below", ["", "data/"])
def test_folder_of_shards(make, below):
    pixels = make.pixels(0, 9)
    make.parquet(f"set/{below}train-00000-of-00002.parquet", pixels[:4], [0] * 4)
    make.parquet(f"set/{below}train-00001-of-00002.parquet", pixels[4:7], [1] * 3)
    make.parquet(f"set/{below}validation-00000-of-00001.parquet", pixels[7:], [2] * 2)
    train, test = load(make.root / "set"), load(make.root / "set", "test")
    np.testing.assert_array_equal(train.images, pixels[:7])
    np.testing.assert_array_equal(test.images, pixels[7:])
    assert train.labels.tolist() == [0] * 4 + [1] * 3
    (make.root / f"set/{below}train-00001-of-00002.parquet").unlink()
    assert any("1 of 2" in note for note in load(make.root / "set").notes)


def test_parquet_without_images(make):
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.table({"label": [1, 2]}), make.path("a.parquet"))
    with pytest.raises(ValueError, match="no image column"):
        load(make.path("a.parquet"))
    rows = pa.array([{"bytes": None, "path": "x.png"}], pa.struct([("bytes", pa.binary()), ("path", pa.string())]))
    pq.write_table(pa.table({"image": rows}), make.path("b.parquet"))
    with pytest.raises(ValueError, match="row 0: no image bytes"):
        load(make.path("b.parquet"))
    pq.write_table(pa.table({"image": [b"junk"]}), make.path("c.parquet"))
    with pytest.raises(ValueError, match=r"c\.parquet row 0"):
        load(make.path("c.parquet"))
    pq.write_table(pa.table({"image": pa.array([], pa.binary())}), make.path("d.parquet"))
    with pytest.raises(ValueError, match="no images"):
        load(make.path("d.parquet"))
