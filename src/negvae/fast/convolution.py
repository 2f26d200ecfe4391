"""The networks' layers on a CPU, arranged as its kernels run them best; the same functions as torch's own.

Where a library's general kernels lose time on these small networks, and what is done about it:

- The sum for a bias's gradient, inside the kernel for the weight's gradient, takes as long as the rest of that kernel.
  It is computed outside of it.
- A weight's gradient is itself a convolution, with images and channels exchanged. For many channels and few
  pixels the forward kernel computes it faster than the kernel meant for it.
- A layer with very few output channels leaves most of a vector register empty. In the *phase layout*, where
  the four pixels of each 2x2 block become channels, a transposed convolution of stride 2 is a convolution of
  stride 1 with four times the channels, and a 5x5 convolution becomes a 3x3 one. The same holds for the gradient of a
  convolution of stride 2 with respect to its input.
- Nearest-neighbor upsampling and the 4x4 convolution after it are one 3x3 convolution in the phase layout, of the image
  before it is enlarged: several taps of the kernel meet the same pixel, and are added up.
- A layer from many channels to one is a matrix product followed by a sum over shifted copies.
- The ReLU after a convolution is applied while the convolution's output is still in a register.

Outside of training, matrix products get rows and columns in multiples of 16, filled up with zeros. Kernels for the
remainder of a division round differently from row to row, and an image's output would depend on its place in the batch.

Only layers that compute what torch's own do are arranged so; subclasses that compute otherwise, and layers with hooks,
run as they are. `run` applies a network this way. `tests/fast/test_convolution.py` compares it with the plain layers.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, NamedTuple, TypeGuard, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.functional import fold, linear, pad, pixel_shuffle

from negvae.device import autocast_dtype

FEW_CHANNELS = 16
"""The number of output channels below which rearranging pays: a vector register holds 16 or 32 numbers."""
TILE = 16
"""Matrix products whose sides are multiples of this round every row alike, on all processors that were tried."""
_COMPUTING = ("__call__", "forward", "_conv_forward", "_output_padding")
"""The methods by which torch's layers compute their output."""

Layer = TypeVar("Layer", bound=nn.Module)


def is_torchs(layer: nn.Module | None, kind: type[Layer]) -> TypeGuard[Layer]:
    """Return whether a layer computes what torch's own layer of this kind does with its weight and bias.

    Args:
        layer: layer, also one of a subclass; None gives False.
        kind: class of torch's.

    Returns:
        Whether neither its class nor the layer itself computes in another way, and no hook is called beside.

    >>> layer = nn.Linear(2, 2)
    >>> handle = layer.register_forward_hook(lambda layer, inputs, output: 2 * output)
    >>> is_torchs(nn.Linear(2, 2), nn.Linear), is_torchs(layer, nn.Linear), is_torchs(nn.ReLU(), nn.Linear)
    (True, False, False)
    """
    if not isinstance(layer, kind):
        return False
    hooked = layer._forward_hooks or layer._forward_pre_hooks or layer._backward_hooks or layer._backward_pre_hooks
    own = _computes_as(type(layer), kind)  # type: ignore[arg-type]
    return own and not hooked and vars(layer).keys().isdisjoint(_COMPUTING)


@functools.lru_cache(256)  # every layer of every pass is asked
def _computes_as(made: type[nn.Module], kind: type[nn.Module]) -> bool:
    """Return whether a class computes by the methods of another."""
    return all(getattr(made, name, None) is getattr(kind, name, None) for name in _COMPUTING)


def run(network: nn.Sequential, inputs: Tensor) -> Tensor:
    """Apply a network on the CPU, in the precision of the surrounding autocast.

    Args:
        network: layers in order; types of layers that are not known here run as they are, and so does a network that is
            more than its layers one after the other.
        inputs: input of the first layer.

    Returns:
        What `network(inputs)` returns, up to rounding.

    >>> network = nn.Sequential(nn.Conv2d(1, 4, 5, stride=2, padding=2), nn.ReLU()).eval()
    >>> images = torch.rand(2, 1, 28, 28)
    >>> torch.allclose(run(network, images), network(images), atol=1e-5)
    True
    """
    if not is_torchs(network, nn.Sequential):
        output: Tensor = network(inputs)
        return output
    dtype = autocast_dtype(inputs)
    layers = list(network)
    x, index = inputs, 0
    while index < len(layers):
        layer = layers[index]
        if dtype != torch.float64 and (enlarged := _enlarged_first(layers[index : index + 3])) is not None:
            relu = is_torchs(_at(layers, index + 3), nn.ReLU)
            kernel = _enlarging_in_phases(enlarged.weight)
            x = pixel_shuffle(_phased(_in_layout(x, dtype), kernel, enlarged.bias, relu), 2)
            index += 4 if relu else 3
            continue
        if not is_plain(layer) or dtype == torch.float64:  # for which there are no such kernels
            x = _linear(x, layer) if is_torchs(layer, nn.Linear) and not _trains(layer) else layer(x)
            if isinstance(layer, nn.Unflatten):  # before a ReLU or batch norm, which otherwise meet mixed layouts
                x = _in_layout(x, dtype)
            index += 1
            continue
        x = _in_layout(x, dtype)
        relu = is_torchs(_at(layers, index + 1), nn.ReLU)
        index += 2 if relu else 1
        following = _at(layers, index)
        if _ends_in_phases(following, layer):
            x = _phased(x, transposed_in_phases(layer.weight), layer.bias, relu)
            x = _phased(x, _convolution_in_phases(following.weight), following.bias, False)
            x = pixel_shuffle(x, 2)
            index += 1
        elif _keeps_size(layer) and layer.out_channels == 1 and not relu:
            x = _to_one_channel(x, layer)
        else:
            x = _convolution(x, layer.weight, layer.bias, _Geometry.of(layer), relu)
    return x


def _trains(layer: nn.Module) -> bool:
    return torch.is_grad_enabled() and any(p.requires_grad for p in layer.parameters())


def _linear(x: Tensor, layer: nn.Linear) -> Tensor:
    """Apply a linear layer to x (N x inputs) as a product of matrices whose sides are multiples of `TILE`."""
    weight = layer.weight  # once: it may be computed from others
    outputs, inputs = weight.shape
    more_outputs, more_inputs = -outputs % TILE, -inputs % TILE
    weight = pad(weight, (0, more_inputs, 0, more_outputs))
    bias = None if layer.bias is None else pad(layer.bias, (0, more_outputs))
    return linear(pad(x, (0, more_inputs)), weight, bias)[:, :outputs]


def _at(layers: list[nn.Module], index: int) -> nn.Module | None:
    return layers[index] if index < len(layers) else None


def is_plain(layer: nn.Module | None) -> TypeGuard[nn.Conv2d | nn.ConvTranspose2d]:
    """Return whether this is a convolution of torch's without groups, dilation or a special kind of padding."""
    if not (is_torchs(layer, nn.Conv2d) or is_torchs(layer, nn.ConvTranspose2d)):
        return False
    kinds = (layer.groups, layer.dilation, layer.padding_mode)
    return kinds == (1, (1, 1), "zeros") and isinstance(layer.padding, tuple)


def _keeps_size(layer: nn.Module | None) -> TypeGuard[nn.Conv2d]:
    """Return whether this is a 5x5 convolution of stride 1 whose output has the size of its input."""
    shapes = ((5, 5), (1, 1), (2, 2))
    return (
        isinstance(layer, nn.Conv2d) and is_plain(layer) and (layer.kernel_size, layer.stride, layer.padding) == shapes
    )


def _enlarged_first(layers: Sequence[nn.Module]) -> nn.Conv2d | None:
    """The 4x4 convolution that keeps the size, where upsampling to twice the height and width comes before it."""
    if len(layers) < 3:
        return None
    upsampling, padding, layer = layers
    if not is_torchs(upsampling, nn.Upsample) or not is_torchs(padding, nn.ZeroPad2d):
        return None
    doubles = upsampling.mode == "nearest" and upsampling.size is None and upsampling.scale_factor == 2
    if not (doubles and padding.padding == (1, 2, 1, 2) and is_plain(layer) and isinstance(layer, nn.Conv2d)):
        return None
    return layer if (layer.kernel_size, layer.stride, layer.padding) == ((4, 4), (1, 1), (0, 0)) else None


def _ends_in_phases(last: nn.Module | None, before: nn.Module) -> TypeGuard[nn.Conv2d]:
    """Return whether an upsampling layer and the next convolution are both too narrow for all but the phase layout."""
    return (
        isinstance(before, nn.ConvTranspose2d)
        and _Geometry.of(before).doubles(before.kernel_size)
        and _keeps_size(last)
        and max(before.out_channels, 4 * last.out_channels) < FEW_CHANNELS
    )


def _in_layout(x: Tensor, dtype: torch.dtype) -> Tensor:
    return x.to(dtype).contiguous(memory_format=torch.channels_last)


def _convolution(x: Tensor, weight: Tensor, bias: Tensor | None, geometry: _Geometry, relu: bool) -> Tensor:
    if torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad):
        y: Tensor = _Convolution.apply(x, weight, bias, geometry, relu)  # type: ignore[no-untyped-call]
        return y
    return geometry.forward(x, weight.to(x.dtype), None if bias is None else bias.to(x.dtype), relu)


class _Geometry(NamedTuple):
    """The movement of a convolution's kernel; pairs are (vertical, horizontal)."""

    stride: tuple[int, ...]
    padding: tuple[int, ...]
    transposed: bool = False
    output_padding: tuple[int, ...] = (0, 0)

    @classmethod
    def of(cls, layer: nn.Conv2d | nn.ConvTranspose2d) -> _Geometry:
        padding = layer.padding if isinstance(layer.padding, tuple) else (int(layer.padding),) * 2
        return cls(layer.stride, padding, isinstance(layer, nn.ConvTranspose2d), layer.output_padding)

    def doubles(self, kernel: Sequence[int]) -> bool:
        """Return whether this is a transposed convolution to twice the height and width with a kernel 4 or 5 wide."""
        shapes = {(5, 5): ((2, 2), (2, 2), True, (1, 1)), (4, 4): ((2, 2), (1, 1), True, (0, 0))}
        return tuple(self) == shapes.get((kernel[0], kernel[1]))

    def gradient_doubles(self, kernel: Sequence[int], x: Tensor, gradient: Tensor) -> bool:
        """Return whether the gradient of x is such a transposed convolution of the output's gradient."""
        padded = (1, 1) if kernel[0] == 5 else (0, 0)
        even = all(2 * small == large for small, large in zip(gradient.shape[2:], x.shape[2:], strict=True))
        return even and not self.transposed and self._replace(transposed=True, output_padding=padded).doubles(kernel)

    def forward(self, x: Tensor, weight: Tensor, bias: Tensor | None, relu: bool) -> Tensor:
        """Apply the convolution; with few output channels, in the phase layout (the gradient is faster without it)."""
        if weight.shape[1] < FEW_CHANNELS and self.doubles(weight.shape[2:]):
            return pixel_shuffle(_phased(x, transposed_in_phases(weight), bias, relu), 2)
        if relu and not self.transposed and _fuses_relu():
            y: Tensor = torch.ops.mkldnn._convolution_pointwise(
                x, weight, bias, self.padding, self.stride, [1, 1], 1, "relu", [], ""
            )
            return y
        y = torch.convolution(
            x, weight, bias, self.stride, self.padding, [1, 1], self.transposed, self.output_padding, 1
        )
        return y.relu_() if relu else y

    def backward(self, gradient: Tensor, x: Tensor, weight: Tensor, wanted: list[bool]) -> tuple[Tensor, Tensor | None]:
        """Return the gradients of x and of the weight, each if `wanted` asks for it."""
        if wanted[0] and weight.shape[1] <= FEW_CHANNELS and self.gradient_doubles(weight.shape[2:], x, gradient):
            by_x = pixel_shuffle(_phased(gradient, transposed_in_phases(weight), None, False), 2)
            by_weight = self.backward(gradient, x, weight, [False, True])[1] if wanted[1] else None
            return by_x, by_weight
        by_x, by_weight, _ = torch.ops.aten.convolution_backward(
            gradient, x, weight, None, self.stride, self.padding, [1, 1], self.transposed, self.output_padding, 1,
            [*wanted, False],
        )  # fmt: skip
        return by_x, by_weight


_only_by_input: ContextVar[bool] = ContextVar("only_by_input", default=False)


@contextmanager
def gradients_by_input_only() -> Iterator[None]:
    """Let this thread's backward passes in this block skip the gradients of convolutions' weights and biases.

    Autograd tells a Python function which gradients it may ever be asked for, not which ones a pass asks for. On the
    CPU a backward pass runs in the thread that asks for it, so that passes of other threads are not affected.
    """
    token = _only_by_input.set(True)
    try:
        yield
    finally:
        _only_by_input.reset(token)


class _Convolution(torch.autograd.Function):
    """Convolution, bias and ReLU as one function, with the backward pass described at the top of this module."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, geometry: _Geometry, relu: bool) -> Tensor:
        kernel = weight.to(x.dtype)
        y = geometry.forward(x, kernel, None if bias is None else bias.to(x.dtype), relu)
        ctx.save_for_backward(x, kernel, y if relu else None)
        ctx.geometry, ctx.has_bias = geometry, bias is not None
        return y

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, kernel, y = ctx.saved_tensors
        gradient = gradient.contiguous(memory_format=torch.channels_last)
        if y is not None:
            gradient = torch.ops.aten.threshold_backward(gradient, y, 0)
        by_x_wanted, by_weight_wanted, by_bias_wanted = ctx.needs_input_grad[:3]
        if _only_by_input.get():
            by_weight_wanted = by_bias_wanted = False
        by_bias = gradient.sum((0, 2, 3)) if ctx.has_bias and by_bias_wanted else None
        by_x = by_weight = None
        exchanged = by_weight_wanted and _exchange_pays(ctx.geometry, kernel, gradient)
        if exchanged:
            by_weight = _weight_gradient_by_exchange(ctx.geometry, gradient, x, kernel)
        if by_x_wanted or (by_weight_wanted and not exchanged):
            wanted = [by_x_wanted, by_weight_wanted and not exchanged]
            by_x, plain = ctx.geometry.backward(gradient, x, kernel, wanted)
            by_weight = by_weight if exchanged else plain
        return by_x, by_weight, by_bias, None, None


def _exchange_pays(geometry: _Geometry, kernel: Tensor, gradient: Tensor) -> bool:
    """Return whether a weight's gradient is faster with images and channels exchanged, as measured on AVX-512 machines.

    The choice depends on the layer alone, so that results can be reproduced.
    """
    outputs, inputs = kernel.shape[:2]
    few_pixels = max(gradient.shape[2:]) <= 7 and min(outputs, inputs) >= 32
    return not geometry.transposed and (few_pixels or (inputs == 1 and geometry.stride == (2, 2)))


def _weight_gradient_by_exchange(geometry: _Geometry, gradient: Tensor, x: Tensor, kernel: Tensor) -> Tensor:
    """Return a weight's gradient as a convolution of x with the output's gradient, images in the place of channels."""
    n, channels, height, width = x.shape
    # As a matrix first: transposing one is quicker than walking over four axes.
    matrix = x.permute(0, 2, 3, 1).reshape(n, -1).t().contiguous()
    images = matrix.view(height, width, channels, n).permute(2, 3, 0, 1).contiguous(memory_format=torch.channels_last)
    # Steps of the kernel over the output become steps between the taps of the gradient, which is the kernel now.
    result = torch.convolution(
        images, gradient.transpose(0, 1), None, [1, 1], geometry.padding, geometry.stride, False, [0, 0], 1
    )
    return result[:, :, : kernel.shape[2], : kernel.shape[3]].transpose(0, 1)


def _phased(x: Tensor, kernel: Tensor, bias: Tensor | None, relu: bool) -> Tensor:
    """Apply a 3x3 convolution whose output is in the phase layout."""
    kernel = kernel.to(x.dtype).contiguous(memory_format=torch.channels_last)
    return _convolution(x, kernel, None if bias is None else bias.repeat_interleave(4), _Geometry((1, 1), (1, 1)), relu)


def transposed_in_phases(weight: Tensor) -> Tensor:
    """Return the 3x3 kernel (4 outputs x inputs) of a transposed convolution of stride 2 (inputs x outputs x k x k)."""
    return _gathered(weight, *_transposed_index(*weight.shape[:3]))


def _convolution_in_phases(weight: Tensor) -> Tensor:
    """Return the 3x3 kernel (4 outputs x 4 inputs) of a 5x5 convolution, both sides in the phase layout."""
    return _gathered(weight, *_convolution_index(*weight.shape[:2]))


def _enlarging_in_phases(weight: Tensor) -> Tensor:
    """The 3x3 kernel (4 outputs x inputs) of upsampling and a 4x4 convolution with one pixel of padding before.

    The convolution's tap k at pixel 2Y + r of the enlarged image meets its pixel 2Y + r - 1 + k, which is the copy of
    pixel Y + floor((r - 1 + k) / 2): taps 0, 1 and 2, and 3 fall together for r = 0, 0 and 1, and 2 and 3 for r = 1.
    """
    by_row = _phase_sums(weight.float(), 2)  # outputs x r x inputs x a x columns
    kernel = _phase_sums(by_row, 4)  # outputs x s x r x inputs x a x b
    return kernel.transpose(1, 2).flatten(0, 2)


def _phase_sums(weight: Tensor, dim: int) -> Tensor:
    """The sums of four taps along a dimension that meet pixels Y - 1, Y and Y + 1, for r = 0 and 1 in a new dim 1."""
    a, b, c, d = weight.unbind(dim)
    return torch.stack([torch.stack([a, b + c, d], dim), torch.stack([torch.zeros_like(a), a + b, c + d], dim)], 1)


def _gathered(weight: Tensor, index: Tensor, shape: torch.Size) -> Tensor:
    """Return entries of a weight by position (zero past the last), in float32 so that gradients add up well."""
    return pad(weight.float().flatten(), (0, 1)).index_select(0, index).view(shape)


@functools.cache
@torch.inference_mode(False)  # kept for training, even where scoring asks first
def _transposed_index(inputs: int, outputs: int, size: int) -> tuple[Tensor, torch.Size]:
    """Return the position in the weight of each entry of a transposed convolution's 3x3 kernel, and its shape.

    Output pixel 2Y + r takes input pixel Y + a, a in -1..1, with row 3 - r - 2a of the kernel's six.
    """
    before = 5 - size
    rows = _positions(inputs, outputs, size, before, 6 - size - before).flip(2, 3)
    blocks = rows.view(inputs, outputs, 3, 2, 3, 2).flip(3, 5)  # ..., a + 1, r, b + 1, s
    kernel = blocks.permute(1, 3, 5, 0, 2, 4).reshape(4 * outputs, inputs, 3, 3)
    return kernel.flatten(), kernel.shape


@functools.cache
@torch.inference_mode(False)  # kept for training, even where scoring asks first
def _convolution_index(outputs: int, inputs: int) -> tuple[Tensor, torch.Size]:
    """Return the position in the weight of each entry of a 5x5 convolution's 3x3 kernel, and its shape.

    Output pixel 2Y + r takes input pixel 2(Y + a) + u with row 2a + u - r + 2 of the kernel.
    """
    rows = _positions(outputs, inputs, 5, 1, 1)
    phases = []
    for r in (0, 1):
        for s in (0, 1):
            window = rows[:, :, 1 - r : 7 - r, 1 - s : 7 - s].reshape(outputs, inputs, 3, 2, 3, 2)
            phases.append(window.permute(0, 1, 3, 5, 2, 4).reshape(outputs, 4 * inputs, 3, 3))
    kernel = torch.stack(phases, 1).reshape(4 * outputs, 4 * inputs, 3, 3)
    return kernel.flatten(), kernel.shape


def _positions(outer: int, inner: int, size: int, before: int, after: int) -> Tensor:
    """Return the flat position of each entry of a square kernel; the rows and columns around it point past the last."""
    count = outer * inner * size * size
    return pad(
        torch.arange(count, device="cpu").view(outer, inner, size, size), (before, after, before, after), value=count
    )


def _to_one_channel(x: Tensor, layer: nn.Conv2d) -> Tensor:
    """Apply a 5x5 convolution to one channel: 25 products at each pixel, then their sum over shifted copies."""
    n, channels, height, width = x.shape
    # Output pixel y sums tap k over input y + k - 2: what input i gives to y is tap i - y + 2, as in `fold`.
    taps = layer.weight.to(x.dtype).view(channels, 25).flip(1)
    pixels = x.permute(0, 2, 3, 1).reshape(-1, channels)
    products = pixels @ taps if _trains(layer) else (pixels @ pad(taps, (0, -25 % TILE)))[:, :25]
    columns = products.view(n, height * width, 25).transpose(1, 2)
    y = fold(columns.float(), (height, width), 5, padding=2)
    return y if layer.bias is None else y + layer.bias.view(1, 1, 1, 1)


@functools.cache
def _fuses_relu() -> bool:
    """Return whether this build of torch has the CPU kernel that computes a ReLU together with the convolution."""
    return torch.backends.mkldnn.is_available() and hasattr(  # type: ignore[no-untyped-call]
        torch.ops.mkldnn, "_convolution_pointwise"
    )
