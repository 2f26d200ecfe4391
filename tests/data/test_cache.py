"""The cache of decoded pixels."""

import sys
from pathlib import Path

import numpy as np
import pytest

from negvae.data import load
from negvae.data.cache import cache_folder
from negvae.data.formats import Parquet


def test_cache_folder(monkeypatch):
    monkeypatch.setenv("NEGVAE_CACHE", "~/x")
    assert cache_folder() == Path.home() / "x"
    monkeypatch.delenv("NEGVAE_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "/y")
    assert cache_folder() == Path("/y/negvae")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_folder() == Path.home() / ".cache/negvae"


@pytest.mark.skipif(sys.platform == "win32", reason="every user has a home there")
@pytest.mark.parametrize("given", [{}, {"NEGVAE_CACHE": "~/x"}, {"XDG_CACHE_HOME": "~/y"}])
def test_a_user_without_a_home_gets_no_folder_of_the_name_of_one(monkeypatch, given):
    def unknown(number):
        raise KeyError(number)

    monkeypatch.setattr("pwd.getpwuid", unknown)
    for name in ("HOME", "NEGVAE_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    assert cache_folder().is_absolute()
    assert not cache_folder().exists()


def test_decoded_cache_is_used_and_never_trusted_blindly(make, small, folders, monkeypatch):
    make.parquet("svhn/train.parquet", small["svhn"]["train"])
    load("svhn", fetch=False)
    (entry,) = (folders / "decoded").glob("*.npz")
    reads = []
    real = Parquet.rows
    monkeypatch.setattr(Parquet, "rows", lambda *a, **options: reads.append(1) or real(*a, **options))
    load("svhn", fetch=False)
    assert reads == []
    whole = entry.read_bytes()
    changed = bytearray(whole)
    changed[len(changed) // 2] ^= 1
    for damage in (b"", b"junk", whole[:500], bytes(changed)):
        entry.write_bytes(damage)
        np.testing.assert_array_equal(load("svhn", fetch=False).images, small["svhn"]["train"])
    assert len(reads) == 4
    assert entry.read_bytes()[:2] == b"PK"
    make.parquet("svhn/train.parquet", make.pixels(5, 4, 3, 32))  # another file under the same name
    assert len(load("svhn", fetch=False).images) == 4
    assert [p.name for p in (folders / "decoded").iterdir()] == [entry.name]


def test_a_cache_that_cannot_be_written_is_no_reason_to_stop(make, small, folders):
    folders.mkdir()
    (folders / "decoded").write_text("in the way")
    make.parquet("svhn/train.parquet", small["svhn"]["train"])
    assert len(load("svhn", fetch=False).images) == 20
