"""Files that are written whole or not at all, locks between processes, and packages that are optional."""

from __future__ import annotations

import errno
import os
import secrets
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Provide a temporary file beside `path` that takes the place of `path` when the block ends without an error.

    The new content is on the disk before it replaces the old, whose permissions it keeps; a new file has the
    permissions that the user's umask gives. Symbolic links are followed. A pipe or a device is written to instead of
    being replaced.

    Args:
        path: file to write.

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
    through = target.exists() and not target.is_file()
    folder = Path(tempfile.gettempdir()) if through else target.parent
    temporary = folder / f".{target.name[:200]}.{os.getpid()}-{secrets.token_hex(4)}.tmp"
    try:
        temporary.touch(exist_ok=False)
        mode = stat.S_IMODE((target if target.is_file() else temporary).stat().st_mode)
        yield temporary
        if through:
            with temporary.open("rb") as written, target.open("wb") as device:
                shutil.copyfileobj(written, device)
            return
        temporary.chmod(mode)  # some libraries write files that only their owner reads
        _flush(temporary)
        os.replace(temporary, target)
        _flush(target.parent)
    finally:
        temporary.unlink(missing_ok=True)


def _flush(path: Path) -> None:
    """Write a file, or the entries of a folder, to the disk, if the system can."""
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
def locked(path: Path) -> Iterator[bool]:
    """Hold a lock file, and yield False if another process holds it; the system frees the locks of dead processes.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder, locked(Path(folder) / "run.lock") as held:
    ...     held
    True
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        yield False
        return
    try:
        yield True
    finally:
        lock.release()


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text to a file, whole or not at all."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def need(module: str, extra: str) -> Any:
    """Import a module that belongs to an extra of this package.

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
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        if error.name and error.name.split(".")[0] != module.split(".")[0]:
            raise  # the module is there, and something that it needs is not
        raise ImportError(f"{module.split('.')[0]} is not installed: pip install 'negvae[{extra}]'") from None
