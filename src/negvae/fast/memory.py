"""Memory of the C library."""

from __future__ import annotations

import ctypes
import functools


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
