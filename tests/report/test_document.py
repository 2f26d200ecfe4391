"""Whole pages: well formed, inert, the same every time, and written whole."""

import base64
import io
import re
import subprocess
import sys
from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from negvae.report import document, figures, tables
from negvae.report.document import Section
from negvae.report.tables import DataTable
from tests.report.conftest import Reader

SCRIPT = '<script>alert("x")</script>&\''
RANDOM = np.random.default_rng(0)
SCORES = RANDOM.normal(0, 1, 1000)
STEPS = np.linspace(0, 1, 500)


def example(name=SCRIPT):
    curve = (STEPS, STEPS**0.5)
    charts = [
        figures.histogram({name: SCORES, "b": SCORES + 2}, xlabel=name, marks={name + "2": 1.0}),
        figures.roc({name: curve}),
        figures.lines({name: curve}, xlabel=name, ylabel=name, bands={name: (STEPS - 1, STEPS + 1)}),
        figures.scatter({name: (SCORES[:9], SCORES[9:18])}, xlabel=name, ylabel=name),
    ]
    body = document.row(
        *(document.chart(chart, name) for chart in charts),
        document.image_grid(np.zeros((3, 1, 4, 4), np.uint8), caption=name, alt=name),
    )
    body += tables.html(DataTable([name], [[name]], title=name, caption=name)) + document.facts({name: name})
    return document.page(name, [Section(name, body, name)] * 4, subtitle=name, footer=name)


@pytest.fixture(scope="module")
def text():
    return example()


def test_a_page_is_well_formed_and_asks_for_nothing_from_elsewhere(text):
    page = Reader(text)
    assert page.tags[0] == ("html", {"lang": "en"})
    assert page.all("meta")[1]["content"].startswith("default-src 'none'; style-src 'unsafe-inline'; img-src data:;")
    assert {attrs["src"][:22] for attrs in page.all("img")} == {"data:image/png;base64,"}
    anchors = {attrs["id"] for attrs in page.all("section")}
    assert {attrs["href"] for attrs in page.all("a")} == {f"#{anchor}" for anchor in anchors}
    assert not re.search(r"https?:|//|@import|url\(|javascript:|\son\w+=", re.sub(r"base64,[^\"]+", "", text))


def test_strings_are_inert_wherever_they_stand(text):
    page = Reader(text)
    assert "<script" not in text
    assert not page.all("script")
    assert page.text.count("alert(") > 60
    assert page.all("img")[0]["alt"] == SCRIPT


def test_the_same_input_gives_the_same_bytes(text):
    assert example() == text


def test_colors_follow_light_and_dark(text):
    style = (files("negvae.report") / "templates/style.css").read_text()
    dark = style[style.index("prefers-color-scheme: dark") :]
    used = set(re.findall(r"var\((--\w+)\)", text))
    assert {"--ink", "--soft", "--rule", "--c0", "--c1"} <= used
    assert all(f"{name}:" in style for name in used)
    assert {"--ink", "--soft", "--rule", "--ground", "--mark"} <= set(re.findall(r"(--\w+):", dark))
    # Outside the style sheet nothing has a color of its own, which could be lost on one of the grounds.
    assert not re.search(r"#[0-9a-f]{6}\b", re.sub(r"base64,[^\"]+", "", text.replace(style.strip(), "")))


def test_every_template_is_here_and_loads():
    names = set(document.templates().list_templates())
    assert names == {f"{name}.html.j2" for name in ("page", "chart", "row", "facts", "images", "table")} | {"style.css"}
    for name in names:
        document.templates().get_template(name)


def test_what_a_template_misses_is_an_error():
    with pytest.raises(Exception, match="'caption' is undefined"):
        document.render("images", width=1, height=1, alt="", data="")


def test_short_pages_have_no_contents_and_empty_texts_no_elements():
    page = Reader(document.page("title", [Section("a", document.row())]))
    assert not page.all("nav")
    assert not page.all("p")
    assert not page.all("footer")


def test_pages_are_written_whole(tmp_path):
    path = tmp_path / "a" / "report.html"
    document.write(path, "<p>old")
    document.write(path, "<p>\N{GREEK SMALL LETTER SIGMA}\udc80\n")
    assert path.read_bytes() == "<p>\N{GREEK SMALL LETTER SIGMA}\\x80\n".encode()  # as `negvae score` names the file
    assert list(path.parent.iterdir()) == [path]


def test_a_failed_write_leaves_the_old_page_and_nothing_else(tmp_path, monkeypatch):
    path = tmp_path / "report.html"
    document.write(path, "old")

    def fail(*_args, **_kwargs):
        raise OSError("full")

    monkeypatch.setattr("os.replace", fail)
    with pytest.raises(OSError, match="full"):
        document.write(path, "new")
    assert path.read_text() == "old"
    assert list(Path(tmp_path).iterdir()) == [path]


@pytest.mark.parametrize("channels", [1, 3])
def test_image_grids_hold_the_pixels(channels):
    images = RANDOM.integers(0, 256, (5, channels, 6, 7), np.uint8)
    page = Reader(document.image_grid(images, columns=3, scale=4, caption="five"))
    (attrs,) = page.all("img")
    pixels = np.asarray(Image.open(io.BytesIO(base64.b64decode(attrs["src"].split(",")[1]))))
    assert pixels.shape == (2 * 7 - 1, 3 * 8 - 1, channels + 1)
    assert (attrs["width"], attrs["height"], attrs["alt"]) == (str(23 * 4), str(13 * 4), "five")
    for index, image in enumerate(images):
        top, left = index // 3 * 7, index % 3 * 8
        cell = pixels[top : top + 6, left : left + 7]
        assert np.array_equal(cell[..., :-1], image.transpose(1, 2, 0))
        assert (cell[..., -1] == 255).all()
    assert (pixels[..., -1] == 255).sum() == 5 * 6 * 7


def test_image_grids_refuse_other_arrays():
    for images in (np.zeros((2, 4, 4), np.uint8), np.zeros((2, 1, 4, 4)), np.zeros((0, 1, 4, 4), np.uint8)):
        with pytest.raises(ValueError, match="uint8"):
            document.image_grid(images)
    with pytest.raises(ValueError, match="columns 0"):
        document.image_grid(np.zeros((2, 1, 4, 4), np.uint8), columns=0)
    with pytest.raises(ValueError, match="scale 0"):
        document.image_grid(np.zeros((2, 1, 4, 4), np.uint8), scale=0)


def test_the_package_and_its_help_load_neither_matplotlib_nor_jinja():
    code = (
        "import sys; sys.argv = ['negvae', '--help']; import negvae, negvae.cli, negvae.report.tables\n"
        "try: negvae.cli.main()\n"
        "except SystemExit: pass\n"
        "sys.exit(bool({'matplotlib', 'jinja2'} & sys.modules.keys()))"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True).returncode == 0


def test_pages_load_no_pyplot():
    code = "import sys, negvae.report.document; sys.exit('matplotlib.pyplot' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
