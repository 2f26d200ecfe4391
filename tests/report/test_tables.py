"""One table, four forms."""

import numpy as np
import pytest
from rich.console import Console

from negvae.report.tables import DataTable, html, latex, markdown, terminal, tex
from tests.report.conftest import Reader

AREAS = DataTable(
    ["name", "AUC", "loss", "n"],
    [["a", "0.91 [0.90, 0.92]", 0.5, 3], ["b", "\N{EM DASH}", np.float32(-0.12345), np.int64(12)]],
    title="Areas & more",
    caption="Of [one] seed.",
    highlight=[1],
    groups=[1],
)


def printed(table, width=100, **options):
    console = Console(width=width)
    with console.capture() as captured:
        console.print(terminal(table, **options))
    return captured.get()


def test_a_page_aligns_numbers_and_gives_a_column_the_same_decimals():
    text = html(AREAS)
    page = Reader(text)
    assert [attrs["class"] for attrs in page.all("th")[:4]] == ["left", "right", "right", "right"]
    assert ">0.5000<" in text
    assert ">\N{MINUS SIGN}0.1235<" in text or ">\N{MINUS SIGN}0.1234<" in text
    assert len(page.all("tr", "mark")) == 1
    assert "mark" in text.split("<tr")[3]
    assert len(page.all("tbody")) == 2
    assert "Areas & more" in page.text
    assert "Of [one] seed." in page.text


def test_a_table_that_the_keyboard_reaches_has_a_name():
    """It takes the focus so that a wide one can be moved with the arrow keys."""
    untitled = DataTable(["file", "a <b>"], [["x", 1]])
    for table, name in ((AREAS, "Areas & more"), (untitled, "Table of file, a <b>")):
        (box,) = [each for each in Reader(html(table)).all("div") if "tabindex" in each]
        assert (box["role"], box["aria-label"]) == ("region", name)


def test_markdown_is_aligned_and_escapes_bars():
    assert markdown(DataTable(["a|b", "n"], [["x|y", 1.5]])) == "| a\\|b | n |\n| --- | --: |\n| x\\|y | 1.500 |\n"
    text = markdown(AREAS)
    assert text.startswith("**Areas & more**\n\n| name | AUC |")
    assert text.endswith("\n\nOf [one] seed.\n")


def test_latex_has_rules_between_groups_and_escapes():
    text = latex(AREAS)
    assert r"\textbf{Areas \& more}\par" in text
    assert r"\begin{tabular}{lrrr}" in text
    assert text.count(r"\midrule") == 2
    assert text.index(r"a & 0.91") < text.rindex(r"\midrule") < text.index("b & ")
    assert "$-$0.1" in text


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("-0.105, out", "$-$0.105, out"),
        ("-", "$-$"),
        ("\N{MINUS SIGN}1", "$-$1"),
        ("-1.0x10^18, in", r"$-$$1.0\times 10^{18}$, in"),
        ("CIFAR-10 & 5%_#$", r"CIFAR-10 \& 5\%\_\#\$"),
        (r"a\b{c}~<", r"a\textbackslash{}b\{c\}\textasciitilde{}$<$"),
    ],
)
def test_latex_escapes(text, expected):
    assert tex(text) == expected


def test_a_terminal_shows_every_cell_as_it_is():
    text = printed(AREAS)
    assert "0.91 [0.90, 0.92]" in text
    assert "Of [one] seed." in text
    assert "Areas & more" in text
    assert sum(line.startswith("├") or line.startswith("┡") for line in text.splitlines()) == 2


def test_a_narrow_terminal_breaks_no_column_that_is_to_stay_whole():
    table = DataTable(["long", "figure"], [["word " * 20, "0.405 (0.007)"]], align="lr")
    assert "0.405 (0.007)" in printed(table, width=30, whole=[1])


def test_numbers_of_any_size():
    table = DataTable(["x"], [[1e18], [1e-9], [float("nan")], [float("-inf")], [0.0]])
    wanted = ["1e+18", "1e\N{MINUS SIGN}09", "NaN", "\N{MINUS SIGN}inf", "0"]
    assert [cell for (cell,) in table.texts()] == wanted


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="row 1 has 1 cells"):
        DataTable(["a", "b"], [["1", "2"], ["1"]])
    with pytest.raises(ValueError, match="highlight"):
        DataTable(["a"], [["1"]], highlight=[1])
    with pytest.raises(ValueError, match="groups"):
        DataTable(["a"], [["1"]], groups=[-1])
    for align in ("<b>", "x", "ll"):
        with pytest.raises(ValueError, match="align"):
            DataTable(["a"], [["1"]], align=align)


def test_a_table_without_rows_has_its_header():
    empty = DataTable(["a", "b"], [])
    assert markdown(empty).count("\n") == 2
    assert Reader(html(empty)).text == "ab"
    assert "a" in printed(empty)
