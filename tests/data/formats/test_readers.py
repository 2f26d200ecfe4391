"""What holds for every format."""

import pickle

import numpy as np
import pytest

from negvae.data import formats, load
from tests.data.conftest import one_line, tar_of


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


def test_what_does_not_fit_in_memory_is_refused(make, monkeypatch):
    monkeypatch.setattr("os.sysconf", lambda name: 10)
    with pytest.raises(ValueError, match="GiB"):
        formats.read(formats.Parquet([make.parquet("a.parquet", make.pixels(0, 3))]))


def readers(make):
    """The same 20 images and labels in every format."""
    from scipy.io import savemat

    pixels, labels = make.pixels(0, 20, 3, 8), np.arange(20)
    gray, flat = make.pixels(1, 20, 1, 8), pixels.reshape(20, -1)
    np.save(make.path("a.npy"), pixels)
    np.save(make.path("columns.npy"), np.asfortranarray(pixels))
    np.savez_compressed(make.path("a.npz"), images=pixels, labels=labels)
    np.savez(make.path("part.npz"), data=flat[5:], labels=labels[5:])
    savemat(make.path("a.mat"), {"X": pixels.transpose(2, 3, 1, 0), "y": labels[:, None]})
    make.path("part").write_bytes(pickle.dumps({"data": flat[:5], "labels": labels[:5].tolist()}))
    make.path("a.tar.gz").write_bytes(tar_of({"part": make.path("part").read_bytes()}))
    for index, image in enumerate(pixels):
        make.image(f"set/{index:02d}/x.png", image)
    shards = (make.parquet("1.parquet", pixels[:9], labels[:9]), make.parquet("2.parquet", pixels[9:], labels[9:]))
    idx = make.idx("images", gray), make.idx("labels.gz", labels)
    return {
        "idx": (formats.Idx(*idx), gray, labels),
        "idx transposed": (formats.Idx(*idx, transposed=True), gray.transpose(0, 1, 3, 2), labels),
        "npy": (formats.Npy(make.path("a.npy")), pixels, None),
        "npy by columns": (formats.Npy(make.path("columns.npy")), pixels, None),
        "npz": (formats.Npz(make.path("a.npz")), pixels, labels),
        "batches": (formats.Batches((make.path("part"), make.path("part.npz")), (3, 8, 8)), pixels, labels),
        "tar": (formats.Batches((make.path("a.tar.gz"),), (3, 8, 8), ("part",)), pixels[:5], labels[:5]),
        "mat": (formats.Mat(make.path("a.mat")), pixels, labels % 10),
        "parquet": (formats.Parquet(shards), pixels, labels),
        "folder": (formats.Folder(make.root / "set"), pixels, labels),
    }


KINDS = ["idx", "idx transposed", "npy", "npy by columns", "npz", "batches", "tar", "mat", "parquet", "folder"]


@pytest.mark.parametrize("kind", KINDS)
def test_every_reader_gives_any_stretch_in_blocks(make, kind):
    reader, pixels, labels = readers(make)[kind]
    probe = reader.probe()
    assert probe.count == len(pixels)
    assert sum(probe.groups) in (0, len(pixels))

    def stretch(*arguments, **options):
        blocks = list(reader.rows(*arguments, **options))
        rows = [row for block in blocks for row in block.rows]
        images = [formats.decode_image(r, "x")[0].transpose(2, 0, 1) if probe.shape is None else r for r in rows]
        starts = [block.start for block in blocks]
        assert starts == list(np.cumsum([arguments[0], *(len(block.rows) for block in blocks)])[:-1])
        return np.array(images).reshape(-1, *pixels.shape[1:]), blocks

    for start, stop, size in ((0, None, 3), (2, 5, None), (3, 5, 1), (4, 99, 7), (0, 5, 5)):
        images, blocks = stretch(start, stop, size=size, labels=True)
        np.testing.assert_array_equal(images, pixels[start:stop])
        assert all(len(block.rows) <= (size or 20) for block in blocks)
        if labels is not None:
            assert [label for block in blocks for label in block.labels] == labels[start:stop].tolist()
    found = formats.read(reader)
    np.testing.assert_array_equal(found.images, pixels)
    assert found.images.flags.writeable
    assert found.labels is None if labels is None else found.labels.tolist() == labels.tolist()
    few = formats.read(reader, 4)
    np.testing.assert_array_equal(few.images, pixels[:4])
    assert any("the first 4 of" in note for note in few.notes)
