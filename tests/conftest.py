"""Small data and models that every test may use; nothing here reads a file outside the test's own folder."""

import functools
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from negvae.checksums import CHECKSUM
from negvae.config import PRESETS, RunConfig, preset
from negvae.device import runs_bfloat16
from tests.shapes import check_shapes

check_shapes()

SHAPES = {
    "gray": (1, 28, 28),
    "gray-paper": (1, 28, 28),
    "color": (3, 32, 32),
    "color-authors": (3, 32, 32),
    "color-authors-affine": (3, 32, 32),
    "color-authors-spectral": (3, 32, 32),
    "color-authors-spectral-norm": (3, 32, 32),
    "pyramid": (3, 18, 25),
    "deep": (2, 20, 33),
    "residual": (2, 20, 33),
}


needs_bfloat16 = pytest.mark.skipif(
    not runs_bfloat16(torch.device("cpu")), reason="torch runs no convolution in bfloat16 on this processor"
)
PRECISIONS = ["float32", pytest.param("bfloat16", marks=needs_bfloat16)]


def blobs(count: int, shape: tuple[int, int, int], seed: int = 0) -> Tensor:
    """Smooth bright spots on black, uint8, count x C x H x W."""
    randomness = np.random.default_rng(seed)
    channels, height, width = shape
    y, x = np.mgrid[0:height, 0:width]
    images = np.zeros((count, *shape))
    for image in images:
        cy, cx = randomness.uniform(0.3, 0.7, 2) * (height, width)
        spot = np.exp(-((y - cy) ** 2 + (x - cx) ** 2) / (2 * randomness.uniform(2, 5) ** 2))
        image += spot * randomness.uniform(0.5, 1, (channels, 1, 1))
    return torch.from_numpy((images * 255).round().astype(np.uint8))


def small_run(network: object = "gray", **overrides: object) -> RunConfig:
    """A run of seconds."""
    values = {"epochs": 2, "batch_size": 8, "learning_rate": 1e-3, "precision": "float32", "device": "cpu"}
    base = network if isinstance(network, str) and network in PRESETS else "general"
    return preset(base, "blobs", **{"network": network, **values, **overrides})


def calibrated_run(place: Path) -> Path:
    """Train one epoch on 60 gray spots of 28x28 in a folder, hold out 40% of them, and return the run's folder."""
    from negvae.runs.train import run

    np.save(place / "in.npy", blobs(60, (1, 28, 28)).numpy())
    run(replace(small_run(epochs=1, calibration=0.4), data=str(place / "in.npy")), place / "run")
    return place / "run"


def spoil_generators(path: Path) -> None:
    """Give the random generators in a checkpoint states as short as those of a GPU."""
    with safe_open(path, "pt") as file:
        tensors, header = {name: file.get_tensor(name) for name in file.keys()}, file.metadata()  # noqa: SIM118
    short = {name: each[:16].clone() if name.startswith("generator.") else each for name, each in tensors.items()}
    save_file(short, path, {name: text for name, text in header.items() if name != CHECKSUM})


@pytest.fixture(autouse=True)
def _no_surroundings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep the user's data folders and cache out of every test."""
    monkeypatch.delenv("NEGVAE_DATA", raising=False)
    monkeypatch.setenv("NEGVAE_CACHE", str(tmp_path / "cache"))


@pytest.fixture(autouse=True, scope="session")
def _few_steps_of_heat_maps() -> Iterator[None]:
    """Train heat maps for a few steps, where a test trains on a folder and does not look at them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("negvae.training.patches.STEPS", 4)
        yield


@pytest.fixture(autouse=True)
def _operators_once() -> None:
    """Let torch's exporter gather its table of operators once; it does so for every file, in a second or two."""
    registration = sys.modules.get("torch.onnx._internal.exporter._registration")
    gather = registration and vars(registration.ONNXRegistry)["from_torchlib"]
    if isinstance(gather, classmethod):
        once = functools.cache(functools.partial(gather.__func__, registration.ONNXRegistry))
        registration.ONNXRegistry.from_torchlib = staticmethod(once)


@pytest.fixture
def blob_files(tmp_path: Path) -> dict[str, Path]:
    """Three .npy files: inliers, another set of the same shape, one of another shape."""
    files = {}
    for seed, (name, shape) in enumerate({"in": (1, 28, 28), "out": (1, 28, 28), "other": (1, 20, 20)}.items()):
        images = blobs(60, shape, seed)
        files[name] = tmp_path / f"{name}.npy"
        np.save(files[name], (images if name != "out" else 255 - images).numpy())
    return files
