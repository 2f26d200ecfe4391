import base64
import io
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from negvae import html


class Balanced(HTMLParser):
    """Checks that every tag is closed in order."""

    VOID = frozenset({"meta", "img", "line", "polyline", "polygon", "br"})

    def __init__(self):
        super().__init__()
        self.open = []

    def handle_starttag(self, tag, attrs):
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        pass

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


SCORES = np.random.default_rng(0).normal(0, 1, 1000)


def test_a_page_is_well_formed_self_contained_and_inert():
    name = '<script>alert("x")</script>'
    curve = np.linspace(0, 1, 5000)
    body = html.figure_row(
        html.histogram({name: SCORES, "b": SCORES + 2}, xlabel=name),
        html.roc({name: (curve, curve**0.5)}),
        html.image_grid(np.zeros((3, 1, 4, 4), np.uint8), caption=name),
        html.table([name], [[name]], caption=name),
        html.definition_list({name: name}),
    )
    text = html.page(name, [html.Section(name, body, name)], subtitle=name)
    parser = Balanced()
    parser.feed(text)
    assert not parser.open
    assert "<script" not in text
    assert not re.search(r'(src|href)="(?!data:)', text)
    assert len(html.roc({"a": (curve, curve)})) < 20_000
    assert text == html.page(name, [html.Section(name, body, name)], subtitle=name)


@pytest.mark.parametrize("channels", [1, 3])
def test_image_grid_holds_the_pixels(channels):
    images = np.random.default_rng(0).integers(0, 256, (5, channels, 6, 7), np.uint8)
    text = html.image_grid(images, columns=3)
    data = base64.b64decode(re.search(r"base64,([^\"]+)", text)[1])
    pixels = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
    assert pixels.shape == (2 * 7 - 1, 3 * 8 - 1, 3)
    expected = np.broadcast_to(images[4].transpose(1, 2, 0), (6, 7, 3))
    assert np.array_equal(pixels[7:13, 8:15], expected)


@pytest.mark.parametrize(
    "values",
    [[1e18, 1.0, 2.0], [np.inf, 1.0], [np.nan, 1.0], [3.0], [2, 2, 2], [np.inf, np.inf], [0.0, 1e-30]],
)
def test_histograms_survive_extreme_scores(values):
    text = html.histogram({"a": np.array(values)}, xlabel="score")
    coordinates = re.search(r'polygon points="([^"]+)"', text)[1]
    numbers = [float(number) for pair in coordinates.split() for number in pair.split(",")]
    assert np.isfinite(numbers).all()
    assert ("not numbers" in text) == bool(np.isnan(values).any())


def test_histograms_and_grids_refuse_nothing_to_show():
    with pytest.raises(ValueError, match="empty"):
        html.histogram({"a": np.array([])}, xlabel="score")
    with pytest.raises(ValueError, match="uint8"):
        html.image_grid(np.zeros((2, 4, 4), np.uint8))
