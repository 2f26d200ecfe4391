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
    (tmp_path / "limits.py").write_text("SHARE, LARGEST, LEAST, RATE = 0.65, 64_000_000, 1_024, 2e-3\n")
    (tmp_path / "Makefile").write_text("bench: .venv\n")
    (tmp_path / "trial.py").touch()
    (tmp_path / "src/negvae/cli").mkdir(parents=True)
    (tmp_path / "src/negvae/cli/app.py").write_text("def paper():\n")
    lines = [{"name": f"run{n}", "evaluation": {"svhn": {"auc_kl": n / 10, "auc_bpd": 0.77}}} for n in (1, 2, 4)]
    text = "\n".join(json.dumps({**one, "quantiles": list(range(1000))}) for one in lines)
    (tmp_path / "runs.jsonl").write_text(text)

    def write(text):
        path = tmp_path / "README.md"
        path.write_text(text)
        return [(each.figure, fault(each, tmp_path)) for each in figures.figures(path, tmp_path)]

    return write


def test_figures_are_found_outside_of_code_versions_and_links(page):
    text = "Python 3.11, 3.12 and 3.13, torch 2.13, version 1.2.3, `0.5`, [x](a/1.5), 10^18, -0.5 and 5.3%.\n"
    text += "\n    0.25\n\n```\n0.75\n```\n"
    assert [figure for figure, _ in page(text)] == ["-0.5", "5.3%"]


def test_whole_numbers_with_a_unit_are_figures_and_usual_levels_are_none(page):
    text = "<!-- source: limits.py -->\n65%, 64 MB, 64 million, 1,024 nats, 3 images, 95%, 5 to 7 seconds, 400 MB/s\n"
    found = dict(page(text))
    assert list(found) == ["65%", "64 MB", "64 million", "1,024 nats", "7 seconds"]
    assert [figure for figure, problem in found.items() if problem] == ["7 seconds"]


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
        ("limits.py", "0.002", ""),
        ("limits.py", "0.2", "does not stand in limits.py"),
        ("found.json; found.md", "0.930", ""),
        ("found.json; found.md", "0.929", "is no number of found.json, and does not stand in found.md"),
        ("runs.jsonl", "0.77", "is one of 3,006 numbers of runs.jsonl: name the key and the lines"),
        ("runs.jsonl: auc_bpd of run1", "0.77", ""),
        ("runs.jsonl: auc_kl of run1", "0.77", "is no number of"),
        ("runs.jsonl: auc_kl of run1, run4", "0.40", ""),
        ("runs.jsonl: auc_kl of run*", "0.23", ""),  # the mean
        ("runs.jsonl: auc_kl of run1, run4", "0.25", "is no number of"),
        ("negvae paper show beyond", "0.99", ""),
        ("negvae nonsense", "0.99", "no such command"),
        ("make bench", "0.99", ""),
        ("make benches", "0.99", "no such command"),
        ("python trial.py --long", "0.99", ""),
        ("python trials.py", "0.99", "no such command"),
        ("python -m trial", "0.99", ""),
        ("python -m trials", "0.99", "no such command"),
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
