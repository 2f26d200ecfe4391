"""The scripts in benchmarks/ that the docs name import what there is: they are run by hand, and seldom."""

import importlib
from pathlib import Path

import pytest
from benchmarks import audit

SCRIPTS = sorted(path.stem for path in (Path(__file__).parents[2] / "benchmarks").glob("*.py"))


@pytest.mark.parametrize("name", [name for name in SCRIPTS if name != "__init__"])
def test_a_script_can_be_imported(name, monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).parents[2])
    importlib.import_module(f"benchmarks.{name}")


@pytest.mark.parametrize(("place", "line"), [(".", "pip-audit is not installed"), ("nowhere", "name one folder")])
def test_an_audit_that_cannot_run_blames_no_connection(place, line, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(audit, "TOOL", "no_pip_audit", raising=False)
    monkeypatch.setattr("sys.argv", ["audit.py", place])
    assert audit.main() == 2
    assert line in capsys.readouterr().out
