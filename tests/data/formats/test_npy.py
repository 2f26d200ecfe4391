""".npy files."""

import numpy as np
import pytest

from negvae.data import formats, load, pixel_sha256


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
