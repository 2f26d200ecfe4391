"""IDX files."""

import gzip
import struct

import numpy as np
import pytest

from negvae.data import formats
from tests.data.conftest import one_line


@pytest.mark.parametrize("name", ["a-idx3-ubyte", "a-idx3-ubyte.gz"])
def test_idx(make, name):
    pixels = make.pixels(0, 5)
    reader = formats.Idx(make.idx(name, pixels))
    np.testing.assert_array_equal(formats.read(reader).images, pixels)
    assert (reader.probe().count, reader.probe().shape) == (5, (28, 28))


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "starts with"),
        (b"\0\0\x0d\x03" + bytes(16), "unsigned bytes"),
        (b"\0\0\x08\x03\0\0", "header"),
        (b"\0\0\x08\x01" + struct.pack(">i", 4) + bytes(4), "labels where images"),
        (b"\0\0\x08\x03" + struct.pack(">iii", 2, 2, 2) + bytes(7), "only 7"),
        (b"\0\0\x08\x03" + struct.pack(">iii", 2, 2, 2) + bytes(9), "more"),
        (b"\0\0\x08\x03" + struct.pack(">III", 2**32 - 1, 2**32 - 1, 1) + bytes(9), "a-images"),
        (
            gzip.compress(b"\0\0\x08\x03" + struct.pack(">iii", 9, 9, 9) + bytes(729), mtime=0)[:-9],
            "not a readable IDX",
        ),
        (b"\x1f\x8bjunk", "not a readable IDX"),
    ],
)
def test_bad_idx(make, content, says):
    make.path("a-images").write_bytes(content)
    with pytest.raises(ValueError, match=says) as caught:
        formats.read(formats.Idx(make.path("a-images")))
    assert "a-images" in str(caught.value)
    assert one_line(caught.value)
