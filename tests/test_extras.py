"""Each extra alone, installed with the wheel into an environment of its own, does what it is for (`make test-extras`).

In every environment the four commands work, and then what the extra adds. With NEGVAE_EXTRAS, names joined by commas,
only those. torch and all that the core requires are installed once; each environment shares those files by hard links.
"""

import os
import shutil
import subprocess
import sys
import time
import tomllib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.conftest import blobs
from tests.test_wheel import ROOT, done, wheel  # noqa: F401  (a fixture)

pytestmark = [pytest.mark.extras, pytest.mark.timeout(1800)]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
SHORT = ("--epochs", "1", "--batch-size", "16", "--no-heatmaps")
HEIF = """
import pillow_heif
from PIL import Image
pillow_heif.register_heif_opener()
Image.open("photos/00.png").convert("RGB").save("photo.heic")
"""
PYOD = """
import numpy
from negvae import as_pyod
rows = numpy.random.default_rng(0).normal(size=(100, 3))
assert as_pyod(epochs=1).fit(rows).predict(rows).sum() == 10
"""
PYTORCH_OOD = """
import torch
from negvae import as_pytorch_ood
from pytorch_ood.api import Detector
detector = as_pytorch_ood(epochs=1).fit_features(torch.randn(100, 3))
assert isinstance(detector, Detector) and len(detector(torch.randn(5, 3))) == 5
"""
TIFF = """
import numpy, pathlib, tifffile
pathlib.Path("deep").mkdir()
for number, image in enumerate(numpy.random.default_rng(0).integers(0, 60000, (60, 32, 32, 5)).astype("uint16")):
    tifffile.imwrite(f"deep/{number}.tif", image, photometric="minisblack", planarconfig="contig")
"""
SERVED = """
import json, subprocess, sys, time, urllib.request
server = subprocess.Popen([sys.argv[1], "serve", sys.argv[2], "--port", sys.argv[3]])
try:
    for attempt in range(240):
        assert server.poll() is None, "it ended"
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{sys.argv[3]}/v2/health/ready") as answer:
                sys.exit(answer.status != 200)
        except OSError:
            time.sleep(0.5)
    sys.exit("it does not answer")
finally:
    server.terminate()
    server.wait(60)
"""


class Installed:
    """An environment with one extra, and a folder with photos and a run to work in."""

    def __init__(self, commands, place):
        self.commands, self.place = commands, place

    def negvae(self, *arguments, **environment):
        return done(self.commands / "negvae", *arguments, cwd=self.place, more=environment)

    def python(self, code, *arguments):
        return done(self.commands / "python", "-c", code, *arguments, cwd=self.place)


def free_port():
    import socket

    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return str(one.getsockname()[1])


def heif(here):
    here.python(HEIF)
    here.negvae("score", "run", "photo.heic", "--out", "one.csv")
    assert "not installed" not in (here.place / "one.csv").read_text()


def hub(here):
    """A set that lies in the Hub's cache already, since no test asks the Hub itself."""
    kept = here.place / "hub" / "datasets--owner--blobs"
    revision = "a" * 40
    (kept / "refs").mkdir(parents=True)
    (kept / "refs" / "main").write_text(revision)
    (kept / "snapshots").mkdir()
    (here.place / "photos").rename(kept / "snapshots" / revision)
    offline = {"HF_HUB_CACHE": str(here.place / "hub"), "HF_HUB_OFFLINE": "1"}
    here.negvae("train", "--data", "hf:owner/blobs", *SHORT, "--out", "of-hub", **offline)


def track(name, **environment):
    def use(here):
        here.negvae("train", "--data", "photos", *SHORT, "--out", "tracked", "--track", name, **environment)

    return use


def onnx(here):
    here.negvae("export", "run", "--out", "run.onnx")
    assert (here.place / "run.onnx").stat().st_size > 10_000


def ray(here):
    here.negvae("score", "run", "photos", "--cluster", "local", "--out", "parts/")
    assert list((here.place / "parts").glob("part-*.parquet"))


def serve(here):
    here.python(SERVED, here.commands / "negvae", "run", free_port())


def serve_onnx(here):
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    code = "from negvae.cli import main; main()"
    command = [sys.executable, "-c", code, "export", "run", "--out", "run.onnx"]
    subprocess.run(command, cwd=here.place, env=environment, check=True, timeout=600)
    here.python(SERVED, here.commands / "negvae", "run.onnx", free_port())


def tiff(here):
    here.python(TIFF)
    here.negvae("train", "--data", "deep", *SHORT, "--out", "of-tiff")
    here.negvae("score", "of-tiff", "deep", "--out", "tiff.csv")


def watch(here):
    here.negvae("watch", "run", "photos", "--once", "--settle", "0", "--fdr", "0.1", "--out", "watched")
    assert (here.place / "watched" / "rows.jsonl").read_text().count("\n") == 60


USES = {
    "heif": heif, "hub": hub,
    "mlflow": track("mlflow", MLFLOW_TRACKING_URI="file:./mlruns", MLFLOW_ALLOW_FILE_STORE="1"),
    "onnx": onnx, "pyod": lambda here: here.python(PYOD), "pytorch-ood": lambda here: here.python(PYTORCH_OOD),
    "ray": ray, "serve": serve, "serve-onnx": serve_onnx, "tensorboard": track("tensorboard"),
    "wandb": track("wandb", WANDB_MODE="offline"), "tiff": tiff, "watch": watch,
}  # fmt: skip
NO_BUILD = "torchvision, which it requires, has no build for the torch of constraints.txt: EXTRAS=pytorch-ood tries it"
ASKED = [name for name in os.environ.get("NEGVAE_EXTRAS", "").split(",") if name]
CHOSEN = ASKED or [
    pytest.param(name, marks=pytest.mark.skip(NO_BUILD)) if name == "pytorch-ood" else name for name in USES
]


def test_every_extra_has_a_use():
    assert USES.keys() == PROJECT["optional-dependencies"].keys()


def environment(place):
    """The folders with the commands and with the packages of a new environment."""
    done(sys.executable, "-m", "venv", "--without-pip", place / "venv", cwd=place)
    commands = place / "venv" / ("Scripts" if os.name == "nt" else "bin")
    where = "import sysconfig; print(sysconfig.get_path('purelib'))"
    return commands, Path(done(commands / "python", "-c", where, cwd=place).strip())


def install(commands, wanted, cwd):
    pip = (sys.executable, "-m", "pip", "--python", commands / "python", "install", "--quiet")
    done(*pip, "--constraint", ROOT / "constraints.txt", wanted, cwd=cwd)


@pytest.fixture(scope="module")
def clone(wheel, tmp_path_factory):  # noqa: F811
    """What makes an environment with an extra alone, which shares the files of what the core requires by hard links."""
    place = tmp_path_factory.mktemp("core")
    commands, core = environment(place)
    install(commands, wheel, place)

    def of(extra, place):
        commands, packages = environment(place)
        of_core = shutil.ignore_patterns("negvae*")  # negvae anew, since its scripts name a python
        shutil.copytree(core, packages, copy_function=os.link, dirs_exist_ok=True, ignore=of_core)
        install(commands, f"negvae[{extra}] @ {Path(wheel).as_uri()}", place)
        assert {path.name for path in packages.glob("*.dist-info")} > {path.name for path in core.glob("*.dist-info")}
        return commands

    return of


@pytest.mark.parametrize("extra", CHOSEN)
def test_an_extra_alone(clone, extra, tmp_path):
    began = time.monotonic()
    commands = clone(extra, tmp_path)
    installed = time.monotonic() - began
    here = Installed(commands, tmp_path)
    (tmp_path / "photos").mkdir()
    for number, image in enumerate(blobs(60, (1, 28, 28))):
        Image.fromarray(np.asarray(image[0])).save(tmp_path / "photos" / f"{number:02d}.png")
    here.negvae("train", "--data", "photos", *SHORT, "--out", "run")
    here.negvae("score", "run", "photos", "--out", "scores.csv")
    here.negvae("evaluate", "run", "--ood", "uniform-noise", "--limit", "60")
    here.negvae("report", "run", "photos", "--out", "report.html")
    USES[extra](here)
    print(f"{extra}: {installed:.0f} s to install, {time.monotonic() - began:.0f} s in all")
    shutil.rmtree(tmp_path / "venv")
