import tomllib
from pathlib import Path

import pytest
import yaml

import negvae
from negvae.citations import METHOD, PAPERS
from negvae.config import PRESETS, preset
from negvae.runs.artifact import write_config
from negvae.runs.cite import TABLES, cited_by
from tests.cli.test_commands import call


def test_every_key_that_an_entry_names_is_a_publication_and_each_publication_has_what_bibtex_needs():
    assert {key for table in TABLES for entry in table.entries() for key in entry.papers} <= PAPERS.keys()
    for key, paper in PAPERS.items():
        assert paper.link.startswith(("https://", "http://"))
        assert key.endswith(str(paper.year)) or paper.venue != "arXiv"
        assert paper.bibtex().count("{") == paper.bibtex().count("}")


OWN = {
    "pyramid", "deep", "mlp", "linear", "zoomed", "augmented", "sketch", "sketched-jigsaw", "strokes", "zoom",
    "shuffled", "box", "spread", "combined", "bpd", "prior_ratio", "latent_norm",
}  # fmt: skip
"""Parts that come from no publication but the paper, which is always cited, or from this project."""


def test_every_part_has_a_publication_or_is_said_to_have_none():
    entries = {entry.name: entry.papers for table in TABLES for entry in table.entries()}
    assert {name for name, papers in entries.items() if not papers} == OWN, "name its papers, or add it to OWN"
    used = {key for papers in entries.values() for key in papers} | {METHOD}
    assert PAPERS.keys() == used, "a publication that no part names"
    for name in entries:
        assert [paper.key for paper in cited_by([name])] == list(dict.fromkeys([METHOD, *entries[name]]))


def test_every_preset_cites_its_parts(tmp_path):
    for name in PRESETS:
        (tmp_path / name).mkdir()
        write_config(tmp_path / name, preset(name, "d"), (1, 28, 28), {})
    turns = preset("unsupervised", "d", transformations="turns")
    (tmp_path / "turns").mkdir()
    write_config(tmp_path / "turns", turns, (1, 28, 28), {})
    found = {name: {paper.key for paper in cited_by([str(tmp_path / name)])} for name in [*PRESETS, "turns"]}
    assert found["gray-paper"] == {METHOD, "kingma2014", "rosca2018", "nalisnick2018"}
    assert found["turns"] - found["unsupervised"] == {"golan2018"}
    assert {"noroozi2016", "yun2019"} <= found["unsupervised"]


def test_the_citation_file_and_the_versions_agree():
    root = Path(__file__).parents[2]
    found = yaml.safe_load((root / "CITATION.cff").read_text(encoding="utf-8"))
    project = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert found["version"] == project["version"] == negvae.__version__
    paper, wanted = PAPERS[METHOD], found["preferred-citation"]
    names = tuple(f"{each['given-names']} {each['family-names']}" for each in wanted["authors"])
    assert (paper.title, paper.authors, paper.year, paper.link) == (
        wanted["title"],
        names,
        wanted["year"],
        wanted["url"],
    )


def test_a_run_cites_its_network_its_transformations_and_its_score(tmp_path, capsys):
    config = preset("gray", "fashion-mnist", negatives="0.5*augmented:jigsaw,mixup+0.5*generated")
    write_config(tmp_path, config, (1, 28, 28), {})
    assert [paper.key for paper in cited_by([str(tmp_path)])] == [
        "csiszarik2019", "kingma2014", "rosca2018", "noroozi2016", "zhang2018"
    ]  # fmt: skip
    code, text, _ = call(capsys, "cite", tmp_path, "dose")
    assert code == 0
    assert text.count("@") == 7
    assert "morningstar2021" in text


@pytest.mark.parametrize(("name", "line"), [("doze", "did you mean dose"), ("FOLDER", "not a negvae run")])
def test_what_is_neither_a_part_nor_a_run_is_one_line(capsys, tmp_path, name, line):
    code, _, error = call(capsys, "cite", tmp_path if name == "FOLDER" else name)
    assert (code, error.count("\n")) == (2, 1)
    assert line in error
