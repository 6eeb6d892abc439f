"""What the processor side offers a process: cores, and memory that is kept. Without torch."""

from __future__ import annotations

import ctypes
import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # malloc.h: M_TRIM_THRESHOLD, M_MMAP_THRESHOLD
_KEPT_BLOCK = 2**30  # bytes, up to which blocks are kept
_RETURNED_BLOCK = 2**26  # bytes, from which on blocks are returned at once, where they shall be

_kept = False
_returning = 0  # how many want large blocks returned
_lock = threading.Lock()


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
    global _kept
    # Setting only the second would pin the first at its small default.
    if _mallopt(_MMAP_THRESHOLD, _KEPT_BLOCK):
        _mallopt(_TRIM_THRESHOLD, 2**31 - 1)
        _kept = True


@contextmanager
def large_blocks_returned() -> Iterator[None]:
    """Has large blocks returned to the system once they are free, where they are kept otherwise.

    Blocks of hundreds of megabytes and of ever new sizes leave holes between them that are never
    filled: windows of a picture of 4096x4096 took 3.5 GiB instead of 1.9.
    """
    global _returning
    if not _kept:
        yield
        return
    with _lock:
        _returning += 1
        _mallopt(_MMAP_THRESHOLD, _RETURNED_BLOCK)
    return_freed_memory()
    try:
        yield
    finally:
        with _lock:
            _returning -= 1
            if not _returning:
                _mallopt(_MMAP_THRESHOLD, _KEPT_BLOCK)


def return_freed_memory() -> None:
    """Returns to the system what is free, holes between used blocks too; only glibc can."""
    if sys.platform.startswith("linux"):
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if trim is not None:
            trim(0)


def _mallopt(option: int, value: int) -> bool:
    """Sets an option of glibc's allocator; False: there is no such thing."""
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    return mallopt is not None and bool(mallopt(option, value))
