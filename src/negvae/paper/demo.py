"""Demonstration in one command: the paper's claim on Fashion-MNIST against MNIST, in minutes on a CPU."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console

from negvae.checksums import file_sha256
from negvae.config import RunConfig, preset
from negvae.data import ImageSet, load
from negvae.files import from_json, temporary_folder, write_text
from negvae.paper.demo_plan import DemoPlan, measure, plan, shortened
from negvae.report import document, figures, tables
from negvae.report.document import Section
from negvae.report.samples import pictures
from negvae.report.tables import DataTable
from negvae.runs.evaluate import with_interval
from negvae.runs.provenance import provenance
from negvae.runs.sets import describe
from negvae.runs.train import run
from negvae.scoring.comparison import Comparison, compare
from negvae.scoring.metrics import roc_curve
from negvae.training.reporting import OnProgress

TRAIN, OOD = "fashion-mnist", "mnist"
LETTERS = ("emnist-letters", "kmnist")
# The paper's recipe takes 100 epochs; this one is for a first look. It was chosen for its time and the inliers'
# likelihood; the OOD set had no say in it.
RECIPE = dict(optimizer="adam", learning_rate=1e-3, batch_size=128)
SHOWN = 16
MARK = ".negvae-demo"
SUMMARY, PAGE = "summary.json", "report.html"

PAPER = {
    # negatives: (AUC BPD, AUC KL, where), mean (standard deviation) of 5 seeds, Bernoulli likelihood
    "none": ("0.46 (0.05)", "0.61 (0.09)", "Table 3, baseline"),
    "augmented": ("0.70 (0.13)", "0.88 (0.07)", "Table 3, generated: the paper's label-free variant"),
    "auxiliary:emnist-letters": ("1.00 (0.00)", "1.00 (0.00)", "Table 3, EMNIST-Letters"),
    "auxiliary:kmnist": ("1.00 (0.00)", "1.00 (0.00)", "Table 5, KMNIST"),
}


@dataclass(frozen=True)
class Trial:
    """One trained model of the demo.

    Attributes:
        negatives: source of the negatives that the model was trained with.
        comparison: comparison of the inliers' test set with the OOD set.
        train_seconds: seconds that training took.
        images_per_second: training images per second, over all epochs.
        pictures: uint8 images by caption, each n x 1 x 28 x 28.
    """

    negatives: str
    comparison: Comparison
    train_seconds: float
    images_per_second: float
    pictures: dict[str, np.ndarray]

    def row(self) -> dict[str, Any]:
        """Return the trial's row of summary.json."""
        values = self.comparison.row()
        kept = ("auc_bpd", "auc_bpd_ci", "auc_kl", "auc_kl_ci")
        return {
            "negatives": self.negatives,
            "train": TRAIN,
            "ood": OOD,
            **{name: values[name] for name in kept},
            "train_seconds": round(self.train_seconds, 1),
            "images_per_second": round(self.images_per_second, 1),
            "nats_per_dim_test": values["nats_per_dim_test"],
            "nats_per_dim_ood": values["nats_per_dim_ood"],
        }


ShowProgress = Callable[[Console], AbstractContextManager[OnProgress]]
"""Function that makes, for a console, a context around one training run that yields the progress callback."""


def run_demo(out: Path, *, quick: bool, console: Console, show_progress: ShowProgress) -> dict[str, Any]:
    """Train three small models, test them, print one table and write a summary and a report.

    Args:
        out: folder for summary.json, report.html and the models' folders.
        quick: whether to train with fewer images and epochs even if this machine could do more.
        console: console that progress and the table are shown on.
        show_progress: function that shows the progress of training on a console.

    Returns:
        The content of summary.json: {"rows": [...], "provenance": {...}}.

    Raises:
        FileNotFoundError: if Fashion-MNIST or MNIST is neither in a local folder nor can be downloaded.
        ValueError: if `out` holds something that no demo made.
    """
    started = time.monotonic()

    def log(text: str) -> None:
        console.print(text, highlight=False, markup=False, soft_wrap=True)

    log(f"{'Quick demo' if quick else 'Demo'}: train on {TRAIN}, test against {OOD}")
    inliers, outliers = load(TRAIN, "test", log=log), load(OOD, "test", log=log)
    negatives = ["none", "augmented"]
    letters = _at_hand()
    if letters is not None:
        negatives.append(f"auxiliary:{letters}")
    else:
        log(f"no auxiliary negatives: neither {' nor '.join(LETTERS)} is in a local folder (see `negvae data list`)")
    configs = [preset("gray", TRAIN, negatives=source, **RECIPE) for source in negatives]
    few = torch.from_numpy(load(TRAIN, "train", limit=1_000).images)
    downloaded = time.monotonic() - started
    _take(out)
    places = [out / config.negatives.replace(":", "-") for config in configs]
    _made(out, (SUMMARY, PAGE))  # before anything is trained
    for place in places:
        _made(place)
    # Of the sources that need no data, the augmented negatives take the longest.
    chosen = plan(*measure(configs[negatives.index("augmented")], few), len(negatives), quick=quick)
    log(chosen.describe(len(negatives)))
    trials, threads = [], torch.get_num_threads()
    torch.set_num_threads(chosen.threads)
    try:
        for config, place in zip(configs, places, strict=True):
            trials.append(
                _trial(shortened(config, chosen), place, inliers, outliers, chosen, show_progress(console), log)
            )
        trained = provenance(configs[-1])  # which names the threads in use
    finally:
        torch.set_num_threads(threads)
    data = {"test": describe(inliers), "ood": describe(outliers)}
    origin = {
        **trained,
        "profile": f"demo{' --quick' if quick else ''}: preset gray with {RECIPE}",
        "size": chosen.describe(len(negatives)),
        "likelihood": config.likelihood,
        "intervals": "95%, DeLong, over test images of one trained model (one seed)",
        "data": data,
    }
    summary = {"rows": [trial.row() for trial in trials], "provenance": origin}
    table = _table(trials, chosen)
    for name in _made(out, (SUMMARY, PAGE)):  # once more: training took minutes
        (out / name).unlink()
    write_text(out / SUMMARY, json.dumps(summary, indent=1))
    document.write(out / PAGE, _report(trials, table, origin, chosen))
    write_text(out / MARK, json.dumps({name: file_sha256(out / name) for name in (SUMMARY, PAGE)}, indent=1))
    console.print(tables.terminal(table))
    log(
        f"took {time.monotonic() - started:.0f} s ({downloaded:.0f} s of it to get the data); one seed each;"
        f" written: {out / SUMMARY}, {out / PAGE}"
    )
    return summary


def _take(out: Path) -> None:
    """Mark the folder as the demo's own, or go on in that of an earlier demo.

    Raises:
        ValueError: if the folder holds something that no demo made.
    """
    mark = out / MARK
    if out.exists() and not mark.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ValueError(f"{out} holds something that no demo made: name a new folder with --out")
    out.mkdir(parents=True, exist_ok=True)
    mark.touch()


@contextmanager
def _replaced(directory: Path) -> Iterator[Path]:
    """Provide a folder for a run, which takes the place of the run of an earlier demo when the block ends.

    A mark in the folder keeps the hash of each file, so that the next demo deletes only what is as a demo left it. A
    run that is stopped lies under a temporary name, which the next demo removes.

    Raises:
        ValueError: if the folder holds something that no demo made, or that was changed since.
    """
    _made(directory)
    with temporary_folder(directory.parent, directory.name) as place:
        yield place
        hashes = {entry.name: file_sha256(entry) for entry in sorted(place.iterdir())}
        write_text(place / MARK, json.dumps(hashes, indent=1))
        if directory.exists():
            for name in _made(directory):  # once more: training took minutes
                (directory / name).unlink()
            (directory / MARK).unlink(missing_ok=True)
            directory.rmdir()
        place.rename(directory)


def _made(directory: Path, names: Sequence[str] = ()) -> list[str]:
    """Return the names of the files that an earlier demo left in a folder, which need not exist.

    Args:
        directory: folder.
        names: names of the files that are asked for; empty for all that the folder holds.

    Raises:
        ValueError: if one of them is something that no demo made, or that was changed since.
    """
    if not directory.exists() and not directory.is_symlink():
        return []
    remedy = "move it away, or name a new folder with --out"
    if directory.is_symlink() or not directory.is_dir():
        raise ValueError(f"{directory} is no folder that a demo made: {remedy}")
    hashes: dict[str, str] = {}
    with suppress(OSError, ValueError, TypeError):  # no mark, or one of another form: nothing is known to be a demo's
        hashes = dict(from_json((directory / MARK).read_text(encoding="utf-8")))
    entries = [each for each in sorted(directory.iterdir()) if (each.name in names if names else each.name != MARK)]
    for entry in entries:
        if entry.name not in hashes:
            raise ValueError(f"{directory} holds {entry.name}, which no demo made: {remedy}")
        if entry.is_symlink() or not entry.is_file() or file_sha256(entry) != hashes[entry.name]:
            raise ValueError(f"{directory} holds {entry.name}, which was changed since a demo made it: {remedy}")
    return [entry.name for entry in entries]


def _at_hand() -> str | None:
    """Return the name of a set of letters that needs no download; None if there is none."""
    for name in LETTERS:
        try:
            load(name, "train", fetch=False)
            return name
        except FileNotFoundError:
            continue
    return None


def _trial(
    config: RunConfig,
    directory: Path,
    inliers: ImageSet,
    outliers: ImageSet,
    chosen: DemoPlan,
    progress: AbstractContextManager[OnProgress],
    log: Callable[[str], None],
) -> Trial:
    log(f"negatives: {config.negatives}")
    with _replaced(directory) as place, progress as on_progress:
        result = run(config, place, on_progress=on_progress, log=log)
    if not result.progress.finished:
        raise KeyboardInterrupt
    test, ood = (torch.from_numpy(each.images[: chosen.tested]) for each in (inliers, outliers))
    comparison = compare(result.model, test, {OOD: ood}, seed=config.seed)[0]
    seconds = result.progress.seconds
    seen = sum(row["images_per_second"] * (row["seconds"] - before) for row, before in _with_previous(result.history))
    return Trial(
        config.negatives, comparison, seconds, seen / seconds, pictures(result.model, config, test, ood, SHOWN)
    )


def _with_previous(history: list[dict[str, Any]]) -> list[tuple[dict[str, Any], float]]:
    return list(zip(history, [0.0, *(row["seconds"] for row in history[:-1])], strict=True))


def _table(trials: list[Trial], chosen: DemoPlan) -> DataTable:
    header = ["negatives", "AUC BPD (95% interval)", "paper", "AUC KL (95% interval)", "paper", "test, nats/dim",
              "OOD, nats/dim", "training, s", "images/s"]  # fmt: skip
    rows = []
    for trial in trials:
        row, paper = trial.row(), PAPER[trial.negatives]
        rows.append(
            [
                trial.negatives, with_interval(row["auc_bpd"], row["auc_bpd_ci"]), paper[0],
                with_interval(row["auc_kl"], row["auc_kl_ci"]), paper[1], f"{row['nats_per_dim_test']:.3f}",
                f"{row['nats_per_dim_ood']:.3f}", f"{row['train_seconds']:.0f}", f"{row['images_per_second']:.0f}",
            ]
        )  # fmt: skip
    return DataTable(
        header,
        rows,
        title=f"Trained on {chosen.images:,} images of {TRAIN} for {chosen.epochs} epochs, tested against {OOD}: "
        "Bernoulli likelihood, one seed",
        caption="Paper: mean (standard deviation) of 5 seeds, 100 epochs. It has no augmented negatives: beside "
        "them stands its label-free variant, generated negatives.",
    )


def _finding(trials: list[Trial]) -> str:
    """Return what these trials show, in words that their figures bear out."""
    rows = {trial.negatives: trial.row() for trial in trials}
    alone = rows["none"]["auc_bpd"]
    best = max((row for name, row in rows.items() if name != "none"), key=lambda row: row["auc_kl"])
    first = (
        "A variational autoencoder trained on clothes alone finds digits at least as likely as clothes"
        if alone <= 0.5
        else "The likelihood of a variational autoencoder trained on clothes alone is a weak sign of digits"
    )
    second = "teach its encoder to send" if best["auc_kl"] > rows["none"]["auc_kl"] else "did not yet teach it to send"
    return f"{first} (AUC BPD {alone:.2f}). Negative samples {second} what is not clothing elsewhere."


def _size(chosen: DemoPlan) -> str:
    """Return a sentence on the size of the demo, and why it is smaller than it could be."""
    if chosen.whole:
        return f"Each model saw all training images for {chosen.epochs} epochs."
    return (
        f"Each model saw {chosen.images:,} training images for {chosen.epochs} epochs and was tested on"
        f" {chosen.tested:,} images of each set, so that the demo takes minutes at the {chosen.rate:,.0f} images/s that"
        " this machine reached when it was measured: more images and epochs would bring the figures closer to the"
        " paper's."
    )


def _report(trials: list[Trial], table: DataTable, origin: dict[str, Any], chosen: DemoPlan) -> str:
    sections = [Section("Result", tables.html(table), f"{_finding(trials)} {_size(chosen)}")]
    for trial in trials:
        scores = trial.comparison
        charts = []
        for name, label in (("bpd", "bits per dimension (negative ELBO)"), ("kl", "KL to the prior, nats")):
            series = {
                f"{TRAIN} (inliers)": scores.inlier_scores[name].numpy(),
                f"{OOD} (OOD)": scores.ood_scores[name].numpy(),
            }
            charts.append(document.chart(figures.histogram(series, xlabel=label)))
        curves = {
            f"{label}, AUC {scores.detection[name].auroc:.3f}": roc_curve(
                scores.inlier_scores[name].numpy(), scores.ood_scores[name].numpy()
            )
            for name, label in (("bpd", "BPD"), ("kl", "KL"))
        }
        charts.append(document.chart(figures.roc(curves)))
        grids = [
            document.image_grid(images, columns=8, scale=2, caption=name, alt=f"{name}, {trial.negatives}")
            for name, images in trial.pictures.items()
        ]
        sections.append(Section(f"Negatives: {trial.negatives}", document.row(*charts) + document.row(*grids)))
    flat = {name: str(value) for name, value in origin.items() if name != "data"}
    flat |= {f"data, {name}": text for name, text in origin["data"].items()}
    sections.append(Section("Provenance", document.facts(flat)))
    return document.page(f"{TRAIN} against {OOD}", sections, subtitle="negvae demo")
