"""The models in results/weights load like any run, and are those whose figures results/cpu.jsonl has."""

import dataclasses
from pathlib import Path

import pytest
import torch
from benchmarks.paper_weights import MOST_BYTES, OUT, keep

from negvae.paper.profiles import PROFILES
from negvae.paper.published import settings
from negvae.paper.results import run_name, table_of
from negvae.runs.artifact import CONFIG, WEIGHTS, load_artifact, write_config
from negvae.runs.card import CARD
from negvae.training.checkpoint import save_tensors
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


@pytest.mark.parametrize(
    ("finished", "weights", "message"),
    [
        ("false", torch.zeros(3), "is not finished"),
        ("true", torch.full((3,), 1e6), "weight: values beyond the range of float16"),
        ("true", torch.zeros(MOST_BYTES // 2), "bytes in half precision are more than"),
    ],
)
def test_a_run_that_is_refused_leaves_the_kept_model(tmp_path, finished, weights, message):
    run, out = tmp_path / "run", tmp_path / "weights" / "kept"
    for folder in (run, out):
        folder.mkdir(parents=True)
    (out / WEIGHTS).write_bytes(b"kept")
    write_config(run, dataclasses.replace(small_run(), data="fashion-mnist"), (1, 28, 28), {})
    (run / CARD).write_text("card")
    save_tensors(run / WEIGHTS, {"weight": weights}, {"finished": finished})
    with pytest.raises(ValueError, match=message):
        keep(run, out)
    assert (out / WEIGHTS).read_bytes() == b"kept"
    assert [path.name for path in out.parent.iterdir()] == ["kept"]


def test_a_kept_model_is_replaced(tmp_path):
    run, out = tmp_path / "run", tmp_path / "weights" / "kept"
    for folder in (run, out):
        folder.mkdir(parents=True)
    (out / "of the former one").touch()
    write_config(run, dataclasses.replace(small_run(), data="fashion-mnist"), (1, 28, 28), {})
    (run / CARD).write_text("card")
    save_tensors(run / WEIGHTS, {"weight": torch.zeros(3)}, {"finished": "true"})
    keep(run, out)
    assert {path.name for path in out.iterdir()} == {WEIGHTS, CONFIG, CARD}
    assert "half precision" in (out / CARD).read_text()
