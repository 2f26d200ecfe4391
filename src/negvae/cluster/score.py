"""`negvae score` on many machines: actors score shards of the stream and write one file for each.

Ray Data is not used: a block that was handed to an actor of a lost node waits until the actor has a new place, so a job
hangs if there is none (measured with Ray 2.60), and its files are not named by their content. Here a shard belongs to
an actor only while the actor works on it. A part file appears whole, under a name that depends on its shard alone, and
scoring a shard twice gives the same part file: nothing is lost, and nothing is counted twice.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch

from negvae.cluster.connect import enter, joined, lost_errors, surroundings, versions, worker_capacity
from negvae.data import stores
from negvae.data.streams import Span, read, shards, spans
from negvae.runs.provenance import source_commit
from negvae.runs.score import NOTHING, Scoring, Summary, count_rows, open_scoring

MANIFEST = "_manifest.json"
"""The settings and the outcome; readers of folders of Parquet files skip names that begin with an underscore."""
SHARD_ROWS = 10_000
KEY = b"negvae.shard"
STORE_THREADS = 16
"""The number of threads that read and decode images from a store: they mostly wait for it."""
LOSSES = 3
"""The number of lost workers at which a shard, and with it the command, is given up."""


@dataclass(frozen=True)
class Part:
    """The file of one shard.

    Attributes:
        file: name of the file in the folder.
        shard: SHA-256 of the shard's files and rows.
        rows: number of rows in all.
        errors: number of rows that could not be scored.
        outliers: number of rows that are called outliers.
    """

    file: str
    shard: str
    rows: int
    errors: int
    outliers: int


def score_on_cluster(
    directory: Path,
    inputs: Sequence[str],
    out: str,
    *,
    address: str = "auto",
    resume: bool = False,
    shard_rows: int = SHARD_ROWS,
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
    keywords are `names`, `target_fpr`, `confidence`, `groups`, `resize`, `max_pixels`, `ensemble` and `precision` of
    `score_files`.

    Args:
        directory: folder of a trained model, which all nodes see.
        inputs: files, folders and URIs to score, which all nodes see; see `negvae.data.streams.stream`.
        out: folder to write to, new or empty unless `resume`; a path that all nodes see, or a URI.
        address: address of the cluster; see `negvae.cluster.connect.joined`.
        resume: whether to keep the parts that exist and to make the others only.
        shard_rows: largest number of rows in a part, where a file can be cut; `resume` requires the same number.
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
    for name, value, least in (("shard rows", shard_rows, 1), ("cpus", cpus, 0.01), ("gpus", gpus, 0)):
        if value < least:
            raise ValueError(f"{name} is {value:g}: it must be at least {least:g}")
    scoring = open_scoring(directory, batch_size=batch_size, device="cpu", log=log, **options)
    precision = "int8" if scoring.scorer.quantized is not None else scoring.scorer.precision
    options = {**options, "names": scoring.names, "precision": precision, "batch_size": batch_size}
    options["device"] = "cuda" if gpus else "cpu"
    settings = _settings(directory, inputs, scoring, shard_rows, options)
    folder = out.rstrip("/")
    files = spans(inputs)
    needed = [str(directory), *(text for text in inputs if os.path.exists(text))]
    if not stores.is_uri(folder):
        needed.append(folder)
    started = time.monotonic()
    parts: list[Part] = []
    done: dict[str, Part] = {}
    todo = _to_do(shards(files, scoring.wanted, shard_rows), folder, done, parts)
    with joined(address) as ray:
        done |= _open_folder(folder, settings, resume)
        arguments = (surroundings(), needed, str(directory), folder, options, max(int(cpus), 1))
        rows = 0
        for part in _scored(ray, todo, arguments, cpus, gpus, log):
            parts.append(part)
            rows += part.rows
            on_rows(rows)
    if done:
        raise ValueError(f"{folder}/{min(done)} belongs to no input: inputs have been removed; take another --out")
    parts.sort(key=lambda part: part.file)
    summary = Summary(
        sum(part.rows for part in parts),
        sum(part.errors for part in parts),
        sum(part.outliers for part in parts) if scoring.calibration is not None else None,
        time.monotonic() - started,
    )
    if not summary.rows:
        raise ValueError(f"{', '.join(inputs)}: {NOTHING}")
    _write_manifest(folder, settings, "complete", {**vars(summary), "parts": [vars(part) for part in parts]})
    return summary


def _settings(
    directory: Path, inputs: Sequence[str], scoring: Scoring, shard_rows: int, options: dict[str, Any]
) -> dict[str, Any]:
    """Return the settings that decide which rows come out."""
    models = {}
    for place in (directory, *options.get("ensemble", ())):
        for name in ("weights.safetensors", "calibration.safetensors"):
            if (path := Path(place) / name).is_file():
                models[str(path)] = hashlib.sha256(path.read_bytes()).hexdigest()
    wanted = {name: getattr(scoring.wanted, name) for name in ("resize", "max_pixels")}
    return {
        "inputs": list(inputs), "models": models, "scores": list(scoring.names),
        "target_fpr": options.get("target_fpr"), "confidence": options.get("confidence"),
        "groups": options.get("groups"), **wanted, "precision": options["precision"], "shard_rows": shard_rows,
    }  # fmt: skip


def _digest(shard: tuple[Span, ...]) -> str:
    """Return the SHA-256 of a shard's files and rows."""
    described = json.dumps([[span.path, span.start, span.stop] for span in shard])
    return hashlib.sha256(described.encode("utf-8", "surrogateescape")).hexdigest()


# --- the folder -----


def _open_folder(folder: str, settings: dict[str, Any], resume: bool) -> dict[str, Part]:
    """Start a folder of parts, or return the parts that it has, by file."""
    if stores.is_uri(folder):
        try:
            names = [uri.rsplit("/", 1)[1] for uri in stores.below(folder)]
        except FileNotFoundError:
            names = []
    else:
        if Path(folder).exists() and not Path(folder).is_dir():
            raise ValueError(f"--out {folder} is a file: with --cluster it is a folder, of one file for each shard")
        names = os.listdir(folder) if os.path.isdir(folder) else []
    if not names:
        stores.make_folder(folder)
        _write_manifest(folder, settings, "begun", {})
        return {}
    if not resume:
        raise ValueError(
            f"--out {folder} is not empty: add --resume to go on with what is there, or take another folder"
        )
    if MANIFEST not in names:
        raise ValueError(f"--out {folder} has no {MANIFEST}: `negvae score --cluster` did not begin it")
    with stores.open_file(f"{folder}/{MANIFEST}", whole=True) as file:
        try:
            before = json.load(file)["settings"]
        except (ValueError, KeyError, TypeError):
            raise ValueError(f"{folder}/{MANIFEST}: damaged; take another --out") from None
    for name, value in json.loads(json.dumps(settings)).items():
        if before.get(name) != value:
            raise ValueError(
                f"--out {folder} was begun with {name} {before.get(name)}, not {value}: take another --out"
            )
    return {name: _read_part(folder, name) for name in names if name.startswith("part-")}


def _read_part(folder: str, name: str) -> Part:
    try:
        with stores.open_file(f"{folder}/{name}") as file:
            return Part(**json.loads(pq.read_metadata(file).metadata[KEY]))
    except (pa.ArrowInvalid, KeyError, TypeError, ValueError) as error:
        reason = " ".join(str(error).split())[:160]
        raise ValueError(f"{folder}/{name}: not a part of `negvae score --cluster` ({reason}); remove it") from None


def _write_manifest(folder: str, settings: dict[str, Any], state: str, outcome: dict[str, Any]) -> None:
    content = {
        "state": state, "settings": settings, **outcome,
        "provenance": {**versions(), "commit": source_commit(), "node": platform.node()},
    }  # fmt: skip
    with stores.written(f"{folder}/{MANIFEST}") as path:
        path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


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
        except (ValueError, FileNotFoundError) as error:
            self.refusal = str(error)

    def ready(self) -> str:
        """Return the reason why this node cannot take part, or "" if it can."""
        return self.refusal

    def score(self, file: str, digest: str, shard: tuple[Span, ...]) -> Part:
        """Score a shard, write its file and return the part."""
        threads = STORE_THREADS if shard and stores.is_uri(shard[0].path) else self.threads
        batches = read(shard, self.scoring.wanted, batch_size=self.batch_size, threads=threads)
        tables = list(self.scoring.tables(batches)) or [self.scoring.no_rows()]
        part = Part(file, digest, *(sum(column) for column in zip(*map(count_rows, tables), strict=True)))
        table = pa.Table.from_batches(tables).replace_schema_metadata({KEY: json.dumps(vars(part))})
        with stores.written(f"{self.folder}/{file}") as path:
            pq.write_table(table, path)
        return part


def _to_do(
    all_shards: Iterable[tuple[Span, ...]], folder: str, done: dict[str, Part], parts: list[Part]
) -> Iterator[tuple[str, str, tuple[Span, ...]]]:
    """Yield the file, digest and content of each shard that is not done yet.

    Args:
        all_shards: files and rows of each shard, in order.
        folder: folder or URI of the parts.
        done: existing parts, by file; those that belong to a shard are removed from it.
        parts: list to which the removed parts are added.

    Raises:
        ValueError: if a part holds other images than its shard.
    """
    for number, shard in enumerate(all_shards):
        file, digest = f"part-{number:07d}.parquet", _digest(shard)
        if (part := done.pop(file, None)) is None:
            yield file, digest, shard
        elif part.shard != digest:
            raise ValueError(f"{folder}/{file} holds other images than the inputs now have there: take another --out")
        else:
            parts.append(part)


def _scored(
    ray: Any,
    todo: Iterator[tuple[str, str, tuple[Span, ...]]],
    arguments: tuple[Any, ...],
    cpus: float,
    gpus: float,
    log: Callable[[str], None],
) -> Iterator[Part]:
    """Yield parts as they are finished by as many actors as the cluster can hold, including nodes that join later."""
    new = ray.remote(num_cpus=cpus, num_gpus=gpus, max_restarts=0, max_task_retries=0)(Actor).remote
    again: deque[tuple[str, str, tuple[Span, ...]]] = deque()
    losses: dict[str, int] = {}
    working: dict[Any, tuple[Any, tuple[str, str, tuple[Span, ...]] | None]] = {}
    following = next(todo, None)
    looked, size = 0.0, 0
    try:
        while following is not None or again or any(job for _, job in working.values()):
            if time.monotonic() - looked > 5:
                looked, size = time.monotonic(), max(worker_capacity(ray, cpus, gpus), 1)
            while (following is not None or again) and len(working) < size:
                actor = new(*arguments)
                working[actor.ready.remote()] = (actor, None)
            for ref in ray.wait(list(working), num_returns=1, timeout=5)[0]:
                actor, job = working.pop(ref)
                try:
                    result = ray.get(ref)
                except lost_errors(ray) as error:
                    ray.kill(actor)
                    if job is not None:
                        losses[job[0]] = losses.get(job[0], 0) + 1
                        if losses[job[0]] == LOSSES:
                            reason = " ".join(str(error).split())[:300]
                            raise ValueError(
                                f"{job[0]}: {LOSSES} workers were lost at it, the last: {reason}"
                            ) from None
                        log(f"a worker was lost at {job[0]}: another one takes it")
                        again.append(job)
                    continue
                except ray.exceptions.RayTaskError as error:
                    raise ValueError(f"{job[0] if job else 'a worker'} failed: {error.cause!r}") from None
                if job is None and result:
                    raise ValueError(result)
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
