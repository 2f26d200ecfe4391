"""Input complexity: the likelihood of an image, less what any lossless compressor would pay for it."""

from __future__ import annotations

import io

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from negvae.scoring.passes import Pass


def compressed_bits_per_dim(images: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Return the size of each image as a lossless PNG, in bits per dimension (N).

    The file's constant overhead of some 60 bytes is the same for all images of a size. Channels are laid side
    by side if an image file cannot hold that many.

    Args:
        images: uint8 images, N x C x H x W.

    Returns:
        N values.
    """
    sizes: list[float] = []
    for index, image in enumerate(images):
        if index and np.array_equal(image, images[index - 1]):  # as in a block that is filled up with its last image
            sizes.append(sizes[-1])
            continue
        channels = len(image)
        pixels = image[0] if channels == 1 else image.transpose(1, 2, 0) if channels == 3 else np.hstack(list(image))
        buffer = io.BytesIO()
        Image.fromarray(np.ascontiguousarray(pixels)).save(buffer, "PNG", optimize=True)
        sizes.append(8 * buffer.tell() / image.size)
    return np.array(sizes, np.float64)


def input_complexity(x: Pass) -> Tensor:
    """Return the bits per dimension of the model minus those of a lossless PNG (N): Serra et al., equation 2.

    "Input complexity and out-of-distribution detection with likelihood-based generative models", 2020. A simple
    image is likely under any model; what is left is how much better a universal coder does than this one.
    """
    return x.bits_per_dim - torch.from_numpy(compressed_bits_per_dim(x.stored.cpu().numpy())).to(x.model.device)
