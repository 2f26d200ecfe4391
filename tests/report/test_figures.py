"""Charts: what they show, that they survive any numbers, and that they leave the host program alone."""

import re
from concurrent.futures import ThreadPoolExecutor

import matplotlib
import numpy as np
import pytest
from matplotlib.colors import to_hex

from negvae.report import figures
from negvae.report.figures import COLORS, INK, histogram, lines, roc, save, scatter, svg
from tests.report.conftest import Reader
from tests.report.test_scales import EXTREMES

RANDOM = np.random.default_rng(0)
SCORES = RANDOM.normal(0, 1, 1000)


def said(figure):
    """All text of a figure, as a page shows it."""
    return Reader(svg(figure)).text


def drawn(figure, color=COLORS[0]):
    """The lines of a color, without those that only mark something."""
    return [line for line in figure.axes[0].lines if to_hex(line.get_color()) == color]


@pytest.mark.parametrize("log_x", [None, True, False])
@pytest.mark.parametrize("values", EXTREMES)
def test_histograms_survive_extremes(values, log_x):
    figure = histogram({"a": np.array(values), "b": SCORES}, xlabel="score", log_x=log_x)
    text = svg(figure)
    assert not re.search(r"nan|inf\b", re.sub(r"<text.*?</text>|aria-label=\"[^\"]*\"", "", text))
    lost, endless = np.isnan(values).sum(), np.isinf(values).sum()
    shown = Reader(text).text
    assert (f"{lost} not a number" in shown) == (lost > 0)
    assert (f"{endless} infinite" in shown) == (endless > 0)
    Reader(svg(histogram({"a": np.array(values)}, xlabel="score", log_x=log_x)))


def test_histogram_bars_are_as_high_as_their_shares():
    figure = histogram({"a": np.repeat([0.0, 1.0, 2.0, 3.0], [1, 2, 3, 4])}, xlabel="x", bins=4)
    heights, edges, _ = figure.axes[0].patches[0].get_data()
    assert heights[np.isfinite(heights)] == pytest.approx([0.1, 0.2, 0.3, 0.4])
    assert edges[2:-2] == pytest.approx([0, 0.75, 1.5, 2.25, 3])
    assert figure.axes[0].get_xlim() == pytest.approx((0, 3))


@pytest.mark.parametrize("values", [[1 / 211] * 50, [0.52], [1 / 40, 0.32]])
def test_an_axis_of_given_ends_keeps_them_whatever_the_values(values):
    figure = histogram({"input": np.array(values)}, xlabel="p-value", bins=20, log_x=False, limits=(0, 1))
    assert figure.axes[0].get_xlim() == pytest.approx((0, 1))
    heights, edges, _ = figure.axes[0].patches[0].get_data()
    assert heights[np.searchsorted(edges, values[0]) - 1] == pytest.approx(1 / len(set(values)))


def test_values_beyond_the_axis_go_to_labeled_outer_bars():
    figure = histogram({"a": np.concatenate([SCORES, [50.0, np.inf, -np.inf]])}, xlabel="x")
    shown = said(figure)
    assert "Outer bars hold all values beyond the axis. a: 2 infinite of 1,003." in shown
    assert len(re.findall(r"[<>]\N{MINUS SIGN}?\d", shown)) == 2
    heights, edges, _ = figure.axes[0].patches[0].get_data()
    assert heights[0] >= 1 / 1003
    assert heights[-1] >= 2 / 1003
    assert figure.axes[0].get_xlim() == pytest.approx((edges[0], edges[-1]))
    assert "Outer bars" not in said(histogram({"a": SCORES}, xlabel="x"))


def test_the_axis_bends_only_where_the_spread_demands_it():
    wide = np.exp(RANDOM.normal(8, 2, 2000))
    assert "log scale" not in said(histogram({"a": SCORES, "b": SCORES + 3}, xlabel="x"))
    assert "(log scale)" in said(histogram({"a": 1 + SCORES**2, "b": wide}, xlabel="x"))
    assert "linear within" in said(histogram({"a": SCORES, "b": wide}, xlabel="x"))
    assert "log scale" not in said(histogram({"a": SCORES, "b": wide}, xlabel="x", log_x=False))
    assert "square-root" in said(histogram({"a": SCORES * 0.02, "b": SCORES}, xlabel="x"))


@pytest.mark.parametrize("values", [SCORES, np.exp(3 * SCORES), np.exp(3 * SCORES) - 1, SCORES * 1e-9, SCORES * 1e9])
def test_an_axis_has_a_few_ticks_within_it(values):
    axes = histogram({"a": values}, xlabel="x").axes[0]
    low, high = axes.get_xlim()
    ticks = axes.get_xticks()
    assert 3 <= len(ticks) <= 12
    assert all(low <= tick <= high for tick in ticks)


@pytest.mark.parametrize("bent", [False, True])
def test_marks_stand_where_their_value_is_and_on_the_edge_beyond_it(bent):
    values = np.linspace(-10, 10, 1001)
    for value, place in ((0.0, 0.0), (5.0, 5.0), (10.0, 10.0), (1e9, 10.0), (-np.inf, -10.0)):
        figure = histogram({"a": values}, xlabel="x", log_x=bent, marks={"limit": value})
        (mark,) = drawn(figure, INK)
        assert mark.get_xdata() == pytest.approx([place, place])
        assert "limit" in said(figure)


def test_histograms_refuse_nothing_to_show():
    with pytest.raises(ValueError, match="'a' is empty"):
        histogram({"a": np.array([])}, xlabel="score")
    with pytest.raises(ValueError, match="nothing to show"):
        histogram({}, xlabel="score")
    with pytest.raises(ValueError, match="0 bins"):
        histogram({"a": SCORES}, xlabel="score", bins=0)


def test_figures_stay_small():
    rates = np.sort(RANDOM.random((2, 100_000)))
    curves = {f"curve {index}": (rates[0], rates[1] ** (1 / (index + 1))) for index in range(5)}
    assert len(svg(roc(curves))) < 20_000
    assert len(svg(histogram({f"s {i}": SCORES + i for i in range(5)}, xlabel="x"))) < 15_000
    points = RANDOM.normal(size=(2, 1000))
    assert len(svg(scatter({"a": (points[0], points[1])}, xlabel="x", ylabel="y"))) < 60_000


def test_roc_curves_keep_their_ends_and_their_shape():
    fpr = np.concatenate([[0.0], np.sort(RANDOM.random(20_000)), [1.0]])
    tpr = fpr**0.2
    text = svg(roc({"a": (fpr, tpr)}))
    paths = re.findall(r'<path d="([^"]*)" style="[^"]*stroke:(var[^;"]*)', text)
    places = [[float(n) for n in re.findall(r"-?[\d.]+", d)] for d, color in paths if color == "var(--c0)"]
    x, y = np.array(places[0]).reshape(-1, 2).T
    assert len(x) <= 500
    x, y = (x - x[0]) / (x[-1] - x[0]), (y - y[0]) / (y[-1] - y[0])
    aside = np.minimum(abs(y - np.interp(x, fpr, tpr)), abs(x - np.interp(y, tpr, fpr)))
    assert aside.max() < 0.005
    assert (np.diff(x) >= 0).all()


def test_roc_refuses_what_is_no_curve():
    with pytest.raises(ValueError, match="no curve"):
        roc({})
    with pytest.raises(ValueError, match=r"\(2,\), \(3,\)"):
        roc({"a": (np.zeros(2), np.zeros(3))})
    with pytest.raises(ValueError, match="1 points"):
        roc({"a": (np.zeros(1), np.zeros(1))})
    with pytest.raises(ValueError, match="between 0 and 1"):
        roc({"a": (np.array([0, np.nan]), np.array([0, 1]))})


def test_lines_break_at_gaps_and_dot_lone_points():
    y = np.array([1, 2, np.nan, 4, np.inf, 6, 7])
    text = svg(lines({"a": (np.arange(7), y)}, xlabel="epoch", ylabel="AUC"))
    paths = re.findall(r'<path d="([^"]*)" style="fill:none;stroke:var\(--c0\)', text)
    assert [len(run.split()) // 2 for run in paths[0].split("M")[1:]] == [2, 1, 2]
    dots = [group for group in re.findall(r"<g[^>]*>((?:<use[^>]*>)+)</g>", text) if group.count("<use") > 1]
    assert [group.count("<use") for group in dots] == [5]


def test_long_lines_have_dots_at_lone_points_only():
    y = np.ones(100)
    y[[49, 51]] = np.nan
    (line,) = drawn(lines({"a": (np.arange(100), y)}, xlabel="epoch", ylabel="AUC"))
    assert np.flatnonzero(line.get_markevery()).tolist() == [50]


def test_lines_have_bands():
    x = np.arange(3)
    figure = lines({"a": (x, x)}, xlabel="x", ylabel="y", bands={"a": (x - 1.0, x + 1.0)})
    (band,) = figure.axes[0].collections
    places = band.get_paths()[0].vertices
    assert (places[:, 1].min(), places[:, 1].max()) == (-1, 3)


@pytest.mark.parametrize("y", [[1e18, -1e18], [5.0, 5.0], [0.0, 1e-30], [1e300, 1.0], [-1e-5, 2e-5]])
def test_lines_survive_extremes(y):
    text = svg(lines({"a": (np.array([0, 1]), np.array(y))}, xlabel="x", ylabel="y", bands={}))
    assert not re.search(r"nan|inf\b", text)


def test_lines_refuse_what_does_not_fit():
    x = np.arange(3)
    with pytest.raises(ValueError, match="none of the series"):
        lines({"a": (x, x)}, xlabel="x", ylabel="y", bands={"b": (x, x)})
    with pytest.raises(ValueError, match="not of one length"):
        lines({"a": (x, x[:2])}, xlabel="x", ylabel="y")
    with pytest.raises(ValueError, match="no finite point"):
        lines({"a": (x, x * np.nan)}, xlabel="x", ylabel="y")


def test_scatter_draws_every_finite_point_once():
    points = {"a": (np.array([0.0, 1, np.nan]), np.array([0.0, 1, 2])), "b": (np.array([5.0]), np.array([-3.0]))}
    figure = scatter(points, xlabel="first", ylabel="second")
    assert [len(line.get_xdata()) for line in figure.axes[0].lines] == [2, 1]
    assert "1 points are not finite (left out)" in said(figure)
    with pytest.raises(ValueError, match="no finite point"):
        scatter({"a": (np.array([np.nan]), np.array([1.0]))}, xlabel="", ylabel="")
    with pytest.raises(ValueError, match="not of one length"):
        scatter({"a": (np.zeros(2), np.zeros(3))}, xlabel="", ylabel="")


@pytest.mark.parametrize("name", ["_hidden", "$x_1$", r"$\frac{$", "\N{CJK UNIFIED IDEOGRAPH-65E5}", "a & <b>", "50%"])
def test_names_stand_as_they_are(name, tmp_path):
    figure = roc({name: (np.array([0.0, 1.0]), np.array([0.0, 1.0]))})
    assert name in said(figure)
    assert all(path.stat().st_size > 1000 for path in save(figure, tmp_path / "a"))


def test_characters_that_no_page_can_hold_are_replaced():
    assert "a\N{REPLACEMENT CHARACTER}b\N{REPLACEMENT CHARACTER}" in said(
        histogram({"a\x00b\udc80": SCORES}, xlabel="")
    )


def test_a_figure_says_what_it_shows_to_those_who_cannot_see_it():
    page = Reader(svg(histogram({"a": SCORES, "b": SCORES}, xlabel="bits")))
    assert page.all("svg")[0]["role"] == "img"
    assert page.all("svg")[0]["aria-label"] == "share of each series over bits: a, b"


def test_names_within_a_page_are_unique_and_found():
    two = svg(histogram({"a": SCORES}, xlabel="x")) + svg(scatter({"a": (SCORES, SCORES)}, xlabel="x", ylabel="y"))
    ids = re.findall(r'\bid="([^"]*)"', two)
    assert len(ids) == len(set(ids)) > 1
    assert {*ids} == {*re.findall(r'href="#([^"]*)"', two)}


def draw(seed):
    scores = np.random.default_rng(seed).normal(size=300)
    figure = histogram({"a": scores, "b": scores + 2}, xlabel="x", marks={"m": 1.0})
    return svg(figure)


def test_the_host_program_s_settings_change_nothing_and_stay():
    wanted = draw(0)
    with matplotlib.rc_context(
        {"font.size": 30, "axes.facecolor": "red", "svg.fonttype": "path", "lines.linewidth": 9}
    ):
        before = dict(matplotlib.rcParams)
        assert draw(0) == wanted
        assert dict(matplotlib.rcParams) == before
    assert draw(0) == wanted


def test_threads_draw_as_one_does():
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(draw, range(8))) == [draw(seed) for seed in range(8)]


def test_files_for_papers_are_whole_and_the_same_every_time(tmp_path):
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        paths = save(histogram({"a": SCORES}, xlabel="x"), tmp_path / name / "b.c")
        assert [path.name for path in paths] == ["b.c.pdf", "b.c.png"]
    pdf, png = paths
    assert pdf.read_bytes().startswith(b"%PDF")
    assert png.read_bytes().startswith(b"\x89PNG")
    assert b"CreationDate" not in pdf.read_bytes()
    for path in paths:
        assert path.read_bytes() == (tmp_path / "one" / path.name).read_bytes()
    assert sorted(path.name for path in (tmp_path / "two").iterdir()) == ["b.c.pdf", "b.c.png"]


def test_every_color_of_a_figure_has_a_variable_of_the_page():
    assert {*COLORS, figures.INK, figures.SOFT, figures.RULE} == figures.VARIABLES.keys()
