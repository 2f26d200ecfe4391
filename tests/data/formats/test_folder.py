"""Folders of images."""

import numpy as np
import pytest

from negvae.data import load


def test_folder(make):
    pixels = make.pixels(0, 4, 3, 8)
    for i, name in enumerate(["b/1.png", "a/2.png", "a/1.png", "b/x/3.PNG"]):
        make.image(f"set/{name}", pixels[i])
    make.path("set/.hidden/1.png").write_bytes(b"junk")
    make.path("set/readme.txt").write_text("not an image")
    found = load(make.root / "set")
    np.testing.assert_array_equal(found.images, pixels[[2, 1, 0, 3]])
    assert found.labels.tolist() == [0, 0, 1, 1]
    assert "2 left out (.txt 1, hidden 1" in found.notes[0]
    assert "no train and test" in found.notes[1]
    assert len(load(make.root / "set", limit=3).images) == 3
    assert any("first 3 of 4" in note for note in load(make.root / "set", limit=3).notes)


@pytest.mark.parametrize("test_name", ["test", "val"])
def test_folder_with_splits(make, test_name):
    train, test = make.pixels(0, 3), make.pixels(1, 2)
    for i, image in enumerate(train):
        make.image(f"set/train/a/{i}.png", image)
    for i, image in enumerate(test):
        make.image(f"set/{test_name}/{i}.png", image)
    for split, pixels in (("train", train), ("test", test)):
        found = load(make.root / "set", split)
        np.testing.assert_array_equal(found.images, pixels)
        assert (found.split, found.notes) == (split, ())


@pytest.mark.parametrize(
    ("files", "says"),
    [([], "no images"), (["a.npz"], r"\.npz file itself"), (["t-idx3-ubyte"], "NEGVAE_DATA")],
)
def test_folders_without_images(make, files, says):
    (make.root / "set").mkdir()
    for name in files:
        make.path(f"set/{name}").write_bytes(b"")
    with pytest.raises(ValueError, match=says):
        load(make.root / "set")
