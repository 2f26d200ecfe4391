"""Export a trained detector as one ONNX file: images in; score, p-value and decision out.

The graph is traced from the functions that compute scores in the library. Held-out scores, threshold and posterior
noise are constants in it, so that an image gets the same answer wherever the file runs.
"""

from __future__ import annotations

import copy
import json
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
from negvae.model.patches import PatchEncoder
from negvae.runs.artifact import Artifact, load_artifact
from negvae.runs.provenance import provenance
from negvae.scoring.calibration import Calibration
from negvae.scoring.certificates import CONFIDENCE
from negvae.scoring.heatmaps import Heatmaps, log_odds_maps, surprise, surprise_table
from negvae.scoring.passes import Pass, SharedDraws
from negvae.scoring.scorer import LARGEST
from negvae.scoring.table import SCORES, names_of

FORMATS = ("onnx",)
HEATMAP = "-log10 of each pixel's p-value among the pixels of held-out inliers, where it is out-of-distribution"
TOLERANCE = 1e-3
"""Largest relative difference from the library's own scores that an export may have."""


@dataclass(frozen=True)
class Export:
    """An ONNX file that was written.

    Attributes:
        path: path of the file.
        calibration: decision score and threshold in the file.
        encoder_only: whether the decoder was left out because the score does not need it.
        difference: largest relative difference of scores from the library's, on `compared` images.
        compared: number of images that were scored by both.
    """

    path: Path
    calibration: Calibration
    encoder_only: bool
    difference: float
    compared: int

    def describe(self) -> str:
        """Describe the file in one line."""
        parts = "encoder only" if self.encoder_only else "encoder and decoder"
        if "features" in SCORES[self.calibration.score].needs:
            parts = "reference rows and no network"
        return (
            f"{self.calibration.describe()}; {parts}, {self.path.stat().st_size / 1e6:.2f} MB; scores within"
            f" {self.difference:.1g} of the library's on {self.compared} images"
        )


def export_onnx(
    directory: Path | str,
    out: Path | str | None = None,
    *,
    score: str | None = None,
    target_fpr: float | None = None,
    confidence: float | None = None,
) -> Export:
    """Write a calibrated detector as an ONNX file and compare its scores with the library's.

    The graph's input is "images" (uint8, N x C x H x W), or "rows" (float64, N x D) for a model of features, with any
    N. Its outputs, each of length N, are "score" (float32, larger = more out-of-distribution), "p_value" (float64) and
    "is_outlier" (bool). If the run has heat maps, a fourth output "heatmap" (float32, N x H x W) is the map that
    `NegVAEDetector.heatmap` gives. Images are scored in float32 and rows in float64, as in the library. The file's
    metadata describe it and what it was made from.

    Args:
        directory: folder of the run.
        out: path of the file to write; None for "model.onnx" in the folder.
        score: another of the calibrated scores to decide by; None for the calibration's.
        target_fpr: another false-positive rate for the threshold; None for the calibration's rule.
        confidence: confidence with which the rate holds; None for the calibration's, or, with `target_fpr`, for a rate
            that holds on average.

    Returns:
        The file that was written.

    Raises:
        FileNotFoundError: if there is no such detector, or no folder to write to.
        ImportError: if the extra "onnx" is not installed.
        ValueError: if the detector or the score is not calibrated, or the score cannot be part of a graph.
    """
    onnx = need("onnx", "onnx")
    for module in ("onnxruntime", "onnxscript"):
        need(module, "onnx")
    directory = Path(directory)
    path = Path(out) if out is not None else directory / "model.onnx"
    artifact = load_artifact(directory, "cpu")
    if not path.absolute().parent.is_dir() or path.is_dir():
        raise FileNotFoundError(f"{path}: no such folder to write to, or not a file's name")
    calibration = _calibration(artifact, score, target_fpr, confidence)
    graph = _Graph(artifact.model, calibration, artifact.heatmaps).eval()
    model = _traced(graph)
    _strip(model)
    onnx.helper.set_model_props(model, _metadata(artifact, calibration))
    onnx.checker.check_model(model, full_check=True)
    content = model.SerializeToString()
    difference, compared = _difference(content, artifact, calibration)
    with replacing(path) as temporary:
        temporary.write_bytes(content)
    return Export(path, calibration, not graph.decodes, difference, compared)


def _calibration(
    artifact: Artifact, score: str | None, target_fpr: float | None, confidence: float | None
) -> Calibration:
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
    return calibration.decide_by(score, target_fpr, confidence)


class _Graph(nn.Module):
    """A module from stored images or rows to (score, p-value, decision), with only the parts that the score needs.

    With maps, it gives a heat map too.
    """

    def __init__(self, model: VAE, calibration: Calibration, maps: Heatmaps | None = None) -> None:
        super().__init__()
        self.patches = None if maps is None else _scaled(copy.deepcopy(maps.network))
        self.table = None if maps is None else torch.from_numpy(surprise_table(maps.counts)).float()
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
        # With groups, which a graph is not told, the largest p-value over them counts, and the highest threshold.
        held_out = calibration.groups.get(self.score.name, {"": calibration.scores[self.score.name]}).values()
        self.held_out = [torch.from_numpy(-_floor32(-scores)) for scores in held_out]
        self.threshold = float(_floor32(np.array(calibration.cut)))
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

    def forward(self, stored: Tensor) -> tuple[Tensor, ...]:
        """Return score, p-value and decision (N each), and heat maps (N x H x W) if there are any."""
        score = self.score.read(self._over(stored))
        # As the library has it: what is not a number counts as the most conspicuous of all.
        score = torch.where(score.isnan(), LARGEST, score).clamp(-LARGEST, LARGEST).float()
        p_values = [
            (1 + (scores >= score.unsqueeze(1)).sum(1)).double() / (len(scores) + 1) for scores in self.held_out
        ]
        p_value = p_values[0] if len(p_values) == 1 else torch.stack(p_values).amax(0)
        if self.patches is None or self.table is None:
            return score, p_value, score > self.threshold
        odds = log_odds_maps(self.patches, stored.float() / 255, torch.float32)
        return score, p_value, score > self.threshold, surprise(odds, self.table)


class _Scaled(nn.Module):
    """A batch norm in evaluation mode as a product and a sum, because torch 2.6 does not export the layer itself."""

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


def _scaled(network: PatchEncoder) -> PatchEncoder:
    for part in list(network.modules()):
        for name, layer in list(part.named_children()):
            if isinstance(layer, nn.BatchNorm2d):
                setattr(part, name, _Scaled(layer))
    return network


def _plain(network: nn.Sequential) -> nn.Sequential:
    return nn.Sequential(*(_Scaled(layer) if isinstance(layer, nn.BatchNorm2d) else layer for layer in network))


class _StableBernoulli(Bernoulli):
    """The same likelihood by softplus, since torch exports the other form as log(sigmoid), which is -inf below -104."""

    def _cross_entropy(self, logits: Tensor, target: Tensor) -> Tensor:
        """Return log(1 + exp(l)) - x l for logits l of pixels x, in nats."""
        # Spelled out, since onnxruntime has no Softplus in double precision.
        return logits.relu() + (1 + (-logits.abs()).exp()).log() - target * logits


def _floor32(values: NDArray[np.float64]) -> NDArray[np.float32]:
    """Return the largest float32 numbers that are not above the values."""
    with np.errstate(over="ignore"):
        near = values.astype(np.float32)
    floor: NDArray[np.float32] = np.where(near > values, np.nextafter(near, np.float32(-np.inf)), near)
    return floor


def _example(model: VAE, count: int) -> Tensor:
    dtype = torch.float64 if model.takes_features else torch.uint8
    return torch.zeros(count, *(model.shape[:1] if model.takes_features else model.shape), dtype=dtype)


def _traced(graph: _Graph) -> Any:
    """Trace the graph to an ONNX ModelProto.

    Raises:
        ValueError: if the graph cannot be traced.
    """
    batch = torch.export.Dim("batch")
    try:
        with _quiet(), torch.no_grad():
            program = torch.onnx.export(
                graph,
                (_example(graph.model, 2),),
                dynamo=True,
                input_names=["rows" if graph.rows else "images"],
                output_names=["score", "p_value", "is_outlier", *([] if graph.patches is None else ["heatmap"])],
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
    """Suppress torch's messages for its own developers and its warning that torchvision is missing."""
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
    """Remove torch's records of the source code and of this machine's paths."""
    model.doc_string = ""
    model.graph.name = "negvae"
    for part in (model.graph, *model.graph.node, *model.graph.value_info, *model.graph.input, *model.graph.output):
        part.doc_string = ""
        del part.metadata_props[:]


def _metadata(artifact: Artifact, calibration: Calibration) -> dict[str, str]:
    """Return the metadata of the file, which describe it to anyone who has nothing else."""
    model = artifact.model
    now = provenance(artifact.config)
    shape = "x".join(map(str, model.shape[:1] if model.takes_features else model.shape))
    what = "float64 rows, N x D, as given to fit" if model.takes_features else "uint8 intensities, N x C x H x W"
    rule = "contamination" if calibration.target_fpr is None else "target_fpr"
    promised = {}
    if not calibration.contamination:
        bounds = calibration.fpr_bounds(calibration.confidence or CONFIDENCE)
        promised = {"false_alarm_bound": repr(bounds.high), "false_alarm_bound_confidence": repr(bounds.confidence)}
    if calibration.thresholds:
        promised["group_thresholds"] = json.dumps(calibration.thresholds)
        promised["groups"] = "the largest p-value over groups, and the highest of their thresholds"
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
        "threshold": repr(calibration.cut),
        **promised,
        rule: repr(getattr(calibration, rule)),
        "calibration_size": str(calibration.size),
        "false_alarm_rate_at_most": repr(calibration.false_alarm_rate),
        "p_value": "(1 + number of held-out inliers with at least this score) / (calibration_size + 1)",
        "is_outlier": "score > threshold",
        **({} if artifact.heatmaps is None else {"heatmap": HEATMAP}),
        "arithmetic": "float64" if model.takes_features else "float32",
    }


def _difference(content: bytes, artifact: Artifact, calibration: Calibration) -> tuple[float, int]:
    """Return the largest relative difference between the file's scores and the library's, and the number of images.

    The images are samples of the model (similar to the training data) and noise (dissimilar to it).

    Raises:
        ValueError: if the difference exceeds `TOLERANCE`, or a decision differs and the score is not at the threshold.
    """
    model = artifact.model
    stored = _trial(model)
    wanted = artifact.scorer("float32")(stored, [calibration.score])[calibration.score]
    score, p_value, called = run_onnx(content, stored.flatten(1).numpy() if model.takes_features else stored.numpy())
    difference = relative_difference(score, wanted)
    clear = np.abs(wanted - calibration.cut) > TOLERANCE * max(abs(calibration.cut), 1e-3)
    decided = (called == calibration.is_outlier(wanted))[clear].all()
    if difference > TOLERANCE or not decided or not np.array_equal(p_value, calibration.p_values(score)):
        raise ValueError(
            f"the exported graph does not score as the library does (relative difference {difference:.2g}):"
            " nothing was written; please report this with the versions of torch and onnxruntime"
        )
    if artifact.heatmaps is not None:
        apart = float(np.abs(run_onnx_maps(content, stored.numpy()) - artifact.heatmaps(stored)).max())
        if apart > TOLERANCE:
            raise ValueError(
                f"the exported graph's heat maps differ from the library's by {apart:.2g}: nothing was written"
            )
    return difference, len(stored)


def relative_difference(scores: NDArray[Any], wanted: NDArray[Any]) -> float:
    """Return the largest |s - w| / max(|w|, 1% of the largest |w|); the 1% sets the scale for scores near zero.

    >>> round(relative_difference(np.array([1.0, 2.02]), np.array([1.0, 2.0])), 4)
    0.01
    """
    size = np.abs(wanted.astype(np.float64))
    floor = 0.01 * size.max(initial=0) or 1.0
    return float((np.abs(scores.astype(np.float64) - wanted) / np.maximum(size, floor)).max(initial=0))


@torch.inference_mode()
def _trial(model: VAE) -> Tensor:
    """Return 16 images (or rows) that the model generates, and 16 of noise."""
    randomness = torch.Generator().manual_seed(0)
    codes = model.prior.sample(16, randomness).to(next(model.parameters()))
    generated = model.inputs.restore(model.generate(codes))
    if model.takes_features:
        noise = model.inputs.restore(3 * torch.randn(generated.shape, generator=randomness).double())
    else:
        noise = torch.randint(0, 256, generated.shape, generator=randomness, dtype=torch.uint8)
    return torch.cat([generated, noise])


def run_onnx(model: bytes | Path, stored: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
    """Run an exported file with onnxruntime on the CPU.

    Args:
        model: path of the file, or its content.
        stored: images, uint8, N x C x H x W, or rows, float64, N x D.

    Returns:
        Score, p-value and decision (N each).

    Raises:
        ImportError: if the extra "onnx" is not installed.
    """
    score, p_value, called = _outputs(model, stored)[:3]
    return score, p_value, called


def run_onnx_maps(model: bytes | Path, stored: NDArray[Any]) -> NDArray[np.float32]:
    """Return the heat maps (N x H x W) of an exported file; the arguments are those of `run_onnx`."""
    maps: NDArray[np.float32] = _outputs(model, stored)[3]
    return maps


def _outputs(model: bytes | Path, stored: NDArray[Any]) -> list[Any]:
    runtime = need("onnxruntime", "onnx")
    options = runtime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3
    content = model if isinstance(model, bytes) else str(model)
    session = runtime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    outputs: list[Any] = session.run(None, {session.get_inputs()[0].name: stored})
    return outputs
