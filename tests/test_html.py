import base64
import io
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from negvae import html

SCRIPT = '<script>alert("x")</script>&\''
RANDOM = np.random.default_rng(0)
SCORES = RANDOM.normal(0, 1, 1000)
STEPS = np.linspace(0, 1, 5000)


class Reader(HTMLParser):
    """Checks that every element is closed in order, and gathers what was seen."""

    VOID = frozenset({"meta", "img"})

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.text = [], [], ""
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attrs):
        assert len(dict(attrs)) == len(attrs)
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data

    def all(self, tag, kind=""):
        found = (seen for name, seen in self.tags if name == tag)
        return [seen for seen in found if kind in ["", *seen.get("class", "").split()]]


def example(name=SCRIPT):
    curve = (STEPS, STEPS**0.5)
    body = html.figure_row(
        html.histogram({name: SCORES, "b": SCORES + 2}, xlabel=name, title=name),
        html.roc({name: curve}, title=name),
        html.lines({name: curve}, xlabel=name, ylabel=name, title=name, bands={name: (STEPS - 1, STEPS + 1)}),
        html.image_grid(np.zeros((3, 1, 4, 4), np.uint8), caption=name, alt=name),
    )
    body += html.table([name], [[name]], caption=name) + html.definition_list({name: name})
    return html.page(name, [html.Section(name, body, name)] * 4, subtitle=name, footer=name)


def points(path):
    """Ends of a path of absolute M, H and V and relative l, as arrays of x and y, one for each M."""
    runs, at = [], [0.0, 0.0]
    for command, text in re.findall(r"([MHVlhz])([^MHVlhz]*)", path):
        numbers = [float(number) for number in re.findall(r"-?(?:\d+\.?\d*|\.\d+)", text)]
        if command == "M":
            at, _ = numbers, runs.append([])
        if command in "MHV":
            at = {"M": at, "H": [*numbers, at[1]], "V": [at[0], *numbers]}[command]
            runs[-1].append(at)
        if command == "l":
            for dx, dy in zip(numbers[::2], numbers[1::2], strict=True):
                at = [at[0] + dx, at[1] + dy]
                runs[-1].append(at)
    assert np.isfinite([number for run in runs for point in run for number in point]).all()
    return [np.array(run) for run in runs]


def test_a_page_is_well_formed_and_asks_for_nothing_from_elsewhere():
    text = example()
    page = Reader(text)
    assert page.tags[0] == ("html", {"lang": "en"})
    assert "default-src 'none'" in page.all("meta")[1]["content"]
    assert {attrs["src"][:22] for attrs in page.all("img")} == {"data:image/png;base64,"}
    anchors = {attrs["id"] for attrs in page.all("section")}
    assert {attrs["href"] for attrs in page.all("a")} == {f"#{anchor}" for anchor in anchors}
    assert not re.search(r"https?:|//|@import|url\(|javascript:|\son\w+=", re.sub(r"base64,[^\"]+", "", text))


def test_strings_are_inert_wherever_they_stand():
    text = example()
    page = Reader(text)
    assert "<script" not in text
    assert not page.all("script")
    assert page.text.count("alert(") > 15
    assert page.all("img")[0]["alt"] == SCRIPT


def test_the_same_input_gives_the_same_bytes():
    assert example() == example()


def test_short_pages_have_no_contents_and_empty_texts_no_elements():
    page = Reader(html.page("title", [html.Section("a", "")]))
    assert not page.all("nav")
    assert not page.all("p")
    assert not page.all("footer")


def test_pages_are_written_whole(tmp_path):
    path = tmp_path / "a" / "report.html"
    html.write(path, "<p>old")
    html.write(path, "<p>\N{GREEK SMALL LETTER SIGMA}\udc80\n")
    assert path.read_bytes() == "<p>\N{GREEK SMALL LETTER SIGMA}&#56448;\n".encode()
    assert list(path.parent.iterdir()) == [path]


def test_a_failed_write_leaves_the_old_page_and_nothing_else(tmp_path, monkeypatch):
    path = tmp_path / "report.html"
    html.write(path, "old")

    def fail(*_args, **_kwargs):
        raise OSError("full")

    monkeypatch.setattr("os.replace", fail)
    with pytest.raises(OSError, match="full"):
        html.write(path, "new")
    assert path.read_text() == "old"
    assert list(Path(tmp_path).iterdir()) == [path]


def test_tables_align_numbers_and_give_a_column_the_same_decimals():
    rows = [["a", "0.91 [0.90, 0.92]", 0.5, 3], ["b", "\N{EM DASH}", np.float32(-0.12345), np.int64(12)]]
    text = html.table(["name", "AUC", "loss", "n"], rows, highlight=[1])
    page = Reader(text)
    assert [attrs["class"] for attrs in page.all("th")[:4]] == ["left", "right", "right", "right"]
    assert ">0.5000<" in text
    assert ">\N{MINUS SIGN}0.1235<" in text or ">\N{MINUS SIGN}0.1234<" in text
    assert len(page.all("tr", "mark")) == 1
    assert "mark" in text.split("<tr")[3]


def test_tables_take_numbers_of_any_size():
    text = html.table(["x"], [[1e18], [1e-9], [float("nan")], [float("-inf")], [0.0]])
    for cell in ("1e+18", "1e\N{MINUS SIGN}09", "NaN", "\N{MINUS SIGN}inf", "0"):
        assert f">{cell}<" in text


def test_tables_refuse_what_does_not_fit():
    with pytest.raises(ValueError, match="row 1 has 1 cells"):
        html.table(["a", "b"], [["1", "2"], ["1"]])
    with pytest.raises(ValueError, match="highlight"):
        html.table(["a"], [["1"]], highlight=[1])
    with pytest.raises(ValueError, match="align"):
        html.table(["a"], [["1"]], align=["<b>"])


@pytest.mark.parametrize("channels", [1, 3])
def test_image_grids_hold_the_pixels(channels):
    images = RANDOM.integers(0, 256, (5, channels, 6, 7), np.uint8)
    page = Reader(html.image_grid(images, columns=3, scale=4, caption="five"))
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
            html.image_grid(images)
    with pytest.raises(ValueError, match="columns 0"):
        html.image_grid(np.zeros((2, 1, 4, 4), np.uint8), columns=0)


EXTREMES = [
    [1e18, 1.0, 2.0],
    [np.inf, 1.0],
    [-np.inf, np.nan],
    [np.nan, np.nan],
    [np.inf, np.inf],
    [3.0],
    [2, 2, 2],
    [0, 1, 2, 3],
    [True, False],
    [0.0, 1e-30],
    [0.0, 5e-324],
    [1e18, np.nextafter(1e18, 2e18)],
    [-1.7e308, 1.7e308],
    [-1e18, -1e-18, 0.0, 1e-18, 1e18],
    [1e-300, 1e300],
    [-np.inf, np.nan, np.inf, 5e-324],
]


@pytest.mark.parametrize("log_x", [None, True, False])
@pytest.mark.parametrize("values", EXTREMES)
def test_histograms_survive_extremes_and_lose_no_mass(values, log_x):
    series = {"a": np.array(values), "b": SCORES}
    page = Reader(html.histogram(series, xlabel="score", log_x=log_x))
    for attrs in page.all("path", "fill"):
        points(attrs["d"])
    lost, endless = np.isnan(values).sum(), np.isinf(values).sum()
    assert (f"{lost} not a number" in page.text) == (lost > 0)
    assert (f"{endless} infinite" in page.text) == (endless > 0)
    for arrays in (list(series.values()), [series["a"]]):
        arrays = [np.asarray(array, np.float64) for array in arrays]
        _, edges, shares = html._shares(arrays, 60, log_x)
        assert (np.diff(edges) > 0).all()
        assert shares.sum(1) == pytest.approx([float(not np.isnan(array).all()) for array in arrays])
    Reader(html.histogram({"a": np.array(values)}, xlabel="score", log_x=log_x))


def test_histogram_bars_are_as_high_as_their_shares():
    page = Reader(html.histogram({"a": np.repeat([0.0, 1.0, 2.0, 3.0], [1, 2, 3, 4])}, xlabel="x", bins=4))
    (outline,) = points(page.all("path", "fill")[0]["d"])
    base, heights = outline[0, 1], outline[0, 1] - outline[1:-1:2, 1]
    assert outline[-1, 1] == base
    assert heights / heights.sum() == pytest.approx([0.1, 0.2, 0.3, 0.4], abs=0.002)


def test_values_beyond_the_axis_go_to_labeled_outer_bars():
    scores = np.concatenate([SCORES, [50.0, np.inf, -np.inf]])
    page = Reader(html.histogram({"a": scores}, xlabel="x"))
    assert "Outer bars" in page.text
    assert len(re.findall(r"[<>]\N{MINUS SIGN}?\d", page.text)) == 2
    _, _, shares = html._shares([scores], 60, None)
    assert shares[0, 0] >= 1 / 1003
    assert shares[0, -1] >= 2 / 1003


def test_the_axis_bends_only_where_the_spread_demands_it():
    wide = np.exp(RANDOM.normal(8, 2, 2000))
    assert "log scale" not in html.histogram({"a": SCORES, "b": SCORES + 3}, xlabel="x")
    assert "(log scale)" in html.histogram({"a": 1 + SCORES**2, "b": wide}, xlabel="x")
    assert "linear within" in html.histogram({"a": SCORES, "b": wide}, xlabel="x")
    assert "log scale" not in html.histogram({"a": SCORES, "b": wide}, xlabel="x", log_x=False)
    assert "square-root" in html.histogram({"a": SCORES * 0.02, "b": SCORES}, xlabel="x")


@pytest.mark.parametrize("unit", [0.0, 1e-3, 1.0])
def test_axes_invert(unit):
    axis = html._Axis(unit)
    values = np.array([-1e6, -1.0, -1e-4, 0.0, 1e-4, 1.0, 1e6])
    forward = axis.forward(values)
    assert (np.diff(forward) > 0).all()
    assert [axis.inverse(u) for u in forward] == pytest.approx(values)
    ticks = axis.ticks(forward[0], forward[-1])
    assert 3 <= len(ticks) <= 16
    assert "0" in dict(ticks).values() or any(text == "0" for _, text in ticks)


def test_histograms_refuse_nothing_to_show():
    with pytest.raises(ValueError, match="'a' is empty"):
        html.histogram({"a": np.array([])}, xlabel="score")
    with pytest.raises(ValueError, match="nothing to show"):
        html.histogram({}, xlabel="score")
    with pytest.raises(ValueError, match="0 bins"):
        html.histogram({"a": SCORES}, xlabel="score", bins=0)


def test_figures_stay_small():
    rates = np.sort(RANDOM.random((2, 100_000)))
    curves = {f"curve {index}": (rates[0], rates[1] ** (1 / (index + 1))) for index in range(5)}
    assert len(html.roc(curves)) < 20_000
    assert len(html.histogram({f"s {i}": SCORES + i for i in range(5)}, xlabel="x")) < 15_000


def test_roc_curves_keep_their_ends_and_their_shape():
    fpr = np.concatenate([[0.0], np.sort(RANDOM.random(20_000)), [1.0]])
    tpr = fpr**0.2
    page = Reader(html.roc({"a": (fpr, tpr)}))
    (curve,) = points(page.all("path", "line")[-1]["d"])
    (chance,) = points(page.all("path", "axis")[0]["d"].replace("L", " "))
    assert 100 < len(curve) <= 500
    left, bottom = curve[0]
    right, top = curve[-1]
    assert [left, bottom] == pytest.approx(chance[0][:2], abs=0.1)
    x, y = (curve[:, 0] - left) / (right - left), (curve[:, 1] - bottom) / (top - bottom)
    aside = np.minimum(abs(y - np.interp(x, fpr, tpr)), abs(x - np.interp(y, tpr, fpr)))
    assert aside.max() < 0.005
    assert (np.diff(x) >= 0).all()


def test_roc_refuses_what_is_no_curve():
    with pytest.raises(ValueError, match="no curve"):
        html.roc({})
    with pytest.raises(ValueError, match=r"\(2,\) and \(3,\)"):
        html.roc({"a": (np.zeros(2), np.zeros(3))})
    with pytest.raises(ValueError, match="between 0 and 1"):
        html.roc({"a": (np.array([0, np.nan]), np.array([0, 1]))})


def test_lines_break_at_gaps_and_dot_lone_points():
    y = np.array([1, 2, np.nan, 4, np.inf, 6, 7])
    page = Reader(html.lines({"a": (np.arange(7), y)}, xlabel="epoch", ylabel="AUC"))
    runs = points(page.all("path", "line")[-1]["d"])
    assert [len(run) for run in runs] == [2, 1, 2]
    assert page.all("path", "dots")[0]["d"].count("M") == 5


@pytest.mark.parametrize("y", [[1e18, -1e18], [5.0, 5.0], [0.0, 1e-30], [1e300, 1.0], [-1e-5, 2e-5]])
def test_lines_survive_extremes(y):
    page = Reader(html.lines({"a": (np.array([0, 1]), np.array(y))}, xlabel="x", ylabel="y", bands={}))
    points(page.all("path", "line")[-1]["d"])


def test_lines_refuse_what_does_not_fit():
    x = np.arange(3)
    with pytest.raises(ValueError, match="none of the series"):
        html.lines({"a": (x, x)}, xlabel="x", ylabel="y", bands={"b": (x, x)})
    with pytest.raises(ValueError, match="not of one length"):
        html.lines({"a": (x, x[:2])}, xlabel="x", ylabel="y")
    with pytest.raises(ValueError, match="no finite point"):
        html.lines({"a": (x, x * np.nan)}, xlabel="x", ylabel="y")


def test_ticks_are_round_and_say_what_they_are():
    assert [text for _, text in html._labeled(html._ticks(0, 1))] == ["0", "0.2", "0.4", "0.6", "0.8", "1.0"]
    assert [text for _, text in html._labeled(html._ticks(0.9, 2.1, whole=True))] == ["1", "2"]
    assert html._labeled([1e18, 2e18])[1][1] == "2\N{MULTIPLICATION SIGN}10¹⁸"
    assert html._short(-12345.6) == "\N{MINUS SIGN}12,346"
    assert [html._short(v) for v in (0.0, 1e-9, 0.25, 3.14159)] == ["0", "10⁻⁹", "0.25", "3.14"]


def test_scatter_draws_every_finite_point_once() -> None:
    points = {"a": (np.array([0.0, 1, np.nan]), np.array([0.0, 1, 2])), "b": (np.array([5.0]), np.array([-3.0]))}
    text = html.scatter(points, xlabel="first", ylabel="second")
    drawn = re.findall(r'<path class="points [^"]*" d="([^"]*)">', text)
    assert [path.count("M") for path in drawn] == [2, 1]
    assert "1 points are not finite (left out)" in text
    with pytest.raises(ValueError, match="no finite point"):
        html.scatter({"a": (np.array([np.nan]), np.array([1.0]))}, xlabel="", ylabel="")
    with pytest.raises(ValueError, match="not two arrays of one length"):
        html.scatter({"a": (np.zeros(2), np.zeros(3))}, xlabel="", ylabel="")


def test_marks_stand_where_their_value_is() -> None:
    values = np.linspace(0, 10, 1000)
    places = []
    for value in (0.0, 5.0, 10.0, 1e9):
        text = html.histogram({"a": values}, xlabel="x", log_x=False, marks={"limit": value})
        assert "<span>limit</span>" in text
        places.append(float(re.search(r'd="M([\d.]+) [\d.]+V[\d.]+"><title>limit', text)[1]))
    assert places[1] == pytest.approx((places[0] + places[2]) / 2, abs=0.2)
    assert places[3] == places[2] == html.WIDTH - html.RIGHT
