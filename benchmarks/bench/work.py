"""The multiply-adds of a model, counted from its layers; `python -m benchmarks.bench.work` prints those of presets."""

from __future__ import annotations

import math

from torch import nn

from negvae.config import preset
from negvae.model import VAE, build_vae
from negvae.model.networks import ResidualBlock, Shape


def multiply_adds(network: nn.Module, size: tuple[int, int] = (1, 1)) -> int:
    """Count the multiply-adds of one forward pass over one image or code.

    A convolution costs output positions x kernel x inputs x outputs, a transposed one input positions x the
    same, a linear layer inputs x outputs. Padding counts as if it were image; biases, norms and activations
    count nothing.

    Args:
        network: layers that follow one another in the order in which the network holds them.
        size: height and width of the input; without meaning if a linear layer comes first.

    Returns:
        The number of multiply-adds.

    Raises:
        ValueError: if a layer with weights is of a type that is not known here.

    >>> multiply_adds(nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.Flatten(), nn.Linear(8 * 4 * 4, 2)), (4, 4))
    1408
    """
    total, inside = 0, ""
    for name, layer in network.named_modules():
        if "parametrizations" in name.split("."):  # what a weight is computed from, once a batch
            continue
        if inside and name.startswith(inside):
            continue
        if isinstance(layer, ResidualBlock):
            inside = f"{name}."
            total += multiply_adds(layer.inner, size) + multiply_adds(layer.skip, size)
            size = _size_after(layer.inner, size)
            continue
        if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d):
            taps = math.prod(layer.kernel_size) * layer.in_channels * layer.out_channels // layer.groups
            before, size = size, _output_size(layer, size)
            total += taps * math.prod(before if isinstance(layer, nn.ConvTranspose2d) else size)
        elif isinstance(layer, nn.Linear):
            total += layer.in_features * layer.out_features
        elif isinstance(layer, nn.Unflatten):
            size = layer.unflattened_size[-2:]  # type: ignore[assignment]
        elif isinstance(layer, nn.ZeroPad2d):
            left, right, top, bottom = layer.padding
            size = (size[0] + top + bottom, size[1] + left + right)
        elif isinstance(layer, nn.Upsample):
            size = (int(size[0] * layer.scale_factor), int(size[1] * layer.scale_factor))  # type: ignore[arg-type,operator]
        elif list(layer.parameters(recurse=False)) and not isinstance(layer, nn.BatchNorm2d):
            raise ValueError(f"the multiply-adds of a {type(layer).__name__} are not known")
    return total


def training_multiply_adds(model: VAE, *, negatives: bool = False) -> int:
    """Count the multiply-adds of a training step for each image: three times the forward pass.

    There is one forward pass and two backward passes (by the inputs and by the weights); that the first layer needs no
    gradient by its inputs is ignored. With negatives, as many of them as images pass through the encoder too.
    """
    encoder, decoder = _parts(model)
    return 3 * (encoder * (2 if negatives else 1) + decoder)


def scoring_multiply_adds(model: VAE, score: str) -> int:
    """Count the multiply-adds of a score ("kl": the encoder; "bpd": both networks) for each image."""
    encoder, decoder = _parts(model)
    return encoder + (decoder if score == "bpd" else 0)


def _parts(model: VAE) -> tuple[int, int]:
    shape: Shape = model.shape
    return multiply_adds(model.encoder, (shape[1], shape[2])), multiply_adds(model.decoder)


def _size_after(network: nn.Module, size: tuple[int, int]) -> tuple[int, int]:
    """Return height and width after the convolutions of a network."""
    for layer in network.modules():
        if isinstance(layer, nn.Conv2d):
            size = _output_size(layer, size)
    return size


def _output_size(layer: nn.Conv2d | nn.ConvTranspose2d, size: tuple[int, int]) -> tuple[int, int]:
    """Return height and width after a layer without dilation."""
    sides = []
    for axis, side in enumerate(size):
        kernel, stride, padding = layer.kernel_size[axis], layer.stride[axis], int(layer.padding[axis])
        if isinstance(layer, nn.ConvTranspose2d):
            sides.append((side - 1) * stride - 2 * padding + kernel + int(layer.output_padding[axis]))
        else:
            sides.append((side + 2 * padding - kernel) // stride + 1)
    return sides[0], sides[1]


def main() -> None:
    """Print the multiply-adds of the encoder and the decoder of presets, for each image."""
    for name, shape in (("gray", (1, 28, 28)), ("unsupervised", (1, 28, 28)), ("unsupervised", (3, 32, 32))):
        encoder, decoder = _parts(build_vae(preset(name, ""), shape))
        print(f"{name}, {'x'.join(map(str, shape))}: encoder {encoder / 1e6:.1f} million, decoder {decoder / 1e6:.1f}")


if __name__ == "__main__":
    main()
