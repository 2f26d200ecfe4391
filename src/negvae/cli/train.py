"""The command `negvae train`, whose options are the fields of `negvae.config.RunConfig`."""

from __future__ import annotations

import dataclasses
import inspect
import os
import signal
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperCommand

from negvae import config as configs
from negvae.cli.common import (
    Cluster,
    completing,
    given,
    listed,
    make_console,
    one_of,
    only_with_cluster,
    option,
    printer,
    set_names,
)
from negvae.messages import counted, quoted
from negvae.parts import SOURCES
from negvae.registry import choose
from negvae.training.tracking import TRACKERS, tracked

if TYPE_CHECKING:
    from negvae.training.loop import TrainingResult

PANELS = ("Data", "Model", "Negatives", "Training", "Calibration", "Machine")
FIELDS = {field.name: field for field in dataclasses.fields(configs.RunConfig)}
OPTIONS = {name: field for name, field in FIELDS.items() if field.metadata["unit"] != "mapping"}
"""The fields that have an option; a mapping is given in a file."""
TURNS = "turns for 300 to 10,000 training images or tiles, or more whole photos, else none"
STEPS_OF_ROWS = "as many as make 500 steps"
KINDS = {"str": str, "int": int, "float": float, "bool": bool}


def _negatives(incomplete: str) -> list[str]:
    """Return the kinds of negatives, and the data sets, whose names begin with what has been typed."""
    return list(dict.fromkeys([*completing(("none", *SOURCES))(incomplete), *set_names(incomplete)]))


COMPLETIONS = {"data": set_names, "negatives": _negatives}


class ShowsPreset(TyperCommand):
    """A command whose --help shows the values of the preset named before it as the defaults of its options."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Write the help text."""
        preset = ctx.params.get("preset") or configs.DEFAULT_PRESET
        values: dict[str, Any] = {name: field.default for name, field in OPTIONS.items() if name != "data"}
        values |= {**configs.PRESETS[preset], "preset": preset}
        values["negatives"] = values["negatives"].replace(",", ", ")  # so that lines break
        if preset == configs.DEFAULT_PRESET:
            values["transformations"] = TURNS
        values["batch_size"] = f"{values['batch_size']}, less for little data"
        rows = preset == "features"
        if rows:
            values["calibration"] = f"{values['calibration']}, up to half of more than 500 rows"
        values["epochs"] = STEPS_OF_ROWS if rows else f"{values['epochs']}, more for little data"
        ctx.default_map = {name: value for name, value in values.items() if not isinstance(value, bool | None)}
        super().format_help(ctx, formatter)


def _with_run_options(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command an option for each field of `RunConfig` in place of its `**fields`."""
    signature = inspect.signature(command, eval_str=True)
    own = [each for each in signature.parameters.values() if each.kind is not each.VAR_KEYWORD]
    fields = sorted(OPTIONS.values(), key=lambda field: PANELS.index(field.metadata["panel"]))
    command.__signature__ = signature.replace(parameters=[*map(_parameter, fields), *own])  # type: ignore[attr-defined]
    return command


def _parameter(field: dataclasses.Field[Any]) -> inspect.Parameter:
    """Return the option of a field; `RunConfig` checks its value, and imports plugins if it does not know a name."""
    kind, names = KINDS[str(field.type).partition(" | ")[0]], field.metadata["choices"]
    shown = typer.Option(
        None,
        f"--{field.name.replace('_', '-')}",
        help=" ".join([field.metadata["help"], *([listed(names)] if names else [])]),
        metavar=f"<{field.metadata['unit']}>" if field.metadata["unit"] else None,
        autocompletion=COMPLETIONS.get(field.name, completing(names) if names else None),
        rich_help_panel=field.metadata["panel"],
        is_eager=field.name == "negatives",  # so that --help knows them
    )
    return inspect.Parameter(field.name, inspect.Parameter.KEYWORD_ONLY, default=shown, annotation=kind | None)


@_with_run_options
def train(
    *,
    out: Annotated[Path, typer.Option(help="Folder of the run: model, metrics and checkpoints.")],
    preset: Annotated[
        str | None,
        one_of(
            "preset",
            configs.PRESETS,
            "The recipe that fills what you leave out; `--preset NAME --help` shows its values.",
            is_eager=True,
        ),
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option(
            exists=True,
            dir_okay=False,
            help="YAML file of options, such as the config.yaml of a run; options on the command line override it.",
        ),
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run in --out, exactly.")] = False,
    budget: Annotated[float | None, option("Stop after this time, with a checkpoint.", "seconds")] = None,
    checkpoint_seconds: Annotated[float, option("Time from one checkpoint to the next.", "seconds")] = 60.0,
    track: Annotated[
        list[str] | None,
        one_of("tracker", TRACKERS, "Send the losses of every epoch there; may be repeated."),
    ] = None,
    heatmaps: Annotated[
        bool,
        typer.Option(
            "--heatmaps",
            help="Train maps of where in an image it is out-of-distribution, too, which takes minutes. For a folder of"
            " images they are trained without this option.",
        ),
    ] = False,
    no_heatmaps: Annotated[bool, typer.Option("--no-heatmaps", help="Leave the maps out.")] = False,
    cluster: Cluster = None,
    workers: Annotated[
        int | None,
        option(
            "Workers of one thread each that share each batch on a CPU: the result is that of one but for rounding, and"
            " the same bits for the same number. Left out: as many as a short measurement finds to pay. With --cluster:"
            " the most workers on the cluster, 2 if left out.",
            panel="Machine",
        ),
    ] = None,
    cpus_per_worker: Annotated[
        int | None, option("Cores of each worker, 1 if left out; with --device cuda it has a GPU too.", panel="Cluster")
    ] = None,
    **fields: Any,
) -> None:
    """Train a model on inliers, with or without negative samples.

    Preset unsupervised is the default: it makes negatives from the inliers where none are named.
    """
    for name, seconds in (("--budget", budget), ("--checkpoint-seconds", checkpoint_seconds)):
        if seconds is not None and not seconds > 0:
            raise ValueError(f"{name} is {seconds:g}: it must be above 0 seconds")
    if heatmaps and no_heatmaps:
        raise ValueError("--heatmaps asks for what --no-heatmaps leaves out: give one of them")
    asked, named = {} if config is None else _read(config), given(**fields)
    if {"fit", "side"} & named.keys() or {"data"} & named.keys() & asked.keys():
        asked.pop("images", None)  # which describes another fit, or what was chosen for other data
    asked |= named
    if isinstance(asked.get("data"), str):
        asked["data"] = os.path.expanduser(asked["data"])  # as the run has it that is gone on with
    run_config, left_open = _described(out, preset, asked, resume)
    from negvae.cli.progress import training_progress
    from negvae.runs.train import run

    console = make_console()
    log = printer(console)
    team: dict[str, Any]
    with ExitStack() as connection:
        if cluster is not None:
            from negvae.cluster.connect import joined
            from negvae.cluster.train import Team

            connection.enter_context(joined(cluster))  # before anything is written
            team = {"trainer": Team(address=cluster, log=log, **given(workers=workers, cpus=cpus_per_worker))}
        else:
            only_with_cluster(cpus_per_worker=cpus_per_worker)
            team = {"workers": workers}
        on_progress = connection.enter_context(training_progress(console))
        if track:
            on_progress = connection.enter_context(tracked(track, run_config.to_dict(), out, on_progress))
        result = run(
            run_config, out, resume=resume, budget=budget, checkpoint_seconds=checkpoint_seconds,
            on_progress=on_progress, log=log, left_open=left_open,
            heatmaps=heatmaps or (False if no_heatmaps else None),
            **team,
        )  # fmt: skip
    _conclude(result, out, budget, log)


def _described(
    out: Path, preset: str | None, asked: dict[str, Any], resume: bool
) -> tuple[configs.RunConfig, list[str]]:
    """Return the run to carry out: the requested fields, and the others from a preset or from the run to resume.

    The second value is the list of fields that the number of images decides.
    """
    if resume and (out / "config.yaml").exists():
        from negvae.runs.resolve import LEFT_OPEN
        from negvae.runs.train import resumed_config

        # A preset leaves some fields to the number of images, which has set them.
        named = {} if preset is None else configs.PRESETS[preset]
        fixed = {name: value for name, value in named.items() if name not in LEFT_OPEN}
        return resumed_config(out, {**fixed, **asked}), []
    if "data" not in asked:
        if resume:
            raise FileNotFoundError(f"{out} holds no run to go on with: name its folder, or give --data for a new run")
        raise ValueError("--data is missing: name a data set or give a path")
    from negvae.data.rows import holds_rows
    from negvae.runs.resolve import fields_left_open

    if preset is None:
        rows = "embed" in asked or holds_rows(asked["data"])
        preset = "features" if rows else configs.DEFAULT_PRESET
    return configs.preset(preset, **asked), fields_left_open(preset, asked)


def _read(path: Path) -> dict[str, Any]:
    """Return the fields in a YAML file: fields alone, or the section `run` of a run's config.yaml.

    Raises:
        ValueError: if the file is not such a YAML file, or a field is unknown.
    """
    try:
        content = configs.read_yaml_mapping(path.read_text(encoding="utf-8"), str(path))
    except UnicodeDecodeError:
        raise ValueError(f"{path}: not a text file") from None
    values: Any = content.get("run", content)
    if not isinstance(values, dict):
        raise ValueError(f"{path}: run is {values!r}: it must be a mapping of fields to values")
    fields = configs.translated(values, content.get("format", 1 if "run" in content else configs.FORMAT))
    for name in fields:
        choose(f"field in {path}", name, FIELDS)
    return fields


def _conclude(result: TrainingResult, out: Path, budget: float | None, log: Callable[[str], None]) -> None:
    """Print how training ended; if a signal ended it, exit with the signal's exit code."""
    progress = result.progress
    if result.stopped_by == "finished":
        log(f"finished {counted(progress.epoch, 'epoch')} in {progress.seconds:.0f} s: {out}")
        return
    reason = f"the budget of {budget:g} s is used up" if result.stopped_by == "budget" else result.stopped_by
    place = f"in epoch {progress.epoch + 1} at step {progress.step}"
    if progress.finished:
        place = "before the heat maps were complete; the run scores without them"
    elif progress.shift_steps[0]:
        place = "at step {} of {} of the encoder of transformations".format(*progress.shift_steps)
    log(f"stopped {place} ({reason}); go on with: negvae train --out {quoted(out)} --resume")
    if result.stopped_by != "budget":
        raise typer.Exit(128 + signal.Signals[result.stopped_by])
