""".npy files."""

import io

import numpy as np
import pytest

from negvae.data import formats, load, pixel_sha256
from tests.data.conftest import one_line


@pytest.mark.parametrize("big", [False, True])
def test_npy(make, monkeypatch, big):
    monkeypatch.setattr(formats.npy, "MAP_BYTES", 0 if big else 10**9)
    pixels = make.pixels(0, 6, 3, 8)
    np.save(make.path("a.npy"), pixels)
    found = load(make.path("a.npy"))
    np.testing.assert_array_equal(found.images, pixels)
    assert found.images.flags.writeable  # torch.from_numpy warns of what is not
    assert found.split == "all"
    assert found.labels is None
    assert found.sha256 == pixel_sha256(pixels)


def test_a_header_that_ends_in_the_middle_is_one_line(make):
    """NumPy reads headers with Python's tokenizer, whose errors are of a kind of their own."""
    content = io.BytesIO()
    np.save(content, make.pixels(0, 2))
    path = make.path("a.npy")
    path.write_bytes(content.getvalue().replace(b"), }", b"   L", 1))
    with pytest.raises(ValueError, match=r"a\.npy: not a readable") as caught:
        load(path)
    assert one_line(caught.value)
