"""Regressions: photo runs resumed by their own config.yaml, reasons of failed parts, provenance in other words."""

import numpy as np
import pytest
import yaml
from PIL import Image

from negvae import load_artifact
from negvae.report.page import write_report
from negvae.runs.artifact import CONFIG, read_config
from negvae.runs.embed import columns_of, encoder_of
from negvae.runs.parts import score_to_folder
from negvae.runs.provenance import described_data
from tests.cli.test_commands import call
from tests.conftest import calibrated_run


def edited(run, change):
    """Change the content of a run's config.yaml in place."""
    content = yaml.safe_load((run / CONFIG).read_text())
    change(content)
    (run / CONFIG).write_text(yaml.safe_dump(content, explicit_end=True))


def test_a_run_on_photos_is_resumed_by_its_own_config(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "in").mkdir()
    generator = np.random.default_rng(0)
    for number in range(40):
        image = generator.integers(0, 256, (24 + number % 3, 30, 3), np.uint8)
        Image.fromarray(image).save(tmp_path / "in" / f"{number}.png")
    chosen = ["--fit", "resize", "--side", "32", "--preset", "general", "--no-heatmaps", "--batch-size", "16"]
    code, _, said = call(capsys, "train", "--data", "in", "--out", "run", "--epochs", "1", *chosen)
    assert code == 0, said
    assert read_config(tmp_path / "run")[0].images.fit == "resize"
    code, _, said = call(capsys, "train", "--config", "run/config.yaml", "--out", "run", "--resume", "--epochs", "2")
    assert code == 0, said
    assert load_artifact(tmp_path / "run").epochs == 2
    own = (tmp_path / "run" / CONFIG).read_text()
    assert "learning_rate: 0.001" in own
    (tmp_path / "same.yaml").write_text(own.replace("learning_rate: 0.001", "learning_rate: 1e-3"))  # YAML's text
    code, _, said = call(capsys, "train", "--config", "same.yaml", "--out", "run", "--resume", "--epochs", "2")
    assert code == 0, said
    (tmp_path / "other.yaml").write_text(own.replace("channels: 3", "channels: 1"))
    code, _, said = call(capsys, "train", "--config", "other.yaml", "--out", "run", "--resume", "--epochs", "3")
    assert code == 2
    assert "run was started with images" in said


def test_parts_say_why_no_row_could_be_scored(tmp_path):
    run = calibrated_run(tmp_path)
    (tmp_path / "bad").mkdir()
    for name in "ab":
        (tmp_path / "bad" / f"{name}.png").write_bytes(b"no image")
    out = str(tmp_path / "out")
    for resume in (False, True):  # the second takes it from the finished part
        done = score_to_folder(run, [str(tmp_path / "bad")], out, resume=resume)
        assert done.errors == 2
        assert done.first_error.startswith(f"{tmp_path / 'bad' / 'a.png'}: not a readable image")


def test_data_that_a_caller_described_in_words_is_shown(tmp_path):
    run = calibrated_run(tmp_path)
    edited(run, lambda content: content["provenance"].update(data="photos of line 3"))
    np.save(tmp_path / "images.npy", np.zeros((30, 28, 28), np.uint8))
    write_report(run, [str(tmp_path / "images.npy")], tmp_path / "page.html")
    assert "photos of line 3" in (tmp_path / "page.html").read_text()
    assert described_data({"data": {"inliers": "x"}}) == {"inliers": "x"}


@pytest.mark.parametrize(
    ("section", "values", "needs", "said"),
    [
        ("provenance", {"encoder": True}, encoder_of, "encoder in provenance has no sha256"),
        ("detector", {"feature_names": 7}, columns_of, "the names of columns are 7, expected a list"),
    ],
)
def test_damaged_sections_are_named(tmp_path, section, values, needs, said):
    run = calibrated_run(tmp_path)
    edited(run, lambda content: content.setdefault(section, {}).update(values))
    with pytest.raises(ValueError, match=f"config.yaml: {said}"):
        needs(load_artifact(run))


def test_a_shape_of_truth_values_is_refused(tmp_path):
    run = calibrated_run(tmp_path)
    edited(run, lambda content: content.update(shape=[True, 28, 28]))
    with pytest.raises(ValueError, match="expected three whole numbers"):
        read_config(run)
