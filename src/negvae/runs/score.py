"""Score any number of images from files into one table, as a stream with constant memory."""

from __future__ import annotations

import glob
import os
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from numpy.typing import NDArray

from negvae.data.batches import Batch, InputSpec
from negvae.data.embedding import Encoder
from negvae.data.formats import MAX_PIXELS
from negvae.data.formats.folder import LeftOut
from negvae.data.formats.quiet import without_pillows_warnings
from negvae.data.spans import spans
from negvae.data.stores import is_uri, local_path
from negvae.data.streams import stream
from negvae.data.tables import ENDINGS, column_names
from negvae.device import own_state
from negvae.files import beside, home, refuse_replacing, refuse_used, replacing, temporary_folder
from negvae.messages import counted, quoted, shown
from negvae.runs import annotation
from negvae.runs.artifact import Artifact, load_artifact
from negvae.runs.embed import embedded, encoder_of, spec_of
from negvae.runs.groups import Label, labeled, labeling
from negvae.runs.patches import maps_of_encoder
from negvae.runs.pictures import MapWriter
from negvae.runs.writers import form_of, writer
from negvae.scoring.calibration import Calibration, discovery_level
from negvae.scoring.certificates import check_rate
from negvae.scoring.quantization import is_possible
from negvae.scoring.scorer import Scorer
from negvae.scoring.table import SCORES
from negvae.scoring.tiles import UNCALIBRATED, combine

BATCH_SIZE = 512
"""Number of images that are read at once; scores do not depend on it."""
LONG = 60.0
"""Seconds of scoring after which a quicker precision is worth a line."""
PILLOW_LIMIT = 178_956_970
Item = TypeVar("Item")


def nothing_to_score(features: bool) -> str:
    """Return what to say where there is nothing to score, for a model of rows of features or of images."""
    return f"holds no {'rows of features' if features else 'images'} to score"


@dataclass(frozen=True)
class Summary:
    """The counts of a scored stream.

    Attributes:
        rows: number of rows, including errors.
        errors: number of rows that could not be scored.
        outliers: number of rows called outliers; None if nothing was decided.
        seconds: time from the first row read to the last row written, in seconds, without that of earlier calls.
        first_error: the first error, with its path; empty if there is none or it is not known.
        earlier: number of rows without an error that earlier calls had scored.
        unit: what a row is, "images" or "rows" of features.
    """

    rows: int
    errors: int
    outliers: int | None
    seconds: float
    first_error: str = ""
    earlier: int = 0
    unit: str = "images"

    def describe(self) -> str:
        """Describe the counts in one line."""
        scored = self.rows - self.errors
        before = f" ({self.earlier:,} of them before)" if self.earlier else ""
        called = "" if self.outliers is None else f", {counted(self.outliers, 'outlier')}"
        rate = (scored - self.earlier) / max(self.seconds, 1e-9)
        took = f"{self.seconds:.1f} s ({rate:,.0f} {self.unit}/s)"
        return f"{scored:,} scored{before}{called}, {counted(self.errors, 'error')}, {took}"


@own_state()
def score_files(
    directory: Path,
    inputs: Sequence[str],
    out: Path | None = None,
    *,
    names: Sequence[str] = (),
    form: str | None = None,
    target_fpr: float | None = None,
    confidence: float | None = None,
    groups: str | None = None,
    fdr: float | None = None,
    resize: bool = False,
    max_pixels: int = MAX_PIXELS,
    batch_size: int = BATCH_SIZE,
    ensemble: Sequence[Path] = (),
    precision: str | None = None,
    embed: Path | str | None = None,
    heatmaps: Path | None = None,
    device: str = "auto",
    on_rows: Callable[[int], None] = lambda rows: None,
    log: Callable[[str], None] = lambda text: None,
) -> Summary:
    """Score every image of the inputs and write a row for each: path, index, scores, p_value, is_outlier, error.

    Args:
        directory: folder of the run.
        inputs: files, folders, patterns or names of sets, as `negvae.data.streams.stream` takes them.
        out: path of the file to write, completely or not at all; None for standard output, row by row.
        names: names of the scores to write; p-value and decision are those of the first. If empty, the calibration's
            decision score, or "kl" for a model that is not calibrated.
        form: one of `FORMATS`; None for the ending of `out`, or "jsonl" on standard output. Those of
            `negvae.runs.annotation` take image files only.
        target_fpr: false-positive rate to decide by in place of the calibration's rule; None for that rule.
        confidence: confidence with which the rate holds; None for the calibration's, or, with `target_fpr`, for a rate
            that holds on average.
        groups: "folders" decides by the group that a folder above each file is named after, and any other text by the
            group in this column of CSV and Parquet files, if the model is calibrated with groups. A row whose group is
            not one of them, and None, take the largest p-value over all groups.
        fdr: false-discovery rate at which Benjamini-Hochberg decides over all rows, which requires `out`; None to
            decide row by row.
        resize: whether to resize images of another size; otherwise they are errors.
        max_pixels: maximum number of pixels that an encoded image may declare.
        batch_size: number of images read at once.
        ensemble: folders of further runs, for the score "waic".
        precision: "float32", "bfloat16" or "int8"; None for the precision of the calibration, which is the only one
            that a calibrated model accepts.
        embed: present path of the encoder that the model was trained with; None for the path at the time of training.
        heatmaps: folder, new or empty, to write a PNG for each image into, which shows where it is
            out-of-distribution; the column `heatmap` names it. None for no maps.
        device: device to compute on: "auto", "cpu", "cuda" or "cuda:N".
        on_rows: called after every batch with the number of rows scored so far.
        log: called with each line that the user should see.

    Returns:
        The counts of rows, errors and outliers.

    Raises:
        FileNotFoundError: if the model or an input does not exist.
        ValueError: if an option is invalid, or `out` is one of the inputs' files and no earlier output; images that
            cannot be used become rows with an error instead.
    """
    form = form_of(out, form)
    if fdr is not None:
        _check_fdr(fdr, out, target_fpr, confidence)
    _check_out(out, inputs)
    scoring = open_scoring(
        directory, names=names, target_fpr=target_fpr, confidence=confidence, groups=groups, fdr=fdr, resize=resize,
        max_pixels=max_pixels, batch_size=batch_size, ensemble=ensemble, precision=precision, embed=embed,
        heatmaps=heatmaps, device=device, log=log,
    )  # fmt: skip
    calibration = scoring.calibration
    left_out = LeftOut()
    without = [path for path in (out, heatmaps) if path]
    batches = stream(inputs, scoring.wanted, batch_size=batch_size, left_out=left_out, without=without)
    started = time.monotonic()
    # Reading, scoring and writing overlap, so that the threads of the model do not wait for the files.
    tables = _ahead(scoring.tables(_ahead(batches)))
    place: AbstractContextManager[Path | None] = replacing(out) if out else nullcontext()
    refers = annotation.Place(shown(directory.absolute().name), heatmaps)
    if scoring.pictures is not None and form == "fiftyone":
        scoring.pictures.colored = False  # FiftyOne colors the values of a map itself
    with place as path, writer(form, path, refers) as write:
        counts = _Counts(on_rows)
        if fdr is None or calibration is None:
            for table in tables:
                write(table)
                counts.add(table)
        else:
            for table in _decided(tables, fdr, counts, beside(out)):
                write(table)
        if not counts.rows:
            raise ValueError(f"{', '.join(map(str, inputs))}: {nothing_to_score(scoring.wanted.features)}")
    unknown = scoring.label.describe_unknown() if scoring.label else ""
    for text in filter(None, (left_out.describe() if left_out.counts else "", unknown)):
        log(text)
    summary = counts.summary(time.monotonic() - started, calibration is not None, scoring.unit)
    if summary.seconds > LONG and scoring.may_use_int8():
        log(f"int8 may be quicker here, at the same figures: `negvae calibrate {quoted(directory)}` measures it")
    return summary


def _ahead(items: Iterable[Item]) -> Iterator[Item]:
    """Yield the items of an iterable, each of which a thread of its own makes while the one before is in use."""
    source, ended = iter(items), object()
    with ThreadPoolExecutor(1, "negvae-ahead") as pool:
        coming = pool.submit(next, source, ended)
        while (item := coming.result()) is not ended:
            coming = pool.submit(next, source, ended)
            yield item  # type: ignore[misc]


@dataclass(frozen=True)
class Scoring:
    """A model with the options to turn batches of images into rows of a table.

    Attributes:
        scorer: scorer of the model.
        names: names of the scores; the first one decides.
        calibration: calibration for p-values and decisions; None if there are none.
        wanted: form that the images must have.
        decide: whether rows are decided one by one; if not, all together at the end.
        label: function that names the group of each row; None if no group is known.
        encoder: encoder that turns images into rows of features; None if the model takes the inputs themselves.
        rule: rule that makes one score of those of an image's tiles, if images are tiled.
        pictures: writer of a map for each image; None if none are wanted.
    """

    scorer: Scorer
    names: tuple[str, ...]
    calibration: Calibration | None
    wanted: InputSpec
    decide: bool
    label: Label | None = None
    encoder: Encoder | None = None
    rule: str = UNCALIBRATED
    pictures: MapWriter | None = None

    @property
    def unit(self) -> str:
        """Return what an input is: "images", or "rows" of features."""
        return "rows" if self.wanted.features else "images"

    def tables(self, batches: Iterable[Batch]) -> Iterator[pa.RecordBatch]:
        """Score the batches, as tables with the columns path, index, scores, p_value, is_outlier, error."""
        with without_pillows_warnings():
            for batch in batches:
                yield _table(batch, self)

    def may_use_int8(self) -> bool:
        """Return whether this machine has int8 for the decision score of a model that is calibrated otherwise."""
        calibrated = self.calibration is not None and self.scorer.quantized is None and self.encoder is None
        return calibrated and is_possible(self.scorer.model, self.names[0])

    def no_rows(self) -> pa.RecordBatch:
        """Return a table with the same columns and no rows."""
        kind = np.float64 if self.wanted.features else np.uint8
        empty = Batch([], [], [], np.zeros((0, *self.wanted.shape), kind))
        return _table(empty, self)


def open_scoring(
    directory: Path,
    *,
    names: Sequence[str] = (),
    target_fpr: float | None = None,
    confidence: float | None = None,
    groups: str | None = None,
    fdr: float | None = None,
    resize: bool = False,
    max_pixels: int = MAX_PIXELS,
    batch_size: int = BATCH_SIZE,
    ensemble: Sequence[Path] = (),
    precision: str | None = None,
    embed: Path | str | None = None,
    heatmaps: Path | None = None,
    device: str = "auto",
    log: Callable[[str], None] = lambda text: None,
) -> Scoring:
    """Load a model to score with; see `score_files` for the arguments and for what is raised."""
    if batch_size < 1:
        raise ValueError(f"batch size is {batch_size}: it must be at least 1")
    if not 1 <= max_pixels <= PILLOW_LIMIT:
        raise ValueError(
            f"max pixels is {max_pixels}: it must lie between 1 and {PILLOW_LIMIT}, the decoder's own limit"
        )
    artifact = load_artifact(directory, device)
    others = tuple(_member(path, artifact, device) for path in ensemble)
    names = list(dict.fromkeys(names)) or [artifact.calibration.score if artifact.calibration else "kl"]
    scorer = artifact.scorer(precision, others)
    scorer.check(names)
    if others and not any("ensemble" in SCORES[name].needs for name in names):
        raise ValueError(
            f"ensemble: the scores to write ({', '.join(names)}) are of one model each; waic is one of several: name"
            " it with --score"
        )
    label = None
    if groups is not None:
        if artifact.calibration is None or not artifact.calibration.groups:
            raise ValueError(
                f"{directory} is calibrated without groups: `negvae calibrate --groups folders` makes them, and so does"
                " --groups with the name of a column"
            )
        label = labeling(groups, artifact.calibration.thresholds)
    calibration = _decision(artifact, names[0], target_fpr, confidence, fdr, log)
    encoder = encoder_of(artifact, embed)
    wanted = spec_of(artifact, encoder, resize, max_pixels)
    rule = (artifact.calibration.tiles if artifact.calibration else "") or UNCALIBRATED
    pictures = None
    if heatmaps is not None:
        maps = artifact.maps() if encoder is None else maps_of_encoder(artifact, encoder)
        refuse_used(heatmaps)
        turned = wanted.decoding is not None or wanted.upright
        pictures = MapWriter(heatmaps, maps, upright=turned, decoding=wanted.decoding)
    return Scoring(scorer, tuple(names), calibration, wanted, fdr is None, label, encoder, rule, pictures)


@dataclass
class _Counts:
    on_rows: Callable[[int], None]
    rows: int = 0
    shown: int = 0
    errors: int = 0
    outliers: int = 0
    first_error: str = ""

    def add(self, table: pa.RecordBatch) -> None:
        rows, errors, outliers = count_rows(table)
        self.first_error = self.first_error or first_error(table)
        self.rows, self.errors, self.outliers = self.rows + rows, self.errors + errors, self.outliers + outliers
        if self.rows > self.shown:
            self.show(self.rows)

    def show(self, rows: int) -> None:
        """Report how many rows are scored, which may be decided later."""
        self.shown = rows
        self.on_rows(rows)

    def summary(self, seconds: float, decided: bool, unit: str) -> Summary:
        outliers = self.outliers if decided else None
        return Summary(self.rows, self.errors, outliers, seconds, self.first_error, unit=unit)


def first_error(table: pa.RecordBatch) -> str:
    """Return the first error in a table of `Scoring.tables`, with its path, in one line; empty if there is none."""
    row = pc.index(table.column("error").is_valid(), True).as_py()
    if row < 0:
        return ""
    path = str(table.column("path")[row]).replace("\n", "\\n")
    return f"{path}: {table.column('error')[row]}"


def count_rows(table: pa.RecordBatch) -> tuple[int, int, int]:
    """Return the numbers of rows, errors and outliers in a table of `Scoring.tables`."""
    errors = len(table) - table.column("error").null_count
    return len(table), errors, int(table.column("is_outlier").true_count)


def _check_fdr(fdr: float, out: Path | None, target_fpr: float | None, confidence: float | None) -> None:
    """Refuse a false-discovery rate that is none, for rows that are written as they come, or beside another rule."""
    check_rate("fdr", fdr)
    if out is None or target_fpr is not None or confidence is not None:
        raise ValueError(
            "fdr decides when all rows are known: it takes --out, and goes without target_fpr and confidence"
        )


def _check_out(out: Path | None, inputs: Sequence[str]) -> None:
    if out is None:
        return
    if not out.absolute().parent.is_dir():
        raise FileNotFoundError(f"{out.parent}: no such folder to write to")
    refuse_replacing(out, [home(local_path(text)) for text in inputs])
    if not out.is_file() or out.suffix.lower() in (".json", ".jsonl") or _is_of_scores(out):  # no JSON is ever scored
        return
    # Only what lies below these can be the output without being named.
    places = [text for text in inputs if not is_uri(text) and (home(text).is_dir() or glob.has_magic(text))]
    if any(os.path.realpath(span.path) == os.path.realpath(out) for span in spans(places, features=True)):
        raise ValueError(
            f"--out {out} is among the files to score, and no earlier output of `negvae score`: take another file"
        )


def _is_of_scores(path: Path) -> bool:
    """Return whether a file is empty, or has the columns of a table of scores."""
    if not path.stat().st_size:
        return True
    if not path.name.lower().endswith(ENDINGS):
        return False
    try:
        names = column_names(path)
    except ValueError:  # a table that cannot be read is none of these
        return False
    return names[:2] == ("path", "index") and {"p_value", "is_outlier"} < {*names} and names[-1] == "error"


def _member(directory: Path, artifact: Artifact, device: str) -> Any:
    member = load_artifact(directory, device)
    if member.model.shape != artifact.model.shape:
        given, wanted = ("x".join(map(str, m.shape)) for m in (member.model, artifact.model))
        raise ValueError(f"{directory} takes {given}, {artifact.directory} takes {wanted}: they are no ensemble")
    return member.model


def _decision(
    artifact: Artifact,
    score: str,
    target_fpr: float | None,
    confidence: float | None,
    fdr: float | None,
    log: Callable[[str], None],
) -> Calibration | None:
    """Return the calibration of the decision score; if there is none, log that and return None."""
    calibration = artifact.calibration
    if calibration is None or score not in calibration.scores:
        missing = "it was not calibrated" if calibration is None else f"score {score} was not calibrated"
        text = f"{artifact.directory}: {missing}, run `{artifact.calibrate_command()} --score {score}`"
        if target_fpr is not None or confidence is not None or fdr is not None:
            raise ValueError(f"{text} before asking for a rate")
        log(f"{text} for p-values and decisions")
        return None
    calibration = calibration.decide_by(score, target_fpr, confidence)
    if fdr is None:
        log(f"outliers: {calibration.describe()}")
    return calibration


def _table(batch: Batch, scoring: Scoring) -> pa.RecordBatch:
    """Score a batch; rows with errors get nulls."""
    names, calibration = scoring.names, scoring.calibration
    seen, batch = batch, labeled(embedded(batch, scoring.encoder), scoring.label, strict=True)
    failed = np.array([bool(error) for error in batch.errors])
    good = batch.good()
    labels = None
    if scoring.label is not None and calibration is not None and len(good):  # before the scores: files may change
        labels = scoring.label([batch.paths[row] for row in good], [batch.indices[row] for row in good], count=True)
    scores = scores_of(scoring.scorer, batch, good, names, scoring.rule) if len(good) else {}

    def column(values: Any, kind: Any) -> pa.Array:
        if values is None or not len(good):
            return pa.nulls(len(batch), kind)
        whole = np.zeros(len(batch), np.asarray(values).dtype)
        whole[good] = values
        return pa.array(whole, kind, mask=failed)

    p = outlier = None
    if calibration is not None and len(good):
        p = calibration.p_values(scores[names[0]], labels)
        outlier = calibration.is_outlier(scores[names[0]], labels) if scoring.decide else None
    pictures: dict[str, pa.Array] = {}
    if scoring.pictures is not None:
        written = iter(scoring.pictures.write(seen, good))
        pictures["heatmap"] = pa.array([None if bad else next(written) for bad in failed], pa.string())
    return pa.RecordBatch.from_pydict(
        {
            "path": pa.array(map(shown, batch.paths), pa.string()),
            "index": pa.array(batch.indices, pa.int64()),
            **{name: column(scores.get(name), pa.float32()) for name in names},
            "p_value": column(p, pa.float64()),
            "is_outlier": column(outlier, pa.bool_()),
            **pictures,
            "error": pa.array([shown(error) or None for error in batch.errors], pa.string()),
        }
    )


def scores_of(
    scorer: Scorer,
    batch: Batch,
    rows: NDArray[np.int64],
    names: Sequence[str],
    rule: str,
) -> dict[str, NDArray[np.float32]]:
    """Score some rows of a batch, one score for each row.

    Args:
        scorer: scorer of the model.
        batch: batch of the stream that `spec_of` describes, as the model takes it (`negvae.runs.embed.embedded`).
        rows: numbers of the rows, ascending.
        names: names of the scores.
        rule: rule that makes one score of those of an image's tiles, if images are tiled.

    Returns:
        The scores of the rows, by name.
    """
    images, owners = batch.inputs(rows)
    scores = scorer(torch.from_numpy(images), names)
    return scores if owners is None else {name: combine(values, owners, rule) for name, values in scores.items()}


def _decided(tables: Iterator[pa.RecordBatch], fdr: float, counts: _Counts, folder: Path) -> Iterator[pa.RecordBatch]:
    """Decide the rows by Benjamini-Hochberg, after all of them have been collected in a temporary file."""
    occurred: Counter[float] = Counter()  # conformal p-values are n + 1 levels, of each group if there are any
    with temporary_folder(folder, "negvae-rows") as place:
        path = place / "rows.arrow"
        schema = None
        writer: Any = None
        collected = 0
        for table in tables:
            if writer is None:
                schema = table.schema
                writer = pa.ipc.new_file(str(path), schema)
            writer.write_batch(table)
            p = table.column("p_value").drop_null().to_numpy(zero_copy_only=False)
            occurred.update(dict(zip(*(part.tolist() for part in np.unique(p, return_counts=True)), strict=True)))
            collected += len(table)
            counts.show(collected)
        if writer is None:
            return
        writer.close()
        levels = sorted(occurred)
        level = discovery_level(levels, [occurred[each] for each in levels], fdr)
        with pa.OSFile(str(path)) as file, pa.ipc.open_file(file) as reader:
            for index in range(reader.num_record_batches):
                table = reader.get_batch(index)
                p = table.column("p_value")
                known = p.is_valid().to_numpy(zero_copy_only=False)
                values = p.fill_null(2.0).to_numpy(zero_copy_only=False)
                called = pa.array(values <= level + 1e-12, pa.bool_(), mask=~known)
                place_of = table.schema.get_field_index("is_outlier")
                table = table.set_column(place_of, "is_outlier", called)
                counts.add(table)
                yield table
