"""What holds for every format."""

import numpy as np
import pytest

from negvae.data import formats, load
from tests.data.conftest import one_line


@pytest.mark.parametrize("name", ["a.npy", "a.npz"])
def test_object_arrays_are_refused(make, name):
    path = make.path(name)
    array = np.array([{"a": 1}], dtype=object)
    if name.endswith("npy"):
        np.save(path, array, allow_pickle=True)
    else:
        np.savez(path, images=array)
    with pytest.raises(ValueError, match=name) as caught:
        load(path)
    assert one_line(caught.value)


@pytest.mark.parametrize("content", [b"", b"junk", b"\x93NUMPY\x01\x00", b"PK\x03\x04 torn", b"\x80\x04N."])
@pytest.mark.parametrize("name", ["a.npy", "a.npz", "a.parquet"])
def test_damaged_files(make, name, content):
    make.path(name).write_bytes(content)
    with pytest.raises(ValueError, match=name) as caught:
        load(make.path(name))
    assert one_line(caught.value)


@pytest.mark.parametrize("name", ["a.npy", "a.npz", "a.parquet"])
@pytest.mark.parametrize("share", [0.3, 0.9])
def test_files_cut_short(make, name, share):
    path, pixels = make.path(name), make.pixels(0, 20)
    {"a.npy": lambda: np.save(path, pixels), "a.npz": lambda: np.savez(path, x=pixels),
     "a.parquet": lambda: make.parquet(name, pixels)}[name]()  # fmt: skip
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    with pytest.raises(ValueError, match=name) as caught:
        load(path)
    assert one_line(caught.value)


def test_what_does_not_fit_in_memory_is_refused(make, monkeypatch):
    monkeypatch.setattr("os.sysconf", lambda name: 10)
    with pytest.raises(ValueError, match="GiB"):
        formats.read(formats.Parquet([make.parquet("a.parquet", make.pixels(0, 3))]))
