"""What has the name of a set of the catalog and of a folder here is the set, wherever it is asked for."""

import pytest

from negvae.config import RunConfig
from negvae.runs.groups import inlier_groups
from negvae.runs.train import wants_heatmaps


@pytest.fixture
def folder_named_as_a_set(tmp_path, monkeypatch):
    (tmp_path / "fashion-mnist" / "one").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)


@pytest.mark.usefixtures("folder_named_as_a_set")
def test_only_a_folder_has_heat_maps_of_its_own_accord():
    assert wants_heatmaps(RunConfig(data="./fashion-mnist", calibration=0.1))
    assert not wants_heatmaps(RunConfig(data="fashion-mnist", calibration=0.1))


@pytest.mark.usefixtures("folder_named_as_a_set")
def test_a_set_has_no_groups_though_a_folder_of_its_name_is_here():
    with pytest.raises(ValueError, match="takes a folder of inliers with a subfolder for each group"):
        inlier_groups("fashion-mnist", "folders", "train")
