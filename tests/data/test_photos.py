"""Photos of any size, depth and number of channels, decoded and fitted by one description."""

import dataclasses
import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from negvae.data.fit import fit_photo
from negvae.data.formats import decode_image
from negvae.data.photos import decode_photo, raw_pixels, read_header, read_photo
from negvae.decoding import Decoding

RGB = Decoding(fit="tile", height=16, width=16, channels=3)


def encoded(image, form="PNG", **options):
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def tiff(image, **options):
    buffer = io.BytesIO()
    pytest.importorskip("tifffile").imwrite(buffer, image, **options)
    return buffer.getvalue()


def picture(height=24, width=40, seed=0):
    coarse = np.random.default_rng(seed).integers(0, 256, (4, 5, 3), np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_is_applied_and_the_header_says_so(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    content = encoded(picture(), "PNG", exif=exif)
    header, pixels = read_header(content, "x"), decode_photo(content, "x", RGB)
    assert pixels.shape == (3, header.height, header.width)
    assert (header.width > header.height) == (orientation < 5)
    assert header.turned == (orientation > 1)
    if orientation == 3:
        np.testing.assert_array_equal(pixels, decode_photo(encoded(picture()), "x", RGB)[:, ::-1, ::-1])


def test_every_mode_of_pillow_becomes_rgb_or_gray():
    image = picture()
    transparent = image.convert("RGBA")
    transparent.putalpha(0)
    assert (decode_photo(encoded(transparent), "x", RGB) == 255).all()  # over white
    for mode in ("P", "L", "1", "LA", "CMYK"):
        form = "JPEG" if mode == "CMYK" else "PNG"
        content = encoded(image.convert(mode), form)
        assert decode_photo(content, "x", RGB).shape == (3, 24, 40)
        assert read_header(content, "x").channels == (1 if mode in ("L", "1", "LA") else 3)
    gray = decode_photo(encoded(image), "x", dataclasses.replace(RGB, channels=1))
    np.testing.assert_allclose(gray[0], np.asarray(image.convert("L")), atol=1)
    np.testing.assert_array_equal(decode_photo(image, "x", RGB), decode_photo(encoded(image), "x", RGB))


def test_sixteen_bits_are_scaled_by_the_range_of_the_description():
    values = np.array([[0, 1000, 3000], [5000, 6000, 65535]], np.uint16)
    deep = Decoding(fit="exact", height=2, width=3, channels=1, bits=16, low=1000, high=5000)
    content = encoded(Image.fromarray(values))
    assert read_header(content, "x").bits == 16
    np.testing.assert_array_equal(decode_photo(content, "x", deep)[0], [[0, 0, 128], [255, 255, 255]])
    eight = encoded(Image.fromarray((values >> 8).astype(np.uint8)))
    assert decode_photo(eight, "x", deep).max() == 255  # 8 bits are taken as the upper ones


@pytest.mark.parametrize("kind", [np.uint8, np.uint16])
@pytest.mark.parametrize("planar", ["contig", "separate"])
def test_tiff_of_many_channels(kind, planar, tmp_path):
    tifffile = pytest.importorskip("tifffile")
    image = np.random.default_rng(0).integers(0, 256, (6, 20, 30)).astype(kind)
    path = str(tmp_path / "x.tif")
    stored = image if planar == "separate" else image.transpose(1, 2, 0)
    tifffile.imwrite(path, stored, photometric="minisblack", planarconfig=planar)
    wanted = Decoding(fit="tile", height=16, width=16, channels=6, bits=8 * kind().itemsize, low=0, high=255)
    header = read_header(path, path)
    assert (header.width, header.height, header.channels, header.bits) == (30, 20, 6, wanted.bits)
    np.testing.assert_array_equal(decode_photo(path, path, wanted), image)
    with pytest.raises(ValueError, match="has 6 channels, the model takes 3"):
        decode_photo(path, path, dataclasses.replace(RGB, bits=wanted.bits))


def test_large_jpeg_is_reduced_while_it_is_decoded_and_looks_the_same():
    image = picture(1200, 1600)
    small = dataclasses.replace(RGB, longest=64)
    drafted = decode_photo(encoded(image, "JPEG", quality=95), "x", small)
    whole = decode_photo(encoded(image, "PNG"), "x", small)
    assert drafted.shape == whole.shape == (3, 48, 64)
    assert np.abs(drafted.astype(int) - whole).mean() < 2


def test_fits():
    image = np.zeros((1, 20, 40), np.uint8)
    image[:, :, 8:32] = 200  # the middle, and a little more
    shape = {"height": 10, "width": 10, "channels": 1}
    crop, pad, resize = (fit_photo(image, Decoding(fit=fit, **shape))[0] for fit in ("crop", "pad", "resize"))
    assert crop.shape == pad.shape == resize.shape == (1, 1, 10, 10)
    assert crop.min() == 200
    assert (pad[0, 0, 0] == pad[0, 0, 3]).all()  # the border's color goes on
    assert resize.mean() == pytest.approx(120, abs=2)  # of the whole width
    tiles, plan = fit_photo(image, Decoding(fit="tile", **shape))
    assert len(tiles) == len(plan) == 15
    with pytest.raises(ValueError, match="is 40 x 20, the model takes 10 x 10"):
        fit_photo(image, Decoding(fit="exact", **shape))


def test_what_is_no_image_is_refused_in_one_line(tmp_path):
    whole = encoded(picture(), "JPEG")
    for content in (b"text", whole[:200], encoded(Image.fromarray(np.zeros((2, 2), np.float32)), "TIFF")):
        with pytest.raises(ValueError, match=r"^x: "):
            read_photo(content, "x", RGB)
    with pytest.raises(ValueError, match="claims 40 x 24 pixels"):
        read_photo(encoded(picture()), "x", RGB, max_pixels=100)


@pytest.mark.parametrize("fit", ["resize", "crop", "tile"])
def test_the_limit_is_of_the_pixels_that_a_jpeg_declares_not_of_those_that_are_decoded(fit):
    large = encoded(Image.new("RGB", (800, 600)), "JPEG")
    small = Decoding(fit=fit, height=16, width=16, channels=3, longest=32 if fit == "tile" else 0)
    assert len(read_photo(large, "x", small)[0])
    with pytest.raises(ValueError, match="claims 800 x 600 pixels; at most 200,000 are accepted"):
        read_photo(large, "x", small, max_pixels=200_000)


def test_a_photo_of_several_pictures_scores_alike_from_its_file_and_opened(tmp_path):
    first, second = (
        Image.fromarray(np.random.default_rng(seed).integers(0, 256, (400, 400, 3), np.uint8)) for seed in (0, 1)
    )
    first.save(tmp_path / "x.jpg", "MPO", save_all=True, append_images=[second])
    small = Decoding(fit="resize", height=16, width=16, channels=3)
    with Image.open(tmp_path / "x.jpg") as opened:
        assert opened.format == "MPO"
        np.testing.assert_array_equal(
            read_photo(opened, "x", small)[0], read_photo(str(tmp_path / "x.jpg"), "x", small)[0]
        )


def test_transparency_is_not_turned_over_where_white_is_zero():
    values = np.zeros((4, 4, 2), np.uint16)
    values[..., 0], values[..., 1] = 1000, 60000
    content = tiff(values, photometric="miniswhite", extrasamples=["unassalpha"], planarconfig="contig")
    white, alpha = 65535, 60000 / 65535
    expected = (white - 1000) * alpha + white * (1 - alpha)
    assert raw_pixels(content, "x") == pytest.approx(expected, abs=2)


def test_a_limit_above_pillows_own_holds_and_the_default_leaves_pillows_alone(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 40)
    with pytest.raises(ValueError, match="exceeds limit of 80 pixels"):
        read_photo(encoded(picture()), "x", RGB)
    read_photo(encoded(picture()), "x", RGB, max_pixels=200_000_000)
    with pytest.raises(ValueError, match="at most 100 are accepted"):
        read_photo(encoded(picture()), "x", RGB, max_pixels=100)


@pytest.mark.parametrize(
    ("values", "word"),
    [
        ({"fit": "stretch"}, "fit"), ({"channels": 17}, "between 1 and 16"), ({"bits": 12}, "8 or 16"),
        ({"low": 9, "high": 9}, "ascend"), ({"longest": 3}, "at least a tile"), ({"overlap": 0.9}, "0 to 0.75"),
        ({"height": 0}, "at least 1 pixel"), ({"width": 2.5}, "whole number"), ({"rules": "others"}, "upgrade"),
        ({"hight": 3}, "did you mean height"),
    ],
)  # fmt: skip
def test_description_goes_through_plain_values_and_refuses_nonsense(values, word):
    assert Decoding.from_dict(RGB.to_dict()) == RGB
    with pytest.raises(ValueError, match=word):
        Decoding.from_dict({**RGB.to_dict(), **values})


@pytest.mark.parametrize("form", ["PNG", "TIFF", "JPEG"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_header_has_the_size_of_the_decoded_image_in_every_format(form, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    for image in (picture(), Image.fromarray(np.zeros((24, 40), np.uint16))):
        if form != "JPEG" or image.mode == "RGB":
            content = encoded(image, form, exif=exif)
            header, pixels = read_header(content, "x"), raw_pixels(content, "x")
            assert pixels.shape[1:] == (header.height, header.width) == ((24, 40) if orientation < 5 else (40, 24))


def test_a_photo_on_its_side_is_good_whatever_else_its_exif_block_holds():
    width_as_text, on_its_side = struct.pack("<HHI4s", 256, 2, 4, b"abc"), struct.pack("<HHII", 274, 3, 1, 6)
    block = b"Exif\0\0II*\0\x08\0\0\0\x02\0" + width_as_text + on_its_side + bytes(4)
    content = encoded(picture(), "JPEG", exif=block)
    np.testing.assert_array_equal(
        decode_photo(content, "x", RGB), np.rot90(decode_photo(encoded(picture(), "JPEG"), "x", RGB), -1, (1, 2))
    )


def test_of_a_tiff_of_several_pages_the_first_is_decoded_as_if_it_were_alone():
    clear = Image.new("RGBA", (40, 24), (0, 0, 0, 0))
    palette = Image.new("P", (40, 24))
    palette.putpalette([255, 0, 0])
    images = (clear, palette, Image.new("CMYK", (40, 24), (255, 0, 0, 0)), Image.new("1", (40, 24)), picture())
    for image in (*images, Image.new("L", (40, 24), 9)):
        alone = encoded(image, "TIFF")
        for second in (Image.new("L", (5, 5)), *([image] if image.mode != "L" else [])):
            both = encoded(image, "TIFF", save_all=True, append_images=[second])
            assert read_header(both, "x") == read_header(alone, "x")
            np.testing.assert_array_equal(raw_pixels(both, "x"), raw_pixels(alone, "x"))


@pytest.mark.parametrize("kind", [np.uint8, np.uint16])
def test_gray_pages_of_one_size_are_channels(kind):
    channels = np.random.default_rng(0).integers(0, 256, (5, 20, 30)).astype(kind)
    small = Image.fromarray(channels[0, :9, :9])
    forms = [tiff(channels), tiff(channels, imagej=True, metadata={"axes": "CYX"})]
    pages = [Image.fromarray(each) for each in channels]
    forms += [encoded(pages[0], "TIFF", save_all=True, append_images=[*pages[1:], small])]
    for content in forms:
        header = read_header(content, "x")
        assert (header.width, header.height, header.channels, header.bits) == (30, 20, 5, 8 * kind().itemsize)
        np.testing.assert_array_equal(raw_pixels(content, "x"), channels)
    with pytest.raises(ValueError, match="has 20 channels"):
        read_header(tiff(np.repeat(channels, 4, 0)), "x")


@pytest.mark.parametrize("kind", [np.uint8, np.uint16])
def test_gray_pages_that_were_written_one_by_one_are_channels(kind):
    tifffile = pytest.importorskip("tifffile")
    channels = np.random.default_rng(0).integers(0, 256, (3, 20, 30)).astype(kind)
    for ome in (False, True):
        buffer = io.BytesIO()
        with tifffile.TiffWriter(buffer, ome=ome) as writer:
            for page in (*channels, channels[0, :9, :9]):
                writer.write(page)
        content = buffer.getvalue()
        assert read_header(content, "x").channels == 3
        np.testing.assert_array_equal(raw_pixels(content, "x"), channels)
    singular = tiff(channels[None, ..., None], photometric="minisblack")  # axes of length 1 are no channels
    assert read_header(singular, "x").channels == 3
    np.testing.assert_array_equal(raw_pixels(singular, "x"), channels)


@pytest.mark.parametrize("kind", [np.uint8, np.uint16])
@pytest.mark.parametrize("orientation", [1, 6])
def test_compressed_gray_pages_are_read_where_tifffile_does_not_know_the_compression(kind, orientation):
    pytest.importorskip("tifffile")
    channels = np.random.default_rng(0).integers(0, 256, (3, 20, 30)).astype(kind)
    pages = [Image.fromarray(each) for each in (*channels, channels[0, :9, :9])]
    several = {"save_all": True, "append_images": pages[1:], "tiffinfo": {274: orientation}}
    lzw, plain = (encoded(pages[0], "TIFF", compression=way, **several) for way in ("tiff_lzw", None))
    assert read_header(lzw, "x") == read_header(plain, "x")
    np.testing.assert_array_equal(raw_pixels(lzw, "x"), raw_pixels(plain, "x"))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_deep_tiffs_are_upright_as_others_are(orientation):
    small = np.asarray(picture())
    eight, deep = (
        tiff(image, photometric="rgb", extratags=[(274, "H", 1, orientation, True)])
        for image in (small, small * np.uint16(257))
    )
    header = read_header(deep, "x")
    assert header == dataclasses.replace(read_header(eight, "x"), bits=16, deep=True)
    np.testing.assert_array_equal(raw_pixels(deep, "x"), raw_pixels(eight, "x") * np.uint16(257))


def test_transparency_of_deep_tiffs_is_laid_over_white():
    half = np.full((4, 6, 4), 30_000, np.uint16)
    for kind, value in (("unassalpha", 49_268), ("assocalpha", 65_535)):
        content = tiff(half, photometric="rgb", extrasamples=[kind])
        assert read_header(content, "x").channels == 3
        np.testing.assert_array_equal(raw_pixels(content, "x"), np.full((3, 4, 6), value))
    gray = tiff(half[..., :2], photometric="minisblack", planarconfig="contig", extrasamples=["unassalpha"])
    np.testing.assert_array_equal(raw_pixels(gray, "x"), np.full((1, 4, 6), 49_268))
    with pytest.raises(ValueError, match="2 of transparency"):
        read_header(tiff(half, photometric="minisblack", extrasamples=["unassalpha"] * 2 + ["unspecified"]), "x")


def test_white_is_zero_where_a_tiff_says_so_and_colors_that_are_not_rgb_are_refused():
    for shape in ((4, 6), (4, 6, 2)):
        for kind in (np.uint8, np.uint16):
            options = {"planarconfig": "contig"} if len(shape) > 2 else {}
            content = tiff(np.zeros(shape, kind), photometric="miniswhite", **options)
            assert (raw_pixels(content, "x") == np.iinfo(kind).max).all()
    with pytest.raises(ValueError, match="has SEPARATED pixels of uint16: gray and RGB"):
        read_header(tiff(np.zeros((4, 6, 4), np.uint16), photometric="separated"), "x")


@pytest.mark.parametrize("kind", [np.int8, np.int16])
def test_pixels_with_a_sign_are_refused_as_such(kind):
    with pytest.raises(ValueError, match="has pixels with a sign"):
        read_header(tiff(np.full((4, 6), -1, kind)), "x")


def test_one_channel_is_in_the_singular():
    with pytest.raises(ValueError, match="has 1 channel, the model takes 4"):
        decode_photo(encoded(Image.new("L", (4, 6))), "x", dataclasses.replace(RGB, channels=4))


def test_an_image_of_pillow_stays_as_it_is():
    content = encoded(picture(1200, 1600), "JPEG")
    smaller = dataclasses.replace(RGB, longest=64)
    with Image.open(io.BytesIO(content)) as image:
        tiles = read_photo(image, "x", smaller)[0]
        assert image.size == (1600, 1200)
        np.testing.assert_array_equal(tiles, read_photo(content, "x", smaller)[0])
        assert np.asarray(image).shape == (1200, 1600, 3)


def png_of_sixteen_bits(color_type, samples):
    values = np.full((20, 20, samples), 40_000, np.uint16)
    values[..., -1] = 65_535
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    parts = [(b"IHDR", struct.pack(">IIBBBBB", 20, 20, 16, color_type, 0, 0, 0)), (b"IDAT", zlib.compress(rows))]
    chunks = (
        struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
        for kind, content in [*parts, (b"IEND", b"")]
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


@pytest.mark.parametrize(("color_type", "samples", "channels"), [(2, 3, 3), (4, 2, 1), (6, 4, 3)])
def test_of_deep_pngs_in_color_or_with_transparency_the_upper_bits_are_taken(color_type, samples, channels):
    content = png_of_sixteen_bits(color_type, samples)
    header, pixels = read_header(content, "x"), raw_pixels(content, "x")
    assert (header.channels, header.bits) == (channels, 8)
    assert pixels.shape == (channels, 20, 20)
    assert (pixels[0] == 40_000 >> 8).all()
    found, note = decode_image(content, "x")
    np.testing.assert_array_equal(found.transpose(2, 0, 1), pixels)
    assert note == "the upper 8 of 16 bits taken"


def test_pgm_files_of_sixteen_bits_are_read_and_of_thirty_two_refused():
    values = np.arange(400, dtype=np.uint16).reshape(20, 20) * 100
    content = b"P5\n20 20\n65535\n" + values.astype(">u2").tobytes()
    assert read_header(content, "x").bits == 16
    np.testing.assert_array_equal(raw_pixels(content, "x"), values[None])
    with pytest.raises(ValueError, match="has I pixels, of 32 bits: whole numbers of 8 and 16 bits are accepted"):
        read_header(encoded(Image.new("I", (4, 4)), "TIFF"), "x")


def test_the_header_of_a_png_is_read_without_its_pixels():
    content = encoded(picture())
    start = content[: content.index(b"IDAT") + 8]  # some bytes of the pixels, and nothing behind them
    assert read_header(start, "x") == read_header(content, "x")
    with pytest.raises(ValueError, match="40 x 24 pixels; at most 900"):
        read_header(start, "x", 900)
