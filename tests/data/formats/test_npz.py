""".npz archives."""

import zipfile

import numpy as np
import pytest

from negvae.data import load


@pytest.mark.parametrize("key", ["arr_0", "images", "x", "data", "anything"])
def test_npz_keys(make, key):
    pixels = make.pixels(0, 6)
    np.savez(make.path("a.npz"), **{key: pixels[:, 0], "labels": np.arange(6)[:, None]})
    found = load(make.path("a.npz"))
    np.testing.assert_array_equal(found.images, pixels)
    np.testing.assert_array_equal(found.labels, np.arange(6))


def test_npz_with_both_splits(make):
    train, test = make.pixels(0, 6), make.pixels(1, 4)
    np.savez(make.path("a.npz"), x_train=train, y_train=np.arange(6), x_test=test, y_test=np.arange(4))
    for split, pixels in (("train", train), ("test", test)):
        found = load(make.path("a.npz"), split)
        np.testing.assert_array_equal(found.images, pixels)
        assert (found.split, len(found.labels), found.notes) == (split, len(pixels), ())


def test_npz_flipped_byte(make):
    path = make.path("a.npz")
    np.savez_compressed(path, x=make.pixels(0, 20))
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 255
    path.write_bytes(data)
    with pytest.raises(ValueError, match=r"a\.npz"):
        load(path)


def test_npz_without_images(make):
    np.savez(make.path("a.npz"), p=np.zeros((3, 4, 4), np.uint8), q=np.zeros((3, 4, 4), np.uint8))
    with pytest.raises(ValueError, match="no image array"):
        load(make.path("a.npz"))
    with zipfile.ZipFile(make.path("b.npz"), "w") as archive:
        archive.writestr("x.npy", b"not an array")
    with pytest.raises(ValueError, match=r"b\.npz"):
        load(make.path("b.npz"))
