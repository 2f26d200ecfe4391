"""A page about what a detector finds in some images: counts, extremes, scores, latent space, reconstructions.

The images are streamed. The part of them that is kept has a fixed size: the most and the least typical, and an even
sample.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from markupsafe import Markup
from numpy.typing import NDArray

from negvae.data.batches import Batch
from negvae.data.embedding import Encoder
from negvae.data.formats.quiet import without_pillows_warnings
from negvae.data.streams import stream
from negvae.device import own_state
from negvae.messages import counted
from negvae.model import VAE
from negvae.report import document, figures, tables
from negvae.report.document import Section
from negvae.report.photos import SIDE, heat_pictures, photos, pictures
from negvae.report.scored import false_alarms, p_value_chart
from negvae.report.tables import DataTable
from negvae.runs.artifact import Artifact, load_artifact
from negvae.runs.embed import embedded, encoder_of, spec_of
from negvae.runs.pictures import palette, picture
from negvae.runs.provenance import described_data, provenance
from negvae.runs.recorded import read_recorded
from negvae.runs.score import scores_of
from negvae.runs.sets import load_inliers
from negvae.scoring.blocks import latent_means, reconstructions
from negvae.scoring.calibration import Calibration
from negvae.scoring.heatmaps import Heatmaps
from negvae.scoring.scorer import Scorer
from negvae.scoring.table import SCORES
from negvae.spacing import spread_rows

TOP = 40
"""The number of the most and of the least typical images to show."""
SAMPLE = 5_000
"""The number of rows that histograms and the map are drawn from."""
MAPPED = 1_500
"""The number of points of each kind on the map; more would hide one another."""
TILES_MAPPED = 300
"""The number of tiles of inliers on the map, if images are tiled."""
ERRORS = 10
LARGEST_SIDE = 96
"""The largest side in pixels of a shown image, so that a page is small enough to be sent by mail."""

Columns = dict[str, NDArray[Any]]


@dataclass
class Kept:
    """The rows with the largest keys among all rows that were offered.

    Attributes:
        size: largest number of rows to keep.
        keys: keys of the rows kept, in the order of arrival.
        columns: values of the rows kept, an array for each name.

    >>> kept = Kept(2)
    >>> values = np.array(["a", "b", "c"])
    >>> kept.offer(np.array([1.0, 3.0, 2.0]), lambda rows: {"name": values[rows]})
    >>> kept.ordered()["name"].tolist()
    ['b', 'c']
    """

    size: int
    keys: NDArray[np.float64] = field(default_factory=lambda: np.empty(0))
    columns: Columns = field(default_factory=dict)

    def offer(self, keys: NDArray[Any], columns: Callable[[NDArray[np.int64]], Columns]) -> None:
        """Keep those rows of a batch whose keys are among the largest so far.

        Args:
            keys: key of each row.
            columns: function that returns the values of rows, given their numbers in the batch.
        """
        merged = np.concatenate([self.keys, np.asarray(keys, np.float64)])
        best = np.sort(np.argsort(-merged, kind="stable")[: self.size])
        old, new = best[best < len(self.keys)], best[best >= len(self.keys)] - len(self.keys)
        self.keys = merged[best]
        if len(new):
            added = columns(new)
            self.columns = {
                name: np.concatenate([self.columns[name][old], values]) if self.columns else values
                for name, values in added.items()
            }

    def ordered(self) -> Columns:
        """Return the columns in descending order of the keys."""
        order = np.argsort(-self.keys, kind="stable")
        return {name: values[order] for name, values in self.columns.items()}


@dataclass
class Findings:
    """The results that are kept of a stream of images.

    Attributes:
        rows: number of rows in all.
        failed: number of rows that could not be scored.
        outliers: number of rows that are called outliers.
        errors: path and reason of the first rows that could not be scored.
        least: rows with the highest scores: path, index, images, p-value and every score.
        most: rows with the lowest scores, with the same columns.
        sample: even sample of the rows: p-value, decision, latent code and every score.
    """

    rows: int = 0
    failed: int = 0
    outliers: int = 0
    errors: list[tuple[str, str]] = field(default_factory=list)
    least: Kept = field(default_factory=lambda: Kept(TOP))
    most: Kept = field(default_factory=lambda: Kept(TOP))
    sample: Kept = field(default_factory=lambda: Kept(SAMPLE))


@own_state()
def write_report(
    directory: Path | str,
    inputs: Sequence[str],
    out: Path | str = "report.html",
    *,
    score: str | None = None,
    target_fpr: float | None = None,
    confidence: float | None = None,
    resize: bool = False,
    top: int = TOP,
    batch_size: int = 500,
    precision: str | None = None,
    embed: Path | str | None = None,
    device: str = "auto",
    on_rows: Callable[[int], None] = lambda rows: None,
) -> Findings:
    """Score every image of the inputs and write one HTML page about them.

    Args:
        directory: folder of a calibrated model.
        inputs: files, folders and URIs to score; see `negvae.data.streams.stream`.
        out: file to write the page to.
        score: calibrated score to decide by; None for the model's decision score.
        target_fpr: false-positive rate for the threshold; None for the one of the calibration.
        confidence: confidence with which that rate holds; None where it holds on average.
        resize: whether to resize images of another size, which are errors otherwise.
        top: number of the most and of the least typical images to show.
        batch_size: number of images that are scored at once.
        precision: "float32" or "bfloat16"; None for the precision in which the run was calibrated.
        embed: path of the encoder that the model was trained with; None for the path that it had then.
        device: device to score on; see `negvae.runs.artifact.load_artifact`.
        on_rows: called after every batch with the number of rows done so far.

    Returns:
        The results that the page shows.

    Raises:
        FileNotFoundError: if the model, an input or the folder to write to does not exist.
        OSError: if the page cannot be written, which is found out first.
        ValueError: if an option is refused, the model is not calibrated, or no image can be scored.
    """
    out = Path(out)
    document.check(out, top, inputs)
    artifact = load_artifact(directory, device)
    calibration = artifact.calibrated().decide_by(score, target_fpr, confidence)
    encoder = encoder_of(artifact, embed)
    findings = examine(artifact, calibration, inputs, resize, top, batch_size, precision, on_rows, encoder)
    if findings.failed == findings.rows:
        reason = f": {findings.errors[0][0]}: {findings.errors[0][1]}" if findings.errors else ""
        raise ValueError(f"{', '.join(map(str, inputs))}: no image that can be scored{reason}")
    document.write(out, _page(artifact, calibration, findings, inputs))
    return findings


def examine(
    artifact: Artifact,
    calibration: Calibration,
    inputs: Sequence[str],
    resize: bool = False,
    top: int = TOP,
    batch_size: int = 500,
    precision: str | None = None,
    on_rows: Callable[[int], None] = lambda rows: None,
    encoder: Encoder | None = None,
) -> Findings:
    """Stream the inputs through the model and return what the page shows; for the arguments see `write_report`."""
    scorer = artifact.scorer(precision)
    names = shown_scores(calibration)
    scorer.check(names)
    findings = Findings(least=Kept(top), most=Kept(top))
    draw = np.random.default_rng(0)
    with without_pillows_warnings():
        for batch in stream(inputs, spec_of(artifact, encoder, resize), batch_size=batch_size):
            _take(findings, batch, scorer, names, calibration, draw, encoder)
            on_rows(findings.rows)
    return findings


def shown_scores(calibration: Calibration) -> list[str]:
    """Return the decision score and the scores that are combined with reference statistics of training images."""
    return list(dict.fromkeys([calibration.score, *calibration.reference.scales]))


def _take(
    findings: Findings,
    batch: Batch,
    scorer: Scorer,
    names: Sequence[str],
    calibration: Calibration,
    draw: np.random.Generator,
    encoder: Encoder | None,
) -> None:
    seen, batch = batch, embedded(batch, encoder)
    findings.rows += len(batch)
    for path, index, error in zip(batch.paths, batch.indices, batch.errors, strict=True):
        if error:
            findings.failed += 1
            if len(findings.errors) < ERRORS:
                findings.errors.append((_place(path, index), error))
    good = batch.good()
    if not len(good):
        return
    scores = scores_of(scorer, batch, good, names, calibration.tiles)
    images, (inputs, owners) = seen.inputs(good)[0], batch.inputs(good)
    if owners is not None:
        images = photos(images, [batch.tilings[row] for row in good])
    decisive = scores[names[0]]
    p_values, called = calibration.p_values(decisive), calibration.is_outlier(decisive)
    findings.outliers += int(called.sum())
    places = np.array([_place(batch.paths[row], batch.indices[row]) for row in good], dtype=object)

    def numbers(rows: NDArray[np.int64]) -> Columns:
        return {"p": p_values[rows], "called": called[rows], **{name: scores[name][rows] for name in names}}

    def extreme(rows: NDArray[np.int64]) -> Columns:
        return {"place": places[rows], "images": images[rows], **numbers(rows)}

    findings.least.offer(decisive, extreme)
    findings.most.offer(-decisive, extreme)
    # The rows with the largest of random keys are an even sample of all rows.
    findings.sample.offer(
        draw.random(len(good)), lambda rows: {"codes": _codes(scorer.model, inputs, owners, rows), **numbers(rows)}
    )


def _codes(
    model: VAE, inputs: NDArray[Any], owners: NDArray[np.int64] | None, rows: NDArray[np.int64]
) -> NDArray[np.float64]:
    """Return the latent means of some images; of a tiled image, the mean over its tiles (N x L)."""
    if owners is None:
        return latent_means(model, inputs[rows])
    wanted = np.isin(owners, rows)
    found = latent_means(model, inputs[wanted])
    starts = np.flatnonzero(np.diff(owners[wanted], prepend=-1))
    means: NDArray[np.float64] = np.add.reduceat(found, starts) / np.diff([*starts, len(found)])[:, None]
    return means


def _place(path: str, index: int | None) -> str:
    """Return a text for a file, with the row in it if the file holds more than one."""
    return (
        path
        if index is None or not path.lower().endswith((".npy", ".npz", ".parquet", ".csv"))
        else f"{path} [{index}]"
    )


def training_inliers(artifact: Artifact) -> tuple[NDArray[Any], str] | None:
    """Return inliers of the model's training data set and a text that says which, or None if this machine has none."""
    config = artifact.config
    if artifact.model.takes_features:
        return None
    try:
        inliers = load_inliers(
            config,
            shape=artifact.model.shape,
            fetch=False,
            recorded=read_recorded(artifact.directory, artifact.provenance),
        )
    except (FileNotFoundError, ValueError):
        return None
    if inliers.shape != artifact.model.shape:
        return None
    chosen = inliers.held_out if len(inliers.held_out) else inliers.training
    if inliers.owners is not None:
        chosen = chosen[:: max(len(chosen) // TILES_MAPPED, 1)]
    kind = "held out from training" if len(inliers.held_out) else "of the training data"
    return spread_rows(chosen, MAPPED).numpy(), f"inliers {kind}"


# --- the page -----


def _page(artifact: Artifact, calibration: Calibration, findings: Findings, inputs: Sequence[str]) -> str:
    least, most, sample = findings.least.ordered(), findings.most.ordered(), findings.sample.columns
    sections = [
        Section("Counts", _counts(calibration, findings)),
        _extremes(artifact, "Least typical", least, calibration),
        _extremes(artifact, "Most typical", most, calibration),
        _histograms(calibration, findings, sample),
        _map(artifact, findings, sample),
    ]
    if findings.errors:
        rest = f"The first {len(findings.errors)} of {findings.failed:,}." if findings.failed > ERRORS else ""
        sections.append(Section("Errors", tables.html(DataTable(["file", "why"], findings.errors)), rest))
    sections.append(Section("Provenance", _provenance(artifact, calibration, inputs)))
    scored = findings.rows - findings.failed
    return document.page(
        f"{', '.join(_short(text) for text in inputs)}: what the detector sees",
        sections,
        subtitle=f"{scored:,} scored, {findings.outliers:,} called outliers by {calibration.describe()}",
    )


def _short(text: str) -> str:
    return text if len(text) <= 60 else f"…{text[-59:]}"


def _counts(calibration: Calibration, findings: Findings) -> Markup:
    scored = findings.rows - findings.failed
    share = findings.outliers / scored
    expected = calibration.false_alarm_rate * scored
    rows = [
        ("rows", f"{findings.rows:,}", ""),
        ("scored", f"{scored:,}", ""),
        ("could not be read or used", f"{findings.failed:,}", "see Errors" if findings.failed else ""),
        ("called outliers", f"{findings.outliers:,}", f"{share:.2%} of those scored"),
        ("expected, were all of them inliers", f"{expected:,.1f}", false_alarms(calibration)),
    ]
    return tables.html(DataTable(["quantity", "count", "note"], rows, align="lrl"))


def _extremes(artifact: Artifact, title: str, columns: Columns, calibration: Calibration) -> Section:
    model = artifact.model
    lowest = title.startswith("Most")
    extreme = "lowest" if lowest else "highest"
    intro = f"The {counted(len(columns['p']), 'row')} with the {extreme} {calibration.score}, in order."
    names = [name for name in columns if name in SCORES]
    shown = slice(0, 12)
    rows = [
        [place, "yes" if called else "", f"{p:.4g}", *map(float, values)]
        for place, called, p, *values in zip(
            *(columns[name][shown] for name in ("place", "called", "p", *names)), strict=True
        )
    ]
    blocks = []
    if not model.takes_features:
        if columns["images"].dtype == object:
            pair = pictures(columns["images"], lambda tiles: reconstructions(model, tiles))
            images, again = (_viewable(array, SIDE) for array in pair)
        else:
            pair = columns["images"], reconstructions(model, columns["images"])
            images, again = (_viewable(array) for array in pair)
        scale = max(1, LARGEST_SIDE // max(images.shape[2:]))
        maps = []
        if artifact.heatmaps is not None:
            maps_of = functools.partial(_maps, artifact.heatmaps)
            if columns["images"].dtype == object:
                shades = heat_pictures(columns["images"], maps_of, _colored)
            else:
                shades = _viewable(_colored(maps_of(columns["images"])))
            caption = "Where, from 0 (black) to 6 (pale yellow): -log10 of a pixel's p-value."
            maps = [document.image_grid(shades, columns=6, scale=scale, caption=caption)]
        blocks = [
            document.row(
                document.image_grid(images, columns=6, scale=scale, caption="The images."),
                *maps,
                document.image_grid(again, columns=6, scale=scale, caption="What the model makes of them: E[x|z]."),
            )
        ]
    elif columns["images"].dtype == np.uint8:  # which an encoder made rows of
        shown_images = _viewable(columns["images"])
        blocks = [document.image_grid(shown_images, columns=8, caption="The images.")]
    table = DataTable(
        ["file", "outlier", "p-value", *names], rows, align="lcr" + "r" * len(names),
        caption=f"The first {len(rows)} of them. Larger scores mean farther from the training data.",
    )  # fmt: skip
    return Section(title, Markup().join([*blocks, tables.html(table)]), intro)


def _maps(maps: Heatmaps, images: NDArray[Any]) -> NDArray[Any]:
    """Return the maps of images, N x H x W."""
    return maps(torch.from_numpy(images))


def _colored(values: NDArray[Any]) -> NDArray[np.uint8]:
    """Return maps (N x H x W) in the colors of `negvae.runs.pictures`, N x 3 x H x W."""
    levels = np.stack([np.asarray(picture(each)) for each in values])
    colors: NDArray[np.uint8] = palette()[levels].transpose(0, 3, 1, 2)
    return colors


def _viewable(images: NDArray[Any], largest: int = LARGEST_SIDE) -> NDArray[np.uint8]:
    """Return images with one or three channels (the mean of any other number), reduced to a size for a page."""
    if images.shape[1] not in (1, 3):
        images = images.mean(1, keepdims=True).round().astype(np.uint8)
    step = -(-max(images.shape[2:]) // largest)
    return np.ascontiguousarray(images[:, :, ::step, ::step])


def _histograms(calibration: Calibration, findings: Findings, sample: Columns) -> Section:
    scored = findings.rows - findings.failed
    count = len(sample["p"])
    drawn = "" if count == scored else f" The input is shown by {count:,} of its rows, evenly drawn."
    charts = []
    for name in shown_scores(calibration):
        series = {}
        if name in calibration.scores:
            series[f"held-out inliers ({calibration.size:,})"] = calibration.scores[name]
        series[f"input ({count:,})"] = sample[name]
        marks = {"threshold": calibration.cut} if name == calibration.score else None
        score = SCORES[name]
        charts.append(document.chart(figures.histogram(series, xlabel=score.axis, marks=marks), score.describe()))
    charts.append(p_value_chart(sample["p"]))
    return Section("Scores", document.row(*charts), f"Larger = more out-of-distribution.{drawn}")


def _map(artifact: Artifact, findings: Findings, sample: Columns) -> Section:
    """Plot the means of q(z|x) on the two directions of their largest variance."""
    inliers = training_inliers(artifact)
    codes = sample["codes"][:MAPPED]
    called = sample["called"][:MAPPED]
    groups: dict[str, NDArray[np.float64]] = {}
    if inliers is not None:
        groups[inliers[1]] = latent_means(artifact.model, inliers[0])
    groups["input, not called"] = codes[~called]
    groups["input, called outliers"] = codes[called]
    everything = np.concatenate(list(groups.values()))
    center = everything.mean(0)
    values, directions = np.linalg.svd(everything - center, full_matrices=False)[1:]
    share = values[:2] ** 2 / max((values**2).sum(), 1e-300)
    axes = directions[:2].T if len(directions) > 1 else np.eye(codes.shape[1], 2)
    placed = {f"{name} ({len(group):,})": tuple(((group - center) @ axes).T) for name, group in groups.items()}
    scored = findings.rows - findings.failed
    where = f" {len(codes):,} of the {scored:,} rows are shown, evenly drawn." if len(codes) < scored else ""
    where += "" if inliers is not None else " The training data is not at hand, so only the input is shown."
    labels = [f"principal component {number + 1} ({part:.0%})" for number, part in enumerate([*share, 0.0, 0.0][:2])]
    return Section(
        "Latent space",
        document.row(document.chart(figures.scatter(placed, xlabel=labels[0], ylabel=labels[1]))),
        f"Every point is the mean of one posterior q(z|x), {codes.shape[1]} numbers, seen along the two directions in"
        f" which these points vary most; in brackets, the share of their variance.{where}",
    )


def _provenance(artifact: Artifact, calibration: Calibration, inputs: Sequence[str]) -> Markup:
    now, then = provenance(artifact.config, artifact.scorer()), artifact.provenance
    data = described_data(then)
    return document.facts(
        {
            "Input": ", ".join(map(str, inputs)),
            "Detector": str(artifact.directory),
            "Decision": calibration.describe(),
            "Trained on": "; ".join(f"{role}: {text}" for role, text in data.items()) or artifact.config.data,
            "Negatives": artifact.config.negatives,
            "Training": f"{counted(artifact.epochs, 'epoch')}; negvae {then.get('negvae')},"
            f" commit {then.get('commit')}, {then.get('written')}, {then.get('device')}",
            "This page": f"negvae {now['negvae']}, commit {now['commit']}, {now['written']}, torch {now['torch']},"
            f" {now['device']}",
        }
    )
