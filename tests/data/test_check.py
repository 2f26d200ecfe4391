"""Which set files hold, and whether it is the right one."""

import hashlib
from dataclasses import replace
from pathlib import Path

import pytest

from negvae.data import load, pixel_sha256, verify
from negvae.data.catalog import CATALOG
from negvae.data.formats import image_digests
from tests.data.conftest import check, write_idx

SHARED = Path("/work/shared/data")


def test_names_that_are_alike_do_not_deceive(make, small):
    write_idx(make, ".", small["fashion-mnist"])
    with pytest.raises(FileNotFoundError, match="fashion-mnist"):
        load("mnist", fetch=False)
    check("fashion-mnist", small)
    write_idx(make, "mnist", small["fashion-mnist"])
    with pytest.raises(ValueError, match=r"holds the pixels of fashion-mnist \(train\), not of mnist"):
        load("mnist", fetch=False)
    assert [row.state for row in verify("mnist")] == ["damaged", "damaged"]


def test_few_images_in_a_folder_without_a_name_belong_to_nobody(make, small):
    write_idx(make, ".", {"train": make.pixels(99, 5), "test": make.pixels(98, 5)})
    with pytest.raises(FileNotFoundError, match="put them in a folder named mnist"):
        load("mnist", fetch=False)


def test_the_wrong_split_is_noticed(make, small):
    make.idx("mnist/train-images-idx3-ubyte", small["mnist"]["test"])
    with pytest.raises(ValueError, match=r"mnist \(test\), not of mnist \(train\)"):
        load("mnist", fetch=False)


def test_a_changed_pixel_is_noticed(make, small):
    pixels = small["mnist"]["train"].copy()
    pixels[3, 0, 5, 5] ^= 1
    make.idx("mnist/train-images-idx3-ubyte", pixels)
    with pytest.raises(ValueError, match="differ from the official mnist"):
        load("mnist", fetch=False)
    row = verify("mnist")[0]
    assert row.state == "damaged"
    assert "differ" in row.notes[0]


def test_partial_sets_are_said_so(make, small):
    make.idx("mnist/train-images-idx3-ubyte", make.pixels(9, 7))
    found = load("mnist", fetch=False)
    assert found.state == "partial"
    assert "7 of 20" in found.notes[0]
    make.idx("mnist/train-images-idx3-ubyte", make.pixels(9, 30))
    with pytest.raises(ValueError, match="30 images"):
        load("mnist", fetch=False)
    make.idx("mnist/train-images-idx3-ubyte", make.pixels(9, 7, side=8))
    with pytest.raises(ValueError, match="1 x 8 x 8"):
        load("mnist", fetch=False)


def test_a_complete_set_goes_before_a_partial_one(make, small, folders):
    make.idx("mnist/train-images-idx3-ubyte", make.pixels(9, 7))
    type(make)(folders).idx("mnist/train-images-idx3-ubyte", small["mnist"]["train"])
    assert load("mnist").state == "complete"


def test_unknown_pixels_of_full_size_are_said_to_be_unchecked(make, small, monkeypatch):
    monkeypatch.setitem(CATALOG, "svhn", replace(CATALOG["svhn"], known={}))
    make.parquet("svhn/train.parquet", small["svhn"]["train"])
    found = load("svhn", fetch=False)
    assert found.state == "unchecked"
    assert "not checked" in found.notes[0]


def test_official_files_are_known_by_md5(make, small, monkeypatch):
    from scipy.io import savemat

    path = make.path("svhn/train_32x32.mat")
    savemat(path, {"X": small["svhn"]["train"].transpose(2, 3, 1, 0)})
    monkeypatch.setitem(CATALOG, "svhn", replace(CATALOG["svhn"], known={}))
    with pytest.raises(ValueError, match="MD5"):
        load("svhn", fetch=False)
    md5 = {path.name: hashlib.md5(path.read_bytes()).hexdigest()}
    monkeypatch.setitem(CATALOG, "svhn", replace(CATALOG["svhn"], file_md5=md5))
    found = load("svhn", fetch=False)
    assert (found.state, found.checked, found.notes) == ("complete", "files match the publisher's MD5", ())


def test_another_order_is_known_by_its_images(make, small, monkeypatch):

    pixels = small["cifar10"]["train"]
    sketch = {"train": "".join(sorted(image_digests(pixels))[:8])}
    monkeypatch.setitem(CATALOG, "cifar10", replace(CATALOG["cifar10"], known={}, sketch=sketch))
    make.parquet("cifar10/train.parquet", pixels[::-1])
    assert "8 of 8" in load("cifar10", fetch=False).notes[0]
    make.parquet("cifar10/train.parquet", make.pixels(77, 20, 3, 32))
    with pytest.raises(ValueError, match="differ"):
        load("cifar10", fetch=False)


def test_a_known_beginning_is_checked(make, small, monkeypatch):
    pixels = small["svhn"]["test"]
    prefix = {"test": (4, pixel_sha256(pixels[:4]))}
    monkeypatch.setitem(CATALOG, "svhn", replace(CATALOG["svhn"], known={}, prefix=prefix))
    make.parquet("svhn/test.parquet", pixels)
    assert "first 4" in load("svhn", "test", fetch=False).notes[0]
    make.parquet("svhn/test.parquet", pixels[::-1])
    with pytest.raises(ValueError, match="first 4"):
        load("svhn", "test", fetch=False)


@pytest.mark.skipif(not SHARED.is_dir(), reason=f"{SHARED} is not here: the real EMNIST, KMNIST, SVHN go unverified")
def test_real_sets(monkeypatch):
    monkeypatch.setenv("NEGVAE_DATA", str(SHARED))
    states = {(row.name, row.split): row.state for name in ("kmnist", "emnist-letters", "svhn") for row in verify(name)}
    assert states == {
        ("kmnist", "train"): "stand-in",
        ("kmnist", "test"): "complete",
        ("emnist-letters", "train"): "complete",
        ("emnist-letters", "test"): "complete",
        ("svhn", "train"): "stand-in",
        ("svhn", "test"): "partial",
    }
