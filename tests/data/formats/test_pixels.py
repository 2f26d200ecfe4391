"""Arrays as images, labels and hashes."""

import hashlib

import numpy as np
import pytest

from negvae.data import formats, load, pixel_sha256
from negvae.data.formats import DataError
from tests.data.conftest import one_line


def test_hash_is_over_pixels_with_channels_last():
    images = np.arange(2 * 3 * 4 * 5, dtype=np.uint8).reshape(2, 3, 4, 5)

    assert pixel_sha256(images) == hashlib.sha256(images.transpose(0, 2, 3, 1).tobytes()).hexdigest()
    assert pixel_sha256(images[:, :1]) == hashlib.sha256(images[:, 0].tobytes()).hexdigest()


@pytest.mark.parametrize(
    ("shape", "served"),
    [
        ((5, 8, 9), (5, 1, 8, 9)),
        ((5, 8, 9, 1), (5, 1, 8, 9)),
        ((5, 8, 9, 3), (5, 3, 8, 9)),
        ((5, 1, 8, 9), (5, 1, 8, 9)),
        ((5, 3, 8, 9), (5, 3, 8, 9)),
        ((5, 3, 8, 3), (5, 3, 8, 3)),  # both axes could be channels: axis 1 is
    ],
)
def test_array_layouts(shape, served):
    images = formats.as_images(np.zeros(shape, np.uint8), "x").images
    assert images.shape == served
    assert images.flags.c_contiguous
    assert images.dtype == np.uint8


@pytest.mark.parametrize(
    ("array", "says"),
    [
        (np.zeros((5, 8, 8), np.int64), "int64"),
        (np.zeros((5, 8, 8), bool), "bool"),
        (np.zeros((5, 8, 8, 4), np.uint8), "alpha"),
        (np.zeros((5, 4, 8, 8), np.uint8), "alpha"),
        (np.zeros((5, 2, 8, 8), np.uint8), "C 1 or 3"),
        (np.zeros((8, 8, 3), np.uint8), "one H x W x C image"),
        (np.zeros((8, 8), np.uint8), "8 x 8"),
        (np.zeros((0, 8, 8), np.uint8), "no images"),
        (np.full((5, 8, 8), 2.0), "within"),
        (np.full((5, 8, 8), -0.1), "within"),
        (np.full((5, 8, 8), np.nan), "NaN"),
        (np.full((5, 8, 8), np.inf), "within"),
        (np.zeros((5, 8, 8), np.complex64), "complex64"),
    ],
)
def test_arrays_that_are_not_images(array, says):
    with pytest.raises(DataError, match=says) as caught:
        formats.as_images(array, "x")
    assert one_line(caught.value)


@pytest.mark.parametrize("kind", [np.float16, np.float32, np.float64])
def test_floats_come_back_as_the_pixels_they_were(kind):
    pixels = np.arange(256, dtype=np.uint8).reshape(1, 1, 16, 16)
    decoded = formats.as_images((pixels / 255).astype(kind), "x")
    np.testing.assert_array_equal(decoded.images, pixels)
    assert decoded.notes == ()


def test_rounded_floats_are_said_so():
    assert "1 image changed" in formats.as_images(np.full((1, 5, 5), 0.5), "x").notes[0]


def test_labels_must_fit(make):
    np.savez(make.path("a.npz"), x=make.pixels(0, 6), y=np.arange(5))
    with pytest.raises(ValueError, match="one label for each of the 6"):
        load(make.path("a.npz"))
    np.savez(make.path("b.npz"), x=make.pixels(0, 2), y=np.array([0.5, 1]))
    with pytest.raises(ValueError, match="whole numbers"):
        load(make.path("b.npz"))
