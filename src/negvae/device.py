"""Devices and the arithmetic to use on them."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager

import torch


def resolve_device(name: str) -> torch.device:
    """The device called `name`; "auto" is the first GPU, else the CPU.

    Raises:
        ValueError: there is no such device here.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    device = torch.device(name)
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ValueError(f"device {name} is not here: {torch.cuda.device_count()} CUDA devices found; use cpu or auto")
    return device


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


@functools.cache
def runs_bfloat16(device: torch.device) -> bool:
    """Whether the device has kernels for networks in bfloat16, native or emulated: a small convolution is tried.

    What a processor is said to have and what torch's kernels may use can differ, so nothing but a trial tells.
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
    """Whether the device has bfloat16 matrix arithmetic, not merely an emulation of it."""
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
    """Turn "auto" into "bfloat16" or "float32" for the device.

    Raises:
        ValueError: bfloat16 is asked for, and networks do not run in it here.
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
    """The context in which networks run: bfloat16 autocast, or nothing for float32; "auto" is resolved.

    Raises:
        ValueError: see `resolve_precision`.
    """
    enabled = resolve_precision(precision, device) == "bfloat16"
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=enabled)


def autocast_dtype(inputs: torch.Tensor) -> torch.dtype:
    """What the autocast around the caller computes in on the inputs' device; their own type outside of one."""
    device = inputs.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else inputs.dtype
