"""Export a trained detector as one ONNX file: images in; score, p-value and decision out.

The graph is traced from the functions that compute scores in the library. Held-out scores, threshold and posterior
noise are constants in it, so that an image gets the same answer wherever the file runs.
"""

from __future__ import annotations

import copy
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

import negvae
from negvae.device import own_state
from negvae.files import need, refuse_replacing, require_writable
from negvae.messages import quoted
from negvae.model import VAE
from negvae.model.likelihoods import Bernoulli
from negvae.model.networks import ResidualBlock
from negvae.model.patches import PatchEncoder
from negvae.runs.artifact import Artifact, load_artifact
from negvae.runs.embed import columns_of
from negvae.runs.graph import Decision, finite32, need_onnx, write_graph
from negvae.runs.provenance import provenance
from negvae.scoring.calibration import Calibration
from negvae.scoring.heatmaps import Heatmaps, log_odds_maps, surprise, surprise_table
from negvae.scoring.passes import Pass, SharedDraws
from negvae.scoring.scorer import Scorer
from negvae.scoring.table import SCORES, names_of
from negvae.scoring.tiles import RULES, TOP, combine

FORMATS = ("onnx",)
CHANNEL_ORDERS = {1: "gray", 3: "RGB"}
"""Order of the channels in the metadata, by their number."""
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
        difference: largest relative difference of scores from the library's, on `compared` inputs.
        compared: number of inputs that were scored by both.
        size: number of bytes of the file.
    """

    path: Path
    calibration: Calibration
    encoder_only: bool
    difference: float
    compared: int
    size: int

    def describe(self) -> str:
        """Describe the file in one line."""
        parts = "encoder only" if self.encoder_only else "encoder and decoder"
        if "features" in SCORES[self.calibration.score].needs:
            parts = "reference rows and no network"
        return (
            f"{self.calibration.describe()}; {parts}, {self.size / 1e6:.2f} MB; scores within"
            f" {self.difference:.1g} of the library's on {self.compared} inputs"
        )


@own_state()
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
    "is_outlier" (bool). Of a model of tiled images, a call takes the tiles of one image, and these have length 1. If
    the run has heat maps, a fourth output "heatmap" (float32, N x H x W) is the map that `NegVAEDetector.heatmap`
    gives, of each tile if images are tiled. Images are scored in float32 and rows in float64, as in the library. The
    file's metadata describe it and what it was made from.

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
    need_onnx()  # before anything is loaded
    directory = Path(directory)
    path = Path(out) if out is not None else directory / "model.onnx"
    artifact = load_artifact(directory, "cpu")
    if not path.absolute().parent.is_dir() or path.is_dir():
        raise FileNotFoundError(f"{path}: no such folder to write to, or not a file's name")
    refuse_replacing(path, endings=(".onnx",))
    require_writable(path)
    calibration = _calibration(artifact, score, target_fpr, confidence)
    graph = _Graph(artifact.model, calibration, artifact.heatmaps)
    (difference, compared), size = write_graph(
        graph, _example(graph.model, 2), path, _metadata(artifact, calibration),
        lambda content: _difference(content, artifact, calibration),
        input_name="rows" if graph.rows else "images", further=() if graph.patches is None else ("heatmap",),
        what=f"score {graph.score.name}",
    )  # fmt: skip
    return Export(path, calibration, not graph.decodes, difference, compared, size)


def _calibration(
    artifact: Artifact, score: str | None, target_fpr: float | None, confidence: float | None
) -> Calibration:
    if score is not None:
        SCORES[score]  # an unknown name is refused before anything else is said of the folder
    calibration = artifact.calibrated()
    if calibration.precision != "float32":
        raise ValueError(
            f"{artifact.directory} is calibrated in {calibration.precision}, and a graph is exported in float32: run"
            f" `negvae calibrate {quoted(artifact.directory)}` without --precision first"
        )
    name = score or calibration.score
    if why := SCORES[name].not_exported:
        of_others = "pixels" if artifact.config.takes_features else "features"
        able = ", ".join(names_of(lambda entry: not entry.not_exported and of_others not in entry.needs))
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
        self.rule = calibration.tiles
        likelihood = _StableBernoulli() if isinstance(model.likelihood, Bernoulli) else model.likelihood
        encoder, decoder = _plain(model.encoder), _plain(model.decoder)
        shift, shifted = model.negative_prior.shift, copy.deepcopy(model.shifted)
        if shifted is not None:
            shifted.encoder = _plain(shifted.encoder)
        self.model = VAE(encoder, decoder, likelihood, model.shape, model.latent_size, shift, model.inputs, shifted)
        self.model.plain = True
        self.draws = SharedDraws()
        self.decision = Decision(calibration)
        # Before it is traced, since random numbers are constants in the graph; and a decoder is kept if it is used.
        with torch.no_grad():
            once = self._over(_example(model, 2))
            self.score.read(once)
        self.decodes = once.decoded
        if not once.transformed:
            self.model.shifted = None
        if not self.decodes:
            self.model.decoder = nn.Sequential()

    def _over(self, stored: Tensor) -> Pass:
        stored = stored.unsqueeze(2).unsqueeze(3) if self.rows else stored
        return Pass(self.model, stored, draws=self.draws, references=self.references)

    def forward(self, stored: Tensor) -> tuple[Tensor, ...]:
        """Return score, p-value and decision (N each; of tiles, which are those of one image, one each).

        If the run has heat maps, they are the fourth value (N x H x W).
        """
        score = self.score.read(self._over(stored))
        if self.rule:
            score = _of_image(finite32(score), self.rule)
        decided: tuple[Tensor, Tensor, Tensor] = self.decision(score)
        if self.patches is None or self.table is None:
            return decided
        return (*decided, surprise(log_odds_maps(self.patches, stored.float() / 255, torch.float32), self.table))


def _of_image(scores: Tensor, rule: str) -> Tensor:
    """Return the score of one image (1) from those of its tiles (T); the graph's form of `negvae.scoring.tiles`."""
    wide = scores.double()
    if rule == "max":
        return wide.amax(0, keepdim=True).float()
    if rule == "mean":
        return wide.mean(0, keepdim=True).float()
    ordered = wide.sort(descending=True).values
    counted = torch.ones_like(ordered)
    rank = counted.cumsum(0)
    taken = (rank <= (TOP * counted.sum()).ceil()).double()
    return ((ordered * taken).sum(0, keepdim=True) / taken.sum(0, keepdim=True)).float()


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
    """Return a network with its batch norms replaced, those inside of its blocks too."""
    layers = []
    for layer in network:
        if isinstance(layer, nn.BatchNorm2d):
            layer = _Scaled(layer)
        elif isinstance(layer, ResidualBlock):
            layer = copy.deepcopy(layer)
            layer.inner, layer.skip = _plain(layer.inner), _plain(layer.skip)
        layers.append(layer)
    return nn.Sequential(*layers)


class _StableBernoulli(Bernoulli):
    """The same likelihood by softplus, since torch exports the other form as log(sigmoid), which is -inf below -104."""

    def _cross_entropy(self, logits: Tensor, target: Tensor) -> Tensor:
        """Return log(1 + exp(l)) - x l for logits l of pixels x, in nats."""
        # Spelled out, since onnxruntime has no Softplus in double precision.
        return logits.relu() + (1 + (-logits.abs()).exp()).log() - target * logits


def _example(model: VAE, count: int) -> Tensor:
    dtype = torch.float64 if model.takes_features else torch.uint8
    return torch.zeros(count, *(model.shape[:1] if model.takes_features else model.shape), dtype=dtype)


def _metadata(artifact: Artifact, calibration: Calibration) -> dict[str, str]:
    """Return the metadata of the file, which describe it to anyone who has nothing else."""
    model = artifact.model
    now = provenance(artifact.config, Scorer(artifact.model))
    shape = "x".join(map(str, model.shape[:1] if model.takes_features else model.shape))
    what = "float64 rows, N x D, as given to fit" if model.takes_features else "uint8 intensities, N x C x H x W"
    rule = "contamination" if calibration.target_fpr is None else "target_fpr"
    promised: dict[str, str] = {}
    if certificate := calibration.certificate():
        promised["false_alarm_bound"] = repr(certificate["at_most"])
        promised["false_alarm_bound_confidence"] = repr(certificate["confidence"])
    if model.takes_features and (columns := columns_of(artifact)):
        promised["columns"] = json.dumps(columns)
    if calibration.confidence is not None:
        promised["confidence"] = repr(calibration.confidence)
    if calibration.joined:
        promised["held_out_rows_are_references"] = "true"
    if calibration.trimmed:
        promised["trimmed"] = repr(calibration.trimmed)
    if calibration.thresholds:
        promised["threshold_of_all_groups"] = repr(calibration.threshold)
        promised["group_thresholds"] = json.dumps(calibration.thresholds)
        promised["groups"] = "the largest p-value over groups, and the highest of their thresholds"
        by_group = calibration.groups[calibration.score]
        promised["held_out_scores_of_groups"] = (
            f"{{{', '.join(f'{json.dumps(g)}: {_as_json(s)}' for g, s in by_group.items())}}}"
        )
    if not model.takes_features:
        promised["channel_order"] = CHANNEL_ORDERS.get(model.shape[0], "as given to fit")
        promised["value_range"] = "0 to 255"
    return {
        "negvae": negvae.__version__,
        "commit": str(now["commit"]),
        "exported": str(now["written"]),
        "training_data": artifact.config.data,
        "training_commit": str(artifact.provenance.get("commit", "unknown")),
        "input": what,
        "layout": "ND" if model.takes_features else "NCHW",
        "shape": shape,
        "score": calibration.score,
        "score_meaning": f"{SCORES[calibration.score].meaning}; larger = more out-of-distribution",
        "units": SCORES[calibration.score].unit,
        "threshold": repr(calibration.cut),
        **promised,
        rule: repr(getattr(calibration, rule)),
        "calibration_size": str(calibration.size),
        "held_out_scores": _as_json(calibration.scores[calibration.score]),
        f"false_alarm_rate_{'at_most' if calibration.bounds_rate else 'about'}": repr(calibration.false_alarm_rate),
        "p_value": "(1 + number of held-out inliers with at least this score) / (calibration_size + 1)",
        "is_outlier": "score > threshold",
        **_images(artifact, calibration),
        **({} if artifact.heatmaps is None else {"heatmap": HEATMAP}),
        "arithmetic": "float64" if model.takes_features else "float32",
    }


def _as_json(scores: NDArray[np.float64]) -> str:
    """Return scores as a JSON list; they are float32, and each is the shortest text that restores it."""
    return f"[{', '.join(map(str, scores.astype(np.float32)))}]"


def _images(artifact: Artifact, calibration: Calibration) -> dict[str, str]:
    """Return the entries of the metadata on how images become inputs, of a model that was trained on photos."""
    decoding = artifact.config.images
    if decoding is None:
        return {}
    entries = {"images": json.dumps(decoding.to_dict())}
    if calibration.tiles:
        entries["tiles"] = (
            "the tiles of one image, any number of them, as negvae.data.tiling cuts them; the outputs are of length 1:"
            f" the score is {RULES[calibration.tiles]}"
        )
    return entries


def _difference(content: bytes, artifact: Artifact, calibration: Calibration) -> tuple[float, int]:
    """Return the largest relative difference between the file's scores and the library's, and the number of images.

    The images are samples of the model (similar to the training data) and noise (dissimilar to it).

    Raises:
        ValueError: if the difference exceeds `TOLERANCE`, or a decision differs and the score is not at the threshold.
    """
    model = artifact.model
    stored = _trial(model)
    wanted = artifact.scorer("float32")(stored, [calibration.score])[calibration.score]
    if calibration.tiles:
        sizes = (1, 2, 5, 8, 16)  # of five images made of the trial's tiles
        owners = np.repeat(np.arange(len(sizes)), sizes)
        wanted = combine(wanted, owners, calibration.tiles)
        parts = [run_onnx(content, part.numpy()) for part in torch.split(stored, list(sizes))]
        score, p_value, called = (np.concatenate(each) for each in zip(*parts, strict=True))
    else:
        inputs = stored.flatten(1).numpy() if model.takes_features else stored.numpy()
        score, p_value, called = run_onnx(content, inputs)
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
    return difference, len(wanted)


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
        noise = model.inputs.restore(
            3 * torch.randn(generated.shape, generator=randomness, dtype=torch.float32).double()
        )
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
