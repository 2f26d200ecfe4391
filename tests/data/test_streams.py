"""Streams of images from files: every form, in order, with errors as rows."""

import io
import os
import subprocess
import sys
import warnings
import zipfile

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from negvae.data.batches import InputSpec, from_memory
from negvae.data.streams import stream

GRAY = InputSpec((1, 12, 10))


def pictures(count, shape=(12, 10), seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, *shape), np.uint8)


def collect(inputs, wanted=GRAY, **options):
    batches = list(stream([str(i) for i in inputs], wanted, **options))
    return (
        [p for b in batches for p in b.paths],
        [i for b in batches for i in b.indices],
        [e for b in batches for e in b.errors],
        np.concatenate([b.images for b in batches]),
        [len(b) for b in batches],
    )


@pytest.fixture
def folder(tmp_path):
    """150 PNG files in three folders, named so that their order is not that of their making."""
    images = pictures(150)
    root = tmp_path / "photos"
    for index in reversed(range(150)):
        place = root / f"part{index // 50}"
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(images[index]).save(place / f"{index:03d}.png")
    (root / ".hidden").mkdir()
    Image.fromarray(images[0]).save(root / ".hidden" / "x.png")
    (root / "notes.txt").write_text("not an image")
    return root, images


def test_folders_come_whole_and_in_order(folder):
    root, images = folder
    paths, indices, errors, found, sizes = collect([root], batch_size=40)
    assert [os.path.relpath(p, root) for p in paths] == [f"part{i // 50}/{i:03d}.png" for i in range(150)]
    assert set(indices) == {0}
    assert not any(errors)
    np.testing.assert_array_equal(found[:, 0], images)
    assert sizes == [8, 16, 32, 40, 40, 14]  # the first rows come soon
    assert len(collect([root / "part1", root / "part*" / "14?.png"])[0]) == 60


@pytest.mark.parametrize("layout", ["NHW", "NCHW", "NHWC", "float", "fortran"])
@pytest.mark.parametrize("packed", [False, True])
def test_arrays_of_every_layout(tmp_path, layout, packed):
    images = pictures(1100)
    array = {
        "NHW": images,
        "NCHW": images[:, None],
        "NHWC": images[..., None],
        "float": images / np.float32(255),
        "fortran": np.asfortranarray(images),
    }[layout]
    path = tmp_path / ("set.npz" if packed else "set.npy")
    np.savez_compressed(path, images=array, labels=np.arange(1100)) if packed else np.save(path, array)
    paths, indices, errors, found, _ = collect([path], batch_size=300)
    assert indices == list(range(1100))
    assert set(paths) == {str(path)}
    assert not any(errors)
    np.testing.assert_array_equal(found[:, 0], images)


def test_parquet_rows_with_one_missing_and_one_broken(tmp_path):
    images = pictures(600)
    encoded = []
    for image in images:
        buffer = io.BytesIO()
        Image.fromarray(image).save(buffer, "PNG")
        encoded.append({"bytes": buffer.getvalue(), "path": None})
    encoded[3], encoded[599] = {"bytes": None, "path": "elsewhere.png"}, {"bytes": b"\x89PNG....", "path": None}
    path = tmp_path / "shard.parquet"
    pq.write_table(pa.table({"image": encoded, "label": list(range(600))}), path, row_group_size=100)
    _, indices, errors, found, _ = collect([path])
    assert indices == list(range(600))
    assert "no image bytes" in errors[3]
    assert "not a readable image" in errors[599]
    good = [i for i in range(600) if i not in (3, 599)]
    assert not any(errors[i] for i in good)
    np.testing.assert_array_equal(found[good, 0], images[good])


def test_a_parquet_file_without_images_is_one_error(tmp_path):
    path = tmp_path / "table.parquet"
    pq.write_table(pa.table({"label": list(range(9))}), path, row_group_size=2)
    _, indices, errors, *_ = collect([path])
    assert indices == [None]
    assert "no image column among (label)" in errors[0]


def test_what_cannot_be_used_is_a_row(tmp_path):
    def save(name, array):
        Image.fromarray(array).save(tmp_path / name)

    save("a.png", pictures(1)[0])
    save("b-size.png", pictures(1, (20, 10))[0])
    (tmp_path / "c-short.png").write_bytes((tmp_path / "a.png").read_bytes()[:60])
    (tmp_path / "d-text.png").write_text("hello")
    save("e-bomb.png", np.zeros((400, 400), np.uint8))
    save("f-color.png", np.stack([pictures(1)[0]] * 3, -1))
    np.save(tmp_path / "g-objects.npy", np.array([{}, 1], object), allow_pickle=True)
    np.save(tmp_path / "h-range.npy", np.stack([np.zeros((12, 10)), np.full((12, 10), 7.0), np.full((12, 10), np.nan)]))
    np.save(tmp_path / "i-cut.npy", pictures(700))
    whole = (tmp_path / "i-cut.npy").read_bytes()
    (tmp_path / "i-cut.npy").write_bytes(whole[: 128 + 600 * 120 + 60])
    (tmp_path / "j-empty.npy").write_bytes(b"")
    with zipfile.ZipFile(tmp_path / "k.npz", "w") as archive:
        archive.writestr("labels.npy", b"junk")
    (tmp_path / "l.parquet").write_bytes(b"PAR1junk")
    np.save(tmp_path / "m-shape.npy", pictures(5, (9, 9)))
    save("z.png", pictures(1, seed=9)[0])
    paths, indices, errors, found, _ = collect([tmp_path], InputSpec((1, 12, 10), max_pixels=100_000))
    rows = {}
    for path, index, error in zip(paths, indices, errors, strict=True):
        rows.setdefault(os.path.basename(path), []).append((index, error))
    for name, words in {
        "b-size.png": "10 x 20, the model takes 10 x 12",
        "c-short.png": "not a readable image",
        "d-text.png": "not a readable image",
        "e-bomb.png": "at most 100,000",
        "g-objects.npy": "Python objects",
        "j-empty.npy": "not a readable .npy",
        "k.npz": "none of its arrays",
        "l.parquet": "not a readable Parquet",
        "m-shape.npy": "9 x 9",
    }.items():
        assert len(rows[name]) == 1, name
        assert words in rows[name][0][1], (name, rows[name])
    assert [error == "" for _, error in rows["h-range.npy"]] == [True, False, False]
    assert rows["i-cut.npy"][599] == (599, "")
    assert rows["i-cut.npy"][600] == (600, "ends after 600 of the 700 rows that its header announces")
    assert rows["a.png"] == rows["f-color.png"] == rows["z.png"] == [(0, "")]
    np.testing.assert_array_equal(found[paths.index(str(tmp_path / "f-color.png"))], pictures(1)[0][None])
    np.testing.assert_array_equal(found[-1, 0], pictures(1, seed=9)[0])


def test_resized_and_recolored_on_demand(tmp_path):
    Image.fromarray(np.full((48, 40, 3), (255, 0, 0), np.uint8)).save(tmp_path / "red.png")
    Image.fromarray(np.full((6, 5), 200, np.uint8)).save(tmp_path / "small.png")
    _, _, errors, found, _ = collect([tmp_path], InputSpec((1, 12, 10), resize=True))
    assert not any(errors)
    assert np.unique(found[0]).tolist() == [76]  # 0.299 * 255
    assert np.unique(found[1]).tolist() == [200]
    _, _, errors, found, _ = collect([tmp_path], InputSpec((3, 12, 10), resize=True))
    assert found[0, :, 0, 0].tolist() == [255, 0, 0]
    assert found[1, :, 0, 0].tolist() == [200, 200, 200]


def test_rows_of_features(tmp_path):
    rows = np.random.default_rng(0).normal(size=(40, 3)).astype(np.float32)
    rows[7, 1] = np.nan
    np.save(tmp_path / "rows.npy", rows)
    np.save(tmp_path / "wide.npy", np.zeros((2, 4)))
    Image.fromarray(pictures(1)[0]).save(tmp_path / "x.png")
    _, indices, errors, found, _ = collect([tmp_path], InputSpec((3, 1, 1), features=True))
    assert indices == [*range(40), None, 0] or indices == [*range(40), None, None]
    assert "NaN" in errors[7]
    assert "N x 3 numbers" in errors[40]
    assert "rows of features" in errors[41]
    np.testing.assert_array_equal(found[:7, :, 0, 0], rows[:7])


def test_missing_inputs_end_it_before_it_starts(tmp_path):
    np.save(tmp_path / "a.npy", pictures(3))
    for wrong, words in (("none.png", "no such file"), ("*.jpg", "nothing matches")):
        with pytest.raises(FileNotFoundError, match=words):
            stream([str(tmp_path / "a.npy"), str(tmp_path / wrong)], GRAY)
    with pytest.raises(ValueError, match="did you mean"):
        stream(["fashion-mnits"], GRAY)


MEMORY = """
import re, sys
from pathlib import Path
from negvae.data.batches import InputSpec, from_memory
from negvae.data.streams import stream
rows = sum(len(batch) for batch in stream([sys.argv[1]], InputSpec((1, 28, 28))))
print(rows, re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1])
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak memory from /proc")
def test_memory_does_not_grow_with_the_number_of_images(tmp_path):
    peaks = []
    for count in (2_000, 120_000):
        np.save(tmp_path / "big.npy", np.full((count, 28, 28), 3, np.uint8))
        done = subprocess.run(
            [sys.executable, "-c", MEMORY, str(tmp_path / "big.npy")], capture_output=True, text=True, check=True
        )
        rows, peak = map(int, done.stdout.split())
        assert rows == count
        peaks.append(peak)
    assert peaks[1] - peaks[0] < 20_000  # the file has 94,000 kB


@pytest.mark.parametrize("kind", ["png", "jpg", "bmp", "gif", "webp", "tif", "ppm", "npy", "npz", "parquet"])
def test_no_broken_file_stops_the_stream(tmp_path, kind):
    """Bytes changed, cut off or put in at random: the stream goes on to the file after it."""
    randomness = np.random.default_rng(0)
    image, buffer = pictures(1)[0], io.BytesIO()
    if kind == "npy":
        np.save(buffer, pictures(4))
    elif kind == "npz":
        np.savez_compressed(buffer, images=pictures(4))
    elif kind == "parquet":
        Image.fromarray(image).save(buffer, "PNG")
        encoded, buffer = buffer.getvalue(), io.BytesIO()
        pq.write_table(pa.table({"image": [encoded] * 4}), buffer)
    else:
        Image.fromarray(image).save(buffer, {"jpg": "JPEG", "tif": "TIFF"}.get(kind, kind.upper()))
    whole = bytearray(buffer.getvalue())
    for number in range(60):
        broken = bytearray(whole)
        for place in randomness.integers(0, min(len(broken), 300), randomness.integers(1, 6)):
            broken[place] = randomness.integers(256)
        if number % 3 == 0:
            del broken[randomness.integers(len(broken)) :]
        (tmp_path / f"{number:02d}.{kind}").write_bytes(broken)
    Image.fromarray(image).save(tmp_path / "zz.png")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # decoders warn of what they then refuse or repair
        paths, _, errors, found, _ = collect([tmp_path])
    assert len(set(paths)) == 61
    assert any(errors)
    assert (paths[-1], errors[-1]) == (str(tmp_path / "zz.png"), "")
    np.testing.assert_array_equal(found[-1, 0], image)


def test_headers_that_claim_too_much_are_refused(tmp_path):
    for number, shape in enumerate([(2, 10**6, 10**6), (10**12, 12, 10), (3, 0, 5), (7,)]):
        header = str({"descr": "|u1", "fortran_order": False, "shape": shape}).ljust(117) + "\n"
        body = b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header.encode() + bytes(500)
        (tmp_path / f"{number}.npy").write_bytes(body)
    _, indices, errors, _, _ = collect([tmp_path])
    assert indices == [None, 0, 1, 2, 3, 4, None, None]
    assert "claims rows of 1000000 x 1000000 numbers; at most" in errors[0]
    assert "ends after 4 of the 1,000,000,000,000 rows" in errors[5]
    assert all("holds no images" in error for error in errors[6:])


def test_what_cannot_be_opened_is_named_once_and_without_a_number(tmp_path):
    for name in ("a.png", "b.npy"):
        (tmp_path / name).symlink_to("nowhere")
    os.mkfifo(tmp_path / "c.png")
    gone = "no such file or directory"
    assert collect([tmp_path])[2] == [gone, gone, "not a readable image (not a regular file)"]


def test_an_error_whose_text_is_the_path_is_an_error_all_the_same(monkeypatch):
    """As fsspec raises it of an address that is not there; no text would say that nothing is wrong."""

    def missing(path, **options):
        raise FileNotFoundError(path)

    monkeypatch.setattr("negvae.data.stores.open_file", missing)
    monkeypatch.setattr("negvae.data.stores.below", lambda uri: [uri])
    assert collect(["http://host/x.png"])[2] == ["no such file"]
    name = "the model takes rows of features: send them as the content of an .npy file"
    for spec in (InputSpec((5, 1, 1), features=True), GRAY):
        for path in ("x.png", name):
            assert from_memory(path, b"none", spec).errors[0]
