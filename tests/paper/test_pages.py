"""The pages of results in the docs: from result files alone, and as up to date as these."""

import dataclasses
import math
from pathlib import Path

import pytest

from negvae.paper import evidence
from negvae.paper.pages import count, dots, results_page
from negvae.paper.profiles import PROFILES
from negvae.paper.published import TABLES, cells
from negvae.paper.results import Figure, collect
from negvae.paper.show import gather
from tests.cli.test_commands import call
from tests.paper.conftest import fake_result

ROOT = Path(__file__).parents[2]
SMOKE = PROFILES["smoke"]
RUN = "fashion-mnist-bernoulli-none"
PAGES = sorted((ROOT / "docs" / "results").glob("*.md"))


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.stem)
def test_pages_in_the_docs_are_what_the_files_in_results_give(page):
    profile = PROFILES[page.stem]
    made = results_page(gather(TABLES.values(), profile, ROOT / "results"), profile)
    assert page.read_text(encoding="utf-8") == made, f"negvae paper show all --profile {page.stem} --page {page}"


@pytest.mark.parametrize(
    ("table", "page"),
    [("beyond", "README.md"), ("beyond", "docs/notes/unsupervised.md"), ("one-class", "docs/one-class.md")],
)
def test_tables_in_pages_are_what_the_files_in_results_give(table, page, tmp_path, capsys):
    copy = tmp_path / "page.md"
    copy.write_text((ROOT / page).read_text(encoding="utf-8"), encoding="utf-8")
    assert call(capsys, "paper", "show", table, "--results", ROOT / "results", "--page", copy)[0] == 0
    assert copy.read_text(encoding="utf-8") == (ROOT / page).read_text(encoding="utf-8"), (
        f"negvae paper show {table} --page {page}"
    )


def test_every_profile_with_results_has_its_page():
    with_results = {table.stem for table in (ROOT / "results").glob("*.jsonl")}
    assert {page.stem for page in PAGES} == with_results & PROFILES.keys()


def test_the_readme_counts_as_the_page_does():
    found = gather(TABLES.values(), PROFILES["cpu"], ROOT / "results")
    within, _, printed = count(found)
    assert f"{within} of the {printed} published figures" in (ROOT / "README.md").read_text(encoding="utf-8")


def test_a_page_from_the_command_line(capsys, tmp_path):
    for seed, area in enumerate((0.4, 0.5)):
        fake_result(tmp_path, SMOKE, RUN, seed, (area, 0.6, 0.31, math.inf))
    page = tmp_path / "smoke.md"
    code, _, _ = call(capsys, "paper", "show", "all", "--profile", "smoke", "--results", tmp_path, "--page", page)
    assert code == 0
    text = page.read_text()
    # Three tables print this run: both areas are within in each of them, and neither likelihood is.
    assert "**6 of 106 published figures lie within the combined spread, 6 do not, 94 have no result yet.**" in text
    assert "| Fashion-MNIST, Bernoulli | AUC BPD | 0.450 (0.071) | 0.46 (0.05) | -0.010 |" in text
    assert "inf" in text
    code, _, error = call(capsys, "paper", "show", "table1", "--results", tmp_path, "--page", page)
    assert code == 2
    assert "--page goes with all, beyond or one-class" in error


@pytest.mark.parametrize(
    ("values", "paper", "strip"),
    [
        ((0.0, 1.0), 0.5, "0 `o...x...o` 1"),
        ((0.5, 0.0), 0.5, "0 `o...@....` 1"),
        ((0.25,), None, "0 `..o......` 1"),
        ((math.inf, 0.5), 0.5, "-"),
        ((0.5,), 1e18, "-"),
    ],
)
def test_dots(values, paper, strip):
    assert dots(Figure("auc_kl", 0.5, 0.1, paper, paper and 0.1, values), width=9) == strip


def test_dots_of_likelihoods_lie_between_the_least_and_the_largest():
    figure = Figure("nats_per_dim_test", 0.35, 0.1, 0.3, 0.0, (0.35, 0.4))
    assert dots(figure, width=5) == "0.300 `x.o.o` 0.400"


def test_evidence_is_in_the_curves(tmp_path):
    for seed in (0, 1):
        curve = [{"epoch": 1, "auc_bpd": 0.2, "kl": 5.0}, {"epoch": 2, "auc_bpd": 0.3 + seed / 10, "kl": 4.0}]
        curve[0]["kl"] += 5000 * seed
        fake_result(tmp_path, SMOKE, RUN, seed, (0.3, 0.6, 0.3, 0.35), curve=curve)
    cell = collect(cells()["table1/fashion-mnist/bernoulli"], SMOKE, tmp_path)
    text = evidence.sentence(cell, cell.figures["auc_bpd"])
    assert "AUC BPD: 0.200, 0.350 over 2 epochs" in text
    assert "changed it by +0.150 (0.071), in every seed towards the paper's figure" in text
    one = dataclasses.replace(cell, results=cell.results[:1])
    text = evidence.sentence(one, cell.figures["auc_bpd"])
    assert "0.200, 0.300 over 2 epochs (one seed, " in text
    assert "changed it by +0.1000, towards the paper's figure" in text
    assert not evidence.still_moves([[0.2, 0.3], [0.2, 0.1]], 0.5)
    assert evidence.starts(cell) == (
        "Seed 1 (5,005 nats) began far from the prior: the mean KL divergence of its first epoch. Adam's large steps"
        " meet the large first weights there; with smaller ones no seed does (docs/reproduction.md)."
    )
