"""The commands `negvae paper` and `negvae demo`: the paper's tables, and its main claim in minutes."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from negvae.cli.common import (
    Cluster,
    Device,
    completing,
    given,
    make_console,
    one_of,
    only_with_cluster,
    option,
    printer,
)
from negvae.paper import one_class
from negvae.paper import unsupervised as beyond
from negvae.paper.profiles import PROFILES, Profile, choose_profile, planned
from negvae.paper.published import TABLES, cells, select_settings, select_tables

if TYPE_CHECKING:
    from negvae.paper.runner import Outcome

app = typer.Typer(help="Rebuild the paper's tables beside the published figures.", no_args_is_help=True)

TableName = Annotated[
    str,
    typer.Argument(
        metavar="TABLE",
        help=f"{', '.join(TABLES)}, all (of these), or {beyond.TABLE} or {one_class.TABLE}, not in the paper.",
        autocompletion=completing([*TABLES, "all", beyond.TABLE, one_class.TABLE]),
        show_default=False,
    ),
]
ProfileName = Annotated[str, one_of("profile", PROFILES, "The recipe.")]
Results = Annotated[Path, typer.Option(help="Folder of the result files.")]
RESULTS = Path("results")


def demo(
    quick: Annotated[bool, typer.Option("--quick", help="Take fewer images and epochs: under 2 minutes.")] = False,
    out: Annotated[Path, typer.Option(help="Where the summary, the report and the models go.")] = Path("runs/demo"),
) -> None:
    """See the paper's claim happen: Fashion-MNIST against MNIST, with and without negatives."""
    from negvae.cli.progress import training_progress
    from negvae.paper.demo import run_demo

    run_demo(out, quick=quick, console=make_console(), show_progress=training_progress)


@app.command("list")
def list_(profile: ProfileName = "cpu", results: Results = RESULTS) -> None:
    """Show all tables and cells, the runs they refer to, and how many seeds of each there are."""
    from rich.table import Table

    from negvae.paper.results import collect

    _checked("all", results)
    recipe = choose_profile(profile)
    shown = Table(title=f"profile {recipe.name}: {recipe.description}")
    for title in ("cell", "run", "seeds"):
        shown.add_column(title, overflow="fold")
    for name, cell in cells().items():
        found = collect(cell, recipe, results)
        shown.add_row(name, cell.setting.name, f"{len(found.results) + len(found.diverged)} of {recipe.seeds}")
    make_console().print(shown)


@app.command()
def show(
    table: TableName,
    as_json: Annotated[bool, typer.Option("--json", help="Print a JSON list instead.")] = False,
    profile: ProfileName = "cpu",
    results: Results = RESULTS,
    page: Annotated[
        Path | None,
        typer.Option(
            help=f"Markdown file: with all, it is written anew; with {beyond.TABLE} or {one_class.TABLE}, the tables"
            " in it are replaced."
        ),
    ] = None,
) -> None:
    """Show our figures beside the paper's, with the difference and whether it lies within the combined spread."""
    from negvae.paper import show

    _checked(table, results)
    if table == one_class.TABLE:
        _show_one_class(profile, results, as_json, page)
        return
    if table == beyond.TABLE:
        _show_beyond(choose_profile(profile), results, as_json, page)
        return
    if page is not None and (table != "all" or as_json):
        raise ValueError(
            f"--page goes with all, {beyond.TABLE} or {one_class.TABLE}, and not with --json: a page holds all tables"
        )
    recipe, tables = choose_profile(profile), select_tables(table)
    found = show.gather(tables, recipe, results)
    if page is not None:
        from negvae.files import write_text
        from negvae.paper.pages import results_page

        write_text(page, results_page(found, recipe))
        printer(make_console())(f"written: {page}")
        return
    if as_json:
        print(json.dumps(show.as_json(found, recipe), indent=1))
        return
    console = make_console()
    log = printer(console)
    for one in tables:
        here = [found[cell.name] for cell in one.cells]
        console.print(show.show_table(one, found, console.width))
        log(f"Ours: {show.measured_on(here, recipe)}.")
        for remark in show.remarks(here, recipe):
            log(f"- {remark}")
        if not all(cell.results or cell.diverged for cell in here):
            log(f"A dash under ours: no result yet; make them with: {show.command(one.name, recipe)}")
        log("")
    log(f"{show.SPREAD} {show.LOOSE} {show.UNIT}")


def _checked(table: str, results: Path) -> None:
    """Refuse an unknown table, and a folder of results that was named and is not there."""
    from negvae.registry import choose

    choose("table", table, ["all", *TABLES, beyond.TABLE, one_class.TABLE])
    if results != RESULTS and not results.is_dir():
        raise FileNotFoundError(f"{results}: no such folder of results")


def _show_beyond(recipe: Profile, results: Path, as_json: bool, page: Path | None) -> None:
    """Show the table that is not in the paper: goals, published detectors, every score, proxies and the ablation."""
    from negvae.paper import unsupervised_show as show

    if as_json and page is not None:
        raise ValueError("--page does not go with --json: give one of them")
    found = show.gather(recipe, results)
    _printed(show, found, recipe, show.as_json(found, recipe) if as_json else None, page)


def _show_one_class(profile: str, results: Path, as_json: bool, page: Path | None) -> None:
    """Show the table of one class against the others, beside the goals and published means."""
    from negvae.paper import one_class_show as show
    from negvae.registry import choose

    if as_json and page is not None:
        raise ValueError("--page does not go with --json: give one of them")
    recipe = one_class.PROFILES[choose(f"profile of {one_class.TABLE}", profile, one_class.PROFILES)]
    found = show.gather(recipe, results)
    _printed(show, found, recipe, show.as_json(found) if as_json else None, page)


def _printed(show: Any, found: Any, recipe: Any, content: Any, page: Path | None) -> None:
    """Print a table by the functions of its module, or its content as JSON, and fill a page if there is one."""
    from negvae.report.tables import terminal

    if content is not None:
        print(json.dumps(content, indent=1))
        return
    console = make_console()
    for sheet in show.sheets(found):
        console.print(terminal(sheet))
    for remark in show.remarks(found, recipe):
        printer(console)(f"- {remark}")
    if page is not None:
        show.fill_page(page, found, recipe)
        printer(console)(f"written: {page}")


def _run_one_class(
    profile: str, only: list[str] | None, seeds: str | None, budget: float | None, results: Path, out: Path, device: str
) -> None:
    """Train and test a detector of each class; the exit code is that of `run`."""
    from negvae.cli.progress import training_progress
    from negvae.paper.one_class_runs import run_one_class
    from negvae.paper.profiles import parse_seeds
    from negvae.registry import choose

    recipe = one_class.PROFILES[choose(f"profile of {one_class.TABLE}", profile, one_class.PROFILES)]
    if budget is not None and not budget > 0:
        raise ValueError(f"--budget is {budget:g}: it must be above 0 seconds")
    numbers = None if seeds is None else tuple(parse_seeds(seeds, PROFILES[recipe.name]))
    chosen = one_class.runs(recipe, tuple(only or ()), numbers)
    console = make_console()
    log = printer(console)
    with training_progress(console) as on_progress:
        outcome = run_one_class(
            chosen, recipe, results, out, device=device, budget=budget, log=log, on_progress=on_progress
        )
    log(f"{outcome.done} of {len(chosen)} runs have a result; see: negvae paper show {one_class.TABLE}"
        + ("" if recipe.name == "cpu" else f" --profile {recipe.name}"))  # fmt: skip
    for name, message in outcome.failed.items():
        log(f"{name} failed: {message}")
    if outcome.left:
        log(f"{outcome.left} are left ({outcome.stopped_by}); the same command goes on with them")
    if outcome.stopped_by in ("SIGINT", "SIGTERM"):
        raise typer.Exit(128 + signal.Signals[outcome.stopped_by])
    if outcome.failed:
        raise typer.Exit(1)
    if outcome.left:
        raise typer.Exit(3)


@app.command()
def run(
    table: TableName,
    profile: ProfileName = "cpu",
    only: Annotated[
        list[str] | None,
        option(
            "A cell, such as table3/bernoulli/generated, or a run; may be repeated.",
            "name",
            show_default="all of the table",
        ),
    ] = None,
    seeds: Annotated[
        str | None, typer.Option(help="A count, or a list such as 0,2.", show_default="as the profile")
    ] = None,
    jobs: Annotated[int, typer.Option(help="Worker processes, which share the cores.")] = 1,
    budget: Annotated[float | None, option("Stop after this time, with checkpoints.", "seconds")] = None,
    results: Results = RESULTS,
    out: Annotated[Path, typer.Option(help="Where models and checkpoints go.")] = Path("runs/paper"),
    device: Device = "auto",
    cluster: Cluster = None,
    cpus_per_run: Annotated[float | None, option("Cores of each run; 1 if left out.", panel="Cluster")] = None,
    gpus_per_run: Annotated[
        float | None, option("GPUs of each run, such as 0.2; none if left out.", panel="Cluster")
    ] = None,
) -> None:
    """Train and test the models that a table needs.

    Finished runs are kept, and stopped ones continue. The exit code is 3 if some runs are left.
    """
    if table == one_class.TABLE:
        if jobs != 1 or cluster is not None:
            raise ValueError(f"{table} takes neither --jobs nor --cluster: commands side by side share its runs")
        only_with_cluster(cpus_per_run=cpus_per_run, gpus_per_run=gpus_per_run)
        _run_one_class(profile, only, seeds, budget, results, out, device)
        return
    _checked(table, RESULTS)
    recipe = choose_profile(profile)
    settings = beyond.settings(tuple(only or ())) if table == beyond.TABLE else select_settings(table, only or [])
    runs = tuple(planned(settings, seeds, recipe))
    from negvae.paper.results import table_of
    from negvae.paper.runner import Plan, run_plan

    plan = Plan(recipe.name, runs, results, out, device)
    tasks = None
    if cluster is not None:
        from negvae.cluster.paper import Tasks

        if jobs != 1:
            raise ValueError("--jobs does not go with --cluster: as many runs go on as there is room for")
        tasks = Tasks(cluster, **given(cpus=cpus_per_run, gpus=gpus_per_run))
    else:
        only_with_cluster(cpus_per_run=cpus_per_run, gpus_per_run=gpus_per_run)
    console = make_console()
    outcome = run_plan(plan, jobs=jobs, budget=budget, workers=tasks, console=console)
    log = printer(console)
    for name, message in outcome.failed.items():
        log(f"{name} failed: {message}")
    path = table_of(results, recipe).path
    log(f"{outcome.done} of {len(plan.runs)} runs are in {path}; see: negvae paper show {table}"
        + ("" if recipe.name == "cpu" else f" --profile {recipe.name}"))  # fmt: skip
    if outcome.left:
        log(f"{outcome.left} are left ({_reason(outcome, budget)}); the same command goes on with them")
    if outcome.stopped_by in ("SIGINT", "SIGTERM"):
        raise typer.Exit(128 + signal.Signals[outcome.stopped_by])
    if outcome.failed:
        raise typer.Exit(1)
    if outcome.left:
        raise typer.Exit(3)


def _reason(outcome: Outcome, budget: float | None) -> str:
    """Return the reason why runs are left."""
    if outcome.stopped_by == "finished":
        return f"{len(outcome.busy)} at another process" if outcome.busy else "see above"
    return f"the budget of {budget or 0:g} s is used up" if outcome.stopped_by == "budget" else outcome.stopped_by


@app.command()
def report(
    out: Annotated[Path, typer.Option(help="Folder for page, tables and charts.")] = Path("runs/report"),
    profile: ProfileName = "cpu",
    results: Results = RESULTS,
    runs: Annotated[Path, typer.Option(help="Where the runs' own folders are, with their pictures.")] = Path(
        "runs/paper"
    ),
) -> None:
    """Write one page with tables, charts and pictures; tables as Markdown and LaTeX, charts as PDF and PNG too."""
    from negvae.paper.reproduction import write_report

    log = printer(make_console())
    for path in write_report(out, choose_profile(profile), results, runs):
        log(f"written: {path}")
