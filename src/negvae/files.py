"""Write files completely or not at all, lock files between processes, and import optional packages."""

from __future__ import annotations

import errno
import functools
import hashlib
import json
import os
import platform
import re
import secrets
import shutil
import stat
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from importlib import import_module
from pathlib import Path
from typing import IO, Any

from filelock import FileLock, Timeout

from negvae.messages import shown

_TEMPORARY = re.compile(r"\.(?P<name>.+)\.(?P<machine>[0-9a-f]{8})-(?P<process>\d+)-[0-9a-f]{8}\.tmp", re.DOTALL)
"""Names of temporary files and folders: the name of the output, perhaps shortened, and whose they are."""


_NO_FIGURES = {"mlflow": "MLFLOW_DISABLE_TELEMETRY", "onnxruntime": "ORT_DISABLE_TELEMETRY"}
"""The variable that keeps a package from sending figures about its use to its makers, if set before the import."""
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""Numbers of the errors of a disk that is full, or of a file that has become as large as it may."""


@contextmanager
def replacing(path: Path, tidy: bool = True) -> Iterator[Path]:
    """Provide a temporary file beside `path` that takes the place of `path` when the block ends without an error.

    The new content is on the disk before it replaces the old, whose permissions it keeps; a new file has the
    permissions that the user's umask gives. Symbolic links are followed. A pipe, a device or an open file such as
    /dev/stdout is written to instead of being replaced, behind what has been written to it.

    Args:
        path: file to write.
        tidy: whether to remove what killed processes left of the file, for which the names in its folder are read.
            Whoever writes many files into one folder calls `remove_leftovers` once instead.

    Yields:
        The path of the temporary file.

    Raises:
        OSError: if the folder is missing, full or not writable, or if `path` is a folder.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = Path(folder) / "result.txt"
    ...     with replacing(path) as temporary:
    ...         _ = temporary.write_text("42")
    ...     path.read_text(), len(list(Path(folder).iterdir()))
    ('42', 1)
    """
    target = Path(os.path.realpath(path))
    if target.is_dir():
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    through = _written_through(path)
    temporary = _temporary(beside(path), Path(path).name if through else target.name, tidy)
    try:
        temporary.touch(exist_ok=False)
        mode = stat.S_IMODE((target if target.is_file() and not through else temporary).stat().st_mode)
        yield temporary
        if through:
            with temporary.open("rb") as written, _opened(path) as device:
                shutil.copyfileobj(written, device)
            return
        temporary.chmod(mode)  # some libraries write files that only their owner reads
        _flush(temporary)
        os.replace(temporary, target)
        _flush(target.parent)
    except OSError as error:
        if str(error.filename) == str(temporary):  # a name that the user does not know
            raise OSError(error.errno, error.strerror, str(path)) from None
        if error.filename is None and error.errno in _FULL:  # of a write, which knows no name
            raise OSError(error.errno, error.strerror, str(path)) from None
        raise
    finally:
        temporary.unlink(missing_ok=True)


class _LeftAsItIsError(Exception):
    """Ends a block of `replacing` without a new file."""


def require_writable(path: Path) -> None:
    """Find out before some work, and not after it, that its result cannot be written.

    Args:
        path: file that `replacing` is to write later; it is left as it is.

    Raises:
        OSError: if the folder is missing, full or not writable, or if `path` is a folder.
    """
    with suppress(_LeftAsItIsError), replacing(path):
        raise _LeftAsItIsError


def beside(path: Path | str | None) -> Path:
    """Return the folder for the temporary files of an output.

    Args:
        path: path of the output; None for standard output.

    Returns:
        The folder of the output, so that renaming into place is possible; the system's folder for temporary files if
        the output is a pipe, a device or an open file.
    """
    if path is None or _written_through(path):
        return Path(tempfile.gettempdir())
    return Path(os.path.realpath(path)).parent


def _written_through(path: Path | str) -> bool:
    """Return whether an output is written to in place: a pipe, a device, or an open file such as /dev/stdout."""
    return _descriptor(path) is not None or (os.path.exists(path) and not os.path.isfile(path))


def _descriptor(path: Path | str) -> int | None:
    """Return the open file of this process that a path stands for, such as 1 for /dev/stdout; None for other paths."""
    place = os.path.abspath(path)
    for _ in range(40):  # as many links as the system follows
        folder, name = os.path.realpath(os.path.dirname(place)), os.path.basename(place)
        if name.isdecimal() and folder in (f"/proc/{os.getpid()}/fd", "/dev/fd"):
            return int(name)
        place = os.path.join(folder, name)
        if not os.path.islink(place):
            return None
        place = os.path.join(folder, os.readlink(place))
    return None


def _opened(path: Path | str) -> IO[bytes]:
    """Open an output that is written through: a further handle of an open file, which neither empties nor rewinds."""
    descriptor = _descriptor(path)
    if descriptor is None:
        return Path(path).open("wb")
    try:
        return os.fdopen(os.dup(descriptor), "wb")
    except OSError as error:
        raise OSError(error.errno, os.strerror(error.errno or 0), str(path)) from None


@contextmanager
def temporary_folder(parent: Path, name: str) -> Iterator[Path]:
    """Provide an empty folder below `parent` until the block ends, and remove folders that dead processes left.

    Args:
        parent: folder in which the folder is created.
        name: beginning of its name, the same in every call for one purpose.

    Yields:
        The empty folder.

    Raises:
        OSError: if the folder cannot be created.
    """
    place = _temporary(parent, name)
    place.mkdir()
    try:
        yield place
    finally:
        shutil.rmtree(place, ignore_errors=True)


def _temporary(folder: Path, name: str, tidy: bool = True) -> Path:
    """Return a name for a temporary file or folder that no other process uses, derived from `name`."""
    name = shortened(name, 180)
    if tidy:
        remove_leftovers(folder, name)
    return folder / f".{name}.{_machine()}-{os.getpid()}-{secrets.token_hex(4)}.tmp"


def remove_leftovers(folder: Path, name: str | None = None) -> None:
    """Remove temporary files and folders that dead processes of this machine left: a killed one cannot remove its own.

    Args:
        folder: folder that they lie in, which need not exist.
        name: name of the output that they were for; None for any.
    """
    with suppress(OSError):
        for entry in os.scandir(folder):
            found = _TEMPORARY.fullmatch(entry.name)
            if found is None or found["machine"] != _machine() or name not in (None, found["name"]):
                continue
            if not _is_alive(int(found["process"])):
                _remove(entry)


def shortened(name: str, size: int) -> str:
    """Return the beginning of a name of a file that takes at most so many bytes: file systems count those.

    >>> shortened("image", 3), shortened("\u5199\u771f", 4) == "\u5199"
    ('ima', True)
    """
    while len(os.fsencode(name)) > size:
        name = name[: min(len(name) - 1, size)]
    return name


def is_temporary(name: str) -> bool:
    """Return whether a file or folder has a temporary name that this module gave it, on any machine."""
    return _TEMPORARY.fullmatch(name) is not None


@functools.cache
def _machine() -> str:
    """Return a name for this machine, and on Linux for the container, within which process numbers are unique."""
    try:
        space = os.stat("/proc/self/ns/pid").st_ino
    except OSError:
        space = 0
    return hashlib.sha256(f"{platform.node()} {space}".encode()).hexdigest()[:8]


def _is_alive(process: int) -> bool:
    """Return whether a process of this machine runs; True if that cannot be determined."""
    if os.name == "nt":
        return True  # there `os.kill` ends the process that it asks about
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):
        return True
    return True


def _remove(entry: os.DirEntry[str]) -> None:
    if entry.is_dir(follow_symlinks=False):
        shutil.rmtree(entry.path, ignore_errors=True)
    else:
        os.unlink(entry.path)


def _flush(path: Path) -> None:
    """Write a file, or the entries of a folder, to the disk, if the system supports it."""
    try:
        handle = os.open(path, os.O_RDONLY)
    except OSError:  # Windows opens no folders, and a file may be readable by nobody
        return
    try:
        os.fsync(handle)
    except OSError:  # some file systems know no such thing
        pass
    finally:
        os.close(handle)


@contextmanager
def locked(path: Path, wait: bool = False) -> Iterator[bool]:
    """Hold a lock file, and yield False if another process holds it; the system frees the locks of dead processes.

    Args:
        path: lock file.
        wait: wait until the other process lets go of it.

    Yields:
        Whether the lock is held.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder, locked(Path(folder) / "run.lock") as held:
    ...     held
    True
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path)
    try:
        lock.acquire(timeout=-1 if wait else 0)
    except Timeout:
        yield False
        return
    try:
        yield True
    finally:
        lock.release()


def refuse_used(directory: Path, besides: str = "") -> None:
    """Refuse to write to a folder that holds something.

    Args:
        directory: folder to be written, which need not exist.
        besides: name of a file that may be in it.

    Raises:
        ValueError: if it is a file or is not empty.
    """
    if directory.exists() and (not directory.is_dir() or any(each.name != besides for each in directory.iterdir())):
        raise ValueError(f"{directory} is {'not empty' if directory.is_dir() else 'a file'}: take a new folder")


def refuse_replacing(out: Path | str, read: Iterable[Path | str] = (), endings: Iterable[str] = ()) -> None:
    """Refuse an output that would take the place of a file that it is not an earlier form of.

    Args:
        out: file to be written.
        read: paths that are read for it, none of which `out` may be. It must not be a file of a run either.
        endings: endings, such as ".html", that an existing file must have to be replaced; any if there are none. A file
            without an ending is replaced too.

    Raises:
        ValueError: if `out` is such a file; links are followed.
    """
    if not os.path.isfile(out):
        return
    for path in read:
        if os.path.exists(path) and os.path.samefile(out, path):
            raise ValueError(f"--out {out} is {path}, which is read: take another file")
    target = Path(os.path.realpath(out))
    if _of_a_run(target):
        raise ValueError(f"--out {out} is a file of the run in {target.parent}: take another file")
    allowed = tuple(endings)
    for each in (Path(out), target):
        if allowed and each.suffix and each.suffix.lower() not in allowed:
            raise ValueError(f"--out {out} exists and does not end in {' or '.join(allowed)}: take another file")


def _of_a_run(path: Path) -> bool:
    """Return whether a file is one that a run's folder is made of."""
    names = ("config.yaml", "MODEL_CARD.md", "inliers.json", "metrics.jsonl", "broken.tsv")
    return (path.suffix == ".safetensors" or path.name in names) and (path.parent / "config.yaml").is_file()


def write_text(path: Path, text: str) -> None:
    """Write text in UTF-8, completely or not at all; bytes of file names that are not UTF-8 become codes (`shown`)."""
    with replacing(path) as temporary:
        temporary.write_text(shown(text), encoding="utf-8")


def state_of(path: Path | str) -> tuple[int, int, int, int]:
    """Return size, times of the last changes of content and status in ns, and number of a file.

    Another content has another state, even if its size and the time of its content are kept, as by an archive.
    """
    found = os.stat(path)
    return found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino


def home(path: Path | str) -> Path:
    """Return a path with "~" at its beginning replaced by the user's home; one of an unknown user stays as it is.

    >>> home("~no-such-user/images").name
    'images'
    """
    return Path(os.path.expanduser(path))


def from_json(text: str | bytes) -> Any:
    """Read JSON that anyone may have written.

    Args:
        text: the JSON, in UTF-8 if it is bytes.

    Returns:
        The value.

    Raises:
        ValueError: if the text is not JSON, or is nested too deeply to be read.

    >>> from_json(b'{"rows": 2}')
    {'rows': 2}
    """
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def need(module: str, extra: str) -> Any:
    """Import a module that belongs to an extra of this package, and keep it from sending figures about its use.

    Args:
        module: name of the module.
        extra: name of the extra that installs it.

    Returns:
        The module.

    Raises:
        ImportError: if the module is not installed; the message says how to install it.

    >>> need("json", "hub").dumps([1])
    '[1]'
    """
    if module in _NO_FIGURES:
        os.environ.setdefault(_NO_FIGURES[module], "1")
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        if error.name and error.name.split(".")[0] != module.split(".")[0]:
            raise  # the module is there, and something that it needs is not
        raise ImportError(f"{module.split('.')[0]} is not installed: pip install 'negvae[{extra}]'") from None
