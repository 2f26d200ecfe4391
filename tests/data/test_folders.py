"""Folders of photos: what is chosen by a look at them, broken files, and the decoded images in the cache."""

import os
from contextlib import contextmanager

import numpy as np
import pytest
from PIL import Image

from negvae.data import folders
from negvae.data.folders import choose_decoding, look_at, read_photos
from negvae.decoding import Decoding


def write(folder, sizes, mode="RGB", form="png"):
    folder.mkdir(exist_ok=True)
    random = np.random.default_rng(0)
    files = []
    for number, (width, height) in enumerate(sizes):
        pixels = random.integers(0, 256, (height, width, 3), np.uint8)
        files.append(str(folder / f"{number:02d}.{form}"))
        Image.fromarray(pixels).convert(mode).save(files[-1])
    return files


def chosen(files, fit=None, side=None):
    sources = [(file, file) for file in files]
    look = look_at(sources, "F")
    decoding = choose_decoding(look, fit, side, sources)
    return decoding, look.describe(decoding)


@pytest.mark.parametrize(
    ("sizes", "mode", "line"),
    [
        ([(40, 30)] * 3, "RGB", "3 photos, 40x30: 40x30 as they are"),
        ([(200, 256)] * 3, "L", "3 photos, 200x256: 200x256 as they are"),
        ([(40, 30), (80, 60), (60, 45)], "L", "3 photos, 40x30 to 80x60: resized to 60x44, 1 channel"),
        ([(40, 30), (30, 60), (50, 50)], "RGB", "3 photos, 40x30 to 50x50: padded to 48x48, 3 channels"),
        ([(640, 480), (300, 200), (400, 400)], "RGB",
         "3 photos, 300x200 to 640x480: 96x96 tiles of images reduced to at most 288 pixels, 3 channels"),
        ([(400, 80), (200, 70), (300, 60)], "RGB",
         "3 photos, 200x70 to 400x80: 48x48 tiles of images reduced to at most 144 pixels, 3 channels"),
        ([(300, 300)] * 2, "RGB", "2 photos, 300x300: 96x96 tiles of images reduced to at most 288 pixels, 3 channels"),
    ],
)  # fmt: skip
def test_what_is_chosen_by_a_look(tmp_path, sizes, mode, line):
    assert chosen(write(tmp_path / "f", sizes, mode))[1] == line


@pytest.mark.parametrize("size", [(40, 30), (32, 32)])
def test_equal_images_of_which_some_are_stored_on_their_side_are_taken_upright(tmp_path, size):
    """Before, sizes were said to differ, or square images were taken as they lie."""
    files = write(tmp_path / "f", [size] * 3)
    upright = read_photos(files, Decoding(fit="exact", height=size[1], width=size[0], channels=3), "F").inputs
    assert chosen(files)[0] is None
    exif = Image.Exif()
    exif[0x0112] = 1
    Image.open(files[0]).save(files[0], exif=exif)
    assert chosen(files)[0] is None
    exif[0x0112] = 6  # to be turned by a quarter clockwise
    Image.open(files[1]).transpose(Image.Transpose.ROTATE_90).save(files[1], exif=exif)
    decoding, line = chosen(files)
    assert line == f"3 photos, {size[0]}x{size[1]}: {size[0]}x{size[1]} as they are, 3 channels"
    np.testing.assert_array_equal(read_photos(files, decoding, "F").inputs, upright)


@pytest.mark.parametrize("pages", [2, 3])
def test_equal_images_of_two_or_three_gray_pages_keep_them_all(tmp_path, pages):
    tifffile = pytest.importorskip("tifffile")
    stacks = np.random.default_rng(0).integers(0, 256, (4, pages, 24, 20), np.uint8)
    for number, stack in enumerate(stacks):
        tifffile.imwrite(tmp_path / f"{number}.tif", stack, photometric="minisblack")
    files = [str(tmp_path / f"{number}.tif") for number in range(len(stacks))]
    decoding, line = chosen(files)
    assert line == f"4 photos, 20x24: 20x24 as they are, {pages} channels"
    np.testing.assert_array_equal(read_photos(files, decoding, "F").inputs, stacks)


def test_what_is_asked_for_is_kept(tmp_path):
    files = write(tmp_path / "f", [(40, 30), (80, 90)])
    assert chosen(files, "crop", 20)[0].shape == (3, 20, 20)
    assert chosen(files, "tile", 32)[0].fit == "tile"


def test_sixteen_bits_get_the_range_of_the_images(tmp_path):
    values = np.linspace(500, 4000, 400).reshape(20, 20).astype(np.uint16)
    files = [str(tmp_path / f"{number}.png") for number in range(3)]
    for file in files:
        Image.fromarray(values).save(file)
    decoding, line = chosen(files)
    assert (decoding.fit, decoding.bits) == ("exact", 16)
    assert 500 <= decoding.low < 520
    assert 3980 < decoding.high <= 4000
    assert "16 bits from" in line


def test_broken_files_are_named_and_too_many_refused(tmp_path):
    files = write(tmp_path / "f", [(40, 30), (80, 90), (50, 60), (70, 70)])
    (tmp_path / "f" / "02.png").write_bytes(b"nothing")
    decoding, line = chosen(files)
    assert line.endswith("; 1 broken")
    found = read_photos(files, decoding, "F", max_broken=0.25)
    assert list(found.broken) == [files[2]]
    assert "cannot identify" in found.broken[files[2]]
    assert found.owners.max() == 2
    with pytest.raises(
        ValueError, match=r"F: 1 of 4 images cannot be read, more than 10% .*remove them .*takes a higher"
    ):
        read_photos(files, decoding, "F")


def test_decoding_is_kept_and_made_anew_where_it_is_damaged_or_files_change(tmp_path, monkeypatch):
    files = write(tmp_path / "f", [(40, 30), (80, 90), (50, 60)])
    decoding = chosen(files, "tile", 16)[0]
    first = read_photos(files, decoding, "F")
    (kept,) = (tmp_path / "cache" / "decoded").glob("*.pixels")
    monkeypatch.setattr(folders, "IN_MEMORY", 0)
    mapped = read_photos(files, decoding, "F")
    assert isinstance(mapped.inputs, np.memmap)
    np.testing.assert_array_equal(mapped.inputs, first.inputs)
    monkeypatch.undo()
    monkeypatch.setenv("NEGVAE_CACHE", str(tmp_path / "cache"))
    kept.write_bytes(bytes(len(kept.read_bytes())))  # zeros
    again = read_photos(files, decoding, "F")
    np.testing.assert_array_equal(again.inputs, first.inputs)
    for other in (mapped, again):
        assert other.sha256 == first.sha256
        np.testing.assert_array_equal(other.owners, first.owners)
    backwards = read_photos(files[::-1], decoding, "F")
    assert backwards.sha256 == first.sha256  # of the set, in whatever order it is kept
    Image.new("RGB", (50, 60)).save(files[2])
    assert read_photos(files, decoding, "F").sha256 != first.sha256


def test_no_cache_is_no_obstacle(tmp_path, monkeypatch):
    files = write(tmp_path / "f", [(40, 30), (80, 90)])
    decoding = chosen(files, "tile", 16)[0]
    (tmp_path / "file").write_text("")
    first = read_photos(files, decoding, "F")
    monkeypatch.setenv("NEGVAE_CACHE", str(tmp_path / "file"))
    np.testing.assert_array_equal(read_photos(files, decoding, "F").inputs, first.inputs)


@pytest.mark.skipif(os.name == "nt", reason="Windows removes no file that is in use")
@pytest.mark.parametrize("in_memory", [folders.IN_MEMORY, 0])
@pytest.mark.parametrize("other", [None, b"of others"])
def test_another_process_may_tidy_the_cache_at_any_time(tmp_path, monkeypatch, in_memory, other):
    """Where many of them decode parts of one folder, what was decoded may be gone as soon as it has its name."""
    files = write(tmp_path / "f", [(40, 30), (80, 90)])
    decoding, replacing = chosen(files, "tile", 16)[0], folders.replacing
    wanted = read_photos(files, decoding, "F").inputs

    @contextmanager
    def disturbed(path):
        with replacing(path) as temporary:
            yield temporary
        if path.suffix == ".pixels":
            path.unlink()
            if other is not None:
                path.write_bytes(other)

    monkeypatch.setattr(folders, "replacing", disturbed)
    monkeypatch.setattr(folders, "IN_MEMORY", in_memory)
    monkeypatch.setenv("NEGVAE_CACHE", str(tmp_path / "another"))
    np.testing.assert_array_equal(read_photos(files, decoding, "F").inputs, wanted)


def test_the_cache_does_not_grow_with_every_change(tmp_path):
    files = write(tmp_path / "f", [(40, 30), (80, 90), (50, 60)])
    decoding, cache = chosen(files, "tile", 16)[0], tmp_path / "cache" / "decoded"
    for shade in range(3):
        Image.new("RGB", (50, 60), (shade, 0, 0)).save(files[2])
        found = read_photos(files, decoding, "F")
        assert found.inputs[found.owners == 2].max() == shade
        assert len(list(cache.iterdir())) == 2
    elsewhere = write(tmp_path / "g", [(40, 30), (80, 90)])
    read_photos(elsewhere, decoding, "G")
    for number in range(10):
        files += write(tmp_path / f"f/{number}", [(40, 30)])
        read_photos(files, decoding, "F")
    assert len(list(cache.glob("*.pixels"))) == len(list(cache.glob("*.json"))) == folders.KEPT + 1
    before = {path: path.stat().st_mtime_ns for path in cache.iterdir()}
    read_photos(files, decoding, "F")
    read_photos(elsewhere, decoding, "G")
    assert before == {path: path.stat().st_mtime_ns for path in cache.iterdir()}
