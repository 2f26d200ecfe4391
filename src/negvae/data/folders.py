"""Folders of photos of any size: a look at the headers, the choice of a `Decoding`, and the decoded images.

What is decoded goes into a file in the user's cache, one image after the other, so that memory does not grow with the
folder. A small set is read from there into memory; a larger one is mapped, and the system keeps in memory what fits.
"""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import os
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from negvae.data.cache import cache_folder
from negvae.data.formats.base import DataError, Source, reason
from negvae.data.formats.encoded import in_order
from negvae.data.formats.quiet import without_pillows_warnings
from negvae.data.photos import raw_pixels, read_header, read_photo
from negvae.data.pillow import PhotoHeader
from negvae.decoding import Decoding
from negvae.files import replacing, state_of
from negvae.messages import counted
from negvae.spacing import evenly_spaced

LARGEST_WHOLE = 256
"""The largest side that networks take directly."""
RESIZED = 128
"""The longer side of images that are resized or padded, at most."""
TILE = 96
TILES_ACROSS = 3
"""An image is reduced until its longer side has at most so many tile sides, before it is cut into tiles."""
SMALL = 160
"""Folders whose images are typically no longer than this are not tiled."""
IN_MEMORY = 512 << 20
"""Sets of up to so many bytes are read into memory; larger ones are mapped from their file."""
KEPT = 4
"""Decodings of a folder in one way that stay in the cache: of its parts, of some of its images, and in other orders."""
_RANGE_FROM = 32
_LOOK_AT_ONCE = 64
_log = logging.getLogger("negvae.data")


@dataclass(frozen=True)
class Look:
    """What the headers of a folder's images declare.

    Attributes:
        sizes: width and height of every image that can be read, N x 2.
        channels: most channels of any image.
        bits: most bits of a channel, 8 or 16.
        broken: reason why an image cannot be read, by its name.
        turned: whether the EXIF orientation of any image says that its pixels are not stored upright.
        deep: whether any image is a TIFF with channels or pages that Pillow does not read.
    """

    sizes: NDArray[np.int64]
    channels: int
    bits: int
    broken: dict[str, str] = field(default_factory=dict)
    turned: bool = False
    deep: bool = False

    @property
    def uniform(self) -> bool:
        """Whether all images have one size."""
        return bool((self.sizes == self.sizes[0]).all())

    def describe(self, decoding: Decoding | None) -> str:
        """Describe the images, and what is made of them, in one line."""
        area = self.sizes.prod(1)
        least, most = ("x".join(map(str, self.sizes[row])) for row in (area.argmin(), area.argmax()))
        made = f"{least} as they are" if decoding is None else decoding.describe()
        broken = f"; {len(self.broken):,} broken" if self.broken else ""
        return (
            f"{counted(len(self.sizes), 'photo')}, {least if least == most else f'{least} to {most}'}: {made}{broken}"
        )


def look_at(sources: Iterable[tuple[str, Source]], where: object) -> Look:
    """Read the headers of images.

    Args:
        sources: name of each image in messages, and the image.
        where: name of the folder in error messages.

    Returns:
        What the headers declare.

    Raises:
        ValueError: if not a single image can be read.
    """
    found: list[PhotoHeader] = []
    broken: dict[str, str] = {}
    for name, result in _apply(read_header, sources, _LOOK_AT_ONCE):
        if isinstance(result, PhotoHeader):
            found.append(result)
        else:
            broken[name] = result
    if not found:
        name, why = next(iter(broken.items()), ("", "it is empty"))
        raise DataError(f"{where}: holds no image that can be read ({f'{name}: ' if name else ''}{why})")
    sizes = np.array([(each.width, each.height) for each in found], np.int64)
    channels, bits = max(each.channels for each in found), max(each.bits for each in found)
    turned, deep = any(each.turned for each in found), any(each.deep for each in found)
    return Look(sizes, channels, bits, broken, turned, deep)


def choose_decoding(
    look: Look, fit: str | None, side: int | None, sources: Sequence[tuple[str, Source]]
) -> Decoding | None:
    """Choose how the images of a folder are decoded.

    Images of one size with sides from 16 to 256 are taken as they are. Small images of several sizes are resized if
    their proportions agree to 10%, and padded if not. All others are cut into tiles of 96x96 pixels (48x48 if they
    are low or narrow), after being reduced to three tiles along the longer side.

    Args:
        look: what the headers declare.
        fit: one of `negvae.decoding.FITS`; None to choose.
        side: side of the model's input in pixels; None to choose.
        sources: images, of which a few are decoded if their channels have 16 bits, to choose the range that is scaled
            to 8 bits: all of what lies between the 0.1% and the 99.9% quantile of any.

    Returns:
        The description; None for 8-bit images of one size without broken, turned or deep ones, which are read as ever.
    """
    middle = np.median(look.sizes, axis=0)
    longer, shorter = float(np.median(look.sizes.max(1))), float(np.median(look.sizes.min(1)))
    whole = look.uniform and look.sizes[0].min() >= 16 and look.sizes[0].max() <= LARGEST_WHOLE
    if fit is None:
        ratios = look.sizes[:, 0] / look.sizes[:, 1]
        alike = bool(ratios.max() <= 1.1 * ratios.min())
        small = longer <= SMALL and shorter >= 16
        fit = "exact" if whole and side is None else ("resize" if alike else "pad") if small else "tile"
    plain = look.bits == 8 and not (look.deep or look.broken or look.turned)
    if fit == "exact" and look.uniform and plain:
        return None
    width, height = (side, side) if side else _size_for(fit, middle, longer, shorter)
    longest = TILES_ACROSS * max(width, height) if fit == "tile" else 0
    low, high = (0, 65535) if look.bits == 8 else _range(sources)
    return Decoding(
        fit=fit, height=height, width=width, channels=look.channels, bits=look.bits, low=low, high=high,
        longest=longest,
    )  # fmt: skip


def _size_for(fit: str, middle: NDArray[Any], longer: float, shorter: float) -> tuple[int, int]:
    """Return the width and height of a model's input."""
    if fit == "exact":
        return int(middle[0]), int(middle[1])
    if fit == "tile":
        tile = TILE if shorter >= 3 * TILE / 4 else TILE // 2
        return tile, tile
    scale = min(RESIZED / longer, 1.0)
    if fit == "resize":
        width, height = (max(round(float(length) * scale / 4) * 4, 16) for length in middle)
        return width, height
    square = max(round((longer if fit == "pad" else shorter) * scale / 8) * 8, 16)
    return square, square


def _range(sources: Sequence[tuple[str, Source]]) -> tuple[int, int]:
    """Return the values of 16 bits that become 0 and 255, from a few images."""
    lows, highs = [], []
    for name, source in (sources[row] for row in evenly_spaced(len(sources), _RANGE_FROM)):
        with suppress(DataError, OSError):
            pixels = raw_pixels(source, name)
            if pixels.dtype == np.uint16:
                low, high = np.quantile(pixels, [0.001, 0.999])
                lows.append(int(low))
                highs.append(int(np.ceil(high)))
    low, high = (min(lows), max(highs)) if lows else (0, 65535)
    return (low, high) if high > low else (0, 65535)


# --- decoded images -----


@dataclass(frozen=True)
class PhotoSet:
    """Decoded images, in the order in which they were asked for.

    Attributes:
        inputs: inputs of the model, one image after the other, uint8, T x C x h x w; in memory, or mapped from a file.
        counts: number of inputs of each image; 0 for broken ones.
        names: name of each image.
        broken: reason why an image cannot be decoded, by its name.
        sha256: SHA-256 over those of the images, in the order of their names.
    """

    inputs: NDArray[np.uint8]
    counts: NDArray[np.int64]
    names: tuple[str, ...]
    broken: dict[str, str]
    sha256: str

    @property
    def owners(self) -> NDArray[np.int64]:
        """The number of the image that each input belongs to, T; images are numbered without the broken ones."""
        good = self.counts[self.counts > 0]
        return np.repeat(np.arange(len(good)), good)


def read_photos(files: Sequence[str], decoding: Decoding, where: object, max_broken: float = 0.1) -> PhotoSet:
    """Decode the images of a folder, or take an earlier decoding of unchanged files from the cache.

    Args:
        files: paths of the images, in the order in which they are kept.
        decoding: description of what is made of images.
        where: name of the folder in error messages.
        max_broken: largest share of the files that may be broken.

    Returns:
        The images.

    Raises:
        ValueError: if too many files are broken.
    """
    paths = [os.path.abspath(file) for file in files]
    folder = os.path.commonpath(map(os.path.dirname, paths)) if paths else ""
    entry = cache_folder() / "decoded" / f"{_digest([decoding.to_dict(), folder])}-{_digest(paths)}.pixels"
    state = _digest([_state(file) for file in files])
    found = _from_cache(entry, decoding, state)
    if found is None or _some_read_now(found.broken, decoding):
        found = _decoded(list(files), decoding, entry, state)
        _forget_others(entry)
    refuse_broken(found.broken, len(files), where, max_broken)
    return found


def _some_read_now(broken: Iterable[str], decoding: Decoding) -> bool:
    """Return whether any image that could not be decoded now can, as after a fault of a disk or network."""
    return any(not isinstance(result, str) for _, result in _apply(_read(decoding), ((f, f) for f in broken), 1))


def _digest(content: Any) -> str:
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:24]


def _forget_others(entry: Path) -> None:
    """Remove from the cache all but the newest decodings of the same folder in the same way."""
    with suppress(OSError):
        family = entry.parent.glob(f"{entry.name.partition('-')[0]}-*.pixels")
        for old in sorted(family, key=lambda each: each.stat().st_mtime_ns)[:-KEPT]:
            old.unlink(missing_ok=True)
            old.with_suffix(".json").unlink(missing_ok=True)


def _state(file: str) -> tuple[int | bool, ...]:
    """Return what an earlier decoding of the same file depends on; of one that cannot be looked up, nothing."""
    try:
        return (*state_of(file), os.access(file, os.R_OK))
    except OSError:
        return ()


def refuse_broken(broken: dict[str, str], count: int, where: object, max_broken: float) -> None:
    """Refuse a set of which too many images are broken.

    Args:
        broken: reason why an image cannot be read, by its name.
        count: number of images, broken ones among them.
        where: name of the set in the message.
        max_broken: largest share that may be broken.

    Raises:
        ValueError: if the share is larger.
    """
    if count and (len(broken) > max_broken * count or len(broken) == count):
        name, why = next(iter(broken.items()))
        raise DataError(
            f"{where}: {len(broken):,} of {count:,} images cannot be read, more than {max_broken:.0%} ({name}: {why});"
            " remove them (`negvae train` takes a higher --max-broken)"
        )


def _decoded(files: list[str], decoding: Decoding, entry: Path, state: str) -> PhotoSet:
    """Decode the files, and keep the pixels in the cache if they fit into it."""
    try:
        return _decoded_to(entry, files, decoding, state)
    except OSError as error:
        replaced = os.name == "nt" and isinstance(error, PermissionError)  # Windows keeps a file that is mapped
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG) and not replaced:
            raise
        _log.info("decoded pixels not kept in %s (%s)", entry.parent, error)
        return _decoded_to(None, files, decoding, state)


def _decoded_to(entry: Path | None, files: list[str], decoding: Decoding, state: str) -> PhotoSet:
    """Decode the files to a file of the cache, or to a temporary one."""
    counts, broken, digests = np.zeros(len(files), np.int64), dict[str, str](), dict[str, str]()
    with _kept(entry) as (file, path):
        for row, (name, result) in enumerate(_apply(_read(decoding), ((name, name) for name in files), 1)):
            if isinstance(result, str):
                broken[name] = result
                continue
            counts[row] = len(result)
            content = np.ascontiguousarray(result).data
            digests[name] = hashlib.sha256(content).hexdigest()
            file.write(content)
        file.flush()
        # Before the file gets its name: then another process may replace or remove it. Windows renames no mapped file.
        inputs = None if path and os.name == "nt" else _mapped(file, int(counts.sum()), decoding)
    sha256 = _joint(digests)
    if path is None:
        file.close()  # the mapping stays
    else:
        facts = {
            "state": state, "counts": counts.tolist(), "names": files, "broken": broken, "sha256": sha256,
            "digests": digests,
        }  # fmt: skip
        with suppress(OSError), replacing(path.with_suffix(".json")) as temporary:
            temporary.write_text(json.dumps(facts), encoding="utf-8")
    if inputs is None:
        assert path is not None
        inputs = _mapped(path, int(counts.sum()), decoding)
    return PhotoSet(inputs, counts, tuple(files), broken, sha256)


@contextmanager
def _kept(entry: Path | None) -> Iterator[tuple[Any, Path | None]]:
    """Provide a file to write pixels to, and its place in the cache; a temporary file and None if that fails."""
    if entry is None:
        yield tempfile.TemporaryFile(), None  # noqa: SIM115 - lives as long as its mapping
        return
    try:
        entry.parent.mkdir(parents=True, exist_ok=True)
        probe = tempfile.TemporaryFile(dir=entry.parent)  # noqa: SIM115 - closed below
        probe.close()
    except OSError as error:
        _log.info("decoded pixels not kept in %s (%s)", entry.parent, error)
        yield tempfile.TemporaryFile(), None  # noqa: SIM115 - lives as long as its mapping
        return
    entry.with_suffix(".json").unlink(missing_ok=True)  # it says what the pixels before were
    with replacing(entry) as temporary, temporary.open("w+b") as file:
        yield file, entry


def _mapped(file: Path | IO[bytes], count: int, decoding: Decoding) -> NDArray[np.uint8]:
    """Return pixels in a file as an array: in memory if they are few, else mapped."""
    shape = (count, *decoding.shape)
    if not count:
        return np.zeros(shape, np.uint8)
    # Copied on write, so that torch takes it as an array of its own.
    mapped: NDArray[np.uint8] = np.memmap(file, np.uint8, "c", shape=shape)
    return np.array(mapped) if mapped.nbytes <= IN_MEMORY else mapped


def _from_cache(entry: Path, decoding: Decoding, state: str) -> PhotoSet | None:
    facts_file = entry.with_suffix(".json")
    if not (entry.is_file() and facts_file.is_file()):
        return None
    try:
        facts = json.loads(facts_file.read_text(encoding="utf-8"))
        if facts["state"] != state:
            return None
        counts = np.array(facts["counts"], np.int64)
        names, broken, digests = tuple(facts["names"]), dict(facts["broken"]), dict(facts["digests"])
        inputs = _mapped(entry, int(counts.sum()), decoding)
        starts = np.cumsum([0, *counts])
        whole = entry.stat().st_size == inputs.nbytes and _joint(digests) == facts["sha256"]
        if inputs.nbytes <= IN_MEMORY:  # what is mapped would have to be read from the disk for this
            whole = whole and all(
                hashlib.sha256(np.ascontiguousarray(inputs[starts[row] : starts[row + 1]]).data).hexdigest()
                == digests[name]
                for row, name in enumerate(names)
                if counts[row]
            )
        if whole:
            return PhotoSet(inputs, counts, names, broken, str(facts["sha256"]))
    except (OSError, ValueError, KeyError, TypeError, IndexError):
        pass  # whatever is wrong with an entry, the images are still there: decode them again
    _log.info("%s is damaged and is made anew", entry)
    return None


def _joint(digests: dict[str, str]) -> str:
    """Return the SHA-256 over those of the images, in the order of their names."""
    return hashlib.sha256("".join(digests[name] for name in sorted(digests)).encode()).hexdigest()


def _read(decoding: Decoding) -> Any:
    return lambda source, name: read_photo(source, name, decoding)[0]


def _apply(function: Any, sources: Iterable[tuple[str, Source]], at_once: int) -> Iterator[tuple[str, Any]]:
    """Apply a function to images in threads, in order; an image that cannot be used gives the reason, as text."""

    def run(chunk: list[tuple[str, Source]]) -> list[tuple[str, Any]]:
        return [(name, _result(function, source, name)) for name, source in chunk]

    def chunks() -> Iterator[list[tuple[str, Source]]]:
        chunk = []
        for item in sources:
            chunk.append(item)
            if len(chunk) == at_once:
                yield chunk
                chunk = []
        if chunk:
            yield chunk

    with without_pillows_warnings():
        for part in in_order(run, chunks(), min(4, os.cpu_count() or 1)):
            yield from part


def _result(function: Any, source: Source, name: str) -> Any:
    try:
        return function(source, name)
    except ImportError:
        raise
    except Exception as error:  # whatever a decoder makes of a broken file
        return reason(error).removeprefix(name).removeprefix(":").strip()
