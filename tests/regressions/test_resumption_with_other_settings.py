"""Training goes on from a checkpoint with the settings and the images that it was begun with, and with no others."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from negvae.config import RunConfig
from negvae.runs.train import run
from negvae.training.loop import train

CONFIG = RunConfig(data="rows", network="mlp", likelihood="gaussian", latent_size=2, batch_size=8, epochs=2,
                   device="cpu", precision="float32")  # fmt: skip


def _rows(count: int = 64) -> Tensor:
    return torch.randn(count, 3, 1, 1, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def stopped(tmp_path: Path) -> Path:
    """Return the folder of a run that was stopped after its first steps."""
    train(CONFIG, _rows(), directory=tmp_path, budget=0.0)
    return tmp_path


@pytest.mark.parametrize(
    "changes",
    [
        {"batch_size": 64},  # fewer steps in an epoch than were taken
        {"optimizer": "rmsprop"},  # whose state is another
        {"negative_weight": 2.0},
        {"sigma": 0.5},  # which the checkpoint's would replace
        {"seed": 1},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_other_settings_are_refused_by_name(stopped: Path, changes: dict[str, Any]) -> None:
    """A step of other settings is none of this run: it would end in an error of an index, or train on silently."""
    with pytest.raises(ValueError, match=f"is of a training with other {next(iter(changes))}; remove it"):
        train(replace(CONFIG, **changes), _rows(), directory=stopped, resume=True)


@pytest.mark.parametrize("rows", [_rows(32), -_rows()], ids=["fewer", "others"])
def test_other_images_are_refused(stopped: Path, rows: Tensor) -> None:
    """The place in an epoch means other rows where there are fewer, and a run of two sets is a run of neither."""
    with pytest.raises(ValueError, match="is of a training with other training data; remove it"):
        train(CONFIG, rows, directory=stopped, resume=True)


def test_more_epochs_a_lower_rate_and_another_path_are_no_other_training(stopped: Path) -> None:
    """How long the run is and what its data is called change no step, and a rate may be lowered on purpose."""
    moved = replace(CONFIG, epochs=3, data="elsewhere", learning_rate=1e-4)
    assert train(moved, _rows(), directory=stopped, resume=True).progress.epoch == 3


def test_a_folder_says_what_it_said_where_going_on_is_refused(tmp_path: Path) -> None:
    """The settings are written before the first step, since the process may be killed: a refusal takes them back."""
    np.save(tmp_path / "rows.npy", _rows().flatten(1).numpy())
    config = replace(CONFIG, data=str(tmp_path / "rows.npy"))
    run(config, tmp_path / "run")
    before = (tmp_path / "run" / "config.yaml").read_bytes()
    with pytest.raises(ValueError, match="is of a training with other sigma"):
        run(replace(config, sigma=0.5, epochs=9), tmp_path / "run", resume=True)
    assert (tmp_path / "run" / "config.yaml").read_bytes() == before
