"""Files that cannot be opened, CSV files in folders, groups called NA, and warnings, from outside."""

import os
import shutil
import warnings

import numpy as np
import pytest
from PIL import Image

from negvae import NegVAEDetector, ScoreDetector
from tests.cli.test_commands import call
from tests.conftest import blobs

QUICK = ["--epochs", "1", "--transformations", "none", "--no-heatmaps", "--device", "cpu"]


@pytest.fixture
def photos(tmp_path):
    """Forty photos beside a link to nowhere."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for number, image in enumerate(blobs(40, (1, 16, 16)).numpy()):
        Image.fromarray(image[0]).save(folder / f"{number:02}.png")
    (folder / "link.png").symlink_to("nowhere.png")
    return folder


def table(path, rows, *names, labels=()):
    """Write rows of features, and labels in a last column if there are any."""
    lines = [",".join([*map(repr, row.tolist()), *labels[number : number + 1]]) for number, row in enumerate(rows)]
    path.write_text("\n".join([",".join(names), *lines, ""]))


def test_a_link_to_nowhere_is_one_broken_photo(photos, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    run = tmp_path / "run"
    code, _, error = call(capsys, "train", "--data", photos, "--out", run, "--calibration", "0.3", *QUICK)
    assert code == 0, error
    assert "link.png\tno such file or directory" in (run / "broken.tsv").read_text()
    others = tmp_path / "others"
    shutil.copytree(photos, others, symlinks=True)
    for number, image in enumerate(blobs(40, (1, 16, 16), seed=7).numpy()):
        Image.fromarray(255 - image[0]).save(others / f"{number:02}.png")
    for command in (["calibrate", run, "--data", others], ["evaluate", run, "--ood", others]):
        code, _, error = call(capsys, *command)
        assert code == 0, error
    assert call(capsys, "clean", photos, "--epochs", "1", "--out", tmp_path / "list.csv")[0] == 0
    assert "link.png" not in (tmp_path / "list.csv").read_text()
    Image.fromarray(np.zeros((16, 16), np.uint8)).save(photos / "nowhere.png")
    assert call(capsys, "clean", photos, "--epochs", "1", "--out", tmp_path / "list.csv")[0] == 0
    assert "link.png" in (tmp_path / "list.csv").read_text()


def test_warnings_are_single_lines_and_come_once(photos, tmp_path, capsys):
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        code, _, error = call(capsys, "clean", photos, "--epochs", "1", "--out", tmp_path / "list.csv")
    assert code == 0
    assert error.splitlines() == ["warning: 1 training step is few: 1,000 epochs make it 1,000"]


def test_a_model_of_rows_reads_the_csv_files_of_a_folder(tmp_path, capsys):
    random, run, inbox = np.random.default_rng(0), tmp_path / "my run", tmp_path / "inbox"
    table(tmp_path / "rows.csv", random.normal(size=(120, 3)), *"abc")
    assert call(capsys, "train", "--data", tmp_path / "rows.csv", "--out", run, "--epochs", "3")[0] == 0
    inbox.mkdir()
    code, _, error = call(capsys, "score", run, inbox)
    assert (code, error.count("holds no rows of features to score")) == (2, 1)
    table(inbox / "new.csv", random.normal(size=(4, 3)), *"abc")
    code, printed, error = call(capsys, "score", run, inbox)
    assert code == 0, error
    assert printed.count('"error": null') == 4
    code, _, error = call(capsys, "watch", run, inbox, "--once", "--settle", "0", "--out", tmp_path / "watched")
    assert code == 0, error
    assert (tmp_path / "watched" / "rows.jsonl").read_text().count("new.csv") == 4


def test_a_group_may_be_called_na(tmp_path):
    random = np.random.default_rng(0)
    rows, labels = random.normal(size=(400, 2)), ["NA", "null"] * 200
    table(tmp_path / "rows.csv", rows, "a", "b", "region", labels=labels)
    fitted = NegVAEDetector(device="cpu").fit(str(tmp_path / "rows.csv"), groups="region")
    assert set(fitted.calibration_.thresholds) == {"NA", "null"}


def test_a_detector_of_data_in_memory_is_no_training_to_resume(tmp_path, capsys):
    NegVAEDetector(device="cpu").fit(np.random.default_rng(0).normal(size=(100, 3))).save(tmp_path / "saved")
    code, _, error = call(capsys, "train", "--out", tmp_path / "saved", "--resume")
    assert (code, error.count("was fitted to data in memory, which is not kept")) == (2, 1)


def test_calibrating_for_another_rate_is_on_average_again(tmp_path, capsys):
    run = tmp_path / "run"
    table(tmp_path / "rows.csv", np.random.default_rng(0).normal(size=(400, 3)), *"abc")
    assert call(capsys, "train", "--data", tmp_path / "rows.csv", "--out", run, "--epochs", "1")[0] == 0
    assert "0.2 with 0.9 confidence" in call(
        capsys, "calibrate", run, "--target-fpr", "0.2", "--confidence", "0.9"
    )[1]  # fmt: skip
    assert "0.2 with 0.9 confidence" in call(capsys, "calibrate", run)[1]
    assert "confidence" not in call(capsys, "calibrate", run, "--target-fpr", "0.1")[1]


def test_a_function_that_gives_no_numbers_is_refused_and_some_that_are_none_are_a_warning():
    rows = np.random.default_rng(0).normal(size=(100, 3))
    with pytest.raises(ValueError, match="NaN or infinity for each of 100 inliers"):
        ScoreDetector(lambda batch: np.full(len(batch), np.nan)).fit(rows)
    with pytest.warns(UserWarning, match="NaN or infinity for 1 of 100 inliers"):
        ScoreDetector(lambda batch: np.where(batch[:, 0] == rows[3, 0], np.inf, batch[:, 0])).fit(rows)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
def test_a_pipe_named_like_an_image_is_a_broken_photo(photos, tmp_path, capsys):
    (photos / "link.png").unlink()
    os.mkfifo(photos / "pipe.png")
    run = tmp_path / "run"
    code, _, error = call(capsys, "train", "--data", photos, "--out", run, "--calibration", "0.3", *QUICK)
    assert code == 0, error
    assert "pipe.png" in (run / "broken.tsv").read_text()
