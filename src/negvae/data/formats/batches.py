"""Python batches, the format of CIFAR-10: a pickled dict with "data", N x C*H*W, and "labels".

No unpickler runs here. A pickle is a program; this module carries out only the few instructions that such a dict needs,
on plain values, and every other instruction is an error. It creates arrays from their bytes, after checking shape and
type: it calls nothing that the file chooses, and NumPy's own constructors never see the file's values.
"""

from __future__ import annotations

import pickletools
import re
import tarfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from negvae.data.formats.base import Block, DataError, Probe, by, cut, need_memory, reading
from negvae.data.formats.npz import Npz
from negvae.data.formats.pixels import as_labels


@dataclass(frozen=True)
class Batches:
    """Python batches, or .npz files with the same keys, read one after the other.

    Attributes:
        files: the files, in order; or one tar archive, from which nothing is extracted to disk.
        shape: shape (C, H, W) of every image.
        members: names of the batches in the tar archive, in order; empty if the files are not an archive.
    """

    files: tuple[Path, ...]
    shape: tuple[int, int, int]
    members: tuple[str, ...] = ()
    label_file: ClassVar[None] = None
    slow: ClassVar[bool] = False

    def probe(self) -> Probe:
        """See `Reader.probe`; a pickle has no header, so the whole file is read."""
        groups = tuple(len(block.rows) for block in self._batches(False))
        return Probe(sum(groups), self.shape, np.dtype(np.uint8), groups)

    def rows(
        self, start: int = 0, stop: int | None = None, *, size: int | None = None, labels: bool = False
    ) -> Iterator[Block]:
        """See `Reader.rows`."""
        first = 0
        for block in self._batches(labels):
            rows, low = np.asarray(block.rows), max(start - first, 0)
            for part in cut(rows, low, None if stop is None else max(stop - first, 0), size, block.labels):
                yield Block(first + part.start, part.rows, part.labels)
            first += len(rows)

    def _batches(self, labels: bool) -> Iterator[Block]:
        """Read every batch whole; the rows of each are counted from 0."""
        if self.members:
            found = _tar_members(self.files[0], self.members)
            yield from (_batch(found[name], f"{self.files[0]}:{name}", self.shape) for name in self.members)
            return
        for path in self.files:
            if path.suffix == ".npz":
                yield from Npz(path, shape=self.shape).rows(labels=labels)
            else:
                yield _batch(path.read_bytes(), path, self.shape)


def _tar_members(path: Path, members: Sequence[str]) -> dict[str, bytes]:
    found: dict[str, bytes] = {}
    with reading(path, "tar archive"), tarfile.open(path) as archive:
        for member in archive:
            name = member.name.rsplit("/", 1)[-1]
            if name in members and (content := archive.extractfile(member) if member.isfile() else None):
                need_memory((member.size,), path)
                found[name] = content.read()
    if missing := [name for name in members if name not in found]:
        raise DataError(f"{path}: has no {missing[0]} inside")
    return found


def _batch(data: bytes, where: object, shape: tuple[int, int, int]) -> Block:
    with reading(where, "Python batch"):
        content = _Machine(where).run(data)
    if not isinstance(content, dict):
        raise DataError(f"{where}: holds a {type(content).__name__} where a Python batch holds a dict")
    content = {k.decode("latin1") if isinstance(k, bytes) else str(k): v for k, v in content.items()}
    pixels = content.get("data")
    if not isinstance(pixels, _Array) or pixels.values.dtype != np.uint8:
        raise DataError(f"{where}: has no uint8 array under 'data', as a Python batch of images has")
    array, size = pixels.values, int(np.prod(shape))
    if array.ndim != 2 or array.shape[1] != size or not len(array):
        raise DataError(f"{where}: 'data' has shape {by(array.shape)}; N x {size} is needed")
    labels = content.get("labels", content.get("fine_labels"))
    if isinstance(labels, list) and not all(isinstance(label, int) for label in labels):
        raise DataError(f"{where}: 'labels' are not whole numbers")
    with reading(where, "Python batch"):
        numbers = labels.values if isinstance(labels, _Array) else np.array(labels, np.int64) if labels else None
    found = None if numbers is None else as_labels(numbers, len(array), f"{where}['labels']")
    return Block(0, array.reshape(-1, *shape), found)


# --- pickles -----

_VALUES = {
    *("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT"),
    *("STRING", "BINSTRING", "SHORT_BINSTRING", "UNICODE", "SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8"),
    *("BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8"),
}
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_EMPTY: dict[str, Callable[[], Any]] = {"EMPTY_DICT": dict, "EMPTY_LIST": list, "EMPTY_TUPLE": tuple}
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
_PLAIN_TYPE = re.compile(r"b1|[iu][1248]|f[248]")


@dataclass
class _Type:
    """A NumPy type under construction."""

    name: str
    order: str = "|"

    @property
    def dtype(self) -> np.dtype[Any]:
        return np.dtype(self.order.replace("|", "=") + self.name)


@dataclass
class _Array:
    """An array under construction; the pickle never gets a reference to the array itself."""

    values: NDArray[Any] = field(default_factory=lambda: np.empty(0, np.uint8))


class _Machine:
    """An interpreter of the instructions that make up pickled dicts of numbers, text and arrays."""

    def __init__(self, where: object) -> None:
        self.where = where
        self.stack: list[Any] = []
        self.marks: list[int] = []
        self.memo: dict[int, Any] = {}
        self.bytes_left = 0

    def run(self, data: bytes) -> Any:
        """Return the object that the pickle holds."""
        self.bytes_left = 2 * len(data)  # Python 3 encodes the bytes of an array before it makes the array
        for opcode, argument, _ in pickletools.genops(data):
            self.step(opcode.name, argument)
        return self.stack.pop()

    def step(self, name: str, value: Any) -> None:
        """Carry out one instruction."""
        stack, memo = self.stack, self.memo
        if name in _VALUES:
            stack.append(value)
        elif name in _CONSTANTS:
            stack.append(_CONSTANTS[name])
        elif name in _EMPTY:
            stack.append(_EMPTY[name]())
        elif name in ("PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"):
            memo[len(memo) if value is None else value] = stack[-1]
        elif name in ("GET", "BINGET", "LONG_BINGET"):
            stack.append(memo[value])
        elif name == "MARK":
            self.marks.append(len(stack))
        elif name in _TUPLES:
            stack[-_TUPLES[name] :] = [tuple(stack[-_TUPLES[name] :])]
        elif name in ("TUPLE", "LIST", "DICT"):
            items = self.since_mark()
            stack.append(tuple(items) if name == "TUPLE" else items if name == "LIST" else _pairs(items))
        elif name in ("APPEND", "APPENDS"):
            items = [stack.pop()] if name == "APPEND" else self.since_mark()
            _of(list, stack[-1]).extend(items)
        elif name in ("SETITEM", "SETITEMS"):
            items = [stack.pop(-2), stack.pop()] if name == "SETITEM" else self.since_mark()
            _of(dict, stack[-1]).update(_pairs(items))
        elif name in ("GLOBAL", "STACK_GLOBAL"):
            stack.append(self.constructor(value.split(" ") if value else [stack.pop(-2), stack.pop()]))
        elif name == "REDUCE":
            arguments = _of(tuple, stack.pop())
            stack.append(_of(_Constructor, stack.pop()).make(*arguments))
            self.spend(stack[-1])
        elif name == "BUILD":
            state = _of(tuple, stack.pop())
            _set_state(stack[-1], *state)
            self.spend(stack[-1])
        elif name not in ("PROTO", "FRAME", "STOP"):
            raise DataError(f"{self.where}: the file uses {name}, which a batch of images has no use for")

    def since_mark(self) -> list[Any]:
        """Remove and return everything above the last mark on the stack."""
        at = self.marks.pop()
        items = self.stack[at:]
        del self.stack[at:]
        return items

    def spend(self, made: Any) -> None:
        """Refuse a file that makes many more bytes than it has, even if it makes the same bytes repeatedly."""
        self.bytes_left -= made.values.nbytes if isinstance(made, _Array) else len(made) if type(made) is bytes else 0
        if self.bytes_left < 0:
            raise ValueError("it makes many more bytes than it has")

    def constructor(self, names: Sequence[str]) -> _Constructor:
        """Return the substitute for a name in a module; nothing is imported."""
        module, name = names
        make = _CONSTRUCTORS.get((module.replace("numpy._core", "numpy.core"), name))
        if make is None:
            raise DataError(
                f"{self.where}: the file asks for {_in_a_line(f'{module}.{name}')}, which a batch of images has no use"
                " for; it was not run"
            )
        return _Constructor(make)


@dataclass(frozen=True)
class _Constructor:
    make: Callable[..., Any]


def _in_a_line(name: str) -> str:
    """Return a name that a damaged file may hold, without line breaks and not too long."""
    return ascii(name)[1:-1][:160]


def _of(kind: type[Any], value: Any) -> Any:
    if type(value) is not kind:
        raise ValueError(f"it holds a {type(value).__name__} where a {kind.__name__.strip('_')} is needed")
    return value


def _pairs(items: list[Any]) -> dict[Any, Any]:
    if not all(isinstance(key, str | bytes | int) for key in items[::2]):  # the hash of a deep tuple ends the process
        raise ValueError("a key is neither text nor a number")
    return dict(zip(items[::2], items[1::2], strict=True))


def _latin1(text: Any, encoding: Any) -> bytes:
    if encoding not in ("latin1", "latin-1"):
        raise ValueError("it holds text in another encoding than latin1")
    return bytes(_of(str, text).encode("latin1"))


def _type(name: Any, *flags: Any) -> _Type:
    text = name.decode("latin1") if isinstance(name, bytes) else name
    if not isinstance(text, str) or not _PLAIN_TYPE.fullmatch(text):
        raise ValueError(f"arrays of type {text!r:.20} are not read")
    return _Type(text)


def _array(shape: Any, kind: Any, by_columns: Any, data: Any) -> NDArray[Any]:
    """Create an array from exactly these bytes."""
    dtype = _of(_Type, kind).dtype
    raw = data.encode("latin1") if isinstance(data, str) else data  # as Python 2 wrote it
    if not isinstance(raw, bytes | bytearray) or not all(type(n) is int and n >= 0 for n in _of(tuple, shape)):
        raise ValueError("an array is not of bytes and whole numbers")
    if len(shape) > 4 or int(np.prod(shape, dtype=object)) * dtype.itemsize != len(raw):
        raise ValueError(f"an array of {len(raw):,} bytes has shape {by(shape):.60}")
    numbers = np.frombuffer(raw, dtype).copy()  # writable, as torch wants arrays
    return numbers.reshape(shape, order="F" if by_columns else "C")


def _set_state(target: Any, *state: Any) -> None:
    """Complete a type (version, byte order, ...) or an array (version, shape, type, by columns, bytes)."""
    if isinstance(target, _Type) and len(state) > 1 and state[1] in ("|", "<", ">", "="):
        target.order = state[1]
    elif isinstance(target, _Array) and len(state) == 5:
        target.values = _array(*state[1:])
    else:
        raise ValueError(f"the state of a {type(target).__name__} is not one of an array")


def _never(*_: Any) -> None:
    raise ValueError("it calls numpy.ndarray, which may only be named")


def _scalar(kind: Any, data: Any) -> Any:
    return _array((1,), kind, False, data)[0].item()


_CONSTRUCTORS: dict[tuple[str, str], Callable[..., Any]] = {
    ("numpy", "ndarray"): _never,
    ("numpy", "dtype"): _type,
    ("_codecs", "encode"): _latin1,
    ("numpy.core.multiarray", "_reconstruct"): lambda *_: _Array(),
    ("numpy.core.multiarray", "scalar"): _scalar,
    ("numpy.core.numeric", "_frombuffer"): lambda data, kind, shape, order: _Array(
        _array(shape, kind, order == "F", data)
    ),
}
