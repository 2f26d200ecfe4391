"""A trained detector as one ONNX file: images in; score, p-value and decision out.

The graph is traced from the functions that score in the library. Held-out scores, threshold and posterior noise are
constants in it, so an image gets the same answer wherever the file runs.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

import negvae
from negvae.files import need, replacing
from negvae.model import VAE
from negvae.model.likelihoods import Bernoulli
from negvae.runs.artifact import Artifact, load_artifact
from negvae.runs.provenance import provenance
from negvae.scoring.calibration import Calibration
from negvae.scoring.passes import Pass, SharedDraws
from negvae.scoring.scorer import LARGEST
from negvae.scoring.table import SCORES, names_of

FORMATS = ("onnx",)
TOLERANCE = 1e-3
"""The largest relative difference from the library's own scores that an export may show."""


@dataclass(frozen=True)
class Export:
    """What was written.

    Attributes:
        path: of the file.
        calibration: score and threshold in it.
        encoder_only: whether the decoder was left out, because the score does not need it.
        difference: largest relative difference of scores from the library's, on `compared` images.
        compared: how many images were scored both ways.
    """

    path: Path
    calibration: Calibration
    encoder_only: bool
    difference: float
    compared: int

    def describe(self) -> str:
        """One line for people."""
        parts = "encoder only" if self.encoder_only else "encoder and decoder"
        return (
            f"{self.calibration.describe()}; {parts}, {self.path.stat().st_size / 1e6:.2f} MB; scores within"
            f" {self.difference:.1g} of the library's on {self.compared} images"
        )


def export_onnx(
    directory: Path | str, out: Path | str | None = None, *, score: str | None = None, target_fpr: float | None = None
) -> Export:
    """Write a calibrated detector as an ONNX file and compare it with the library.

    The graph's input is "images" (uint8, N x C x H x W), or "rows" (float64, N x D) for a model of features; N is
    free. Its outputs, each of N: "score" (float32, larger = more out-of-distribution), "p_value" (float64) and
    "is_outlier" (bool). Images are scored in float32, rows in float64, as the library does. What the file is, and
    what it was made from, is in its metadata.

    Args:
        directory: of the detector.
        out: file to write; by default "model.onnx" in the directory.
        score: another of the calibrated scores to decide by.
        target_fpr: another false-positive rate for the threshold.

    Raises:
        FileNotFoundError: no such detector, or no folder to write to.
        ImportError: the extra "onnx" is not installed.
        ValueError: the detector is not calibrated, the score is not, or it cannot be part of a graph.
    """
    onnx = need("onnx", "onnx")
    for module in ("onnxruntime", "onnxscript"):
        need(module, "onnx")
    directory = Path(directory)
    path = Path(out) if out is not None else directory / "model.onnx"
    artifact = load_artifact(directory, "cpu")
    if not path.absolute().parent.is_dir() or path.is_dir():
        raise FileNotFoundError(f"{path}: no such folder to write to, or not a file's name")
    calibration = _calibration(artifact, score, target_fpr)
    graph = _Graph(artifact.model, calibration).eval()
    model = _traced(graph)
    _strip(model)
    onnx.helper.set_model_props(model, _metadata(artifact, calibration))
    onnx.checker.check_model(model, full_check=True)
    content = model.SerializeToString()
    difference, compared = _difference(content, artifact, calibration)
    with replacing(path) as temporary:
        temporary.write_bytes(content)
    return Export(path, calibration, not graph.decodes, difference, compared)


def _calibration(artifact: Artifact, score: str | None, target_fpr: float | None) -> Calibration:
    calibration = artifact.calibration
    if score is not None:
        SCORES[score]  # an unknown name is refused before anything else is said of the folder
    if calibration is None:
        raise ValueError(f"{artifact.directory} has no calibration: run `negvae calibrate {artifact.directory}` first")
    if calibration.precision != "float32":
        raise ValueError(
            f"{artifact.directory} is calibrated in {calibration.precision}, and a graph is exported in float32: run"
            f" `negvae calibrate {artifact.directory}` without --precision first"
        )
    name = score or calibration.score
    if why := SCORES[name].not_exported:
        able = ", ".join(names_of(lambda entry: not entry.not_exported))
        raise ValueError(f"score {name} cannot be exported, {why}; these can: {able}")
    return calibration.decide_by(score, target_fpr)


class _Graph(nn.Module):
    """From stored images or rows to (score, p-value, decision); only what the score needs of the model."""

    def __init__(self, model: VAE, calibration: Calibration) -> None:
        super().__init__()
        self.score = SCORES[calibration.score]
        self.references = calibration.reference
        self.rows = model.takes_features
        likelihood = _StableBernoulli() if isinstance(model.likelihood, Bernoulli) else model.likelihood
        encoder, decoder = _plain(model.encoder), _plain(model.decoder)
        shift = model.negative_prior.shift
        self.model = VAE(encoder, decoder, likelihood, model.shape, model.latent_size, shift, model.inputs)
        self.model.plain = True
        self.draws = SharedDraws()
        # Scores are float32. A bound in float64 is moved to the next float32 on the side that changes no comparison.
        self.held_out = torch.from_numpy(-_floor32(-calibration.scores[self.score.name]))
        self.threshold = float(_floor32(np.array(calibration.threshold)))
        # Before it is traced, since random numbers are constants in the graph; and a decoder is kept if it is used.
        with torch.no_grad():
            once = self._over(_example(model, 2))
            self.score.read(once)
        self.decodes = once.decoded
        if not self.decodes:
            self.model.decoder = nn.Sequential()

    def _over(self, stored: Tensor) -> Pass:
        stored = stored.unsqueeze(2).unsqueeze(3) if self.rows else stored
        return Pass(self.model, stored, draws=self.draws, references=self.references)

    def forward(self, stored: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Score, p-value and decision (N each)."""
        score = self.score.read(self._over(stored))
        # As the library has it: what is not a number counts as the most conspicuous of all.
        score = torch.where(score.isnan(), LARGEST, score).clamp(-LARGEST, LARGEST).float()
        at_least = (self.held_out >= score.unsqueeze(1)).sum(1)
        p_value = (1 + at_least).double() / (len(self.held_out) + 1)
        return score, p_value, score > self.threshold


class _Scaled(nn.Module):
    """A batch norm in evaluation mode as a product and a sum: torch 2.6 does not export the layer itself."""

    def __init__(self, norm: nn.BatchNorm2d) -> None:
        super().__init__()
        assert norm.running_mean is not None
        assert norm.running_var is not None
        scale = norm.weight.detach() / (norm.running_var + norm.eps).sqrt()
        self.scale = scale.reshape(-1, 1, 1)
        self.shift = (norm.bias.detach() - norm.running_mean * scale).reshape(-1, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Scale and shift every channel (N x C x H x W)."""
        return x * self.scale + self.shift


def _plain(network: nn.Sequential) -> nn.Sequential:
    return nn.Sequential(*(_Scaled(layer) if isinstance(layer, nn.BatchNorm2d) else layer for layer in network))


class _StableBernoulli(Bernoulli):
    """The same likelihood by the softplus: torch exports the other form as log(sigmoid), which is -inf below -104."""

    def _cross_entropy(self, logits: Tensor, target: Tensor) -> Tensor:
        """log(1 + exp(l)) - x l for logits l of pixels x, in nats."""
        # Spelled out, since onnxruntime has no Softplus in double precision.
        return logits.relu() + (1 + (-logits.abs()).exp()).log() - target * logits


def _floor32(values: NDArray[np.float64]) -> NDArray[np.float32]:
    """The largest float32 numbers that are not above the values."""
    with np.errstate(over="ignore"):
        near = values.astype(np.float32)
    floor: NDArray[np.float32] = np.where(near > values, np.nextafter(near, np.float32(-np.inf)), near)
    return floor


def _example(model: VAE, count: int) -> Tensor:
    dtype = torch.float64 if model.takes_features else torch.uint8
    return torch.zeros(count, *(model.shape[:1] if model.takes_features else model.shape), dtype=dtype)


def _traced(graph: _Graph) -> Any:
    """The graph as an ONNX ModelProto.

    Raises:
        ValueError: it cannot be traced.
    """
    batch = torch.export.Dim("batch")
    try:
        with _quiet(), torch.no_grad():
            program = torch.onnx.export(
                graph,
                (_example(graph.model, 2),),
                dynamo=True,
                input_names=["rows" if graph.rows else "images"],
                output_names=["score", "p_value", "is_outlier"],
                dynamic_shapes=({0: batch},),
                verbose=False,
            )
    except Exception as error:  # torch has many kinds, and the score may be anybody's function
        raise ValueError(
            f"score {graph.score.name} cannot be exported, it is not made of torch's functions alone"
            f" ({str(error).strip().splitlines()[0]})"
        ) from error
    assert program is not None  # it is where no file is named
    return program.model_proto


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep torch's notes to its own developers, and its word that torchvision is missing, from the user."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def _strip(model: Any) -> None:
    """Take out what torch notes of the source code and of this machine's paths."""
    model.doc_string = ""
    model.graph.name = "negvae"
    for part in (model.graph, *model.graph.node, *model.graph.value_info, *model.graph.input, *model.graph.output):
        part.doc_string = ""
        del part.metadata_props[:]


def _metadata(artifact: Artifact, calibration: Calibration) -> dict[str, str]:
    """What someone who has only the file should know of it."""
    model = artifact.model
    now = provenance(artifact.config)
    shape = "x".join(map(str, model.shape[:1] if model.takes_features else model.shape))
    what = "float64 rows, N x D, as given to fit" if model.takes_features else "uint8 intensities, N x C x H x W"
    rule = "contamination" if calibration.target_fpr is None else "target_fpr"
    return {
        "negvae": negvae.__version__,
        "commit": str(now["commit"]),
        "exported": str(now["written"]),
        "training_data": artifact.config.data,
        "training_commit": str(artifact.provenance.get("commit", "unknown")),
        "input": what,
        "shape": shape,
        "score": calibration.score,
        "score_meaning": f"{SCORES[calibration.score].meaning}; larger = more out-of-distribution",
        "units": SCORES[calibration.score].unit,
        "threshold": repr(calibration.threshold),
        rule: repr(getattr(calibration, rule)),
        "calibration_size": str(calibration.size),
        "false_alarm_rate_at_most": repr(calibration.false_alarm_rate),
        "p_value": "(1 + number of held-out inliers with at least this score) / (calibration_size + 1)",
        "is_outlier": "score > threshold",
        "arithmetic": "float64" if model.takes_features else "float32",
    }


def _difference(content: bytes, artifact: Artifact, calibration: Calibration) -> tuple[float, int]:
    """The largest relative difference between the file's scores and the library's, and on how many images.

    The images are the model's own (like the training data) and noise (like nothing).

    Raises:
        ValueError: it is larger than `TOLERANCE`, or a decision differs where the scores do not tie.
    """
    model = artifact.model
    stored = _trial(model)
    wanted = artifact.scorer("float32")(stored, [calibration.score])[calibration.score]
    score, p_value, called = run_onnx(content, stored.flatten(1).numpy() if model.takes_features else stored.numpy())
    difference = relative_difference(score, wanted)
    clear = np.abs(wanted - calibration.threshold) > TOLERANCE * max(abs(calibration.threshold), 1e-3)
    decided = (called == calibration.is_outlier(wanted))[clear].all()
    if difference > TOLERANCE or not decided or not np.array_equal(p_value, calibration.p_values(score)):
        raise ValueError(
            f"the exported graph does not score as the library does (relative difference {difference:.2g}):"
            " nothing was written; please report this with the versions of torch and onnxruntime"
        )
    return difference, len(stored)


def relative_difference(scores: NDArray[Any], wanted: NDArray[Any]) -> float:
    """The largest |s - w| / max(|w|, 1% of the largest |w|): scores near zero are measured on the scale of all."""
    size = np.abs(wanted.astype(np.float64))
    floor = 0.01 * size.max(initial=0) or 1.0
    return float((np.abs(scores.astype(np.float64) - wanted) / np.maximum(size, floor)).max(initial=0))


@torch.inference_mode()
def _trial(model: VAE) -> Tensor:
    """16 images (or rows) that the model generates, and 16 of noise."""
    randomness = torch.Generator().manual_seed(0)
    codes = model.prior.sample(16, randomness).to(next(model.parameters()))
    generated = model.inputs.restore(model.generate(codes))
    if model.takes_features:
        noise = model.inputs.restore(3 * torch.randn(generated.shape, generator=randomness).double())
    else:
        noise = torch.randint(0, 256, generated.shape, generator=randomness, dtype=torch.uint8)
    return torch.cat([generated, noise])


def run_onnx(model: bytes | Path, stored: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
    """Score, p-value and decision (N each) of an exported file, by onnxruntime on the CPU.

    Args:
        model: the file, or its content.
        stored: uint8 images, N x C x H x W, or float64 rows, N x D.

    Raises:
        ImportError: the extra "onnx" is not installed.
    """
    runtime = need("onnxruntime", "onnx")
    options = runtime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3
    content = model if isinstance(model, bytes) else str(model)
    session = runtime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    score, p_value, called = session.run(None, {session.get_inputs()[0].name: stored})
    return score, p_value, called
