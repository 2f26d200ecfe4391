import gzip
import io
import pickle
import struct
import zipfile

import numpy as np
import pytest
from PIL import Image

from negvae.data import formats, load, pixel_sha256
from negvae.data.formats import DataError


def one_line(error: BaseException) -> bool:
    return "\n" not in str(error) and len(str(error)) > 10


def test_hash_is_over_pixels_with_channels_last():
    images = np.arange(2 * 3 * 4 * 5, dtype=np.uint8).reshape(2, 3, 4, 5)
    import hashlib

    assert pixel_sha256(images) == hashlib.sha256(images.transpose(0, 2, 3, 1).tobytes()).hexdigest()
    assert pixel_sha256(images[:, :1]) == hashlib.sha256(images[:, 0].tobytes()).hexdigest()


# --- arrays


@pytest.mark.parametrize(
    ("shape", "served"),
    [
        ((5, 8, 9), (5, 1, 8, 9)),
        ((5, 8, 9, 1), (5, 1, 8, 9)),
        ((5, 8, 9, 3), (5, 3, 8, 9)),
        ((5, 1, 8, 9), (5, 1, 8, 9)),
        ((5, 3, 8, 9), (5, 3, 8, 9)),
        ((5, 3, 8, 3), (5, 3, 8, 3)),  # both axes could be channels: axis 1 is
    ],
)
def test_array_layouts(shape, served):
    images = formats.as_images(np.zeros(shape, np.uint8), "x").images
    assert images.shape == served
    assert images.flags.c_contiguous
    assert images.dtype == np.uint8


@pytest.mark.parametrize(
    ("array", "says"),
    [
        (np.zeros((5, 8, 8), np.int64), "int64"),
        (np.zeros((5, 8, 8), bool), "bool"),
        (np.zeros((5, 8, 8, 4), np.uint8), "alpha"),
        (np.zeros((5, 4, 8, 8), np.uint8), "alpha"),
        (np.zeros((5, 2, 8, 8), np.uint8), "C 1 or 3"),
        (np.zeros((8, 8, 3), np.uint8), "one H x W x C image"),
        (np.zeros((8, 8), np.uint8), "8 x 8"),
        (np.zeros((0, 8, 8), np.uint8), "no images"),
        (np.full((5, 8, 8), 2.0), "within"),
        (np.full((5, 8, 8), -0.1), "within"),
        (np.full((5, 8, 8), np.nan), "NaN"),
        (np.full((5, 8, 8), np.inf), "within"),
        (np.zeros((5, 8, 8), np.complex64), "complex64"),
    ],
)
def test_arrays_that_are_not_images(array, says):
    with pytest.raises(DataError, match=says) as caught:
        formats.as_images(array, "x")
    assert one_line(caught.value)


@pytest.mark.parametrize("kind", [np.float16, np.float32, np.float64])
def test_floats_come_back_as_the_pixels_they_were(kind):
    pixels = np.arange(256, dtype=np.uint8).reshape(1, 1, 16, 16)
    decoded = formats.as_images((pixels / 255).astype(kind), "x")
    np.testing.assert_array_equal(decoded.images, pixels)
    assert decoded.notes == ()


def test_rounded_floats_are_said_so():
    assert "1 images changed" in formats.as_images(np.full((1, 5, 5), 0.5), "x").notes[0]


@pytest.mark.parametrize("name", ["a.npy", "a.npz"])
def test_object_arrays_are_refused(make, name):
    path = make.path(name)
    array = np.array([{"a": 1}], dtype=object)
    if name.endswith("npy"):
        np.save(path, array, allow_pickle=True)
    else:
        np.savez(path, images=array)
    with pytest.raises(ValueError, match=name) as caught:
        load(path)
    assert one_line(caught.value)


@pytest.mark.parametrize("big", [False, True])
def test_npy(make, monkeypatch, big):
    monkeypatch.setattr(formats.npy, "MAP_BYTES", 0 if big else 10**9)
    pixels = make.pixels(0, 6, 3, 8)
    np.save(make.path("a.npy"), pixels)
    found = load(make.path("a.npy"))
    np.testing.assert_array_equal(found.images, pixels)
    assert found.images.flags.writeable  # torch.from_numpy warns of what is not
    assert found.split == "all"
    assert found.labels is None
    assert found.sha256 == pixel_sha256(pixels)


@pytest.mark.parametrize("key", ["arr_0", "images", "x", "data", "anything"])
def test_npz_keys(make, key):
    pixels = make.pixels(0, 6)
    np.savez(make.path("a.npz"), **{key: pixels[:, 0], "labels": np.arange(6)[:, None]})
    found = load(make.path("a.npz"))
    np.testing.assert_array_equal(found.images, pixels)
    np.testing.assert_array_equal(found.labels, np.arange(6))


def test_npz_with_both_splits(make):
    train, test = make.pixels(0, 6), make.pixels(1, 4)
    np.savez(make.path("a.npz"), x_train=train, y_train=np.arange(6), x_test=test, y_test=np.arange(4))
    for split, pixels in (("train", train), ("test", test)):
        found = load(make.path("a.npz"), split)
        np.testing.assert_array_equal(found.images, pixels)
        assert (found.split, len(found.labels), found.notes) == (split, len(pixels), ())


@pytest.mark.parametrize("content", [b"", b"junk", b"\x93NUMPY\x01\x00", b"PK\x03\x04 torn", b"\x80\x04N."])
@pytest.mark.parametrize("name", ["a.npy", "a.npz", "a.parquet"])
def test_damaged_files(make, name, content):
    make.path(name).write_bytes(content)
    with pytest.raises(ValueError, match=name) as caught:
        load(make.path(name))
    assert one_line(caught.value)


@pytest.mark.parametrize("name", ["a.npy", "a.npz", "a.parquet"])
@pytest.mark.parametrize("share", [0.3, 0.9])
def test_files_cut_short(make, name, share):
    path, pixels = make.path(name), make.pixels(0, 20)
    {"a.npy": lambda: np.save(path, pixels), "a.npz": lambda: np.savez(path, x=pixels),
     "a.parquet": lambda: make.parquet(name, pixels)}[name]()  # fmt: skip
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    with pytest.raises(ValueError, match=name) as caught:
        load(path)
    assert one_line(caught.value)


def test_npz_flipped_byte(make):
    path = make.path("a.npz")
    np.savez_compressed(path, x=make.pixels(0, 20))
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 255
    path.write_bytes(data)
    with pytest.raises(ValueError, match=r"a\.npz"):
        load(path)


def test_npz_without_images(make):
    np.savez(make.path("a.npz"), p=np.zeros((3, 4, 4), np.uint8), q=np.zeros((3, 4, 4), np.uint8))
    with pytest.raises(ValueError, match="no image array"):
        load(make.path("a.npz"))
    with zipfile.ZipFile(make.path("b.npz"), "w") as archive:
        archive.writestr("x.npy", b"not an array")
    with pytest.raises(ValueError, match=r"b\.npz"):
        load(make.path("b.npz"))


def test_labels_must_fit(make):
    np.savez(make.path("a.npz"), x=make.pixels(0, 6), y=np.arange(5))
    with pytest.raises(ValueError, match="one label for each of the 6"):
        load(make.path("a.npz"))
    np.savez(make.path("b.npz"), x=make.pixels(0, 2), y=np.array([0.5, 1]))
    with pytest.raises(ValueError, match="whole numbers"):
        load(make.path("b.npz"))


def test_what_does_not_fit_in_memory_is_refused(make, monkeypatch):
    monkeypatch.setattr("os.sysconf", lambda name: 10)
    with pytest.raises(ValueError, match="GiB"):
        formats.read(formats.Parquet([make.parquet("a.parquet", make.pixels(0, 3))]))


# --- IDX


@pytest.mark.parametrize("name", ["a-idx3-ubyte", "a-idx3-ubyte.gz"])
def test_idx(make, name):
    pixels = make.pixels(0, 5)
    reader = formats.Idx(make.idx(name, pixels))
    np.testing.assert_array_equal(formats.read(reader).images, pixels)
    assert (reader.probe().count, reader.probe().shape) == (5, (28, 28))


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "starts with"),
        (b"\0\0\x0d\x03" + bytes(16), "unsigned bytes"),
        (b"\0\0\x08\x03\0\0", "header"),
        (b"\0\0\x08\x01" + struct.pack(">i", 4) + bytes(4), "labels where images"),
        (b"\0\0\x08\x03" + struct.pack(">iii", 2, 2, 2) + bytes(7), "only 7"),
        (b"\0\0\x08\x03" + struct.pack(">iii", 2, 2, 2) + bytes(9), "more"),
        (b"\0\0\x08\x03" + struct.pack(">III", 2**32 - 1, 2**32 - 1, 1) + bytes(9), "a-images"),
        (
            gzip.compress(b"\0\0\x08\x03" + struct.pack(">iii", 9, 9, 9) + bytes(729))[:-9],
            "not a readable IDX",
        ),
        (b"\x1f\x8bjunk", "not a readable IDX"),
    ],
)
def test_bad_idx(make, content, says):
    make.path("a-images").write_bytes(content)
    with pytest.raises(ValueError, match=says) as caught:
        formats.read(formats.Idx(make.path("a-images")))
    assert "a-images" in str(caught.value)
    assert one_line(caught.value)


# --- Python batches


class Evil:
    def __reduce__(self):
        import os

        return os.mkdir, ("/tmp/negvae-was-here",)


@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_batches(make, protocol):
    pixels = make.pixels(0, 6, 3, 32)
    batch = {b"data": pixels.reshape(6, -1), b"labels": [1, 2, 3, 4, 5, 6], b"batch_label": b"one"}
    make.path("data_batch_1").write_bytes(pickle.dumps(batch, protocol))
    found = formats.read(formats.Batches((make.path("data_batch_1"),) * 2, (3, 32, 32)))
    np.testing.assert_array_equal(found.images, np.concatenate([pixels, pixels]))
    assert found.labels.tolist() == [1, 2, 3, 4, 5, 6] * 2


@pytest.mark.parametrize(
    "content",
    [
        pickle.dumps({"data": Evil()}),
        pickle.dumps(Evil(), 2),
        b"cos\nsystem\n(S'true'\ntR.",
        b"cbuiltins\neval\n(S'1'\ntR.",
        b"cnumpy\nload\n.",
        pickle.dumps([1, 2]),
        pickle.dumps({"data": [1, 2]}),
        pickle.dumps({"data": np.zeros((2, 5), np.uint8)}),
        pickle.dumps({"data": np.zeros((2, 3072), np.float32)}),
        pickle.dumps({"data": np.zeros((2, 3072), np.uint8), "labels": [1]}),
        pickle.dumps({"data": np.zeros((2, 3072), np.uint8), "labels": [1, None]}),
        pickle.dumps({"data": np.zeros((2, 3072), np.uint8)})[:-20],
        b"",
        b"junk",
    ],
)
def test_batches_run_nothing_and_say_what_is_wrong(make, content, tmp_path):
    make.path("data_batch_1").write_bytes(content)
    with pytest.raises(ValueError, match="data_batch_1") as caught:
        formats.read(formats.Batches((make.path("data_batch_1"),), (3, 32, 32)))
    assert one_line(caught.value)
    from pathlib import Path

    assert not Path("/tmp/negvae-was-here").exists()


@pytest.mark.parametrize("content", [{"Y": np.zeros(3)}, {"X": np.zeros((4, 4, 2, 3), np.uint8)}, {"X": np.zeros(3)}])
def test_bad_mat(make, content):
    from scipy.io import savemat

    savemat(make.path("train_32x32.mat"), content)
    with pytest.raises(ValueError, match=r"train_32x32\.mat"):
        formats.read(formats.Mat(make.path("train_32x32.mat")))
    make.path("train_32x32.mat").write_bytes(b"junk" * 50)
    with pytest.raises(ValueError, match=r"train_32x32\.mat"):
        formats.read(formats.Mat(make.path("train_32x32.mat")))


# --- encoded images


def decode(make, *images):
    for i, image in enumerate(images):
        make.image(f"set/{i}.png", image)
    return load(make.root / "set")


def test_folder(make):
    pixels = make.pixels(0, 4, 3, 8)
    for i, name in enumerate(["b/1.png", "a/2.png", "a/1.png", "b/x/3.PNG"]):
        make.image(f"set/{name}", pixels[i])
    make.path("set/.hidden/1.png").write_bytes(b"junk")
    make.path("set/readme.txt").write_text("not an image")
    found = load(make.root / "set")
    np.testing.assert_array_equal(found.images, pixels[[2, 1, 0, 3]])
    assert found.labels.tolist() == [0, 0, 1, 1]
    assert "no train and test" in found.notes[0]
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


# --- Parquet


@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
@pytest.mark.parametrize("column", ["image", "img", "picture"])
def test_parquet(make, kind, column):
    pixels = make.pixels(0, 20, 3, 8)
    path = make.parquet("a.parquet", pixels, list(range(20)), column, kind)
    for _ in range(2):  # decoded, then from the cache
        found = load(path)
        np.testing.assert_array_equal(found.images, pixels)
        assert found.labels.tolist() == list(range(20))
    found = load(path, limit=9)
    np.testing.assert_array_equal(found.images, pixels[:9])
    assert found.labels.tolist() == list(range(9))


def test_more_rows_than_one_chunk(make):
    pixels = make.pixels(0, 300, 1, 4)
    np.testing.assert_array_equal(load(make.parquet("a.parquet", pixels)).images, pixels)


@pytest.mark.parametrize("below", ["", "data/"])
def test_folder_of_shards(make, below):
    pixels = make.pixels(0, 9)
    make.parquet(f"set/{below}train-00000-of-00002.parquet", pixels[:4], [0] * 4)
    make.parquet(f"set/{below}train-00001-of-00002.parquet", pixels[4:7], [1] * 3)
    make.parquet(f"set/{below}validation-00000-of-00001.parquet", pixels[7:], [2] * 2)
    train, test = load(make.root / "set"), load(make.root / "set", "test")
    np.testing.assert_array_equal(train.images, pixels[:7])
    np.testing.assert_array_equal(test.images, pixels[7:])
    assert train.labels.tolist() == [0] * 4 + [1] * 3
    (make.root / f"set/{below}train-00001-of-00002.parquet").unlink()
    assert any("1 of 2" in note for note in load(make.root / "set").notes)


def test_parquet_without_images(make):
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.table({"label": [1, 2]}), make.path("a.parquet"))
    with pytest.raises(ValueError, match="no image column"):
        load(make.path("a.parquet"))
    rows = pa.array([{"bytes": None, "path": "x.png"}], pa.struct([("bytes", pa.binary()), ("path", pa.string())]))
    pq.write_table(pa.table({"image": rows}), make.path("b.parquet"))
    with pytest.raises(ValueError, match="row 0 holds no image bytes"):
        load(make.path("b.parquet"))
    pq.write_table(pa.table({"image": [b"junk"]}), make.path("c.parquet"))
    with pytest.raises(ValueError, match=r"c\.parquet row 0"):
        load(make.path("c.parquet"))
    pq.write_table(pa.table({"image": pa.array([], pa.binary())}), make.path("d.parquet"))
    with pytest.raises(ValueError, match="no images"):
        load(make.path("d.parquet"))
