"""docs/extending.md: every block of code runs, from training over a saved folder to `negvae score`."""

import csv
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import numpy as np
import pytest
import torch

import negvae
from negvae import parts, registry
from negvae.data import DATASETS
from negvae.negatives import build_source
from negvae.registry import Table
from negvae.runs.artifact import load_artifact
from negvae.runs.export import export_onnx, relative_difference, run_onnx
from negvae.scoring.table import SCORES
from tests import processes
from tests.cli.test_commands import call
from tests.conftest import blobs

PAGE = Path(__file__).parents[1] / "docs" / "extending.md"
SECTIONS = dict(re.findall(r"^## (.+?)\n(.*?)(?=^## |\Z)", PAGE.read_text(), re.M | re.S))
PARTS = [title for title, text in SECTIONS.items() if "```sh" in text]
FAST = ["--epochs", "1", "--batch-size", "16", "--precision", "float32", "--device", "cpu"]


def blocks(title: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", SECTIONS[title], re.M | re.S)


@pytest.fixture(autouse=True)
def _tables_as_they_were(monkeypatch):
    for table in [*vars(parts).values(), DATASETS, SCORES]:
        if isinstance(table, Table):
            monkeypatch.setattr(table, "_entries", dict(table._entries))


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder with inliers and new images."""
    monkeypatch.chdir(tmp_path)
    np.save("photos.npy", blobs(60, (1, 28, 28)).numpy())
    np.save("new.npy", 255 - blobs(9, (1, 28, 28), 1).numpy())
    return tmp_path


def read(table):
    with open(table) as file:
        return list(csv.DictReader(file))


def test_every_block_is_short():
    for title in SECTIONS:
        for block in blocks(title, "python"):
            assert sum(bool(line.strip()) for line in block.splitlines()) < 20, title


def test_objects_need_no_names(place, capsys):
    (code,) = blocks("Objects first", "python")
    names = {}
    exec(compile(code, str(PAGE), "exec"), names)
    assert names["config"].network == "deep"
    assert type(names["model"].likelihood).__name__ == "Gaussian"
    with pytest.raises(ValueError, match=r"likelihood Gaussian has no name .* @negvae\.register_likelihood"):
        names["detector"].save(place / "run")
    assert not (place / "run").exists()


@pytest.mark.parametrize("title", PARTS)
def test_a_part_from_training_to_scores(title, place, capsys):
    (code,) = blocks(title, "python")
    exec(compile(code, str(PAGE), "exec"), {"__name__": "mine"})
    train, score = blocks(title, "sh")[0].splitlines()
    out, table = (command.split(" --out ")[1] for command in (train, score))
    assert call(capsys, *shlex.split(train)[1:], *FAST)[::2] == (0, "")
    assert call(capsys, *score.split()[1:])[0] == 0
    rows = read(table)
    assert len(rows) >= 9
    assert all(np.isfinite(float(row["p_value"])) and not row["error"] for row in rows)

    # A score is a function of the image alone for these parts too.
    artifact, images = load_artifact(out, "cpu"), blobs(40, (1, 28, 28), 3)
    scorer, name = artifact.scorer(), artifact.calibration.score
    together = scorer(images, [name])[name]
    np.testing.assert_array_equal(scorer(images.flip(0), [name])[name][::-1], together)
    np.testing.assert_array_equal(scorer(images[5:6], [name])[name], together[5:6])


def test_registered_objects_are_saved_by_their_names(place):
    names = {}
    for title in PARTS:
        exec(compile(*blocks(title, "python"), str(PAGE), "exec"), names)
    chosen = dict(network=names["resnet"], likelihood=names["HeavyTails"], sigma=0.3, epochs=1)
    images = blobs(100, (1, 28, 28)).numpy()
    detector = negvae.NegVAEDetector(names["Faded"](0.1), **chosen).fit(images)
    assert (detector.config_.network, detector.config_.likelihood) == ("resnet", "student-t")
    detector.save("run")
    again = negvae.NegVAEDetector.load("run")
    assert (again.network, again.likelihood, again.config_) == ("resnet", "student-t", detector.config_)
    np.testing.assert_array_equal(again.ood_score(images[:9]), detector.ood_score(images[:9]))


def test_the_pages_likelihood_is_students_t_and_is_exported(tmp_path):
    names = {}
    exec(compile(*blocks("A likelihood", "python"), str(PAGE), "exec"), names)
    output, target = torch.randn(3, 1, 4, 4), torch.rand(3, 1, 4, 4)
    made = names["HeavyTails"](sigma=0.3)
    wanted = torch.distributions.StudentT(4.0, made.mean(output), 0.3).log_prob(target).flatten(1).sum(1)
    torch.testing.assert_close(made.log_prob(output, target), wanted)

    pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    options = dict(network="pyramid", decision_score="bpd", epochs=1, target_fpr=0.2, device="cpu")
    images = blobs(60, (1, 16, 16)).numpy()
    detector = negvae.NegVAEDetector(likelihood=names["HeavyTails"], **options).fit(images)
    detector.save(tmp_path / "run")
    written = export_onnx(tmp_path / "run")
    assert relative_difference(run_onnx(written.path, images)[0], detector.ood_score(images)) < 1e-3


def test_the_help_of_the_command_line_names_no_part_twice(capsys):
    code, text, _ = call(capsys, "train", "--help")
    words = " ".join(re.sub("[│╭╮╰╯─]", " ", text).split())
    assert code == 0
    for name in parts.SOURCES:
        assert parts.SOURCES[name].notation.replace(",", ", ") in words.replace(",", ", ").replace(",  ", ", "), name


def test_what_is_registered_twice_is_refused():
    (code,) = blocks("A transformation", "python")
    exec(compile(code, str(PAGE), "exec"), {})
    with pytest.raises(ValueError, match="transformation 'rolled' is registered already"):
        exec(compile(code, str(PAGE), "exec"), {})


def test_a_registered_set_serves_everywhere(place, capsys):
    exec(compile(*blocks("A data set", "python"), str(PAGE), "exec"), {"__name__": "mine"})
    found = negvae.load_images("rings", "test", limit=7)
    assert (found.images.shape, found.origin, found.labels) == ((7, 1, 28, 28), "mine.rings", None)
    assert "rings" in call(capsys, "data", "list")[1]
    code, text, _ = call(capsys, "data", "verify", "rings")
    assert code == 0
    assert text.count("unchecked") == 2
    train = ["train", "--data", "photos.npy", "--negatives", "rings", "--out", "run", *FAST]
    assert call(capsys, *train)[0] == 0


@pytest.mark.parametrize(
    ("made", "words"),
    [
        (torch.zeros(3, 1, 8, 8), "returned torch.float32 (3, 1, 8, 8): it must be a uint8 tensor N x C x H x W"),
        (None, "returned NoneType"),
        ((torch.zeros(3, 1, 8, 8, dtype=torch.uint8), torch.zeros(2)), "3 images have labels of shape (2,)"),
        ((torch.zeros(3, 1, 8, 8, dtype=torch.uint8), [0, 1, 0]), "its labels are list: they must be a tensor"),
        ((torch.zeros(3, 1, 8, 8, dtype=torch.uint8), torch.zeros(3)), "torch.float32: they must be whole numbers"),
        (
            (torch.zeros(3, 1, 8, 8, dtype=torch.uint8), torch.zeros(3, dtype=torch.complex64)),
            "torch.complex64: they must be whole numbers",
        ),
        ((torch.zeros(3, 1, 8, 8, dtype=torch.uint8),) * 3, "its function returned tuple"),
        (torch.zeros(3, 1, 0, 8, dtype=torch.uint8), "returned torch.uint8 (3, 1, 0, 8): it must be a uint8 tensor"),
        (torch.zeros(3, 8, 8, 3, dtype=torch.uint8), "returned (3, 8, 8, 3), which looks like N x H x W x C"),
        (torch.zeros(3, 8, 8, 1, dtype=torch.uint8), "it must be N x C x H x W, as permute(0, 3, 1, 2) makes"),
    ],
)
def test_a_set_of_another_kind_is_refused(made, words):
    negvae.register_dataset("odd")(lambda split: made)
    with pytest.raises(ValueError, match=f"^data set odd: .*{re.escape(words)}"):
        negvae.load_images("odd")


def test_a_registered_set_of_any_number_of_channels_is_trained_on_and_scored(place, capsys):
    made = {split: blobs(60, (5, 16, 16), seed) for seed, split in enumerate(("train", "test"))}
    negvae.register_dataset("bands")(made.get)
    train = ["train", "--data", "bands", "--network", "pyramid", "--out", "run", *FAST]
    assert call(capsys, *train)[::2] == (0, "")
    assert call(capsys, "score", "run", "bands", "--out", "scores.csv")[0] == 0
    wanted = load_artifact("run", "cpu").scorer()(made["test"], ["combined"])["combined"]
    np.testing.assert_allclose([float(row["combined"]) for row in read("scores.csv")], wanted, rtol=1e-6)
    assert call(capsys, "report", "run", "bands", "--out", "page.html")[0] == 0


@pytest.fixture
def installed(tmp_path):
    """A folder in which the page's parts are an installed package."""
    (groups,) = (tomllib.loads(block)["project"]["entry-points"] for block in blocks("Plugins", "toml"))
    site = tmp_path / "site"
    folder = site / "my_parts-1.0.dist-info"
    folder.mkdir(parents=True)
    (folder / "METADATA").write_text("Metadata-Version: 2.1\nName: my-parts\nVersion: 1.0\n")
    lines = [f"[{group}]\n{name} = {module}\n" for group, named in groups.items() for name, module in named.items()]
    (folder / "entry_points.txt").write_text("".join(lines))
    (site / "my_parts.py").write_text("\n\n".join(block for title in PARTS for block in blocks(title, "python")))
    return site


def command(arguments, *packages):
    """(exit code, standard error) of a command in a process of its own, with further packages installed."""
    done = processes.run(arguments, path=packages)
    return done.returncode, done.stderr


def test_an_installed_package_brings_its_parts(place, installed):
    named = ["--network", "resnet", "--likelihood", "student-t", "--negatives", "faded+augmented:rolled"]
    assert command(["train", "--data", "rings", *named, "--out", "run", *FAST], installed) == (0, "")
    assert command(["score", "run", "rings", "--out", "a.csv"], installed)[0] == 0
    assert len(read("a.csv")) == 200
    assert command(["cite", "resnet"], installed) == (0, "")
    code, error = command(["score", "run", "new.npy", "--out", "b.csv"])
    assert (code, error.count("\n")) == (2, 1)
    assert "likelihood 'student-t' is not registered" in error
    assert "nothing from the folder is run" in error
    assert not Path("b.csv").exists()


def test_a_name_that_nobody_registered_is_refused(place, capsys):
    for option, name in (("--network", "resnet"), ("--likelihood", "student-t"), ("--negatives", "faded:0.1")):
        code, _, error = call(capsys, "train", "--data", "photos.npy", option, name, "--out", "run")
        assert (code, error.count("\n")) == (2, 1)
        assert name.partition(":")[0] in error
        assert not Path("run").exists()
    with pytest.raises(ValueError, match="unknown transformation 'rolled'"):
        build_source("augmented:rolled", None)


SCRIPT = """
import torch
from torch import Tensor, nn

import negvae
from negvae.model import Gaussian
from negvae.model.networks import deep


@negvae.register_transformation("mine")
def mine(images: Tensor, generator: torch.Generator) -> Tensor:
    return images.flip(3)


@negvae.register_dataset("spots")
def spots(split: str) -> Tensor:
    return torch.zeros(9, 1, 28, 28, dtype=torch.uint8)


@negvae.register_likelihood("plain")
class Plain(Gaussian):
    pass


detector = negvae.NegVAEDetector(likelihood=Plain, network=deep)
"""
WRONG = """

@negvae.register_likelihood("partial")
class Partial(nn.Module):
    def mean(self, output: Tensor) -> Tensor:
        return output


@negvae.register_transformation("short")
def short(images: Tensor) -> Tensor:
    return images


@negvae.register_network("half")
def half(shape: tuple[int, int, int], latent_size: int) -> nn.Module:
    return nn.Flatten()


@negvae.register_source("empty")
class Empty:
    adversarial = False


@negvae.register_dataset("words")
def words(split: str) -> str:
    return split
"""


def test_mypy_accepts_a_script_and_refuses_parts_that_do_not_fit(tmp_path):
    """One run for both, with the cache of `make lint`: most of the time goes to reading torch where there is none."""
    (tmp_path / "right.py").write_text(SCRIPT)
    (tmp_path / "wrong.py").write_text(SCRIPT + WRONG)
    command = [sys.executable, "-m", "mypy", "--strict", str(tmp_path / "right.py"), str(tmp_path / "wrong.py")]
    done = subprocess.run(command, cwd=PAGE.parents[1], capture_output=True, text=True)
    found = [line.partition(" error: ")[2] for line in done.stdout.splitlines() if " error: " in line]
    assert [re.search(r"cannot be \"(.*)\"  \[type-var\]", line)[1] for line in found] == [
        "type[Partial]",
        "Callable[[Tensor], Tensor]",
        "Callable[[tuple[int, int, int], int], Module]",
        "type[Empty]",
        "Callable[[str], str]",
    ]
    assert done.stdout.count("wrong.py") == len(found)


FAULTY = """
from negvae import register_dataset, register_likelihood, register_network, register_score, register_source
from negvae import register_transformation
from negvae.model import Gaussian
from negvae.model.networks import pyramid


def stumble():
    return {}["missing"]


@register_dataset("faulty")
def data(split):
    stumble()


@register_network("faulty")
def network(shape, latent_size):
    stumble()


@register_likelihood("faulty")
class Likelihood(Gaussian):
    def mean(self, output):
        return stumble()


@register_source("faulty-source")
class Source:
    adversarial = False

    def sample(self, positives, model, generator, rows=slice(None)):
        stumble()


@register_transformation("faulty")
def transformation(images, generator):
    stumble()


@register_score("faulty", unit="none")
def score(x):
    stumble()


@register_score("wrong-kind", unit="none")
def wrong_kind(x):
    raise AssertionError
"""


@pytest.fixture
def faulty_plugin(place, monkeypatch):
    """An installed package each of whose parts ends with a KeyError."""
    monkeypatch.syspath_prepend(str(place))
    monkeypatch.delenv("NEGVAE_DEBUG", raising=False)
    (place / "negvae_faulty.py").write_text(FAULTY)
    (place / "negvae_faulty-1.0.dist-info").mkdir()
    (place / "negvae_faulty-1.0.dist-info" / "METADATA").write_text("Name: negvae-faulty\nVersion: 1.0\n")
    (place / "negvae_faulty-1.0.dist-info" / "entry_points.txt").write_text("[negvae]\nfaulty = negvae_faulty\n")
    registry._import_plugins.cache_clear()
    yield place
    sys.modules.pop("negvae_faulty", None)
    registry._import_plugins.cache_clear()


def fault_of(line, message="KeyError: 'missing'"):
    return rf"{message} \(in \w+, .*negvae_faulty\.py, line {line}; NEGVAE_DEBUG=1 shows the traceback\)\n$"


@pytest.mark.parametrize(
    "options",
    [
        ["--data", "faulty"],
        ["--negatives", "faulty"],
        ["--network", "faulty"],
        ["--likelihood", "faulty"],
        ["--negatives", "faulty-source"],
        ["--negatives", "augmented:faulty"],
    ],
)
def test_an_error_in_a_part_is_one_line_with_its_place_and_leaves_no_folder(options, faulty_plugin, capsys):
    train = ["train", "--data", "photos.npy", "--network", "pyramid", "--out", "run", *FAST, *options]
    code, _, error = call(capsys, *train)
    assert code == 2
    assert re.search("^negvae: (likelihood faulty: mean fails on 2 images: )?" + fault_of(9), error), error
    assert not Path("run").exists()


def test_an_error_in_a_score_is_one_line_with_its_place_and_keeps_the_calibration(faulty_plugin, capsys):
    train = ["train", "--data", "photos.npy", "--network", "pyramid", "--out", "run", *FAST]
    assert call(capsys, *train)[0] == 0
    before = Path("run/calibration.safetensors").read_bytes()
    for name, place in (("faulty", fault_of(9)), ("wrong-kind", fault_of(48, "AssertionError"))):
        for command in (["calibrate", "run"], ["score", "run", "new.npy", "--out", "new.csv"]):
            code, _, error = call(capsys, *command, "--score", name)
            assert code == 2
            assert re.search(f"negvae: {place}", error), error
    assert Path("run/calibration.safetensors").read_bytes() == before
    assert not Path("new.csv").exists()
