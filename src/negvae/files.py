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
import shlex
import shutil
import stat
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from importlib import import_module
from pathlib import Path
from typing import IO, Any

from filelock import FileLock, Timeout

_TEMPORARY = re.compile(r"\.(?P<name>.+)\.(?P<machine>[0-9a-f]{8})-(?P<process>\d+)-[0-9a-f]{8}\.tmp", re.DOTALL)
"""Names of temporary files and folders: the name of the output, perhaps shortened, and whose they are."""


_BYTE = re.compile("[\udc80-\udcff]")
"""A byte of a file name that is not UTF-8, as `os.fsdecode` has it."""
_NO_FIGURES = {"mlflow": "MLFLOW_DISABLE_TELEMETRY", "onnxruntime": "ORT_DISABLE_TELEMETRY"}
"""The variable that keeps a package from sending figures about its use to its makers, if set before the import."""
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""Numbers of the errors of a disk that is full, or of a file that has become as large as it may."""
CHECKSUM, NO_CHECKSUM = "sha256", "0" * 64
"""The name of a file's own checksum in its metadata, and what stands there until it is known."""
_LONGEST_HEADER = 100_000_000
"""Bytes that safetensors accepts as a header."""


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


def first_line(error: BaseException) -> str:
    r"""Return the first line of an error's text, for a message of one line; its type if it has no text.

    >>> first_line(ValueError("broken\nat byte 3")), first_line(ValueError()), first_line(KeyError("mean"))
    ('broken', 'ValueError', "KeyError: 'mean'")
    """
    name, text = type(error).__name__, str(error).strip()
    if isinstance(error, KeyError):  # whose text is the key alone
        text = f"{name}: {text}"
    return (text or name).splitlines()[0]


def with_type(error: BaseException) -> str:
    """Return the first line of an error's text behind its type, for errors whose text alone says little.

    >>> with_type(ZeroDivisionError("division by zero")), with_type(KeyError("mean")), with_type(AssertionError())
    ('ZeroDivisionError: division by zero', "KeyError: 'mean'", 'AssertionError')
    """
    name, text = type(error).__name__, first_line(error)
    return text if text.startswith(name) else f"{name}: {text}"


@contextmanager
def open_tensors(path: Path, framework: str) -> Iterator[Any]:
    """Open a safetensors file, which its library does by a path in UTF-8 alone, and compare it with its checksum.

    Args:
        path: file to read; its path may have any bytes.
        framework: kind of the tensors: "pt" for torch, "np" for NumPy.

    Yields:
        The open file, as `safetensors.safe_open` gives it.

    Raises:
        OSError: if the file cannot be read.
        safetensors.SafetensorError: if it is damaged.
    """
    from safetensors import SafetensorError, safe_open

    with path.open("rb") as opened:  # of a file that may not be read, the library says that it is not there
        changed = not _holds_its_checksum(opened)
    if changed:
        raise SafetensorError("its content has changed since it was written")
    try:
        str(path).encode()
    except UnicodeEncodeError:
        with tempfile.TemporaryDirectory(prefix="negvae-") as folder:
            link = Path(folder) / "tensors"
            link.symlink_to(path.absolute())
            with safe_open(link, framework) as file:
                yield file
        return
    with safe_open(path, framework) as file:
        yield file


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


def quoted(path: Path | str) -> str:
    """Return a path as a shell takes it, for a command that a message advises.

    >>> print(quoted("runs/my photos"))
    'runs/my photos'
    """
    return shlex.quote(shown(str(path)))


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def shown(text: str) -> str:
    r"""Return a text that any output can encode: bytes of file names that are not UTF-8 become codes.

    >>> print(shown(os.fsdecode(b"image-\xff.png")))
    image-\xff.png
    >>> print(shown("image-\ud800.png"))
    image-\ud800.png
    """
    named = _BYTE.sub(lambda byte: f"\\x{ord(byte[0]) - 0xDC00:02x}", text)
    return named.encode("utf-8", "backslashreplace").decode()  # what else is a half of a surrogate pair


def visible(text: str) -> str:
    r"""Return a text whose control characters, which a file name may hold and a terminal would obey, are codes.

    Bytes of a name that are not UTF-8 become the codes that tables and reports have for them, too.

    >>> print(visible("a\x1b[2Jb"), visible("image-\udcff.png"))
    a\x1b[2Jb image-\xff.png
    """
    return "".join(each if each.isprintable() or each in "\n\t" else ascii(each)[1:-1] for each in shown(text))


def counted(number: int, noun: str, plural: str = "") -> str:
    """Return a number with its noun, in the plural unless the number is one.

    >>> counted(1, "image"), counted(2000, "image"), counted(0, "discovery", "discoveries")
    ('1 image', '2,000 images', '0 discoveries')
    """
    return f"{number:,} {noun if number == 1 else plural or noun + 's'}"


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


def order_header(path: Path) -> None:
    """Sort the header of a safetensors file, so that equal content gives equal bytes.

    The library writes the entries of its metadata in random order. Here they are sorted; the numbers are not moved.
    """
    with path.open("r+b") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
        metadata = {"__metadata__": header.pop("__metadata__")} if "__metadata__" in header else {}
        ordered = {**{name: dict(sorted(values.items())) for name, values in metadata.items()},
                   **dict(sorted(header.items(), key=lambda entry: (entry[1]["data_offsets"], entry[0])))}  # fmt: skip
        text = json.dumps(ordered, separators=(",", ":"), ensure_ascii=False).encode()
        if len(text) > length:
            raise ValueError(f"{path}: its header cannot be ordered")
        file.seek(8)
        file.write(text.ljust(length))


def add_checksum(path: Path) -> None:
    """Put the SHA-256 of a safetensors file in place of the zeros that its metadata have under `CHECKSUM`.

    It is that of the whole file with those zeros. `open_tensors` compares it: a changed digit of a threshold or of a
    weight would otherwise be read like any other. Files of earlier versions have none.
    """
    with path.open("r+b") as file:
        start, _ = _checksum(file)
        checksum = _sha256_without_checksum(file, start)
        file.seek(start)
        file.write(checksum)


def _holds_its_checksum(file: IO[bytes]) -> bool:
    """Return whether a safetensors file is as it was written, or has no checksum."""
    start, written = _checksum(file)
    return not written or _sha256_without_checksum(file, start) == written


def _checksum(file: IO[bytes]) -> tuple[int, bytes]:
    """Return where the checksum of a safetensors file stands, and what it is; it is empty if there is none."""
    length = int.from_bytes(file.read(8), "little")
    found = re.search(rb'"%s":"(.{64})"' % CHECKSUM.encode(), file.read(min(length, _LONGEST_HEADER)))
    return (8 + found.start(1), found[1]) if found else (0, b"")


def _sha256_without_checksum(file: IO[bytes], start: int) -> bytes:
    """Return the SHA-256 of a file in which the checksum, which starts there, is zeros."""
    file.seek(0)
    digest = hashlib.sha256(file.read(start) + NO_CHECKSUM.encode())
    file.seek(start + len(NO_CHECKSUM))
    return hashlib.file_digest(file, lambda: digest).hexdigest().encode()  # type: ignore[arg-type]


def sha256_without(content: bytes, checksum: str) -> str:
    """Return the SHA-256 of a content in which a checksum, at its last place in it, is zeros (`NO_CHECKSUM`).

    Args:
        content: content of a file that holds its own checksum.
        checksum: the checksum that stands in it, or the zeros that stand there until it is known.

    Returns:
        The SHA-256, as 64 hexadecimal digits.
    """
    before, _, after = content.rpartition(checksum.encode())
    return hashlib.sha256(before + NO_CHECKSUM.encode() + after).hexdigest()


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
