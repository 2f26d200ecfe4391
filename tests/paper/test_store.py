"""The tables of results: what is written at once, what is damaged, and what version 0.1 left."""

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest

from negvae.paper.profiles import PROFILES
from negvae.paper.published import cells
from negvae.paper.results import collect
from negvae.paper.store import ResultTable
from negvae.paper.unsupervised_show import gather
from tests.cli.test_commands import call
from tests.paper.conftest import fake_result

ROOT = Path(__file__).parents[2]
NEEDED = {"config": {}, "status": "finished"}


WRITER = """
import sys
from pathlib import Path
from negvae.paper.store import ResultTable
for number in range(20):
    ResultTable(Path(sys.argv[1])).put(f"{sys.argv[2]}-{number:02}", {"config": {}, "status": "", "seed": number})
"""


def test_processes_that_write_at_once_lose_nothing(tmp_path):
    table = ResultTable(tmp_path / "new" / "t.jsonl")
    workers = [subprocess.Popen([sys.executable, "-c", WRITER, table.path, worker]) for worker in "abc"]
    assert [worker.wait(120) for worker in workers] == [0, 0, 0]
    names = [f"{worker}-{number:02}" for worker in "abc" for number in range(20)]
    assert [json.loads(line)["name"] for line in table.path.read_text().splitlines()] == names == table.names()
    assert [table.get(name)["seed"] for name in names] == [*range(20)] * 3


def test_a_result_takes_the_place_of_one_of_its_name_and_no_other_line_changes(tmp_path):
    table = ResultTable(tmp_path / "t.jsonl")
    other = '{"seed": 1.50, "name": "b-seed0",  "config": {}, "status": "finished", "of a later version": [1e2]}'
    table.path.write_text(f"\n{other}\r\n")
    table.put("a-seed0", {**NEEDED, "seed": float("inf")})
    table.put("a-seed0", {**NEEDED, "seed": 2})
    assert table.get("a-seed0") == {**NEEDED, "seed": 2}
    first, second = table.path.read_text().splitlines()
    assert first.startswith('{"name":"a-seed0",')
    assert second == other
    before = table.path.read_bytes()
    with pytest.raises(TypeError):
        table.put("c-seed0", {**NEEDED, "seed": object()})
    assert table.path.read_bytes() == before
    assert {path.name for path in tmp_path.iterdir()} <= {"t.jsonl", ".t.jsonl.lock"}


@pytest.mark.parametrize("line", [b"{", b"[]", b"{}", b"\xff", b"<<<<<<< HEAD", b'{"name": "a"}'])
def test_a_damaged_line_is_named_and_kept(tmp_path, line):
    table = ResultTable(tmp_path / "t.jsonl")
    table.put("a-seed0", {**NEEDED, "seed": 0})
    content = table.path.read_bytes() + line + b"\n"
    table.path.write_bytes(content)
    for attempt in (lambda: table.get("a-seed0"), lambda: table.put("b-seed0", {**NEEDED, "seed": 0}), table.names):
        with pytest.raises(ValueError, match=r"t\.jsonl, line 2: not a result of `negvae paper run`; remove the line"):
            attempt()
    assert table.path.read_bytes() == content


def test_the_folder_of_version_0_1_is_read_where_the_table_has_no_line(tmp_path, capsys):
    smoke, run = PROFILES["smoke"], "fashion-mnist-bernoulli-none"
    for seed in (0, 1):
        fake_result(tmp_path, smoke, run, seed, (0.4 + seed / 10, 0.5, 0.3, 0.4))
    table, folder = ResultTable(tmp_path / "smoke.jsonl"), tmp_path / "old" / "smoke"
    show = ["paper", "show", "all", "--json", "--profile", "smoke", "--results"]
    expected = call(capsys, *show, tmp_path)[1]
    assert '"mean": 0.45,' in expected
    folder.mkdir(parents=True)
    for name in table.names():
        (folder / f"{name}.json").write_text(json.dumps(table.get(name)))
    (folder / "of-another-kind-seedx.json").write_text("")
    assert call(capsys, *show, tmp_path / "old")[1] == expected
    fake_result(tmp_path / "old", smoke, run, 1, (0.9, 0.5, 0.3, 0.4))  # made anew: it counts, and the old file stays
    cell = cells()["table3/bernoulli/none"]
    assert collect(cell, smoke, tmp_path / "old").figures["auc_bpd"].values == (0.4, 0.9)
    (folder / f"{run}-seed0.json").write_bytes(b"{")
    code, _, error = call(capsys, *show, tmp_path / "old")
    assert code == 2
    assert f"{run}-seed0.json: not a result of `negvae paper run`; remove it, and that command makes it anew" in error


FOREIGN = {
    "config": ([], "config is []: it must be a mapping of fields to values"),
    "config foo": (1, "unknown field 'foo'. Known: "),
    "config sigma": ("wide", "sigma is 'wide': it must be a number"),
    "status": ("done", "status is 'done': it must be finished or diverged; remove that result, and `negvae paper run`"),
    "seed": ("0", "seed is '0': it must be a whole number"),
    "notes": (None, "notes is missing: it must be a list of texts"),
    "notes ": ("a note", "notes is 'a note': it must be a list of texts"),
    "provenance": (None, "provenance is missing: it must be a mapping"),
    "provenance commit": (None, "provenance commit is missing: it must be a text"),
    "provenance device": (3, "provenance device is 3: it must be a text"),
    "evaluation": (None, "evaluation is missing: it must be a mapping of OOD sets to figures"),
    "evaluation ": ({}, "evaluation is {}: it must be a mapping of OOD sets to figures"),
    "evaluation mnist": ([], "evaluation mnist is []: it must be a mapping of figures"),
    "evaluation mnist auc_kl": (None, "evaluation mnist auc_kl is missing: it must be a number"),
    "evaluation mnist auc_bpd": ("hello", "evaluation mnist auc_bpd is 'hello': it must be a number"),
    "evaluation mnist nats_per_dim_ood": (True, "evaluation mnist nats_per_dim_ood is True: it must be a number"),
    "evaluation mnist nats_per_dim_test": (10**400, "evaluation mnist nats_per_dim_test is 10000"),
}
"""By the entry of a line: a value (None takes the entry away), and what is said of it."""


def edited(place, entry, value):
    """Put a result into the table of a folder, and change or take away one entry of its line."""
    fake_result(place, PROFILES["smoke"], "fashion-mnist-bernoulli-none", 0)
    return change(place / "smoke.jsonl", entry, value)


def change(file, entry, value):
    """Change or take away one entry of the only line of a table."""
    line = json.loads(file.read_text())
    *outer, last = entry.split()
    section = line
    for name in outer:
        section = section[name]
    if value is None:
        del section[last]
    else:
        section[last] = value
    file.write_text(json.dumps(line) + "\n")
    return file


@pytest.mark.parametrize("entry", FOREIGN)
def test_a_line_that_is_not_as_it_was_written_is_named_with_what_would_be_right(tmp_path, capsys, entry):
    value, message = FOREIGN[entry]
    file = edited(tmp_path, entry, value)
    only = ["--only", "table3/bernoulli/none", "--seeds", "1", "--out", tmp_path / "work"]
    for command in (["show", "table3", "--json"], ["show", "table3"], ["list"], ["run", "table3", *only]):
        code, _, error = call(capsys, "paper", *command, "--profile", "smoke", "--results", tmp_path)
        assert (code, error.count("\n")) == (2, 1)
        assert error.startswith(f"negvae: {file}, fashion-mnist-bernoulli-none-seed0: {message}")
    assert not (tmp_path / "work").exists()


@pytest.mark.parametrize("value", [None, "long", float("nan")])
def test_a_run_whose_seconds_are_unknown_is_finished_all_the_same(tmp_path, capsys, value):
    edited(tmp_path, "provenance wall_seconds", value)
    only = ["--only", "table3/bernoulli/none", "--seeds", "1", "--out", tmp_path / "work"]
    code, out, error = call(capsys, "paper", "run", "table3", *only, "--profile", "smoke", "--results", tmp_path)
    assert (code, error) == (0, "")
    assert out.startswith("1 of 1 runs are in ")


def test_a_foreign_line_made_with_other_settings_stops_nothing(tmp_path):
    config = PROFILES["smoke"].config(cells()["table3/bernoulli/none"].setting, 0).to_dict()
    edited(tmp_path, "config", {**config, "learning_rate": 0.5})
    line = json.loads((tmp_path / "smoke.jsonl").read_text())
    (tmp_path / "smoke.jsonl").write_text(json.dumps({**line, "status": "of a later version"}) + "\n")
    assert collect(cells()["table3/bernoulli/none"], PROFILES["smoke"], tmp_path).outdated == (0,)


def test_results_in_the_repository_hold_all_that_the_papers_tables_need():
    for name in ("cpu", "long"):
        found = [collect(cell, PROFILES[name], ROOT / "results") for cell in cells().values()]
        assert any(cell.results for cell in found)
        assert all(math.isfinite(figure.mean) for cell in found for figure in cell.figures.values())


def test_results_in_the_repository_are_tables_and_the_models_kept_beside_them():
    listed = subprocess.run(["git", "ls-files", "results"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("not a checkout")
    folders = {Path(name).parent for name in listed.stdout.split()}
    assert {folder for folder in folders if folder.parent != Path("results/weights")} == {Path("results")}
    found = gather(PROFILES["cpu"], ROOT / "results")
    assert sum(map(len, found.values())) > 20


DAMAGED = {
    "one-class cifar10-class0-seed0": {
        "status": ("diverged", "status is 'diverged': it must be finished"),
        "images": (None, "images is missing: it must be a whole number of at least 2"),
        "images ": ("5000", "images is '5000': it must be a whole number"),
        "run": (None, "run is missing: it must be a text"),
        "judgement": (1, "judgement is 1: it must be a text"),
        "false_alarms": (None, "false_alarms is missing: it must be a number"),
        "evaluation auc_combined": (None, "evaluation auc_combined is missing: it must be a number"),
        "evaluation auc_kl": ("high", "evaluation auc_kl is 'high': it must be a number"),
    },
    "one-class cifar10-whole-seed0": {
        "evaluation svhn": ([], "evaluation svhn is []: it must be a mapping of figures"),
        "evaluation svhn auc_combined": (None, "evaluation svhn auc_combined is missing: it must be a number"),
    },
    "beyond mnist-unsupervised-seed0": {
        "nats_per_dim_test": (None, "nats_per_dim_test is missing: it must be a number"),
        "proxies": (None, "proxies is missing: it must be a mapping of proxies to figures"),
        "proxies ": ({}, "proxies is {}: it must be a mapping of proxies to figures"),
        "proxies turned": (0.5, "proxies turned is 0.5: it must be a mapping of figures"),
        "proxies turned combined": (None, "proxies turned combined is missing: it must be a number"),
        "evaluation kmnist": ([], "evaluation kmnist is []: it must be a mapping of figures"),
        "evaluation kmnist auc_kl": ("low", "evaluation kmnist auc_kl is 'low': it must be a number"),
    },
}
"""By table and run, and the entry of its line: a value (None takes the entry away), and what is said of it."""


@pytest.mark.parametrize(("run", "entry"), [(run, entry) for run, entries in DAMAGED.items() for entry in entries])
def test_damaged_lines_of_the_tables_that_are_not_in_the_paper_are_named(tmp_path, capsys, run, entry):
    (value, message), (table, name) = DAMAGED[run][entry], run.split()
    file = tmp_path / ("one-class.jsonl" if table == "one-class" else "cpu.jsonl")
    line = ResultTable(ROOT / "results" / file.name).get(name)
    file.write_text(json.dumps({"name": name, **line}) + "\n")
    command = ["paper", "show", table, "--json", "--results", tmp_path]
    assert call(capsys, *command)[0] == 0
    change(file, entry, value)
    code, _, error = call(capsys, *command)
    assert (code, error.count("\n")) == (2, 1)
    assert error.startswith(f"negvae: {file}, {name}: {message}")
    assert error.endswith("remove that result, and `negvae paper run` makes it anew\n")
