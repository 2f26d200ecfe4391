"""`negvae train`: where the fields of a run come from."""

import dataclasses

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file

from negvae.config import PRESETS, RunConfig
from negvae.runs.artifact import read_config
from tests.cli.test_commands import FAST, call
from tests.conftest import blobs


def trained(capsys, out, *arguments):
    """The description of the run that a command has made."""
    code, _, error = call(capsys, "train", "--out", out, *arguments)
    assert code == 0, error
    return read_config(out)[0]


def test_each_field_has_an_option(capsys, blob_files, tmp_path):
    values = dict(
        data=str(blob_files["in"]), negatives="generated", likelihood="gaussian", sigma=0.5, learn_sigma=True,
        network="gray", initialization="glorot", latent_size=3, negative_shift=4.0, negative_weight=0.5,
        update="simultaneous", optimizer="rmsprop", learning_rate=0.002, schedule="cosine", batch_size=9,
        epochs=1, seed=7, precision="float32", device="cpu", limit=30, calibration=0.25, target_fpr=0.4, confidence=0.8,
    )  # fmt: skip
    # embed takes an encoder and a network for features, and groups a folder: tests/runs/test_embed.py, test_tables.py
    # fit, side, max_broken and images are about folders of photos: tests/runs/test_folders.py
    # transformations take a training of their own: tests/training/test_shifted.py
    elsewhere = {"embed", "groups", "fit", "side", "max_broken", "images", "transformations"}
    assert {*values, *elsewhere} == {field.name for field in dataclasses.fields(RunConfig)}
    options = [f"--{name.replace('_', '-')}={value}" for name, value in values.items() if name != "learn_sigma"]
    assert trained(capsys, tmp_path / "run", *options, "--learn-sigma") == RunConfig(**values)


def test_a_file_of_fields_is_the_starting_point(capsys, blob_files, tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text(yaml.safe_dump({"data": str(blob_files["in"]), "epochs": 1, "batch_size": 10, "seed": 4}))
    config = trained(capsys, tmp_path / "a", "--config", file, "--seed", "5", "--preset", "gray")
    assert (config.epochs, config.batch_size, config.seed) == (1, 10, 5)
    assert config.latent_size == PRESETS["gray"]["latent_size"]


def test_the_config_of_a_run_repeats_it(capsys, blob_files, tmp_path):
    first = trained(capsys, tmp_path / "a", "--data", blob_files["in"], *FAST)
    file = tmp_path / "a" / "config.yaml"
    assert trained(capsys, tmp_path / "b", "--config", file) == first
    a, b = (load_file(tmp_path / run / "weights.safetensors") for run in "ab")
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert trained(capsys, tmp_path / "a", "--config", file, "--resume", "--epochs", "2").epochs == 2


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"data: x\nepoch: 3", "unknown field in FILE 'epoch': did you mean epochs?"),
        (b"run:\n  epoch: 3", "unknown field in FILE 'epoch': did you mean epochs?"),
        (b"data: x\nepochs: many", "epochs is 'many': it must be a whole number"),
        (b"data: [", "FILE: not YAML at line 1"),
        (b"\xff\xfe\x00", "FILE: not a text file"),
        (b"run: 3", "FILE: run is 3: it must be a mapping"),
        (b"epochs: 3", "--data is missing"),
        (None, "does not exist"),
    ],
)
def test_a_file_that_describes_no_run(capsys, tmp_path, content, words):
    file = tmp_path / "c.yaml"
    if content is not None:
        file.write_bytes(content)
    code, out, error = call(capsys, "train", "--config", file, "--out", tmp_path / "run")
    assert (code, out, error.count("\n")) == (2, "", 1)
    assert words.replace("FILE", str(file)) in error
    assert not (tmp_path / "run").exists()


def test_workers_share_batches_and_score_the_same(capsys, blob_files, tmp_path):
    run, small = tmp_path / "run", ["--epochs", "1", "--batch-size", "16", "--network", "gray", "--calibration", "0.2"]
    code, out, error = call(capsys, "train", "--data", blob_files["in"], "--out", run, *small, "--workers", "2")
    assert (code, error) == (0, "")
    assert "training with 2 workers of one thread each" in out
    assert "\nworkers:" not in (run / "config.yaml").read_text().replace(" ", "")
    files = [tmp_path / f"{workers}.csv" for workers in (1, 3)]
    for workers, file in zip((1, 3), files, strict=True):
        assert call(capsys, "score", run, blob_files["out"], "--out", file, "--workers", workers)[0] == 0
    assert files[0].read_bytes() == files[1].read_bytes()
    for command in (["train", "--data", blob_files["in"], "--out", tmp_path / "2", *small], ["score", run, "x.npy"]):
        code, _, error = call(capsys, *command, "--workers", "0")
        assert (code, error.count("\n")) == (2, 1)
        assert "must be at least 1" in error
    assert not (tmp_path / "2").exists()


def test_naming_negatives_changes_the_negatives_alone(capsys, blob_files, tmp_path):
    common = ["--data", blob_files["in"], "--epochs", "1", "--batch-size", "10", "--precision", "float32"]
    plain = trained(capsys, tmp_path / "a", *common)
    named = trained(capsys, tmp_path / "b", *common, "--negatives", blob_files["out"])
    assert dataclasses.replace(named, negatives=plain.negatives) == plain


@pytest.mark.parametrize(
    ("arguments", "kept"),
    [
        ((), True), (("--epochs", "2"), True), (("--fit", "tile"), False), (("--side", "24"), False),
        (("--data", "others"), False),
    ],
)  # fmt: skip
def test_how_images_are_decoded_in_a_file_gives_way_to_options_about_it(capsys, tmp_path, monkeypatch, arguments, kept):
    seen = []
    monkeypatch.setattr("negvae.runs.train.run", lambda config, *rest, **more: seen.append(config) or 1 / 0)
    images = {"fit": "resize", "height": 32, "width": 32, "channels": 3}
    for fields in ({"data": "photos", "images": images}, {"images": images}):
        file = tmp_path / "c.yaml"
        file.write_text(yaml.safe_dump(fields))
        given = arguments if "data" in fields else ("--data", "photos", *arguments)
        with pytest.raises(ZeroDivisionError):
            call(capsys, "train", "--config", file, "--out", tmp_path / "run", *given)
        # A file without data describes how those that the command line names are decoded.
        assert (seen[-1].images is not None) == (kept or ("data" not in fields and "--data" in arguments))


def test_too_few_photos_for_the_default_rate_are_told_in_one_line(tmp_path, capsys):
    np.save(tmp_path / "x.npy", blobs(70, (1, 28, 28)).numpy())  # of which 14 are kept for tests
    options = ["--epochs", "1", "--batch-size", "16", "--network", "pyramid", "--device", "cpu", "--no-heatmaps"]
    code, text, error = call(capsys, "train", "--data", tmp_path / "x.npy", "--out", tmp_path / "few", *options)
    assert code == 0
    said = " ".join((text + error).split())
    assert "target_fpr 0.05 needs 19 held-out inliers, there are 11: the threshold lies above all of the data" in said
    code, text, error = call(
        capsys, "train", "--data", tmp_path / "x.npy", "--out", tmp_path / "enough", *options, "--target-fpr", "0.1"
    )
    assert code == 0
    assert "needs" not in text + error
