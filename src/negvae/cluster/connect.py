"""Joining a Ray cluster, or starting one on this machine, and how workers talk to the command that waits for them."""

from __future__ import annotations

import logging
import os
import platform
import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

from negvae.files import need
from negvae.runs.provenance import versions

SECONDS_TO_ANSWER = 5.0


@contextmanager
def joined(address: str = "auto") -> Iterator[Any]:
    """Be connected to a Ray cluster.

    Args:
        address: "auto": the Ray that runs on this machine (or that RAY_ADDRESS names), else a new one on all its
            cores, which ends with the block; "local": always a new one; HOST:PORT of a cluster that this machine is
            part of. A connection that this process already has is used as it is.

    Yields:
        The module `ray`.

    Raises:
        ImportError: Ray is not installed.
        ValueError: nothing answers at the address, or it cannot be joined: another version, or not a node of it.
    """
    # No figures are sent to anyone, and workers see the GPUs of their node also where they asked for none.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    ray = need("ray", "ray")
    if ray.is_initialized():
        yield ray
        return
    quiet = {"logging_level": logging.ERROR, "log_to_driver": False}
    address = os.environ.get("RAY_ADDRESS", address) if address == "auto" else address
    try:
        if address == "auto":
            try:
                ray.init(address="auto", **quiet)
            except ConnectionError:
                address = "local"
        elif address != "local":
            _knock(address)
            ray.init(address=address, **quiet)
        if address == "local":
            ray.init(address="local", include_dashboard=False, **quiet)
    except (RuntimeError, ConnectionError, TimeoutError, OSError) as error:
        raise ValueError(f"--cluster {address}: cannot be joined ({' '.join(str(error).split())[:300]})") from None
    try:
        yield ray
    finally:
        ray.shutdown()


def _knock(address: str) -> None:
    """See whether anything answers at HOST:PORT, since Ray itself tries for minutes."""
    host, colon, port = address.rpartition(":")
    if address.startswith("ray://") or not colon or not port.isdigit():
        raise ValueError(
            f"--cluster {address}: give HOST:PORT of a Ray cluster that this machine is a node of, auto or local"
        )
    try:
        socket.create_connection((host.strip("[]"), int(port)), SECONDS_TO_ANSWER).close()
    except (OSError, OverflowError) as error:
        raise ValueError(f"--cluster {address}: nothing answers there ({error})") from None


def refuse_other_versions(wanted: dict[str, str]) -> None:
    """Refuse to work where versions differ from the command's.

    Raises:
        ValueError: they do.
    """
    here = versions()
    if here != wanted:
        differing = [n for n in {**wanted, **here} if wanted.get(n) != here.get(n)]
        told = "; ".join(f"{n} {here.get(n, 'missing')}, the command has {wanted.get(n, 'none')}" for n in differing)
        raise ValueError(f"node {platform.node()} has other versions: {told}; install the same on all nodes")


def surroundings() -> dict[str, Any]:
    """Where the command stands and where it looks for data, for `enter`."""
    names = ("NEGVAE_DATA", "NEGVAE_CACHE", "NEGVAE_DEBUG")
    environment = {name: os.environ[name] for name in names if name in os.environ}
    return {"folder": os.getcwd(), "environment": environment, "versions": versions()}


def enter(command: dict[str, Any], *, needed: Sequence[str] = ()) -> None:
    """Put a worker where the command is, so that relative paths and names of data sets mean the same.

    Args:
        command: its `surroundings`.
        needed: paths that must be there, relative ones included.

    Raises:
        FileNotFoundError: one of them is not.
        ValueError: this node has other versions than the command.
    """
    refuse_other_versions(command["versions"])
    os.environ.update(command["environment"])
    with suppress(OSError):
        os.chdir(command["folder"])
    for path in needed:
        if not os.path.exists(path):
            raise FileNotFoundError(f"node {platform.node()} has no {path}: put it where all nodes see it")


class Desk:
    """An actor on the command's machine: workers leave word there and hear whether they are to stop."""

    def __init__(self) -> None:
        self._told: list[Any] = []
        self._stop = ""

    def tell(self, *items: Any) -> str:
        """Leave word; the answer is the reason to stop, or ""."""
        self._told += items
        return self._stop

    def take(self) -> list[Any]:
        """What has been left since the last time."""
        told, self._told = self._told, []
        return told

    def stop(self, reason: str) -> None:
        """Tell everyone who asks from now on to stop."""
        self._stop = reason


def open_desk(ray: Any) -> Any:
    """Put a desk on this machine, where no other node's loss can reach it."""
    strategies = need("ray.util.scheduling_strategies", "ray")
    here = strategies.NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    return ray.remote(num_cpus=0)(Desk).options(scheduling_strategy=here).remote()


def room(ray: Any, cpus: float, gpus: float) -> int:
    """How many workers of that size all nodes together have room for."""
    count = 0
    for node in ray.nodes():
        if node["Alive"]:
            has = node["Resources"]
            shares = [has.get(kind, 0.0) // each for kind, each in (("CPU", cpus), ("GPU", gpus)) if each]
            count += int(min(shares)) if shares else 0
    return count


def lost_errors(ray: Any) -> tuple[type[Exception], ...]:
    """What `ray.get` raises where the worker, and not the work, has failed."""
    e = ray.exceptions
    return (e.RayActorError, e.WorkerCrashedError, e.NodeDiedError, e.OutOfMemoryError, e.ObjectLostError)
