"""SVHN's MATLAB files."""

import struct

import numpy as np
import pytest

from negvae.data import formats
from negvae.data.formats import matlab
from negvae.data.formats.matlab import matrices


@pytest.mark.parametrize("content", [{"Y": np.zeros(3)}, {"X": np.zeros((4, 4, 2, 3), np.uint8)}, {"X": np.zeros(3)}])
def test_bad_mat(make, content):
    from scipy.io import savemat

    savemat(make.path("train_32x32.mat"), content)
    with pytest.raises(ValueError, match=r"train_32x32\.mat"):
        formats.read(formats.Mat(make.path("train_32x32.mat")))
    make.path("train_32x32.mat").write_bytes(b"junk" * 50)
    with pytest.raises(ValueError, match=r"train_32x32\.mat"):
        formats.read(formats.Mat(make.path("train_32x32.mat")))


def numbers(kind, seed=0, shape=(3, 4, 2)):
    return np.random.default_rng(seed).integers(0, 100, shape).astype(kind)


@pytest.mark.parametrize("compressed", [True, False])
def test_arrays_are_those_that_scipy_reads(make, compressed):
    from scipy.io import savemat

    kinds = ("u1", "i1", "u2", "i2", "u4", "i4", "u8", "i8", "f4", "f8")
    arrays = {f"a_{kind}": numbers(kind, seed) for seed, kind in enumerate(kinds)}
    others = {
        "text": "words",
        "table": {"a": 1, "b": [1, 2]},
        "complex": np.array([1j]),
        "cell": np.array([1, "a"], object),
    }
    savemat(
        make.path("a.mat"),
        {**others, **arrays, "x": np.zeros((1, 3)), "empty": np.zeros((0, 2))},
        do_compression=compressed,
    )
    with make.path("a.mat").open("rb") as file:
        found = {matrix.name: (matrix.shape, matrix.dtype, matrix.read()) for matrix in matrices(file)}
    assert set(found) == {*arrays, "x", "empty"}
    for name, array in arrays.items():
        shape, dtype, read = found[name]
        assert (shape, dtype) == (array.shape, array.dtype)
        np.testing.assert_array_equal(read, array)
    assert found["empty"][2].shape == (0, 2)


def test_numbers_may_be_stored_in_fewer_bytes_and_the_other_byte_order(make):
    """SVHN's labels are doubles that MATLAB stored as bytes; savemat stores every type as it is."""
    name = b"y" + b"\0" * 3
    matrix = struct.pack(">IIII", 6, 8, 6, 0) + struct.pack(">IIii", 5, 8, 3, 1)
    matrix += struct.pack(">HH", 1, 1) + name + struct.pack(">HH", 3, 2) + bytes([10, 1, 9, 0])
    make.path("big.mat").write_bytes(b" " * 124 + b"\1\0MI" + struct.pack(">II", 14, len(matrix)) + matrix)
    with make.path("big.mat").open("rb") as file:
        (found,) = [(matrix.name, matrix.read()) for matrix in matrices(file)]
    assert found[0] == "y"
    assert found[1].dtype == np.float64
    np.testing.assert_array_equal(found[1], [[10], [1], [9]])


def test_a_claim_is_refused_before_it_takes_memory(make):
    from scipy.io import savemat

    savemat(make.path("a.mat"), {"X": numbers("u1", shape=(4, 4, 3, 5))}, do_compression=False)
    content = bytearray(make.path("a.mat").read_bytes())
    at = content.index(struct.pack("<IIiiii", 5, 16, 4, 4, 3, 5)) + 8
    for size, message in ((2**30, "GiB|memory"), (-1, "shape"), (6, "bytes")):
        content[at + 12 : at + 16] = struct.pack("<i", size)
        make.path("b.mat").write_bytes(content)
        with pytest.raises(ValueError, match=message) as raised:
            formats.read(formats.Mat(make.path("b.mat")))
        assert "\n" not in str(raised.value)
    make.path("c.mat").write_bytes(make.path("a.mat").read_bytes()[:-30])
    with pytest.raises(ValueError, match="ends in the middle"):
        formats.read(formats.Mat(make.path("c.mat")))
    make.path("d.mat").write_bytes(b"MATLAB 7.3 MAT-file".ljust(512) + b"\x89HDF\r\n\x1a\n")
    with pytest.raises(ValueError, match="save it with -v7"):
        formats.read(formats.Mat(make.path("d.mat")))


def test_labels_of_another_number_are_refused_before_they_are_read(make, monkeypatch):
    from scipy.io import savemat

    savemat(make.path("a.mat"), {"X": numbers("u1", shape=(4, 4, 3, 5)), "y": np.zeros((1000, 1000))})
    seen, element = [], matlab._element
    monkeypatch.setattr(matlab, "_element", lambda *given: seen.append(given[3]) or element(*given))
    with pytest.raises(ValueError, match=r"labels have shape 1000 x 1000; one label for each of the 5 images"):
        formats.read(formats.Mat(make.path("a.mat")))
    assert max(seen) < 10_000
