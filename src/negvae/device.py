"""Devices and the precision of the arithmetic on them."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager

import torch

from negvae.parts import check_device


def resolve_device(name: str) -> torch.device:
    """Return the device with this name.

    Args:
        name: "cpu", "cuda", "cuda:N", or "auto" for the first GPU if there is one, and the CPU otherwise.

    Returns:
        The device.

    Raises:
        ValueError: if this is no name of a device, or this machine has no such device.

    >>> resolve_device("cpu")
    device(type='cpu')
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    check_device(text := str(name))  # torch's own devices are taken too
    kind, _, index = text.partition(":")
    if kind == "cuda" and int(index or 0) >= torch.cuda.device_count():
        raise ValueError(f"device {name} is not here: {torch.cuda.device_count()} CUDA devices found; use cpu or auto")
    return torch.device(name)


@contextmanager
def own_state() -> Iterator[None]:
    """The library's own gradient mode and default device, for one thread, whatever the host's program has set.

    The default type belongs to all threads of a program and is not touched: the library names the type of everything
    that it makes.
    """
    with ExitStack() as stack:
        stack.enter_context(torch.inference_mode(False))  # which also lets gradients be taken
        if torch.get_default_device().type != "cpu":  # else nothing is to be done, and every call is spared a detour
            stack.enter_context(torch.device("cpu"))
        yield


def compute_alone() -> None:
    """Let the operators that the calling thread calls use no other threads, whatever number others set later."""
    torch.get_num_threads()  # a thread's first look takes the program's number, even after it has set its own
    torch.set_num_threads(1)


@functools.cache
def runs_bfloat16(device: torch.device) -> bool:
    """Return whether the device has kernels for networks in bfloat16, native or emulated.

    A small convolution is tried, because the instructions that a processor reports and those that torch's kernels may
    use can differ.
    """
    x = torch.ones(1, 16, 8, 8, dtype=torch.bfloat16, device=device)
    try:
        if device.type == "cpu":  # elsewhere torch falls back to loops that take a hundred times as long
            torch.ops.mkldnn._convolution_pointwise(x, x[:, :, :3, :3], None, [0, 0], [1, 1], [1, 1], 1, "relu", [], "")
        else:
            torch.conv2d(x, x[:, :, :3, :3])
        return True
    except (AttributeError, RuntimeError):
        return False


@functools.cache
def computes_in_bfloat16(device: torch.device) -> bool:
    """Return whether the device has matrix arithmetic in bfloat16, and not only an emulation of it."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device)[0] >= 8
    # Before torch 2.8 the second name is missing; AMX implies the first.
    probes: list[Callable[[], bool]] = [
        getattr(torch.cpu, name)
        for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
        if hasattr(torch.cpu, name)
    ]
    return any(probe() for probe in probes) and runs_bfloat16(device)


def resolve_precision(name: str, device: torch.device) -> str:
    """Return the precision to use on a device.

    Args:
        name: "bfloat16", "float32", or "auto", which is bfloat16 if the device computes in it.
        device: device that the networks run on.

    Returns:
        "bfloat16" or "float32".

    Raises:
        ValueError: if bfloat16 is asked for and networks cannot run in it on this device.

    >>> resolve_precision("float32", torch.device("cpu"))
    'float32'
    """
    if name == "auto":
        return "bfloat16" if computes_in_bfloat16(device) else "float32"
    if name == "bfloat16" and not runs_bfloat16(device):
        raise ValueError(
            f"precision bfloat16 is not available here: torch {torch.__version__} runs no convolution in it on this"
            f" {device.type}; use float32, or auto, which takes bfloat16 where the device computes in it"
        )
    return name


def autocast(precision: str, device: torch.device) -> AbstractContextManager[None]:
    """Return the context in which networks run: bfloat16 autocast, or an empty context for float32.

    Args:
        precision: "bfloat16", "float32" or "auto"; see `resolve_precision`.
        device: device that the networks run on.

    Returns:
        The context manager.

    Raises:
        ValueError: if bfloat16 is asked for and networks cannot run in it on this device.

    >>> with autocast("float32", torch.device("cpu")):
    ...     torch.nn.Linear(2, 1)(torch.ones(3, 2)).dtype
    torch.float32
    """
    enabled = resolve_precision(precision, device) == "bfloat16"
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=enabled)


def autocast_dtype(inputs: torch.Tensor) -> torch.dtype:
    """Return the type in which the surrounding autocast computes on the inputs' device, or else their own."""
    device = inputs.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else inputs.dtype
