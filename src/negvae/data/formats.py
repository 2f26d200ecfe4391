"""Readers: one file or folder in, uint8 images N x C x H x W out.

Every reader raises one-line `ValueError`s that name the file. None of them runs anything found in a file:
object arrays are refused, and Python batches go through an unpickler that can build arrays and nothing else.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import lzma
import os
import pickle
import re
import tarfile
import warnings
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from types import FunctionType
from typing import IO, Any, cast

import numpy as np
from PIL import Image

IMAGE_ENDINGS = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".gif", ".tif", ".tiff", ".ppm", ".pgm")
_IMAGE_FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "PPM")
MAX_PIXELS = 64_000_000
_MMAP_BYTES = 64_000_000

# What damaged or foreign files make the standard readers raise. MemoryError: a header may claim any size.
READ_ERRORS = (
    OSError,
    EOFError,
    ValueError,
    TypeError,
    KeyError,
    IndexError,
    AttributeError,
    SyntaxError,
    ArithmeticError,
    NotImplementedError,
    RuntimeError,
    MemoryError,
    zlib.error,
    lzma.LZMAError,
    zipfile.BadZipFile,
    tarfile.TarError,
    pickle.UnpicklingError,
    Image.DecompressionBombError,
)


@dataclass(frozen=True)
class Decoded:
    """What a reader found: uint8 images N x C x H x W, int64 labels or None, and facts worth showing."""

    images: np.ndarray
    labels: np.ndarray | None = None
    notes: tuple[str, ...] = ()


class DataError(ValueError):
    """A file that cannot be used; the message is one line that names it."""


@contextmanager
def reading(where: object, what: str) -> Iterator[None]:
    """Turn whatever a damaged file makes a library raise into one line naming the file."""
    try:
        yield
    except (DataError, FileNotFoundError, PermissionError):
        raise
    except READ_ERRORS as error:
        detail = " ".join(str(error).split()) or type(error).__name__
        raise DataError(f"{where}: not a readable {what} ({detail[:160]})") from None


def pixel_sha256(images: np.ndarray) -> str:
    """SHA-256 of uint8 N x C x H x W images, taken over the bytes in N x H x W x C order, as hex."""
    digest = hashlib.sha256()
    if images.shape[1] == 1 and images.flags.c_contiguous:
        digest.update(images.reshape(-1).data)
        return digest.hexdigest()
    for start in range(0, len(images), 4096):
        digest.update(np.ascontiguousarray(images[start : start + 4096].transpose(0, 2, 3, 1)).data)
    return digest.hexdigest()


def image_digests(images: np.ndarray) -> set[str]:
    """The first 8 hex digits of every image's own SHA-256 (H x W x C order)."""
    return {hashlib.sha256(image.transpose(1, 2, 0).tobytes()).hexdigest()[:8] for image in images}


def file_md5(path: Path) -> str:
    """MD5 of a file, as hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()


# --- arrays -----


def as_images(array: np.ndarray, where: object) -> Decoded:
    """Images from an array of any accepted type and layout.

    Accepted are uint8, and floats within [0, 1] (multiplied by 255 and rounded); N x H x W, N x H x W x C and
    N x C x H x W with C 1 or 3. Where axis 1 and the last axis could both be C, axis 1 is.

    Args:
        array: The array.
        where: What to call it in a message.

    Raises:
        ValueError: Another type, layout or range; or no images.
    """
    if array.dtype != np.uint8 and array.dtype.kind != "f":
        raise DataError(f"{where}: images are {array.dtype}; uint8, or floats within [0, 1], are accepted")
    shape = " x ".join(map(str, array.shape)) or "a single number"
    accepted = "N x H x W, N x H x W x C and N x C x H x W with C 1 or 3 are accepted"
    if array.size == 0:
        raise DataError(f"{where}: holds no images (shape {shape})")
    if array.ndim == 3 and array.shape[-1] in (1, 3, 4):
        raise DataError(f"{where}: shape {shape} looks like one H x W x C image; {accepted}")
    if array.ndim == 3:
        array = array[:, None]
    elif array.ndim == 4 and array.shape[1] in (1, 3):
        pass
    elif array.ndim == 4 and array.shape[-1] in (1, 3):
        array = array.transpose(0, 3, 1, 2)
    else:
        alpha = " (a fourth channel, alpha, is not: drop it)" if array.ndim == 4 and 4 in array.shape[1:] else ""
        raise DataError(f"{where}: images have shape {shape}; {accepted}{alpha}")
    if array.dtype == np.uint8:
        return Decoded(np.ascontiguousarray(array))
    return _from_unit_floats(array, where)


def _from_unit_floats(array: np.ndarray, where: object) -> Decoded:
    """Floats within [0, 1] as uint8, in chunks; says so where that loses something."""
    images = np.empty(array.shape, np.uint8)
    inexact = 0
    for start in range(0, len(array), 4096):
        chunk = array[start : start + 4096].astype(np.float64)
        if not (chunk.min() >= 0 and chunk.max() <= 1):  # also catches NaN
            finite = chunk[np.isfinite(chunk)]
            found = f"{finite.min():g} to {finite.max():g}" if finite.size else "no finite number"
            odd = " and NaN or infinity" if finite.size < chunk.size else ""
            raise DataError(f"{where}: float images must lie within [0, 1]; found {found}{odd}")
        scaled = chunk * 255
        rounded = np.rint(scaled)
        # float16 represents k/255 to within 0.06 of a gray level.
        inexact += int(np.any(np.abs(scaled - rounded) > 0.07, axis=(1, 2, 3)).sum())
        images[start : start + 4096] = rounded
    if not inexact:
        return Decoded(images)
    return Decoded(images, None, (f"{where}: float pixels rounded to 8 bits ({inexact:,} images changed)",))


def as_labels(array: np.ndarray, count: int, where: object) -> np.ndarray:
    """Labels as int64, N; N x 1 is accepted, and text is numbered in sorted order.

    Raises:
        ValueError: Not one label per image, or not whole numbers.
    """
    labels = np.asarray(array)
    if labels.ndim == 2 and 1 in labels.shape:
        labels = labels.reshape(-1)
    if labels.shape != (count,):
        shape = " x ".join(map(str, labels.shape)) or "a single number"
        raise DataError(f"{where}: labels have shape {shape}; one label for each of the {count:,} images needed")
    if labels.dtype.kind in "US":
        labels = np.unique(labels, return_inverse=True)[1]
    if labels.dtype.kind == "f" and np.array_equal(labels, np.rint(labels)):
        labels = labels.astype(np.int64)
    if labels.dtype.kind not in "iub":
        raise DataError(f"{where}: labels are {labels.dtype}; whole numbers are needed")
    return labels.astype(np.int64)


def _need_memory(count: int, shape: tuple[int, ...], where: object) -> None:
    """Refuse what cannot fit in this machine's memory, before it is tried."""
    need = count * int(np.prod(shape, dtype=np.int64))
    try:
        have = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):
        return
    if need > have:
        raise DataError(
            f"{where}: {count:,} images of {' x '.join(map(str, shape))} need {need / 2**30:.1f} GiB of "
            f"memory and this machine has {have / 2**30:.1f}; make the images smaller or pass a limit"
        )


# --- IDX -----


def _open_maybe_gzip(path: Path) -> IO[bytes]:
    """A file, gunzipped where it starts with gzip's two bytes, whatever its name."""
    file = path.open("rb")
    zipped = file.read(2) == b"\x1f\x8b"
    file.seek(0)
    if not zipped:
        return file
    file.close()
    return cast(IO[bytes], gzip.open(path, "rb"))


def idx_shape(path: Path) -> tuple[int, ...]:
    """The shape that an IDX file's header announces.

    Raises:
        ValueError: Not an IDX file of unsigned bytes.
    """
    with reading(path, "IDX file"), _open_maybe_gzip(path) as file:
        return _idx_header(file, path)


def _idx_header(file: IO[bytes], path: Path) -> tuple[int, ...]:
    magic = file.read(4)
    if len(magic) < 4 or magic[:2] != b"\0\0" or magic[2] != 8 or magic[3] not in (1, 3):
        raise DataError(
            f"{path}: starts with 0x{magic.hex()}; an IDX file of unsigned bytes starts with "
            "0x00000803 (images) or 0x00000801 (labels)"
        )
    rank = magic[3]
    sizes = file.read(4 * rank)
    if len(sizes) < 4 * rank:
        raise DataError(f"{path}: ends within the IDX header")
    return tuple(int.from_bytes(sizes[i : i + 4], "big") for i in range(0, 4 * rank, 4))


def read_idx(path: Path, rank: int) -> np.ndarray:
    """The uint8 array of an IDX file, gzipped or not.

    Args:
        path: The file.
        rank: 3 for images (N x H x W), 1 for labels (N).

    Raises:
        ValueError: Not such a file, or one that is cut short or too long.
    """
    with reading(path, "IDX file"), _open_maybe_gzip(path) as file:
        shape = _idx_header(file, path)
        if len(shape) != rank:
            kinds = {1: "labels", 3: "images"}
            raise DataError(f"{path}: holds {kinds[len(shape)]} where {kinds[rank]} are needed")
        size = int(np.prod(shape, dtype=np.int64))
        _need_memory(shape[0], shape[1:], path)
        array = np.empty(size, np.uint8)
        view, filled = memoryview(array.data), 0
        # A gzip stream is shorter than the header says or longer; both mean damage.
        while filled < size and (got := file.readinto(view[filled : filled + 2**24])):  # type: ignore[attr-defined]
            filled += got
        if filled < size or file.read(1):
            found = f"only {filled:,}" if filled < size else "more"
            raise DataError(f"{path}: its header announces {size:,} bytes of data and it holds {found}")
    return array.reshape(shape)


def read_idx_pair(images: Path, labels: Path | None, *, transposed: bool = False) -> Decoded:
    """Images and labels from IDX files.

    Args:
        images: The image file.
        labels: The label file, if there is one.
        transposed: Turn each image over its diagonal, as EMNIST's need.

    Raises:
        ValueError: A damaged file, or labels that do not fit.
    """
    pixels = read_idx(images, 3)
    if pixels.size == 0:
        raise DataError(f"{images}: holds no images")
    if transposed:
        pixels = np.ascontiguousarray(pixels.transpose(0, 2, 1))
    found = None if labels is None else as_labels(read_idx(labels, 1), len(pixels), labels)
    return Decoded(pixels[:, None], found)


# --- NumPy -----

_SPLIT_KEYS = {"train": ("x_train", "train_images", "train"), "test": ("x_test", "test_images", "test")}
_SPLIT_LABELS = {"train": ("y_train", "train_labels"), "test": ("y_test", "test_labels")}
_IMAGE_KEYS = ("images", "imgs", "x", "X", "data", "arr_0")
_LABEL_KEYS = ("labels", "label", "y", "Y", "targets")


def npz_splits(path: Path) -> set[str]:
    """The splits ("train", "test") that the keys of an .npz name; empty where it holds one set of images."""
    keys = _npz_keys(path)
    return {split for split, choices in _SPLIT_KEYS.items() if keys & set(choices)}


def _npz_keys(path: Path) -> set[str]:
    with reading(path, ".npz archive"), zipfile.ZipFile(path) as archive:
        return {name.removesuffix(".npy") for name in archive.namelist()}


def npz_shape(path: Path, split: str) -> tuple[int, ...]:
    """The shape of the images of an .npz, from the header alone.

    Raises:
        ValueError: No readable image array.
    """
    key = image_key(path, split)
    with reading(path, ".npz archive"), zipfile.ZipFile(path) as archive, archive.open(key + ".npy") as file:
        version = np.lib.format.read_magic(file)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        return tuple(read(file)[0])


def image_key(path: Path, split: str) -> str:
    """The key of the images in an .npz (see `read_npz`).

    Raises:
        ValueError: No archive, or no array that could be they.
    """
    keys = _npz_keys(path)
    for key in (*_SPLIT_KEYS.get(split, ()), *_IMAGE_KEYS):
        if key in keys:
            return str(key)
    rest = sorted(keys - set(_LABEL_KEYS) - {k for names in _SPLIT_LABELS.values() for k in names})
    if len(rest) == 1:
        return rest[0]
    raise DataError(
        f"{path}: no image array for the {split} split among ({', '.join(sorted(keys)[:8]) or 'no keys'}); "
        "call it images, x, data, arr_0, or x_train and x_test"
    )


def read_npz(path: Path, split: str = "train", shape: tuple[int, int, int] | None = None) -> Decoded:
    """Images (and labels) from an .npz.

    Args:
        path: The archive. Images are looked for under x_<split>, <split>_images, <split>, then images, imgs,
            x, X, data, arr_0, then the only array there is; labels under y_<split>, <split>_labels, then
            labels, label, y, Y, targets.
        split: "train" or "test".
        shape: C, H, W; lets rows of C*H*W numbers be read as images.

    Raises:
        ValueError: Damaged, object arrays, or no array that could be images.
    """
    key = image_key(path, split)
    with reading(path, ".npz archive"), np.load(path, allow_pickle=False) as archive:
        array = np.asarray(archive[key])
        ordinary = key not in _SPLIT_KEYS.get(split, ())
        label_keys = _LABEL_KEYS if ordinary else _SPLIT_LABELS[split]
        label_key = next((k for k in label_keys if k in archive.files), None)
        labels = None if label_key is None else np.asarray(archive[label_key])
    if shape and array.ndim == 2 and array.shape[1] == int(np.prod(shape)):
        array = array.reshape(-1, *shape)
    decoded = as_images(array, f"{path}[{key}]")
    if labels is not None:
        labels = as_labels(labels, len(decoded.images), f"{path}[{label_key}]")
    return Decoded(decoded.images, labels, decoded.notes)


def read_npz_pair(images: Path, labels: Path | None) -> Decoded:
    """Images and labels from two .npz files of one array each.

    Raises:
        ValueError: A damaged file, or labels that do not fit.
    """
    decoded = read_npz(images)
    if labels is None:
        return decoded
    with reading(labels, ".npz archive"), np.load(labels, allow_pickle=False) as archive:
        array = np.asarray(archive[archive.files[0]])
    return Decoded(decoded.images, as_labels(array, len(decoded.images), labels), decoded.notes)


def read_npy(path: Path) -> Decoded:
    """Images from an .npy; a big uint8 file in a direct layout stays on disk (copy-on-write memory map).

    Raises:
        ValueError: Damaged, an object array, or not images.
    """
    with reading(path, ".npy file"), path.open("rb") as file:
        if file.read(6) != b"\x93NUMPY":
            raise DataError(f"{path}: does not start as an .npy file does (np.save writes them, np.savez .npz)")
        file.seek(0)
        big = path.stat().st_size > _MMAP_BYTES
        array = np.load(path if big else file, mmap_mode="c" if big else None, allow_pickle=False)
    return as_images(array, path)


# --- Python batches -----


def _latin1(text: str, encoding: str = "latin1") -> bytes:
    if encoding not in ("latin1", "latin-1"):
        raise pickle.UnpicklingError(f"text in encoding {encoding}")
    return text.encode("latin1")


_ARRAY_MODULES = ("numpy.core.multiarray", "numpy._core.multiarray")
_BUFFER_MODULES = ("numpy.core.numeric", "numpy._core.numeric")
_ALLOWED: dict[tuple[str, str], Any] = {
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
    ("_codecs", "encode"): _latin1,
    **{(module, "_reconstruct"): np.empty(0).__reduce__()[0] for module in _ARRAY_MODULES},
    **{(module, "scalar"): np.float32(0).__reduce__()[0] for module in _ARRAY_MODULES},
    **{(module, "_frombuffer"): np.empty(1).__reduce_ex__(5)[0] for module in _BUFFER_MODULES},
}


class _ArrayUnpickler(pickle.Unpickler):
    """Builds NumPy arrays and plain containers; anything else in the file is an error, not a call."""

    def find_class(self, module: str, name: str) -> Any:
        found = _ALLOWED.get((module, name))
        if found is None:
            raise DataError(
                f"the file asks for {module}.{name}, which a batch of images has no use for; it was not run"
            )
        # A pickle may also set attributes on what it asks for: hand out throwaway functions only.
        return (lambda *args: found(*args)) if isinstance(found, FunctionType) else found


def _unpickle(data: bytes, where: object) -> dict[str, Any]:
    # latin1 is the one encoding in which arrays written by Python 2 come out as they were.
    with reading(where, "Python batch"), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # old pickles spell dtypes in ways NumPy has come to frown upon
        try:
            content = _ArrayUnpickler(io.BytesIO(data), encoding="latin1").load()
        except DataError as error:
            raise DataError(f"{where}: {error}") from None
        if not isinstance(content, dict):
            raise DataError(f"{where}: holds a {type(content).__name__} where a Python batch holds a dict")
        return {k.decode("latin1") if isinstance(k, bytes) else str(k): v for k, v in content.items()}


def _from_batch(content: dict[str, Any], where: object, shape: tuple[int, int, int]) -> Decoded:
    """Images from the dict of one batch: "data" N x (C*H*W), channels first; "labels"."""
    array = content.get("data")
    if not isinstance(array, np.ndarray) or array.dtype != np.uint8:
        raise DataError(f"{where}: has no uint8 array under 'data', as a Python batch of images has")
    if array.ndim != 2 or array.shape[1] != int(np.prod(shape)) or not len(array):
        wanted = int(np.prod(shape))
        raise DataError(f"{where}: 'data' has shape {' x '.join(map(str, array.shape))}; N x {wanted} is needed")
    labels = content.get("labels", content.get("fine_labels"))
    found = None if labels is None else as_labels(np.asarray(labels), len(array), f"{where}['labels']")
    return Decoded(array.reshape(-1, *shape), found)


def read_batches(paths: Sequence[Path], shape: tuple[int, int, int]) -> Decoded:
    """Images from Python batches (or .npz files with the same keys), one after the other.

    Raises:
        ValueError: Damaged, not a batch, or a file that asks for anything but arrays.
    """
    parts = []
    for path in paths:
        if path.suffix == ".npz":
            parts.append(read_npz(path, shape=shape))
        else:
            parts.append(_from_batch(_unpickle(path.read_bytes(), path), path, shape))
    return join(parts)


def read_batch_tar(path: Path, members: Sequence[str], shape: tuple[int, int, int]) -> Decoded:
    """Images from the batches inside a tar archive; nothing is extracted.

    Raises:
        ValueError: A damaged archive or batch, or a missing member.
    """
    found: dict[str, bytes] = {}
    with reading(path, "tar archive"), tarfile.open(path) as archive:
        for member in archive:
            name = member.name.rsplit("/", 1)[-1]
            if name in members and member.isfile():
                found[name] = archive.extractfile(member).read()  # type: ignore[union-attr]
    missing = [name for name in members if name not in found]
    if missing:
        raise DataError(f"{path}: has no {missing[0]} inside")
    return join([_from_batch(_unpickle(found[n], f"{path}:{n}"), f"{path}:{n}", shape) for n in members])


def join(parts: Sequence[Decoded]) -> Decoded:
    """Several pieces of one split as one; labels only where every piece has them."""
    if len(parts) == 1:
        return Decoded(np.ascontiguousarray(parts[0].images), parts[0].labels, parts[0].notes)
    labels = [part.labels for part in parts if part.labels is not None]
    return Decoded(
        np.concatenate([part.images for part in parts]),
        np.concatenate(labels) if len(labels) == len(parts) else None,
        tuple(dict.fromkeys(note for part in parts for note in part.notes)),
    )


# --- MATLAB -----


def read_mat(path: Path) -> Decoded:
    """Images from SVHN's MATLAB files: "X" H x W x 3 x N, "y" N x 1 with 10 for the digit 0.

    Raises:
        ValueError: Damaged, or without such an X.
    """
    from scipy.io import loadmat

    with reading(path, "MATLAB file"), path.open("rb") as file:
        content = loadmat(file, variable_names=["X", "y"])
    array = content.get("X")
    if not isinstance(array, np.ndarray) or array.dtype != np.uint8 or array.ndim not in (3, 4) or not array.size:
        raise DataError(f"{path}: has no uint8 array X of H x W x 3 x N, as SVHN's files have")
    if array.ndim == 3:  # MATLAB drops a last axis of one
        array = array[..., None]
    if array.shape[2] != 3:
        raise DataError(f"{path}: X has shape {' x '.join(map(str, array.shape))}; H x W x 3 x N is needed")
    labels = content.get("y")
    found = None if labels is None else as_labels(labels, array.shape[3], f"{path}[y]") % 10
    return Decoded(np.ascontiguousarray(array.transpose(3, 2, 0, 1)), found)


def mat_count(path: Path) -> int:
    """How many images a MATLAB file announces.

    Raises:
        ValueError: Damaged, or without X.
    """
    from scipy.io import whosmat

    with reading(path, "MATLAB file"), path.open("rb") as file:
        shapes = {name: shape for name, shape, _ in whosmat(file)}
        return int((*shapes["X"], 1)[3])


# --- encoded images -----


def decode_image(source: Callable[[], IO[bytes]], where: str, max_pixels: int = MAX_PIXELS) -> tuple[np.ndarray, str]:
    """One encoded image as H x W x C uint8, and a word on what was done to it, if anything.

    Raises:
        ValueError: It cannot be read whole, claims more than `max_pixels`, or has more than 8 bits.
    """
    with reading(where, "image"), source() as file, Image.open(file, formats=_IMAGE_FORMATS) as image:
        if image.width * image.height > max_pixels:
            raise DataError(
                f"{where}: claims {image.width:,} x {image.height:,} pixels; at most {max_pixels:,} are accepted"
            )
        mode, done = image.mode, ""
        if mode[0] in "IF":
            raise DataError(f"{where}: has {mode} pixels, more than 8 bits; convert it to 8-bit gray or RGB first")
        frames = getattr(image, "n_frames", 1)
        image.load()
        if frames > 1:
            done = "first frame of several taken"
        plain: Image.Image = image
        if mode == "P" or mode == "PA":
            plain = image.convert("RGBA" if mode == "PA" or "transparency" in image.info else "RGB")
        elif mode in ("1", "L", "LA", "La", "RGB", "RGBA", "RGBa"):
            if mode in ("1", "La", "RGBa"):
                plain = image.convert({"1": "L", "La": "LA", "RGBa": "RGBA"}[mode])
            if "transparency" in image.info:
                plain = plain.convert({"L": "LA", "RGB": "RGBA"}.get(plain.mode, plain.mode))
        else:
            plain = image.convert("RGB")
        pixels = np.asarray(plain)
    if plain.mode in ("LA", "RGBA"):
        color, alpha = pixels[..., :-1], pixels[..., -1:].astype(np.uint16)
        if alpha.min() < 255:
            done = "transparency laid over white"
            mixed = (color.astype(np.uint32) * alpha + 255 * (255 - alpha.astype(np.uint32)) + 127) // 255
            color = mixed.astype(np.uint8)
        pixels = color
    return (pixels if pixels.ndim == 3 else pixels[..., None]), done


Encoded = tuple[str, Callable[[], IO[bytes]]]


def decode_images(encoded: Iterable[Encoded], count: int, where: object) -> tuple[np.ndarray, tuple[str, ...]]:
    """Decode images of one size into uint8 N x C x H x W, in order.

    Gray stays one channel unless the images are mixed, in which case all become RGB; palettes become RGB;
    1-bit images become 0 and 255; CMYK and the like become RGB; transparency is laid over white; of an
    animation the first frame is taken. Orientation tags are not applied.

    Args:
        encoded: Pairs of what to call the image and a function that opens it.
        count: How many there are, at least 1.
        where: What to call the whole.

    Returns:
        The images, and notes.

    Raises:
        ValueError: An image cannot be read whole, is too large or of more than 8 bits; or sizes differ.
    """
    out: np.ndarray = np.empty((0, 0, 0, 0), np.uint8)
    first = ""
    done: dict[str, int] = {}
    mixed = False
    stream = iter(encoded)
    # Pillow warns of large images before they are refused here; one message is enough.
    with warnings.catch_warnings(), ThreadPoolExecutor(2) as pool:
        warnings.simplefilter("ignore")
        for i in range(0, count, 64):
            chunk = list(islice(stream, min(64, count - i)))
            # Threads cost more than they save on thumbnails, where Python and not the codec is the work.
            large = out.shape[2] * out.shape[3] >= 128 * 128
            run = pool.map if large else map
            for j, (pixels, what) in enumerate(run(lambda item: decode_image(item[1], item[0]), chunk), start=i):
                name = chunk[j - i][0]
                height, width, channels = pixels.shape
                if j == 0:
                    first = name
                    _need_memory(count, pixels.shape, where)
                    out = np.empty((count, channels, height, width), np.uint8)
                if (height, width) != out.shape[2:]:
                    raise DataError(
                        f"{where}: images differ in size: {first} is {out.shape[3]} x {out.shape[2]}, {name} "
                        f"is {width} x {height} (width x height); resize them to one size first"
                    )
                if channels > out.shape[1]:  # the first color image among gray ones
                    _need_memory(count, (3, height, width), where)
                    out = np.repeat(out, 3, axis=1)
                    mixed = True
                mixed |= channels < out.shape[1]
                out[j] = pixels.transpose(2, 0, 1)
                if what:
                    done[what] = done.get(what, 0) + 1
    notes = [f"{where}: {what} in {n:,} of {count:,} images" for what, n in sorted(done.items())]
    if mixed:
        notes.append(f"{where}: gray and color images are mixed; the gray ones are served as RGB")
    return out, tuple(notes)


# --- folders of images -----


def image_files(folder: Path) -> list[Path]:
    """The image files below a folder, by ending, in sorted order; hidden files and folders are left out."""
    found = []
    for parent, folders, files in os.walk(folder):
        folders[:] = sorted(f for f in folders if not f.startswith((".", "__MACOSX")))
        found += [Path(parent, f) for f in files if f.lower().endswith(IMAGE_ENDINGS) and not f.startswith(".")]
    return sorted(found, key=lambda path: path.relative_to(folder).as_posix())


def read_folder(folder: Path, limit: int | None = None) -> Decoded:
    """All images below a folder; where every image lies in a subfolder, the subfolders number the labels.

    Args:
        folder: The folder.
        limit: Read only the first so many files.

    Raises:
        ValueError: No images, an unreadable one, or sizes that differ.
    """
    files = image_files(folder)
    if not files:
        raise DataError(f"{folder}: holds no images ({', '.join(e[1:] for e in IMAGE_ENDINGS)})")
    tops = [path.relative_to(folder).parts for path in files]
    labels = None
    if all(len(parts) > 1 for parts in tops):
        labels = np.unique([parts[0] for parts in tops], return_inverse=True)[1].astype(np.int64)[:limit]
    total, files = len(files), files[:limit]
    images, notes = decode_images(
        ((str(path), lambda path=path: path.open("rb")) for path in files),  # type: ignore[misc]
        len(files),
        folder,
    )
    if len(files) < total:
        notes = (*notes, f"{folder}: the first {len(files):,} of {total:,} images")
    return Decoded(images, labels, notes)


# --- Parquet -----

_LABEL_COLUMNS = ("label", "labels", "fine_label", "y", "target")


def parquet_count(paths: Sequence[Path]) -> int:
    """How many rows Parquet files hold, from their footers.

    Raises:
        ValueError: Not a Parquet file.
    """
    import pyarrow.parquet as pq

    count = 0
    for path in paths:
        with reading(path, "Parquet file"), pq.ParquetFile(path) as file:
            count += file.metadata.num_rows
    return count


def image_column(schema: Any, where: object) -> str:
    """The column that holds encoded images: "image" or "img", or else the only one that could."""
    import pyarrow as pa

    def fits(kind: Any) -> bool:
        if pa.types.is_struct(kind):
            return any(kind.field(i).name == "bytes" for i in range(kind.num_fields))
        return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))

    fitting = [column.name for column in schema if fits(column.type)]
    for name in ("image", "img", "images", "jpg", "png"):
        if name in fitting:
            return name
    if len(fitting) == 1:
        return str(fitting[0])
    raise DataError(
        f"{where}: no image column among ({', '.join(schema.names[:8])}); call it 'image', of type binary or "
        "struct(bytes, path)"
    )


def _parquet_rows(paths: Sequence[Path], limit: int, labels: list[np.ndarray]) -> Iterator[Encoded]:
    """Encoded images, row batch by row batch; `labels` is filled along the way."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    row = 0
    for path in paths:
        with reading(path, "Parquet file"), pq.ParquetFile(path) as file:
            image = image_column(file.schema_arrow, path)
            label = next((name for name in _LABEL_COLUMNS if name in file.schema_arrow.names), None)
            for batch in file.iter_batches(batch_size=1024, columns=[c for c in (image, label) if c]):
                if row >= limit:
                    return
                batch = batch.slice(0, limit - row)
                column = batch.column(image)
                values = column.field("bytes") if pa.types.is_struct(column.type) else column
                if label is not None:
                    labels.append(np.asarray(batch.column(label).to_numpy(zero_copy_only=False)))
                for value in values:
                    data = value.as_py()
                    if data is None:
                        raise DataError(f"{path}: row {row} holds no image bytes (links to files are not followed)")
                    yield f"{path} row {row}", lambda data=data: io.BytesIO(data)  # type: ignore[misc]
                    row += 1


def read_parquet(paths: Sequence[Path], limit: int | None = None) -> Decoded:
    """Images and labels from Parquet shards in Hugging Face's layout.

    Args:
        paths: The shards, in order. The images are encoded files in a column "image" or "img" (binary, or
            struct(bytes, path)), labels in "label", "labels", "fine_label", "y" or "target".
        limit: Read only the first so many rows.

    Raises:
        ValueError: Damaged, no image column, an unreadable image, or sizes that differ.
    """
    total = parquet_count(paths)
    where = paths[0] if len(paths) == 1 else paths[0].parent
    if total == 0:
        raise DataError(f"{where}: holds no images")
    count = total if limit is None else min(limit, total)
    parts: list[np.ndarray] = []
    images, notes = decode_images(_parquet_rows(paths, count, parts), count, where)
    labels = None
    if parts and sum(map(len, parts)) == count:
        whole = np.concatenate(parts)
        if whole.dtype == object:
            whole = np.asarray([str(value) for value in whole])
        labels = as_labels(whole, count, f"{where} labels")
    if count < total:
        notes = (*notes, f"{where}: the first {count:,} of {total:,} images")
    return Decoded(images, labels, notes)


def shard_note(paths: Sequence[Path]) -> str:
    """A word on shards missing from a series named -00000-of-00005; empty where none are."""
    numbered = [m for p in paths if (m := re.search(r"-(\d{5})-of-(\d{5})\.parquet$", p.name))]
    if not numbered:
        return ""
    total = max(int(m[2]) for m in numbered)
    have = len({int(m[1]) for m in numbered})
    return "" if have >= total else f"{paths[0].parent}: only {have} of {total} Parquet shards are here"
