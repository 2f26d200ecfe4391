"""Typical mistakes at the command line: one line that says what is wrong, where, and what would be right."""

import dataclasses

import numpy as np
import pytest
from PIL import Image

from negvae.config import preset
from negvae.runs import train as training
from negvae.runs.train import run
from negvae.training import patches
from negvae.training.stopping import BUDGET, StopConditions
from tests.cli.test_commands import FAST, call
from tests.conftest import blobs, small_run


def small_run_on(path):
    config = small_run("gray", initialization="he", calibration=0.3)
    return dataclasses.replace(config, data=str(path))


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Photos, a calibrated run on them, and what is taken for photos or a run by mistake."""
    root = tmp_path_factory.mktemp("mistakes")
    for name, count in (("photos", 60), ("one", 1)):
        (root / name).mkdir()
        for number, image in enumerate(blobs(count, (1, 28, 28)).numpy()):
            Image.fromarray(image[0]).save(root / name / f"{number}.png")
    (root / "broken").mkdir()
    (root / "broken" / "a.png").write_text("no image")
    (root / "empty").mkdir()
    (root / "text.txt").write_text("text")
    (root / "header.csv").write_text("a,b\n")
    (root / "latin.csv").write_bytes("größe,b\n1,2\n".encode("latin-1"))
    (root / "semicolons.csv").write_text("a;b\n1;2\n")
    np.savetxt(root / "rows.csv", np.zeros((30, 3)), delimiter=",", header="a,b,c", comments="")
    run(small_run_on(root / "photos"), root / "run")
    np.save(root / "rows.npy", np.random.default_rng(0).normal(size=(40, 2)))
    run(preset("features", str(root / "rows.npy"), epochs=1, device="cpu"), root / "of-rows")
    return root


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("train --data fotos --out new", "unknown data set 'fotos', and there is no such file or folder. Known: mnist"),
        ("train --data nosuch.csv --out new", "to a .npy, .npz, .csv or .parquet file is accepted too"),
        ("clean nosuch.csv", "to a .npy, .npz, .csv or .parquet file is accepted too"),
        ("clean no/such.csv", "no/such.csv: no such file or folder; a folder of images or"),
        (
            "train --data photos --out new --negatives fotos",
            "unknown source of negatives (and no such path) 'fotos'. Known: auxiliary:NAME, zoomed:NAME, added-noise,"
            " uniform-noise, generated, augmented, mnist, fashion-mnist, kmnist, emnist-letters, cifar10, cifar100,"
            " svhn, imagenet32\n",
        ),
        (
            "train --data photos --out new --negatives zoomed",
            "negatives 'zoomed': a data set's name or path is missing",
        ),
        ("train --data photos --out new --negatives augmentd", "did you mean augmented? Known: auxiliary:NAME"),
        ("train --data empty --out new", "empty: holds no images (png"),
        ("train --data one --out new", "fewer than 2 to train on: give more of them\n"),
        (
            "train --data file:///x --out new",
            "file:///x: a set is loaded from this machine, not from a URI: give its path",
        ),
        (
            "train --data photos --out s3://bucket/run",
            "s3://bucket/run: runs and outputs lie on this machine: give a path, not a URI\n",
        ),
        ("score file:///run photos", "file:///run: runs and outputs lie on this machine: give a path, not a URI\n"),
        ("score run photos --out a.csv --heatmaps gs://b/c", "gs://b/c: runs and outputs lie on this machine"),
        ("report run photos --out memory://page.html", "memory://page.html: runs and outputs lie on this machine"),
        ("score run photos --ensemble s3://b/c --score waic", "s3://b/c: runs and outputs lie on this machine"),
        ("paper show 1 --results s3://b/c", "s3://b/c: runs and outputs lie on this machine"),
        ("watch run file:///photos", "file:///photos: a folder of this machine is watched, not a URI: give its path\n"),
        ("train --data text.txt --out new", "text.txt: .txt cannot be read as a set; a folder of images"),
        ("train --data rows.csv --out new --preset gray", "rows.csv: a table of rows of features, where images are"),
        ("train --data header.csv --out new", "header.csv: holds no rows"),
        ("train --data latin.csv --out new", "latin.csv: not in UTF-8 (byte 2)"),
        ("train --data semicolons.csv --out new", "its first line has semicolons (a;b): columns are separated by"),
        ("train --data rows.csv --out new --side 32", "rows.csv is no folder of image files, which is what fit, side"),
        ("train --data photos --out new --fit exact --side 32", "with fit exact, which takes them as they are"),
        (
            "train --data photos --out new --side 300",
            "network deep takes images from 16x16 to 256x256, these are 300x3",
        ),
        ("train --data no/such --out new --side 32", "no/such: no such file or folder\n"),
        ("train --data nosuch --out new --fit tile", "unknown data set 'nosuch', and there is no such file or folder"),
        ("score run photos --score neighbors", "score neighbors is for rows of features: this model takes images"),
        ("calibrate run --score neighbors", "score neighbors is for rows of features: this model takes images"),
        ("data verify photos", "photos is a file or folder, and this takes the name of a data set: mnist"),
        ("train --out run --resume --epochs 1", "run has had 2 epochs: --resume goes on to more, not to 1"),
        ("train --out new --resume", "new holds no run to go on with: name its folder, or give --data"),
        ("train --data photos --out new --epochs many", "--epochs"),
        ("train --data photos --out new --target-fpr 5", "target_fpr is 5.0: it must lie between 0 and 1"),
        ("train --data photos --out new --latent-size 100000000000", "network deep then needs at least 745.1 GiB of"),
        ("train --data photos --out text.txt", "text.txt is a file: --out takes a folder"),
        ("train --date photos --out new", "No such option: --date (Possible options: --data"),
        ("score run photos --fpr 0.1", "No such option: --fpr (Possible options: --target-fpr)"),
        ("score run photos --target-fpr abc", "Invalid value for '--target-fpr': 'abc' "),
        ("train --data photos --out new --epochs 1.5", "Invalid value for '--epochs': '1.5' "),
        ("score nope photos", "nope is not a negvae run: no such folder"),
        ("score text.txt photos", "text.txt is not a negvae run: it is a file"),
        ("score photos photos", "photos is not a negvae run: it has no config.yaml"),
        ("score run photos --out scores.xls", "--out scores.xls: the ending must be one of .parquet, .csv, .jsonl"),
        ("score run photos --out new.csv --shard-rows 9", "--out new.csv is the name of a file, and parts are written"),
        (
            "score run photos --out new.parquet --resume",
            "--out new.parquet is the name of a file, and parts are written",
        ),
        ("score run photos --out s3://x/new.csv", "--out s3://x/new.csv: one file is written to this machine; into a"),
        ("score run photos --out no/such/s.csv", "no/such: no such folder to write to"),
        ("score run photos --workers 2 --cluster local --out p/", "--workers does not go with --cluster"),
        ("calibrate of-rows --data header.csv", "header.csv: holds no rows"),
        ("evaluate of-rows --data header.csv --ood rows.csv", "header.csv: holds no rows"),
        ("evaluate run --ood rows.csv", "rows.csv: a table of rows of features, where images are asked for"),
        ("evaluate run --ood broken", "not a readable image (cannot identify image file)"),
        ("watch run photos --once --out text.txt", "text.txt is a file: --out takes a folder"),
        ("watch run photos --once --out new --interval 0", "interval is 0: it must be above 0 seconds"),
        ("watch run photos --once --out new --settle -1", "settle is -1: it must be 0 seconds or more"),
        ("watch run photos --once --out new --fdr 2", "fdr is 2.0: it must lie between 0 and 1"),
        ("watch run photos --once --out new --alarm-rate 2", "alarm_rate is 2.0: it must lie between 0 and 1"),
        ("watch run photos --once --out new --window -1", "window is -1: it must be a number of scores, or 0"),
        ("serve run=", "run=: a path is missing after ="),
        ("paper show tabel1", "unknown table 'tabel1': did you mean table1? Known: all, table1"),
        ("paper run beyonds", "unknown table 'beyonds': did you mean beyond?"),
        ("paper run one-class --gpus-per-run 1", "--gpus-per-run goes with --cluster"),
        ("paper show table1 --results nope", "nope: no such folder of results"),
        ("paper list --results text.txt", "text.txt: no such folder of results"),
        ("score run photos --device mps", "device is 'mps': it must be auto, cpu, cuda or cuda:N"),
        ("calibrate run --device cuda:x", "device is 'cuda:x': it must be auto, cpu, cuda or cuda:N"),
        ("evaluate run --ood photos --device gpu", "device is 'gpu': it must be auto, cpu, cuda or cuda:N"),
        ("report run photos --device gpu", "device is 'gpu': it must be auto, cpu, cuda or cuda:N"),
        ("watch run photos --once --out new --device gpu", "device is 'gpu': it must be auto, cpu, cuda or cuda:N"),
        ("clean photos --device gpu", "device is 'gpu': it must be auto, cpu, cuda or cuda:N"),
        ("train --data photos --out new --device cuda:x", "device is 'cuda:x': it must be auto, cpu, cuda or cuda:N"),
        ("train --data photos --out new --device cuda:999", "device cuda:999 is not here: "),
        ("score run photos --device cuda:999", "device cuda:999 is not here: "),
        ("export run --out a.onnx --triton b", "--out and --triton are two places to write to: give one"),
    ],
)
def test_a_mistake_is_one_line(place, capsys, monkeypatch, command, message):
    monkeypatch.chdir(place)
    before = sorted(place.rglob("*"))
    code, _, error = call(capsys, *command.split())
    assert code == 2
    assert message in error
    assert error.count("\n") == 1
    assert error.startswith("negvae: ")
    assert sorted(place.rglob("*")) == before


@pytest.mark.parametrize(
    ("given", "error"),
    [
        ("rows.csv", "rows.csv: the model takes images, and this is a table of rows of features"),
        ("broken", "a.png: not a readable image (cannot identify image file)"),
        ("text.txt", "text.txt: not a readable image (cannot identify image file)"),
    ],
)
def test_where_no_row_can_be_scored_the_first_error_is_said(place, capsys, monkeypatch, given, error):
    monkeypatch.chdir(place)
    code, _, printed = call(capsys, "score", "run", given)
    assert code == 1
    last = printed.splitlines()[-1]
    assert last.startswith("not a single row could be scored: ")
    assert last.endswith(error)


def test_a_cluster_that_does_not_start_is_one_line(place, capsys, monkeypatch):
    ray = pytest.importorskip("ray")

    def init(**options):
        raise Exception("The current node timed out during startup.")

    monkeypatch.chdir(place)
    monkeypatch.setattr(ray, "init", init)
    code, _, error = call(capsys, "score", "run", "photos", "--cluster", "local", "--out", "parts/")
    assert code == 2
    assert "--cluster local: cannot be joined (The current node timed out during startup.)" in error


def test_the_budget_counts_for_heat_maps_and_resume_goes_on_with_them(place, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(place)
    out = tmp_path / "my run"
    taken = []

    class Stop(StopConditions):
        def reason(self):
            taken.append(1)
            return BUDGET if self._budget is not None and len(taken) == 6 else ""

    monkeypatch.setattr(patches, "STEPS", 20)
    monkeypatch.setattr(training, "StopConditions", Stop)
    options = ["--out", out, "--device", "cpu"]
    code, printed, error = call(capsys, "train", "--data", "photos", *FAST, "--calibration", "0.3", "--heatmaps",
                                "--budget", "1000", *options)  # fmt: skip
    assert code == 0, error
    lines = printed + error
    assert "heat maps: stopped at step 5" in lines
    assert "stopped before the heat maps were complete; the run scores without them (the budget of 1000 s" in lines
    assert f"negvae train --out '{out}' --resume" in lines.replace("\n", " ")
    assert not (out / "heatmaps.safetensors").exists()
    assert call(capsys, "score", out, "photos", "--out", tmp_path / "s.csv")[0] == 0
    code, printed, error = call(capsys, "train", *options, "--resume")
    assert code == 0, error
    assert "from step 5 on" in printed + error
    assert (out / "heatmaps.safetensors").exists()


def test_an_empty_input_is_not_the_current_folder(place, capsys, monkeypatch):
    monkeypatch.chdir(place / "photos")
    code, _, error = call(capsys, "score", place / "run", "")
    assert code == 2
    assert "negvae: an input is empty: name a folder, a file, a pattern or a data set" in error


def test_a_run_that_goes_on_keeps_its_heat_maps(place, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(place)
    monkeypatch.setattr(patches, "STEPS", 20)
    options = ["--out", tmp_path / "run", "--device", "cpu"]
    made = call(capsys, "train", "--data", "photos", *FAST, "--calibration", "0.3", "--heatmaps", *options)
    assert made[0] == 0, made
    before = (tmp_path / "run" / "heatmaps.safetensors").read_bytes()
    assert call(capsys, "train", *options, "--resume", "--epochs", "2")[0] == 0
    assert (tmp_path / "run" / "heatmaps.safetensors").read_bytes() == before
    code, _, error = call(capsys, "score", tmp_path / "run", "photos", "--heatmaps", tmp_path / "maps", "--out",
                          tmp_path / "s.csv", "--score", "kl", "--score", "defects")  # fmt: skip
    assert code == 0, error


@pytest.mark.parametrize("command", ["--help", "train --help", "score --help"])
def test_help_fits_80_columns_without_color(capsys, monkeypatch, command):
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("NO_COLOR", "1")
    code, text, _ = call(capsys, *command.split())
    assert code == 0
    assert "\x1b" not in text
    assert max(map(len, text.splitlines())) <= 80
