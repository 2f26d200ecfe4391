"""The axis and the bins of histograms: pure functions that are robust to any numbers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]

LARGEST = 1e200
"""The limit to which finite values are clipped, so that no arithmetic on them overflows."""
SMALLEST = 1e-80
"""The number that all quantiles of a series must exceed for it to count as positive."""
MINUS, TIMES = "\N{MINUS SIGN}", "\N{MULTIPLICATION SIGN}"
SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


@dataclass(frozen=True)
class Scale:
    """A scale that is linear if its unit is 0, and otherwise linear up to +-unit and logarithmic (base 10) beyond.

    With a unit it equals matplotlib's "symlog" with `linthresh=unit` and `linscale=0.9`.

    >>> Scale(unit=1.0).forward([0.5, 10.0, -100.0]).tolist()
    [0.5, 2.0, -3.0]
    """

    unit: float = 0.0

    def forward(self, values: ArrayLike) -> Floats:
        """Map values to places on the axis, on which all bins are equally wide."""
        linear: Floats = np.asarray(values, np.float64)
        if not self.unit:
            return linear
        size = np.abs(linear) / self.unit
        moved: Floats = np.sign(linear) * np.where(size < 1, size, 1 + np.log10(np.maximum(size, 1)))
        return moved

    def inverse(self, places: ArrayLike) -> Floats:
        """Map places to values; this is the inverse of `forward`."""
        linear: Floats = np.asarray(places, np.float64)
        if not self.unit:
            return linear
        size = np.abs(linear)
        values: Floats = np.sign(linear) * self.unit * np.where(size < 1, size, 10.0 ** (size - 1))
        return values


@dataclass(frozen=True)
class Bins:
    """Series of numbers that were counted into common bins.

    Attributes:
        scale: The scale of the axis.
        places: The edges of the bins (bins + 1), as `scale.forward` places them.
        shares: The part of each series in each bin (series x bins + 2). The first and the last hold what lies
            beyond the edges; a row adds up to 1, or to 0 if a series holds nothing but NaN.
    """

    scale: Scale
    places: Floats
    shares: Floats


def binned(
    series: Sequence[Floats], bins: int, log_x: bool | None = None, limits: tuple[float, float] | None = None
) -> Bins:
    """Choose an axis for all series and count each into its bins.

    The axis runs from the lowest 0.5% to the highest 99.5% quantile of any series, and on to the extremes if
    those are near. It becomes logarithmic if a series would otherwise fall into a bin or two.

    Args:
        series: The numbers, as flat float64 arrays; NaN are left out.
        bins: The number of bins on the axis.
        log_x: Whether the axis is logarithmic; None chooses by the numbers.
        limits: The ends of the axis; None chooses by the numbers.

    Returns:
        The scale, the edges of the bins and the share of each series in each bin.

    >>> found = binned([np.arange(100.0)], bins=4)
    >>> found.shares.round(2).tolist()
    [[0.0, 0.25, 0.25, 0.25, 0.25, 0.0]]
    """
    held = [np.where(np.isfinite(v), np.clip(v, -LARGEST, LARGEST), v)[~np.isnan(v)] for v in series]
    finite = [v[np.isfinite(v)] for v in held]
    found = [np.quantile(v, [0.005, 0.1, 0.9, 0.995]) for v in finite if v.size]
    quantiles = np.stack(found or [np.zeros(4)])
    scale = _chosen(quantiles, log_x)
    places, everything = scale.forward(quantiles), scale.forward(np.concatenate(finite))
    low, high = places.min(), places.max()
    first, last, near = everything.min(initial=low), everything.max(initial=high), 0.25 * (high - low)
    if scale.unit and quantiles.min() > SMALLEST:
        first = max(first, 1.0)  # stay where the axis is logarithmic
    low, high = widened(first if low - first <= near else low, last if last - high <= near else high)
    if limits is not None:
        low, high = scale.forward(limits)
    edges = np.linspace(low, high, bins + 1)
    shares = np.zeros((len(held), bins + 2))
    for share, v in zip(shares, held, strict=True):
        u = scale.forward(v)
        inner = np.histogram(u[(u >= low) & (u <= high)], edges)[0]
        share[:] = np.array([(u < low).sum(), *inner, (u > high).sum()]) / max(v.size, 1)
    return Bins(scale, edges, shares)


def _chosen(quantiles: Floats, log_x: bool | None) -> Scale:
    """Return the scale on which every series can be seen, given four quantiles of each (series x 4)."""
    spreads = quantiles[:, 2] - quantiles[:, 1]
    # The logarithm over all if all is positive; else from about the width of the narrowest series on.
    positive = bool(quantiles.min() > SMALLEST)
    smallest = quantiles.min() / 10 if positive else spreads[spreads > 0].min(initial=LARGEST)
    bent = Scale(10.0 ** math.floor(math.log10(max(smallest, 1e-90))))

    def legible(scale: Scale) -> float:
        """Return the part of the axis that the middle 80% of the narrowest series takes."""
        places = scale.forward(quantiles)
        return float((places[:, 2] - places[:, 1])[spreads > 0].min() / (np.ptp(places) or 1.0))

    if log_x is None:  # bending around zero distorts more, so it needs more of a reason
        log_x = bool(spreads.any()) and legible(Scale()) < min(0.04 if positive else 0.005, legible(bent) / 2)
    return bent if log_x else Scale()


def widened(low: float, high: float) -> tuple[float, float]:
    """Return the range itself, or one around it if it is too narrow to divide.

    >>> widened(2.0, 2.0)
    (1.0, 3.0)
    """
    largest = max(abs(low), abs(high))
    pad = 0.0 if high - low > max(1e-9 * largest, 1e-150) else 0.5 * largest if largest > 1e-140 else 0.5
    return float(low - pad), float(high + pad)


def even_labels(ticks: Sequence[float]) -> list[str]:
    """Label evenly spaced ticks, all with the same decimals.

    >>> even_labels([0.0, 0.5, 1.0])
    ['0', '0.5', '1.0']
    """
    largest = max(map(abs, ticks), default=0.0) or 1.0
    step = ticks[1] - ticks[0] if len(ticks) > 1 else largest
    exponent = math.floor(math.log10(largest) + 1e-9)
    unit, power = (1.0, "") if -4 <= exponent < 6 else (10.0**exponent, TIMES + _ten_to(exponent))
    decimals = max(0, -math.floor(math.log10(step / unit) + 1e-9))
    return [f"{t / unit:,.{decimals}f}{power}".replace("-", MINUS) if t else "0" for t in ticks]


def short(value: float) -> str:
    """Write a number of any size in three digits, such as 0.25, 12,346 or 10⁻⁹.

    >>> short(12345.6), short(1e-9)
    ('12,346', '10⁻⁹')
    """
    exponent = math.floor(math.log10(abs(value)) + 1e-9) if value else 0
    if not -3 <= exponent < 5:
        return _scientific(value)
    text = f"{value:,.{max(0, 2 - exponent)}f}"
    return (text.rstrip("0").rstrip(".") if "." in text else text).replace("-", MINUS)


def log_labels(ticks: Sequence[float]) -> list[str]:
    """Label the ticks of a logarithmic axis, as powers of ten if some are very large or very small."""
    plain = all(t == 0 or 1e-3 < abs(t) * 1.001 < 2e4 for t in ticks)
    return [short(t) if plain else _scientific(t) for t in ticks]


def _scientific(value: float) -> str:
    mantissa, power = f"{value:.1e}".replace(".0e", "e").split("e")
    lead = f"{mantissa}{TIMES}" if mantissa.strip("-") != "1" else mantissa.strip("1")
    return lead.replace("-", MINUS) + _ten_to(int(power)) if value else "0"


def _ten_to(exponent: int) -> str:
    return "10" + str(exponent).translate(SUPERSCRIPTS)
