"""Every figure in the docs has its source."""

import json

import pytest
from benchmarks import figures
from benchmarks.figures import fault, main, numbers


def test_no_figure_has_a_wrong_source_or_lacks_one(capsys):
    assert main() == 0, capsys.readouterr().err


@pytest.fixture
def page(tmp_path):
    (tmp_path / "found.json").write_text(json.dumps({"a": [0.9337, {"b": 0.053}], "c": True}))
    (tmp_path / "found.md").write_text("| 0.934 (0.930-0.939) |\n")

    def write(text):
        path = tmp_path / "README.md"
        path.write_text(text)
        return [(each.figure, fault(each, tmp_path)) for each in figures.figures(path, tmp_path)]

    return write


def test_figures_are_found_outside_of_code_versions_and_links(page):
    text = "Python 3.11, 3.12 and 3.13, torch 2.13, version 1.2.3, `0.5`, [x](a/1.5), 10^18, -0.5 and 5.3%.\n"
    text += "\n    0.25\n\n```\n0.75\n```\n"
    assert [figure for figure, _ in page(text)] == ["-0.5", "5.3%"]


def test_a_source_holds_for_its_block_or_its_section(page):
    text = "<!-- source: found.json -->\n0.934 and 5.3%\n\n0.934\n\n"
    text += "<!-- source of this section: make bench -->\n0.1\n\n0.2\n# Next\n0.3\n"
    faults = [bool(problem) for _, problem in page(text)]
    assert faults == [False, False, True, False, False, True]


@pytest.mark.parametrize(
    ("source", "figure", "word"),
    [
        ("found.json", "0.935", "is no number of found.json"),
        ("found.md", "0.934", ""),
        ("found.md", "0.93", "does not stand in found.md"),
        ("gone.json", "0.934", "no file of this repository"),
        ("somewhere", "0.934", "no file of this repository"),
        ("arXiv 2401.04933", "0.99", ""),
        ("negvae paper show beyond", "0.99", ""),
    ],
)
def test_wrong_sources_are_named(page, source, figure, word):
    ((_, problem),) = page(f"<!-- source: {source} -->\n{figure}\n")
    assert word in problem
    assert bool(problem) == bool(word)


def test_generated_blocks_have_the_command_of_their_marker(page):
    text = "<!-- steps: begin (written by `make bench`) -->\n1.5\n<!-- steps: end -->\n1.5\n"
    assert [bool(problem) for _, problem in page(text)] == [False, True]


def test_numbers_of_a_file(tmp_path, page):
    assert numbers(tmp_path / "found.json") == [0.9337, 0.053]
    (tmp_path / "found.jsonl").write_text('{"a": 0.5}\n{"a": [2]}\n')
    assert numbers(tmp_path / "found.jsonl") == [0.5, 2]


def test_the_trial_of_color_networks_is_as_its_files_have_it():
    text = (figures.ROOT / "docs" / "reproduction.md").read_text(encoding="utf-8")
    for path in sorted((figures.ROOT / "benchmarks" / "results" / "color-networks").glob("*.json")):
        for row in json.loads(path.read_text(encoding="utf-8"))["curve"]:
            shown = f"| {row['epoch']} | {row['auc_bpd']:.3f} | {row['auc_kl']:.3f} | {row['nats_per_dim_test']:.3g} |"
            assert shown in text, path.name
