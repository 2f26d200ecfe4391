"""Building blocks of self-contained HTML reports: tables, histograms, ROC curves, image grids.

Pure functions that return text; a page holds no script and asks for nothing from elsewhere.
"""

from __future__ import annotations

import base64
import io
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

# Okabe and Ito's palette, told apart by readers with any color vision.
COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
DASHES = ("", "6 3", "2 3", "8 3 2 3", "1 2", "10 4")
WIDTH, HEIGHT = 420, 260
LEFT, RIGHT, TOP, BOTTOM = 52, 12, 34, 42

STYLE = """
:root{color-scheme:light dark;--ink:#1d1d1f;--soft:#5f6368;--rule:#d9dce0;--ground:#fff;--band:#f5f6f8}
@media(prefers-color-scheme:dark){:root{--ink:#e8eaed;--soft:#a2a7ad;--rule:#3c4043;--ground:#17181a;--band:#212326}}
body{margin:0 auto;max-width:1200px;padding:1.5rem 1rem 4rem;background:var(--ground);color:var(--ink);
font:16px/1.5 system-ui,sans-serif}
h1{font-size:1.6rem;margin:.2rem 0}
h2{font-size:1.15rem;margin:2.4rem 0 .4rem;padding-top:.8rem;border-top:1px solid var(--rule)}
p,figcaption,caption,footer{color:var(--soft)}p{max-width:70ch}
.wide{overflow-x:auto}table{border-collapse:collapse;font-variant-numeric:tabular-nums;font-size:.86rem}
caption{caption-side:bottom;text-align:left;padding-top:.4rem}
th,td{white-space:nowrap;padding:.35rem .45rem;border-bottom:1px solid var(--rule);text-align:right}
th:first-child,td:first-child{text-align:left}th{font-weight:600}tbody tr:nth-child(even){background:var(--band)}
.row{display:flex;flex-wrap:wrap;gap:1rem 1.5rem;align-items:flex-start}
figure{margin:.6rem 0;max-width:100%}figure svg{width:350px;max-width:100%;height:auto;display:block}
figure img{image-rendering:pixelated;max-width:100%;height:auto;display:block}figcaption{font-size:.88rem}
svg text{fill:var(--ink);font:11px system-ui,sans-serif}svg .axis{stroke:var(--soft)}svg .grid{stroke:var(--rule)}
dl{display:grid;grid-template-columns:max-content 1fr;gap:.2rem 1rem;font-size:.9rem}dt{color:var(--soft)}
dd{margin:0;overflow-wrap:anywhere}@media print{body{max-width:none}h2,figure{break-inside:avoid}}
"""
POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"


@dataclass(frozen=True)
class Section:
    """A titled part of a page: `body` is safe HTML, `intro` plain text."""

    title: str
    body: str
    intro: str = ""


def page(title: str, sections: Sequence[Section], *, subtitle: str = "") -> str:
    """One complete HTML document."""
    parts = [
        f"<section><h2>{escape(s.title)}</h2>{f'<p>{escape(s.intro)}</p>' if s.intro else ''}{s.body}</section>"
        for s in sections
    ]
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f'<meta http-equiv="Content-Security-Policy" content="{escape(POLICY)}">'
        f"<title>{escape(title)}</title><style>{STYLE}</style></head><body>"
        f"<header><p>{escape(subtitle)}</p><h1>{escape(title)}</h1></header><main>{''.join(parts)}</main></body></html>\n"
    )


def table(header: Sequence[str], rows: Sequence[Sequence[str | float]], *, caption: str = "") -> str:
    """A table that scrolls in its own frame where the screen is narrow."""
    head = "".join(f'<th scope="col">{escape(cell)}</th>' for cell in header)
    body = "".join("<tr>" + "".join(f"<td>{escape(str(cell))}</td>" for cell in row) + "</tr>" for row in rows)
    note = f"<caption>{escape(caption)}</caption>" if caption else ""
    return f'<div class="wide"><table>{note}<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def definition_list(pairs: Mapping[str, str]) -> str:
    """Names and values, one below the other."""
    return (
        "<dl>" + "".join(f"<dt>{escape(name)}</dt><dd>{escape(value)}</dd>" for name, value in pairs.items()) + "</dl>"
    )


def figure_row(*figures: str) -> str:
    """Figures side by side that wrap on narrow screens."""
    return f'<div class="row">{"".join(figures)}</div>'


def image_grid(
    images: NDArray[np.uint8], *, columns: int = 10, scale: int = 2, caption: str = "", alt: str = ""
) -> str:
    """Images (uint8, N x C x H x W with 1 or 3 channels) as one PNG with gutters between them.

    Raises:
        ValueError: the array is something else or empty.
    """
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[1] not in (1, 3) or not len(images):
        raise ValueError(f"images are {images.dtype} {images.shape}: expected uint8, N x C x H x W with C 1 or 3")
    count, channels, height, width = images.shape
    columns = min(columns, count)
    lines = math.ceil(count / columns)
    canvas = np.full((lines * (height + 1) - 1, columns * (width + 1) - 1, channels), 128, np.uint8)
    for index, image in enumerate(images):
        top, left = index // columns * (height + 1), index % columns * (width + 1)
        canvas[top : top + height, left : left + width] = image.transpose(1, 2, 0)
    buffer = io.BytesIO()
    Image.fromarray(canvas[:, :, 0] if channels == 1 else canvas).save(buffer, "PNG", optimize=True)
    source = base64.b64encode(buffer.getvalue()).decode()
    size = f'width="{canvas.shape[1] * scale}" height="{canvas.shape[0] * scale}"'
    return (
        f'<figure><img {size} alt="{escape(alt or caption)}" src="data:image/png;base64,{source}">'
        f"<figcaption>{escape(caption)}</figcaption></figure>"
    )


def histogram(series: Mapping[str, NDArray[Any]], *, xlabel: str, bins: int = 50) -> str:
    """Overlaid distributions of scores, as shares of each series.

    The axis runs over the middle 99% of all values; what lies beyond is counted in the last bin of its side.
    Where that range still spans more than a factor of 100 above zero, the axis is logarithmic.

    Raises:
        ValueError: a series is empty.
    """
    for name, values in series.items():
        if not np.size(values):
            raise ValueError(f"histogram: series {name} is empty")
    arrays = {name: np.asarray(values, np.float64).reshape(-1) for name, values in series.items()}
    finite = np.concatenate([values[np.isfinite(values)] for values in arrays.values()])
    if not finite.size:
        finite = np.zeros(1)
    low, high = np.quantile(finite, [0.005, 0.995])
    logarithmic = low > 0 and high / low > 100
    if high <= low:
        low, high = low - 0.5, high + 0.5
    edges = np.geomspace(low, high, bins + 1) if logarithmic else np.linspace(low, high, bins + 1)
    shares, lost = {}, 0
    for name, values in arrays.items():
        lost += int(np.isnan(values).sum())
        kept = np.clip(values[~np.isnan(values)], low, high)
        shares[name] = np.histogram(kept, edges)[0] / max(len(kept), 1)
    x = _scale(
        math.log10(low) if logarithmic else low,
        math.log10(high) if logarithmic else high,
        LEFT,
        WIDTH - RIGHT,
    )
    most = max(float(share.max()) for share in shares.values()) or 1.0
    y = _scale(0, most, HEIGHT - BOTTOM, TOP)
    shapes = []
    for index, share in enumerate(shares.values()):
        color = COLORS[index % len(COLORS)]
        points = [f"{x(_at(edges[0], logarithmic)):.1f},{y(0):.1f}"]
        for bin_index, value in enumerate(share):
            for edge in (edges[bin_index], edges[bin_index + 1]):
                points.append(f"{x(_at(edge, logarithmic)):.1f},{y(float(value)):.1f}")
        points.append(f"{x(_at(edges[-1], logarithmic)):.1f},{y(0):.1f}")
        shapes.append(f'<polygon points="{" ".join(points)}" fill="{color}" fill-opacity=".3" stroke="{color}"/>')
    ticks = _log_ticks(low, high) if logarithmic else _ticks(low, high)
    marks = [(x(_at(tick, logarithmic)), _number(tick)) for tick in ticks]
    note = f"; {lost} values are not numbers" if lost else ""
    label = f"{xlabel}{' (log scale)' if logarithmic else ''}"
    svg = _chart(shapes, list(series), marks, [(y(0), "0"), (y(most), f"{most:.2g}")], label, "share")
    return f"<figure>{svg}<figcaption>Outermost bins hold all values beyond them{escape(note)}.</figcaption></figure>"


def roc(curves: Mapping[str, tuple[NDArray[Any], NDArray[Any]]]) -> str:
    """ROC curves: (false-positive rates, true-positive rates) by the name in the legend."""
    x, y = _scale(0, 1, LEFT, WIDTH - RIGHT), _scale(0, 1, HEIGHT - BOTTOM, TOP)
    shapes = [f'<line class="grid" x1="{x(0)}" y1="{y(0)}" x2="{x(1)}" y2="{y(1)}"/>']
    for index, (fpr, tpr) in enumerate(curves.values()):
        keep = np.unique(np.linspace(0, len(fpr) - 1, min(len(fpr), 400)).round().astype(int))
        points = " ".join(f"{x(float(fpr[i])):.1f},{y(float(tpr[i])):.1f}" for i in keep)
        color, dash = COLORS[index % len(COLORS)], DASHES[index % len(DASHES)]
        shapes.append(
            f'<polyline points="{points}" fill="none" stroke="{color}" stroke-width="2" stroke-dasharray="{dash}"/>'
        )
    ticks = [0.0, 0.25, 0.5, 0.75, 1.0]
    across, up = [(x(t), f"{t:g}") for t in ticks], [(y(t), f"{t:g}") for t in ticks]
    svg = _chart(shapes, list(curves), across, up, "false-positive rate", "true-positive rate")
    return f"<figure>{svg}<figcaption>Outliers are the positives.</figcaption></figure>"


def write(path: Path, text: str) -> None:
    """Write a page whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)


def _chart(
    shapes: Sequence[str],
    names: Sequence[str],
    across: Sequence[tuple[float, str]],
    up: Sequence[tuple[float, str]],
    xlabel: str,
    ylabel: str,
) -> str:
    base = HEIGHT - BOTTOM
    parts = [
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(ylabel)} over {escape(xlabel)}">',
        *shapes,
    ]
    parts.append(f'<line class="axis" x1="{LEFT}" y1="{base}" x2="{WIDTH - RIGHT}" y2="{base}"/>')
    parts.append(f'<line class="axis" x1="{LEFT}" y1="{base}" x2="{LEFT}" y2="{TOP}"/>')
    for position, text in across:
        parts.append(f'<text x="{position:.1f}" y="{base + 15}" text-anchor="middle">{escape(text)}</text>')
    for position, text in up:
        parts.append(f'<text x="{LEFT - 6}" y="{position + 4:.1f}" text-anchor="end">{escape(text)}</text>')
    parts.append(f'<text x="{(LEFT + WIDTH) / 2}" y="{HEIGHT - 8}" text-anchor="middle">{escape(xlabel)}</text>')
    middle = (TOP + base) / 2
    parts.append(
        f'<text x="12" y="{middle}" text-anchor="middle" transform="rotate(-90 12 {middle})">{escape(ylabel)}</text>'
    )
    width = (WIDTH - LEFT) / max(len(names), 1)
    for index, name in enumerate(names):
        left, color = LEFT + index * width, COLORS[index % len(COLORS)]
        dash = DASHES[index % len(DASHES)]
        parts.append(
            f'<line x1="{left:.1f}" y1="14" x2="{left + 18:.1f}" y2="14" stroke="{color}" '
            f'stroke-width="3" stroke-dasharray="{dash}"/>'
        )
        parts.append(f'<text x="{left + 23:.1f}" y="18">{escape(name)}</text>')
    return "".join(parts) + "</svg>"


def _scale(low: float, high: float, start: float, end: float) -> Any:
    return lambda value: start + (value - low) / (high - low) * (end - start)


def _at(value: float, logarithmic: bool) -> float:
    return math.log10(value) if logarithmic else value


def _ticks(low: float, high: float) -> list[float]:
    """About five round numbers (1, 2 or 5 times a power of ten) within the range."""
    rough = (high - low) / 5
    power = 10 ** math.floor(math.log10(rough))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= rough)
    return [n * step for n in range(math.ceil(low / step), math.floor(high / step) + 1)]


def _log_ticks(low: float, high: float) -> list[float]:
    powers = list(range(math.ceil(math.log10(low)), math.floor(math.log10(high)) + 1))
    return [10.0**power for power in powers[:: max(1, len(powers) // 6)]]


def _number(value: float) -> str:
    return f"{value:.0e}".replace("e+0", "e").replace("e-0", "e-") if abs(value) >= 1e5 else f"{round(value, 10):g}"
