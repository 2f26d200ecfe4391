"""The scripts in benchmarks/ that the docs name import what there is: they are run by hand, and seldom."""

import importlib
from pathlib import Path

import pytest

SCRIPTS = sorted(path.stem for path in (Path(__file__).parents[2] / "benchmarks").glob("*.py"))


@pytest.mark.parametrize("name", [name for name in SCRIPTS if name != "__init__"])
def test_a_script_can_be_imported(name, monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).parents[2])
    importlib.import_module(f"benchmarks.{name}")
