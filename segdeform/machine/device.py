"""Which device a command runs on, and whether the kernels are right there."""

from __future__ import annotations

from functools import cache

import torch

from cuda_ops import library
from cuda_ops.parity import CASES, compare
from segdeform.errors import SegdeformError, UsageError


def resolve_device(name: str) -> torch.device:
    """Returns the device called "cpu", "cuda", "cuda:1" or "auto" (CUDA where there is one).

    Raises:
        UsageError: the name is none of these, or this machine has no such device.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    kind, _, index = name.partition(":")
    # Longer numbers are no torch device's.
    if kind not in ("cpu", "cuda") or (index and not (index.isdecimal() and len(index) <= 2)):
        raise UsageError(f"--device {name[:40]}: unknown; use cpu, cuda, cuda:N or auto")
    if kind == "cuda" and not torch.cuda.is_available():
        raise UsageError(f"--device {name}: this machine has no usable CUDA device; use cpu")
    if kind == "cuda" and index and int(index) >= torch.cuda.device_count():
        raise UsageError(f"--device {name}: this machine has {torch.cuda.device_count()} of them")
    return torch.device(kind, int(index)) if index else torch.device(kind)


def require_right_kernels(device: torch.device) -> None:
    """Compares the convolution's native kernels for a GPU with the definition, once a process.

    Raises:
        SegdeformError: they differ by more than rounding, or do not run; nothing that they give
            could be trusted.
    """
    if device.type == "cuda":
        compare_kernels(str(device))


@cache
def compare_kernels(device: str) -> None:
    """Does what `require_right_kernels` says, on any device: forward and backward of tiny cases."""
    if library.backend(device) != "native":
        return
    for case in CASES:
        if case.large or case.operator != "deform_conv2d":
            continue
        for dtype in (torch.float32, torch.bfloat16):
            outcome = compare(case, dtype, device)
            if not outcome.good:
                wrong = outcome.error or f"{outcome.worst} is off by {outcome.difference:.1e}"
                raise SegdeformError(
                    f"the deformable convolution's kernels are wrong on {device} ({case.name}, "
                    f"{dtype}: {wrong}). SEGDEFORM_OPS=torchvision goes on without them; "
                    "segdeform doctor says more"
                )
