"""Rows of features: how far the nearest reference rows are, in two spaces, on the scale of tail probabilities.

A reference row is an inlier that the score keeps. Distances to the nearest of them are taken in the standardized space
and in the space whitened by the shrunk second moments: the first finds what lies far out in some column, the second
what breaks the relations between columns. Each distance becomes -log of its tail probability among inliers, and the
score is the larger of the two, in nats. No network is used.

Why the p-values are valid although held-out rows are reference rows too
------------------------------------------------------------------------
Center, scale, ridge and tails are measured on the training part T alone. Reference rows are T and the held-out rows
H together, and the whitening is that of A = ridge I + sum of z z' over all of them. With another row among the
reference rows, a nearest distance can only fall; and with another term in A, every distance z' A^-1 z can only fall,
as A^-1 can. So the score of a held-out row against all others without the new row, which is what calibration stores,
is at least what it would be with the new row among the others; and with the new row among them, the scores of H and
of the new row are exchangeable. So p-values from the stored scores are valid for every number of rows (they are never
smaller than those of full conformal prediction; Vovk et al., "Algorithmic learning in a random world", 2005), while
no row is lost to calibration. Held-out rows are scored against the others by a rank-one update: with G = Z A^-1 Z',

    d_ij^2 with i left out of A k times = G_ii - 2 G_ij + G_jj + k (G_ii - G_ij)^2 / (1 - k G_ii)

(Sherman & Morrison 1950). That is validity on average over held-out sets, as conformal p-values have it. What holds
for the held-out set at hand with a confidence (`negvae.scoring.certificates`) needs scores that are independent given
the model, and held-out rows that are neighbors of one another have none: where a confidence is asked for, reference
rows are those of T alone.

A row that has a copy among the reference rows is scored as if that copy were not there, neither as a neighbor nor in A;
held-out rows too, whose k is then 2. So a held-out row that comes again has the score that calibration stored, unless
it has further copies, and inliers that repeat one another stay exchangeable.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from negvae.scoring.passes import Pass
from negvae.spacing import spread_rows

Values = NDArray[np.float64]

NEIGHBORS = 3
"""Over how many nearest reference rows a distance is averaged."""
MOST_NEIGHBORS = 100
"""The same, where some of the reference rows are outliers that may lie together."""
REFERENCE_ROWS, REFERENCE_NUMBERS = 4096, 2**22
"""At most so many rows, of so many numbers together, are kept twice: 64 MB, and 32 MB at most to whiten by."""
TAIL, LEAST_EXCEEDING = 0.95, 10
"""A tail is exponential beyond this quantile, or beyond a lower one that so many rows exceed; empirical below it."""
KNOTS = 17
"""Of the empirical part of a tail."""
NARROWEST = 0.1
"""The least scale of a column, in units of its standard deviation."""
SAME_ROWS = 0.1
"""Share of rows that are copies of reference rows from which rows are taken for reference rows themselves."""
COPY = 1e-11
"""Two rows are copies where their squared distance is less than this share of their squared lengths."""
LEAST_LEFT = 1e-9
"""The least share of a direction that is left in the second moments where a row is left out of them."""
SHRINKAGE = 1e-4, 0.999
"""Bounds of the intensity with which second moments are shrunk to a multiple of the identity."""
_CHUNK = 512
"""Rows whose distances to all reference rows are in memory at a time."""


@dataclass(frozen=True)
class Neighbors:
    """Measurements of inliers that the score of a row needs.

    Attributes:
        weights: weights of the standardized columns, more than 1 if a few rows far out dominate the standard
            deviation, or if all have one value (D).
        rows: reference rows, standardized and weighted (R x D), or none (0 x D) if only the whitened space counts.
        basis: eigenvectors of the second moments of the reference rows, as columns (D x K).
        damping: share of each eigenvector's component that whitening removes (K).
        unit: number that whitening divides by (1).
        whitened: reference rows, whitened (R x D).
        tails: for each space the knots' distances, then -log of their tail probabilities (S x 2 x KNOTS).
        excess: mean distance by which inliers exceed the last knot, for each space (S).
        count: number of nearest reference rows that a distance is averaged over (1).
    """

    weights: Values
    rows: Values
    basis: Values
    damping: Values
    unit: Values
    whitened: Values
    tails: Values
    excess: Values
    count: Values

    def __post_init__(self) -> None:
        """Refuse arrays that do not belong together.

        Raises:
            ValueError: if a shape is wrong, or a number is not finite.
        """
        columns, rows, directions = len(self.weights), len(self.whitened), len(self.damping)
        spaces = 2 if len(self.rows) else 1
        expected = {
            "weights": (columns,), "rows": (rows * (spaces - 1), columns), "basis": (columns, directions),
            "damping": (directions,), "unit": (1,), "whitened": (rows, columns), "tails": (spaces, 2, KNOTS),
            "excess": (spaces,), "count": (1,),
        }  # fmt: skip
        for name, shape in expected.items():
            array = getattr(self, name)
            if array.shape != shape or not np.isfinite(array).all():
                raise ValueError(f"neighbors: {name} has the shape {array.shape}, expected finite numbers {shape}")
        if rows < 2 or not 1 <= self.nearest < rows or not (self.excess > 0).all() or not (self.unit > 0).all():
            raise ValueError("neighbors: there are fewer than 2 reference rows, or a scale or number is out of range")

    @property
    def nearest(self) -> int:
        """Return the number of nearest reference rows that a distance is averaged over."""
        return int(self.count[0])

    def arrays(self) -> dict[str, Values]:
        """Return all attributes by name."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    def tensors(self, device: torch.device | str = "cpu") -> dict[str, Tensor]:
        """Return all attributes by name as the tensors that `neighbor_score` takes."""
        return {name: torch.from_numpy(np.ascontiguousarray(array)).to(device) for name, array in self.arrays().items()}


def neighbors(x: Pass) -> Tensor:
    """Score how unusually far the nearest reference rows are, in nats (N), as `neighbor_score` does.

    Args:
        x: pass over N rows of features.

    Returns:
        N values.

    Raises:
        ValueError: if no reference rows were kept.
    """
    if x.references.neighbors is None:
        raise ValueError("score neighbors has no reference rows here: NegVAEDetector.fit keeps them")
    found = x.references.neighbors
    return neighbor_score(x.images.double().flatten(1), found.tensors(x.images.device), found.nearest)


def neighbor_score(rows: Tensor, fitted: Mapping[str, Tensor], count: int) -> Tensor:
    """Score how unusually far the nearest reference rows are: the larger -log tail probability of two spaces.

    A reference row that is a copy of the row itself is left out once, as a neighbor and from the whitening: a reference
    row scores as it would if it were none.

    Args:
        rows: standardized rows (N x D, float64).
        fitted: tensors that `Neighbors.tensors` returns.
        count: number of nearest reference rows that a distance is averaged over.

    Returns:
        N values in nats, larger meaning farther out of distribution.
    """
    weighted = rows * fitted["weights"]
    whitened = whiten(weighted, fitted["basis"], fitted["damping"], fitted["unit"])
    distances = [_nearest_whitened(whitened, fitted["whitened"], count)]
    if len(fitted["rows"]):
        distances.insert(0, _nearest(weighted, fitted["rows"], count))
    return larger_tail(distances, fitted["tails"], fitted["excess"])


def most_references(columns: int) -> int:
    """Return how many reference rows of so many columns are kept at most."""
    return min(REFERENCE_ROWS, max(REFERENCE_NUMBERS // columns, 2))


def fit_neighbors(
    training: Values, held_out: Values, contamination: float = 0.0, *, join: bool = True
) -> tuple[Neighbors, Values]:
    """Measure inliers, and score the held-out ones.

    Args:
        training: standardized rows T (N x D, N at least 2), which set the weights, the ridge and the tails.
        held_out: standardized rows H (M x D). They become reference rows too, unless T and H together are more than
            are kept (`most_references`); then the reference rows are of T alone, evenly taken.
        contamination: share of outliers in both. Outliers may lie together and be neighbors of one another, so
            distances are averaged over more neighbors the larger the share, up to `MOST_NEIGHBORS`.
        join: whether held-out rows may become reference rows. If not, their scores are independent given T.

    Returns:
        The measurements, and the scores of the held-out rows against the other reference rows (M).

    Raises:
        ValueError: if there are too few rows.
    """
    if len(training) < 2:
        raise ValueError(f"there are {len(training)} training rows: neighbors take 2 at least")
    most = most_references(training.shape[1])
    together = join and len(training) + len(held_out) <= most
    if not together:
        training = spread_rows(training, most)
    joined = np.concatenate([training, held_out]) if together else training
    weights = column_weights(training)
    own, rows = training * weights, joined * weights
    ridge = len(own) * float(np.square(own).mean()) * odds(shrinkage(own))
    basis, damping, unit = whitening(rows, ridge)
    whitened = whiten(rows, basis, damping, np.array([unit]))
    # A training row has the other training rows alone for its tails.
    count = min(_count(len(rows), contamination), max(len(own) - 2, 1))
    of_own = whiten(own, *(np.asarray(part) for part in whitening(own, ridge)))
    # With as many columns as rows, a few directions of large variance decide all plain distances.
    spaces = slice(0 if rows.shape[1] < len(rows) else 1, 2)
    distances = among(own, of_own, np.arange(len(own)), count)[spaces]
    if not np.isfinite(distances).all():
        raise ValueError(f"{len(own)} training rows are too few, since some are copies of one another: give more data")
    usual = max(math.floor((1 - contamination) * len(own)), 2)
    tails, excess = zip(*(tail_of(np.sort(found)[:usual]) for found in distances), strict=True)
    kept = rows if len(tails) == 2 else rows[:0]
    fitted = Neighbors(
        weights, kept, basis, damping, np.array([unit]), whitened, np.array(tails), np.array(excess),
        np.array([float(count)]),
    )  # fmt: skip
    tensors = fitted.tensors()
    if not together:
        parts = torch.from_numpy(held_out).split(_CHUNK)  # type: ignore[no-untyped-call]
        return fitted, torch.cat([neighbor_score(part, tensors, count) for part in parts]).numpy()
    distances = among(rows, whitened, np.arange(len(training), len(rows)), count)[spaces]
    scores = larger_tail(list(map(torch.from_numpy, distances)), tensors["tails"], tensors["excess"])
    return fitted, scores.numpy()


def column_weights(rows: Values) -> Values:
    """Return the standard deviation of each column over that of a Gaussian with the same middle 90% (D), from 1 to 10.

    If a few values far out dominate the standard deviation, it describes the others badly. A column that has one value
    in half of the rows or more has no usable middle, and its weight is 1. The weight of a constant column is the
    root of N: a value that less than one in N rows has gives a 0-1 column a deviation of 1 / sqrt(N) at most.

    Args:
        rows: standardized rows, N x D.

    Returns:
        D weights.
    """
    deviation = rows.std(0)
    low, high = np.quantile(rows, (0.05, 0.95), axis=0)
    scale = np.clip((high - low) / 3.29, NARROWEST * deviation, deviation)
    ordered = np.sort(rows, axis=0)
    half = len(rows) // 2
    dominated = (ordered[half:] == ordered[: len(rows) - half]).any(0)
    plain = dominated | (scale <= 0)
    weights = np.where(plain, 1.0, deviation / np.where(plain, 1.0, scale))
    constant = rows.max(0) == rows.min(0)
    return np.where(constant, math.sqrt(len(rows)), weights)


def shrinkage(rows: Values) -> float:
    """Return the best intensity of shrinking second moments to a multiple of the identity (Ledoit & Wolf 2004)."""
    from sklearn.covariance import ledoit_wolf_shrinkage

    return float(np.clip(ledoit_wolf_shrinkage(rows, assume_centered=True), *SHRINKAGE))


def odds(intensity: float) -> float:
    """Return the ridge that shrinks to this intensity, in units of N times the mean second moment."""
    return intensity / (1 - intensity)


def whitening(rows: Values, ridge: float) -> tuple[Values, Values, float]:
    """Compute the whitening by shrunk second moments: x -> (x - V diag(damping) V' x) / unit.

    The squared length of the result is N x' A^-1 x with A = ridge I + sum of z z' over N rows.

    Args:
        rows: rows z whose second moments are shrunk, N x D.
        ridge: number that is added to each second moment's sum, at least 0.

    Returns:
        V (D x K), damping (K) and unit.
    """
    count, columns = rows.shape
    ridge = max(ridge, 1e-12)
    if count < columns:
        values, left = np.linalg.eigh(rows @ rows.T)
        kept = values > 1e-12 * values.max()
        values, basis = values[kept], rows.T @ (left[:, kept] / np.sqrt(values[kept]))
    else:
        values, basis = np.linalg.eigh(rows.T @ rows)
        values = np.maximum(values, 0)
    return np.ascontiguousarray(basis), 1 - np.sqrt(ridge / (values + ridge)), math.sqrt(ridge / count)


def whiten(rows: Any, basis: Any, damping: Any, unit: Any) -> Any:
    """Whiten rows (N x D) as `whitening` describes; arrays or tensors."""
    return (rows - ((rows @ basis) * damping) @ basis.T) / unit


def _count(references: int, contamination: float) -> int:
    """Return the number of neighbors that a distance is averaged over: one row is left out, and one may be a copy."""
    together = min(NEIGHBORS + math.ceil(contamination * references), MOST_NEIGHBORS)
    return max(min(together if contamination else NEIGHBORS, references - 2), 1)


def _nearest(rows: Tensor, references: Tensor, count: int) -> Tensor:
    """Return the mean distance to the nearest references but one copy (N)."""
    squared, copies = _squared_distances(rows, references)
    return _mean_distance(squared, copies, count)


def _nearest_whitened(rows: Tensor, references: Tensor, count: int) -> Tensor:
    """Return the mean distance to the nearest references but one copy, which is left out of the whitening too (N)."""
    squared, copies = _squared_distances(rows, references)
    copied = _any_copy(squared, copies)
    total, own = references.shape[0], rows.square().sum(1, keepdim=True)
    apart = (squared + own - references.square().sum(1)) / 2  # G_ii - G_ij, in units of 1 / total
    left = (total - own).clamp_min(LEAST_LEFT * total)
    return _mean_distance(torch.where(copied, squared + apart.square() / left, squared), copies, count)


def share_of_references(rows: Values, fitted: Neighbors) -> float:
    """Return the share of rows that have a copy among the reference rows.

    Args:
        rows: standardized rows (N x D).
        fitted: measurements of inliers.

    Returns:
        The share, from 0 to 1.
    """
    whitened = whiten(rows * fitted.weights, fitted.basis, fitted.damping, fitted.unit)
    parts = torch.from_numpy(whitened).split(_CHUNK)  # type: ignore[no-untyped-call]
    references = torch.from_numpy(fitted.whitened)
    return float(torch.cat([has_copy(part, references) for part in parts]).double().mean())


def has_copy(rows: Tensor, references: Tensor) -> Tensor:
    """Return whether each row is a copy of a reference row.

    Args:
        rows: N x D.
        references: R x D, in the same space.

    Returns:
        N x 1 truth values.
    """
    return _any_copy(*_squared_distances(rows, references))


def _any_copy(squared: Tensor, copies: Tensor) -> Tensor:
    return (squared - copies).amin(1, keepdim=True) < 0


def _squared_distances(rows: Tensor, references: Tensor) -> tuple[Tensor, Tensor]:
    """Return squared distances, with rounding errors, and the limits below which two rows are copies (N x R each)."""
    lengths, theirs = rows.square().sum(1).unsqueeze(1), references.square().sum(1).unsqueeze(0)
    return lengths + theirs - 2 * (rows @ references.T), COPY * (lengths + theirs)


def _mean_distance(squared: Tensor, copies: Tensor, count: int) -> Tensor:
    """Return the mean of the smallest distances, with one copy left out (N).

    Args:
        squared: squared distances (N x R), with rounding errors.
        copies: limits below which a squared distance counts as zero (N x R).
        count: number of smallest distances to average.

    Returns:
        N distances.
    """
    squared = torch.where(squared < copies, 0.0, squared)
    smallest = squared.topk(min(count + 1, squared.shape[1]), dim=1, largest=False, sorted=True).values
    if smallest.shape[1] <= count:
        return smallest.sqrt().mean(1)
    nearest = torch.where(smallest[:, :1] == 0, smallest[:, 1:], smallest[:, :-1])
    return nearest.sqrt().sum(1) / count


def among(rows: Values, whitened: Values, chosen: NDArray[np.int64], count: int) -> tuple[Values, Values]:
    """Return distances of chosen rows to the others, in both spaces, as if the row itself were in none of the sums.

    A copy of the row among the others is left out as well, once.

    Args:
        rows: all rows, N x D.
        whitened: the same rows, whitened by their own second moments, N x D.
        chosen: indices of M rows.
        count: number of nearest rows that a distance is averaged over.

    Returns:
        M distances in the standardized space, and M in the whitened space.
    """
    found: list[tuple[Values, Values]] = []
    total = len(rows)
    lengths, products = np.square(rows).sum(1), np.square(whitened).sum(1) / total
    for part in np.array_split(chosen, math.ceil(len(chosen) / _CHUNK)):
        plain = lengths[part, None] + lengths - 2 * rows[part] @ rows.T
        inner = whitened[part] @ whitened.T / total  # G = Z A^-1 Z'
        own = products[part, None]
        squared, limits = own + products - 2 * inner, COPY * (own + products)
        squared[np.arange(len(part)), part] = np.inf
        times = 1 + (squared < limits).any(1, keepdims=True)
        left = np.maximum(1 - times * own, LEAST_LEFT)
        squared = total * (squared + times * np.square(own - inner) / left)
        copies = COPY * (lengths[part, None] + lengths), total * limits / left
        means = []
        for matrix, limits in zip((plain, squared), copies, strict=True):
            matrix[np.arange(len(part)), part] = np.inf
            means.append(_mean_distance(torch.from_numpy(matrix), torch.from_numpy(limits), count).numpy())
        found.append((means[0], means[1]))
    first, second = zip(*found, strict=True)
    return np.concatenate(first), np.concatenate(second)


def tail_of(distances: Values) -> tuple[Values, float]:
    """Return the tail probabilities of distances: knots (2 x KNOTS), and the mean excess over the last of them.

    Args:
        distances: distances of inliers, ascending.

    Returns:
        The knots' distances, then -log of their tail probabilities, and the excess.
    """
    quantile = min(TAIL, max(1 - LEAST_EXCEEDING / len(distances), 0.5))
    levels = np.linspace(0, quantile, KNOTS)
    knots = np.quantile(distances, levels)
    knots[0] = 0.0
    beyond = distances[distances > knots[-1]] - knots[-1]
    # Where inliers are copies of one another there is no excess to speak of, and any distance counts.
    least = max(1e-3 * float(distances.mean()), 1e-9)
    return np.stack([knots, -np.log1p(-levels)]), max(float(beyond.mean()) if len(beyond) else 0.0, least)


def larger_tail(distances: Sequence[Tensor], tails: Tensor, excess: Tensor) -> Tensor:
    """Return the larger -log tail probability of distances in each space (N)."""
    values = []
    for distance, (knots, levels), scale in zip(distances, tails, excess, strict=True):
        steps = (knots[1:] - knots[:-1]).clamp_min(1e-300)
        shares = ((distance.unsqueeze(1) - knots[:-1]) / steps).clamp(0, 1)
        inside = (shares * (levels[1:] - levels[:-1])).sum(1)
        values.append(inside + (distance - knots[-1]).clamp_min(0) / scale)
    return torch.stack(values).amax(0)
