"""Errors, help and completion, whichever command they come from."""

import errno
import os
import re
import subprocess
import sys

import numpy as np
import pytest

from negvae.cli import app as application
from negvae.runs.resolve import FEWEST_TO_TURN
from negvae.scoring.transformations import MOST_OF_ONE_KIND
from tests.cli.test_commands import FAST, call, negvae

COMMANDS = ["", "train", "evaluate", "calibrate", "score", "report", "export", "demo", "data", "data list",
            "data fetch", "data verify", "paper", "paper list", "paper show", "paper run", "paper report"]  # fmt: skip


def shown(capsys, *arguments):
    """The help of a command, on one line and without frames."""
    code, text, _ = call(capsys, *arguments, "--help")
    assert code == 0
    return " ".join(re.sub("[│╭╮╰╯─]", " ", text).split())


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (ValueError("two\nlines"), "two lines"),
        (TypeError("no"), "no"),
        (ImportError("ray is not installed"), "ray is not installed"),
        (FileNotFoundError("run is not here"), "run is not here"),
        (PermissionError(errno.EACCES, "Permission denied", "out/a"), "out/a: permission denied"),
        (IsADirectoryError(errno.EISDIR, "Is a directory", b"out"), "out: is a directory"),
        (OSError(errno.ENOSPC, "No space left on device"), "no space left on device"),
    ],
)
def test_an_expected_error_is_one_line(capsys, monkeypatch, error, line):
    def command(**options):
        raise error

    monkeypatch.delenv("NEGVAE_DEBUG", raising=False)
    monkeypatch.setattr(application, "app", command)
    assert call(capsys, "train") == (2, "", f"negvae: {line}\n")
    monkeypatch.setenv("NEGVAE_DEBUG", "1")
    with pytest.raises(type(error)):
        application.main()


def test_an_error_nobody_expects_keeps_its_traceback(monkeypatch):
    monkeypatch.setattr(application, "app", lambda **options: {}["a bug"])
    with pytest.raises(KeyError):
        application.main()


def test_a_folder_that_cannot_be_written(capsys, blob_files):
    out = blob_files["in"] / "run"
    code, _, error = call(capsys, "train", "--data", blob_files["in"], "--out", out)
    assert (code, error) == (2, f"negvae: {out}: not a directory\n")


WRITERS = [["paper", "list"], ["paper", "show", "table1", "--json"], ["--help"]]


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="Linux has a device that is full")
@pytest.mark.parametrize("arguments", WRITERS)
def test_a_full_disk_is_one_line(arguments):
    with open("/dev/full", "w") as full:
        command = [sys.executable, "-c", "from negvae.cli import main; main()", *arguments]
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True)
    assert (done.returncode, done.stderr) == (2, "negvae: no space left on device\n")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="Linux has a device that is full")
def test_messages_that_cannot_be_written_lose_no_work(tmp_path):
    data = tmp_path / "rows.csv"
    np.savetxt(data, np.random.default_rng(0).normal(size=(60, 2)), delimiter=",", header="a,b", comments="")
    with open("/dev/full", "w") as full:
        for arguments in (
            ["train", "--data", data, "--out", tmp_path / "run", "--epochs", "1"],
            ["score", tmp_path / "run", data, "--out", tmp_path / "scores.csv"],
        ):
            command = [sys.executable, "-c", "from negvae.cli import main; main()", *map(str, arguments)]
            assert subprocess.run(command, stderr=full, stdout=subprocess.DEVNULL).returncode == 0
    assert len((tmp_path / "scores.csv").read_text().splitlines()) == 61


def quiet(*arguments):
    """Whether a command ends with nothing to say and code 1 where nobody reads what it prints."""
    with negvae(*arguments) as process:
        process.stdout.close()
        error = process.stderr.read()
    assert process.returncode == 1, error
    return not re.search("negvae: |Error|ignored", error)


@pytest.mark.parametrize("arguments", WRITERS)
def test_a_reader_that_has_seen_enough_ends_a_command_quietly(arguments):
    assert quiet(*arguments)


def test_a_reader_that_has_seen_enough_ends_scoring_quietly(capsys, blob_files, tmp_path):
    data = ["--data", blob_files["in"], "--out", tmp_path / "run", "--calibration", "0.3"]
    assert call(capsys, "train", *data, *FAST)[0] == 0
    assert quiet("score", tmp_path / "run", blob_files["in"])


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_and_option_has_a_sentence(capsys, command, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    code, text, error = call(capsys, *command.split(), "--help")
    assert (code, error) == (0, "")
    lines = text.splitlines()
    assert max(map(len, lines)) <= 80
    for line in lines:  # with a name and its type, and then its help
        assert not re.fullmatch(r"│ (\*  )? *-?-?[\w-]+( +-h)?( +<[^>]*>)? *│", line), line
    assert not re.search(r"…", text)


def test_help_shows_what_the_preset_gives(capsys):
    usual, gray, generated = (
        shown(capsys, "train", *before)
        for before in ([], ["--preset", "gray"], ["--negatives", "generated", "--data", "x"])
    )
    assert "Preset unsupervised is the default" in usual
    assert "--latent-size <dimensions> Size of the latent code z. [default: 32]" in usual
    assert "[default: unsupervised]" in usual
    assert "Size of the latent code z. [default: 10]" in gray
    assert "[default: gray]" in gray
    assert "[default: 100, more for little data]" in gray
    numbers = f"{FEWEST_TO_TURN} to {MOST_OF_ONE_KIND:,}"
    turns = f"[default: turns for {numbers} training images or tiles, or more whole photos, else none]"
    assert [turns in text for text in (usual, gray, generated)] == [True, False, True]
    assert "[default: unsupervised]" in generated
    panels = ["Data", "Model", "Negatives", "Training", "Calibration", "Machine", "Cluster"]
    found = re.findall("(Data|Model|Negatives|Training|Calibration|Machine|Cluster) +-", usual)
    assert found == panels
    assert "One of: bernoulli (cross-entropy of pixels as probabilities), gaussian (a Gaussian with one" in usual


def complete(text):
    """What the shell is offered after `text`, and whether that took torch."""
    words = f"negvae {text}".split(" ")
    code = (
        "import sys; from negvae.cli import main; sys.argv = ['negvae']\n"
        "try: main()\n"
        "finally: print('torch' in sys.modules)"
    )
    environment = {**os.environ, "_NEGVAE_COMPLETE": "complete_bash", "COMP_WORDS": " ".join(words)}
    environment["COMP_CWORD"] = str(len(words) - 1)
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    *offered, torch = done.stdout.split()
    return offered, torch == "True", done.stderr


@pytest.mark.parametrize(
    ("text", "offered"),
    [
        ("tr", ["train"]),
        ("train --likelihood ga", ["gaussian"]),
        ("train --preset uns", ["unsupervised"]),
        ("train --data fash", ["fashion-mnist"]),
        ("train --negatives aug", ["augmented"]),
        ("train --negatives uni", ["uniform-noise"]),
        ("train --negatives fash", ["fashion-mnist"]),
        ("train --negative-s", ["--negative-shift"]),
        ("score run --precision in", ["int8"]),
        ("data fetch fash", ["fashion-mnist"]),
        ("paper show bey", ["beyond"]),
        ("paper run all --profile smo", ["smoke"]),
    ],
)
def test_a_shell_completes_names_without_torch(text, offered):
    assert complete(text) == (offered, False, "")


@pytest.mark.parametrize("command", ["", "train"])
def test_help_needs_no_library_that_computes(command):
    code = f"import sys; from negvae.cli.app import app; app({[*command.split(), '--help']}, standalone_mode=False);"
    code += "print(sorted({'numpy', 'pyarrow', 'scipy', 'torch'} & sys.modules.keys()))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip().endswith("[]")
    assert "negative" in done.stdout
