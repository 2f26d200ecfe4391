"""Pictures of what a trained model does to images: inliers, outliers, negatives, reconstructions and samples."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from negvae.config import RunConfig
from negvae.data import load
from negvae.files import replacing
from negvae.model import VAE
from negvae.negatives import build_source

Pictures = NDArray[np.uint8]


@torch.inference_mode()
def pictures(model: VAE, config: RunConfig, test: Tensor, ood: Tensor, count: int = 16) -> dict[str, Pictures]:
    """Return the first images of both sets with reconstructions, generated images, and negatives if there are any.

    Args:
        model: trained VAE in evaluation mode.
        config: configuration of the run; auxiliary negatives are loaded from the local folders.
        test: inliers, uint8, n x C x H x W.
        ood: outliers, uint8, m x C x H x W.
        count: number of images of each kind.

    Returns:
        uint8 images, count x C x H x W, by caption.
    """
    randomness = torch.Generator(model.device).manual_seed(config.seed)
    inliers, outliers = (images[:count].to(model.device).float() / 255 for images in (test, ood))
    shown = {
        "Inliers": inliers,
        "Inliers, reconstructed": model.generate(model.encode(inliers).mean),
        "Outliers": outliers,
        "Outliers, reconstructed": model.generate(model.encode(outliers).mean),
        "Generated": model.generate(model.prior.sample(count, randomness, model.device)),
    }
    source = build_source(
        config.negatives,
        lambda name: torch.from_numpy(load(name, "train", fetch=False, shape=model.shape).images).to(model.device),
    )
    if source is not None:
        shown["Negatives"] = source.sample(inliers, model, randomness).images
    return {name: (images.clamp(0, 1) * 255).round().byte().cpu().numpy() for name, images in shown.items()}


def write_strips(path: Path, strips: Mapping[str, Pictures]) -> None:
    """Write pictures as one PNG, a line of images for each caption; `read_strips` reads it.

    Args:
        path: PNG file to write.
        strips: images by caption, uint8, n x C x H x W with C 1 or 3, all of one shape.

    >>> import tempfile
    >>> strips = {"black": np.zeros((3, 1, 4, 4), np.uint8), "white": np.full((3, 1, 4, 4), 255, np.uint8)}
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     write_strips(Path(folder) / "strips.png", strips)
    ...     read_strips(Path(folder) / "strips.png", ["black", "white"], 3)["white"].shape
    (3, 1, 4, 4)
    """
    lines = [np.concatenate(list(images), axis=2) for images in strips.values()]  # C x H x nW each
    canvas = np.concatenate(lines, axis=1).transpose(1, 2, 0)
    with replacing(path) as temporary:
        Image.fromarray(canvas[..., 0] if canvas.shape[2] == 1 else canvas).save(temporary, "PNG", optimize=True)


def read_strips(path: Path, captions: Sequence[str], count: int) -> dict[str, Pictures]:
    """Read the pictures that `write_strips` wrote.

    Args:
        path: PNG file to read.
        captions: caption of each line, from the top.
        count: number of images in a line.

    Returns:
        uint8 images, count x C x H x W, by caption.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if the file is no picture, or cannot be divided into so many lines and images.
    """
    try:
        canvas = np.asarray(Image.open(path))
    except OSError as error:
        if isinstance(error, FileNotFoundError):
            raise
        raise ValueError(f"{path}: not a picture") from None
    if canvas.dtype != np.uint8 or canvas.ndim not in (2, 3):
        raise ValueError(f"{path}: not an 8-bit gray or color picture")
    canvas = canvas.reshape(*canvas.shape[:2], -1)
    if not captions or count < 1 or canvas.shape[0] % len(captions) or canvas.shape[1] % count:
        raise ValueError(f"{path}: does not divide into {len(captions)} lines of {count} images")
    lines = np.split(canvas, len(captions))
    return {
        caption: np.stack(np.split(line, count, axis=1)).transpose(0, 3, 1, 2)
        for caption, line in zip(captions, lines, strict=True)
    }


def mosaic(images: NDArray[Any], columns: int) -> Pictures:
    """Lay images out side by side and below one another, with transparent gutters of one pixel between them.

    Args:
        images: The images, uint8, n x C x H x W with C 1 or 3.
        columns: The number of images in a line.

    Returns:
        One picture, uint8, height x width x (C + 1); the last channel is opacity.

    Raises:
        ValueError: If the array is something else or empty, or `columns` is below 1.

    >>> mosaic(np.zeros((6, 1, 4, 4), np.uint8), columns=3).shape
    (9, 14, 2)
    """
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[1] not in (1, 3) or not images.size:
        what = f"images are {images.dtype} {images.shape}"
        raise ValueError(f"{what}: expected uint8, N x C x H x W with C 1 or 3")
    if columns < 1:
        raise ValueError(f"image grid: columns {columns} should be 1 or more")
    count, channels, height, width = images.shape
    columns = min(columns, count)
    canvas = np.zeros((-(-count // columns) * (height + 1) - 1, columns * (width + 1) - 1, channels + 1), np.uint8)
    for index, image in enumerate(images):
        top, left = index // columns * (height + 1), index % columns * (width + 1)
        canvas[top : top + height, left : left + width, :-1] = image.transpose(1, 2, 0)
        canvas[top : top + height, left : left + width, -1] = 255
    return canvas
