"""A Ray cluster of several nodes on this machine: a head without cores, and two nodes with one core each."""

import warnings
from pathlib import Path

import numpy as np
import pytest
import torch

from negvae.runs.train import run
from tests.conftest import blobs, small_run

MEMORY = 80 * 2**20
QUICK_TO_NOTICE = {  # that a node has died
    "RAY_health_check_initial_delay_ms": "2000",
    "RAY_health_check_period_ms": "2000",
    "RAY_health_check_failure_threshold": "5",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_worker_niceness": "0",  # by default workers yield to everything else on a busy machine
    "OMP_NUM_THREADS": "1",
}


class Nodes:
    """The cluster; nodes can be killed and added."""

    def __init__(self):
        from ray.cluster_utils import Cluster

        self.cluster = Cluster(
            initialize_head=True,
            head_node_args={"num_cpus": 0, "object_store_memory": MEMORY, "include_dashboard": False},
        )
        self.address, self.alive = self.cluster.address, []
        self.fill()

    def fill(self, count=2):
        """As many nodes as that."""
        while len(self.alive) < count:
            self.alive.append(self.cluster.add_node(num_cpus=1, object_store_memory=MEMORY))

    def kill(self):
        """End one as a power cut would."""
        self.cluster.remove_node(self.alive.pop(), allow_graceful=False)


@pytest.fixture(scope="session")
def nodes():
    pytest.importorskip("ray")
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name, value in QUICK_TO_NOTICE.items():
            patch.setenv(name, value)
        found = Nodes()
        try:
            yield found
        finally:
            found.cluster.shutdown()


@pytest.fixture(autouse=True)
def _threads():
    """One thread here too: sums of floats depend on their number."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def model(tmp_path_factory) -> Path:
    """A calibrated run."""
    place = tmp_path_factory.mktemp("model")
    np.save(place / "in.npy", blobs(120, (1, 28, 28)).numpy())
    config = small_run("gray", initialization="he", calibration=0.25, epochs=1, negatives="augmented")
    run(type(config).from_dict({**config.to_dict(), "data": str(place / "in.npy")}), place / "run")
    return place / "run"
