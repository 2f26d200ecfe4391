"""The commands `negvae evaluate` and `negvae calibrate`: test a trained model, and set its threshold."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from negvae.cli.common import (
    Confidence,
    Device,
    Embed,
    Model,
    Precision,
    Workers,
    given,
    make_console,
    one_of,
    option,
    printer,
    score_help,
    scoring_by,
    set_names,
)
from negvae.config import SCORE_PRECISIONS


def evaluate(
    directory: Model,
    ood: Annotated[
        list[str] | None,
        option(
            "Out-of-distribution set; may be repeated. A folder in the layout of MVTec AD has its own.",
            "name or path",
            autocompletion=set_names,
        ),
    ] = None,
    data: Annotated[
        str | None,
        option(
            "Inliers that the model was not trained on.",
            "name or path",
            autocompletion=set_names,
            show_default="the test split of the run's data",
        ),
    ] = None,
    samples: Annotated[int, option("Posterior samples for the ELBO.")] = 1,
    limit: Annotated[int | None, option("Score the first so many images of each set, not all.", "images")] = None,
    precision: Precision = None,
    embed: Embed = None,
    device: Device = "auto",
    workers: Workers = None,
) -> None:
    """Test how well a model separates its data from other sets; write DIRECTORY/evaluation.json.

    Data in the layout of MVTec AD (train/good, test/*, ground_truth/*) is tested by kind of defect, and by pixel.
    """
    console = make_console()
    log = printer(console)
    with scoring_by(workers):
        if ood:
            from negvae.runs.evaluate import evaluate_run, evaluation_table

            table = evaluation_table(
                evaluate_run(
                    directory,
                    ood,
                    data=data,
                    samples=samples,
                    precision=precision,
                    device=device,
                    limit=limit,
                    embed=embed,
                    log=log,
                )
            )
        else:
            from negvae.runs.defects import defects_table, evaluate_defects

            root = _defects_of(directory, data)
            for name in given(limit=limit, samples=samples if samples != 1 else None):
                raise ValueError(f"--{name} goes with --ood: a folder in the layout of MVTec AD is scored as it is")
            table = defects_table(
                evaluate_defects(directory, root, precision=precision, device=device, embed=embed, log=log)
            )
    console.print(table)
    log(f"written: {directory / 'evaluation.json'}")


def _defects_of(directory: Path, data: str | None) -> Path:
    """Return the folder in the layout of MVTec AD to test on; if there is none, --ood is missing."""
    from negvae.data.load import is_defect_layout
    from negvae.files import home
    from negvae.runs.artifact import read_config

    root = home(read_config(directory)[0].data if data is None else data)
    if not is_defect_layout(root):
        raise ValueError(
            "--ood is missing: name an out-of-distribution set, or with --data a folder with train/good, test/good and"
            " test/KIND, as in MVTec AD"
        )
    return root


def calibrate(
    directory: Model,
    data: Annotated[
        str | None,
        option(
            "Inliers that the model was not trained on.",
            "name or path",
            autocompletion=set_names,
            show_default="what the run held out, else the test split of its data",
        ),
    ] = None,
    score: Annotated[
        str | None,
        option(f"The score that decides. {score_help()}", "name", show_default="the present one, else combined"),
    ] = None,
    target_fpr: Annotated[
        float | None,
        option(
            "Rate of false alarms that the threshold is set for.",
            "rate",
            show_default="the present rule, else that of the training, else 0.05",
        ),
    ] = None,
    confidence: Confidence = None,
    groups: Annotated[
        str | None,
        option(
            "p-values and a threshold for each group: folders (a subfolder of --data for each), or the name of a column"
            " of a CSV or Parquet file.",
            "name",
            show_default="those of the run; none with --data",
        ),
    ] = None,
    limit: Annotated[int | None, option("Use the first so many inliers, not all.", "images")] = None,
    precision: Annotated[
        str,
        one_of(
            "precision",
            SCORE_PRECISIONS,
            "The arithmetic of the scores from then on. Every processor has float32; int8 is for"
            " networks of plain convolutions on a CPU.",
            panel="Machine",
        ),
    ] = "float32",
    embed: Embed = None,
    device: Device = "auto",
    workers: Workers = None,
) -> None:
    """Set a model's p-values and threshold from inliers that it was not trained on."""
    from negvae.runs.calibrate import calibrate_run

    log = printer(make_console())
    with scoring_by(workers):
        calibration = calibrate_run(
            directory,
            data,
            score=score,
            target_fpr=target_fpr,
            confidence=confidence,
            groups=groups,
            precision=precision,
            limit=limit,
            embed=embed,
            device=device,
            log=log,
        )
    log(f"{directory}: {calibration.describe()}")
