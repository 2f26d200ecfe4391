"""Settings of the C library's memory allocation."""

from __future__ import annotations

import ctypes
import functools


@functools.cache
def keep_freed_memory() -> None:
    """Let the C library keep freed memory for the next step instead of returning it to the system.

    A training step on the CPU frees and allocates the same megabytes again; the page faults of getting them anew take
    up to half of its time. This does nothing if the C library is not glibc. The process grows no larger than its
    earlier peak.

    >>> keep_freed_memory()
    """
    try:
        adjust = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return
    trim_threshold, mmap_threshold = -1, -3
    adjust(mmap_threshold, 1 << 30)
    adjust(trim_threshold, (1 << 31) - 1)
