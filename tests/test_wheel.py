"""The wheel, installed without extras in an environment of its own, does what the README says (`make test-wheel`)."""

import json
import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from PIL import Image

from tests.conftest import blobs

pytestmark = pytest.mark.wheel
ROOT = Path(__file__).parents[1]
EXTRAS = ("onnx", "onnxruntime", "onnxscript", "pyod", "pytorch_ood", "ray", "huggingface_hub", "pytest")


def done(*command, cwd, more=None, **options):
    """What a command prints, in an environment with `more` variables; its errors are part of what fails."""
    quiet = {**os.environ, "OMP_NUM_THREADS": "1", "PIP_DISABLE_PIP_VERSION_CHECK": "1", **(more or {})}
    quiet.pop("PYTHONPATH", None)
    result = subprocess.run(
        [str(part) for part in command], cwd=cwd, env=quiet, capture_output=True, text=True, check=False, **options
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    place = tmp_path_factory.mktemp("wheel")
    done(sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", place, ROOT, cwd=place)
    (path,) = place.glob("negvae-*.whl")
    return path


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    """The folder with the commands of an environment that holds the wheel and what it requires, and nothing else."""
    place = tmp_path_factory.mktemp("environment")
    done(sys.executable, "-m", "venv", place / "venv", cwd=place)
    commands = place / "venv" / ("Scripts" if os.name == "nt" else "bin")
    constraints = ROOT / "constraints.txt"
    done(commands / "python", "-m", "pip", "install", "--quiet", "--constraint", constraints, wheel, cwd=place)
    return commands


def test_every_module_and_template_is_in_it(wheel):
    inside = set(zipfile.ZipFile(wheel).namelist())
    modules = {path.relative_to(ROOT / "src").as_posix() for path in (ROOT / "src" / "negvae").rglob("*.py")}
    templates = [ROOT / "src" / "negvae" / package / "templates" for package in ("report", "service")]
    files = {path.relative_to(ROOT / "src").as_posix() for folder in templates for path in folder.iterdir()}
    assert files
    assert modules | files | {"negvae/py.typed"} <= inside
    assert not [name for name in inside if name.startswith(("tests/", "benchmarks/"))]


@pytest.mark.timeout(600)
def test_without_extras_it_trains_scores_evaluates_and_reports(installed, tmp_path):
    probe = "import importlib.util as u, sys; print([n for n in sys.argv[1:] if u.find_spec(n)])"
    assert done(installed / "python", "-c", probe, *EXTRAS, cwd=tmp_path).strip() == "[]"
    folder = tmp_path / "photos"
    folder.mkdir()
    for number, image in enumerate(blobs(60, (1, 28, 28))):
        Image.fromarray(image[0].numpy()).save(folder / f"{number:02d}.png")
    negvae = installed / "negvae"
    assert re.search(r"\d", done(negvae, "--version", cwd=tmp_path))
    done(negvae, "train", "--data", folder, "--epochs", "2", "--batch-size", "16", "--out", "run", cwd=tmp_path)
    done(negvae, "score", "run", folder, "--out", "scores.jsonl", cwd=tmp_path)
    rows = [json.loads(line) for line in (tmp_path / "scores.jsonl").read_text().splitlines()]
    assert len(rows) == 60
    assert all(0 < row["p_value"] <= 1 for row in rows)
    done(negvae, "evaluate", "run", "--ood", "uniform-noise", "--limit", "60", cwd=tmp_path)
    done(negvae, "report", "run", folder, "--out", "report.html", cwd=tmp_path)
    assert "<svg" in (tmp_path / "report.html").read_text()
    refused = subprocess.run(
        [str(installed / "negvae"), "export", "run", "--out", "run.onnx"], cwd=tmp_path, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    assert refused.returncode == 2
    assert refused.stderr.count("\n") == 1
    assert "negvae[onnx]" in refused.stderr
