"""Find the files of a named set on this machine, without decoding any pixels."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from negvae.data.cache import cache_folder
from negvae.data.catalog import CATALOG, SPLITS, SetSpec, Split
from negvae.data.formats import Batches, Folder, Idx, Mat, Npz, Parquet, Reader, npz, origin
from negvae.files import home

DEBIAN_FOLDER = Path("/usr/share/datasets")
# Folders that hold other people's data sets one level further down, as clones and caches lay them out.
_SHELVES = {
    "hub",
    "huggingface",
    "datasets",
    "torchvision",
    "ylecun",
    "zalandodatasets",
    "uoftcs",
    "ufldlstanford",
}
_NOT_OURS = {"blobs", "refs", "full_numbers", "extra"}


def data_folders() -> list[Path]:
    """Return the folders of NEGVAE_DATA (separated as in PATH), then the user's cache.

    Returns:
        The folders, in the order in which they are searched.

    Raises:
        FileNotFoundError: if NEGVAE_DATA names something that is not a folder.
    """
    given = [home(part) for part in os.environ.get("NEGVAE_DATA", "").split(os.pathsep) if part]
    for folder in given:
        if not folder.is_dir():
            raise FileNotFoundError(f"NEGVAE_DATA names {folder}, which is not a folder: correct or unset it")
    return [*given, cache_folder()]


@dataclass(frozen=True)
class Candidate:
    """Files that may hold one split of a set.

    Attributes:
        reader: reader of the files.
        certain: whether the names of the files or of their folder identify the set.
    """

    reader: Reader
    certain: bool = True

    @property
    def origin(self) -> str:
        """The file, or the folder if there are several files."""
        return str(origin(self.reader))


def find(name: str, split: Split) -> Iterator[Candidate]:
    """Find what may be this split in the local folders, in order of preference.

    Args:
        name: name of the set in the catalog.
        split: split to look for.

    Yields:
        Files that may hold the split.

    Raises:
        FileNotFoundError: if NEGVAE_DATA names something that is not a folder.
    """
    roots = data_folders()
    if CATALOG[name].debian:
        roots.append(DEBIAN_FOLDER)
    for root in roots:
        if root.is_dir():
            yield from find_below(name, split, root)


def find_below(name: str, split: Split, root: Path, *, own: bool = False) -> Iterator[Candidate]:
    """Find what may be this split in one folder.

    Args:
        name: name of the set in the catalog.
        split: split to look for.
        root: folder of data sets, or the folder of one set.
        own: whether `root` is known to be the folder of this set.

    Yields:
        Files that may hold the split.
    """
    spec = CATALOG[name]
    ranked: list[tuple[int, Path]] = []
    for child in _folders(root):
        shelf = _folders(child) if _plain(child.name) in _SHELVES else []
        ranked += [(rank, folder) for folder in (child, *shelf) if (rank := _rank(spec, folder)) is not None]
    for _, folder in sorted(ranked):
        yield from _walk(name, split, folder)
    owner = name if own else _owner(root)
    if owner == name:
        yield from _walk(name, split, root)
    elif owner is None:
        # The folder may hold the files itself, or in torchvision's "raw"; its name does not say of which set.
        for folder in (root, root / "raw", root / "data"):
            if folder.is_dir():
                yield from _in_folder(name, split, folder, certain=False)


def _plain(name: str) -> str:
    """Return a folder's name as `SetSpec.folders` spells it; in a Hub cache, the name in "datasets--owner--name"."""
    return re.sub(r"[-_ .]", "", name.rsplit("--", 1)[-1].lower())


def _rank(spec: SetSpec, folder: Path) -> int | None:
    """Return how well a folder's name fits a set: 0 for the set, 1 for a stand-in, None for neither."""
    plain = _plain(folder.name)
    return 0 if plain in spec.folders else 1 if plain in spec.stand_ins else None


def _owner(folder: Path) -> str | None:
    """Return the set that a folder's name belongs to, or its parent's name if the folder is just "raw" or "data"."""
    folder = Path(os.path.abspath(folder))
    for part in (folder.name, folder.parent.name if folder.name.lower() in ("raw", "data", "gzip") else ""):
        for name, spec in CATALOG.items():
            if _plain(part) in (*spec.folders, *spec.stand_ins):
                return name
    return None


def _folders(root: Path) -> list[Path]:
    with os.scandir(root) as entries:
        return sorted(Path(e.path) for e in entries if e.is_dir() and not e.name.startswith("."))


def _walk(name: str, split: Split, top: Path) -> Iterator[Candidate]:
    """Find candidates in a set's own folder and up to four levels below it."""
    leaves = {leaf for names in CATALOG[name].image_folders.values() for leaf in names}
    for parent, folders, _ in os.walk(top):
        here = Path(parent)
        yield from _in_folder(name, split, here, certain=True)
        deep = len(here.relative_to(top).parts) >= 4
        folders[:] = (
            []
            if deep
            else sorted(
                f
                for f in folders
                if not f.startswith(".") and f not in _NOT_OURS and f not in leaves and _owner(Path(f)) in (None, name)
            )
        )


def _in_folder(name: str, split: Split, folder: Path, *, certain: bool) -> Iterator[Candidate]:
    """Find candidates directly in one folder."""
    spec = CATALOG[name]
    with os.scandir(folder) as entries:
        files = {e.name for e in entries if e.is_file()}
    for stem in spec.idx_stems.get(split, ()):
        for images in _idx_names(stem, "images-idx3"):
            if images in files:
                label = next((folder / each for each in _idx_names(stem, "labels-idx1") if each in files), None)
                named = certain or bool(spec.must_name and spec.must_name in stem)
                yield Candidate(Idx(folder / images, label, spec.transposed), named)
    for stem in spec.npz_stems:
        if f"{stem}-{split}-imgs.npz" in files:
            label = folder / f"{stem}-{split}-labels.npz"
            yield Candidate(Npz(folder / f"{stem}-{split}-imgs.npz", label_file=label if label.name in files else None))
        if f"{stem}.npz" in files and _holds_split(folder / f"{stem}.npz", split):
            yield Candidate(Npz(folder / f"{stem}.npz", split))
        for each in (f"{stem}-{split}.npz", f"{stem}_{split}.npz"):
            if each in files:
                yield Candidate(Npz(folder / each, split))
    for ending in ("", ".npz"):
        batches = tuple(folder / f"{each}{ending}" for each in spec.batches.get(split, ()) if each + ending in files)
        if batches:
            own = batches[0].name not in SPLITS  # any folder may have a file "train"
            yield Candidate(Batches(batches, spec.shape), certain or own)
    for archive in (each for each in spec.file_md5 if each.endswith(".tar.gz") and each in files):
        yield Candidate(Batches((folder / archive,), spec.shape, tuple(spec.batches[split])))
    for mat in (each for each in spec.file_md5 if each == f"{split}_32x32.mat" and each in files):
        yield Candidate(Mat(folder / mat))
    words = spec.test_words if split == "test" else ("train",)
    for word in words:
        shards = parquet_shards(folder, files, word)
        if shards and spec.must_name in str(shards[0]).lower():
            yield Candidate(Parquet(shards), certain)
            break
    for leaf in spec.image_folders.get(split, ()):
        if (folder / leaf).is_dir():
            yield Candidate(Folder(folder / leaf))


def _holds_split(archive: Path, split: Split) -> bool:
    """Return whether an .npz file names this split; True for a damaged file, so that reading it reports the damage."""
    try:
        return split in npz.splits(archive)
    except ValueError:
        return True


def _idx_names(stem: str, part: str) -> list[str]:
    """Return the spellings of an IDX file's name, decompressed ones first, since they are faster to read."""
    return [f"{stem}-{p}-ubyte{end}" for end in ("", ".gz") for p in (part, part.replace("-idx", ".idx"))]


def parquet_shards(folder: Path, files: Iterable[str], word: str) -> tuple[Path, ...]:
    """Return the Parquet files of a split: all in a folder of its name, else those whose names contain it.

    Args:
        folder: folder of the files.
        files: names of the files in the folder.
        word: name of the split: "train", "test", "validation".

    Returns:
        The paths of the files, sorted by name.

    >>> [path.name for path in parquet_shards(Path("set"), ["test-0.parquet", "train-0.parquet"], "train")]
    ['train-0.parquet']
    """
    shards = sorted(each for each in files if each.endswith(".parquet"))
    if folder.name.lower() != word:
        shards = [each for each in shards if re.search(rf"(^|[-_.]){word}[-_.]", each.lower())]
    return tuple(folder / each for each in shards)
