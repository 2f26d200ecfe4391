"""Maps of where images are out-of-distribution, for runs with an encoder that gives a map of patches.

The folder of the run keeps the measurements in patches.safetensors.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from torch import Tensor

from negvae.checksums import open_tensors
from negvae.config import RunConfig
from negvae.data.batches import InputSpec
from negvae.data.embedding import Encoder, load_encoder
from negvae.data.streams import stream
from negvae.device import own_state
from negvae.messages import first_line
from negvae.runs.artifact import Artifact, load_artifact
from negvae.runs.embed import encoder_images, encoder_of
from negvae.scoring.patches import PatchBank, enlarged, fit_bank
from negvae.training.checkpoint import save_tensors

PATCHES = "patches.safetensors"
TRAINING_IMAGES, HELD_OUT_IMAGES = 500, 1000
"""Largest numbers of training images and of held-out inliers whose patches are measured, evenly taken."""


@dataclass(frozen=True)
class PatchMaps:
    """The maps of a run with an encoder.

    Attributes:
        encoder: encoder that gives a map of patches.
        bank: patches of inliers.
    """

    encoder: Encoder
    bank: PatchBank

    @property
    def shape(self) -> tuple[int, int, int]:
        """Shape (C, H, W) of the images that the encoder takes."""
        return self.encoder.shape

    def __call__(self, stored: Tensor) -> NDArray[np.float32]:
        """Compute the maps of images.

        Args:
            stored: uint8 images as the encoder takes them, N x C x H x W.

        Returns:
            -log10 of the p-value of each patch among the patches of held-out inliers, enlarged bilinearly to the size
            of the image: N x H x W.

        Raises:
            ValueError: if the images have another type or shape.
        """
        size = self.encoder.shape[1:]
        maps = [enlarged(self.bank.surprise(found), size) for found in self._distances(stored)]
        return np.stack(maps) if maps else np.empty((0, *size), np.float32)

    def image_scores(self, stored: Tensor) -> NDArray[np.float64]:
        """Score images by their patch that lies farthest out (N); the argument is that of a call."""
        return np.array([found.max() for found in self._distances(stored)], np.float64)

    def p_values(self, scores: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return conformal p-values of image scores: (1 + #{held-out >= score}) / (held-out + 1)."""
        return self.bank.image_p_values(scores)

    def of_files(self, inputs: Sequence[str]) -> Iterator[tuple[str, NDArray[np.float32]]]:
        """Yield the path and the map (H x W of the encoder's images) of each image of files and folders.

        Args:
            inputs: files, folders or patterns, as `negvae score` takes them.

        Yields:
            The path of an image, and its map.

        Raises:
            FileNotFoundError: if an input does not exist.
            ValueError: if an image cannot be read.
        """
        for batch in stream(
            inputs, InputSpec(self.encoder.shape, resize=True, upright=self.encoder.upright), batch_size=32
        ):
            for path, error in zip(batch.paths, batch.errors, strict=True):
                if error:
                    raise ValueError(f"{path}: {error}")
            yield from zip(batch.paths, self(torch.from_numpy(batch.images)), strict=True)

    def _distances(self, stored: Tensor) -> Iterator[NDArray[np.float64]]:
        return map(self.bank.distances, self.encoder.patches(stored.numpy()))


def fit_patches(config: RunConfig, held_out: Sequence[int], count: int) -> PatchBank | None:
    """Measure the patches of a run's inliers.

    Args:
        config: configuration of a run with an encoder.
        held_out: indices of the held-out inliers.
        count: number of inliers, those held out among them.

    Returns:
        The measurements; None if the run has no encoder, the encoder gives no map, or no inliers are held out.
    """
    if config.embed is None or not held_out or not (encoder := load_encoder(config.embed)).map_output:
        return None
    apart = set(held_out)
    training = _evenly([row for row in range(count) if row not in apart], TRAINING_IMAGES)
    measured = _evenly(sorted(apart), HELD_OUT_IMAGES)
    wanted, found, row = {*training, *measured}, dict[int, NDArray[np.float64]](), 0
    for batch in encoder_images(config.data, encoder, config.limit, "train", config.max_broken):
        places = [place for place in range(len(batch)) if row + place in wanted]
        features = encoder.patches(batch.images[places])
        found.update(zip((row + place for place in places), features, strict=True))
        row += len(batch)
    return fit_bank([found[row] for row in training], [found[row] for row in measured], config.seed)


def _evenly(rows: list[int], most: int) -> list[int]:
    return rows[:: max(-(-len(rows) // most), 1)]


def save_patches(directory: Path, bank: PatchBank) -> None:
    """Write patches.safetensors to the folder of a run."""
    tensors = {name: torch.from_numpy(np.ascontiguousarray(values)) for name, values in bank.arrays().items()}
    save_tensors(directory / PATCHES, tensors, {})


@own_state()
def open_patch_maps(directory: Path | str, embed: Path | str | None = None) -> PatchMaps:
    """Open the maps of a run with an encoder.

    Args:
        directory: folder of the run.
        embed: present path of the encoder; None for the path at the time of training.

    Returns:
        The maps.

    Raises:
        FileNotFoundError: if the folder or the encoder does not exist.
        ValueError: if the run has no maps of patches, or their file is damaged.
    """
    artifact = load_artifact(directory, "cpu")
    return maps_of_encoder(artifact, encoder_of(artifact, embed))


def maps_of_encoder(artifact: Artifact, encoder: Encoder | None) -> PatchMaps:
    """Return the maps of a run with an encoder that has been opened; see `open_patch_maps`."""
    path = artifact.directory / PATCHES
    if encoder is None or not path.is_file():
        raise ValueError(
            f"{artifact.directory} has no maps of patches: train with --embed and an encoder that gives a map"
        )
    try:
        with open_tensors(path, "np") as file:
            bank = PatchBank(**{name: file.get_tensor(name) for name in file.keys()})  # noqa: SIM118 - not a mapping
    except (SafetensorError, TypeError, ValueError) as error:
        raise ValueError(f"{path}: damaged ({first_line(error)})") from None
    return PatchMaps(encoder, bank)
