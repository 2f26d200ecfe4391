"""Files that hold their own checksum, wherever they lie."""

import errno
import os
import sys

import numpy as np
import pytest
from safetensors.numpy import save_file

from negvae.checksums import open_tensors


@pytest.mark.skipif(sys.platform != "linux", reason="paths are text here")
def test_tensors_are_read_from_a_path_that_is_not_utf8(tmp_path):
    path = tmp_path / os.fsdecode(b"caf\xe9") / "a.safetensors"
    path.parent.mkdir()
    save_file({"x": np.arange(3)}, tmp_path / "a")
    (tmp_path / "a").rename(path)
    with open_tensors(path, "np") as file:
        assert file.get_tensor("x").tolist() == [0, 1, 2]


@pytest.mark.parametrize("name", ["a.safetensors", os.fsdecode(b"caf\xe9")])
def test_what_is_wrong_with_a_file_of_tensors_is_the_system_s_word(tmp_path, monkeypatch, name):
    """The library calls a file that may not be read one that is not there."""
    path = tmp_path / name
    with pytest.raises(FileNotFoundError) as caught, open_tensors(path, "np"):
        pass
    assert caught.value.filename == str(path)

    def refuse(*_):
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    path.touch()
    monkeypatch.setattr(type(path), "open", refuse)  # the superuser may read what nobody may
    with pytest.raises(PermissionError), open_tensors(path, "np"):
        pass
