"""Encoded images of every mode."""

import gzip
import io
import re
import sys
import tarfile
import zipfile

import numpy as np
import pytest
from PIL import Image

from negvae.data import load
from negvae.data.formats import decode_image
from negvae.data.formats.encoded import decode_images
from negvae.data.photos import read_header, read_photo
from negvae.decoding import Decoding
from tests.data.conftest import one_line


def decode(make, *images):
    for i, image in enumerate(images):
        make.image(f"set/{i}.png", image)
    return load(make.root / "set")


def test_gray_stays_gray_and_mixed_becomes_color(make):
    gray, color = make.pixels(0, 1)[0], make.pixels(1, 1, 3)[0]
    assert decode(make, gray, gray).images.shape == (2, 1, 28, 28)
    for order in ((gray, color, gray), (color, gray, gray)):
        found = decode(make, *order)
        assert found.images.shape == (3, 3, 28, 28)
        np.testing.assert_array_equal(found.images[2], np.repeat(gray, 3, 0))
        assert any("mixed" in note for note in found.notes)


def test_palette_alpha_and_bits(make):
    rng = np.random.default_rng(0)
    color = Image.fromarray(rng.integers(0, 256, (8, 8, 3), np.uint8))
    assert decode(make, color.quantize(4)).images.shape[1] == 3
    clear = np.zeros((8, 8, 4), np.uint8)
    clear[:4, :, 3] = 255
    found = decode(make, Image.fromarray(clear))
    assert found.images[0, :, :4].max() == 0
    assert found.images[0, :, 4:].min() == 255
    assert "transparency" in " ".join(found.notes)
    opaque = color.convert("RGBA")
    found = decode(make, opaque)
    np.testing.assert_array_equal(found.images[0], np.asarray(color).transpose(2, 0, 1))
    assert "transparency" not in " ".join(found.notes)
    assert set(np.unique(decode(make, Image.fromarray(np.eye(8) > 0)).images)) == {0, 255}


def test_more_than_8_bits_is_refused(make):
    with pytest.raises(ValueError, match=r"0\.png.*8 bits"):
        decode(make, Image.fromarray(np.full((8, 8), 40_000, np.uint16)))


def test_animation_gives_its_first_frame(make):
    frames = [Image.fromarray(np.full((8, 8), value, np.uint8)) for value in (10, 200)]
    frames[0].save(make.path("set/a.gif"), save_all=True, append_images=frames[1:])
    found = load(make.root / "set")
    assert found.images.max() == 10
    assert "first frame" in " ".join(found.notes)


def test_sizes_must_agree(make):
    with pytest.raises(ValueError, match=r"0\.png is 28 x 28, .*2\.png is 8 x 8"):
        decode(make, *make.pixels(0, 2), make.pixels(0, 1, side=8)[0])


@pytest.mark.parametrize("content", [b"", b"junk", None])
def test_unreadable_image_is_named(make, content):
    make.image("set/a.png", make.pixels(0, 1)[0])
    whole = make.path("set/a.png").read_bytes()
    make.path("set/b.png").write_bytes(whole[: len(whole) // 2] if content is None else content)
    with pytest.raises(ValueError, match=r"b\.png") as caught:
        load(make.root / "set")
    assert one_line(caught.value)


def test_decompression_bomb(make):
    stream = io.BytesIO()
    Image.new("1", (20_000, 20_000)).save(stream, "PNG")
    make.path("set/a.png").write_bytes(stream.getvalue())
    with pytest.raises(ValueError, match=r"a\.png"):
        load(make.root / "set")
    stream = io.BytesIO()
    Image.new("1", (9_000, 9_000)).save(stream, "PNG")
    make.path("set/a.png").write_bytes(stream.getvalue())
    with pytest.raises(ValueError, match="at most"):
        load(make.root / "set")


def test_large_images_decode_in_threads(make):
    pixels = make.pixels(0, 70, 3, 128)
    for i, image in enumerate(pixels):
        make.image(f"set/{i:03}.png", image)
    np.testing.assert_array_equal(load(make.root / "set").images, pixels)


def test_heic_is_told_by_its_content_and_needs_its_extra(tmp_path, monkeypatch):
    buffer = io.BytesIO()
    pytest.importorskip("pillow_heif").from_pillow(Image.new("RGB", (16, 12), (200, 10, 10))).save(buffer)
    path = tmp_path / "phone.jpg"  # as phones and messengers name them
    path.write_bytes(buffer.getvalue())
    for source in (str(path), buffer.getvalue()):
        monkeypatch.delitem(Image.OPEN, "HEIF", raising=False)
        assert decode_image(source, "x")[0].shape == (12, 16, 3)
    monkeypatch.delitem(Image.OPEN, "HEIF")
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    with pytest.raises(ImportError, match=r"negvae\[heif\]"):
        decode_image(buffer.getvalue(), "x")


def test_fewer_images_than_announced_are_refused():
    with pytest.raises(ValueError, match=r"^set: ends after 1 of the 3 images that it announces$"):
        decode_images([("a", Image.new("L", (8, 8)))], 3, "set")


def packed(kind):
    """(content of an archive of one file, of this kind)"""
    content = io.BytesIO()
    if kind == "zip":
        with zipfile.ZipFile(content, "w") as archive:
            archive.writestr("a.png", b"content")
    else:
        with tarfile.open(fileobj=content, mode="w") as archive:
            archive.addfile(tarfile.TarInfo("a.png"))
    return gzip.compress(content.getvalue()) if kind == "tar.gz" else content.getvalue()


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("zip", "a ZIP archive and no image: unpack it, and name its folder"),
        ("tar", "a tar archive and no image: unpack it, and name its folder"),
        ("tar.gz", "a gzip file and no image: unpack it, and name what is in it"),
        ("h5", "an HDF5 file and no image: save its images as .npy"),
    ],
)
def test_what_holds_images_and_is_none_says_what_to_do_with_it(tmp_path, kind, message):
    path = tmp_path / f"photos.{kind}"
    path.write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(100) if kind == "h5" else packed(kind))
    decoding = Decoding(fit="resize", height=8, width=8, channels=3)
    for read in (decode_image, read_header, lambda source, where: read_photo(source, where, decoding)):
        with pytest.raises(ValueError, match=f"^{re.escape(str(path))}: {message}") as refused:
            read(str(path), str(path))
        one_line(refused)
