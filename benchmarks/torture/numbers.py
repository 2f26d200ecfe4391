"""Every numerical path against float64, also far from what a model was trained on."""

from __future__ import annotations

import dataclasses
import importlib.util
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
from tests.conftest import SHAPES, blobs, small_run
from torch import Tensor

from benchmarks.torture.count import Count
from negvae.device import runs_bfloat16
from negvae.fast.int8 import multiplies_integers
from negvae.runs.artifact import Artifact, load_artifact
from negvae.runs.calibrate import calibrate_run
from negvae.runs.export import export_onnx
from negvae.runs.train import run
from negvae.scoring import Scorer
from negvae.scoring.table import names_of

NETWORKS = ("gray", "pyramid", "deep", "color")
SCORES = ("kl", "prior_ratio", "latent_norm")
INLIERS = 6
TOLERANCE = {"float32": 2e-4, "ONNX": 2e-4, "bfloat16": 0.2, "int8": 0.25}
"""Largest difference from float64, as a share of the score's own size or of 1 nat, whichever is larger."""
Scores = Callable[[Tensor, Sequence[str]], dict[str, np.ndarray]]


def far_out(shape: tuple[int, int, int], seed: int) -> Tensor:
    """Images of every kind: inliers, their negatives, noise, black, white, checkers, single bright pixels."""
    draw = torch.Generator().manual_seed(seed)
    noise = torch.randint(256, (6, *shape), generator=draw, dtype=torch.uint8)
    extremes = torch.zeros(4, *shape, dtype=torch.uint8)
    extremes[1] = 255
    extremes[2, :, ::2, ::2] = 255
    extremes[3, :, shape[1] // 2, shape[2] // 2] = 255
    inliers = blobs(INLIERS, shape, seed)
    return torch.cat([inliers, 255 - inliers, noise, noise // 128 * 255, extremes])


def exact(artifact: Artifact, images: Tensor) -> dict[str, np.ndarray]:
    """The scores of the encoder in float64, layer by layer as torch has them."""
    model = artifact.model
    model.plain = True
    model.double()
    with torch.inference_mode():
        posterior = model.encode(images.double() / 255)
    kl = model.prior.kl(*posterior)
    found = {"kl": kl, "prior_ratio": kl - model.negative_prior.kl(*posterior),
             "latent_norm": posterior.mean.square().sum(1)}  # fmt: skip
    model.float()
    model.plain = False
    return {name: values.numpy() for name, values in found.items()}


def problems(found: dict[str, np.ndarray], expected: dict[str, np.ndarray], tolerance: float) -> Iterator[str]:
    """Scores that are not numbers, or too far from those in float64."""
    for name, values in expected.items():
        if name not in found:
            continue
        ours = found[name].astype(np.float64)
        if not np.isfinite(ours).all():
            yield f"{name} is not finite"
        worst = np.abs(ours - values) / np.maximum(np.abs(values), 1 if name != "prior_ratio" else np.abs(values).max())
        if worst.max() > tolerance:
            yield f"{name} is off by {worst.max():.2g} of its size"


def torture(count: Count, networks: Sequence[str], seeds: int) -> None:
    """Models of these networks, images of every kind, in every precision and as an ONNX file."""
    with tempfile.TemporaryDirectory(prefix="negvae-torture-") as text:
        for network in networks:
            tried(count, Path(text), network, seeds)


def tried(count: Count, place: Path, network: str, seeds: int) -> None:
    """Train a model for a moment, and compare its scores."""
    shape = (3, 20, 33) if network == "deep" else SHAPES[network]
    np.save(place / "in.npy", blobs(48, shape).numpy())
    config = small_run(network, epochs=2, batch_size=12, calibration=0.25, negatives="uniform-noise")
    run(dataclasses.replace(config, data=str(place / "in.npy")), place / network)
    calibrate_run(place / network, score="latent_neighbors")  # fitted to training images only when it is asked for
    artifact = load_artifact(place / network)
    assert artifact.calibration is not None
    apart = {"ensemble", "features", "transformations"}  # what these models are trained without
    names = [name for name in names_of(lambda entry: not apart & {*entry.needs}) if name != "defects"]
    paths: dict[str, Scores] = {"float32": Scorer(artifact.model, artifact.calibration.reference)}
    if runs_bfloat16(torch.device("cpu")):
        paths["bfloat16"] = Scorer(artifact.model, artifact.calibration.reference, precision="bfloat16")
    if importlib.util.find_spec("onnxruntime"):
        paths["ONNX"] = exported(artifact, place)
    if multiplies_integers():
        shutil.copytree(place / network, place / f"{network} int8")
        calibrate_run(place / f"{network} int8", score="kl", precision="int8")
        paths["int8"] = load_artifact(place / f"{network} int8").scorer()
    for seed in range(seeds):
        images, key = far_out(shape, seed), f"{network} {seed}"
        for path in paths:
            count.trial(f"{path} beside float64", key, partial(beside, path, paths[path], artifact, images))
        few = [names[(3 * seed + k) % len(names)] for k in range(3)]
        count.trial("every score far out is a number", key, partial(finite, paths["float32"], images[::4], few))


def beside(path: str, scorer: Scores, artifact: Artifact, images: Tensor) -> list[str]:
    """The scores of one path beside those in float64."""
    found, expected = scorer(images, SCORES), exact(artifact, images)
    return list(clipped(found, expected) if path == "int8" else problems(found, expected, TOLERANCE[path]))


def finite(scorer: Scores, images: Tensor, names: Sequence[str]) -> list[str]:
    """These scores of images of every kind."""
    return infinite(scorer(images, names))


def infinite(found: dict[str, np.ndarray]) -> list[str]:
    """Scores that are not numbers."""
    return [f"{name} is not finite" for name, values in found.items() if not np.isfinite(values).all()]


def clipped(found: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> Iterator[str]:
    """int8 beside float64: near for inliers; far out, where activations are cut off, no less than for inliers."""
    yield from problems({name: values[:INLIERS] for name, values in found.items()},
                        {name: values[:INLIERS] for name, values in expected.items()}, TOLERANCE["int8"])  # fmt: skip
    yield from infinite(found)
    ours, theirs = found["kl"], expected["kl"]
    far = theirs > 3 * theirs[:INLIERS].max()
    if not (ours[far] > ours[:INLIERS].max()).all():
        yield f"kl of {ours[far].min():.4g} for an image at {theirs[far][ours[far].argmin()]:.4g} in float64"


def exported(artifact: Artifact, place: Path) -> Scores:
    """The decision score of an ONNX file, as a scorer."""
    import onnxruntime

    export_onnx(artifact.directory, place / "model.onnx", score="kl")
    session = onnxruntime.InferenceSession(str(place / "model.onnx"))

    def scores(images: Tensor, names: Sequence[str]) -> dict[str, np.ndarray]:
        results = session.run(None, {session.get_inputs()[0].name: images.numpy()})
        outputs = [output.name for output in session.get_outputs()]
        return {"kl": dict(zip(outputs, results, strict=True))["score"]}

    return scores
