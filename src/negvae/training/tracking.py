"""Trackers: the losses and metrics of every epoch, sent to TensorBoard, MLflow or Weights & Biases.

Each tracker is a context manager that gives a function for `on_progress` of `negvae.training.loop.train`. Where the
records go is set as the tracker's own users set it: MLFLOW_TRACKING_URI, WANDB_MODE=offline and so on.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from numbers import Real
from pathlib import Path
from typing import Any

from negvae.files import need
from negvae.messages import first_line
from negvae.registry import choose
from negvae.training.reporting import OnProgress, ProgressUpdate

Tracker = Callable[[dict[str, Any], Path], AbstractContextManager[OnProgress]]
"""A function from the fields of a run's configuration and its folder to a context manager."""


@contextmanager
def tensorboard(fields: dict[str, Any], directory: Path) -> Iterator[OnProgress]:
    """Write event files to the subfolder "tensorboard" of a run; read them with `tensorboard --logdir RUN`.

    Args:
        fields: fields of the run's configuration, written as text.
        directory: folder of the run.

    Yields:
        The function for `on_progress`.

    Raises:
        ImportError: if the extra "tensorboard" is not installed.
    """
    need("tensorboard", "tensorboard")
    from torch.utils.tensorboard import SummaryWriter

    with ExitStack() as opened:
        writers: list[SummaryWriter] = []

        def record(update: ProgressUpdate) -> None:
            if not writers:  # not before the run has its folder, which must be empty
                writers.append(opened.enter_context(SummaryWriter(str(directory / "tensorboard"))))
                writers[0].add_text("config", "\n".join(f"    {name}: {value}" for name, value in fields.items()))
            for name, value in metrics(update).items():
                writers[0].add_scalar(name, value, update.epoch)

        yield record


@contextmanager
def mlflow(fields: dict[str, Any], directory: Path) -> Iterator[OnProgress]:
    """Record an MLflow run, named by the run's folder, in the experiment that MLflow is set to.

    Args:
        fields: fields of the run's configuration, which become parameters.
        directory: folder of the run.

    Yields:
        The function for `on_progress`.

    Raises:
        ImportError: if the extra "mlflow" is not installed.
    """
    library = need("mlflow", "mlflow")
    with library.start_run(run_name=directory.name):
        library.log_params({name: str(value)[:500] for name, value in fields.items()})
        yield lambda update: library.log_metrics(metrics(update), step=update.epoch) if update.row else None


@contextmanager
def wandb(fields: dict[str, Any], directory: Path) -> Iterator[OnProgress]:
    """Record a run of the project "negvae" of Weights & Biases, named by the run's folder.

    Args:
        fields: fields of the run's configuration.
        directory: folder of the run.

    Yields:
        The function for `on_progress`.

    Raises:
        ImportError: if the extra "wandb" is not installed.
    """
    library = need("wandb", "wandb")
    with library.init(project="negvae", name=directory.name, config=fields) as run:
        yield lambda update: run.log(metrics(update), step=update.epoch) if update.row else None


TRACKERS: dict[str, Tracker] = {"tensorboard": tensorboard, "mlflow": mlflow, "wandb": wandb}
"""The trackers by the names that `negvae train --track` takes."""


def metrics(update: ProgressUpdate) -> dict[str, float]:
    """Return the numbers of an epoch that has just ended; nothing between the ends of epochs.

    Args:
        update: report of the training loop.

    Returns:
        The numbers by name, without the number of the epoch.

    >>> metrics(ProgressUpdate(2, 3, 1, 1, {}, 10.0, 0.0, row={"epoch": 2, "kl": 8.5, "precision": "float32"}))
    {'kl': 8.5}
    """
    row = update.row or {}
    return {name: float(value) for name, value in row.items() if isinstance(value, Real) and name != "epoch"}


@contextmanager
def _outlived(name: str, tracker: AbstractContextManager[OnProgress]) -> Iterator[OnProgress]:
    """Open a tracker whose later failures are warnings, since hours of training weigh more than their record."""
    failed = False

    def fail(error: Exception) -> None:
        nonlocal failed
        failed = True
        warnings.warn(f"tracker {name} failed ({first_line(error)}): training goes on without it", stacklevel=2)

    try:
        record = tracker.__enter__()
    except ImportError:
        raise
    except Exception as error:  # each library has exceptions of its own
        raise ValueError(f"tracker {name} does not begin: {first_line(error)}") from error

    def attempt(update: ProgressUpdate) -> None:
        if not failed:
            try:
                record(update)
            except Exception as error:
                fail(error)

    try:
        yield attempt
    except BaseException as error:
        with suppress(Exception):
            tracker.__exit__(type(error), error, error.__traceback__)
        raise
    try:
        tracker.__exit__(None, None, None)
    except Exception as error:
        fail(error)


@contextmanager
def tracked(
    names: Iterable[str], fields: dict[str, Any], directory: Path, on_progress: OnProgress
) -> Iterator[OnProgress]:
    """Call several trackers, and a function that shows progress, with each report of the training loop.

    Args:
        names: names of trackers.
        fields: fields of the run's configuration.
        directory: folder of the run.
        on_progress: function that shows progress.

    Yields:
        The function for `on_progress` of the training loop.

    Raises:
        ImportError: if a tracker's extra is not installed.
        ValueError: if a name is unknown, or a tracker cannot begin.

    Warns:
        UserWarning: if a tracker fails later, such as one whose server is gone: training goes on without it.
    """
    with ExitStack() as opened:
        chosen = {name: TRACKERS[choose("tracker", name, TRACKERS)] for name in names}
        records = [on_progress]
        for name, tracker in chosen.items():
            records.append(opened.enter_context(_outlived(name, tracker(fields, directory))))

        def everything(update: ProgressUpdate) -> None:
            for record in records:
                record(update)

        yield everything
