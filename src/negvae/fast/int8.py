"""The encoder in 8-bit integers on a CPU, for scores that need no decoder; faster than in bfloat16.

Weights are signed integers with a scale for each output channel, and activations are unsigned integers with a scale for
each layer; zero is zero in both, because the inputs are pixels or outputs of a ReLU. A convolution is then one of
integers, and its exact result is rounded to the next layer's integers (Jacob et al., "Quantization and training of
neural networks for efficient integer-arithmetic-only inference", 2018, section 2). Images are integers already: uint8
in units of 1/255. The last, linear layer has two integers for each weight.

`quantize` takes the largest activations and the rounding of weights from training images. Because all sums are of
integers, an image's result is the same to the last bit in any batch.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import NamedTuple, TypeGuard

import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d, unfold
from torch.nn.utils.fusion import fuse_conv_bn_eval
from torch.nn.utils.parametrize import is_parametrized

from negvae.fast.convolution import is_plain, is_torchs
from negvae.spacing import spread_rows

ACTIVATIONS, WEIGHTS = 255, 127
"""The largest integer of an activation, and of a weight."""
IMAGES = 1000
"""The largest number of images by which weights are rounded."""
_PART = 50
_DAMPING = 0.01
_SMALLEST = 1e-8  # no scale is zero, not even a dead layer's


class _Layer(NamedTuple):
    """A convolution of integers whose output is integers after a ReLU, or floats without one."""

    kernel: Tensor  # as the CPU's own wants it
    scales: Tensor  # of the weights, one for each output channel
    bias: Tensor
    stride: list[int]
    padding: list[int]
    unit: float  # what 1 means in its input
    next_unit: float | None  # and in its output; None for floats

    @classmethod
    def of(
        cls, integers: Tensor, scales: Tensor, bias: Tensor, like: nn.Conv2d, unit: float, next_unit: float | None
    ) -> _Layer:
        assert isinstance(like.padding, tuple)
        stride, padding = list(like.stride), list(like.padding)
        kernel = torch.ops.onednn.qconv_prepack(integers, scales, unit, 0, stride, padding, [1, 1], 1, None)
        return cls(kernel, scales, bias, stride, padding, unit, next_unit)

    def __call__(self, x: Tensor) -> Tensor:
        inner = self.next_unit is not None
        y: Tensor = torch.ops.onednn.qconv2d_pointwise(
            x, self.unit, 0, self.kernel, self.scales, torch.zeros_like(self.scales, dtype=torch.int32), self.bias,
            self.stride, self.padding, [1, 1], 1, self.next_unit if inner else 1.0, 0,
            torch.uint8 if inner else torch.float32, "relu" if inner else "none", [], "",
        )  # fmt: skip
        return y


class QuantizedEncoder:
    """A trained encoder that computes in 8-bit integers.

    Args:
        encoder: convolutions, each followed by a ReLU or by batch norm and ReLU, then a flattening and a linear layer
            with 2L outputs; in evaluation mode and on the CPU. Later changes of its weights have no effect.
        rounding: result of `quantize`: "ranges", the largest activation after each convolution, and "kernel.0" and so
            on, the rounded weights (int8).

    Raises:
        ValueError: if `refuse` refuses the encoder, or the rounding belongs to another model.
    """

    @torch.inference_mode()
    def __init__(self, encoder: nn.Sequential, rounding: Mapping[str, Tensor]) -> None:
        refuse(encoder)
        convolutions = _convolutions(encoder)
        kernels = [f"kernel.{index}" for index in range(len(convolutions))]
        fits = rounding.keys() == {"ranges", *kernels} and all(
            rounding[name].shape == layer.weight.shape and rounding[name].dtype == torch.int8
            for name, layer in zip(kernels, convolutions, strict=True)
        )
        if not fits or rounding["ranges"].shape != (len(kernels),) or not (rounding["ranges"] >= 0).all():
            raise ValueError(
                "the int8 weights are not of this model: `negvae calibrate --precision int8` makes them anew"
            )
        self.rounding = dict(rounding)
        units = _units(rounding["ranges"])
        self._layers = [
            _Layer.of(rounding[name], _scales(layer), _bias(layer), layer, unit, next_unit)
            for name, layer, unit, next_unit in zip(kernels, convolutions, units[:-1], units[1:], strict=True)
        ]
        self._head = _head(encoder[-1], convolutions[-1].out_channels, units[-1])

    @torch.inference_mode()
    def __call__(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return means and log-variances of q(z|x), each N x L in float32, for stored images (uint8, N x C x H x W)."""
        x = images.cpu().contiguous(memory_format=torch.channels_last)
        for layer in self._layers:
            x = layer(x)
        coarse, fine = self._head(x.permute(0, 2, 3, 1).reshape(len(x), -1, 1, 1)).flatten(1).chunk(2, dim=1)
        mean, log_var = (coarse + fine).chunk(2, dim=1)
        return mean, log_var


@torch.inference_mode()
def quantize(encoder: nn.Sequential, images: Tensor) -> QuantizedEncoder:
    """Return the encoder in 8-bit integers.

    Args:
        encoder: trained encoder; `QuantizedEncoder` says which layers it may have.
        images: training images, uint8, N x C x H x W with N >= 1, of which up to `IMAGES`, evenly spaced, are used.

    Returns:
        The quantized encoder, with its rounding.

    Raises:
        ValueError: if `refuse` refuses the encoder, or its activations are not finite.

    >>> encoder = nn.Sequential(nn.Conv2d(1, 8, 3, stride=2), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 3 * 3, 4)).eval()
    >>> images = torch.arange(10 * 64).remainder(256).to(torch.uint8).view(10, 1, 8, 8)
    >>> if multiplies_integers():
    ...     mean, log_var = quantize(encoder, images)(images)
    ...     assert mean.shape == log_var.shape == (10, 2)
    """
    refuse(encoder)
    x = spread_rows(images, IMAGES).cpu()
    convolutions = _convolutions(encoder)
    activations, largest = x.float() / 255, []
    for layer in convolutions:
        activations = layer(activations).relu_()
        largest.append(activations.max())
    rounding = {"ranges": torch.stack(largest).double()}
    if not rounding["ranges"].isfinite().all():
        raise ValueError("the model's activations are not finite numbers: there is nothing to round")
    units = _units(rounding["ranges"])
    for index, (layer, unit, next_unit) in enumerate(zip(convolutions, units[:-1], units[1:], strict=True)):
        kernel = _rounded(layer, x)
        rounding[f"kernel.{index}"] = kernel
        x = x.contiguous(memory_format=torch.channels_last)
        x = _Layer.of(kernel, _scales(layer), _bias(layer), layer, unit, next_unit)(x)
    return QuantizedEncoder(encoder, rounding)


def _rounded(layer: nn.Conv2d, x: Tensor) -> Tensor:
    """Return a convolution's weights as int8, rounded so that its outputs for x change least.

    The weights at one position of the kernel are rounded after the other, and the weights that follow compensate for
    the change of the outputs as far as they can (Frantar et al., "GPTQ: accurate post-training quantization for
    generative pre-trained transformers", 2023, section 3, equation 2).
    """
    assert isinstance(layer.padding, tuple)
    taps = layer.weight[0].numel()
    products = torch.zeros(taps, taps, dtype=torch.float64, device="cpu")
    for part in torch.split(x, _PART):
        columns = unfold(part.float(), layer.kernel_size, padding=layer.padding, stride=layer.stride)
        columns = columns.transpose(0, 1).flatten(1)
        products += (columns @ columns.t()).double()
    products.diagonal().add_(_DAMPING * products.diagonal().mean().clamp_min(_SMALLEST))
    inverse = torch.linalg.cholesky(torch.cholesky_inverse(torch.linalg.cholesky(products)), upper=True)
    weight = (layer.weight.double().flatten(1) / _scales(layer).double()[:, None]).clone()
    integers = torch.empty_like(weight)
    for tap in range(taps):
        integers[:, tap] = weight[:, tap].round().clamp_(-WEIGHTS, WEIGHTS)
        error = (weight[:, tap] - integers[:, tap]) / inverse[tap, tap]
        weight[:, tap + 1 :] -= torch.outer(error, inverse[tap, tap + 1 :])
    return integers.to(torch.int8).view_as(layer.weight)


def _head(head: nn.Module, channels: int, unit: float) -> _Layer:
    """Return the head as a convolution of 1x1 pixels with two integers for each weight, w ~ s (128 q_1 + q_2)."""
    assert isinstance(head, nn.Linear)
    # Features in the order in which the convolutions leave them in memory: channels last.
    weight = head.weight.double().view(head.out_features, channels, -1).transpose(1, 2).flatten(1)
    scales = weight.abs().amax(1).clamp_min(_SMALLEST) / (128 * WEIGHTS)
    integers = (weight / scales[:, None]).round()
    coarse = (integers / 128).round()
    both = torch.cat([coarse, integers - 128 * coarse]).to(torch.int8)[:, :, None, None]
    own = _bias(head)
    bias = torch.cat([own, torch.zeros_like(own)])
    like = nn.Conv2d(weight.shape[1], len(both), 1, device="meta")
    return _Layer.of(both.contiguous(), torch.cat([128 * scales, scales]).float(), bias, like, unit, None)


def refuse(encoder: nn.Sequential) -> None:
    """Refuse an encoder, a device or a machine for which there is no int8 arithmetic here.

    Args:
        encoder: trained encoder.

    Raises:
        ValueError: if the encoder's layers, its device or this machine do not allow it; the message says which.
    """
    if not isinstance(encoder[0], nn.Conv2d):
        raise ValueError(
            "int8 takes encoders of images whose first layer is a convolution, and not"
            f" {type(encoder[0]).__name__}: use float32"
        )
    _stages(encoder)
    device = next(encoder.parameters()).device
    if device.type != "cpu":
        raise ValueError(f"int8 runs on a CPU, and the model is on {device}: use device cpu, or another precision")
    if not multiplies_integers():
        raise ValueError(
            f"int8 is not available here: torch {torch.__version__} and this processor have no exact 8-bit convolution;"
            " use bfloat16 or float32"
        )


def merges(norm: nn.Module | None, layer: nn.Module) -> TypeGuard[nn.BatchNorm2d]:
    """Return whether a batch norm with running statistics follows a convolution into whose weight it can be merged."""
    return is_torchs(norm, nn.BatchNorm2d) and norm.running_mean is not None and not is_parametrized(layer)


def _stages(encoder: nn.Sequential) -> list[tuple[nn.Conv2d, nn.BatchNorm2d | None]]:
    """Return the convolutions, each with the batch norm between it and its ReLU if it has one.

    Raises:
        ValueError: if there are other layers, or these in another order.
    """
    if not is_torchs(encoder, nn.Sequential):
        raise ValueError(f"int8 does not know what the encoder's {type(encoder).__name__} computes: use float32")
    layers = list(encoder)
    left = layers[:-1]
    stages: list[tuple[nn.Conv2d, nn.BatchNorm2d | None]] = []
    while left and not (stages and len(left) == 1 and _flattens(left[0])):
        layer = left.pop(0)
        following = left.pop(0) if left else None
        norm = None
        if merges(following, layer):
            norm, following = following, left.pop(0) if left else None
        if not (is_plain(layer) and isinstance(layer, nn.Conv2d) and is_torchs(following, nn.ReLU)):
            raise ValueError(
                f"int8 does not know the encoder's layer {type(layer).__name__} in this place: it takes plain"
                " convolutions, each followed by a ReLU; use float32"
            )
        stages.append((layer, norm))
    if not (left and is_torchs(layers[-1], nn.Linear)):
        raise ValueError(
            "int8 takes a flattening and a linear layer as the encoder's last, not"
            f" {' and '.join(type(each).__name__ for each in layers[-2:])}; use float32"
        )
    return stages


def _flattens(layer: nn.Module) -> bool:
    return is_torchs(layer, nn.Flatten) and (layer.start_dim, layer.end_dim) == (1, -1)


@functools.cache
def multiplies_integers() -> bool:
    """Return whether torch's 8-bit convolution is available and exact: older processors overflow 16-bit sums."""
    randomness = torch.Generator().manual_seed(0)
    x = torch.randint(200, 256, (1, 16, 5, 5), dtype=torch.uint8, generator=randomness, device="cpu")
    weight = torch.randint(100, 128, (8, 16, 3, 3), generator=randomness, device="cpu")
    try:
        with torch.inference_mode():
            like = nn.Conv2d(16, 8, 3, device="meta")
            layer = _Layer.of(
                weight.to(torch.int8),
                torch.ones(8, dtype=torch.float32, device="cpu"),
                torch.zeros(8, dtype=torch.float32, device="cpu"),
                like,
                1.0,
                None,
            )
            y = layer(x.contiguous(memory_format=torch.channels_last))
        return torch.equal(y.double(), conv2d(x.double(), weight.double()))
    except (AttributeError, RuntimeError):
        return False


def _convolutions(encoder: nn.Sequential) -> list[nn.Conv2d]:
    """Return the encoder's convolutions, each followed by a ReLU; batch norms are merged into them."""
    return [layer if norm is None else fuse_conv_bn_eval(layer, norm) for layer, norm in _stages(encoder)]


def _units(ranges: Tensor) -> list[float]:
    """Return the value of the integer 1 in the images and after each convolution."""
    return [1 / 255, *(ranges.double().clamp_min(_SMALLEST) / ACTIVATIONS).tolist()]


def _scales(layer: nn.Conv2d) -> Tensor:
    return layer.weight.float().abs().amax((1, 2, 3)).clamp_min(_SMALLEST) / WEIGHTS


def _bias(layer: nn.Conv2d | nn.Linear) -> Tensor:
    if layer.bias is None:
        return torch.zeros(len(layer.weight), dtype=torch.float32, device="cpu")
    return layer.bias.float()
