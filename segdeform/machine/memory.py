"""How much memory there is, and what is said when it ends. Without torch."""

from __future__ import annotations

import re
import resource
import sys
from contextlib import suppress
from pathlib import Path

# What torch's CPU allocator says, what oneDNN and C++ do, and Python where a thread has no room.
_WORDS = re.compile(
    r"DefaultCPUAllocator|^could not create a primitive$|^can't start new thread$"
    r"|^std::bad_alloc$",
    re.MULTILINE,
)
_PROC, _CGROUPS = Path("/proc"), Path("/sys/fs/cgroup")


def memory_that_ended(error: BaseException) -> str:
    """Returns "GPU memory" or "memory" for an error that says it ended, "" for any other.

    Only Python and CUDA have a type for it; torch, oneDNN and OpenCV say it in words.
    """
    if type(error).__name__ == "OutOfMemoryError":  # torch.OutOfMemoryError, not imported here
        return "GPU memory"
    said = str(error)
    worded = isinstance(error, RuntimeError) and _WORDS.search(said) is not None
    # "Insufficient memory" is the name of OpenCV's StsNoMem, "Failed to allocate" its usual text.
    worded |= type(error).__module__ == "cv2" and "nsufficient memory" in said
    return "memory" if worded or isinstance(error, MemoryError) else ""


def free_memory() -> int | None:
    """Returns the bytes of main memory that this process may still take; None: nobody knows.

    The least of what the system has left and what the control groups around this process leave, as
    in containers and batch jobs.
    """
    found = [*_left_by_system(), *_left_by_groups()]
    return max(0, min(found)) if found else None


def resident_memory() -> int:
    """Returns the bytes of main memory that this process holds; 0 where nobody knows."""
    return _own("VmRSS") or 0


def peak_resident_memory() -> int:
    """Returns the most bytes of main memory that this process ever held."""
    # What getrusage tells counts also what the process held that started this one.
    if peak := _own("VmHWM"):
        return peak
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def shared_memory() -> int:
    """Returns the bytes that this process holds of files, as libraries are, which others share."""
    return (_own("RssFile") or 0) + (_own("RssShmem") or 0)


def writable_memory() -> int | None:
    """Returns the bytes that RLIMIT_DATA counts; None: it counts none here."""
    return _own("VmData")


def _own(name: str) -> int | None:
    with suppress(OSError):
        match = re.search(rf"^{name}:\s*(\d+) kB", (_PROC / "self/status").read_text(), re.M)
        return 1024 * int(match[1]) if match else None
    return None


def _left_by_system() -> list[int]:
    with suppress(OSError):
        match = re.search(r"^MemAvailable: *(\d+) kB", (_PROC / "meminfo").read_text(), re.M)
        if match:
            return [1024 * int(match[1])]
    return []


def _left_by_groups() -> list[int]:
    """Returns what each control group that this process is in leaves, of versions 1 and 2."""
    try:
        entries = (_PROC / "self/cgroup").read_text().splitlines()
    except OSError:
        return []
    left = []
    for entry in entries:
        _, controllers, path = entry.split(":", 2)
        if controllers and "memory" not in controllers.split(","):
            continue
        root = _CGROUPS / "memory" if controllers else _CGROUPS
        names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
        names = names if controllers else ("memory.max", "memory.current", "inactive_file")
        group = root / path.lstrip("/")
        for folder in (group, *group.parents):
            if folder == root.parent:
                break
            left += _left_in(folder, *names)
    return left


def _left_in(folder: Path, limit: str, usage: str, droppable: str) -> list[int]:
    """Returns limit - usage of a control group, whose cached files do not count as used."""
    with suppress(OSError, ValueError):  # no such file, "max"
        left = int((folder / limit).read_text()) - int((folder / usage).read_text())
        match = re.search(rf"^{droppable} (\d+)$", (folder / "memory.stat").read_text(), re.M)
        return [left + (int(match[1]) if match else 0)]
    return []
