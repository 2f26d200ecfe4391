"""What has the name of a set of the catalog and of a folder here is the set, wherever it is asked for."""

import dataclasses

import numpy as np
import pytest
from PIL import Image
from scipy.sparse import csr_array

from negvae import CrossConformalDetector, NegVAEClassifier, NegVAEDetector
from negvae.config import RunConfig
from negvae.detector.inputs import as_array
from negvae.detector.photos import photos_of
from negvae.runs.calibrate import calibrate_run
from negvae.runs.evaluate import evaluate_run
from negvae.runs.groups import inlier_groups
from negvae.runs.score import score_files
from negvae.runs.train import run, wants_heatmaps
from tests.conftest import blobs, small_run


@pytest.fixture
def folder_named_as_a_set(tmp_path, monkeypatch):
    (tmp_path / "fashion-mnist" / "one").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)


@pytest.mark.usefixtures("folder_named_as_a_set")
def test_only_a_folder_has_heat_maps_of_its_own_accord():
    assert wants_heatmaps(RunConfig(data="./fashion-mnist", calibration=0.1))
    assert not wants_heatmaps(RunConfig(data="fashion-mnist", calibration=0.1))


def test_the_home_of_the_user_is_found_wherever_it_is_named(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    images, others = blobs(60, (1, 28, 28)).numpy(), (255 - blobs(20, (1, 28, 28))).numpy()
    np.save(tmp_path / "in.npy", images)
    np.save(tmp_path / "out.npy", others)
    np.save(tmp_path / "rows.npy", np.random.default_rng(0).normal(size=(30, 2)))
    Image.fromarray(images[0, 0]).save(tmp_path / "x.png")
    assert as_array("~/rows.npy", "train")[0].shape == (30, 2)
    assert as_array("~/x.png", "train")[0].shape[-2:] == (28, 28)
    assert photos_of("~/x.png", "train").name == str(tmp_path / "x.png")
    run(dataclasses.replace(small_run(epochs=1, calibration=0.5), data="~/in.npy"), tmp_path / "run")
    assert evaluate_run(tmp_path / "run", ["~/out.npy"], data="~/in.npy", device="cpu")["rows"]
    with pytest.raises(ValueError, match="is what the model was trained on"):
        evaluate_run(tmp_path / "run", ["~/in.npy"], device="cpu")
    assert calibrate_run(tmp_path / "run", "~/in.npy", target_fpr=0.2, device="cpu")


@pytest.mark.usefixtures("folder_named_as_a_set")
def test_a_set_has_no_groups_though_a_folder_of_its_name_is_here():
    with pytest.raises(ValueError, match="takes a folder of inliers with a subfolder for each group"):
        inlier_groups("fashion-mnist", "folders", "train")


def test_the_uri_of_an_input_is_not_written_over(tmp_path):
    detector = NegVAEDetector(device="cpu").fit(np.random.default_rng(0).normal(size=(120, 2)))
    detector.save(tmp_path / "run")
    (tmp_path / "in.csv").write_text("a,b\n0,1\n")
    with pytest.raises(ValueError, match="which is read: take another file"):
        score_files(tmp_path / "run", [(tmp_path / "in.csv").as_uri()], tmp_path / "in.csv", device="cpu")
    assert (tmp_path / "in.csv").read_text() == "a,b\n0,1\n"


def test_a_sparse_matrix_is_refused_by_all_that_take_rows_apart():
    sparse = csr_array(np.eye(60))
    for detector, labels in ((NegVAEClassifier(), np.zeros(60)), (CrossConformalDetector(), None)):
        with pytest.raises(TypeError, match="X is csr_array: it must be an array, a table, a list or a path"):
            detector.fit(sparse, labels)
