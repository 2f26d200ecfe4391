"""The exported file outside this library: in C++, in Node.js, in Triton's repository, and the file for a container."""

import importlib.util
import os
import re
import shutil
import subprocess
import tomllib
from pathlib import Path

import numpy as np
import pytest

from negvae.runs.export import run_onnx
from negvae.runs.triton import export_triton
from tests.conftest import blobs
from tests.service.conftest import SHAPE
from tests.service.test_page import NODE

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """Images that are typical and images that are not, and a file of their pixels."""
    images = np.concatenate([blobs(3, SHAPE, 9).numpy(), 255 - blobs(3, SHAPE, 8).numpy()])
    path = tmp_path_factory.mktemp("pixels") / "images.bin"
    path.write_bytes(images.tobytes())
    return images, path


def check(lines, model, images):
    score, p_value, called = run_onnx(model, images)
    rows = [line.split() for line in lines.splitlines()]
    np.testing.assert_allclose([float(row[1]) for row in rows], score, rtol=1e-3)
    np.testing.assert_allclose([float(row[2]) for row in rows], p_value, atol=0.06)
    assert [row[3] == "outlier" for row in rows] == called.tolist()
    assert {row[3] for row in rows} == {"outlier", "inlier"}


def test_node_gives_the_same_answer(models, images):
    if shutil.which("node") is None or not (NODE / "onnxruntime-node").exists():
        pytest.skip("node or onnxruntime-node is not installed")
    command = ["node", ROOT / "examples" / "score.js", models["gray-onnx"], images[1], "6", *map(str, SHAPE)]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, env={**os.environ, "NODE_PATH": str(NODE)}
    )
    assert done.returncode == 0, done.stderr
    check(done.stdout, models["gray-onnx"], images[0])


def test_c_plus_plus_gives_the_same_answer(models, images, tmp_path):
    headers = os.environ.get("ONNXRUNTIME_INCLUDE")
    if headers is None or shutil.which("g++") is None:
        pytest.skip("ONNXRUNTIME_INCLUDE names no folder of onnxruntime's headers, or g++ is missing")
    found = importlib.util.find_spec("onnxruntime").submodule_search_locations[0]
    (library,) = Path(found, "capi").glob("libonnxruntime.so.1*")
    (tmp_path / "libonnxruntime.so.1").symlink_to(library)
    (tmp_path / "libonnxruntime.so").symlink_to(library)
    command = ["g++", "-std=c++17", ROOT / "examples" / "score.cpp", "-I", headers, "-L", tmp_path, "-lonnxruntime"]
    subprocess.run([*command, f"-Wl,-rpath,{tmp_path}", "-o", tmp_path / "score"], check=True)
    done = subprocess.run(
        [tmp_path / "score", models["gray-onnx"], images[1], "6", *map(str, SHAPE)], capture_output=True, text=True,
        check=True,
    )  # fmt: skip
    check(done.stdout, models["gray-onnx"], images[0])


@pytest.mark.parametrize("name", ["gray", "rows"])
def test_triton_reads_its_description(models, name, tmp_path):
    written = export_triton(models[name], tmp_path / "repository")
    place = tmp_path / "repository" / name
    assert written.path == place / "1" / "model.onnx"
    assert sorted(str(path.relative_to(place)) for path in place.rglob("*")) == ["1", "1/model.onnx", "config.pbtxt"]
    client = importlib.util.find_spec("tritonclient")
    if client is None:
        pytest.skip("tritonclient is not installed")
    from google.protobuf import text_format

    path = Path(client.submodule_search_locations[0]) / "grpc" / "model_config_pb2.py"
    spec = importlib.util.spec_from_file_location("model_config_pb2", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    config = text_format.Parse((place / "config.pbtxt").read_text(), module.ModelConfig())
    assert (config.name, config.backend, config.max_batch_size) == (name, "onnxruntime", 256)
    assert [list(each.dims) for each in config.input] == [[4] if name == "rows" else [1, 28, 28]]
    assert [each.name for each in config.output] == ["score", "p_value", "is_outlier"]
    assert all(list(each.dims) == [1] and each.HasField("reshape") for each in config.output)


def test_the_container_runs_as_nobody_and_passes_the_lint():
    text = (ROOT / "Containerfile").read_text(encoding="utf-8")
    stages = re.split(r"(?m)^FROM .* AS (\w+)$", text)
    for name, stage in zip(stages[3::2], stages[4::2], strict=True):
        assert "USER 10001" in stage, name
        assert "HEALTHCHECK" in stage, name
        assert stage.index("USER") > stage.rindex("RUN"), name
    for source in re.findall(r"(?m)^COPY (.*) \S+$", text):
        assert all((ROOT / each).exists() for each in source.split()), source
    if shutil.which("node") is None or not (NODE / "dockerfile-utils").exists():
        pytest.skip("node or dockerfile-utils is not installed")
    script = "console.log(JSON.stringify(require('dockerfile-utils').validate(require('fs').readFileSync(0, 'utf8'))))"
    done = subprocess.run(
        ["node", "-e", script], input=text, capture_output=True, text=True, check=True,
        env={**os.environ, "NODE_PATH": str(NODE)},
    )  # fmt: skip
    assert done.stdout.strip() == "[]"


def test_what_the_service_needs_without_torch_is_listed_once():
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    names = {
        re.split(r"[>=<;\[ ]", line)[0].lower()
        for line in (ROOT / "serve-onnx.txt").read_text().splitlines()
        if line[:1].isalpha()
    }
    core = {re.split(r"[>=<;\[ ]", each)[0] for each in extras["dependencies"]}
    serve = {re.split(r"[>=<;\[ ]", each)[0] for each in extras["optional-dependencies"]["serve"]}
    assert serve | {"onnxruntime"} <= names
    assert names <= core | serve | {"onnxruntime"}
    assert "torch" not in names
