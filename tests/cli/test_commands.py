"""The command line from outside: what it prints, writes and returns."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from negvae import cli
from negvae.cli.common import visible

FAST = ["--epochs", "1", "--batch-size", "10", "--precision", "float32", "--preset", "gray"]


def call(capsys, *arguments):
    """(exit code, standard output, standard error) of one command."""
    sys_argv, sys.argv = sys.argv, ["negvae", *map(str, arguments)]
    try:
        with pytest.raises(SystemExit) as stop:
            cli.main()
    finally:
        sys.argv = sys_argv
    printed = capsys.readouterr()
    return stop.value.code, printed.out, printed.err


def test_train_evaluate_resume(capsys, blob_files, tmp_path):
    out = tmp_path / "run"
    data = ["--data", blob_files["in"], "--out", out]
    code, text, _ = call(capsys, "train", *data, "--negatives", blob_files["out"], *FAST)
    assert code == 0
    assert "finished 1 epoch in" in text
    for name in (
        "config.yaml",
        "weights.safetensors",
        "metrics.jsonl",
        "MODEL_CARD.md",
        "checkpoint.safetensors",
    ):
        assert (out / name).is_file()
    assert not list(out.glob("*.pt")) + list(out.glob("*.pkl"))
    code, _, error = call(capsys, "train", *data, *FAST)
    assert (code, error.count("\n")) == (2, 1)
    assert "--resume" in error
    code, text, _ = call(capsys, "train", "--out", out, "--resume", "--epochs", "2")
    assert code == 0
    assert "finished 2 epochs" in text
    code, _, error = call(capsys, "train", "--out", out, "--resume", "--seed", "9")
    assert code == 2
    assert "seed 0, not 9" in error
    code, text, _ = call(capsys, "evaluate", out, "--ood", blob_files["out"], "--ood", "uniform-noise", "--limit", "60")
    assert code == 0
    assert "served as negatives" in text
    rows = json.loads((out / "evaluation.json").read_text())["rows"]
    assert [row["served_as_negatives"] for row in rows] == [True, False]
    assert all(row["auc_bpd_ci"][0] <= row["auc_bpd"] <= row["auc_bpd_ci"][1] for row in rows)
    assert {"auc_kl", "auc_prior_ratio", "nats_per_dim_test", "bits_per_dim_ood"} <= rows[0].keys()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["train", "--data", "fashion-mnits", "--out", "OUT"], ["did you mean fashion-mnist"]),
        (["train", "--data", "IN", "--out", "OUT", "--negatives", "augmentd"], ["did you mean augmented"]),
        (["train", "--data", "IN", "--out", "OUT", "--negatives", "IN"], ["inliers"]),
        (["train", "--data", "IN", "--out", "OUT", "--negatives", "OTHER"], ["1x20x20", "1x28x28"]),
        (["train", "--data", "IN", "--out", "OUT", "--preset", "grey"], ["did you mean gray"]),
        (["train", "--data", "IN", "--out", "OUT", "--preset", "color"], ["3x32x32", "pyramid"]),
        (["train", "--data", "IN", "--out", "OUT", "--likelihood", "gausian"], ["did you mean gaussian"]),
        (["train", "--data", "/no/such/folder", "--out", "OUT"], ["no such file"]),
        (["train", "--data", "IN", "--out", "OUT", "--budget", "0"], ["--budget"]),
        (["train", "--data", "IN", "--out", "OUT", "--epochs", "many"], ["--epochs"]),
        (["train", "--data", "IN"], ["--out"]),
        (["train", "--out", "OUT"], ["--data"]),
        (["train", "--data", "IN", "--out", "IN"], ["is a file"]),
        (["evaluate", "OUT", "--ood", "mnist"], ["not a negvae run"]),
        (["data", "verify", "mnits"], ["did you mean mnist"]),
        (["trian"], ["train"]),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(capsys, blob_files, tmp_path, arguments, words):
    places = {"IN": str(blob_files["in"]), "OTHER": str(blob_files["other"]), "OUT": str(tmp_path / "out")}
    code, _, error = call(capsys, *(places.get(a, a) for a in arguments))
    assert code == 2
    assert error.count("\n") == 1
    assert all(word in error for word in words), error
    assert not (tmp_path / "out" / "weights.safetensors").exists()


@pytest.mark.parametrize("damage", ["truncated weights", "foreign weights", "no weights", "bad config", "bad field"])
def test_a_damaged_artifact_is_refused(capsys, blob_files, tmp_path, damage):
    out = tmp_path / "run"
    assert call(capsys, "train", "--data", blob_files["in"], "--out", out, *FAST)[0] == 0
    weights, config = out / "weights.safetensors", out / "config.yaml"
    if damage == "truncated weights":
        weights.write_bytes(weights.read_bytes()[:1000])
    elif damage == "foreign weights":
        weights.write_bytes(b"\x80\x04pickle")
    elif damage == "no weights":
        weights.unlink()
    elif damage == "bad config":
        config.write_text("run: [")
    else:
        config.write_text(config.read_text().replace("epochs: 1", "epochs: yes"))
    code, _, error = call(capsys, "evaluate", out, "--ood", "uniform-noise")
    assert (code, error.count("\n")) == (2, 1)


def negvae(*arguments, **options):
    command = [sys.executable, "-c", "from negvae.cli import main; main()", *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_leaves_a_checkpoint_and_resume_goes_on(tmp_path, blob_files, number):
    out = tmp_path / "run"
    arguments = ["train", "--data", blob_files["in"], "--out", out, *FAST, "--epochs", "100000"]
    process = negvae(*arguments, env={**os.environ, "OMP_NUM_THREADS": "1"})
    deadline = time.monotonic() + 120
    while not (out / "metrics.jsonl").exists() or not (out / "metrics.jsonl").read_text():
        assert time.monotonic() < deadline
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    process.send_signal(number)
    text, error = process.communicate(timeout=60)
    assert process.returncode == 128 + number, error
    assert "--resume" in text
    assert (out / "checkpoint.safetensors").exists()
    assert (out / "weights.safetensors").exists()


def test_data_list_shows_what_is_here(capsys, monkeypatch, tmp_path):
    folder = tmp_path / "mine"
    (folder / "svhn").mkdir(parents=True)
    monkeypatch.setenv("NEGVAE_DATA", str(folder))
    code, text, _ = call(capsys, "data", "list")
    assert code == 0
    assert "emnist-letters" in text
    assert "missing" in text
    monkeypatch.setenv("NEGVAE_DATA", str(tmp_path / "nowhere"))
    code, _, error = call(capsys, "data", "list")
    assert (code, error.count("\n")) == (2, 1)


@pytest.mark.parametrize("name", ["[red]mine", "mine[", "a\x1b[2Jb"])
def test_data_list_shows_names_of_folders_as_they_are(capsys, monkeypatch, tmp_path, name):
    monkeypatch.chdir(tmp_path)
    folder = Path(name, "]")  # "[/]" ends a style in rich's markup
    (folder / "mnist").mkdir(parents=True)
    for part in ("train", "t10k"):
        (folder / "mnist" / f"{part}-images-idx3-ubyte").write_bytes(bytes([0, 0, 8, 3]) + bytes(12))
    monkeypatch.setenv("NEGVAE_DATA", str(folder))
    code, text, error = call(capsys, "data", "list")
    assert code == 0, error
    assert f"{visible(name)}/]/mnist" in text


def test_a_folder_of_pictures_trains_with_the_auto_network(capsys, tmp_path):
    from PIL import Image

    from tests.conftest import blobs

    (tmp_path / "pictures").mkdir()
    for index, image in enumerate(blobs(24, (3, 20, 24)).numpy()):
        Image.fromarray(np.ascontiguousarray(image.transpose(1, 2, 0))).save(tmp_path / f"pictures/{index:02}.png")
    out = Path(tmp_path / "run")
    code, _, error = call(capsys, "train", "--data", tmp_path / "pictures", "--negatives", "augmented", "--epochs", "1",
                          "--batch-size", "8", "--out", out)  # fmt: skip
    assert code == 0, error
    assert call(capsys, "evaluate", out, "--ood", "uniform-noise", "--limit", "60")[0] == 0


def test_few_training_steps_are_named(capsys, blob_files, tmp_path):
    small = ["train", "--data", blob_files["in"], "--preset", "gray", "--batch-size", "12", "--out"]
    _, out, error = call(capsys, *small, tmp_path / "a", "--epochs", "1")
    assert "4 training steps are few: 250 epochs make them 1,000" in out + error


def test_a_calibrated_run_is_tested_by_the_score_it_decides_by(capsys, blob_files, tmp_path):
    run = tmp_path / "run"
    assert (
        call(capsys, "train", "--data", blob_files["in"], "--epochs", "2", "--batch-size", "12", "--out", run)[0] == 0
    )
    code, table, _ = call(capsys, "evaluate", run, "--ood", "uniform-noise", "--limit", "60")
    assert code == 0
    assert "AUC combined" in " ".join(table.split())
    content = json.loads((run / "evaluation.json").read_text())
    assert (content["score"], content["target_fpr"]) == ("combined", None)  # 10 held out are too few for 5%
    (row,) = content["rows"]
    assert row["auc_combined"] > 0.9
    assert row["metrics"]["combined"]["auroc"] == row["auc_combined"]
    assert 0 <= row["alarms_test"] < row["alarms_ood"] <= 1


def test_names_with_colons_are_printed_as_they_are(capsys, blob_files, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, text, _ = call(capsys, "train", "--data", blob_files["in"], "--out", "run:a:b", "--calibration", "0.3", *FAST)
    assert code == 0
    assert "run:a:b" in text
    Path(":b:.npy").write_bytes(blob_files["out"].read_bytes())
    code, text, error = call(capsys, "evaluate", "run:a:b", "--ood", ":b:.npy")
    assert (code, error) == (0, "")
    assert ":b:.npy" in text
    code, text, error = call(capsys, "score", "run:a:b", ":b:.npy", "--out", "scores:a:.csv")
    assert (code, "scores:a:.csv" in error) == (0, True)
