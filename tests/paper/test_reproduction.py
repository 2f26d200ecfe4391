import math
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from negvae.paper import claims as reading
from negvae.paper.claims import CLAIMS, Check, Claim, borne_out, explanation, judge
from negvae.paper.profiles import PROFILES
from negvae.paper.published import ROWS, TABLES, cells, settings
from negvae.paper.reproduction import data_table, page, write_report
from negvae.paper.results import PICTURES
from negvae.paper.show import gather
from negvae.report.samples import write_strips
from tests.cli.test_commands import call
from tests.paper.conftest import fake_result

ROOT = Path(__file__).parents[2]
SMOKE = PROFILES["smoke"]
BASELINE, GENERATED = "fashion-mnist-bernoulli-none", "fashion-mnist-bernoulli-generated"


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """Two configurations, one of them with pictures and a likelihood beyond any axis."""
    folder = tmp_path_factory.mktemp("paper") / "results"
    for seed in (0, 1):
        fake_result(folder, SMOKE, BASELINE, seed, (0.4 + seed / 100, 0.6, 0.3, 0.35))
    captions = ["Inliers", "Outliers", "Negatives"]
    curve = [{"epoch": 1, "nats_per_dim": 0.5, "nats_per_dim_test": 0.5, "nats_per_dim_ood": 1e12}, {"epoch": 2}]
    fake_result(folder, SMOKE, GENERATED, 0, (0.7, 0.9, 0.47, math.inf), curve=curve,
                pictures={"captions": captions, "count": 4})  # fmt: skip
    own = folder.parent / "work" / "smoke" / f"{GENERATED}-seed0"
    own.mkdir(parents=True)
    write_strips(own / PICTURES, {c: np.full((4, 1, 28, 28), 99, np.uint8) for c in captions})
    return folder


@pytest.fixture(scope="module")
def written(results):
    """The page, the tables as Markdown and LaTeX, and the folder of the charts."""
    return write_report(results.parent / "out", SMOKE, results, results.parent / "work")


class Balance(HTMLParser):
    """Collects headings and fails on elements that are not closed in order."""

    def __init__(self, text):
        super().__init__()
        self.open, self.headings, self.images = [], [], 0
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.images += tag == "img"
        if tag not in ("meta", "img", "br"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        pass

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] == "h2":
            self.headings.append(data)


def test_the_page(written):
    assert [path.name for path in written] == ["report.html", "tables.md", "tables.tex", "figures"]
    text = written[0].read_text()
    seen = Balance(text)
    assert seen.headings == [
        "What reproduces and what does not", "Table 1", "Table 2", "Table 3", "Table 4", "Table 5", "Section 4.3",
        "Learned sigma", "Figures outside the combined spread", "Fashion-MNIST, Bernoulli, no negatives",
        "Fashion-MNIST, Bernoulli, generated", "Provenance",
    ]  # fmt: skip
    assert seen.images == 3 + 3  # the generated run's, and Table 5's strip
    assert "OOD left out: up to 1e+12" in text
    assert "0.405 (0.007)" in text
    assert "a stand-in &amp; 50% of it" in text
    assert "15 lie within the combined spread of ours and 5 outside; 86 have no result yet" in text


def test_charts_are_there_for_papers_too(written):
    kinds = ("auc", "likelihood", "bpd", "kl", "roc")
    names = {f"{run}-{kind}.{form}" for run in (BASELINE, GENERATED) for kind in kinds for form in ("pdf", "png")}
    names -= {f"{GENERATED}-auc.pdf", f"{GENERATED}-auc.png"}  # its curve has no such figures
    assert {path.name for path in written[3].iterdir()} == names
    assert written[0].read_text().count("<svg") == len(names) / 2


def test_rows_of_a_table(results):
    table = data_table(TABLES["table5"], gather(TABLES.values(), SMOKE, results))
    assert [table.rows[number][0] for number in table.groups] == [f"{title}, ours" for title in ROWS.values()]
    lines = {title: texts for title, *texts in table.rows if title != "difference"}
    assert lines["AUC BPD, ours"] == ["0.405 (0.007)", "-", "-", "-", "0.700"]
    assert lines["AUC BPD, paper"] == ["0.46 (0.05)", "0.47 (0.05)", "1.00 (0.00)", "1.00 (0.00)", "0.76 (0.14)"]
    assert lines["OOD, nats/dim, ours"][-1] == "inf"
    assert lines["OOD, bits/dim, paper"][-1] == "10^18 (10^19)"
    differences = [texts for title, *texts in table.rows if title == "difference"]
    assert differences[0] == ["-0.055, out", "-", "-", "-", "-0.060, in"]


def test_markdown(written):
    text = written[1].read_text()
    assert len(re.findall("^## ", text, re.M)) == len(TABLES)
    for block in text.split("## ")[1:]:
        widths = {len(re.findall(r"(?<!\\)\|", line)) for line in block.splitlines() if line.startswith("|")}
        assert len(widths) == 1
    assert "| AUC BPD, ours | 0.405 (0.007) |" in text


def test_latex(written):
    text = written[2].read_text()
    assert text.count(r"\begin{tabular}") == text.count(r"\end{tabular}") == len(TABLES)
    assert text.count("{") == text.count("}")
    assert r"a stand-in \& 50\% of it" in text
    assert r"a\_machine" in text
    assert "$10^{18}$ ($10^{19}$)" in text
    for body in re.findall(r"\\begin{tabular}{(l(r+))}(.*?)\\end{tabular}", text, re.S):
        rows = [line for line in body[2].splitlines() if line.endswith(r"\\")]
        assert len(rows) > 10
        assert {len(re.findall(r"(?<!\\)&", row)) for row in rows} == {len(body[1])}


def test_claims(results):
    found = gather(TABLES.values(), SMOKE, results)

    def holds(*checks):
        return judge(Claim("c", tuple(Check(*check) for check in checks)), found)

    below = ("table1/fashion-mnist/bernoulli", "auc_bpd", "<", 0.5)
    better = ("table3/bernoulli/generated", "auc_kl", ">", "table3/bernoulli/none")
    missing = ("table4/gaussian/generated", "auc_kl", ">", 0.5)
    wrong = ("table3/bernoulli/generated", "auc_bpd", "<", "table3/bernoulli/none")
    assert holds(below, better).holds is True
    assert "table3/bernoulli/generated AUC KL 0.900 > 0.600 (0.000)" in holds(better).evidence
    assert holds(below, missing).holds is None
    assert holds(wrong, missing).holds is False
    assert " not < " in holds(wrong).evidence


def test_claims_name_cells_that_exist():
    for check in (check for claim in CLAIMS for check in claim.checks):
        assert check.cell in cells()
        assert check.row in ROWS
        assert not isinstance(check.bound, str) or check.bound in cells()


def test_some_claims_are_not_borne_out_by_the_paper_s_own_figures(results):
    found = gather(TABLES.values(), SMOKE, results)
    against = [claim.text for claim in CLAIMS if not borne_out(claim, found)]
    said = ("diminishes", "prevails more consistently", "alike", "notably higher", "significantly and consistently")
    for text, words in zip(against, said, strict=True):
        assert words in text


def test_explanations_hold_no_measured_figures():
    for texts in reading.EXPLANATIONS.values():
        assert not any(re.search(r"[0-9]\.[0-9]", text) for text in texts.values())


def test_areas_are_within_the_spread_where_explanations_say_so():
    found = gather(TABLES.values(), PROFILES["cpu"], ROOT / "results")
    said = [cell for cell in found.values() if "Both AUCs are within" in explanation(cell, "cpu")]
    assert len(said) >= 4
    for cell in said:
        assert all(cell.figures[row].within for row in ("auc_bpd", "auc_kl") if row in cell.cell.paper)


def test_explanations(results, monkeypatch):
    known = {"table3/bernoulli/none": "of the cell", BASELINE: "of the <run>", "table5": "of the table"}
    monkeypatch.setattr(reading, "EXPLANATIONS", {"smoke": known})
    found = gather(TABLES.values(), SMOKE, results)
    texts = [explanation(found[name], "smoke") for name in ("table3/bernoulli/none", "table5/none", "table5/generated")]
    assert texts == ["of the cell", "of the <run>", "of the table"]
    assert explanation(found["table5/none"], "cpu") == ""
    no_charts = {cell.cell.setting: {} for cell in found.values()}
    assert "of the &lt;run&gt;" in page(found, no_charts, SMOKE)


def test_explanations_are_of_things_that_exist():
    assert reading.EXPLANATIONS.keys() <= PROFILES.keys()
    for texts in reading.EXPLANATIONS.values():
        assert texts.keys() <= {*cells(), *settings(), *TABLES}


def test_command(capsys, results, tmp_path):
    code, out, _ = call(capsys, "paper", "report", "--profile", "smoke", "--results", results, "--out", tmp_path / "r")
    assert code == 0
    assert out.count("written: ") == 4
