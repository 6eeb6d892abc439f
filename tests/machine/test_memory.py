"""How much memory there is; its ends as Python, torch and OpenCV really tell them."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from segdeform.machine import memory
from segdeform.machine.memory import memory_that_ended

HUGE = 1 << 47  # bytes, more than the address space of a process


CONVOLVES = """
import resource, torch
from pathlib import Path
from segdeform.machine.memory import memory_that_ended

layer, picture = torch.nn.Conv2d(8, 16, 3), torch.zeros(1, 8, 300, 300)
taken = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (taken, resource.getrlimit(resource.RLIMIT_AS)[1]))
try:
    layer(picture)
except RuntimeError as error:
    print(memory_that_ended(error), "|", error)
"""


def test_the_end_of_memory_is_known_where_onednn_tells_it() -> None:
    """In a process of its own: one that has computed before keeps memory that would do."""
    command = [sys.executable, "-c", CONVOLVES]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert said.startswith("memory |")  # "could not create a primitive" or "std::bad_alloc"


def begin_thread() -> None:
    before = threading.stack_size(HUGE // 2)
    try:
        threading.Thread(target=print).start()
    finally:
        threading.stack_size(before)


@pytest.mark.parametrize(
    "take",
    [
        lambda: bytearray(HUGE),
        lambda: np.zeros(HUGE, np.uint8),
        lambda: torch.empty(HUGE, dtype=torch.uint8),
        lambda: cv2.copyMakeBorder(np.zeros((2, 2), np.uint8), 0, 2**30, 0, 2**17, 0),
        begin_thread,
    ],
)
def test_the_end_of_memory_is_known_by_whoever_tells_it(take: Callable[[], object]) -> None:
    with pytest.raises((MemoryError, RuntimeError, cv2.error)) as caught:
        take()
    assert memory_that_ended(caught.value) == "memory"


def test_a_gpu_s_memory_is_told_apart() -> None:
    assert memory_that_ended(torch.OutOfMemoryError("CUDA out of memory")) == "GPU memory"


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("shapes do not fit; pin_memory"),
        cv2.error("OpenCV: (-215:Assertion failed) !empty() in function 'memory'"),
        ValueError("DefaultCPUAllocator"),
        RuntimeError("could not create a primitive descriptor for a convolution"),
        OSError(12, "Cannot allocate memory"),  # has an errno of its own
    ],
)
def test_other_errors_are_not_taken_for_it(error: Exception) -> None:
    assert memory_that_ended(error) == ""


def _files(root: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)


@pytest.mark.parametrize(
    ("files", "left"),
    [
        ({"proc/meminfo": "MemTotal: 900 kB\nMemAvailable:     700 kB\n"}, 700 * 1024),
        # A container of version 2: 4000 allowed, 1500 used, of which 500 are cached files.
        (
            {
                "proc/meminfo": "MemAvailable: 700 kB\n",
                "proc/self/cgroup": "0::/job/step\n",
                "groups/job/step/memory.max": "max\n",
                "groups/job/memory.max": "4000\n",
                "groups/job/memory.current": "1500\n",
                "groups/job/memory.stat": "anon 1000\ninactive_file 500\nactive_file 7\n",
            },
            3000,
        ),
        # Version 1, seen from inside: the group's own path is not there, its mount is the root.
        (
            {
                "proc/meminfo": "MemAvailable: 700 kB\n",
                "proc/self/cgroup": "4:memory:/docker/abc\n2:cpu,cpuacct:/docker/abc\n0::/\n",
                "groups/memory/memory.limit_in_bytes": "9000\n",
                "groups/memory/memory.usage_in_bytes": "8500\n",
                "groups/memory/memory.stat": "inactive_file 1\ntotal_inactive_file 100\n",
            },
            600,
        ),
        # More used than allowed, as while a limit is lowered.
        (
            {
                "proc/self/cgroup": "0::/\n",
                "groups/memory.max": "10\n",
                "groups/memory.current": "50\n",
                "groups/memory.stat": "",
            },
            0,
        ),
        ({"proc/meminfo": "nothing of the kind\n"}, None),
        ({}, None),
    ],
)
def test_free_memory_is_what_system_and_groups_leave(
    files: dict[str, str], left: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _files(tmp_path, files)
    monkeypatch.setattr(memory, "_PROC", tmp_path / "proc")
    monkeypatch.setattr(memory, "_CGROUPS", tmp_path / "groups")
    assert memory.free_memory() == left


def test_this_machine_has_memory_left() -> None:
    left = memory.free_memory()
    assert left is None or 2**20 < left < 2**50


def test_the_peak_is_of_this_process_alone() -> None:
    """Not of the one that started it, which system calls count in."""
    held = np.ones(200 * 2**20, np.uint8)
    program = "from segdeform.machine.memory import *; print(peak_resident_memory())"
    command = [sys.executable, "-c", program]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert 2**20 < int(said) < held.nbytes < memory.peak_resident_memory()


def test_what_a_process_holds_is_told_by_kind() -> None:
    before = memory.resident_memory() - memory.shared_memory(), memory.writable_memory()
    held = np.ones(64 * 2**20, np.uint8)
    after = memory.resident_memory() - memory.shared_memory(), memory.writable_memory()
    assert after[0] - before[0] > 0.9 * held.nbytes
    assert before[1] is not None and after[1] is not None
    assert after[1] - before[1] > 0.9 * held.nbytes
    assert 0 < memory.shared_memory() < memory.resident_memory()
