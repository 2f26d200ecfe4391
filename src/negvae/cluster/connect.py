"""Connections to a Ray cluster, and messages between its workers and the command that waits for them."""

from __future__ import annotations

import logging
import os
import platform
import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from negvae.files import need
from negvae.messages import with_type
from negvae.registry import place_in_plugin
from negvae.runs.provenance import versions

SECONDS_TO_ANSWER = 5.0


@contextmanager
def joined(address: str = "auto") -> Iterator[Any]:
    """Connect to a Ray cluster for the length of the block.

    Args:
        address: "auto" for the Ray that runs on this machine (or that RAY_ADDRESS names), or else a new one on all of
            its cores, which ends with the block; "local" for a new one in any case; or HOST:PORT of a cluster that this
            machine is a node of. A connection that this process already has is used as it is.

    Yields:
        The module `ray`.

    Raises:
        ImportError: if Ray is not installed.
        ValueError: if nothing answers at the address, or if the cluster cannot be joined, because its version differs
            or this machine is not a node of it.
    """
    address = os.environ.get("RAY_ADDRESS", address) if address == "auto" else address
    # No figures are sent to anyone, and workers see the GPUs of their node also where they asked for none.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    ray = need("ray", "ray")
    if ray.is_initialized():
        yield ray
        return
    quiet = {"logging_level": logging.ERROR, "log_to_driver": False}
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
    except Exception as error:  # Ray raises plain Exception where a new cluster takes too long to start
        raise ValueError(
            f"--cluster {address}: cannot be joined ({' '.join(str(error).split())[:300]}){_hint(address)}"
        ) from None
    try:
        yield ray
    finally:
        ray.shutdown()


def _hint(address: str) -> str:
    """Say what to set if `ray start` found a token here: its cluster then demands one."""
    if address in ("auto", "local") or "RAY_AUTH_MODE" in os.environ:
        return ""
    known = "RAY_AUTH_TOKEN" in os.environ or "RAY_AUTH_TOKEN_PATH" in os.environ
    found = known or (Path.home() / ".ray" / "auth_token").is_file()
    return "; if `ray start` said that token authentication is enabled, set RAY_AUTH_MODE=token" if found else ""


def _knock(address: str) -> None:
    """Check that something answers at HOST:PORT, because Ray itself tries for minutes."""
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
    """Refuse to work on a node whose versions differ from the command's.

    Args:
        wanted: versions of the command, as `versions` returns them.

    Raises:
        ValueError: if any version differs; the message lists those that do.

    >>> refuse_other_versions(versions())
    """
    here = versions()
    if here != wanted:
        differing = [n for n in {**wanted, **here} if wanted.get(n) != here.get(n)]
        differences = "; ".join(
            f"{n} {here.get(n, 'missing')}, the command has {wanted.get(n, 'none')}" for n in differing
        )
        raise ValueError(f"node {platform.node()} has other versions: {differences}; install the same on all nodes")


def surroundings() -> dict[str, Any]:
    """Return the command's working folder, its variables that say where data is, and its versions, for `enter`."""
    names = ("NEGVAE_DATA", "NEGVAE_CACHE", "NEGVAE_DEBUG")
    environment = {name: os.environ[name] for name in names if name in os.environ}
    return {"folder": os.getcwd(), "environment": environment, "versions": versions()}


def enter(command: dict[str, Any], *, needed: Sequence[str] = ()) -> None:
    """Give a worker the working folder and variables of the command, so that paths and data-set names mean the same.

    Args:
        command: what `surroundings` returned in the command.
        needed: paths, absolute or relative, that the node must see.

    Raises:
        FileNotFoundError: if the node does not see one of the paths.
        ValueError: if this node has other versions than the command.
    """
    refuse_other_versions(command["versions"])
    os.environ.update(command["environment"])
    with suppress(OSError):
        os.chdir(command["folder"])
    for path in needed:
        if not os.path.exists(path):
            raise FileNotFoundError(f"node {platform.node()} has no {path}: put it where all nodes see it")


def explained(error: Exception) -> str:
    """Return what a worker tells the command about an error, with the place where it arose in a plugin's part, if any.

    >>> explained(ValueError("sigma is 0: it must be above 0"))
    'sigma is 0: it must be above 0'
    >>> explained(KeyError("pixels")).partition(": ")[2]
    "KeyError: 'pixels'"
    """
    place, text = place_in_plugin(error), str(error)
    if not isinstance(error, ValueError | TypeError | ImportError | OSError) or not text:
        text = with_type(error)
    if place:
        return f"{text} (in {place}, on node {platform.node()})"
    return text if isinstance(error, ValueError | OSError) else f"node {platform.node()}: {text}"


class Mailbox:
    """An actor on the command's machine that collects messages from workers and tells them when to stop.

    >>> mailbox = Mailbox()
    >>> mailbox.tell("step 1", "step 2")
    ''
    >>> mailbox.take(), mailbox.take()
    (['step 1', 'step 2'], [])
    >>> mailbox.stop("SIGINT")
    >>> mailbox.tell()
    'SIGINT'
    """

    def __init__(self) -> None:
        self._messages: list[Any] = []
        self._stop = ""

    def tell(self, *items: Any) -> str:
        """Leave messages, and return the reason to stop, or "" to go on."""
        self._messages += items
        return self._stop

    def take(self) -> list[Any]:
        """Return the messages that have arrived since the last call."""
        messages, self._messages = self._messages, []
        return messages

    def stop(self, reason: str) -> None:
        """Answer every later `tell` with this reason to stop."""
        self._stop = reason


def open_mailbox(ray: Any) -> Any:
    """Start a mailbox on this machine, where the loss of another node cannot affect it."""
    strategies = need("ray.util.scheduling_strategies", "ray")
    here = strategies.NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    return ray.remote(num_cpus=0)(Mailbox).options(scheduling_strategy=here).remote()


def worker_capacity(ray: Any, cpus: float, gpus: float) -> int:
    """Return the number of workers of this size that the living nodes have resources for."""
    count = 0
    for node in ray.nodes():
        if node["Alive"]:
            has = node["Resources"]
            shares = [has.get(kind, 0.0) // each for kind, each in (("CPU", cpus), ("GPU", gpus)) if each]
            count += int(min(shares)) if shares else 0
    return count


def lost_errors(ray: Any) -> tuple[type[Exception], ...]:
    """Return the exceptions that `ray.get` raises if a worker was lost, as opposed to an error in its work."""
    e = ray.exceptions
    return (e.RayActorError, e.WorkerCrashedError, e.NodeDiedError, e.OutOfMemoryError, e.ObjectLostError)
