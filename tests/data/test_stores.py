"""Files by URI: the rows, names aside, of the same files by path. An output in `file://` goes the way of a store."""

import contextlib
import os
import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from negvae.data import stores
from negvae.data.formats.folder import LeftOut
from tests.data.test_streams import collect, pictures


@pytest.fixture
def folder(tmp_path):
    root = tmp_path / "set"
    (root / "a").mkdir(parents=True)
    (root / ".hidden").mkdir()
    images = pictures(8)
    for name, image in zip(("a/1.png", "a.png", "b.png", ".hidden/c.png"), images, strict=False):
        Image.fromarray(image).save(root / name)
    (root / "broken.png").write_bytes(b"none")
    (root / "notes.txt").write_text("not an image")
    np.save(root / "d.npy", images)
    np.save(root / "e.npy", np.asfortranarray(images))
    np.savez(root / "f.npz", images=images)
    data = [(root / name).read_bytes() for name in ("a.png", "b.png")]
    pq.write_table(pa.table({"image": data}), root / "g.parquet")
    return root


def test_the_uri_of_a_file_stands_for_its_path(folder):
    here = collect([folder])
    there = collect([folder.as_uri()])
    assert there[:3] == here[:3]
    np.testing.assert_array_equal(there[3], here[3])
    assert len(here[0]) == 3 + 1 + 8 + 8 + 8 + 2
    assert collect([f"{folder.as_uri()}/a.png"])[1:3] == ([0], [""])


def test_names_that_a_uri_has_to_quote_are_found(tmp_path):
    odd = tmp_path / "a b%" / os.fsdecode(b"x-\xff.png")
    odd.parent.mkdir()
    Image.fromarray(pictures(1)[0]).save(odd)
    for uri in (
        odd.parent.as_uri(),
        odd.as_uri(),
        f"file://{odd.parent}".replace("%", "%25"),
        f"{tmp_path.as_uri()}/*/*",
    ):
        assert collect([uri])[:3] == ([str(odd)], [0], [""])
    with stores.written(f"{odd.parent.as_uri()}/y.bin") as path:
        path.write_bytes(b"whole")
    assert (odd.parent / "y.bin").read_bytes() == b"whole"


def test_files_are_written_whole_or_not_at_all(tmp_path):
    uri = (tmp_path / "out.bin").as_uri()
    with contextlib.suppress(KeyError), stores.written(uri) as path:
        path.write_bytes(b"half")
        raise KeyError
    assert not stores.exists(uri)
    with stores.written(uri) as path:
        path.write_bytes(b"whole")
    assert (tmp_path / "out.bin").read_bytes() == b"whole"
    assert stores.size(uri) == 5


def test_nothing_half_written_has_the_name_of_the_file(tmp_path, monkeypatch):
    place = tmp_path / "place"
    place.mkdir()
    uri = (place / "out.bin").as_uri()
    (place / "out.bin").write_bytes(b"before")
    copy, seen = stores.shutil.copyfileobj, []

    def halfway(source, target, length):
        copy(source, target, length)
        seen.append((place / "out.bin").read_bytes())
        raise OSError("the disk is full")

    with monkeypatch.context() as patch:
        patch.setattr(stores.shutil, "copyfileobj", halfway)
        with pytest.raises(OSError, match="the disk is full"), stores.written(uri) as path:
            path.write_bytes(b"after")
    assert seen == [b"before"]
    assert [path.name for path in place.iterdir()] == ["out.bin"]
    with stores.written(uri) as path:
        path.write_bytes(b"after")
    assert (place / "out.bin").read_bytes() == b"after"


def test_a_store_that_replaces_no_file_is_written_to_all_the_same(tmp_path, monkeypatch):
    place = tmp_path / "place"
    place.mkdir()
    uri = (place / "out.bin").as_uri()

    class Careful:
        type_name = "hdfs"

        def __getattr__(self, name):
            return getattr(store, name)

        def move(self, source, target):
            if store.get_file_info(target).is_file:
                raise OSError(f"{target} exists")
            store.move(source, target)

    store, inner = stores.locate(uri)
    monkeypatch.setattr(stores, "locate", lambda path: (Careful(), inner))
    for content in (b"first", b"second"):
        with stores.written(uri) as path:
            path.write_bytes(content)
        assert [path.read_bytes() for path in place.iterdir()] == [content]


def test_size_and_time_say_whether_a_file_has_changed(folder):
    places = [str(folder / "a.png"), f"{folder.as_uri()}/a.png", str(folder / "none"), f"{folder.as_uri()}/none"]
    here, there, *none = stores.states(places)
    assert here == there == (os.path.getsize(folder / "a.png"), os.stat(folder / "a.png").st_mtime_ns)
    assert none == [(), ()]


def test_what_is_not_there_is_said(tmp_path):
    with pytest.raises(FileNotFoundError, match="nothing there"):
        stores.below((tmp_path / "nowhere").as_uri())
    with pytest.raises(ValueError, match=r"tape://x/: no store"):
        stores.locate("tape://x/y")


def test_a_store_that_cannot_be_asked_is_named(tmp_path):
    pytest.importorskip("aiohttp")
    with pytest.raises(OSError, match=r"http://127.0.0.1:9/x: Cannot connect"):
        stores.below("http://127.0.0.1:9/x")  # no program listens there
    with pytest.raises(OSError, match="nowhere: no such file"):
        stores.size((tmp_path / "nowhere").as_uri().replace("file:", "local:"))


def test_a_name_that_a_store_cannot_give_is_said_with_its_place(tmp_path):
    (tmp_path / os.fsdecode(b"x-\xff.png")).write_bytes(b"")
    with pytest.raises(OSError, match=r"^local:///.*: the name of .*x-.\.png is not UTF-8"):
        stores.below(f"local://{tmp_path}")


def test_stores_that_pyarrow_has_not_are_those_of_fsspec(folder):
    import fsspec

    memory = fsspec.filesystem("memory")
    memory.put(str(folder), "/set", recursive=True)
    try:
        here = collect([folder])
        for uri in ("memory://set", "memory:///set", "memory:///set/"):
            left_out = LeftOut()
            there = collect([uri], left_out=left_out)
            assert [path.removeprefix(f"{uri.rstrip('/')}/") for path in there[0]] == [
                path.removeprefix(f"{folder}/") for path in here[0]
            ]
            assert there[1:3] == here[1:3]
            np.testing.assert_array_equal(there[3], here[3])
            assert left_out.counts == {"hidden": 1, ".txt": 1}
        with stores.written("memory://set/out/x.bin") as path:
            path.write_bytes(b"whole")
        assert stores.size("memory://set/out/x.bin") == 5
    finally:
        memory.rm("/", recursive=True)


def test_a_store_that_needs_an_extra_names_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(ImportError, match=r"huggingface_hub.*negvae\[hub\]"):
        stores.locate("hf://datasets/owner/name/x.parquet")


def test_errors_name_the_file_in_the_store_and_not_its_copy():
    import fsspec

    fsspec.filesystem("memory").pipe("/broken/a.npz", b"PK broken")
    paths, _, errors, *_ = collect(["memory://broken/a.npz"])
    assert paths == ["memory://broken/a.npz"]
    assert errors[0].startswith("not a readable .npz")


def test_the_threads_of_arrow_call_no_python(folder):
    # One that did while Python exited ended the process with code 134, in some of many tries.
    for place in (str(folder / "g.parquet"), (folder / "g.parquet").as_uri()):
        with stores.open_for_arrow(place) as file:
            assert isinstance(file, pa.NativeFile)
            assert not isinstance(file, pa.PythonFile)
            assert pq.read_schema(file).names == ["image"]
    os.mkfifo(folder / "pipe.csv")
    with pytest.raises(OSError, match="Not a regular file"):
        stores.open_for_arrow(str(folder / "pipe.csv"))
