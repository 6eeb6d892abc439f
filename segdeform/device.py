"""Which device a command runs on."""

from __future__ import annotations

import torch

from segdeform.errors import UsageError


def resolve_device(name: str) -> torch.device:
    """Returns the device called "cpu", "cuda", "cuda:1" or "auto" (CUDA where there is one).

    Raises:
        UsageError: the name is none of these, or this machine has no such device.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    kind, _, index = name.partition(":")
    if kind not in ("cpu", "cuda") or (index and not index.isdecimal()):
        raise UsageError(f"--device {name}: unknown; use cpu, cuda, cuda:N or auto")
    if kind == "cuda" and not torch.cuda.is_available():
        raise UsageError(f"--device {name}: this machine has no usable CUDA device; use cpu")
    if kind == "cuda" and index and int(index) >= torch.cuda.device_count():
        raise UsageError(f"--device {name}: this machine has {torch.cuda.device_count()} of them")
    return torch.device(kind, int(index)) if index else torch.device(kind)
