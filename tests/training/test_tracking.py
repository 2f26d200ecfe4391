"""Trackers get the numbers of every epoch; the real libraries are tried where they are installed."""

import sys
import types
from contextlib import contextmanager

import pytest

from negvae.training.reporting import ProgressUpdate
from negvae.training.tracking import tracked
from tests.cli.test_commands import FAST, call

ROWS = [ProgressUpdate(1, 2, 5, 10, {}, 1.0, 0.0), ProgressUpdate(1, 2, 10, 10, {}, 1.0, 0.0, {"epoch": 1, "kl": 2.5})]


def stand_in(name, log):
    """A module with the functions of MLflow or Weights & Biases that are called."""
    module = types.ModuleType(name)

    @contextmanager
    def begin(**options):
        log.append(options.get("run_name") or options.get("name"))
        yield types.SimpleNamespace(log=lambda values, step: log.append((values, step)))
        log.append("closed")

    module.start_run = module.init = begin
    module.log_params = log.append
    module.log_metrics = lambda values, step: log.append((values, step))
    return module


@pytest.mark.parametrize("name", ["mlflow", "wandb"])
def test_epochs_are_recorded_and_the_record_is_closed(monkeypatch, tmp_path, name):
    log, seen = [], []
    monkeypatch.setitem(sys.modules, name, stand_in(name, log))
    with tracked([name, name], {"epochs": 2}, tmp_path / "run", seen.append) as record:
        for update in ROWS:
            record(update)
    assert [each for each in log if each != {"epochs": "2"}] == ["run", ({"kl": 2.5}, 1), "closed"]
    assert seen == ROWS


def test_a_tracker_that_is_not_installed_or_not_known_is_one_line(monkeypatch, capsys, blob_files, tmp_path):
    monkeypatch.setitem(sys.modules, "wandb", None)
    run = ["train", "--data", blob_files["in"], "--out", tmp_path / "run", *FAST]
    code, _, error = call(capsys, *run, "--track", "wandb")
    assert (code, error) == (2, "negvae: wandb is not installed: pip install 'negvae[wandb]'\n")
    assert not (tmp_path / "run").exists()
    code, _, error = call(capsys, *run, "--track", "tensorbord")
    assert code == 2
    assert "did you mean tensorboard" in error


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ["tensorboard", "mlflow", "wandb"])
def test_the_real_library(monkeypatch, tmp_path, name):
    pytest.importorskip(name)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", (tmp_path / "mlruns").as_uri())
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    with tracked([name], {"epochs": 2}, tmp_path / "run", lambda update: None) as record:
        for update in ROWS:
            record(update)
    assert any(path.is_file() for path in tmp_path.rglob("*"))
