"""What the number of inliers decides where the user has set nothing: here whether turns get priors of their own."""

import numpy as np
import pytest
import torch

from negvae import NegVAEDetector
from negvae.config import preset
from negvae.runs.resolve import FEWEST_TO_TURN, fields_left_open, fill_in
from negvae.scoring.transformations import MOST_OF_ONE_KIND
from tests.cli.test_commands import call
from tests.conftest import blobs


@pytest.mark.parametrize(
    ("images", "photos", "chosen", "said"),
    [
        (FEWEST_TO_TURN - 1, True, "none", "299 training images are fewer than 300"),
        (FEWEST_TO_TURN, False, "turns", "turns, for 300 training images"),
        (MOST_OF_ONE_KIND, False, "turns", "turns, for 10,000 training images"),
        (
            MOST_OF_ONE_KIND + 1,
            False,
            "none",
            "10,001 training images are more than 10,000, and are tiles or do not",
        ),
        (MOST_OF_ONE_KIND + 1, True, "turns", "10,001 training images that look like their mirror images"),
    ],
)
def test_the_number_of_images_and_their_mirror_images_decide_on_turns(images, photos, chosen, said):
    lines = []
    config, left_open = preset("unsupervised", "photos"), fields_left_open("unsupervised", [])
    found = fill_in(config, images, left_open, lines.append, photos=lambda: photos)
    assert found.transformations == chosen
    assert said in next(line for line in lines if line.startswith("transformations: "))


def test_what_the_user_has_set_and_other_presets_stay():
    assert "transformations" not in fields_left_open("unsupervised", ["transformations"])
    config = preset("general", "photos")
    assert fill_in(config, 1000, fields_left_open("general", [])) == fill_in(config, 1000, ("batch_size", "epochs"))


@pytest.mark.parametrize(("count", "chosen"), [(374, "none"), (375, "turns")])
def test_a_detector_takes_turns_from_300_training_images_on(count, chosen):
    options = {"network": "pyramid", "epochs": 1, "batch_size": 64, "device": "cpu"}
    images = blobs(count, (1, 16, 16)).numpy()
    fitted = NegVAEDetector(**options).fit(images)  # a fifth is held out
    assert fitted.config_.transformations == chosen
    assert (fitted.model_.shifted is None) == (chosen == "none")
    assert NegVAEDetector(**options, transformations="none").fit(images).config_.transformations == "none"


@pytest.mark.parametrize("chosen", ["none", "turns"])
def test_of_many_images_those_that_come_mirrored_take_turns(tmp_path, capsys, monkeypatch, chosen):
    monkeypatch.setattr("negvae.runs.resolve.MOST_OF_ONE_KIND", 310)
    images = blobs(500, (1, 16, 16)).numpy()
    if chosen == "none":
        images[:, :, :, :3] = 255  # a bright left edge, which mirror images have on the right
    network = {"network": "pyramid", "epochs": 1, "batch_size": 64, "device": "cpu"}
    assert NegVAEDetector(**network).fit(images[:400]).config_.transformations == chosen
    np.save(tmp_path / "x.npy", images)
    options = ["--network", "pyramid", "--epochs", "1", "--batch-size", "64", "--device", "cpu", "--no-heatmaps"]
    code, text, _ = call(capsys, "train", "--data", tmp_path / "x.npy", "--out", tmp_path / "run", *options)
    assert code == 0
    wanted = {
        "none": "none, since 320 training images are more than 310, and are tiles or do not look",
        "turns": "quarter turns, for 320 training images",
    }
    assert f"transformations: {wanted[chosen]}" in " ".join(text.split())
    assert NegVAEDetector.load(tmp_path / "run").config_.transformations == chosen


def test_the_command_line_decides_alike_and_the_folder_records_it(tmp_path, capsys):
    np.save(tmp_path / "x.npy", blobs(500, (1, 16, 16)).numpy())  # a fifth is kept for tests
    options = ["--network", "pyramid", "--epochs", "1", "--batch-size", "64", "--device", "cpu", "--no-heatmaps"]
    code, text, _ = call(capsys, "train", "--data", tmp_path / "x.npy", "--out", tmp_path / "run", *options)
    assert code == 0
    assert "transformations: quarter turns, for 320 training images" in " ".join(text.split())
    assert NegVAEDetector.load(tmp_path / "run").config_.transformations == "turns"


def test_the_rest_of_the_model_is_the_same_with_turns():
    images = blobs(400, (1, 16, 16)).numpy()
    options = {"network": "pyramid", "epochs": 1, "batch_size": 64, "device": "cpu", "precision": "float32"}
    with_turns, without = (
        NegVAEDetector(**options, **more).fit(images) for more in ({}, {"transformations": "none"})
    )  # fmt: skip
    for name in ("kl", "bpd", "dose", "prior_ratio"):
        assert (with_turns.ood_score(images[:50], name) == without.ood_score(images[:50], name)).all()
    assert torch.equal(with_turns.model_.encoder.state_dict()[next(iter(without.model_.encoder.state_dict()))],
                       next(iter(without.model_.encoder.state_dict().values())))  # fmt: skip
