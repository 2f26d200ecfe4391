"""A service in a thread of the test's process, with small models of every kind."""

import threading
import time
from contextlib import contextmanager
from types import SimpleNamespace

import numpy as np
import pytest

pytest.importorskip("fastapi")
import uvicorn
from benchmarks.serve import Running

from negvae.config import preset
from negvae.decoding import Decoding
from negvae.detector import NegVAEDetector
from negvae.runs.export import export_onnx
from negvae.runs.train import run
from negvae.service.app import Service
from negvae.service.run import configuration
from negvae.service.settings import ServiceSettings
from tests.conftest import blobs
from tests.runs.test_folders import FAST, photos

SHAPE = (1, 28, 28)


@pytest.fixture(scope="package")
def models(tmp_path_factory):
    """Paths of a run of gray images, one of rows, one of rows in two groups that lie apart, and the exports of all."""
    place = tmp_path_factory.mktemp("models")
    options = {"epochs": 1, "batch_size": 16, "device": "cpu"}
    NegVAEDetector(target_fpr=0.2, preset="gray", decision_score="combined", **options).fit(
        blobs(96, SHAPE).numpy()
    ).save(place / "gray")
    rows = np.random.default_rng(0).normal(5, [1, 20, 3, 0.1], (200, 4))
    NegVAEDetector(**options).fit(rows).save(place / "rows")
    apart = np.concatenate([rows, rows[:, ::-1] + 3])
    NegVAEDetector(target_fpr=0.1, confidence=0.9, **options).fit(apart, groups=["a b"] * 200 + ["c"] * 200).save(
        place / "grouped"
    )
    for name in ("gray", "rows", "grouped"):
        export_onnx(place / name, place / f"{name}.onnx")
    paths = {name: place / name for name in ("gray", "rows", "grouped")}
    return paths | {f"{name}-onnx": place / f"{name}.onnx" for name in paths}


@pytest.fixture(scope="package")
def tiled(tmp_path_factory):
    """A folder with photos, `in`, and a run, `run`, that cuts them into tiles without reducing any."""
    place = tmp_path_factory.mktemp("tiled")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NEGVAE_CACHE", str(place / "cache"))
        photos(place / "in", 24)
        whole = Decoding(fit="tile", height=16, width=16, channels=3)
        run(preset("unsupervised", str(place / "in"), images=whole, **FAST), place / "run", heatmaps=False)
    return place


@contextmanager
def served(paths, **settings):
    """Run a service until the block ends."""
    service = Service.of(ServiceSettings(**settings), paths)
    server = uvicorn.Server(configuration(service))
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        while not server.started:
            assert thread.is_alive()
            time.sleep(0.01)
        port = server.servers[0].sockets[0].getsockname()[1]
        running = Running(port, SimpleNamespace(poll=lambda: None), next(iter(paths), ""), SHAPE)
        running.guard = server.config.app
        running.service, running.stop = service, lambda: setattr(server, "should_exit", True)
        yield running
    finally:
        server.should_exit = True
        thread.join(60)
    assert not thread.is_alive()


@pytest.fixture(scope="package")
def live(models):
    with served(models, max_batch=64, max_body=2_000_000) as running:
        yield running
