"""Every chart of the pages and of the paper's report, drawn with matplotlib.

Functions return a `matplotlib.figure.Figure`; `svg` turns one into a piece of a page whose colors follow the page's
style, `save` writes it as PDF and PNG. pyplot is never imported, and matplotlib's settings are as before afterwards.
"""

from __future__ import annotations

import hashlib
import io
import re
import textwrap
import threading
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import matplotlib.style
import numpy as np
from markupsafe import Markup
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedFormatter, FixedLocator, LogLocator, MaxNLocator, NullLocator, SymmetricalLogLocator
from numpy.typing import NDArray

from negvae.files import replacing
from negvae.report.scales import LARGEST, Bins, Floats, Scale, binned, even_labels, log_labels, short

Array = NDArray[Any]

# Okabe and Ito's palette, told apart with any color vision; its eighth color, yellow, is lost on white.
INK, SOFT, RULE = "#1b1d20", "#5a6068", "#dde0e4"
COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", INK)
DASHES: tuple[Any, ...] = ("-", (0, (3.7, 1.6)), (0, (1, 1.4)), (0, (4.7, 1.6, 1, 1.6)))
VARIABLES = {color: f"var(--c{number})" for number, color in enumerate(COLORS)}
VARIABLES |= {INK: "var(--ink)", SOFT: "var(--soft)", RULE: "var(--rule)"}
"""The page's variable for each color of a figure; `templates/style.css` has its light and its dark value."""

WIDTH, HEIGHT, SQUARE = 5.0, 3.3, 4.6  # inches, the heights without legend and notes
PERCENTS = (1, 0.5, 0.2, 0.1, 0.05, 0.02, 0.01, 0.005, 0.002, 0.001)
STYLE = {
    "font.size": 11, "axes.labelsize": 11, "xtick.labelsize": 10, "ytick.labelsize": 10, "legend.fontsize": 10,
    "text.color": INK, "axes.labelcolor": INK, "xtick.labelcolor": SOFT, "ytick.labelcolor": SOFT,
    "xtick.color": SOFT, "axes.edgecolor": SOFT, "ytick.major.size": 0, "axes.axisbelow": True,
    "axes.grid": True, "axes.grid.axis": "y", "grid.color": RULE, "axes.formatter.useoffset": False,
    "axes.spines.left": False, "axes.spines.right": False, "axes.spines.top": False,
    "lines.linewidth": 1.8, "legend.frameon": False, "legend.handlelength": 2.2, "legend.columnspacing": 1.4,
    "legend.markerscale": 1.8,
    "svg.fonttype": "none", "svg.hashsalt": "negvae", "pdf.fonttype": 42,
}  # fmt: skip
HREF = "{http://www.w3.org/1999/xlink}href"
_LOCK = threading.RLock()


def histogram(
    series: Mapping[str, Array],
    *,
    xlabel: str,
    bins: int = 60,
    log_x: bool | None = None,
    limits: tuple[float, float] | None = None,
    marks: Mapping[str, float] | None = None,
) -> Figure:
    """Draw the distributions of scores over one another: the share of each series that falls into each bin.

    Values beyond the axis, including infinities, are counted in an outer bar on their side. If one peak would flatten
    the others, the vertical axis is a square-root scale. The figure says all of this.

    Args:
        series: The numbers, in arrays of any shape, by the name in the legend. NaN are left out and counted in a note.
        xlabel: The label of the horizontal axis, with the unit.
        bins: The number of bins, apart from the outer bars; `negvae.report.scales.binned` chooses their edges.
        log_x: Whether the horizontal axis is logarithmic; None chooses by the numbers.
        limits: The ends of the horizontal axis; None chooses by the numbers.
        marks: Vertical lines, such as a threshold, by the name in the legend. One beyond the axis is drawn on its edge.

    Returns:
        The figure.

    Raises:
        ValueError: If there is no series, one is empty, or `bins` is below 1.

    >>> figure = histogram({"inliers": np.arange(10.0), "outliers": np.arange(5.0, 20.0)}, xlabel="score (nats)")
    >>> figure.axes[0].get_xlabel()
    'score (nats)'
    """
    arrays = {name: np.asarray(values, np.float64).reshape(-1) for name, values in series.items()}
    if empty := [name for name, values in arrays.items() if not values.size]:
        raise ValueError(f"histogram: series {empty[0]!r} is empty")
    if not arrays or bins < 1:
        raise ValueError(f"histogram: {len(arrays)} series in {bins} bins: nothing to show")
    found = binned(list(arrays.values()), bins, log_x, limits)
    peaks = found.shares.max(1)
    top = float(peaks.max()) or 1.0
    rooted = bool(peaks.min() * 8 < top)
    ylabel = "share of each series" + " (square-root scale)" * rooted
    edges, outer = _edges(found)
    with _style():
        figure, axes = _axes(xlabel + _suffix(found), ylabel)
        if found.scale.unit:
            axes.set_xscale("symlog", linthresh=found.scale.unit, linscale=0.9)
        if rooted:
            axes.set_yscale("function", functions=(lambda v: np.sqrt(np.maximum(v, 0)), np.square))
            axes.set_yticks(_percents(top), [f"{p:.3g}%" for p in np.multiply(_percents(top), 100)])
        else:
            axes.yaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))
            axes.yaxis.set_major_formatter(lambda share, _: f"{100 * share:.3g}%")
        handles: list[Artist] = []
        for index, share in enumerate(found.shares):
            heights = np.insert(np.where(share > 0, share, np.nan), [1, bins + 1], np.nan)  # a gap at both outer bars
            color = COLORS[index % len(COLORS)]
            handles.append(axes.stairs(heights, edges, fill=True, facecolor=(color, 0.17), edgecolor=color,
                                       linewidth=1.4, linestyle=_dash(index)))  # fmt: skip
        limits = edges[0 if "low" in outer else 2], edges[-1 if "high" in outer else -3]
        for index, value in enumerate((marks or {}).values(), 1):
            handles.append(axes.axvline(float(np.clip(value, *limits)), color=INK, linestyle=_dash(index)))
        axes.set_xlim(*limits)
        axes.set_ylim(0, 1.02 * top)
        _set_ticks(axes, found, outer)
        notes = ["Outer bars hold all values beyond the axis."] if outer else []
        _finish(figure, handles, [*arrays, *(marks or {})], " ".join([*notes, *_not_shown(arrays)]))
    return figure


def roc(curves: Mapping[str, tuple[Array, Array]]) -> Figure:
    """Draw ROC curves over the diagonal of chance.

    Args:
        curves: The rates of false and of true positives (two arrays of n >= 2, all within 0 to 1), by the name in
            the legend, which may state the area under the curve.

    Returns:
        The figure.

    Raises:
        ValueError: If there is no curve, or one is not such a pair.
    """
    if not curves:
        raise ValueError("ROC: there is no curve")
    pairs = {name: _pair("ROC", name, pair) for name, pair in curves.items()}
    for name, pair in pairs.items():
        if pair.shape[1] < 2:
            raise ValueError(f"ROC: {name!r} has {pair.shape[1]} points, not 2 or more")
        if not np.all((pair >= 0) & (pair <= 1)):
            raise ValueError(f"ROC: rates of {name!r} are not all between 0 and 1")
    with _style():
        figure, axes = _axes("false-positive rate", "true-positive rate", SQUARE)
        axes.plot([0, 1], [0, 1], color=SOFT, linewidth=1, linestyle=DASHES[2])
        most = min(500, 1200 // len(pairs))  # more on a curve cannot be seen at this width
        handles = [axes.plot(*_thinned(pair, most), **_look(index))[0] for index, pair in enumerate(pairs.values())]
        axes.set(xlim=(0, 1), ylim=(0, 1))
        _finish(figure, handles, list(pairs))
    return figure


def lines(
    series: Mapping[str, tuple[Array, Array]],
    *,
    xlabel: str,
    ylabel: str,
    bands: Mapping[str, tuple[Array, Array]] | None = None,
) -> Figure:
    """Draw lines over a common axis, such as a metric over epochs; they break at values that are not finite.

    Args:
        series: The x and the y of each line (two arrays of n), by the name in the legend.
        xlabel: The label of the x axis, with the unit.
        ylabel: The label of the y axis, with the unit.
        bands: The lower and the upper ends (two arrays of n) of shaded bands, by the name of their series.

    Returns:
        The figure.

    Raises:
        ValueError: If lengths differ, a band has no series, or there is no finite point at all.
    """
    bands = bands or {}
    if unknown := [name for name in bands if name not in series]:
        raise ValueError(f"lines: band {unknown[0]!r} belongs to none of the series {list(series)}")
    data = {name: _pair("lines", name, (*pair, *bands.get(name, ()))) for name, pair in series.items()}
    data = {name: np.where(np.abs(rows) <= LARGEST, rows, np.nan) for name, rows in data.items()}
    drawn = {name: np.all(np.isfinite(rows[:2]), axis=0) for name, rows in data.items()}
    if not any(good.any() for good in drawn.values()):
        raise ValueError("lines: there is no finite point to draw")
    with _style():
        figure, axes = _axes(xlabel, ylabel)
        handles = []
        for index, (name, rows) in enumerate(data.items()):
            color, good = COLORS[index % len(COLORS)], drawn[name]
            if len(rows) == 4:
                axes.fill_between(rows[0], rows[2], rows[3], color=color, alpha=0.17, linewidth=0)
            alone = good & ~np.r_[False, good[:-1]] & ~np.r_[good[1:], False]
            dotted = good if good.size <= 20 else alone
            handles += axes.plot(rows[0], rows[1], marker="o" if dotted.any() else "", markersize=4.5,
                                 markeredgewidth=0, markevery=dotted.tolist(), **_look(index))  # fmt: skip
        whole = all(np.all(rows[0, good] == np.round(rows[0, good])) for rows, good in
                    zip(data.values(), drawn.values(), strict=True))  # fmt: skip
        axes.xaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10], integer=whole))
        axes.yaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10]))
        _finish(figure, handles, list(data))
    return figure


def scatter(series: Mapping[str, tuple[Array, Array]], *, xlabel: str, ylabel: str) -> Figure:
    """Draw points in the plane, later series above earlier ones.

    Points that are not finite are left out and counted in a note.

    Args:
        series: The x and the y of the points (two arrays of n), by the name in the legend.
        xlabel: The label of the x axis.
        ylabel: The label of the y axis.

    Returns:
        The figure.

    Raises:
        ValueError: If lengths differ, or there is no finite point at all.
    """
    data = {name: _pair("scatter", name, pair) for name, pair in series.items()}
    kept = {name: points[:, (np.abs(points) <= LARGEST).all(0)] for name, points in data.items()}
    if not any(points.size for points in kept.values()):
        raise ValueError("scatter: there is no finite point to draw")
    lost = sum(data[name].shape[1] - points.shape[1] for name, points in kept.items())
    with _style():
        figure, axes = _axes(xlabel, ylabel, SQUARE)
        handles = [
            axes.plot(x, y, "o", color=COLORS[index % len(COLORS)], markersize=3.6, alpha=0.6, markeredgewidth=0)[0]
            for index, (x, y) in enumerate(kept.values())
        ]
        _finish(figure, handles, list(data), f"{lost:,} points are not finite (left out)." if lost else "")
    return figure


def svg(figure: Figure) -> Markup:
    """Render a figure as an <svg> element for a page.

    The same figure gives the same bytes. Text remains text, in the page's font; colors are the page's variables, so
    that they follow its light or dark style; the element refers to nothing outside of it.

    >>> svg(lines({"loss": ([1, 2], [0.4, 0.3])}, xlabel="epoch", ylabel="nats")).startswith("<svg")
    True
    """
    buffer = io.BytesIO()
    with _style():
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    drawn = buffer.getvalue()
    root = ElementTree.fromstring(drawn)
    for parent in list(root.iter()):
        for child in list(parent):
            if _local(child.tag) in ("metadata", "style", "clipPath"):  # nothing is drawn beyond its axes
                parent.remove(child)
    _share_style(root)
    used = {element.get(HREF, "")[1:] for element in root.iter()}
    prefix = f"f{hashlib.sha256(drawn).hexdigest()[:8]}-"  # names hold throughout a page
    names = {name: f"{prefix}{number}" for number, name in enumerate(sorted(used - {""}))}
    for element in root.iter():
        element.tag = _local(element.tag)
        kept = {_local(key): value for key, value in element.attrib.items() if key != "clip-path"}
        if (name := kept.pop("id", None)) in used:
            kept["id"] = names[str(name)]
        if "href" in kept:
            kept["href"] = "#" + names[kept["href"][1:]]
        if "style" in kept:
            kept["style"] = _page_style(kept["style"])
        for key in {"d", "x", "y", "transform"} & kept.keys():
            kept[key] = _compact(kept[key])
        element.attrib = kept
        element.text, element.tail = (text and text.strip() for text in (element.text, element.tail))
    root.attrib = {"viewBox": root.attrib["viewBox"], "role": "img", "aria-label": _described(figure)}
    return Markup(ElementTree.tostring(root, encoding="unicode"))


def save(figure: Figure, path: Path) -> list[Path]:
    """Write a figure as PDF and as PNG (200 dots per inch), each whole or not at all.

    Args:
        figure: The figure.
        path: The files' common name, without a suffix.

    Returns:
        The files written. The same figure gives the same bytes.
    """
    written = []
    for suffix, metadata in (("pdf", {"CreationDate": None}), ("png", {"Software": None})):
        written.append(path.with_name(f"{path.name}.{suffix}"))
        with _style(), replacing(written[-1]) as temporary:
            figure.savefig(temporary, format=suffix, dpi=200, facecolor="white", metadata=metadata)
    return written


@contextmanager
def _style() -> Iterator[None]:
    """Apply our settings on top of matplotlib's defaults, and restore the host program's settings after the block."""
    with _LOCK, matplotlib.style.context(STYLE, after_reset=True), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing", UserWarning)  # a browser has more fonts
        yield


def _axes(xlabel: str, ylabel: str, height: float = HEIGHT) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    axes = figure.subplots()
    axes.set_xlabel(_wrapped(xlabel, 50), parse_math=False)
    axes.set_ylabel(_wrapped(ylabel, 32), parse_math=False)
    return figure, axes


def _finish(figure: Figure, handles: Sequence[Artist], names: Sequence[str], note: str = "") -> None:
    """Add the legend above and the note below, and make the figure higher by their size."""
    columns = 2 if max(map(len, names)) <= 20 else 1
    # Set afterwards: matplotlib leaves out names that start with an underscore.
    legend = figure.legend(handles, ["-"] * len(names), loc="outside upper left", ncols=columns, borderaxespad=0)
    for text, name in zip(legend.get_texts(), names, strict=True):
        text.set_parse_math(False)
        text.set_text(_wrapped(name, 46))
    rows = -(-len(names) // columns) + sum(text.get_text().count("\n") for text in legend.get_texts())
    if note:
        note = _wrapped(note, 62)
        figure.supxlabel(note, x=0.01, ha="left", fontsize=9, color=SOFT, parse_math=False)
        rows += note.count("\n") + 1
    figure.set_figheight(figure.get_figheight() + 0.2 * rows)
    figure.draw_without_rendering()
    figure.set_layout_engine("none")  # it is laid out once, not for each file


def _look(index: int) -> dict[str, Any]:
    """Return color and dashes of a line: seven colors and four dashes make 28 that differ."""
    return {"color": COLORS[index % len(COLORS)], "linestyle": _dash(index)}


def _dash(index: int) -> Any:
    return DASHES[index % len(DASHES)]


def _wrapped(text: str, width: int) -> str:
    """Break a text into lines of this width, and remove the characters that no font has."""
    return "\n".join(textwrap.wrap("".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text), width,
                                   break_on_hyphens=False))  # fmt: skip


def _pair(what: str, name: str, arrays: Sequence[Array]) -> Floats:
    """Return arrays of n as one array (arrays x n)."""
    rows = [np.asarray(values, np.float64) for values in arrays]
    if any(values.ndim != 1 or values.shape != rows[0].shape for values in rows):
        raise ValueError(f"{what}: arrays of {name!r} are {[v.shape for v in rows]}, not of one length")
    return np.stack(rows)


def _thinned(curve: Floats, most: int) -> Floats:
    """Return at most `most` points of a curve (2 x n), evenly spaced over its length, with the first and the last."""
    travelled = np.cumsum(np.r_[0, np.abs(np.diff(curve)).sum(0)])
    at = np.searchsorted(travelled, np.linspace(0, travelled[-1], most))
    return curve if curve.shape[1] <= most else curve[:, np.unique(np.r_[at[:-1], curve.shape[1] - 1])]


def _edges(found: Bins) -> tuple[Floats, dict[str, float]]:
    """Return the edges of all bins, outer bars and the gaps beside them, and the positions of the outer bars in use.

    Returns:
        bins + 5 edges, and the middles of the outer bars by their side: "low", "high".
    """
    low, high = found.places[[0, -1]]
    gap, bar = 0.02 * (high - low), 0.04 * (high - low)
    edges = np.r_[low - gap - bar, low - gap, found.places, high + gap, high + gap + bar]
    middles = {"low": low - gap - bar / 2, "high": high + gap + bar / 2}
    sides = {"low": 0, "high": -1}
    outer = {side: float(middles[side]) for side, at in sides.items() if found.shares[:, at].any()}
    return found.scale.inverse(edges), outer


def _suffix(found: Bins) -> str:
    """Return the addition to the label of an axis that is logarithmic."""
    unit = found.scale.unit
    if not unit:
        return ""
    return " (log scale)" if found.places[0] > 0.99 else f" (log scale, linear within \u00b1{short(unit)})"


def _set_ticks(axes: Axes, found: Bins, outer: Mapping[str, float]) -> None:
    """Label round numbers and, below the outer bars, the ends of the axis, which take precedence if labels overlap."""
    low, high = found.places[[0, -1]]
    shown = {side: ("<" if side == "low" else ">") + short(float(found.scale.inverse(low if side == "low" else high)))
             for side in outer}  # fmt: skip
    ticks = _round_numbers(found.scale, low, high)
    far = 0.12 * (high - low)
    clear = [all(abs(place - other) > far for other in outer.values()) for place in found.scale.forward(ticks)]
    names = log_labels(ticks) if found.scale.unit else even_labels(ticks)
    kept = [(tick, name) for tick, name, good in zip(ticks, names, clear, strict=True) if good]
    kept += [(float(found.scale.inverse(outer[side])), name) for side, name in shown.items()]
    axes.xaxis.set_major_locator(FixedLocator([tick for tick, _ in kept]))
    axes.xaxis.set_major_formatter(FixedFormatter([name for _, name in kept]))
    axes.xaxis.set_minor_locator(NullLocator())


def _round_numbers(scale: Scale, low: float, high: float) -> list[float]:
    """Return about six round numbers between two places of a scale."""
    ends = scale.inverse([low, high])
    factors = (1.0,) if high - low > 2.5 else (1.0, 2.0, 5.0)
    even = MaxNLocator(6, steps=[1, 2, 5, 10])
    locator: Any = even
    if scale.unit and low > 0.99:
        locator = LogLocator(subs=factors, numticks=7)
    elif scale.unit:
        locator = SymmetricalLogLocator(base=10, linthresh=scale.unit, subs=factors)
        locator.set_params(numticks=6)
    ticks = [float(tick) for tick in locator.tick_values(*ends) if ends[0] <= tick <= ends[1]]
    return ticks if len(ticks) > 2 else [float(t) for t in even.tick_values(*ends) if ends[0] <= t <= ends[1]]


def _percents(top: float) -> list[float]:
    """Return the shares up to the largest whose labels do not overlap on a square-root scale."""
    kept = [0.0]
    for share in PERCENTS:
        if share <= top and all(abs(share**0.5 - other**0.5) > 0.1 * top**0.5 for other in kept):
            kept.append(share)
    return kept


def _not_shown(arrays: Mapping[str, Floats]) -> list[str]:
    """Return the notes of a histogram about values that are not finite."""
    notes = []
    for name, values in arrays.items():
        lost, endless = int(np.isnan(values).sum()), int(np.isinf(values).sum())
        said = [f"{endless:,} infinite"] * bool(endless) + [f"{lost:,} not a number (left out)"] * bool(lost)
        notes += [f"{name}: {' and '.join(said)} of {values.size:,}."] if said else []
    return notes


def _local(name: str) -> str:
    return name.rpartition("}")[2]


def _compact(places: str) -> str:
    """Write coordinates, or a path, in tenths of a pixel, and small round marks in hundredths."""
    mark = re.search("[CQ]", places)
    text = re.sub(r"-?\d+\.\d+", lambda m: f"{round(float(m[0]), 2 if mark else 1):.9g}", " ".join(places.split()))
    return text if mark else re.sub(r"(?<=\d) ?L ", " ", text)  # a line is what follows if nothing else is said


def _share_style(root: ElementTree.Element) -> None:
    """Move the style that all marks of a group have to the group: a map has thousands of them."""
    for group in root.iter():
        styles = {mark.get("style") if _local(mark.tag) == "use" else None for mark in group}
        if len(styles) == 1 and (style := styles.pop()):
            group.set("style", style)
            for mark in group:
                mark.attrib.pop("style", None)


def _page_style(style: str) -> str:
    """Translate a style of matplotlib's into the page's font and colors."""
    said = dict(part.strip().split(": ", 1) for part in style.split(";") if ": " in part)
    said.pop("font-family", None)
    if font := said.pop("font", None):  # older matplotlib writes it all in one
        said["font-size"] = next(word for word in font.split() if word.endswith("px"))
    return ";".join(f"{key}:{VARIABLES.get(value, value)}" for key, value in said.items())


def _described(figure: Figure) -> str:
    """Describe in words what a figure shows, for readers who cannot see it."""
    axes = figure.axes[0]
    names = [text.get_text() for legend in figure.legends for text in legend.get_texts()]
    return " ".join(f"{axes.get_ylabel()} over {axes.get_xlabel()}: {', '.join(names)}".split())
