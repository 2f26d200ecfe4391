"""The commands `negvae score`, `negvae report` and `negvae export`: use a calibrated model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from negvae.cli.common import (
    CALIBRATED,
    Cluster,
    Confidence,
    Device,
    Embed,
    Inputs,
    Model,
    Precision,
    Resize,
    TargetFPR,
    Workers,
    completing,
    given,
    make_console,
    only_with_cluster,
    option,
    printer,
    score_help,
    scoring_by,
)
from negvae.messages import counted
from negvae.scoring.table import SCORES

Decides = Annotated[
    str | None,
    option(
        f"The score that decides. {score_help()}", "name", show_default=CALIBRATED, autocompletion=completing(SCORES)
    ),
]
DECISION = "Scores and decision"


def score(
    directory: Model,
    inputs: Inputs,
    out: Annotated[
        str | None,
        option(
            "File to write: .parquet, .csv or .jsonl; or a folder of parts, which --resume goes on with. Without it"
            " rows are printed.",
            "path",
        ),
    ] = None,
    format: Annotated[
        str | None,
        option(
            "One of: parquet, csv, jsonl; or fiftyone, label-studio, which those tools import.",
            "name",
            show_default="by the ending of --out, else jsonl",
        ),
    ] = None,
    score: Annotated[
        list[str] | None,
        option(
            f"A score to compute; may be repeated, and the first one decides. {score_help()}",
            "name",
            DECISION,
            show_default=CALIBRATED,
            autocompletion=completing(SCORES),
        ),
    ] = None,
    target_fpr: Annotated[
        float | None,
        option(
            "Decide by this rate of false alarms: outliers have p-values up to it.",
            "rate",
            DECISION,
            show_default="the calibrated threshold",
        ),
    ] = None,
    confidence: Annotated[
        float | None,
        option("Confidence with which --target-fpr is to hold.", "probability", DECISION, show_default="on average"),
    ] = None,
    groups: Annotated[
        str | None,
        option(
            "Decide by the group of each row: folders (a folder above the file has its name), or the name of a column.",
            "name",
            DECISION,
            show_default="the largest p-value over groups, where there are any",
        ),
    ] = None,
    fdr: Annotated[
        float | None, option("Decide over all rows together, at this false-discovery rate.", "rate", DECISION)
    ] = None,
    ensemble: Annotated[
        list[Path] | None, option("Folder of a further model, for waic; may be repeated.", "folder", DECISION)
    ] = None,
    heatmaps: Annotated[
        Path | None,
        option("New folder for a PNG of each image that shows where it is out-of-distribution.", "folder"),
    ] = None,
    resize: Resize = False,
    max_pixels: Annotated[int, option("Refuse images that claim more than this.", "pixels")] = 64_000_000,
    embed: Embed = None,
    batch_size: Annotated[int, option("Images read at once.", "images")] = 512,
    precision: Precision = None,
    device: Device = "auto",
    workers: Workers = None,
    cluster: Cluster = None,
    gpus: Annotated[
        float | None, option("GPUs of each worker, such as 0.25; none if left out.", panel="Cluster")
    ] = None,
    shard_rows: Annotated[
        int | None,
        option(
            "Write parts of at most so many rows into the folder --out; if left out, 10,000, or as before with"
            " --resume. A .npz file or a table of rows of features is one part.",
            "rows",
        ),
    ] = None,
    resume: Annotated[
        bool,
        typer.Option("--resume", help="Go on with the parts in the folder --out."),
    ] = False,
) -> None:
    """Score images, one row each: path, index, scores, p-value, decision and error."""
    from rich.console import Console

    from negvae.cli.progress import row_progress
    from negvae.data.stores import local_path

    console = Console(stderr=True, emoji=False)
    log = printer(console)
    options: dict[str, Any] = dict(
        names=score or (), target_fpr=target_fpr, confidence=confidence, groups=groups, resize=resize,
        max_pixels=max_pixels, batch_size=batch_size, ensemble=ensemble or (), precision=precision, embed=embed,
        log=log,
    )  # fmt: skip
    if cluster is not None and workers is not None:
        raise ValueError("--workers does not go with --cluster: there the cluster says how many")
    out = None if out is None else local_path(out)
    with row_progress(console) as on_rows, scoring_by(workers):
        if not _in_parts(out, resume or shard_rows is not None or cluster is not None):
            only_with_cluster(gpus=gpus)
            from negvae.runs.score import score_files

            file = None if out is None else Path(out)
            options |= dict(form=format, fdr=fdr, device=device, on_rows=on_rows, heatmaps=heatmaps)
            done = score_files(directory, inputs, file, **options)
        else:
            device_asked = device if device != "auto" and cluster is not None else None
            for name in given(format=format, fdr=fdr, device=device_asked):
                what = "a folder of parts" if cluster is None else "--cluster"
                raise ValueError(
                    f"--{name} does not go with {what}: parts are Parquet, decided row by row, and on a cluster made"
                    " by CPUs or the --gpus of each worker"
                )
            if heatmaps is not None:
                raise ValueError("--heatmaps does not go with a folder of parts or --cluster: score into one file")
            if out is None:
                raise ValueError("parts are written to a folder: give --out")
            options |= dict(resume=resume, on_rows=on_rows, **given(shard_rows=shard_rows))
            if cluster is None:
                only_with_cluster(gpus=gpus)
                from negvae.runs.parts import score_to_folder

                done = score_to_folder(directory, inputs, out, device=device, **options)
            else:
                from negvae.cluster.score import score_on_cluster

                done = score_on_cluster(directory, inputs, out, address=cluster, **given(gpus=gpus), **options)
    log(done.describe() if out is None else f"{done.describe()}: {out}")
    if done.errors == done.rows:
        log("not a single row could be scored" + (f": {done.first_error}" if done.first_error else ""))
        raise typer.Exit(1)
    if done.first_error:
        log(f"the first error: {done.first_error}")


def _in_parts(out: str | None, asked: bool) -> bool:
    """Return whether the output is a folder of parts.

    Args:
        out: path or URI of the output.
        asked: whether an option asks for parts.

    Returns:
        Whether an option does, or the output is a folder.

    Raises:
        ValueError: if the output is named as a file and parts are asked for, or is a file in a store.
    """
    from negvae.data.stores import is_uri
    from negvae.runs.writers import TABLES

    if out is None:
        return asked
    if out.endswith("/") or Path(out).is_dir():
        return True
    if asked and Path(out).suffix.lower()[1:] in TABLES:
        raise ValueError(f"--out {out} is the name of a file, and parts are written to a folder: end its name in /")
    if not asked and is_uri(out):
        raise ValueError(
            f"--out {out}: one file is written to this machine; into a store go parts, with a / at the end"
        )
    return asked


def report(
    directory: Model,
    inputs: Inputs,
    out: Annotated[Path, typer.Option(help="The page to write.")] = Path("report.html"),
    score: Decides = None,
    target_fpr: TargetFPR = None,
    confidence: Confidence = None,
    top: Annotated[int, option("How many of the most and of the least typical images to show.", "images")] = 40,
    resize: Resize = False,
    embed: Embed = None,
    precision: Precision = None,
    device: Device = "auto",
) -> None:
    """Write one HTML page about images: the least typical ones, histograms, latent space and reconstructions."""
    from rich.console import Console

    from negvae.cli.progress import row_progress
    from negvae.report.page import write_report

    console = Console(stderr=True, emoji=False)
    with row_progress(console) as on_rows:
        found = write_report(
            directory, inputs, out, score=score, target_fpr=target_fpr, confidence=confidence, resize=resize, top=top,
            precision=precision, embed=embed, device=device, on_rows=on_rows,
        )  # fmt: skip
    done = f"{found.rows - found.failed:,} scored, {counted(found.outliers, 'outlier')}"
    printer(console)(f"{done}, {counted(found.failed, 'error')}: {out}")


def export(
    directory: Model,
    format: Annotated[str, option("The only one is onnx.", "name")] = "onnx",
    out: Annotated[Path | None, typer.Option(help="File to write.", show_default="DIRECTORY/model.onnx")] = None,
    triton: Annotated[
        Path | None, option("Write into this model repository of Triton, with a config.pbtxt, instead.", "folder")
    ] = None,
    score: Decides = None,
    target_fpr: TargetFPR = None,
    confidence: Confidence = None,
) -> None:
    """Write one file that takes images and returns score, p-value and decision."""
    from negvae.registry import choose
    from negvae.runs.export import FORMATS, export_onnx
    from negvae.runs.triton import export_triton

    choose("format", format, FORMATS)
    if triton is not None:
        if out is not None:
            raise ValueError("--out and --triton are two places to write to: give one")
        written = export_triton(directory, triton, score=score, target_fpr=target_fpr, confidence=confidence)
    else:
        written = export_onnx(directory, out, score=score, target_fpr=target_fpr, confidence=confidence)
    printer(make_console())(f"{written.path}: {written.describe()}")
