"""Regressions: runs that were killed, have lost a file, or are looked at on another machine."""

import dataclasses

import numpy as np
import pytest

from negvae.config import preset
from negvae.runs.artifact import load_artifact, read_section
from negvae.runs.train import resumed_config, run
from tests.cli.test_commands import call
from tests.conftest import blobs

SHAPE = (1, 28, 28)
QUICK = {"batch_size": 16, "precision": "float32", "device": "cpu"}


@pytest.fixture
def images(tmp_path):
    """A file of inliers and one of outliers."""
    np.save(tmp_path / "in.npy", blobs(100, SHAPE).numpy())
    np.save(tmp_path / "out.npy", (255 - blobs(20, SHAPE)).numpy())
    return tmp_path


class KilledError(Exception):
    """Stands for the signal that ends a process."""


def test_a_run_that_goes_on_to_more_epochs_says_so_in_its_folder_before_it_is_killed(images, capsys):
    config, out = preset("gray", str(images / "in.npy"), epochs=1, **QUICK), images / "run"
    run(config, out)
    before = read_section(out, "run")

    def kill(progress, *rest):
        raise KilledError

    with pytest.raises(KilledError):
        run(dataclasses.replace(config, epochs=3), out, resume=True, checkpoint_seconds=0, after_epoch=kill)
    assert read_section(out, "run") == {**before, "epochs": 3}
    assert resumed_config(out, {}).epochs == 3
    code, text, error = call(capsys, "train", "--out", out, "--resume")
    assert (code, error) == (0, "")
    assert "finished 3 epochs" in text


def test_a_folder_that_says_less_epochs_than_the_run_has_had_is_one_line(images, capsys):
    config, out = preset("gray", str(images / "in.npy"), epochs=2, **QUICK), images / "run"
    run(config, out)
    text = (out / "config.yaml").read_text()
    (out / "config.yaml").write_text(text.replace("epochs: 2", "epochs: 1"))
    code, _, error = call(capsys, "train", "--out", out, "--resume")
    assert (code, error.count("\n")) == (2, 1)
    assert "has had 2 epochs: --resume goes on to more, not to 1" in error
    assert load_artifact(out, "cpu").epochs == 2
