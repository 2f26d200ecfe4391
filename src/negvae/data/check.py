"""Find the best copy of a named set on this machine, and check whether its pixels are the official ones."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from negvae.data import find
from negvae.data.cache import read_cached
from negvae.data.catalog import CATALOG, ImageSet, SetSpec, Split, State
from negvae.data.find import Candidate
from negvae.data.formats import DataError, Idx, image_digests, pixel_sha256


def best_local(name: str, split: Split, tried: list[str]) -> ImageSet | None:
    """Return the best local copy of a split: the first complete one, else the first of any kind.

    Args:
        name: name of the set in the catalog.
        split: split to look for.
        tried: list to which a line is added for each place without usable files.

    Returns:
        The images, or None if there is no copy.

    Raises:
        ValueError: if a file that should hold this split is damaged or holds other pixels.
    """
    best: ImageSet | None = None
    for candidate in find.find(name, split):
        try:
            found = read_checked(name, split, candidate)
        except ValueError as error:
            if candidate.certain:
                raise
            # Not every file called train-images-idx3-ubyte is MNIST's.
            tried.append(str(error))
            continue
        if found.state in ("complete", "unchecked"):
            return found
        best = best or found
    if best is None:
        tried.insert(0, f"no {name} files in {', '.join(map(str, find.data_folders()))}")
    return best


def read_checked(name: str, split: Split, candidate: Candidate) -> ImageSet:
    """Read and check the files of a candidate.

    Args:
        name: name of the set in the catalog.
        split: split that the files should hold.
        candidate: files to read.

    Returns:
        The images with the result of the check.

    Raises:
        ValueError: if the files are damaged, belong to another set, or are not the official ones.
    """
    spec = CATALOG[name]
    if not candidate.certain and (count := candidate.reader.probe().count) != spec.sizes[split]:
        raise DataError(
            f"{candidate.origin}: {count:,} images of a set that their names do not tell; "
            f"put them in a folder named {name} if they are {name}'s"
        )
    decoded, sha256 = read_cached(candidate.reader)
    if spec.transposed and not isinstance(candidate.reader, Idx) and sha256 not in spec.known[split]:
        # Copies of EMNIST come both as NIST stores it and upright; the pixels tell.
        turned = np.ascontiguousarray(decoded.images.transpose(0, 1, 3, 2))
        if (turned_sha := pixel_sha256(turned)) in spec.known[split]:
            decoded, sha256 = replace(decoded, images=turned), turned_sha
    state, checked, notes = check(name, split, candidate, decoded.images, sha256)
    notes = (*notes, *decoded.notes)
    return ImageSet(name, split, decoded.images, decoded.labels, candidate.origin, sha256, notes, state, checked)


def check(
    name: str, split: Split, candidate: Candidate, images: NDArray[np.uint8], sha256: str
) -> tuple[State, str, tuple[str, ...]]:
    """Determine whether pixels are the official ones of a split.

    Args:
        name: name of the set in the catalog.
        split: split that the pixels should be.
        candidate: files that the pixels were read from.
        images: pixels, uint8, N x C x H x W.
        sha256: SHA-256 of the pixels (see `pixel_sha256`).

    Returns:
        The state of the split, how that was checked, and the notes that must be shown with it.

    Raises:
        ValueError: if the pixels belong to another set, or are not the official ones.
    """
    spec, where, count, size = CATALOG[name], candidate.origin, len(images), CATALOG[name].sizes[split]
    for owner, other in CATALOG.items():
        for part, hashes in other.known.items():
            if sha256 in hashes and (owner, part) != (name, split):
                raise DataError(f"{where}: holds the pixels of {owner} ({part}), not of {name} ({split})")
    if known := spec.known.get(split, {}).get(sha256):
        return known.state, f"pixels match the known hash ({known.what})", known.notes
    if images.shape[1:] != spec.shape:
        found, wanted = (" x ".join(map(str, s)) for s in (images.shape[1:], spec.shape))
        raise DataError(f"{where}: images are {found}; those of {name} are {wanted} (C x H x W)")
    if not candidate.certain and not _md5_matches(spec, candidate):
        raise DataError(f"{where}: not the pixels of {name} ({split}); put them in a folder of their set's name")
    if count < size:
        note = f"{name} {split}: partial, {count:,} of {size:,} images; pixels not checked"
        return "partial", "not checked: a partial set", (note,)
    if count > size and count not in spec.other_sizes:
        raise DataError(f"{where}: holds {count:,} images; the official {split} split of {name} has {size:,}")
    if (matches := _md5_matches(spec, candidate)) is not None:
        if matches:
            return "complete", "files match the publisher's MD5", ()
        raise DataError(f"{where}: pixels differ from the official {name} ({split}): the file's MD5 is another")
    if sketch := spec.sketch.get(split):
        marks = {sketch[i : i + 8] for i in range(0, len(sketch), 8)}
        shared = len(marks & image_digests(images))
        if shared < 0.9 * len(marks):
            raise DataError(f"{where}: pixels differ from the official {name} ({split})")
        note = f"{name} {split}: pixels checked by sample, {shared} of {len(marks)} known images are in it"
        return "complete", f"{shared} of {len(marks)} known images are in it, in some order", (note,)
    if split in spec.prefix:
        number, expected = spec.prefix[split]
        if pixel_sha256(images[:number]) != expected:
            raise DataError(f"{where}: pixels differ from the official {name} ({split}) in the first {number:,}")
        note = f"{name} {split}: pixels checked for the first {number:,} images, the only ones with a known hash"
        return "complete", f"the first {number:,} images match the known hash", (note,)
    if any(known.state == "complete" for known in spec.known.get(split, {}).values()):
        raise DataError(f"{where}: pixels differ from the official {name} ({split}); replace the file")
    note = f"{name} {split}: pixels not checked, no reference hash is known for this form"
    return "unchecked", "not checked: no reference hash is known for this form", (note,)


def _md5_matches(spec: SetSpec, candidate: Candidate) -> bool | None:
    """Return whether the files are the publisher's, by MD5; None if that cannot be determined.

    The MD5 of a gzip file changes whenever it is compressed again, so for these only a match is conclusive.
    """
    import pooch

    files = candidate.reader.files
    if not all(path.name in spec.file_md5 for path in files):
        return None
    same = all(pooch.file_hash(str(path), "md5") == spec.file_md5[path.name] for path in files)
    return same or (None if isinstance(candidate.reader, Idx) else False)
