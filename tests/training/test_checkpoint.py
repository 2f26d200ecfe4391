"""Files of tensors: a disk that refuses them is the system's own error, and equal content has equal bytes."""

import errno

import pytest
import torch
from safetensors import SafetensorError

from negvae.checksums import open_tensors
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


def test_a_file_with_another_number_is_refused_and_one_without_a_checksum_is_not(tmp_path):
    path = tmp_path / "a"
    save_tensors(path, {"numbers": torch.arange(3.0)}, {"note": "n"})
    whole = path.read_bytes()
    with open_tensors(path, "pt") as file:
        assert file.get_tensor("numbers").tolist() == [0, 1, 2]
    for changed in (whole[:-1] + b"\x41", whole.replace(b'"note":"n"', b'"note":"m"')):
        path.write_bytes(changed)
        with pytest.raises(SafetensorError, match="changed since it was written"), open_tensors(path, "pt"):
            pass
    path.write_bytes(whole.replace(b'"sha256"', b'"before"'))
    with open_tensors(path, "pt") as file:
        assert file.metadata()["note"] == "n"
