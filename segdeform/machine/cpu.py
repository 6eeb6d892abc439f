"""What the processor side offers a process: cores, and memory that is kept. Without torch."""

from __future__ import annotations

import ctypes
import os
import sys


def available_cores() -> int:
    """Returns how many CPU cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def keep_freed_memory() -> None:
    """Has glibc keep what is freed for the next allocation, for the rest of the process.

    By default it returns large blocks to the system, which zeroes every page again a moment later:
    a training step on CPU allocates the same hundreds of blocks each time and took 1.4 times as
    long. Elsewhere than on glibc, and on failure, nothing changes.
    """
    if not sys.platform.startswith("linux"):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return
    trim_threshold, mmap_threshold = -1, -3  # malloc.h: M_TRIM_THRESHOLD, M_MMAP_THRESHOLD
    # Setting only the second would pin the first at its small default.
    if mallopt(mmap_threshold, 2**30):
        mallopt(trim_threshold, 2**31 - 1)
