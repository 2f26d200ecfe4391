"""Every command finds the inliers that training used, and notices when they have changed."""

import dataclasses

import numpy as np
import pytest

from negvae.runs.artifact import load_artifact, read_config, write_config
from negvae.runs.calibrate import calibrate_run
from negvae.runs.division import hold_out
from negvae.runs.evaluate import evaluate_run
from negvae.runs.recorded import INLIERS, read_recorded
from negvae.runs.resolve import resolve
from negvae.runs.sets import load_inliers, load_test_set
from negvae.runs.train import run
from tests.conftest import blobs, small_run


@pytest.fixture
def config(blob_files):
    return dataclasses.replace(small_run(epochs=1, calibration=0.25), data=str(blob_files["in"]))


def rows(images):
    return {np.asarray(image).tobytes() for image in images}


def test_training_held_out_and_test_images_share_nothing(config):
    inliers, test = load_inliers(config), load_test_set(config)
    parts = [rows(inliers.training), rows(inliers.held_out), rows(test.inputs)]
    assert [len(part) for part in parts] == [36, 12, 12]
    assert len(set.union(*parts)) == 60


def test_a_run_resolves_to_plain_data(config, blob_files):
    lines = []
    resolved = resolve(dataclasses.replace(config, negatives=str(blob_files["out"])), lines.append)
    assert resolved.device.type == "cpu"
    assert resolved.inliers.shape == (1, 28, 28)
    assert not resolved.source.adversarial
    assert set(resolved.facts["data"]) == {"inliers", f"negatives {blob_files['out']}"}
    assert resolved.facts["data_sha256"]["inliers"] == resolved.inliers.sha256
    assert [line.split(":")[0] for line in lines[:2]] == ["inliers", "negatives"]
    assert "training steps are few" in lines[2]
    with pytest.raises(ValueError, match="are the inliers themselves"):
        resolve(dataclasses.replace(config, negatives=config.data))


def test_hold_out_divides_by_the_seed():
    images = blobs(20, (1, 4, 4))
    training, held_out = hold_out(images, 0.25, seed=1)
    assert (len(training), len(held_out)) == (15, 5)
    assert rows(training) | rows(held_out) == rows(images)
    assert rows(hold_out(images, 0.25, seed=1)[1]) == rows(held_out) != rows(hold_out(images, 0.25, seed=2)[1])
    assert len(hold_out(images, 0, seed=1)[1]) == 0
    with pytest.raises(ValueError, match="leaves fewer than 2"):
        hold_out(images[:3], 0.7, seed=1)


def test_changed_data_is_refused_by_name(config, tmp_path, blob_files):
    directory = tmp_path / "run"
    run(config, directory)
    known = read_recorded(directory, read_config(directory)[2])
    assert known.sha256 == load_inliers(config).sha256
    assert known.held_out == load_inliers(config).held_out_rows
    images = np.load(blob_files["in"])
    np.save(blob_files["in"], np.concatenate([images, 255 - images[:1]]))
    longer = dataclasses.replace(config, epochs=2)
    for work in (
        lambda: calibrate_run(directory, target_fpr=0.2),
        lambda: run(longer, directory, resume=True),
        lambda: load_inliers(config, recorded=known),
        lambda: evaluate_run(directory, [str(blob_files["out"])]),
    ):
        with pytest.raises(ValueError, match=r"in\.npy has changed since"):
            work()
    # Other inliers may still be named.
    assert calibrate_run(directory, str(blob_files["out"])).size == 60
    evaluate_run(directory, ["uniform-noise"], data=str(blob_files["out"]), limit=60)
    np.save(blob_files["in"], images)
    assert run(longer, directory, resume=True).stopped_by == "finished"


def test_a_folder_that_does_not_say_is_trusted(config, tmp_path):
    directory = tmp_path / "run"
    run(config, directory)
    stored, shape, provenance = read_config(directory)
    del provenance["data_sha256"]
    (directory / INLIERS).unlink()
    write_config(directory, stored, shape, provenance)
    assert calibrate_run(directory, score="kl", target_fpr=0.2).size == 12
    assert load_artifact(directory).calibration.score == "kl"


def test_evaluation_leaves_out_what_was_trained_on(config, tmp_path, blob_files):
    run(config, tmp_path / "run")
    content = evaluate_run(tmp_path / "run", [str(blob_files["out"])])
    assert "12 images" in content["data"]["test"]
