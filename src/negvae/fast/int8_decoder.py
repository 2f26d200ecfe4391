"""The decoder in 8-bit integers on a CPU, beside the encoder of `negvae.fast.int8`.

Up to its first ReLU, a decoder computes in float32, because codes have both signs; that is its linear layer, with few
multiply-adds. What follows are convolutions of integers. A transposed convolution of stride 2 is a plain one that gives
the four pixels of each 2x2 block as channels, for which torch has a kernel of integers and for the transposed one not:
a kernel 4 wide becomes one 2 wide, and its blocks begin one pixel before the image, which is cut off; a kernel 5 wide
becomes one 3 wide (`negvae.fast.convolution`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import pixel_shuffle
from torch.nn.utils.fusion import fuse_conv_bn_eval

from negvae.fast import convolution
from negvae.fast.int8 import (
    ACTIVATIONS,
    QuantizedEncoder,
    _bias,
    _Layer,
    _rounded,
    _scales,
    _units,
    merges,
    multiplies_integers,
)

MOST_TAPS = 2500
"""The inputs of an output pixel up to which weights are rounded one after the other, which takes their third power."""


class _Stage(NamedTuple):
    """A plain convolution, and how its output becomes that of the decoder's layer.

    Attributes:
        layer: convolution, in float32.
        blocks: whether its channels are the pixels of 2x2 blocks.
        cut: pixels to cut off at the top and left, and whether one row and column more are kept at the other ends.
    """

    layer: nn.Conv2d
    blocks: bool = False
    cut: tuple[int, tuple[int, ...]] = (0, (0, 0))

    def arranged(self, y: Tensor) -> Tensor:
        """Put the pixels of blocks in their places."""
        if not self.blocks:
            return y
        y, (before, more) = pixel_shuffle(y, 2), self.cut
        if before:
            height, width = y.shape[2:]
            y = y[:, :, 1 : height - 1 + more[0], 1 : width - 1 + more[1]]
        return y.contiguous(memory_format=torch.channels_last)


class QuantizedDecoder:
    """A trained decoder that computes in 8-bit integers after its first ReLU.

    Args:
        decoder: layers up to a ReLU, then convolutions, transposed or not, each followed by a ReLU or by batch norm and
            ReLU, the last by nothing; in evaluation mode and on the CPU. Later changes of its weights have no effect.
        rounding: result of `quantize_decoder`: "ranges", the largest activation before each convolution, and
            "kernel.0" and so on, the rounded weights (int8).

    Raises:
        ValueError: if the decoder has other layers, or the rounding belongs to another model.
    """

    @torch.inference_mode()
    def __init__(self, decoder: nn.Sequential, rounding: Mapping[str, Tensor]) -> None:
        self._head, stages = _parts(decoder)
        kernels = [f"kernel.{index}" for index in range(len(stages))]
        fits = rounding.keys() == {"ranges", *kernels} and all(
            rounding[name].shape == stage.layer.weight.shape and rounding[name].dtype == torch.int8
            for name, stage in zip(kernels, stages, strict=True)
        )
        if not fits or rounding["ranges"].shape != (len(kernels),) or not (rounding["ranges"] >= 0).all():
            raise ValueError(
                "the int8 weights are not of this model: `negvae calibrate --precision int8` makes them anew"
            )
        self.rounding = dict(rounding)
        units: list[float | None] = [*_units(rounding["ranges"])[1:], None]
        self._unit = _units(rounding["ranges"])[1]
        self._stages = [
            (stage, _layer(stage, rounding[name], unit, next_unit))
            for name, stage, unit, next_unit in zip(kernels, stages, units[:-1], units[1:], strict=True)
        ]

    @torch.inference_mode()
    def __call__(self, codes: Tensor) -> Tensor:
        """Return the likelihood's parameters (N x C x H x W, float32) for codes (N x L)."""
        y = _integers(convolution.run(self._head, codes.float()), self._unit)
        for stage, layer in self._stages:
            y = stage.arranged(layer(y))
        return y


@torch.inference_mode()
def quantize_decoder(decoder: nn.Sequential, codes: Tensor) -> QuantizedDecoder:
    """Return the decoder in 8-bit integers.

    Args:
        decoder: trained decoder; `QuantizedDecoder` says which layers it may have.
        codes: codes of training images, N x L with N >= 1.

    Returns:
        The quantized decoder, with its rounding.

    Raises:
        ValueError: if the decoder has other layers, or its activations are not finite.
    """
    head, stages = _parts(decoder)
    start = convolution.run(head, codes.float())
    y, largest = start, [start.max()]
    for stage in stages[:-1]:
        y = stage.arranged(stage.layer(y)).relu_()
        largest.append(y.max())
    rounding = {"ranges": torch.stack(largest).double()}
    if not rounding["ranges"].isfinite().all():
        raise ValueError("the model's activations are not finite numbers: there is nothing to round")
    units: list[float | None] = [*_units(rounding["ranges"])[1:], None]
    x = _integers(start, _units(rounding["ranges"])[1])
    for index, (stage, unit, next_unit) in enumerate(zip(stages, units[:-1], units[1:], strict=True)):
        few = stage.layer.weight[0].numel() <= MOST_TAPS
        kernel = _rounded(stage.layer, x) if few else _nearest(stage.layer)
        rounding[f"kernel.{index}"] = kernel
        x = stage.arranged(_layer(stage, kernel, unit, next_unit)(x))
    return QuantizedDecoder(decoder, rounding)


@dataclass(frozen=True)
class QuantizedNetworks:
    """A model's networks in 8-bit integers.

    Attributes:
        encode: the encoder.
        decode: the decoder; None if its layers are not known here, and only scores of the encoder are available.
    """

    encode: QuantizedEncoder
    decode: QuantizedDecoder | None = None

    @property
    def rounding(self) -> dict[str, Tensor]:
        """Return the arrays that define both networks, those of the decoder with "decoder." before their names."""
        decoder = {} if self.decode is None else self.decode.rounding
        return {**self.encode.rounding, **{f"decoder.{name}": values for name, values in decoder.items()}}

    @classmethod
    def of(cls, encoder: nn.Sequential, decoder: nn.Sequential, rounding: Mapping[str, Tensor]) -> QuantizedNetworks:
        """Make the networks again from the arrays of `rounding`.

        Args:
            encoder: trained encoder.
            decoder: trained decoder.
            rounding: arrays as `rounding` returns them.

        Returns:
            The networks; without a decoder if there are no arrays of one.

        Raises:
            ValueError: if the arrays belong to another model.
        """
        mark = "decoder."
        own = {name: values for name, values in rounding.items() if not name.startswith(mark)}
        rest = {name.removeprefix(mark): values for name, values in rounding.items() if name.startswith(mark)}
        return cls(QuantizedEncoder(encoder, own), QuantizedDecoder(decoder, rest) if rest else None)


def decoder_is_known(decoder: nn.Sequential) -> bool:
    """Return whether the decoder's layers are of the kinds that `QuantizedDecoder` takes, and integers exact here."""
    try:
        _parts(decoder)
    except ValueError:
        return False
    return multiplies_integers()


def _layer(stage: _Stage, kernel: Tensor, unit: float | None, next_unit: float | None) -> _Layer:
    assert unit is not None
    return _Layer.of(kernel, _scales(stage.layer), _bias(stage.layer), stage.layer, unit, next_unit)


def _nearest(layer: nn.Conv2d) -> Tensor:
    return (layer.weight / _scales(layer)[:, None, None, None]).round().to(torch.int8)


def _integers(values: Tensor, unit: float) -> Tensor:
    """Return activations that are not negative as multiples of `unit`, in uint8."""
    scaled = (values.float() / unit).round_().clamp_(0, ACTIVATIONS)
    return scaled.to(torch.uint8).contiguous(memory_format=torch.channels_last)


@torch.inference_mode()
def _parts(decoder: nn.Sequential) -> tuple[nn.Sequential, list[_Stage]]:
    """Return the layers up to the first ReLU, and the convolutions after it.

    Raises:
        ValueError: if a layer is not known here.
    """
    if not convolution.is_torchs(decoder, nn.Sequential):
        raise ValueError(f"int8 does not know what the decoder's {type(decoder).__name__} computes: use float32")
    layers = list(decoder)
    first = next((index for index, layer in enumerate(layers) if convolution.is_torchs(layer, nn.ReLU)), len(layers))
    stages, index = [], first + 1
    while index < len(layers):
        layer, index = layers[index], index + 1
        if convolution.is_plain(layer):
            norm = layers[index] if index < len(layers) else None
            if merges(norm, layer):
                layer, index = fuse_conv_bn_eval(layer, norm, isinstance(layer, nn.ConvTranspose2d)), index + 1
            relu = index < len(layers) - 1 and convolution.is_torchs(layers[index], nn.ReLU)
            if relu or index == len(layers):
                stages.append(_stage(layer))
                index += 1
                continue
        raise ValueError(f"int8 does not know the decoder's layer {type(layer).__name__} in this place: use float32")
    if not stages:
        raise ValueError("int8 takes decoders with convolutions after a ReLU: use float32")
    return nn.Sequential(*layers[: first + 1]), stages


def _stage(layer: nn.Conv2d | nn.ConvTranspose2d) -> _Stage:
    if isinstance(layer, nn.Conv2d):
        return _Stage(layer)
    if layer.stride == (2, 2):
        more = layer.output_padding
        if (layer.kernel_size, layer.padding) == ((4, 4), (1, 1)) and max(more) <= 1:
            return _Stage(_like(layer, _halves(layer.weight), 1), True, (1, more))
        if (layer.kernel_size, layer.padding, more) == ((5, 5), (2, 2), (1, 1)):
            return _Stage(_like(layer, convolution.transposed_in_phases(layer.weight), 1), True)
    raise ValueError(f"int8 does not know this kind of {type(layer).__name__}: use float32")


def _halves(weight: Tensor) -> Tensor:
    """Return the 2x2 kernel (4 outputs x inputs) of a transposed 4x4 convolution (inputs x outputs x 4 x 4).

    Output pixel 2Y + r takes input pixel i with row 2Y + r + 1 - 2i of the kernel. Block Y has the pixels 2Y - 1 and
    2Y, whose inputs are Y - 1 and Y: rows 2 and 0 for the first, 3 and 1 for the second.
    """
    inputs, outputs = weight.shape[:2]
    blocks = weight.flip(2, 3).view(inputs, outputs, 2, 2, 2, 2)  # rows by input and pixel, the second first
    blocks = blocks.flip(3, 5)
    return blocks.permute(1, 3, 5, 0, 2, 4).reshape(4 * outputs, inputs, 2, 2)


def _like(layer: nn.ConvTranspose2d, kernel: Tensor, padding: int) -> nn.Conv2d:
    outputs, inputs, size, _ = kernel.shape
    made = nn.Conv2d(inputs, outputs, size, padding=padding, bias=layer.bias is not None, device="meta")
    made.weight = nn.Parameter(kernel.contiguous(), requires_grad=False)
    if layer.bias is not None:
        made.bias = nn.Parameter(layer.bias.repeat_interleave(4), requires_grad=False)
    return made.eval()
