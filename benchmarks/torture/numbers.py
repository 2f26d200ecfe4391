"""Every numerical path against float64, also far from what a model was trained on."""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from tests.conftest import SHAPES, blobs, small_run
from torch import Tensor

from benchmarks.torture.count import Count
from negvae.device import runs_bfloat16
from negvae.runs.artifact import Artifact, load_artifact
from negvae.runs.export import export_onnx
from negvae.runs.train import run
from negvae.scoring import Scorer
from negvae.scoring.table import names_of

NETWORKS = ("gray", "pyramid", "deep", "color")
SCORES = ("kl", "prior_ratio", "latent_norm")
TOLERANCE = {"float32": 2e-4, "bfloat16": 0.2}
"""Largest difference from float64, as a share of the score's own size or of 1 nat, whichever is larger."""


def far_out(shape: tuple[int, int, int], seed: int) -> Tensor:
    """Images of every kind: inliers, their negatives, noise, black, white, checkers, single bright pixels."""
    draw = torch.Generator().manual_seed(seed)
    noise = torch.randint(256, (6, *shape), generator=draw, dtype=torch.uint8)
    extremes = torch.zeros(4, *shape, dtype=torch.uint8)
    extremes[1] = 255
    extremes[2, :, ::2, ::2] = 255
    extremes[3, :, shape[1] // 2, shape[2] // 2] = 255
    inliers = blobs(6, shape, seed)
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
    """Models of these networks, images of every kind; with several, the ONNX file too."""
    with tempfile.TemporaryDirectory(prefix="negvae-torture-") as text:
        place = Path(text)
        for network in networks:
            shape = (3, 20, 33) if network == "deep" else SHAPES[network]
            np.save(place / "in.npy", blobs(48, shape).numpy())
            config = small_run(network, epochs=2, batch_size=12, calibration=0.25, negatives="uniform-noise")
            run(dataclasses.replace(config, data=str(place / "in.npy")), place / network)
            artifact = load_artifact(place / network)
            precisions = ["float32", *(["bfloat16"] if runs_bfloat16(torch.device("cpu")) else [])]
            for seed in range(seeds):
                images = far_out(shape, seed)
                expected = exact(artifact, images)
                for precision in precisions:
                    scorer = Scorer(artifact.model, artifact.calibration.reference, precision=precision)
                    found = scorer(images, SCORES)
                    count.add(f"{precision} beside float64", problems(found, expected, TOLERANCE[precision]))
                names = names_of(lambda entry: not {"ensemble", "features"} & {*entry.needs})
                everything = Scorer(artifact.model, artifact.calibration.reference)(images[::4], names[:8])
                bad = [f"{name} is not finite" for name, values in everything.items() if not np.isfinite(values).all()]
                count.add("every score far out is a number", bad)
            if network == "gray" and len(networks) > 1:
                exported(count, artifact, place)


def exported(count: Count, artifact: Artifact, place: Path) -> None:
    """The ONNX file gives the library's scores."""
    import onnxruntime

    export_onnx(artifact.directory, place / "model.onnx", score="kl")
    session = onnxruntime.InferenceSession(str(place / "model.onnx"))
    images = far_out((1, 28, 28), 0)
    results = session.run(None, {session.get_inputs()[0].name: images.numpy()})
    names = [output.name for output in session.get_outputs()]
    score = dict(zip(names, results, strict=True))["score"]
    count.add("ONNX beside float64", problems({"kl": score}, exact(artifact, images), TOLERANCE["float32"]))
