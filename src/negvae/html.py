"""Building blocks of self-contained HTML reports: tables, histograms, curves and image grids.

Pure functions that return text. The same input gives the same bytes, every string from a caller is escaped, and
a page holds no script and asks for nothing from elsewhere. Figures take their colors from the page's style sheet.
"""

from __future__ import annotations

import base64
import io
import math
import os
import re
import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from itertools import pairwise
from numbers import Integral, Real
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Array = NDArray[Any]
Floats = NDArray[np.float64]
Ticks = list[tuple[float, str]]  # where, in pixels, and what it says

WIDTH, HEIGHT, TOP, RIGHT, FOOT = 440, 290, 30, 14, 26  # of a chart, in its own pixels; FOOT holds the tick labels
POINTS = 500  # more cannot be seen at this width
LARGEST = 1e300  # finite values are held within this, so that no difference of two of them overflows

# Okabe and Ito's palette, told apart with any color vision. The eighth color, yellow, is lost on white.
# Blue and sky blue change places on dark ground. Four dashes and seven colors make 28 distinct lines.
_COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "currentColor")
_DASHES = ("none", "7 3", "2 2.5", "9 3 2 3")
_VARIABLES = "".join(f"--c{i}:{color};" for i, color in enumerate(_COLORS))
_CLASSES = "".join(f".c{i}{{--c:var(--c{i})}}" for i in range(len(_COLORS)))
_CLASSES += "".join(f".d{i}{{stroke-dasharray:{dash}}}" for i, dash in enumerate(_DASHES))

_STYLE = """
:root{color-scheme:light dark;--ink:#1b1d20;--soft:#5a6068;--rule:#dde0e4;--ground:#fff;--mark:#e8f1f8;VARIABLES}
@media screen and (prefers-color-scheme:dark){
:root{--ink:#e6e8eb;--soft:#a0a6ad;--rule:#363a3f;--ground:#15171a;--mark:#1d2b36;--c0:#56b4e9;--c5:#2b8fd0}}
*{box-sizing:border-box}html{-webkit-text-size-adjust:100%}
body{margin:0 auto;max-width:1160px;padding:2.5rem clamp(1rem,4vw,2.5rem) 3rem;background:var(--ground);
color:var(--ink);font:16px/1.55 system-ui,-apple-system,"Segoe UI",Roboto,"Helvetica Neue",Arial,sans-serif;
overflow-wrap:anywhere}
h1{font-size:1.8rem;line-height:1.2;letter-spacing:-.015em;margin:0}
h2{font-size:1.2rem;line-height:1.3;letter-spacing:-.005em;margin:3rem 0 .5rem;padding-top:1rem;
border-top:1px solid var(--rule)}
p{max-width:68ch;margin:.5rem 0 1rem}header p{font-size:1.05rem;color:var(--soft);margin:.4rem 0 0}
nav{margin-top:1.2rem;font-size:.9rem;display:flex;flex-wrap:wrap;gap:.2rem 1.2rem}
a{color:var(--c0);text-decoration-thickness:1px;text-underline-offset:.15em}
footer{margin-top:3.5rem;padding-top:1rem;border-top:1px solid var(--rule);font-size:.85rem;color:var(--soft)}
figcaption,caption{font-size:.85rem;line-height:1.45;color:var(--soft);text-align:left}
.wide{overflow-x:auto;margin:1rem 0}
table{border-collapse:collapse;font-size:.92rem;line-height:1.4;font-variant-numeric:tabular-nums;
overflow-wrap:normal}
caption{caption-side:bottom;padding-top:.6rem}
th,td{padding:.42rem .8rem;text-align:left;vertical-align:baseline;border-bottom:1px solid var(--rule);font-weight:400}
thead th{font-weight:600;vertical-align:bottom;border-bottom:1.5px solid var(--soft)}
tbody tr:last-child>*{border-bottom:1.5px solid var(--soft)}
.right{text-align:right}td.right{white-space:nowrap}.center{text-align:center}
.mark>*{background:var(--mark);font-weight:600}
.row{display:flex;flex-wrap:wrap;gap:1.2rem 2rem;align-items:flex-start;margin:1rem 0}
figure{margin:1rem 0;min-width:0}.row>figure{margin:0}
.plot{width:100%;max-width:33rem}.row>.plot{flex:1 1 19rem}
.head{margin:0 0 .3rem;font-weight:600;font-size:.95rem;line-height:1.35}
.legend{list-style:none;margin:0 0 .4rem;padding:0;display:flex;flex-wrap:wrap;gap:.05rem 1.1rem;font-size:.85rem}
.legend li{display:flex;align-items:center;gap:.45rem}.legend svg{flex:none;width:26px;height:10px}
.plot>svg{display:block;width:100%;height:auto;overflow:visible}
figcaption{margin-top:.4rem}.pixels{max-width:100%}
.pixels img{display:block;max-width:100%;height:auto;image-rendering:pixelated}
svg text{font-size:12px;fill:var(--soft);font-variant-numeric:tabular-nums}svg .name{fill:var(--ink)}
svg path{fill:none}.axis{stroke:var(--soft)}.grid{stroke:var(--rule)}
.line{stroke:var(--c);stroke-width:1.9;stroke-linejoin:round}
.fill{stroke:var(--c);stroke-width:1.4}svg .fill,svg .band{fill:var(--c);fill-opacity:.17}
.dots{stroke:var(--c);stroke-width:5.5;stroke-linecap:round}
dl{display:grid;grid-template-columns:minmax(8rem,max-content) 1fr;gap:.3rem 1.5rem;font-size:.9rem;margin:1rem 0;
font-variant-numeric:tabular-nums}dt{color:var(--soft)}dd{margin:0}
@media(max-width:520px){h1{font-size:1.5rem}dl{grid-template-columns:1fr;gap:0}dd{margin-bottom:.5rem}
th,td{padding:.4rem .55rem}}
@media print{body{max-width:none;padding:0;font-size:10.5pt}nav{display:none}h2{break-after:avoid;margin-top:1.5rem}
figure,tr{break-inside:avoid}.wide{overflow:visible}.row>.plot{flex-basis:14rem}}
""".replace("VARIABLES", _VARIABLES)

_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; form-action 'none'"


@dataclass(frozen=True)
class Section:
    """A titled part of a page.

    Attributes:
        title: plain text.
        body: safe HTML, as the functions of this module return it.
        intro: plain text below the title.
    """

    title: str
    body: str
    intro: str = ""


def page(title: str, sections: Sequence[Section], *, subtitle: str = "", footer: str = "") -> str:
    """One complete document; from four sections on, links to them stand at its top."""
    titles = [(f"s{number}", escape(section.title)) for number, section in enumerate(sections, 1)]
    links = "".join(f'<a href="#{anchor}">{text}</a>' for anchor, text in titles)
    parts = [
        f'<section id="{anchor}"><h2>{text}</h2>{_element("p", section.intro)}{section.body}</section>\n'
        for (anchor, text), section in zip(titles, sections, strict=True)
    ]
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{escape(_POLICY)}">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        '<meta name="color-scheme" content="light dark"><meta name="referrer" content="no-referrer">'
        f"<title>{escape(title)}</title><style>{_STYLE}{_CLASSES}</style></head>\n<body>"
        f"<header><h1>{escape(title)}</h1>{_element('p', subtitle)}</header>"
        f"{f'<nav aria-label="Contents">{links}</nav>' if len(sections) > 3 else ''}\n"
        f"<main>{''.join(parts)}</main>{_element('footer', footer)}</body></html>\n"
    )


def write(path: Path, html: str) -> None:
    """Write a page whole or not at all, making the folders it needs."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        # File names can hold lone surrogates, which UTF-8 has no bytes for.
        temporary.write_text(html, encoding="utf-8", errors="xmlcharrefreplace", newline="\n")
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def table(
    header: Sequence[str],
    rows: Sequence[Sequence[str | float]],
    *,
    caption: str = "",
    highlight: Sequence[int] = (),
    align: Sequence[str] | None = None,
) -> str:
    """A table that scrolls within its own frame where the screen is narrow.

    Args:
        header: one name for each column.
        rows: cells; text stays as it is, the floats of a column get the same number of decimals.
        caption: plain text below the table.
        highlight: numbers of the rows to set off, from 0.
        align: "left", "right" or "center" for each column; left out, columns of numbers are set right.

    Raises:
        ValueError: a row or `align` does not fit the header, or `highlight` names no row.
    """
    for index, row in enumerate(rows):
        if len(row) != len(header):
            raise ValueError(f"table: row {index} has {len(row)} cells, the header {len(header)}")
    if any(not 0 <= index < len(rows) for index in highlight):
        raise ValueError(f"table: highlight {list(highlight)} names rows beyond the {len(rows)} there are")
    columns = [_format([row[column] for row in rows]) for column in range(len(header))]
    align = align or ["right" if _numeric(cells) else "left" for cells in columns]
    if len(align) != len(header) or not {*align} <= {"left", "right", "center"}:
        raise ValueError(f"table: align {list(align)} is not left, right or center for {len(header)} columns")
    sides = ["" if side == "left" else f' class="{side}"' for side in align]
    head = "".join(f'<th scope="col"{side}>{escape(name)}</th>' for side, name in zip(sides, header, strict=True))
    body = []
    for index in range(len(rows)):
        cells = [f"<td{side}>{escape(column[index])}</td>" for side, column in zip(sides, columns, strict=True)]
        if cells and align[0] == "left":  # text in front names its row
            cells[0] = f'<th scope="row">{cells[0][4:-5]}</th>'
        body.append(f"<tr{' class="mark"' if index in highlight else ''}>{''.join(cells)}</tr>\n")
    return (
        f'<div class="wide" tabindex="0"><table>{_element("caption", caption)}'
        f"<thead><tr>{head}</tr></thead>\n<tbody>{''.join(body)}</tbody></table></div>\n"
    )


def definition_list(pairs: Mapping[str, str]) -> str:
    """Names and what they stand for, such as where results come from."""
    return f"<dl>{''.join(f'<dt>{escape(k)}</dt><dd>{escape(v)}</dd>' for k, v in pairs.items())}</dl>\n"


def figure_row(*figures: str) -> str:
    """Figures side by side that wrap where the screen is narrow."""
    return f'<div class="row">{"".join(figures)}</div>\n'


def image_grid(images: Array, *, columns: int = 10, scale: int = 2, caption: str = "", alt: str = "") -> str:
    """Images as one PNG, with transparent gutters of one image pixel between them.

    Args:
        images: uint8, N x C x H x W with C 1 or 3.
        columns: images in a line.
        scale: screen pixels for each image pixel.
        caption: plain text below.
        alt: what a reader who cannot see the images should know; the caption by default.

    Raises:
        ValueError: the array is something else or empty, or `columns` or `scale` is below 1.
    """
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[1] not in (1, 3) or not images.size:
        raise ValueError(f"images are {images.dtype} {images.shape}: expected uint8, N x C x H x W with C 1 or 3")
    if columns < 1 or scale < 1:
        raise ValueError(f"image grid: columns {columns} and scale {scale} should be 1 or more")
    count, channels, height, width = images.shape
    columns = min(columns, count)
    canvas = np.zeros((-(-count // columns) * (height + 1) - 1, columns * (width + 1) - 1, channels + 1), np.uint8)
    for index, image in enumerate(images):
        top, left = index // columns * (height + 1), index % columns * (width + 1)
        cell = canvas[top : top + height, left : left + width]
        cell[..., :-1], cell[..., -1] = image.transpose(1, 2, 0), 255
    buffer = io.BytesIO()
    Image.fromarray(canvas).save(buffer, "PNG", optimize=True)  # two channels make it LA, four RGBA
    alt = alt or caption or f"{count} images of {width} x {height} pixels"
    return (
        f'<figure class="pixels"><img width="{canvas.shape[1] * scale}" height="{canvas.shape[0] * scale}" '
        f'alt="{escape(alt)}" src="data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}">'
        f"{_element('figcaption', caption)}</figure>\n"
    )


def histogram(
    series: Mapping[str, Array], *, xlabel: str, title: str = "", bins: int = 60, log_x: bool | None = None
) -> str:
    """Overlaid distributions of scores: the share of each series that falls into each bin.

    The axis runs from the lowest 0.5% to the highest 99.5% quantile of any series, and on to the extremes where
    they are near; what lies beyond, infinities with it, is gathered in an outer bar on its side. Where a series
    would vanish into a few bins the axis turns logarithmic (linear around zero if there are negative values), and
    where one peak would flatten the other series heights go by their square root. Both are said at the axis.

    Args:
        series: numbers of any shape, by the name in the legend. NaN are left out and counted in the caption.
        xlabel: what the numbers are, with their unit.
        title: plain text above.
        bins: how many, apart from the outer bars.
        log_x: force a logarithmic axis or forbid it.

    Raises:
        ValueError: there is no series, one is empty, or `bins` is below 1.
    """
    if not series or bins < 1:
        raise ValueError(f"histogram: {len(series)} series in {bins} bins: nothing to show")
    if empty := [name for name, values in series.items() if not np.size(values)]:
        raise ValueError(f"histogram: series {empty[0]!r} is empty")
    arrays = {name: np.asarray(values, np.float64).reshape(-1) for name, values in series.items()}
    axis, edges, shares = bin_shares(list(arrays.values()), bins, log_x)

    peaks = shares.max(1)
    rooted = bool(peaks.min() * 8 < peaks.max())
    height: Callable[[Any], Any] = np.sqrt if rooted else np.asarray
    top = float(peaks.max()) or 1.0
    up = _Scale(0, float(height(top)), HEIGHT - FOOT, TOP)
    percents = [m * 10.0**e for e in (1, 0, -1, -2) for m in (5, 2, 1)] if rooted else _ticks(0, top * 100)
    labels = [f"{p:g}%" if p else "0" for p in [*percents, *([100.0, 0.0] if rooted else [])]]
    rises = sorted((float(up(height(float(label.rstrip("%")) / 100))), label) for label in labels)
    yticks = [(y, label) for y, label in rises if y >= TOP - 0.5]
    if rooted:  # the zero comes first, and what would crowd upon it goes
        yticks = _uncrowded(yticks[::-1], [22.0] * len(yticks))

    left = _margin(yticks)
    below, above = (14 if shares[:, side].any() else 0 for side in (0, -1))
    across = _Scale(edges[0], edges[-1], left + 1.5 * below, WIDTH - RIGHT - 1.5 * above)
    starts, ends = across(edges[:-1]), across(edges[1:])
    starts = np.concatenate([[left], starts, [WIDTH - RIGHT - above]])
    ends = np.concatenate([[left + below], ends, [WIDTH - RIGHT]])
    shapes = [
        f'<path class="fill {_look(index)}" d="{_steps(starts, ends, up(height(share)), HEIGHT - FOOT)}">'
        f"<title>{escape(name)}</title></path>"
        for index, (name, share) in enumerate(zip(series, shares, strict=True))
    ]
    low, high = (_short(float(axis.inverse(edge))) for edge in (edges[0], edges[-1]))
    outer: Ticks = [(left + below / 2, f"<{low}")] if below else []
    outer += [(WIDTH - RIGHT - above / 2, f">{high}")] if above else []
    xticks = outer + [(float(across(at)), text) for at, text in axis.ticks(edges[0], edges[-1])]
    notes = ["Outer bars hold the values beyond the axis."] if outer else []
    for name, values in arrays.items():
        lost, endless = int(np.isnan(values).sum()), int(np.isinf(values).sum())
        parts = [f"{endless:,} infinite"] * bool(endless) + [f"{lost:,} not a number (left out)"] * bool(lost)
        if parts:
            notes.append(f"{name}: {' and '.join(parts)} of {values.size:,}.")
    return _chart(
        shapes,
        list(series),
        xticks,
        yticks,
        base=[(left, left + below), (across.start, across.end), (WIDTH - RIGHT - above, WIDTH - RIGHT)],
        xlabel=xlabel + axis.suffix,
        ylabel="share of each series" + (" (square-root scale)" if rooted else ""),
        title=title,
        note=" ".join(notes),
        kind="Histogram",
    )


def roc(curves: Mapping[str, tuple[Array, Array]], *, title: str = "") -> str:
    """ROC curves of at most 500 points each over the diagonal of chance.

    Args:
        curves: rates of false and of true positives (two arrays of n >= 2, both within 0 to 1), by the name in
            the legend; the caller puts the area under the curve into it.
        title: plain text above.

    Raises:
        ValueError: there is no curve, or one is not such a pair.
    """
    if not curves:
        raise ValueError("ROC: there is no curve")
    height = WIDTH - 20  # nearly square, as both axes are rates
    ticks = [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]
    up = _Scale(0, 1, height - FOOT, TOP)
    yticks = [(float(up(t)), f"{t:g}") for t in ticks]
    across = _Scale(0, 1, _margin(yticks), WIDTH - RIGHT)
    shapes = [f'<path class="grid d1" d="M{across.start:g} {up.start:g}L{across.end:g} {up.end:g}"/>']
    for index, (name, (fpr, tpr)) in enumerate(curves.items()):
        x, y = np.asarray(fpr, np.float64), np.asarray(tpr, np.float64)
        if x.ndim != 1 or x.shape != y.shape or len(x) < 2:
            raise ValueError(f"ROC: rates of {name!r} are {x.shape} and {y.shape}: expected two of the same length")
        if not all(np.all((rates >= 0) & (rates <= 1)) for rates in (x, y)):
            raise ValueError(f"ROC: rates of {name!r} are not all between 0 and 1")
        d = _polyline(across(x), up(y), min(POINTS, 2400 // len(curves)))
        shapes.append(f'<path class="line {_look(index)}" d="{d}"><title>{escape(name)}</title></path>')
    return _chart(
        shapes,
        list(curves),
        [(float(across(t)), f"{t:g}") for t in ticks],
        yticks,
        base=[(across.start, across.end)],
        xlabel="false-positive rate",
        ylabel="true-positive rate",
        title=title,
        height=height,
        kind="ROC curves",
    )


def lines(
    series: Mapping[str, tuple[Array, Array]],
    *,
    xlabel: str,
    ylabel: str,
    title: str = "",
    bands: Mapping[str, tuple[Array, Array]] | None = None,
) -> str:
    """Lines over a common axis, such as a metric over epochs; they break where a value is not finite.

    Args:
        series: x and y (two arrays of n) by the name in the legend.
        xlabel: what x is, with its unit.
        ylabel: what y is, with its unit.
        title: plain text above.
        bands: lower and upper ends (two arrays of n) of shaded bands, by the name of their series.

    Raises:
        ValueError: lengths differ, a band has no series, or there is no finite point at all.
    """
    bands = bands or {}
    if unknown := [name for name in bands if name not in series]:
        raise ValueError(f"lines: band {unknown[0]!r} belongs to none of the series {list(series)}")
    data: dict[str, tuple[Floats, ...]] = {}
    for name, pair in series.items():
        data[name] = tuple(np.asarray(values, np.float64) for values in (*pair, *bands.get(name, ())))
        if any(values.ndim != 1 or values.shape != data[name][0].shape for values in data[name]):
            raise ValueError(f"lines: arrays of {name!r} are not one-dimensional and of the same length")
        data[name] = tuple(np.where(np.abs(v) < LARGEST, v, np.nan) for v in data[name])
    drawn = [np.isfinite(arrays[0]) & np.isfinite(arrays[1]) for arrays in data.values()]
    if not any(mask.any() for mask in drawn):
        raise ValueError("lines: there is no finite point to draw")
    xs = np.concatenate([arrays[0][mask] for arrays, mask in zip(data.values(), drawn, strict=True)])
    ys = np.concatenate([v[mask & np.isfinite(v)] for a, mask in zip(data.values(), drawn, strict=True) for v in a[1:]])
    (x_low, x_high), (y_low, y_high) = _widened(xs.min(), xs.max()), _widened(ys.min(), ys.max())
    pad = (y_high - y_low) * 0.04
    up = _Scale(y_low - pad, y_high + pad, HEIGHT - FOOT, TOP)
    rises = _ticks(up.low, up.high)
    yticks = [(float(up(t)), text) for t, text in zip(rises, _labels(rises), strict=True)]
    across = _Scale(x_low, x_high, _margin(yticks), WIDTH - RIGHT)
    runs_across = _ticks(x_low, x_high, whole=bool(np.all(xs == np.round(xs))))

    under, over = [], []
    for index, (name, (x, y, *band)) in enumerate(data.items()):
        look, label = _look(index), f"<title>{escape(name)}</title>"
        if band:
            for start, end in _runs(np.isfinite(x + band[0] + band[1])):
                x_part = across(np.concatenate([x[start:end], x[start:end][::-1]]))
                y_part = up(np.concatenate([band[0][start:end], band[1][start:end][::-1]]))
                under.append(f'<path class="band {look}" d="{_polyline(x_part, y_part, POINTS)}z"/>')
        runs = _runs(np.isfinite(x + y))
        d = "".join(_polyline(across(x[a:b]), up(y[a:b]), max(2, POINTS * (b - a) // len(x))) for a, b in runs)
        over.append(f'<path class="line {look}" d="{d}">{label}</path>')
        few = len(x) <= 20
        dots = [f"M{_n(across(x[i]))} {_n(up(y[i]))}h0" for a, b in runs if few or b - a == 1 for i in range(a, b)]
        over += [f'<path class="dots c{index % len(_COLORS)}" d="{"".join(dots)}">{label}</path>'] if dots else []
    return _chart(
        under + over,
        list(series),
        [(float(across(t)), text) for t, text in zip(runs_across, _labels(runs_across), strict=True)],
        yticks,
        base=[(across.start, across.end)],
        xlabel=xlabel,
        ylabel=ylabel,
        title=title,
        kind="Lines",
    )
