"""Train maps of where an image is out-of-distribution, and keep them in a run's folder."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors import SafetensorError
from torch import Tensor

from negvae.checksums import open_tensors
from negvae.device import own_state
from negvae.messages import Log, first_line, silent
from negvae.model.patches import PatchEncoder
from negvae.scoring.heatmaps import Heatmaps, calibrated_heatmaps
from negvae.training import patches
from negvae.training.checkpoint import CHECKPOINT_SECONDS, read_progress, save_tensors, to_store

FILE = "heatmaps.safetensors"
ENCODER = "2"
"""Version of the encoder's layers in the file; another one cannot be read."""
_SIZES = ("channels", "stride", "width", "latent_size", "shift")


def fit_heatmaps(
    training: Tensor,
    held_out: Tensor,
    *,
    seed: int = 0,
    precision: str = "auto",
    device: str = "auto",
    log: Log = silent,
    should_stop: Callable[[], str] = lambda: "",
    directory: Path | None = None,
    checkpoint_seconds: float = CHECKPOINT_SECONDS,
) -> Heatmaps:
    """Train the posterior of each patch and calibrate its maps.

    Args:
        training: inliers to train on, uint8, N x C x H x W.
        held_out: inliers to calibrate on, uint8, M x C x H x W.
        seed: seed of the training.
        precision: precision of the training's arithmetic, as in `RunConfig`; maps are computed in float32.
        device: device to train on: "auto", "cpu", "cuda" or "cuda:N".
        log: called with a line before, three on the way, and one about how long it took.
        should_stop: called before each step; returns the reason to stop, with a checkpoint, or "" to go on.
        directory: folder of the run, whose checkpoint of the maps is gone on from; None keeps everything in memory.
        checkpoint_seconds: number of seconds between checkpoints.

    Returns:
        The maps.

    Raises:
        ValueError: if there are fewer than two images to train on, or none to calibrate on.
        StoppedError: if `should_stop` asked for it.
    """
    started, steps = time.monotonic(), patches.plan(training.shape[2], training.shape[3])[0]
    first = 0 if directory is None else read_progress(directory, patches.CHECKPOINT).step
    begun = f", from step {first:,} on" if first else ""
    log(f"heat maps: {steps:,} training steps on {len(training):,} inputs{begun}")

    def report(step: int) -> None:
        if step % max(steps // 4, 1) == 0 and step < steps:
            left = (time.monotonic() - started) * (steps - step) / (step - first)
            log(f"heat maps: step {step:,} of {steps:,}, about {left:.0f} s left")

    network = patches.train_patches(
        training, seed=seed, precision=precision, device=device, on_step=report, should_stop=should_stop,
        directory=directory, checkpoint_seconds=checkpoint_seconds,
    )  # fmt: skip
    maps = calibrated_heatmaps(network, held_out)
    log(
        f"heat maps: trained in {time.monotonic() - started:.0f} s, calibrated by {maps.counts.sum():,} pixels of"
        f" {len(held_out):,} held-out inliers"
    )
    return maps


def save_heatmaps(directory: Path, maps: Heatmaps) -> None:
    """Write the maps' encoder and calibration to a run's folder."""
    network = maps.network
    tensors = {f"network.{name}": value for name, value in to_store(network.state_dict()).items()}
    tensors |= {"counts": torch.from_numpy(maps.counts), "scores": torch.from_numpy(maps.scores)}
    sizes = {name: getattr(network, name) for name in _SIZES}
    header = {"encoder": ENCODER, "sizes": json.dumps(sizes), "shape": json.dumps(list(maps.shape))}
    save_tensors(directory / FILE, tensors, header)


@own_state()
def load_heatmaps(directory: Path, shape: tuple[int, int, int], device: torch.device) -> Heatmaps | None:
    """Read what `save_heatmaps` wrote.

    Args:
        directory: folder of the run.
        shape: shape (C, H, W) of the run's images.
        device: device to put the encoder on.

    Returns:
        The maps, or None if the run has none.

    Raises:
        ValueError: if the file is damaged or is of images of another shape.
    """
    path = directory / FILE
    if not path.is_file():
        return None
    try:
        with open_tensors(path, "pt") as file:
            header = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
        if header.get("encoder") != ENCODER:
            raise ValueError("its encoder is that of another version of negvae")
        sizes, kept = json.loads(header["sizes"]), tuple(json.loads(header["shape"]))
        network = PatchEncoder(**{name: sizes[name] for name in _SIZES}).float()  # whatever the default type
        state = {name.removeprefix("network."): value for name, value in tensors.items() if name.startswith("network.")}
        network.load_state_dict(state)
        network.to(device, memory_format=torch.channels_last).eval()  # type: ignore[call-overload]
        maps = Heatmaps(
            # Copies, since these tensors lie in the mapped file, which may be written anew under a service.
            network,
            (kept[0], kept[1], kept[2]),
            tensors["counts"].numpy().copy(),
            tensors["scores"].numpy().copy(),
        )
    except (SafetensorError, KeyError, TypeError, IndexError, ValueError, RuntimeError) as error:
        raise ValueError(f"{path}: cannot be read ({first_line(error)}); train with heat maps anew") from None
    if maps.shape != shape:
        given, wanted = ("x".join(map(str, each)) for each in (maps.shape, shape))
        raise ValueError(f"{path}: is of {given} images, the run is of {wanted} (C x H x W)")
    return maps
