"""Ends of memory as Python, torch and OpenCV really tell them."""

from __future__ import annotations

from collections.abc import Callable

import cv2
import numpy as np
import pytest
import torch

from segdeform.machine.memory import memory_that_ended

HUGE = 1 << 47  # bytes, more than the address space of a process


@pytest.mark.parametrize(
    "take",
    [
        lambda: bytearray(HUGE),
        lambda: np.zeros(HUGE, np.uint8),
        lambda: torch.empty(HUGE, dtype=torch.uint8),
        lambda: cv2.copyMakeBorder(np.zeros((2, 2), np.uint8), 0, 2**30, 0, 2**17, 0),
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
        OSError(12, "Cannot allocate memory"),  # has an errno of its own
    ],
)
def test_other_errors_are_not_taken_for_it(error: Exception) -> None:
    assert memory_that_ended(error) == ""
