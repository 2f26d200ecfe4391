"""Files on local disks and in object stores, by path or by URI.

URIs are those of `pyarrow.fs` (s3://bucket/key, gs://bucket/key, hdfs://host/path, file:///path), and those of fsspec
if pyarrow has no such store (hf://datasets/owner/name, sftp://host/path). Credentials, region and endpoint are read
from the places that the stores' own tools use (for S3 the AWS_* variables and ~/.aws).
"""

from __future__ import annotations

import errno
import functools
import io
import os
import re
import secrets
import shutil
import stat
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any, cast
from urllib.parse import unquote_to_bytes

from negvae.files import home, replacing


def is_uri(text: str) -> bool:
    """Return whether a text is a URI and not a path.

    >>> is_uri("s3://bucket/images"), is_uri("images")
    (True, False)
    """
    return "://" in text


def local_path(text: str) -> str:
    """Return the path that a file:// URI stands for, with its percent signs decoded; any other text as it is.

    >>> local_path("file:///a%20b"), local_path("s3://a%20b"), local_path("a%20b")
    ('/a b', 's3://a%20b', 'a%20b')
    """
    found = re.fullmatch(r"file://(?:localhost)?(/.*)", text, re.DOTALL)
    if not found:
        return text
    path = os.fsdecode(unquote_to_bytes(os.fsencode(found[1])))
    return path[1:] if os.name == "nt" and re.match("/[A-Za-z]:", path) else path  # a drive's letter comes first


def open_file(path: str, whole: bool = False) -> IO[bytes]:
    """Open a file for reading.

    Args:
        path: path or URI of the file.
        whole: whether all of the file will be read; from a store it is then read in one request.

    Returns:
        The open file, in binary mode.

    Raises:
        OSError: if the file cannot be opened, or is not a regular file (a pipe might block, and a device might never
            end).
    """
    if not is_uri(path):
        return open(home(path), "rb", opener=_regular)
    store, inner = locate(path)
    file = store.open_input_file(inner)
    if not whole:
        return cast("IO[bytes]", io.BufferedReader(file, 1 << 20))
    with file:
        return io.BytesIO(file.read())


def open_for_arrow(path: str) -> Any:
    """Open a file for a reader of Arrow, which reads ahead in threads of its own.

    A thread of Arrow that calls a Python file while Python exits ends the process with code 134, whatever the exit code
    was to be. So the file is one of Arrow's own, but for stores that only fsspec reads.

    Args:
        path: path or URI of the file.

    Returns:
        The open file, a `pyarrow.NativeFile`.

    Raises:
        OSError: if the file cannot be opened, or is not a regular file.
    """
    if is_uri(path):
        store, inner = locate(path)
        return store.open_input_file(inner)
    import pyarrow as pa

    with open_file(path):  # says what Arrow does not: a pipe would block it
        return pa.OSFile(os.fsencode(home(path)))


def _regular(path: str, flags: int) -> int:
    """Open a regular file without blocking, so that a pipe without a writer is refused immediately."""
    handle = os.open(path, flags | getattr(os, "O_NONBLOCK", 0))
    kind = os.fstat(handle).st_mode
    if stat.S_ISREG(kind) or stat.S_ISDIR(kind):  # of a folder, `open` says so itself
        return handle
    os.close(handle)
    raise OSError(errno.EINVAL, "Not a regular file", path)


def size(path: str) -> int:
    """Return the size of a file in bytes.

    Args:
        path: path or URI of the file.

    Returns:
        The size.

    Raises:
        OSError: if there is no such file, or its store does not know its size.
    """
    if not is_uri(path):
        return os.path.getsize(home(path))
    store, inner = locate(path)
    info = store.get_file_info(inner)
    if info.size is None:
        raise OSError(f"{path}: {'its store does not know its size' if info.is_file else 'no such file'}")
    return int(info.size)


def states(paths: Sequence[str]) -> list[tuple[int, ...]]:
    """Return size in bytes and time of the last change in ns of each file; nothing of one that is not there.

    Args:
        paths: paths and URIs of files. A time that a store does not know is -1.

    Returns:
        A tuple for each file: size and time, or empty.
    """
    found: dict[str, tuple[int, ...]] = {}
    by_store: dict[int, tuple[Any, dict[str, str]]] = {}
    for path in paths:
        if not is_uri(path):
            with suppress(OSError):
                state = os.stat(path)
                found[path] = state.st_size, state.st_mtime_ns
            continue
        store, inner = locate(path)
        by_store.setdefault(id(store), (store, {}))[1][path] = inner
    for store, places in by_store.values():  # a store answers many questions at once sooner than one after the other
        for path, info in zip(places, store.get_file_info(list(places.values())), strict=True):
            if info.is_file:
                found[path] = int(info.size or 0), -1 if info.mtime_ns is None else int(info.mtime_ns)
    return [found.get(path, ()) for path in paths]


def exists(path: str) -> bool:
    """Return whether there is a file or folder at a path or URI."""
    if not is_uri(path):
        return os.path.exists(path)
    from pyarrow import fs

    store, inner = locate(path)
    return bool(store.get_file_info(inner).type != fs.FileType.NotFound)


def make_folder(path: str) -> None:
    """Create a folder if it does not exist; object stores have no folders and need none."""
    if not is_uri(path):
        Path(path).mkdir(parents=True, exist_ok=True)
        return
    store, inner = locate(path)
    if store.type_name not in ("s3", "gcs", "abfs"):
        store.create_dir(inner, recursive=True)


def below(uri: str) -> list[str]:
    """List the URIs of all files below a URI, ordered by name.

    Args:
        uri: URI of a folder, or of a file, which is then the only one listed.

    Returns:
        The URIs of the files.

    Raises:
        FileNotFoundError: if nothing exists at the URI.
        OSError: if the store cannot be asked.
    """
    from pyarrow import fs

    store, inner = locate(uri)
    try:
        found = store.get_file_info(inner)
        if found.type == fs.FileType.File:
            return [uri]
        files = store.get_file_info(fs.FileSelector(inner, recursive=True, allow_not_found=True))
        paths = [file.path for file in files if file.is_file]
    except UnicodeDecodeError as error:
        name = os.fsdecode(error.object)
        raise OSError(f"{uri}: the name of {name} is not UTF-8, and in a store names must be") from None
    except Exception as error:  # each store of fsspec has errors of its own kinds
        raise OSError(f"{uri}: {' '.join(str(error).split()) or type(error).__name__}") from error
    base = inner.strip("/")  # some stores begin their paths with a slash, whatever they are asked for
    names = sorted(os.fsencode(path.strip("/")[len(base) :].lstrip("/")) for path in paths)
    if not names and found.type == fs.FileType.NotFound:
        raise FileNotFoundError(f"{uri}: nothing there")
    return [f"{uri.rstrip('/')}/{os.fsdecode(name)}" for name in names]


@contextmanager
def local_copy(path: str) -> Iterator[Path]:
    """Provide a local file while the block runs: the file itself, or a temporary copy of a file in a store.

    Args:
        path: path or URI of the file.

    Yields:
        The path of the local file.

    Raises:
        OSError: if the file cannot be read.
    """
    if not is_uri(path):
        yield Path(path)
        return
    with tempfile.TemporaryDirectory(prefix="negvae-") as folder:
        local = Path(folder) / path.rsplit("/", 1)[1]
        with open_file(path) as source, local.open("wb") as target:
            shutil.copyfileobj(source, target, 1 << 24)
        yield local


@contextmanager
def written(path: str) -> Iterator[Path]:
    """Provide a local file to write to; if the block ends without an error, its content is put at `path` (or URI)."""
    if not is_uri(path):
        with replacing(Path(path)) as temporary:
            yield temporary
        return
    with tempfile.TemporaryDirectory(prefix="negvae-") as folder:
        temporary = Path(folder) / "file"
        yield temporary
        store, inner = locate(path)
        if store.type_name in ("s3", "gcs", "abfs"):  # these show a file once it is whole
            _copy(temporary, store, inner)
            return
        folder_of, _, name = inner.rpartition("/")
        beside = f"{folder_of}/.{name}.{secrets.token_hex(4)}.tmp"
        try:
            _copy(temporary, store, beside)
            try:
                store.move(beside, inner)
            except OSError:  # HDFS replaces no file
                store.delete_file(inner)
                store.move(beside, inner)
        except BaseException:
            with suppress(OSError):
                store.delete_file(beside)
            raise


def _copy(file: Path, store: Any, inner: str) -> None:
    with file.open("rb") as source, store.open_output_stream(inner) as target:
        shutil.copyfileobj(source, target, 1 << 24)


def locate(uri: str) -> tuple[Any, str]:
    """Return the store of a URI, and the path in that store.

    Args:
        uri: URI of a file or folder.

    Returns:
        A file system of pyarrow, and the path in it.

    Raises:
        ImportError: if a package that reads such stores is not installed.
        ValueError: if neither pyarrow nor fsspec has a store of this kind.
    """
    if (path := local_path(uri)) != uri:
        return _store("file:///")[0], path
    scheme, _, rest = uri.partition("://")
    host, slash, inner = rest.partition("/")
    store, base = _store(f"{scheme}://{host}/")
    return store, (base.rstrip("/") + slash + inner) if base else inner


@functools.lru_cache(maxsize=64)
def _store(root: str) -> tuple[Any, str]:
    import fsspec
    from pyarrow import fs

    try:
        try:
            return cast("tuple[Any, str]", fs.FileSystem.from_uri(root))
        except ValueError:  # pyarrow has no such store
            store, base = fsspec.url_to_fs(root)
    except ImportError as error:  # its message names the package
        hint = ": pip install 'negvae[hub]'" if root.startswith("hf://") else ""
        raise ImportError(f"{root}: {' '.join(str(error).split())}{hint}") from None
    except ValueError as error:
        raise ValueError(f"{root}: no store that pyarrow or fsspec can read ({' '.join(str(error).split())})") from None
    return fs.PyFileSystem(fs.FSSpecHandler(store)), base
