"""Devices and the arithmetic to use on them."""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable
from contextlib import AbstractContextManager

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
    return any(probe() for probe in probes)


def resolve_precision(name: str, device: torch.device) -> str:
    """Turn "auto" into "bfloat16" or "float32" for the device."""
    if name == "auto":
        return "bfloat16" if computes_in_bfloat16(device) else "float32"
    return name


def autocast(precision: str, device: torch.device) -> AbstractContextManager[None]:
    """The context in which networks run: bfloat16 autocast, or nothing for float32."""
    enabled = precision == "bfloat16"
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=enabled)


def autocast_dtype(inputs: torch.Tensor) -> torch.dtype:
    """What the autocast around the caller computes in on the inputs' device; their own type outside of one."""
    device = inputs.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else inputs.dtype


@functools.cache
def keep_freed_memory() -> None:
    """Let the C library keep freed memory for the next step instead of giving it back to the system.

    A training step on the CPU frees and asks again for the same megabytes; the page faults of getting them anew
    take up to half of its time. Does nothing where the C library is not glibc. The process grows no larger than it
    was at its largest.
    """
    try:
        adjust = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return
    trim_threshold, mmap_threshold = -1, -3
    adjust(mmap_threshold, 1 << 30)
    adjust(trim_threshold, (1 << 31) - 1)
