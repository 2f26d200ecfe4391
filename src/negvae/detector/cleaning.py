"""Ranking of mixed, unlabeled data by how unusual each row is to detectors that were not trained on it.

The data is divided into folds. A detector fitted to the other folds gives each row of a fold its conformal p-value, so
that no row is judged by a model that was trained on it. Outliers among the held-out rows raise the p-values of other
rows, so that the order is more reliable than the p-values themselves.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from negvae.data import load
from negvae.data.folders import choose_decoding, look_at, read_photos
from negvae.data.formats import DataError
from negvae.data.load import image_files
from negvae.data.rows import holds_rows, load_rows
from negvae.decoding import Decoding
from negvae.detector.inputs import seed_of
from negvae.files import refuse_replacing, replacing
from negvae.messages import shown
from negvae.runs.folders import exact, left_out

FOLDS = 3
_HEADER = ("rank", "path", "index", "p_value", "score")


@dataclass(frozen=True)
class CrossFitted:
    """P-values and scores of rows, from detectors that were not trained on them.

    Attributes:
        p_values: N conformal p-values.
        scores: N decision scores, each from the detector of the row's fold.
        folds: N numbers, the fold that each row was in.

    >>> CrossFitted(np.array([0.5, 0.1, 0.9]), scores=np.zeros(3), folds=np.zeros(3, int)).least_usual(1 / 3)
    array([False,  True, False])
    """

    p_values: NDArray[np.float64]
    scores: NDArray[np.float64]
    folds: NDArray[np.int64]

    @property
    def order(self) -> NDArray[np.int64]:
        """Indices of the rows, the least usual first: by p-value, and by score if p-values tie."""
        return np.lexsort((-self.scores, self.p_values))

    def least_usual(self, share: float) -> NDArray[np.bool_]:
        """Return a mask of the least usual rows, which are this share of all rows (N)."""
        chosen = np.zeros(len(self.p_values), bool)
        chosen[self.order[: round(share * len(chosen))]] = True
        return chosen


def cross_fit(
    make: Callable[[], Any],
    data: NDArray[Any],
    folds: int = FOLDS,
    seed: int = 0,
    log: Callable[[str], None] = print,
    decoding: Decoding | None = None,
) -> CrossFitted:
    """Judge every row by a detector that was fitted to the other folds.

    Args:
        make: function that returns a new `NegVAEDetector`.
        data: N images or rows of features, or the paths of N photos.
        folds: number of folds, 2 or more.
        seed: seed of the division into folds.
        log: function that is called with one line of text after each fold.
        decoding: how photos are decoded, whatever part they are in; None of other data.

    Returns:
        The p-values, scores and folds of the rows.

    Raises:
        ValueError: if there are fewer than 2 folds, or fewer than 3 rows for each fold.
    """
    if folds < 2 or len(data) < 3 * folds:
        raise ValueError(f"{len(data)} rows in {folds} folds: cross-fitting takes 2 folds or more, of 3 rows at least")
    fold = np.random.default_rng(seed).permutation(np.arange(len(data)) % folds)
    p_values, scores = np.ones(len(data)), np.zeros(len(data))
    for number in range(folds):
        chosen = fold == number
        rows = data[~chosen]
        detector = make().fit(rows) if decoding is None else make().fit_fold(rows, decoding=decoding)
        scores[chosen] = detector.ood_score(data[chosen])
        p_values[chosen] = detector.calibration_.p_values(scores[chosen])
        log(f"fold {number + 1} of {folds}: {chosen.sum():,} judged by a detector of the other {(~chosen).sum():,}")
    return CrossFitted(p_values, scores, fold)


@dataclass(frozen=True)
class Cleaned:
    """The result of `clean`.

    Attributes:
        rows: number of rows in the list.
        path: path of the list.
    """

    rows: int
    path: Path


def clean(
    data: str,
    out: Path,
    *,
    folds: int = FOLDS,
    limit: int | None = None,
    log: Callable[[str], None] = print,
    **parameters: Any,
) -> Cleaned:
    """Rank the rows of a mixed, unlabeled data set and write the list; the data is not changed.

    The list has one line for each row, the least usual first: rank, path, index, p_value, score. Further keyword
    arguments are parameters of `negvae.NegVAEDetector`.

    Args:
        data: name or path of images, or path of an .npy, .npz, CSV or Parquet file of rows of features.
        out: .csv file to write.
        folds: number of folds, 2 or more.
        limit: number of rows to read from the start of the data; None reads all.
        log: function that is called with one line of text for each step.

    Returns:
        The number of rows and the path of the list.

    Raises:
        FileNotFoundError: if the data, or the folder to write to, does not exist.
        ValueError: if the data cannot be used or has too few rows, or if `out` is not a .csv file, or is one that
            `clean` did not write.
    """
    import csv

    from negvae.detector.estimator import NegVAEDetector

    if out.suffix.lower() != ".csv":
        raise ValueError(f"--out {out}: the list is written as .csv")
    if not out.absolute().parent.is_dir():
        raise FileNotFoundError(f"{out.parent}: no such folder to write to")
    refuse_replacing(out, [data])
    _refuse_other_table(out)
    rows, places, decoding = rows_of(data, limit, log)
    log(f"{data}: {len(rows):,} {'rows of features' if rows.ndim == 2 else 'images'}")
    if limit is None and (others := set(image_files(data, "test") or ()) - set(image_files(data, "train") or ())):
        log(f"{data}: the {len(others):,} images of its part for testing are left out: name that folder to rank them")
    # The file is opened first: a place that cannot be written to is to be known before hours of training.
    with replacing(out) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        found = cross_fit(
            # Priors for transformations would multiply the time of every fit.
            lambda: NegVAEDetector(**{"target_fpr": None, "transformations": "none", **parameters}),
            rows,
            folds,
            seed_of(parameters.get("random_state", 0)),
            log,
            decoding,
        )
        writer = csv.writer(file)
        writer.writerow(_HEADER)
        for rank, row in enumerate(found.order, 1):
            path, index = places[row]
            values = repr(float(found.p_values[row])), repr(float(found.scores[row]))
            writer.writerow([rank, shown(path), index, *values])
    return Cleaned(len(rows), out)


def _refuse_other_table(out: Path) -> None:
    """Refuse to replace a file that is no earlier list: it may be a table of the user's, such as labels of the images.

    Raises:
        ValueError: if it is such a file.
    """
    if not out.is_file() or not out.stat().st_size:
        return
    with out.open("rb") as file:
        header = file.readline(200).strip()
    if header != ",".join(_HEADER).encode():
        raise ValueError(f"--out {out} exists and is no list of `negvae clean`: take another file")


def rows_of(
    data: str, limit: int | None = None, log: Callable[[str], None] = print
) -> tuple[NDArray[Any], list[tuple[str, int]], Decoding | None]:
    """Read images or rows of features, and where each is stored.

    Args:
        data: name or path of images, or path of an .npy, .npz, CSV or Parquet file of rows of features.
        limit: number of rows to read from the start of the data; None reads all.
        log: function that is called with a line about photos that are left out because they are broken.

    Returns:
        Images (uint8, N x C x H x W), paths of photos (N), or rows of features (N x D); for each its file and its index
        in that file; and how photos are decoded, None of anything else.

    Raises:
        FileNotFoundError: if the data does not exist.
        ValueError: if the data is damaged or of an unknown kind.
    """
    if holds_rows(data):
        rows: NDArray[Any] = load_rows(data, limit)
        return rows, [(data, index) for index in range(len(rows))], None
    files = image_files(data, "train", limit=limit)
    decoding = _decoding(data, files, log) if files else None
    if decoding is None:
        try:
            images = load(data, "train", limit=limit).images
        except DataError:
            if not files:
                raise
            decoding = exact(files, data)  # all headers are in order, and some pixels are not
    if files and decoding is not None:
        photos = _unbroken(data, files, decoding, log)
        return np.array(photos, dtype=object), [(file, 0) for file in photos], decoding
    if files:
        return images, [(file, 0) for file in files[: len(images)]], None
    return images, [(data, index) for index in range(len(images))], None


def _decoding(data: str, files: list[str], log: Callable[[str], None]) -> Decoding | None:
    """Return how the photos of a folder are decoded, and say so; None if its images are taken as they are."""
    sources = [(file, file) for file in files]
    look = look_at(sources, data)
    if (decoding := choose_decoding(look, None, None, sources)) is not None:
        log(f"{data}: {look.describe(decoding)}")
    return decoding


def _unbroken(data: str, files: list[str], decoding: Decoding, log: Callable[[str], None]) -> list[str]:
    """Return the files of a folder that can be decoded; lines name the others."""
    broken = read_photos(files, decoding, data).broken
    for name, why in list(broken.items())[:10]:
        log(f"{name}: {why}; it is left out")
    if len(broken) > 10:
        log(left_out(len(broken) - 10, "more broken"))
    return [file for file in files if file not in broken]
