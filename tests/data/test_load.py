"""Sets by name and by path, and overviews."""

import os
import re

import numpy as np
import pytest
from PIL import Image

from negvae.data import list_sets, load, names, pixel_sha256, verify
from negvae.data.catalog import CATALOG, Known
from negvae.data.formats.folder import LeftOut
from negvae.data.load import image_files
from negvae.data.spans import spans
from tests.data.conftest import write_idx


def test_kmnist_test_stands_in_for_train(make, small):
    pixels = small["kmnist"]["test"]
    make.idx("kmnist/t10k-images-idx3-ubyte", pixels)
    train, test = load("kmnist", fetch=False), load("kmnist", "test", fetch=False)
    assert (train.state, test.state, test.notes) == ("stand-in", "complete", ())
    assert "stand-in" in train.notes[0]
    np.testing.assert_array_equal(train.images, test.images)
    parts = [load("kmnist", split, fetch=False, disjoint_from_train=True) for split in ("train", "test")]
    assert [len(part.images) for part in parts] == [8, 2]
    both = {image.tobytes() for part in parts for image in part.images}
    assert both == {image.tobytes() for image in pixels}


def test_svhn_train_is_carved_out_of_test(make, small):
    pixels = small["svhn"]["test"]
    make.parquet("svhn/test.parquet", pixels, list(range(10)))
    train = load("svhn", fetch=False)
    np.testing.assert_array_equal(train.images, pixels[:8])
    assert train.labels.tolist() == list(range(8))
    assert train.sha256 == pixel_sha256(pixels[:8])
    assert "first 8 of the 10" in train.notes[-1]
    assert len(load("svhn", "test", fetch=False).images) == 10
    rest = load("svhn", "test", fetch=False, disjoint_from_train=True)
    np.testing.assert_array_equal(rest.images, pixels[8:])
    assert "last 2" in rest.notes[-1]


def test_imagenet_stand_in_serves_both_splits(make, small):
    make.parquet("tiny-imagenet-32/train-7.parquet", small["imagenet32"]["train"][:10])
    train, test = load("imagenet32", fetch=False), load("imagenet32", "test", fetch=False)
    assert (len(train.images), len(test.images), test.state) == (10, 10, "stand-in")
    parts = [load("imagenet32", s, fetch=False, disjoint_from_train=True) for s in ("train", "test")]
    assert [len(part.images) for part in parts] == [8, 2]


def test_both_splits_are_disjoint_as_they_are(make, small):
    for split, pixels in small["svhn"].items():
        make.parquet(f"svhn/{split}.parquet", pixels)
    assert len(load("svhn", "test", fetch=False, disjoint_from_train=True).images) == 10


def test_mnist_has_no_stand_in(make, small):
    make.idx("mnist/t10k-images-idx3-ubyte", small["mnist"]["test"])
    with pytest.raises(FileNotFoundError, match="by hand"):
        load("mnist", fetch=False)


def test_names():
    listed = "mnist fashion-mnist kmnist emnist-letters cifar10 cifar100 svhn imagenet32 uniform-noise"
    assert names() == tuple(listed.split())


@pytest.mark.parametrize(
    ("arguments", "error", "says"),
    [
        ({"name_or_path": "fashon_mnist"}, ValueError, "did you mean fashion-mnist"),
        ({"name_or_path": "zzz"}, ValueError, "Known: mnist, .*path"),
        ({"name_or_path": ""}, ValueError, "unknown"),
        ({"name_or_path": "./nothing"}, FileNotFoundError, "no such file"),
        ({"name_or_path": "nothing.npy"}, FileNotFoundError, "no such file"),
        ({"name_or_path": "mnist", "split": "val"}, ValueError, "train or test"),
        ({"name_or_path": "mnist", "limit": 0}, ValueError, "at least 1"),
        ({"name_or_path": "mnist", "limit": 1.5}, TypeError, "whole number"),
        ({"name_or_path": "mnist", "limit": True}, TypeError, "whole number"),
        ({"name_or_path": "uniform-noise", "shape": (28, 28)}, ValueError, "C, H, W"),
        ({"name_or_path": "uniform-noise", "shape": (1, 0, 28)}, ValueError, "C, H, W"),
    ],
)
def test_arguments(arguments, error, says):
    with pytest.raises(error, match=says) as caught:
        load(**arguments)
    assert "\n" not in str(caught.value)


def test_a_file_of_no_known_kind(make):
    make.path("a.txt").write_text("hello")
    with pytest.raises(ValueError, match=r"a\.txt: \.txt cannot be read"):
        load(make.path("a.txt"))


def test_limit(make, small):
    write_idx(make, "mnist", small["mnist"])
    found = load("mnist", limit=3)
    np.testing.assert_array_equal(found.images, small["mnist"]["train"][:3])
    assert (len(found.labels), found.sha256) == (3, pixel_sha256(found.images))
    assert "first 3 of 20" in found.notes[0]
    assert load("mnist", limit=20).notes == ()


def test_uniform_noise():
    train, test = load("uniform-noise"), load("uniform-noise", "test")
    assert train.images.shape == (10_000, 1, 28, 28)
    assert train.sha256 == load("uniform-noise").sha256 != test.sha256
    assert set(np.unique(train.images)) == set(range(256))
    few = load("uniform-noise", limit=7, shape=(3, 5, 3))
    np.testing.assert_array_equal(few.images, load("uniform-noise", shape=(3, 5, 3)).images[:7])


def test_path_held_out(make):
    pixels = make.pixels(0, 10)
    np.save(make.path("a.npy"), pixels)
    parts = [load(make.path("a.npy"), split, disjoint_from_train=True) for split in ("train", "test")]
    assert [len(part.images) for part in parts] == [8, 2]
    np.testing.assert_array_equal(parts[1].images, pixels[4::5])
    lacks = f"{make.path('a.npy')}: has no train and test parts, so"
    assert parts[0].notes == (f"{lacks} four in five images (8 of 10) are for training",)
    assert parts[1].notes == (f"{lacks} every fifth image (2 of 10) is for testing",)
    for index, image in enumerate(pixels):
        make.image(f"folder/{index}.png", image)
    (note,) = load(make.path("folder"), "test", disjoint_from_train=True).notes
    assert "has no train and test subfolders, so every fifth image (2 of 10)" in note


def test_list_sets(make, small):
    write_idx(make, "mnist", small["mnist"])
    make.parquet("svhn/test.parquet", small["svhn"]["test"][:4])
    make.parquet("tiny-imagenet-32/train.parquet", small["imagenet32"]["train"][:4])
    make.path("kmnist/t10k-images-idx3-ubyte").write_bytes(b"junk")
    rows = {(row.name, row.split): row for row in list_sets()}
    assert len(rows) == 18
    assert rows["mnist", "train"].state == "complete"
    assert rows["mnist", "train"].count == 20
    assert rows["svhn", "test"].state == "partial"
    assert rows["svhn", "train"].state == "missing"
    assert "stand in" in rows["svhn", "train"].origin
    assert rows["imagenet32", "train"].state == "stand-in"
    assert rows["kmnist", "test"].state == "damaged"
    assert rows["cifar10", "train"].origin.startswith("`negvae data fetch cifar10`")
    assert rows["uniform-noise", "test"].state == "complete"
    assert all(row.license for row in rows.values())


def test_verify(make, small):
    write_idx(make, "mnist", small["mnist"])
    rows = verify("mnist")
    assert [(row.split, row.state, row.count) for row in rows] == [
        ("train", "complete", 20),
        ("test", "complete", 10),
    ]
    assert "match" in rows[0].checked
    assert rows[0].sha256 == pixel_sha256(small["mnist"]["train"])
    assert [row.state for row in verify("cifar10")] == ["missing", "missing"]
    with pytest.raises(ValueError, match="unknown"):
        verify("mnits")


def test_catalog_is_sound():
    for name, spec in CATALOG.items():
        assert set(spec.sizes) == {"train", "test"}
        for hashes in spec.known.values():
            for sha256, known in hashes.items():
                assert len(bytes.fromhex(sha256)) == 32
                assert isinstance(known, Known)
        for sketch in spec.sketch.values():
            assert len(sketch) == 256
        for url in (url for group in spec.downloads for file in group for url in file.urls if url.startswith("hub:")):
            assert re.fullmatch(r"hub:[^/]+/[^/]+/resolve/[0-9a-f]{40}/.+\.parquet", url)
        assert spec.license
        assert name == "uniform-noise" or spec.by_hand


def test_the_names_of_the_catalog_go_before_paths_for_every_command(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "uniform-noise").mkdir()
    Image.new("L", (28, 28)).save(tmp_path / "uniform-noise" / "a.png")
    found = load("uniform-noise", "test", limit=3)
    assert found.origin == "procedural"
    assert found.notes[-1] == "uniform-noise: the set of this name, not ./uniform-noise"
    left_out = LeftOut()
    (named,) = spans(["uniform-noise"], left_out)
    assert len(named.images) == 10_000
    assert "path with the name of a set 1: ./uniform-noise" in left_out.describe()
    assert image_files("uniform-noise", "test") is None
    for text in ("./uniform-noise", "uniform-noise/"):
        assert load(text).images.shape == (1, 1, 28, 28)
        assert [os.path.basename(span.path) for span in spans([text])] == ["a.png"]
        assert len(image_files(text, "test")) == 1
