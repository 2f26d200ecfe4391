"""Input complexity: the likelihood of an image, less what any lossless compressor would pay for it."""

from __future__ import annotations

import io

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from negvae.model import VAE
from negvae.scoring.scores import bits_per_dim


def compressed_bits_per_dim(images: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Size of each image as a lossless PNG, in bits per dimension (N).

    The file's constant overhead of some 60 bytes is the same for all images of a size. Channels are laid side
    by side where an image file has no place for as many.

    Args:
        images: uint8, N x C x H x W.
    """
    sizes = []
    for image in images:
        channels = len(image)
        pixels = image[0] if channels == 1 else image.transpose(1, 2, 0) if channels == 3 else np.hstack(list(image))
        buffer = io.BytesIO()
        Image.fromarray(np.ascontiguousarray(pixels)).save(buffer, "PNG", optimize=True)
        sizes.append(8 * buffer.tell() / image.size)
    return np.array(sizes, np.float64)


def input_complexity(model: VAE, images: Tensor, *, samples: int = 1, precision: str = "float32") -> Tensor:
    """bits_per_dim - compressed_bits_per_dim (N): Serra et al., equation 2.

    "Input complexity and out-of-distribution detection with likelihood-based generative models", 2020. A simple
    image is likely under any model; what is left is how much better a universal coder does than this one.

    Args:
        model: trained VAE.
        images: uint8, N x C x H x W.
        samples: posterior samples.
        precision: see `negvae.scoring.bits_per_dim`.

    Raises:
        ValueError: the model takes rows of features, which no image coder compresses.
    """
    refuse_features(model)
    complexity = torch.from_numpy(compressed_bits_per_dim(images.cpu().numpy()))
    return bits_per_dim(model, images, samples=samples, precision=precision) - complexity


def refuse_features(model: VAE) -> None:
    """Raise a ValueError for a model that takes rows of features."""
    if model.takes_features:
        raise ValueError("score input_complexity is for images: rows of features have no PNG")
