"""Write scores to a folder of Parquet files, one per shard of the stream, which a later command can resume.

A shard depends only on the inputs; a part appears complete, under a name that depends only on its shard; and scoring a
shard twice gives the same part. `_manifest.json` records the settings and the outcome.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from negvae.checksums import file_sha256
from negvae.data import stores
from negvae.data.formats.folder import LeftOut
from negvae.data.shards import shards
from negvae.data.spans import Span, spans
from negvae.data.streams import read
from negvae.device import own_state
from negvae.files import from_json
from negvae.runs.provenance import versions
from negvae.runs.score import Scoring, Summary, count_rows, first_error, nothing_to_score, open_scoring
from negvae.version import source_commit

MANIFEST = "_manifest.json"
"""Name of the manifest; readers of folders of Parquet files skip names that begin with an underscore."""
SHARD_ROWS = 10_000
KEY = b"negvae.shard"
Job = tuple[str, str, tuple[Span, ...]]
"""A part to make: its file name, the SHA-256 of its shard, and the shard."""


@dataclass(frozen=True)
class Part:
    """The file of a scored shard.

    Attributes:
        file: name of the file in the folder.
        shard: SHA-256 that identifies the shard's files and rows.
        rows: number of rows.
        errors: number of rows that could not be scored.
        outliers: number of rows called outliers.
        first_error: the first error, with its path; empty if there is none.
    """

    file: str
    shard: str
    rows: int
    errors: int
    outliers: int
    first_error: str = ""  # parts of earlier versions have none


@dataclass
class Parts:
    """The parts of a job, both finished and still to be made.

    Attributes:
        folder: path or URI of the folder of the parts.
        inputs: files, folders, patterns or names of sets, as `negvae.data.streams.stream` takes them.
        scoring: model and options that score the parts.
        settings: settings that determine the rows; a folder that was begun with others is refused.
        shard_rows: maximum number of rows in a part, as far as files can be cut that small; None for that of the folder
            to resume, or else `SHARD_ROWS`.
        made: finished parts, in no particular order.
        left_out: files in the input folders that are neither images nor arrays.
    """

    folder: str
    inputs: Sequence[str]
    scoring: Scoring
    settings: dict[str, Any]
    shard_rows: int | None = None
    made: list[Part] = field(default_factory=list)
    left_out: LeftOut = field(default_factory=LeftOut)

    def __post_init__(self) -> None:
        """Look up the inputs before anything is written."""
        if self.shard_rows is not None and self.shard_rows < 1:
            raise ValueError(f"shard rows is {self.shard_rows}: it must be at least 1")
        if not self.folder:  # as from a variable of a shell that is not set: the files would go to the root
            raise ValueError("--out is empty or /: name a folder for the parts")
        without = [] if stores.is_uri(self.folder) else [self.folder]
        self._files = iter(spans(self.inputs, self.left_out, without, features=self.scoring.wanted.features))
        self._done: dict[str, Part] = {}
        self._earlier = 0

    def open(self, resume: bool) -> None:
        """Begin the folder, or find the parts that are already there.

        Args:
            resume: whether to continue with a folder that already holds parts.

        Raises:
            ValueError: if the inputs are empty, or the folder holds something else, or parts that were made with other
                settings.
        """
        if (first := next(self._files, None)) is None and not resume:
            raise ValueError(self._nothing())
        self._files = chain([] if first is None else [first], self._files)
        if self.shard_rows is None:
            begun = _begun_with(self.folder) if resume else {}
            self.shard_rows = begun.get("shard_rows", SHARD_ROWS)
        self.settings["shard_rows"] = self.shard_rows
        self._done = _open_folder(self.folder, self.settings, resume)

    def todo(self) -> Iterator[Job]:
        """Find the parts that are still to be made, and collect the finished ones in `made`.

        Yields:
            The next part to make.

        Raises:
            ValueError: if a part was made from other files or rows than its shard now has, or the first table lacks
                the column of groups.
        """
        assert self.shard_rows is not None  # since `open`
        for number, shard in enumerate(shards(self._files, self.scoring.wanted, self.shard_rows)):
            if self.scoring.label is not None:
                self.scoring.label.require_column(span.path for span in shard if not span.error)
            file, digest = f"part-{number:07d}.parquet", _digest(shard)
            if (part := self._done.pop(file, None)) is None:
                yield file, digest, shard
            elif part.shard != digest:
                raise ValueError(
                    f"{self.folder}/{file} holds other images than the inputs now have there: take another --out"
                )
            else:
                self.made.append(part)
                self._earlier += part.rows - part.errors

    def _nothing(self) -> str:
        return f"{', '.join(self.inputs)}: {nothing_to_score(self.scoring.wanted.features)}"

    def finish(self, started: float, log: Callable[[str], None]) -> Summary:
        """Write the manifest of a finished job, and name what the input folders hold besides images.

        Rows of unknown groups are named too, as far as this process has scored them.

        Args:
            started: time at which the job began, in seconds on the clock of `time.monotonic`.
            log: called with a line on the files that were left out, and one on rows of unknown groups, if there are
                any.

        Returns:
            The counts of rows, errors and outliers.

        Raises:
            ValueError: if there are no rows, or some parts belong to no input.
        """
        if self._done:
            raise ValueError(
                f"{self.folder}/{min(self._done)} belongs to no input: inputs have been removed; take another --out"
            )
        self.made.sort(key=lambda part: part.file)
        summary = Summary(
            sum(part.rows for part in self.made),
            sum(part.errors for part in self.made),
            sum(part.outliers for part in self.made) if self.scoring.calibration is not None else None,
            time.monotonic() - started,
            next((part.first_error for part in self.made if part.first_error), ""),
            earlier=self._earlier,
            unit=self.scoring.unit,
        )
        if not summary.rows:
            raise ValueError(self._nothing())
        outcome = {**vars(summary), "left_out": self.left_out.counts, "parts": [vars(part) for part in self.made]}
        _write_manifest(self.folder, self.settings, "complete", outcome)
        unknown = self.scoring.label.describe_unknown() if self.scoring.label else ""
        for text in filter(None, (self.left_out.describe(), unknown)):
            log(text)
        return summary


def score_part(scoring: Scoring, folder: str, job: Job, *, batch_size: int, threads: int | None = None) -> Part:
    """Score a shard and write its part.

    Args:
        scoring: model and options that score the shard.
        folder: path or URI of the folder of the parts.
        job: part to make.
        batch_size: number of images scored at once.
        threads: number of threads that read and decode images; None for one per core, at most 4.

    Returns:
        The part that was written.
    """
    file, digest, shard = job
    if scoring.label is not None:
        scoring.label.named = True  # whoever hands out the parts has looked at the first table
    batches = read(shard, scoring.wanted, batch_size=batch_size, threads=threads)
    tables = list(scoring.tables(batches)) or [scoring.no_rows()]
    rows, errors, outliers = (sum(column) for column in zip(*map(count_rows, tables), strict=True))
    part = Part(file, digest, rows, errors, outliers, next(filter(None, map(first_error, tables)), ""))
    table = pa.Table.from_batches(tables).replace_schema_metadata({KEY: json.dumps(vars(part))})
    with stores.written(f"{folder}/{file}") as path:
        pq.write_table(table, path)
    return part


@own_state()
def score_to_folder(
    directory: Path,
    inputs: Sequence[str],
    out: str,
    *,
    resume: bool = False,
    shard_rows: int | None = None,
    batch_size: int = 500,
    device: str = "auto",
    on_rows: Callable[[int], None] = lambda rows: None,
    log: Callable[[str], None] = lambda text: None,
    **options: Any,
) -> Summary:
    """Score every image of the inputs on this machine, into a folder of Parquet files.

    The rows and columns are those of `negvae.runs.score.score_files`, and in the same order if the parts are read in
    order of their names, as readers of such folders do. Further options are `names`, `target_fpr`, `confidence`,
    `groups`, `resize`, `max_pixels`, `ensemble`, `precision` and `embed` of `score_files`.

    Args:
        directory: folder of the run.
        inputs: files, folders, patterns or names of sets, as `negvae.data.streams.stream` takes them.
        out: path or URI of the folder to write to, new or empty unless `resume`.
        resume: whether to keep the parts that are already there and make only the others.
        shard_rows: maximum number of rows in a part, as far as files can be cut that small, which must be the same to
            resume; None for `SHARD_ROWS`, or for that of the folder to resume.
        batch_size: number of images scored at once.
        device: device to compute on: "auto", "cpu", "cuda" or "cuda:N".
        on_rows: called after every part with the number of rows that this call has scored.
        log: called with each line that the user should see.

    Returns:
        The counts of rows, errors and outliers.

    Raises:
        FileNotFoundError: if the model or an input does not exist.
        ValueError: if an option is invalid, or `out` holds parts that do not match.
    """
    scoring = open_scoring(directory, batch_size=batch_size, device=device, log=log, **options)
    parts = Parts(out.rstrip("/"), inputs, scoring, settings(directory, inputs, scoring, options), shard_rows)
    parts.open(resume)
    started, rows = time.monotonic(), 0
    for job in parts.todo():
        part = score_part(scoring, parts.folder, job, batch_size=batch_size)
        parts.made.append(part)
        rows += part.rows
        on_rows(rows)
    return parts.finish(started, log)


def settings(directory: Path, inputs: Sequence[str], scoring: Scoring, options: dict[str, Any]) -> dict[str, Any]:
    """Return the settings that determine the rows, but for the number of rows in a part.

    Args:
        directory: folder of the run.
        inputs: inputs as the user named them.
        scoring: model and options that score the parts.
        options: further options of `score_to_folder`, by name.

    Returns:
        The value of each setting by its name.
    """
    precision = "int8" if scoring.scorer.quantized is not None else scoring.scorer.precision
    models = {}
    for place in (directory, *options.get("ensemble", ())):
        for name in ("weights.safetensors", "calibration.safetensors"):
            if (path := Path(place) / name).is_file():
                models[str(path)] = file_sha256(path)
    wanted = {name: getattr(scoring.wanted, name) for name in ("resize", "max_pixels")}
    return {
        "inputs": list(inputs), "models": models, "scores": list(scoring.names),
        "target_fpr": options.get("target_fpr"), "confidence": options.get("confidence"),
        "groups": options.get("groups"), **wanted, "precision": precision,
    }  # fmt: skip


def _digest(shard: tuple[Span, ...]) -> str:
    """Return the SHA-256 of a shard's files and rows, and of size and time of each file."""
    states = stores.states([span.path for span in shard])
    described = json.dumps(
        [[span.path, span.start, span.stop, *state] for span, state in zip(shard, states, strict=True)]
    )
    return hashlib.sha256(described.encode("utf-8", "surrogateescape")).hexdigest()


# --- the folder -----


def _open_folder(folder: str, settings: dict[str, Any], resume: bool) -> dict[str, Part]:
    """Begin a folder, or find the parts that are already there."""
    if stores.is_uri(folder):
        try:
            names = [uri.rsplit("/", 1)[1] for uri in stores.below(folder)]
        except FileNotFoundError:
            names = []
    else:
        if Path(folder).exists() and not Path(folder).is_dir():
            raise ValueError(f"--out {folder} is a file: for several parts it is a folder, of one file for each shard")
        names = os.listdir(folder) if os.path.isdir(folder) else []
    # What a process left that was killed while it wrote the manifest; on a disk, writing it again removes that.
    names = [name for name in names if not (name.startswith(f".{MANIFEST}.") and name.endswith(".tmp"))]
    if not names:
        stores.make_folder(folder)
        _write_manifest(folder, settings, "begun", {})
        return {}
    if not resume:
        raise ValueError(
            f"--out {folder} is not empty: add --resume to go on with what is there, or take another folder"
        )
    if MANIFEST not in names:
        raise ValueError(f"--out {folder} has no {MANIFEST}: `negvae score` did not begin it")
    before = _begun_with(folder)
    for name, value in json.loads(json.dumps(settings)).items():
        if _without_slashes(before.get(name)) != _without_slashes(value):
            raise ValueError(
                f"--out {folder} was begun with {name} {before.get(name)}, not {value}: give the same, or take another"
                " --out"
            )
    return {name: _read_part(folder, name) for name in names if name.startswith("part-")}


def _begun_with(folder: str) -> dict[str, Any]:
    """Return the settings that a folder was begun with; none if it has no manifest."""
    try:
        with stores.open_file(f"{folder}/{MANIFEST}", whole=True) as file:
            return dict(from_json(file.read())["settings"])
    except FileNotFoundError:
        return {}
    except (ValueError, KeyError, TypeError):
        raise ValueError(f"{folder}/{MANIFEST}: damaged; take another --out") from None


def _without_slashes(value: Any) -> Any:
    """Return a setting with names of folders as they are without a slash at their end, which shells may add."""
    if isinstance(value, list):
        return [_without_slashes(each) for each in value]
    return (value.rstrip("/") or value) if isinstance(value, str) else value


def _read_part(folder: str, name: str) -> Part:
    try:
        with stores.open_for_arrow(f"{folder}/{name}") as file:
            return Part(**from_json(pq.read_metadata(file).metadata[KEY]))
    except (pa.ArrowInvalid, KeyError, TypeError, ValueError) as error:
        reason = " ".join(str(error).split())[:160]
        raise ValueError(f"{folder}/{name}: not a part of `negvae score` ({reason}); remove it") from None


def _write_manifest(folder: str, settings: dict[str, Any], state: str, outcome: dict[str, Any]) -> None:
    content = {
        "state": state, "settings": settings, **outcome,
        "provenance": {**versions(), "commit": source_commit(), "node": platform.node()},
    }  # fmt: skip
    with stores.written(f"{folder}/{MANIFEST}") as path:
        path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
