"""Layouts of files in which sets by name are found."""

import os
import pickle

import numpy as np
import pytest

from negvae.data import list_sets, load, verify
from tests.data.conftest import batches, check, tar_of, write_idx


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


@pytest.mark.parametrize("folder", ["cifar-10-batches-py", "cifar10/cifar-10-batches-py", "CIFAR10", "."])
def test_cifar_batches(make, small, folder):
    for name, data in batches(small["cifar10"]).items():
        make.path(f"{folder}/{name}").write_bytes(data)
    check("cifar10", small)


def test_cifar_archive_is_read_in_place(make, small):
    make.path("cifar-10-python.tar.gz").write_bytes(tar_of(batches(small["cifar10"])))
    check("cifar10", small)


@pytest.mark.parametrize("folder", ["cifar-100-python", "cifar100", ".", "cifar-100-python.tar.gz"])
def test_cifar_100_has_a_batch_for_each_split(make, small, folder):
    contents = {
        split: pickle.dumps({b"data": images.reshape(len(images), -1), b"fine_labels": [7] * len(images)})
        for split, images in small["cifar100"].items()
    }
    if folder.endswith(".gz"):
        make.path(folder).write_bytes(tar_of(contents))
    for split, content in contents.items() if not folder.endswith(".gz") else ():
        make.path(f"{folder}/{split}").write_bytes(content)
    check("cifar100", small)
    assert set(load("cifar100").labels) == {7}


def test_any_other_file_named_train_is_no_cifar_100(make, small):
    other = {b"data": np.zeros((20, 3072), np.uint8), b"labels": [0] * 20}
    make.path("train").write_bytes(pickle.dumps(other))
    with pytest.raises(FileNotFoundError, match="cifar100"):
        load("cifar100", fetch=False)


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
