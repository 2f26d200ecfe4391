"""Files of tensors: a disk that refuses them is the system's own error, and equal content has equal bytes."""

import errno

import pytest
import torch
from safetensors import SafetensorError

from negvae.training import checkpoint
from negvae.training.checkpoint import save_tensors


def test_a_full_disk_is_an_error_of_the_system(tmp_path, monkeypatch):
    def full(*arguments):
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(checkpoint, "save_file", full)
    with pytest.raises(OSError, match="No space left") as caught:
        save_tensors(tmp_path / "a", {}, {})
    assert (caught.value.errno, caught.value.filename) == (errno.ENOSPC, str(tmp_path / "a"))
    assert list(tmp_path.iterdir()) == []


def test_equal_tensors_have_equal_bytes_whatever_the_order_of_the_header(tmp_path):
    tensors = {name: torch.ones(3) for name in "cab"}
    headers = ({name: "ü" for name in order} for order in ("xyzw", "wzyx", "zxwy"))
    contents = set()
    for header in headers:
        save_tensors(tmp_path / "a", tensors, header)
        contents.add((tmp_path / "a").read_bytes())
    assert len(contents) == 1
