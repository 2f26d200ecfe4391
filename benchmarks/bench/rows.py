"""The rows of the bench: one for each kind of work, with its subjects and targets."""

from __future__ import annotations

import functools
import re
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from benchmarks.bench.commands import NEGVAE, Beside, Start, Streaming
from benchmarks.bench.rounds import Subject, SubjectError, Worker
from benchmarks.bench.work import scoring_multiply_adds, training_multiply_adds
from negvae.config import PRESETS, RunConfig, preset
from negvae.device import computes_in_bfloat16
from negvae.fast.int8 import multiplies_integers
from negvae.model import VAE, build_vae
from negvae.runs.score import BATCH_SIZE

OURS, ROOFLINE = "negvae", "roofline"
SHAPES = {"gray": (1, 28, 28), "gray-paper": (1, 28, 28), "color": (3, 32, 32)}
PEERS = {"pythae": "benchmarks.bench.peers.pythae_vae", "pyod": "benchmarks.bench.peers.pyod_vae"}


class UnavailableError(SubjectError):
    """The error that this machine, or this version, does not have a subject."""


@dataclass(frozen=True)
class PeerComparison:
    """A figure of the table: a ratio of two subjects, or one subject's value itself.

    Args:
        other: subject that `ours` is divided by; None for the value of `ours` itself.
        target: value that the figure should reach; None for no target.
        at_most: whether the figure should be at most the target, instead of at least.
        work: number of the other subject's units in one of ours, such as multiply-adds per image for a roofline.
        inverse: whether the figure is other / ours, which is a cost if both are speeds.
        ours: subject that is compared.
    """

    other: str | None
    target: float | None = None
    at_most: bool = False
    work: float = 1.0
    inverse: bool = False
    ours: str = OURS

    def figures(self, values: Mapping[str, list[float]]) -> list[float]:
        """Return one figure for each round, from the subjects' values."""
        if self.other is None:
            return list(values[self.ours])
        pairs = zip(values[self.ours], values[self.other], strict=True)
        ratios = [ours * self.work / other for ours, other in pairs]
        return [1 / ratio for ratio in ratios] if self.inverse else ratios

    def reached(self, figure: float) -> bool | None:
        """Return whether `figure` reaches the target, or None if there is no target."""
        if self.target is None:
            return None
        return figure <= self.target if self.at_most else figure >= self.target


@dataclass(frozen=True)
class Row:
    """One kind of work.

    Args:
        key: short name for the command line.
        work: description of the work for readers.
        unit: unit of the subjects' values.
        device: device that the work runs on.
        subjects: function that starts each subject, by name, and may raise `SubjectError`; ours come first.
        comparisons: figures to compute from the subjects' values.
        after: function that measures further values, by name, when the rounds are over.
    """

    key: str
    work: str
    unit: str
    device: str
    subjects: Mapping[str, Callable[[], Subject]]
    comparisons: tuple[PeerComparison, ...]
    after: Callable[[Mapping[str, Subject]], dict[str, list[float]]] = field(default=lambda subjects: {})


@dataclass(frozen=True)
class Place:
    """The settings of a measurement: where and how long to measure.

    Attributes:
        folder: folder for temporary files.
        rounds: number of rounds of each subject.
        seconds: number of seconds that a round of work should take.
        pythons: interpreter of each peer, by the peer's name.
        rows_on_disk: number of images in the large file to score, and in the small file to compare memory with.
    """

    folder: Path
    rounds: int
    seconds: float
    pythons: Mapping[str, Path]
    rows_on_disk: tuple[int, int] = (1_000_000, 100_000)

    def images(self, name: str, count: int, shape: tuple[int, ...], seed: int = 0) -> Path:
        """Return a file of random images (uint8, count x shape) in blocks of 4 x 4 pixels, made on first use."""
        path = self.folder / f"{name}.npy"
        if not path.exists():
            randomness = np.random.default_rng(seed)
            file = np.lib.format.open_memmap(path, mode="w+", dtype=np.uint8, shape=(count, *shape))
            coarse = (*shape[:-2], shape[-2] // 4, shape[-1] // 4)
            for start in range(0, count, 10_000):
                part: npt.NDArray[Any] = file[start : start + 10_000]
                blocks = randomness.integers(0, 256, (len(part), *coarse), dtype=np.uint8)
                part[:] = blocks.repeat(4, axis=-2).repeat(4, axis=-1)
            file.flush()
        return path

    def worker(self, work: str, **spec: Any) -> Worker:
        """Start one of negvae's own subjects."""
        command = [sys.executable, *_module(Path(__file__).parents[2], "benchmarks.bench.ours")]
        return Worker(command, {"work": work, "seconds": self.seconds, **spec}, self.folder)

    def peer(self, name: str, module: str, **spec: Any) -> Worker:
        """Start a peer with its interpreter, which can import only the folder of the peers.

        Further keywords are its specification.

        Args:
            name: name of the peer.
            module: module of the peer in that folder.

        Returns:
            The process, when it is ready.

        Raises:
            UnavailableError: if no interpreter was given for the peer.
        """
        if name not in self.pythons:
            raise UnavailableError(f"no interpreter that has it was given (--{name})")
        command = [str(self.pythons[name]), *_module(Path(__file__).parent, module)]
        return Worker(command, {"seconds": self.seconds, **spec}, self.folder)


def _module(folder: Path, name: str) -> list[str]:
    """Return the arguments by which an interpreter runs a module of a folder that is not on its path."""
    # At the end of the path: nothing in the folder may hide another module.
    start = f"import sys, runpy; sys.path.append({str(folder)!r}); runpy.run_module({name!r}, run_name='__main__')"
    return ["-P", "-c", start]


def rows(place: Place, devices: tuple[str, ...]) -> list[Row]:
    """Return all rows, in the order of the table, in every precision that the processor computes in.

    The rows of the precision that negvae chooses here have plain keys; those of another have it after an "@".
    """
    return [
        *(
            row
            for device in devices
            for precision in precisions(device)
            for row in _training_rows(place, device, precision)
        ),
        *(row for precision in precisions("cpu") for row in _worker_rows(place, precision)),
        *(row for precision in precisions("cpu") for row in _scoring_rows(place, precision)),
        *_turns_rows(place),
        *_int8_rows(place),
        *_command_rows(place),
    ]


def precisions(device: str) -> list[str]:
    """Return the precisions that are measured on a device, the one that negvae chooses there first."""
    if device != "cpu":
        return ["auto"]
    return ["bfloat16", "float32"] if computes_in_bfloat16(torch.device("cpu")) else ["float32"]


def _training_rows(place: Place, device: str, precision: str) -> list[Row]:
    make = _TrainingRows(place, device, precision)
    rows = [*make.beside_peers(), *make.with_negatives()]
    return [*rows, *(make.beside_the_roofline(network) for network in ("gray-paper", "color"))]


@dataclass(frozen=True)
class _TrainingRows:
    """The rows about training on one device in one precision."""

    place: Place
    device: str
    precision: str

    def target(self, value: float, float32: float | None = None) -> float | None:
        """Return the target on a CPU, another one in float32 if it is given; None on devices without targets."""
        if self.device != "cpu":
            return None
        return value if self.precision != "float32" or float32 is None else float32

    def name(self, row: str) -> str:
        """Return the row's name, with the device if it is not a CPU, and a precision that is not the usual one."""
        row = row if self.precision == precisions(self.device)[0] else f"{row}@{self.precision}"
        return row if self.device == "cpu" else f"{row}@{self.device}"

    def ours(self, network: str, negatives: str = "none", **fields: Any) -> Callable[[], Subject]:
        run = {"name": network, "negatives": negatives, "precision": self.precision, **fields}
        return lambda: self.place.worker(
            "training", run=run, images=str(_images(self.place, network)), device=self.device
        )

    def textbook(self, **options: Any) -> Callable[[], Subject]:
        spec = {**_peer_spec(self.place, self.device), **options}
        return functools.partial(self.place.peer, "textbook", "peers.textbook", **spec)

    def roofline(self) -> Callable[[], Subject]:
        return functools.partial(_roofline, self.place, self.device, self.precision)

    def beside_peers(self) -> list[Row]:
        """Return the rows without negatives, for two batch sizes."""
        rows = []
        for batch in (50, 256):
            spec = dict(_peer_spec(self.place, self.device), batch=batch)
            rows.append(
                Row(
                    self.name(f"train-gray-{batch}"), f"training, `gray`, batch {batch}, {self.precision}", "images/s",
                    self.device,
                    {
                        OURS: self.ours("gray", batch_size=batch),
                        "pythae": functools.partial(
                            self.place.peer, "pythae", "peers.pythae_vae", work="train", **spec
                        ),
                        "textbook": self.textbook(batch=batch),
                        ROOFLINE: self.roofline(),
                    },
                    (
                        PeerComparison(
                            ROOFLINE, self.target(0.6 if batch == 50 else 0.75, float32=0.7),
                            work=training_multiply_adds(_model("gray")),
                        ),
                        PeerComparison("pythae", self.target(2.0, float32=1.6)),
                        PeerComparison("textbook"),
                    ),
                )
            )  # fmt: skip
        return rows

    def with_negatives(self) -> list[Row]:
        """Return the rows about the cost of auxiliary negatives and of the simultaneous update with generated ones."""
        auxiliary = str(self.place.images("negatives", 4000, SHAPES["gray"], seed=1))
        model = _model("gray")
        share = training_multiply_adds(model, negatives=True) / training_multiply_adds(model)
        return [
            Row(
                self.name("train-auxiliary"), f"training with auxiliary negatives, `gray`, batch 50, {self.precision}:"
                f" cost over none (multiply-adds: {share:.2f}x)", "images/s", self.device,
                {OURS: self.ours("gray", f"auxiliary:{auxiliary}"), "no negatives": self.ours("gray")},
                (PeerComparison("no negatives", self.target(1.35), at_most=True, inverse=True),),
            ),
            Row(
                self.name("train-generated"),
                f"training with generated negatives, `gray`, batch 50, {self.precision}: simultaneous update",
                "images/s", self.device,
                {
                    OURS: self.ours("gray", "generated", update="simultaneous"),
                    "alternating": self.ours("gray", "generated", update="alternating"),
                    "textbook": self.textbook(batch=50, negative_shift=PRESETS["gray"]["negative_shift"]),
                },
                (PeerComparison("alternating", self.target(1.5)), PeerComparison("textbook")),
            ),
        ]  # fmt: skip

    def beside_the_roofline(self, network: str) -> Row:
        """Return the row that compares another network with the machine's rate of matrix products."""
        work = training_multiply_adds(_model(network))
        return Row(
            self.name(f"train-{network}"), f"training, `{network}`, batch 50, {self.precision}", "images/s",
            self.device,
            {OURS: self.ours(network), ROOFLINE: self.roofline()},
            (PeerComparison(ROOFLINE, self.target(0.45 if network == "color" else 0.7), work=work),),
        )  # fmt: skip


def _worker_rows(place: Place, precision: str) -> list[Row]:
    """Return the rows about workers of one thread each."""
    cores = torch.get_num_threads()
    after = "" if precision == precisions("cpu")[0] else f"@{precision}"

    def steps(workers: int, batch: int) -> Subject:
        if cores == 1:
            raise UnavailableError("torch may use one thread")
        run = {"name": "gray", "batch_size": batch, "precision": precision, "negatives": "none"}
        return place.worker("steps", run=run, images=str(_images(place, "gray")), workers=workers, device="cpu")

    rows = []
    for batch in (50, 256):
        target = 1.0 if (batch, precision) == (50, "float32") else 1.15
        rows.append(
            Row(
                f"workers-{batch}{after}", f"training, `gray`, batch {batch}, {precision}: {cores} workers of"
                " one thread each", "images/s", "cpu",
                {
                    OURS: functools.partial(steps, cores, batch),
                    f"{cores} threads in operators": functools.partial(steps, 0, batch),
                },
                (PeerComparison(f"{cores} threads in operators", target),),
            )
        )  # fmt: skip
    for others, target in ((1, 0.55), (3, 0.3)):
        rows.append(
            Row(
                f"beside-{others}{after}", f"training, `gray`, batch 128, {precision}: {cores} workers beside"
                f" {others} busy process{'es' * (others > 1)}", "images/s", "cpu",
                {
                    OURS: lambda others=others: Beside(  # type: ignore[misc]
                        steps(cores, 128), others
                    ),
                    "idle machine": functools.partial(steps, cores, 128),
                },
                (PeerComparison("idle machine", target),),
            )
        )  # fmt: skip
    return rows


def _scorer(place: Place, network: str, score: str, precision: str, **fields: str) -> Callable[[], Subject]:
    """Return a function that starts one of our scorers, with untrained weights."""
    shape = network.partition(" ")[2] or network
    spec = dict(
        run={"name": network.partition(" ")[0], **fields}, images=str(_images(place, shape)), score=score,
        batch=BATCH_SIZE, precision=precision,
    )  # fmt: skip
    return lambda: place.worker("scoring", device="cpu", **spec)


def _scoring_rows(place: Place, precision: str) -> list[Row]:
    spec = dict(_peer_spec(place, "cpu"), batch=BATCH_SIZE)
    roof = functools.partial(_roofline, place, "cpu", precision)
    model = _model("gray")
    after = "" if precision == precisions("cpu")[0] else f"@{precision}"
    return [
        Row(
            f"score-kl{after}", f"KL scoring, `gray`, {precision}", "images/s", "cpu",
            {
                OURS: _scorer(place, "gray", "kl", precision),
                # As it comes, and with our batch, which makes it faster.
                "PyOD, batch 32": functools.partial(place.peer, "pyod", "peers.pyod_vae", **{**spec, "batch": 32}),
                f"PyOD, batch {BATCH_SIZE}": functools.partial(place.peer, "pyod", "peers.pyod_vae", **spec),
                ROOFLINE: roof,
            },
            (
                PeerComparison(ROOFLINE, 0.85, work=scoring_multiply_adds(model, "kl")),
                PeerComparison("PyOD, batch 32", 1.0),
                PeerComparison(f"PyOD, batch {BATCH_SIZE}", 1.0),
            ),
        ),
        Row(
            f"score-bpd{after}", f"BPD scoring, `gray`, {precision}", "images/s", "cpu",
            {
                OURS: _scorer(place, "gray", "bpd", precision),
                "pythae": functools.partial(place.peer, "pythae", "peers.pythae_vae", work="forward", **spec),
                ROOFLINE: roof,
            },
            (
                PeerComparison("pythae", 2.0),
                PeerComparison(ROOFLINE, work=scoring_multiply_adds(model, "bpd")),
            ),
        ),
    ]  # fmt: skip


def _turns_rows(place: Place) -> list[Row]:
    """Return the rows about quarter turns, which few images have by default: what they cost in scoring."""
    return [
        Row(
            f"score-combined-turns-{shape}", f"scoring `combined` with turns, {size}, float32", "images/s", "cpu",
            {
                OURS: _scorer(place, f"unsupervised {shape}", "combined", "float32", transformations="turns"),
                "without turns": _scorer(place, f"unsupervised {shape}", "combined", "float32"),
            },
            (PeerComparison("without turns"),),
        )
        for shape, size in (("gray", "1x28x28"), ("color", "3x32x32"))
    ]  # fmt: skip


def _int8_rows(place: Place) -> list[Row]:
    """Return the rows about scores in 8-bit integers, beside every other precision of this processor."""
    others = precisions("cpu")
    pyod = f"PyOD, batch {BATCH_SIZE}"
    spec = dict(_peer_spec(place, "cpu"), batch=BATCH_SIZE)

    def row(key: str, work: str, network: str, score: str, target: float) -> Row:
        def in_int8() -> Subject:
            if not multiplies_integers():
                raise UnavailableError("no exact 8-bit convolution on this processor")
            return _scorer(place, network, score, "int8")()

        peers = {} if score != "kl" else {
            pyod: functools.partial(place.peer, "pyod", "peers.pyod_vae", **spec),
            "PyOD, batch 32": functools.partial(place.peer, "pyod", "peers.pyod_vae", **{**spec, "batch": 32}),
        }  # fmt: skip
        return Row(
            key, work, "images/s", "cpu",
            {OURS: in_int8, **{each: _scorer(place, network, score, each) for each in others}, **peers},
            (
                *(PeerComparison(each, target if each == "float32" else None) for each in others),
                *(PeerComparison(each, 1.0) for each in peers),
            ),
        )  # fmt: skip

    return [
        row("score-kl-int8", "KL scoring, `gray`, int8", "gray", "kl", 1.5),
        row("score-bpd-int8", "BPD scoring, `gray`, int8", "gray", "bpd", 2.0),
        row("score-combined-gray", "scoring `combined`, preset `unsupervised`, 1x28x28, int8", "unsupervised gray",
            "combined", 2.0),
        row("score-combined-color", "scoring `combined`, preset `unsupervised`, 3x32x32, int8", "unsupervised color",
            "combined", 2.0),
    ]  # fmt: skip


def _command_rows(place: Place) -> list[Row]:
    many, few = place.rows_on_disk
    device = RunConfig(data="").device

    @functools.cache
    def scored(count: int) -> list[str]:
        """Return the command that scores a file of `count` images, and make its model on first use."""
        return [*_score_command(place), str(place.images(f"random-{count}", count, (28, 28), seed=2))]

    def memory(subjects: Mapping[str, Subject]) -> dict[str, list[float]]:
        """Return the peak memory in MB while scoring the large file and the small one."""
        large = subjects[OURS]
        assert isinstance(large, Streaming)
        small = Streaming(scored(few), few, 1)
        peaks = {many: large.finish(), few: small.finish()}
        small.close()
        names = {"peak_rss": "peak memory", "peak_own": "peak memory without the mapped file"}
        return {f"{names[kind]}, {count:,} images": [peaks[count][kind]] for count in (many, few) for kind in names}

    return [
        Row(
            "help", "`negvae --help`, new process", "s", "cpu",
            {
                OURS: lambda: Start([*NEGVAE, "--help"]),
                "bare Python": lambda: Start([sys.executable, "-c", "pass"]),
            },
            (PeerComparison(None, 0.4, at_most=True), PeerComparison("bare Python")),
        ),
        Row(
            "first-row", "first row of `negvae score`, new process", "s", device,
            {
                OURS: lambda: Start(scored(few), first_row=True),
                "import torch": lambda: Start([sys.executable, "-c", "import torch"]),
            },
            (PeerComparison(None, 4.0, at_most=True), PeerComparison("import torch")),
        ),
        Row(
            "disk", f"KL scores of {many:,} images from disk (`negvae score`)", "images/s", device,
            {
                OURS: lambda: Streaming(scored(many), many, place.rounds),
                "in memory": lambda: place.worker(
                    "scoring", model=_score_command(place)[-1], images=str(_images(place, "gray")), score="kl",
                    batch=BATCH_SIZE, device="auto", precision="float32",
                ),
            },
            (
                PeerComparison("in memory", 0.85),
                *(
                    PeerComparison(f"{kind}, {few:,} images", 1.1, at_most=True, ours=f"{kind}, {many:,} images")
                    for kind in ("peak memory", "peak memory without the mapped file")
                ),
            ),
            memory,
        ),
    ]  # fmt: skip


def _score_command(place: Place) -> list[str]:
    """Return `negvae score` with a small model, which is made on first use, to be completed by what to score.

    Raises:
        UnavailableError: if there is no such command.
        SubjectError: if the model could not be made.
    """
    usage = subprocess.run([*NEGVAE, "score", "--help"], capture_output=True, text=True)
    if usage.returncode:
        raise UnavailableError("this version has no command `negvae score`")
    option = re.search(r"--scores?\b", usage.stdout)
    if option is None:
        raise SubjectError("`negvae score` has no option --score: it cannot be asked for the KL alone")
    model = place.folder / "model"
    if not model.exists():
        options = ["--preset", "gray", "--epochs", "1", "--limit", "500"]
        command = [*NEGVAE, "train", "--data", str(_images(place, "gray")), "--out", str(model), *options]
        made = subprocess.run(command, capture_output=True, text=True)
        if made.returncode:
            raise SubjectError(f"negvae train failed: {made.stderr.strip()}")
    return [*NEGVAE, "score", option[0], "kl", str(model)]


def _roofline(place: Place, device: str, precision: str) -> Worker:
    return place.worker("roofline", precision=precision, device=device)


def _peer_spec(place: Place, device: str) -> dict[str, Any]:
    settings = PRESETS["gray"]
    return {
        "images": str(_images(place, "gray")), "device": device, "latent_size": settings["latent_size"],
        "learning_rate": settings["learning_rate"],
    }  # fmt: skip


def _images(place: Place, network: str) -> Path:
    shape = SHAPES[network]
    return place.images("x".join(map(str, shape)), 4000, shape)


@functools.cache
def _model(network: str) -> VAE:
    return build_vae(preset(network, "benchmark"), SHAPES[network])
