"""The models in results/weights load like any run, and are those whose figures results/cpu.jsonl has."""

import dataclasses
from pathlib import Path

import pytest
from benchmarks.paper_weights import MOST_BYTES, OUT, keep

from negvae.paper.profiles import PROFILES
from negvae.paper.published import settings
from negvae.paper.results import run_name, table_of
from negvae.runs.artifact import WEIGHTS, load_artifact, write_config
from tests.conftest import small_run

ROOT = Path(__file__).parents[2]
KEPT = sorted((ROOT / OUT).iterdir())


@pytest.mark.parametrize("folder", KEPT, ids=lambda folder: folder.name)
def test_a_kept_model_is_that_of_its_result(folder):
    assert (folder / WEIGHTS).stat().st_size <= MOST_BYTES
    found = load_artifact(folder, "cpu")
    wanted = {run_name(setting, 0): PROFILES["cpu"].config(setting) for setting in settings().values()}[folder.name]
    assert {**found.config.to_dict(), "device": ""} == {**wanted.to_dict(), "device": ""}
    assert found.finished
    assert found.epochs == wanted.epochs
    content = table_of(ROOT / "results", PROFILES["cpu"]).get(folder.name)
    assert found.provenance["commit"] == content["provenance"]["commit"]


@pytest.mark.parametrize("fields", [{"data": "mnist"}, {"data": "fashion-mnist", "negatives": "kmnist"}])
def test_models_of_other_sets_are_not_kept(tmp_path, fields):
    (tmp_path / "run").mkdir()
    write_config(tmp_path / "run", dataclasses.replace(small_run(), **fields), (1, 28, 28), {})
    with pytest.raises(ValueError, match="only models of Fashion-MNIST alone are kept"):
        keep(tmp_path / "run", tmp_path / "out")
    assert not (tmp_path / "out").exists()
