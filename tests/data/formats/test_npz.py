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
    with pytest.raises(ValueError, match="none of its arrays"):
        load(make.path("a.npz"))
    with zipfile.ZipFile(make.path("b.npz"), "w") as archive:
        archive.writestr("x.npy", b"not an array")
    with pytest.raises(ValueError, match=r"b\.npz"):
        load(make.path("b.npz"))


def claiming(shape, held, kind="|u1"):
    header = str({"descr": kind, "fortran_order": False, "shape": shape}).ljust(117) + "\n"
    return b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header.encode() + bytes(held)


@pytest.mark.parametrize(
    ("images", "labels", "says"),
    [
        (claiming((4, 9, 10**5), 500), claiming((4,), 4), "announces"),
        (claiming((4, 9, 10**9, 10**9), 500), claiming((4,), 4), "announces"),
        (claiming((4, 9, 9), 324), claiming((4, 10**12), 99), "announces"),
        (claiming((4, 9, 9), 324), claiming((4,), 99, "<U999999"), "announces"),
        (claiming((4, 9, 9), 324, "|O"), claiming((4,), 4), "Python objects"),
        (b"\x93NUMPY\x02\x00\xff\xff\xff\xff" + bytes(10**6), claiming((4,), 4), "header claims 4,294,967,295 bytes"),
    ],
)
def test_what_a_member_claims_and_does_not_hold_is_refused_before_it_is_read(make, images, labels, says):
    with zipfile.ZipFile(make.path("a.npz"), "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("images.npy", images)
        archive.writestr("labels.npy", labels)
    with pytest.raises(ValueError, match=rf"a\.npz.*{says}"):
        load(make.path("a.npz"))


def test_a_member_larger_than_memory_is_refused_before_it_is_read(make, monkeypatch):
    np.savez_compressed(make.path("a.npz"), images=np.zeros((900, 30, 30), np.uint8))
    monkeypatch.setattr("os.sysconf", lambda name: 800)
    monkeypatch.setattr("negvae.data.formats.npy.read_rows", lambda *_: pytest.fail("read"))
    with pytest.raises(ValueError, match="900 images of 30 x 30 need"):
        load(make.path("a.npz"))
