"""What goes wrong before a job begins: one line, exit code 2. No cluster is needed."""

import subprocess
import sys

import pytest

from negvae.cluster.connect import Mailbox, enter, joined, refuse_other_versions, surroundings, versions
from tests.cli.test_commands import call


def refused(capsys, *arguments):
    code, _, error = call(capsys, *arguments)
    *_, last = error.splitlines()  # others say what would have decided
    assert (code, error.count("negvae: ")) == (2, 1)
    assert last.startswith("negvae: ")
    return last


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("command", ["score", "train", "paper"])
def test_an_address_where_nothing_answers(capsys, blob_files, model, tmp_path, monkeypatch, command):
    pytest.importorskip("ray")
    monkeypatch.setenv("NEGVAE_DATA", str(tmp_path))
    options = ["--cluster", "127.0.0.1:9", "--out", tmp_path / "out"]
    arguments = {
        "score": ["score", model, blob_files["in"], *options],
        "train": ["train", "--data", blob_files["in"], *options],
        "paper": ["paper", "run", "table3", "--profile", "smoke", "--results", tmp_path / "results", *options],
    }[command]
    assert "--cluster 127.0.0.1:9: nothing answers there" in refused(capsys, *arguments)
    assert not (tmp_path / "out").exists() or not list((tmp_path / "out").iterdir())


def test_the_extra_is_named_where_it_is_missing(capsys, blob_files, model, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    error = refused(capsys, "score", model, blob_files["in"], "--out", tmp_path / "out", "--cluster", "auto")
    assert error == "negvae: ray is not installed: pip install 'negvae[ray]'"
    assert not (tmp_path / "out").exists()


def test_runs_of_the_paper_leave_no_folders_where_the_extra_is_missing(capsys, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    folders = ["--results", tmp_path / "results", "--out", tmp_path / "runs"]
    error = refused(capsys, "paper", "run", "table3", "--profile", "smoke", *folders, "--cluster", "auto")
    assert error == "negvae: ray is not installed: pip install 'negvae[ray]'"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("address", ["ray://somewhere:10001", "somewhere", "somewhere:port"])
def test_addresses_of_other_kinds(address):
    pytest.importorskip("ray")
    with pytest.raises(ValueError, match="give HOST:PORT"), joined(address):
        pass


def test_other_versions_are_refused():
    refuse_other_versions(versions())
    with pytest.raises(ValueError, match=r"has other versions: torch .*, the command has 1\.0; install the same"):
        refuse_other_versions({**versions(), "torch": "1.0"})


def test_workers_stand_where_the_command_stands(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("NEGVAE_DATA", "/here")
    (tmp_path / "in.npy").touch()
    command = surroundings()
    monkeypatch.chdir("/")
    monkeypatch.delenv("NEGVAE_DATA")
    enter(command, needed=["in.npy"])
    assert surroundings() == command
    with pytest.raises(FileNotFoundError, match=r"has no out: put it where all nodes see it"):
        enter(command, needed=["out"])


def test_options_that_need_a_cluster_or_do_without(capsys, blob_files, model, tmp_path):
    score = ["score", model, blob_files["in"]]
    assert "--gpus goes with --cluster" in refused(capsys, *score, "--gpus", "0.5")
    train = ["train", "--data", "x", "--out", tmp_path]
    assert "--cpus-per-worker goes with" in refused(capsys, *train, "--cpus-per-worker", "2")
    assert "--workers does not go with" in refused(capsys, *score, "--cluster", "auto", "--workers", "2")
    assert "--cpus-per-run goes with" in refused(capsys, "paper", "run", "table3", "--cpus-per-run", "2")
    assert "'--cluster' requires an argument" in refused(capsys, *score, "--cluster")
    assert "give --out" in refused(capsys, *score, "--cluster", "auto")
    for option in (["--fdr", "0.1"], ["--format", "csv"], ["--device", "cpu"]):
        on_cluster = ["--out", tmp_path / "o", "--cluster", "auto"]
        assert "does not go with --cluster" in refused(capsys, *score, *option, *on_cluster)


def test_a_desk_keeps_word_until_it_is_taken():
    mailbox = Mailbox()
    assert mailbox.tell("a", "b") == ""
    mailbox.stop("SIGINT")
    assert mailbox.tell("c") == "SIGINT"
    assert (mailbox.take(), mailbox.take()) == (["a", "b", "c"], [])


def test_ray_is_imported_for_clusters_only():
    modules = "negvae.cli, negvae.runs.score, negvae.runs.train, negvae.paper.runner, negvae.cluster.score"
    modules += ", negvae.cluster.train, negvae.cluster.paper"
    code = f"import sys, {modules}; sys.exit('ray' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
