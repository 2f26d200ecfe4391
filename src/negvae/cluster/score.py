"""`negvae score` on many machines: actors score shards of the stream and write one file for each.

Ray Data is not used: a block that was handed to an actor of a lost node waits until the actor has a new place, so a job
hangs if there is none (measured with Ray 2.60), and its files are not named by their content. Here a shard belongs to
an actor only while the actor works on it. A part file appears whole, under a name that depends on its shard alone, and
scoring a shard twice gives the same part file: nothing is lost, and nothing is counted twice.
"""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from negvae.cluster.connect import enter, explained, joined, lost_errors, surroundings, worker_capacity
from negvae.data import stores
from negvae.data.spans import Span
from negvae.runs.parts import Job, Part, Parts, score_part, settings
from negvae.runs.score import Summary, open_scoring

STORE_THREADS = 16
"""The number of threads that read and decode images from a store: they mostly wait for it."""
LOSSES = 3
"""The number of lost workers at which a shard, and with it the command, is given up."""


def score_on_cluster(
    directory: Path,
    inputs: Sequence[str],
    out: str,
    *,
    address: str = "auto",
    resume: bool = False,
    shard_rows: int | None = None,
    cpus: float = 1.0,
    gpus: float = 0.0,
    batch_size: int = 500,
    on_rows: Callable[[int], None] = lambda rows: None,
    log: Callable[[str], None] = lambda text: None,
    **options: Any,
) -> Summary:
    """Score every image of the inputs on all nodes of a Ray cluster, into a folder of Parquet files.

    The rows and columns are those of `negvae.runs.score.score_files`, in the same order if the parts are read in the
    order of their names, as readers of such folders do. `_manifest.json` holds the settings and the outcome. Further
    keywords are `names`, `target_fpr`, `confidence`, `groups`, `resize`, `max_pixels`, `ensemble`, `precision` and
    `embed` of `score_files`.

    Args:
        directory: folder of a trained model, which all nodes see.
        inputs: files, folders and URIs to score, which all nodes see; see `negvae.data.streams.stream`.
        out: folder to write to, new or empty unless `resume`; a path that all nodes see, or a URI.
        address: address of the cluster; see `negvae.cluster.connect.joined`.
        resume: whether to keep the parts that exist and to make the others only.
        shard_rows: largest number of rows in a part, where a file can be cut, which must be the same to resume; None
            for 10,000, or for that of the folder to resume.
        cpus: number of processor cores for each actor.
        gpus: number of GPUs for each actor, which may be a fraction.
        batch_size: number of images that are scored at once.
        on_rows: called with the number of rows that this command has done so far.
        log: called with each line that the user should see.

    Returns:
        The number of rows, errors and outliers, and the seconds taken.

    Raises:
        FileNotFoundError: if the model or an input does not exist, here or on a node.
        ImportError: if Ray is not installed.
        ValueError: if an option is refused, or `out` holds parts of other inputs or settings.
    """
    for name, value, least in (("cpus", cpus, 0.01), ("gpus", gpus, 0)):
        if value < least:
            raise ValueError(f"{name} is {value:g}: it must be at least {least:g}")
    scoring = open_scoring(directory, batch_size=batch_size, device="cpu", log=log, **options)
    parts = Parts(out.rstrip("/"), inputs, scoring, settings(directory, inputs, scoring, options), shard_rows)
    options = {
        **options, "names": scoring.names, "precision": parts.settings["precision"], "batch_size": batch_size,
        "device": "cuda" if gpus else "cpu",
    }  # fmt: skip
    needed = [str(directory), *(text for text in inputs if os.path.exists(text))]
    if not stores.is_uri(parts.folder):
        needed.append(parts.folder)
    started, rows = time.monotonic(), 0
    with joined(address) as ray:
        parts.open(resume)
        arguments = (surroundings(), needed, str(directory), parts.folder, options, max(int(cpus), 1))
        for part in _scored(ray, parts.todo(), arguments, cpus, gpus, log):
            parts.made.append(part)
            rows += part.rows
            on_rows(rows)
    return parts.finish(started, log)


# --- the work -----


class Actor:
    """A Ray actor that holds the model on a node and scores shards.

    Args:
        command: what `surroundings` returned in the command.
        needed: paths that the node must see.
        directory: folder of the model.
        folder: folder or URI that part files are written to.
        options: keyword arguments of `open_scoring`.
        threads: number of threads for torch, and for decoding images.
    """

    def __init__(
        self, command: dict[str, Any], needed: list[str], directory: str, folder: str,
        options: dict[str, Any], threads: int,
    ) -> None:  # fmt: skip
        self.folder, self.threads = folder, threads
        self.batch_size = int(options["batch_size"])
        self.refusal = ""
        torch.set_num_threads(threads)
        try:
            enter(command, needed=needed)
            self.scoring = open_scoring(Path(directory), **options)
        except Exception as error:  # whatever it is, another worker would meet it too
            self.refusal = explained(error)

    def ready(self) -> str:
        """Return the reason why this node cannot take part, or "" if it can."""
        return self.refusal

    def score(self, file: str, digest: str, shard: tuple[Span, ...]) -> Part:
        """Score a shard, write its file and return the part; errors are raised as `RuntimeError`s that say where."""
        threads = STORE_THREADS if shard and stores.is_uri(shard[0].path) else self.threads
        job = (file, digest, shard)
        try:
            return score_part(self.scoring, self.folder, job, batch_size=self.batch_size, threads=threads)
        except Exception as error:  # only here are its traceback and the plugins at hand
            raise RuntimeError(explained(error)) from None


def _room(ray: Any, cpus: float, gpus: float, before: int, log: Callable[[str], None]) -> int:
    """Return how many workers the cluster has room for, and say so where it has come to none."""
    room = worker_capacity(ray, cpus, gpus)
    if before and not room:
        log(f"no node has the {cpus:g} cores and {gpus:g} GPUs of a worker: waiting for one that does")
    return room


def _scored(
    ray: Any,
    todo: Iterator[Job],
    arguments: tuple[Any, ...],
    cpus: float,
    gpus: float,
    log: Callable[[str], None],
) -> Iterator[Part]:
    """Yield parts as they are finished by as many actors as the cluster can hold, including nodes that join later."""
    new = ray.remote(num_cpus=cpus, num_gpus=gpus, max_restarts=0, max_task_retries=0)(Actor).remote
    again: deque[Job] = deque()
    losses: dict[str, int] = {}
    working: dict[Any, tuple[Any, Job | None]] = {}
    following = next(todo, None)
    looked, room = 0.0, 1
    try:
        while following is not None or again or any(job for _, job in working.values()):
            if time.monotonic() - looked > 5:
                looked, room = time.monotonic(), _room(ray, cpus, gpus, room, log)
            # At least one, whose waiting makes a cluster grow that can.
            while (following is not None or again) and len(working) < max(room, 1):
                actor = new(*arguments)
                working[actor.ready.remote()] = (actor, None)
            for ref in ray.wait(list(working), num_returns=1, timeout=5)[0]:
                actor, job = working.pop(ref)
                try:
                    result = ray.get(ref)
                except lost_errors(ray) as error:
                    ray.kill(actor)
                    name = job[0] if job else ""
                    losses[name] = losses.get(name, 0) + 1
                    if losses[name] == LOSSES:
                        reason = " ".join(str(error).split())[:300]
                        what = (
                            f"{name}: {LOSSES} workers were lost at it"
                            if name
                            else (f"{LOSSES} workers were lost while they loaded the model")
                        )
                        raise ValueError(f"{what}, the last: {reason}") from None
                    log(f"a worker was lost {f'at {name}' if name else 'while loading the model'}: another one follows")
                    if job:
                        again.append(job)
                    continue
                except ray.exceptions.RayTaskError as error:
                    raise ValueError(f"{job[0] if job else 'a worker'} failed: {error.cause}") from None
                if job is None and result:
                    raise ValueError(result)
                losses.pop("", None)
                if job is not None:
                    yield result
                if again:
                    job = again.popleft()
                else:
                    job, following = following, next(todo, None) if following is not None else None
                if job is None:
                    ray.kill(actor)
                else:
                    working[actor.score.remote(*job)] = (actor, job)
    finally:
        for actor, _ in working.values():
            ray.kill(actor)
