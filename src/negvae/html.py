"""Building blocks of self-contained HTML reports: tables, histograms, curves and image grids.

Pure functions that return text. The same input gives the same bytes, strings from callers are escaped, and a
page holds no script and asks for nothing from elsewhere. Figures take their colors from the page's style.
"""

from __future__ import annotations

import base64
import io
import math
import re
import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from html import escape
from numbers import Integral
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from negvae.files import replacing

Array = NDArray[Any]
Floats = NDArray[np.float64]
Ticks = list[tuple[float, str]]  # where, in pixels, and what it says

WIDTH, HEIGHT, TOP, RIGHT, FOOT = 360, 244, 30, 14, 26  # of a chart; FOOT is the room below its axis
POINTS = 500  # more on a curve cannot be seen at this width
LARGEST = 1e200  # finite values are held within this, so that no arithmetic on them overflows
MINUS, TIMES = "\N{MINUS SIGN}", "\N{MULTIPLICATION SIGN}"
SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
NUMBER = re.compile(r"[+~<>\u2212-]?[\d.][\d\s.,%()\[\]e+\u00b1\u00d7\u2013\u2212-]*")  # "0.91 [0.90, 0.92]"
NO_NUMBER = {"", "-", "\N{EN DASH}", "\N{EM DASH}", "n/a", "NaN"}  # what stands in its place

# Okabe and Ito's palette, told apart with any color vision; its eighth color, yellow, is lost on white.
# Blue and sky blue change places on dark ground. Seven colors and four dashes make 28 distinct lines.
COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "var(--ink)")
DASHES = ("none", "7 3", "2 2.5", "9 3 2 3")
LOOKS = "".join(f".c{i}{{--c:var(--c{i})}}" for i in range(len(COLORS)))
LOOKS += "".join(f".d{i}{{stroke-dasharray:{dash}}}" for i, dash in enumerate(DASHES))
STYLE = f":root{{{''.join(f'--c{i}:{color};' for i, color in enumerate(COLORS))}}}{LOOKS}"
STYLE += """
:root{color-scheme:light dark;--ink:#1b1d20;--soft:#5a6068;--rule:#dde0e4;--ground:#fff;--mark:#e8f1f8}
@media screen and (prefers-color-scheme:dark){
:root{--ink:#e6e8eb;--soft:#a0a6ad;--rule:#363a3f;--ground:#15171a;--mark:#1d2b36;--c0:#56b4e9;--c5:#2b8fd0}}
*{box-sizing:border-box}html{-webkit-text-size-adjust:100%}
body{margin:0 auto;max-width:1160px;padding:2.5rem clamp(1rem,4vw,2.5rem) 3rem;background:var(--ground);
color:var(--ink);font:16px/1.55 system-ui,-apple-system,"Segoe UI",Roboto,"Helvetica Neue",Arial,sans-serif;
overflow-wrap:anywhere}
h1{font-size:1.8rem;line-height:1.2;letter-spacing:-.015em;margin:0}
h2{font-size:1.2rem;line-height:1.3;margin:3rem 0 .5rem;padding-top:1rem;border-top:1px solid var(--rule)}
p{max-width:68ch;margin:.5rem 0 1rem}header p{font-size:1.05rem;color:var(--soft);margin:.4rem 0 0}
nav{margin-top:1.2rem;font-size:.9rem;display:flex;flex-wrap:wrap;gap:.2rem 1.2rem}
a{color:var(--c0);text-decoration-thickness:1px;text-underline-offset:.15em}
footer{margin-top:3.5rem;padding-top:1rem;border-top:1px solid var(--rule);font-size:.85rem;color:var(--soft)}
figcaption{max-width:72ch;margin-top:.4rem;font-size:.85rem;line-height:1.45;color:var(--soft)}
.wide{overflow-x:auto}
table{border-collapse:collapse;font-size:.92rem;line-height:1.4;font-variant-numeric:tabular-nums;
overflow-wrap:normal}tbody th{min-width:6.5rem}
th,td{padding:.42rem .8rem;text-align:left;vertical-align:baseline;border-bottom:1px solid var(--rule);
font-weight:400}thead th{font-weight:600;vertical-align:bottom;border-bottom:1.5px solid var(--soft)}
tbody tr:last-child>*{border-bottom:1.5px solid var(--soft)}.mark>*{background:var(--mark);font-weight:600}
.right{text-align:right}td.right{white-space:nowrap}.center{text-align:center}
.row{display:flex;flex-wrap:wrap;gap:1.2rem 2rem;align-items:flex-start;margin:1rem 0}
figure{margin:1rem 0;min-width:0}.row>figure{margin:0}.plot{width:100%;max-width:24rem}
.row>.plot{flex:1 1 19rem}.head{margin:0 0 .3rem;font-weight:600;font-size:.95rem;line-height:1.35}
.legend{list-style:none;margin:0 0 .4rem;padding:0;display:flex;flex-wrap:wrap;gap:.05rem 1.1rem;
font-size:.85rem}.legend li{display:flex;align-items:center;gap:.45rem}
.legend svg{flex:none;width:26px;height:10px}.plot>svg{display:block;width:100%;height:auto;overflow:visible}
.pixels{max-width:100%}
.pixels img{display:block;max-width:100%;height:auto;image-rendering:pixelated}
svg text{font-size:12px;fill:var(--soft);font-variant-numeric:tabular-nums}svg .name{fill:var(--ink)}
path{fill:none}.axis{stroke:var(--soft)}.grid{stroke:var(--rule)}
.line{stroke:var(--c);stroke-width:1.9;stroke-linejoin:round}.fill{stroke:var(--c);stroke-width:1.4}
.fill,.band{fill:var(--c);fill-opacity:.17}.dots{stroke:var(--c);stroke-width:5.5;stroke-linecap:round}
.points{stroke:var(--c);stroke-width:3.4;stroke-linecap:round;stroke-opacity:.6}
dl{display:grid;grid-template-columns:minmax(8rem,max-content) 1fr;gap:.3rem 1.5rem;font-size:.9rem;
margin:1rem 0;font-variant-numeric:tabular-nums}dt{color:var(--soft)}dd{margin:0}
@media(max-width:520px){h1{font-size:1.5rem}dl{grid-template-columns:1fr;gap:0}dd{margin-bottom:.5rem}
th,td{padding:.4rem .55rem}}
@media print{body{max-width:none;padding:0;font-size:10.5pt}nav{display:none}
h2{break-after:avoid;margin-top:1.5rem}figure,tr{break-inside:avoid}.wide{overflow:visible}
.row>.plot{flex-basis:14rem}}
"""
POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; form-action 'none'"


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
    links = [f'<a href="#s{number}">{escape(section.title)}</a>' for number, section in enumerate(sections)]
    contents = f'<nav aria-label="Contents">{"".join(links)}</nav>' if len(links) > 3 else ""
    parts = [
        f'<section id="s{number}"><h2>{escape(section.title)}</h2>{_element("p", section.intro)}'
        f"{section.body}</section>\n"
        for number, section in enumerate(sections)
    ]
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{escape(POLICY)}">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        '<meta name="color-scheme" content="light dark"><meta name="referrer" content="no-referrer">'
        f"<title>{escape(title)}</title><style>{STYLE}</style></head>\n<body>"
        f"<header><h1>{escape(title)}</h1>{_element('p', subtitle)}{contents}</header>\n"
        f"<main>{''.join(parts)}</main>{_element('footer', footer)}</body></html>\n"
    )


def write(path: Path, html: str) -> None:
    """Write a page whole or not at all, making the folders it needs."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary:
        # File names can hold lone surrogates, which UTF-8 has no bytes for.
        temporary.write_text(html, encoding="utf-8", errors="xmlcharrefreplace", newline="\n")


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
    if not {*highlight} <= {*range(len(rows))}:
        raise ValueError(f"table: highlight {list(highlight)} names rows beyond the {len(rows)} there are")
    columns = [_column([row[number] for row in rows]) for number in range(len(header))]
    align = align or ["right" if _numeric(cells) else "left" for cells in columns]
    if len(align) != len(header) or not {*align} <= {"left", "right", "center"}:
        raise ValueError(f"table: align {list(align)} is not left, right or center for {len(header)} columns")
    head = [f'<th scope="col" class="{a}">{escape(name)}</th>' for a, name in zip(align, header, strict=True)]
    body = []
    for index, row in enumerate(zip(*columns, strict=True)):
        cells = [f'<td class="{a}">{escape(c)}</td>' for a, c in zip(align, row, strict=True)]
        if align[0] == "left":  # text in front names its row
            cells[0] = f'<th scope="row">{escape(row[0])}</th>'
        mark = ' class="mark"' if index in highlight else ""
        body.append(f"<tr{mark}>{''.join(cells)}</tr>\n")
    return (
        f'<figure><div class="wide" tabindex="0"><table><thead><tr>{"".join(head)}</tr></thead>\n'
        f"<tbody>{''.join(body)}</tbody></table></div>{_element('figcaption', caption)}</figure>\n"
    )


def definition_list(pairs: Mapping[str, str]) -> str:
    """Names and what they stand for, such as where results come from."""
    return f"<dl>{''.join(_element('dt', k) + f'<dd>{escape(v)}</dd>' for k, v in pairs.items())}</dl>\n"


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
        what = f"images are {images.dtype} {images.shape}"
        raise ValueError(f"{what}: expected uint8, N x C x H x W with C 1 or 3")
    if columns < 1 or scale < 1:
        raise ValueError(f"image grid: columns {columns} and scale {scale} should be 1 or more")
    count, channels, height, width = images.shape
    columns = min(columns, count)
    size = (math.ceil(count / columns) * (height + 1) - 1, columns * (width + 1) - 1)
    canvas = np.zeros((*size, channels + 1), np.uint8)  # the last channel is opacity
    for index, image in enumerate(images):
        top, left = index // columns * (height + 1), index % columns * (width + 1)
        canvas[top : top + height, left : left + width, :-1] = image.transpose(1, 2, 0)
        canvas[top : top + height, left : left + width, -1] = 255
    buffer = io.BytesIO()
    Image.fromarray(canvas).save(buffer, "PNG", optimize=True)
    alt = alt or caption or f"{count} images of {width} x {height} pixels"
    return (
        f'<figure class="pixels"><img width="{size[1] * scale}" height="{size[0] * scale}" '
        f'alt="{escape(alt)}" src="data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}">'
        f"{_element('figcaption', caption)}</figure>\n"
    )


def histogram(
    series: Mapping[str, Array],
    *,
    xlabel: str,
    title: str = "",
    bins: int = 60,
    log_x: bool | None = None,
    marks: Mapping[str, float] | None = None,
) -> str:
    """Overlaid distributions of scores: the share of each series that falls into each bin.

    The axis runs from the lowest 0.5% to the highest 99.5% quantile of any series, and on to the extremes
    where those are near; what lies beyond, infinities too, is gathered in an outer bar on its side. Where a
    series would vanish into a bin or two the axis turns logarithmic, and where one peak would flatten the
    others heights go by their square root. The figure says all of this.

    Args:
        series: numbers of any shape, by the name in the legend. NaN are left out and counted in the caption.
        xlabel: what the numbers are, with their unit.
        title: plain text above.
        bins: how many, apart from the outer bars.
        log_x: force a logarithmic axis or forbid it.
        marks: upright lines, such as a threshold, by the name in the legend; one beyond the axis lies on its edge.

    Raises:
        ValueError: there is no series, one is empty, or `bins` is below 1.
    """
    arrays = {name: np.asarray(values, np.float64).reshape(-1) for name, values in series.items()}
    if empty := [name for name, values in arrays.items() if not values.size]:
        raise ValueError(f"histogram: series {empty[0]!r} is empty")
    if not arrays or bins < 1:
        raise ValueError(f"histogram: {len(arrays)} series in {bins} bins: nothing to show")
    axis, edges, shares = _shares(list(arrays.values()), bins, log_x)

    peaks = shares.max(1)
    top = float(peaks.max()) or 1.0
    rooted = bool(peaks.min() * 8 < top)
    height: Callable[[Any], Any] = np.sqrt if rooted else np.asarray
    up = _Scale(0, float(height(top)), HEIGHT - FOOT, TOP)
    percents = [0, 100, 50, 20, 10, 5, 2, 1, 0.5, 0.2, 0.1] if rooted else _ticks(0, top * 100)
    shown = [(float(height(p / 100)), f"{round(p, 9):g}%" if p else "0") for p in percents if p <= top * 100]
    yticks = _uncrowded([(up(at), text) for at, text in shown], lambda _: 20)

    left, right = _margin(yticks), WIDTH - RIGHT
    below, above = (14 * int(shares[:, side].any()) for side in (0, -1))
    across = _Scale(edges[0], edges[-1], left + 1.5 * below, right - 1.5 * above)
    starts = np.array([left, *across(edges[:-1]), right - above])
    ends = np.array([left + below, *across(edges[1:]), right])
    shapes = [
        f'<path class="fill {_look(index)}" d="{_steps(starts, ends, up(height(share)), up.start)}">'
        f"<title>{escape(name)}</title></path>"
        for index, (name, share) in enumerate(zip(arrays, shares, strict=True))
    ]
    for index, (name, value) in enumerate((marks or {}).items(), len(arrays)):
        at = float(axis.forward(np.array(np.clip(value, -LARGEST, LARGEST))))
        x = across(at) if edges[0] <= at <= edges[-1] else left if at < edges[0] else right
        line = f'd="M{_n(x)} {_n(up.start)}V{_n(up.end)}"'
        shapes.append(f'<path class="line {_look(index)}" {line}><title>{escape(name)}</title></path>')
    outer = [(left + below / 2, f"<{_short(axis.inverse(edges[0]))}")] if below else []
    outer += [(right - above / 2, f">{_short(axis.inverse(edges[-1]))}")] if above else []
    notes = ["Outer bars hold all values beyond the axis."] if outer else []
    for name, values in arrays.items():
        lost, endless = int(np.isnan(values).sum()), int(np.isinf(values).sum())
        told = [f"{endless:,} infinite"] * bool(endless) + [f"{lost:,} not a number (left out)"] * bool(lost)
        notes += [f"{name}: {' and '.join(told)} of {values.size:,}."] if told else []
    return _chart(
        shapes,
        [*arrays, *(marks or {})],
        outer + [(across(float(at)), text) for at, text in axis.ticks(edges[0], edges[-1])],
        yticks,
        base=[(left, left + below), (across.start, across.end), (right - above, right)],
        xlabel=xlabel + axis.suffix(edges[0], edges[-1]),
        ylabel="share of each series" + " (square-root scale)" * rooted,
        title=title,
        note=" ".join(notes),
    )


def roc(curves: Mapping[str, tuple[Array, Array]], *, title: str = "") -> str:
    """ROC curves of at most 500 points each over the diagonal of chance.

    Args:
        curves: rates of false and of true positives (two arrays of n >= 2, all within 0 to 1), by the name in
            the legend; the caller puts the area under the curve into it.
        title: plain text above.

    Raises:
        ValueError: there is no curve, or one is not such a pair.
    """
    if not curves:
        raise ValueError("ROC: there is no curve")
    height = WIDTH - 8  # nearly square, as both axes are rates
    up = _Scale(0, 1, height - FOOT, TOP)
    ticks = [(t, f"{t:g}") for t in (0, 0.2, 0.4, 0.6, 0.8, 1)]
    yticks = [(up(t), text) for t, text in ticks]
    across = _Scale(0, 1, _margin(yticks), WIDTH - RIGHT)
    shapes = [f'<path class="axis d2" d="M{_n(across.start)} {_n(up.start)}L{_n(across.end)} {_n(up.end)}"/>']
    for index, (name, pair) in enumerate(curves.items()):
        x, y = (np.asarray(rates, np.float64) for rates in pair)
        if x.ndim != 1 or x.shape != y.shape or len(x) < 2:
            raise ValueError(f"ROC: {name!r} is {x.shape} and {y.shape}, not two arrays of one length")
        if not all(np.all((rates >= 0) & (rates <= 1)) for rates in (x, y)):
            raise ValueError(f"ROC: rates of {name!r} are not all between 0 and 1")
        path = _polyline(across(x), up(y), min(POINTS, 2400 // len(curves)))
        shapes.append(f'<path class="line {_look(index)}" d="{path}"><title>{escape(name)}</title></path>')
    return _chart(
        shapes,
        list(curves),
        [(across(t), text) for t, text in ticks],
        yticks,
        base=[(across.start, across.end)],
        xlabel="false-positive rate",
        ylabel="true-positive rate",
        title=title,
        height=height,
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
    data: dict[str, Floats] = {}  # 2 or 4 x n: x, y and the band
    for name, pair in series.items():
        arrays = [np.asarray(values, np.float64) for values in (*pair, *bands.get(name, ()))]
        if any(values.ndim != 1 or values.shape != arrays[0].shape for values in arrays):
            raise ValueError(f"lines: arrays of {name!r} are {[v.shape for v in arrays]}, not of one length")
        data[name] = np.stack(arrays)
        data[name][~(np.abs(data[name]) <= LARGEST)] = np.nan
    drawn = [rows[:, np.isfinite(rows[:2]).all(0)] for rows in data.values()]
    if not any(rows.size for rows in drawn):
        raise ValueError("lines: there is no finite point to draw")
    xs = np.concatenate([rows[0] for rows in drawn])
    ys = np.concatenate([rows[1:][np.isfinite(rows[1:])] for rows in drawn])
    (x_low, x_high), (low, high) = _widened(xs.min(), xs.max()), _widened(ys.min(), ys.max())
    pad = (high - low) * 0.04
    up = _Scale(low - pad, high + pad, HEIGHT - FOOT, TOP)
    yticks = [(up(at), text) for at, text in _labeled(_ticks(up.low, up.high))]
    across = _Scale(x_low, x_high, _margin(yticks), WIDTH - RIGHT)
    xticks = _labeled(_ticks(x_low, x_high, whole=bool(np.all(xs == np.round(xs)))))

    under, over = [], []
    for index, (name, rows) in enumerate(data.items()):
        x, y, label = across(rows[0]), up(rows[1:]), f"<title>{escape(name)}</title>"
        for a, b in _runs(np.isfinite(rows).all(0)) if len(rows) == 4 else []:
            round_trip = np.r_[x[a:b], x[a:b][::-1]], np.r_[y[1, a:b], y[2, a:b][::-1]]
            under.append(f'<path class="band {_look(index)}" d="{_polyline(*round_trip, POINTS)}z"/>')
        runs = _runs(np.isfinite(rows[:2]).all(0))
        path = "".join(_polyline(x[a:b], y[0, a:b], max(2, POINTS * (b - a) // len(x))) for a, b in runs)
        over.append(f'<path class="line {_look(index)}" d="{path}">{label}</path>')
        spots = [i for a, b in runs if len(x) <= 20 or b - a == 1 for i in range(a, b)]
        dots = "".join(f"M{_n(x[i])} {_n(y[0, i])}h0" for i in spots)
        over.append(f'<path class="dots c{index % len(COLORS)}" d="{dots}">{label}</path>' if dots else "")
    return _chart(
        under + over,
        list(series),
        [(across(at), text) for at, text in xticks],
        yticks,
        base=[(across.start, across.end)],
        xlabel=xlabel,
        ylabel=ylabel,
        title=title,
    )


def scatter(series: Mapping[str, tuple[Array, Array]], *, xlabel: str, ylabel: str, title: str = "") -> str:
    """Points in the plane, later series above earlier ones.

    Points that are not finite are left out and counted in the caption.

    Args:
        series: x and y (two arrays of n) by the name in the legend.
        xlabel: what x is.
        ylabel: what y is.
        title: plain text above.

    Raises:
        ValueError: lengths differ, or there is no finite point at all.
    """
    data: dict[str, Floats] = {}
    for name, pair in series.items():
        x, y = (np.asarray(values, np.float64) for values in pair)
        if x.ndim != 1 or x.shape != y.shape:
            raise ValueError(f"scatter: {name!r} is {x.shape} and {y.shape}, not two arrays of one length")
        data[name] = np.stack([x, y])
    kept = {name: points[:, (np.abs(points) <= LARGEST).all(0)] for name, points in data.items()}
    everything = np.concatenate([*kept.values(), np.zeros((2, 0))], axis=1)
    if not everything.size:
        raise ValueError("scatter: there is no finite point to draw")
    height = WIDTH - 8
    scales = []
    for values, start, end in ((everything[0], 0.0, WIDTH - RIGHT), (everything[1], height - FOOT, TOP)):
        low, high = _widened(values.min(), values.max())
        pad = (high - low) * 0.04
        scales.append(_Scale(low - pad, high + pad, start, end))
    yticks = [(scales[1](at), text) for at, text in _labeled(_ticks(scales[1].low, scales[1].high))]
    across, up = replace(scales[0], start=_margin(yticks)), scales[1]
    xticks = [(across(at), text) for at, text in _labeled(_ticks(across.low, across.high))]
    shapes = []
    for index, (name, points) in enumerate(kept.items()):
        spots = "".join(f"M{_n(x)} {_n(y)}h0" for x, y in zip(across(points[0]), up(points[1]), strict=True))
        label = f"<title>{escape(name)}</title>"
        shapes.append(f'<path class="points c{index % len(COLORS)}" d="{spots}">{label}</path>' if spots else "")
    lost = sum(data[name].shape[1] - points.shape[1] for name, points in kept.items())
    return _chart(
        shapes,
        list(series),
        xticks,
        yticks,
        base=[(across.start, across.end)],
        xlabel=xlabel,
        ylabel=ylabel,
        title=title,
        note=f"{lost:,} points are not finite (left out)." if lost else "",
        height=height,
        points=True,
    )


@dataclass(frozen=True)
class _Scale:
    """A linear map from low..high to the pixels start..end."""

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: Any) -> Any:
        return self.start + (value - self.low) / (self.high - self.low) * (self.end - self.start)


@dataclass(frozen=True)
class _Axis:
    """How scores are laid out: as they are without a unit, else linear up to +-unit and by log10 beyond."""

    unit: float = 0.0

    def forward(self, values: Floats) -> Floats:
        if not self.unit:
            return values
        size = np.abs(values) / self.unit
        return np.sign(values) * np.where(size < 1, size, 1 + np.log10(np.maximum(size, 1)))

    def inverse(self, u: float) -> float:
        if not self.unit:
            return float(u)
        return float(np.sign(u)) * self.unit * (abs(u) if abs(u) < 1 else 10.0 ** (abs(u) - 1))

    def suffix(self, low: float, high: float) -> str:
        """What the label of an axis from low to high (of `forward`) should add."""
        if not self.unit:
            return ""
        return " (log scale)" if low > 0.99 else f" (log scale, linear within \u00b1{_short(self.unit)})"

    def ticks(self, low: float, high: float) -> list[tuple[float, str]]:
        """Round numbers, placed by `forward`, and their names for an axis from low to high."""
        if not self.unit:
            return _labeled(_ticks(low, high))
        ends = self.inverse(low), self.inverse(high)
        factors = (1,) if high - low > 2.5 else (1, 2, 5)
        powers = range(0, math.ceil(max(abs(low), abs(high))), math.ceil((high - low) / 7))
        sizes = [factor * self.unit * 10.0**power for power in powers for factor in factors]
        values = [v for v in (0.0, *sizes, *(-size for size in sizes)) if ends[0] <= v <= ends[1]]
        values = values if len(values) > 2 else _ticks(*ends)
        plain = all(v == 0 or 1e-3 < abs(v) * 1.001 < 2e4 for v in values)
        return [(float(self.forward(np.array(v))), _short(v) if plain else _scientific(v)) for v in values]


def _shares(arrays: Sequence[Floats], bins: int, log_x: bool | None) -> tuple[_Axis, Floats, Floats]:
    """An axis for all arrays, the edges of its bins (bins + 1), and the share of each array in each bin.

    Shares (arrays x bins + 2) have an outer bin on each side and add up to 1, or to 0 where all is NaN.
    """
    held = [np.where(np.isfinite(v), np.clip(v, -LARGEST, LARGEST), v)[~np.isnan(v)] for v in arrays]
    finite = [v[np.isfinite(v)] for v in held]
    found = [np.quantile(v, [0.005, 0.1, 0.9, 0.995]) for v in finite if v.size]
    quantiles = np.stack(found or [np.zeros(4)])
    spreads = quantiles[:, 2] - quantiles[:, 1]
    # The logarithm over all if all is positive; else from about the width of the narrowest series on.
    positive = bool(quantiles.min() > 1e-80)
    smallest = quantiles.min() / 10 if positive else spreads[spreads > 0].min(initial=LARGEST)
    bent = _Axis(10.0 ** math.floor(math.log10(max(smallest, 1e-90))))

    def legible(axis: _Axis) -> float:
        """The part of the axis that the middle 80% of the narrowest series takes."""
        u = axis.forward(quantiles)
        return float((u[:, 2] - u[:, 1])[spreads > 0].min() / (np.ptp(u) or 1.0))

    if log_x is None:  # bending around zero distorts more, so it needs more of a reason
        log_x = bool(spreads.any()) and legible(_Axis()) < min(0.04 if positive else 0.005, legible(bent) / 2)
    axis = bent if log_x else _Axis()
    u, everything = axis.forward(quantiles), axis.forward(np.concatenate(finite))
    low, high = u.min(), u.max()
    first, last, near = everything.min(initial=low), everything.max(initial=high), 0.25 * (high - low)
    first = max(first, 1.0) if log_x and positive else first  # stay where the axis is logarithmic
    low, high = _widened(first if low - first <= near else low, last if last - high <= near else high)
    edges = np.linspace(low, high, bins + 1)
    shares = np.zeros((len(held), bins + 2))
    for share, v in zip(shares, held, strict=True):
        u = axis.forward(v)
        inner = np.histogram(u[(u >= low) & (u <= high)], edges)[0]
        share[:] = np.array([(u < low).sum(), *inner, (u > high).sum()]) / max(v.size, 1)
    return axis, edges, shares


def _widened(low: float, high: float) -> tuple[float, float]:
    """The range itself, or one around it where it is too narrow to divide."""
    largest = max(abs(low), abs(high))
    pad = 0.0 if high - low > max(1e-9 * largest, 1e-150) else 0.5 * largest if largest > 1e-140 else 0.5
    return float(low - pad), float(high + pad)


def _ticks(low: float, high: float, *, whole: bool = False) -> list[float]:
    """About five round numbers (1, 2 or 5 times a power of ten) within the range."""
    rough = (high - low) / 6
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= rough)
    step = max(step, 1.0) if whole else step
    return [n * step for n in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)]


def _labeled(ticks: Sequence[float]) -> list[tuple[float, str]]:
    """Evenly spaced ticks with their names, which all have the same decimals."""
    largest = max(map(abs, ticks), default=0.0) or 1.0
    step = ticks[1] - ticks[0] if len(ticks) > 1 else largest
    exponent = math.floor(math.log10(largest) + 1e-9)
    scale, power = (1.0, "") if -4 <= exponent < 6 else (10.0**exponent, TIMES + _ten_to(exponent))
    decimals = max(0, -math.floor(math.log10(step / scale) + 1e-9))
    return [(t, f"{t / scale:,.{decimals}f}{power}".replace("-", MINUS) if t else "0") for t in ticks]


def _short(value: float) -> str:
    """A number of any size in three digits."""
    exponent = math.floor(math.log10(abs(value)) + 1e-9) if value else 0
    if not -3 <= exponent < 5:
        return _scientific(value)
    text = f"{value:,.{max(0, 2 - exponent)}f}"
    return (text.rstrip("0").rstrip(".") if "." in text else text).replace("-", MINUS)


def _scientific(value: float) -> str:
    mantissa, exponent = f"{value:.1e}".replace(".0e", "e").split("e")
    text = f"{mantissa}{TIMES}" if mantissa.strip("-") != "1" else mantissa.strip("1")
    return text.replace("-", MINUS) + _ten_to(int(exponent)) if value else "0"


def _ten_to(exponent: int) -> str:
    return "10" + str(exponent).translate(SUPERSCRIPTS)


def _column(cells: Sequence[str | float]) -> list[str]:
    """The cells as text, floats with the decimals that give the largest of them four digits."""
    exact = (str, Integral)
    sizes = [abs(float(c)) for c in cells if not isinstance(c, exact) and math.isfinite(c)]
    decimals = min(6, max(0, 3 - math.floor(math.log10(max(sizes, default=0.0) or 1.0))))
    fixed = all(size == 0 or 10.0 ** (1 - decimals) <= size < 1e7 for size in sizes)  # all keep two digits
    texts = []
    for cell in cells:
        form = f".{decimals}f" if fixed else ".4g"
        text = str(cell) if isinstance(cell, exact) else f"{float(cell):{form}}".replace("nan", "NaN")
        texts.append(text if isinstance(cell, str) else text.replace("-", MINUS))
    return texts


def _numeric(cells: Sequence[str]) -> bool:
    """Whether all cells are numbers, but for some that stand in for one."""
    told = [cell for cell in map(str.strip, cells) if cell not in NO_NUMBER]
    return bool(told) and all(NUMBER.fullmatch(cell) for cell in told)


def _element(tag: str, text: str, kind: str = "") -> str:
    """An element around plain text, or nothing."""
    named = f' class="{kind}"' if kind else ""
    return f"<{tag}{named}>{escape(text)}</{tag}>" if text else ""


def _look(index: int) -> str:
    return f"c{index % len(COLORS)} d{index % len(DASHES)}"


def _n(value: float) -> str:
    return f"{round(float(value), 1):g}"


def _margin(ticks: Ticks) -> float:
    """Room for the labels of the upright axis."""
    return max(30.0, 10 + 6.8 * max((len(text) for _, text in ticks), default=0))


def _uncrowded(ticks: Ticks, room: Callable[[str], float]) -> Ticks:
    """The ticks whose labels have room, the first having precedence."""
    kept: Ticks = []
    for at, text in ticks:
        if all(abs(at - other) >= (room(text) + room(name)) / 2 for other, name in kept):
            kept.append((at, text))
    return kept


def _runs(mask: Any) -> list[tuple[int, int]]:
    """Starts and ends of the stretches that are true."""
    turns = np.flatnonzero(np.diff(np.r_[0, mask.astype(np.int8), 0]))
    return [(int(start), int(end)) for start, end in turns.reshape(-1, 2)]


def _steps(starts: Floats, ends: Floats, tops: Floats, base: float) -> str:
    """The outline of bars, one closed shape for each stretch of bars that touch and are not empty."""
    parts, last = [], -math.inf
    for start, end, top in zip(starts, ends, tops, strict=True):
        if top < base:
            parts.append("" if start - last < 1e-6 else f"M{_n(start)} {_n(base)}")
            parts.append(f"V{_n(top)}H{_n(end)}")
            last = end
    return re.sub(r"(?<=.)(?=M)|$", f"V{_n(base)}", "".join(parts)) if parts else ""


def _polyline(x: Floats, y: Floats, most: int) -> str:
    """A path of at most `most` points, evenly spread over its length, from the first point to the last.

    It goes from point to point in whole tenths of pixels: half the text of positions, and no error adds up.
    """
    points = np.round(np.stack([x, y], 1) * 10).astype(int)
    if len(points) > most:
        travelled = np.cumsum(np.r_[0, np.abs(np.diff(points, axis=0)).sum(1)])
        points = points[np.unique(np.searchsorted(travelled, np.linspace(0, travelled[-1], most)))]
    moves = np.diff(points, axis=0)
    text = " ".join(f"{a / 10:g} {b / 10:g}" for a, b in moves[moves.any(1)].tolist())
    text = re.sub(r"\b0\.", ".", text).replace(" -", "-")
    return f"M{points[0, 0] / 10:g} {points[0, 1] / 10:g}" + (f"l{text}" if text else "")


def _chart(
    shapes: Sequence[str],
    names: Sequence[str],
    xticks: Ticks,
    yticks: Ticks,
    *,
    base: Sequence[tuple[float, float]],
    xlabel: str,
    ylabel: str,
    title: str,
    note: str = "",
    height: float = HEIGHT,
    points: bool = False,
) -> str:
    """A figure: title and legend as text that wraps, the chart with its shapes below them, and a note.

    Of `xticks` the first have precedence where labels crowd; `base` are the stretches of the lower axis,
    which is broken between them. `ylabel` lies above its axis, where it is easier to read.
    """
    foot, left, right = height - FOOT, base[0][0], base[-1][1]
    below, above = textwrap.wrap(xlabel, 50), textwrap.wrap(ylabel, 50)
    rise = 15 * max(0, len(above) - 1)
    axis = "".join(f"M{_n(start)} {_n(foot)}H{_n(end)}" for start, end in base if end > start)
    axis += "".join(f"M{_n(x)} {_n(foot)}v4" for x, _ in xticks)
    grid = "".join(f"M{_n(left)} {_n(y)}H{_n(right)}" for y, _ in yticks)
    roomy = _uncrowded(xticks, lambda text: 6.4 * len(text) + 8)
    labels = [("", x, foot + 17, "middle", text) for x, text in roomy]
    labels += [("", left - 7, y + 4, "end", text) for y, text in yticks]
    labels += [("name", 0, 13 - rise + 15 * i, "start", text) for i, text in enumerate(above)]
    middle = (left + right) / 2
    labels += [("name", middle, height + 11 + 15 * i, "middle", text) for i, text in enumerate(below)]
    texts = "".join(
        f'<text class="{kind}" x="{_n(x)}" y="{_n(y)}" text-anchor="{anchor}">{escape(text)}</text>'
        for kind, x, y, anchor, text in labels
    )
    sign = ('<path class="dots', '" d="M13 5h0"/>') if points else ('<path class="line', '" d="M0 5h26"/>')
    legend = "".join(
        f'<li><svg viewBox="0 0 26 10" aria-hidden="true">{sign[0]} {_look(index)}{sign[1]}'
        f"</svg><span>{escape(name)}</span></li>"
        for index, name in enumerate(names)
    )
    told = escape(f"{title}: {ylabel} over {xlabel}; {', '.join(names)}".removeprefix(": "))
    return (
        f'<figure class="plot">{_element("p", title, "head")}<ul class="legend">{legend}</ul>'
        f'<svg viewBox="0 {-rise} {WIDTH} {_n(height + rise + 1 + 15 * len(below))}" role="img" '
        f'aria-label="{told}"><path class="grid" d="{grid}"/>{"".join(shapes)}<path class="axis" d="{axis}"/>'
        f"{texts}</svg>{_element('figcaption', note)}</figure>\n"
    )
