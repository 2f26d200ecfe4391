"""Self-contained HTML pages from templates: sections, charts, image grids and lists of facts.

The same input gives the same bytes, strings from callers are escaped, and a page holds no script and asks for nothing
from elsewhere.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image

from negvae.files import refuse_replacing, replacing, require_writable
from negvae.messages import shown
from negvae.report.figures import svg
from negvae.report.samples import mosaic

POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; form-action 'none'"


@dataclass(frozen=True)
class Section:
    """A titled part of a page.

    Attributes:
        title: Plain text.
        body: Safe HTML, as the functions of this package return it.
        intro: Plain text below the title.
    """

    title: str
    body: Markup
    intro: str = ""


@cache
def templates() -> jinja2.Environment:
    """Load the templates of this package, which escape all values and raise an error if one is missing."""
    return jinja2.Environment(
        loader=jinja2.PackageLoader("negvae.report"), autoescape=True, undefined=jinja2.StrictUndefined,
        trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True,
    )  # fmt: skip


def render(template: str, **values: Any) -> Markup:
    """Fill the template with this name.

    >>> render("facts", pairs={"commit": "<none>"}).count("&lt;none&gt;")
    1
    """
    return Markup(templates().get_template(f"{template}.html.j2").render(values))


def page(title: str, sections: Sequence[Section], *, subtitle: str = "", footer: str = "", refresh: int = 0) -> str:
    """Make a complete HTML document, which starts with links to its sections if there are four or more.

    >>> page("Scores", [Section("Counts", facts({"rows": "10"}))]).lower().startswith("<!doctype html>")
    True

    Args:
        title: title in plain text.
        sections: sections of the page, in order.
        subtitle: plain text below the title.
        footer: plain text at the end.
        refresh: seconds after which a browser loads the page again; 0 for never.

    Returns:
        The document.
    """
    values = {"title": title, "sections": sections, "subtitle": subtitle, "footer": footer, "refresh": refresh}
    return str(render("page", **values, policy=POLICY))


def check(path: Path, top: int, inputs: Iterable[str] = ()) -> None:
    """Refuse, before the inputs are scored, a page that cannot be written or that would show none of them.

    Args:
        path: file of the page.
        top: number of inputs to show at each end.
        inputs: paths that are read, none of which the page may replace.

    Raises:
        FileNotFoundError: if there is no folder for the file.
        OSError: if the file cannot be written.
        ValueError: if `top` is below 1, or the file would replace an input or a file that is no page.
    """
    if not path.absolute().parent.is_dir():
        raise FileNotFoundError(f"{path.parent}: no such folder to write to")
    refuse_replacing(path, inputs, (".html", ".htm"))
    if top < 1:
        raise ValueError(f"top is {top}: it must be at least 1")
    require_writable(path)


def write(path: Path, html: str) -> None:
    """Write a page, whole or not at all, and make the folders that it needs."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary:
        # File names can hold bytes that are no text, which browsers would all show as the same character.
        temporary.write_text(shown(html), encoding="utf-8", newline="\n")


def chart(figure: Figure, title: str = "") -> Markup:
    """Place a chart below its title."""
    return render("chart", title=title, svg=svg(figure))


def row(*figures: Markup) -> Markup:
    """Place charts and grids side by side; they wrap if the screen is narrow."""
    return render("row", figures=figures)


def facts(pairs: Mapping[str, str]) -> Markup:
    """Render names and their values as a list, such as the provenance of results."""
    return render("facts", pairs=pairs)


def image_grid(images: NDArray[Any], *, columns: int = 10, scale: int = 2, caption: str = "", alt: str = "") -> Markup:
    """Show images as one PNG, with transparent gutters of one image pixel between them.

    Args:
        images: The images, uint8, N x C x H x W with C 1 or 3.
        columns: The number of images in a line.
        scale: The number of screen pixels for each image pixel.
        caption: Plain text below.
        alt: A description for readers who cannot see the images; the caption by default.

    Returns:
        Safe HTML.

    Raises:
        ValueError: If the array is something else or empty, or `columns` or `scale` is below 1.
    """
    if scale < 1:
        raise ValueError(f"image grid: scale {scale} should be 1 or more")
    canvas = mosaic(images, columns)
    buffer = io.BytesIO()
    Image.fromarray(canvas).save(buffer, "PNG", optimize=True)
    height, width = (side * scale for side in canvas.shape[:2])
    alt = alt or caption or f"{len(images)} images of {images.shape[3]} x {images.shape[2]} pixels"
    data = base64.b64encode(buffer.getvalue()).decode()
    return render("images", width=width, height=height, alt=alt, caption=caption, data=data)
