"""Loads the native libraries and says which backend serves a call, and why.

`SEGDEFORM_OPS=torchvision` leaves the native libraries aside. Operators that torchvision lacks are
then computed by `cuda_ops.reference`, slowly.
"""

from __future__ import annotations

import json
import os
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

FOLDER = Path(__file__).resolve().parent
BUILD_COMMAND = "python -P -m cuda_ops.build"

Backend = Literal["native", "torchvision", "reference"]

# Every operator, and what serves it where there is no native kernel.
FALLBACKS: dict[str, Backend] = {
    "deform_conv2d": "torchvision",
    "deform_roi_pool": "reference",
    "ps_deform_roi_pool": "reference",
}


@dataclass(frozen=True)
class LibraryStatus:
    """One native library: whether it is loaded, and why not or what it was built with."""

    file: str
    loaded: bool
    reason: str
    build: dict[str, Any]


def _build_facts(path: Path) -> dict[str, Any]:
    try:
        facts = json.loads(path.with_suffix(".json").read_text())
    except (OSError, ValueError):  # not built, or damaged: the next build writes it anew
        return {}
    return facts if isinstance(facts, dict) else {}


def _why_not_to_load(path: Path, facts: dict[str, Any]) -> str:
    if os.environ.get("SEGDEFORM_OPS", "") == "torchvision":
        return "SEGDEFORM_OPS=torchvision asks for torchvision"
    if not path.exists():
        return f"not built; build it: {BUILD_COMMAND}"
    built_for, present = facts.get("cuda"), torch.version.cuda
    if built_for and (present is None or present.split(".")[0] != built_for.split(".")[0]):
        return f"built for CUDA {built_for}, but torch has {present or 'no CUDA'}"
    return ""


def _load(path: Path) -> LibraryStatus:
    facts = _build_facts(path)
    if reason := _why_not_to_load(path, facts):
        return LibraryStatus(path.name, False, reason, facts)
    try:
        torch.ops.load_library(str(path))  # type: ignore[no-untyped-call]
    except (OSError, RuntimeError) as error:
        return LibraryStatus(path.name, False, f"does not load: {error}", facts)
    return LibraryStatus(path.name, True, "loaded", facts)


_wanted = os.environ.get("SEGDEFORM_OPS", "")
if _wanted not in ("", "torchvision"):
    raise ValueError(f"SEGDEFORM_OPS is '{_wanted}'; it takes 'torchvision' or nothing")

cpu_library = _load(FOLDER / "_C.so")
cuda_library = (
    _load(FOLDER / "_C_cuda.so")
    if cpu_library.loaded
    else LibraryStatus("_C_cuda.so", False, "needs _C.so, which is not loaded", {})
)


def _native_kernels() -> frozenset[tuple[str, str]]:
    if not cpu_library.loaded:
        return frozenset()
    # What has a kernel on CPU has a result without values on the meta device (faces.py).
    keys = (("cpu", "CPU"), ("cuda", "CUDA"), ("meta", "CPU"))
    return frozenset(
        (operator, device)
        for operator in FALLBACKS
        for device, key in keys
        if torch._C._dispatch_has_kernel(f"segdeform::{operator}")  # not in an older build
        and torch._C._dispatch_has_kernel_for_dispatch_key(f"segdeform::{operator}", key)
    )


_kernels = _native_kernels()


def has_kernel(operator: str, device: str) -> bool:
    """Says whether `segdeform::operator` has a native kernel for a device type."""
    return (operator, device) in _kernels


def backend(device: str | torch.device = "cpu", operator: str = "deform_conv2d") -> Backend:
    """Answers which implementation serves an operator on a device.

    "native"; or "torchvision", its operator of that name; or "reference", plain torch.

    Raises:
        ValueError: if there is no such operator.
    """
    if operator not in FALLBACKS:
        raise ValueError(f"operator must be one of {', '.join(FALLBACKS)}, not {operator!r}")
    return "native" if has_kernel(operator, torch.device(device).type) else FALLBACKS[operator]


_warned: set[tuple[str, str]] = set()


def warn_fallback(operator: str, device: str) -> None:
    """Warns, once a process, operator and device type, that no native kernel serves the calls."""
    asked_for = _wanted == "torchvision"
    if torch.compiler.is_compiling() or (operator, device) in _warned or asked_for:
        return
    _warned.add((operator, device))
    status = cuda_library if device == "cuda" and cpu_library.loaded else cpu_library
    why = f"{status.file}: {status.reason}"
    if status.loaded:
        stale = f", an older build; build it anew: {BUILD_COMMAND}" if device == "cpu" else ""
        why = f"no kernel in {status.file}{stale}"
    fallbacks = {"torchvision": "torchvision's operator", "reference": "slow plain torch"}
    server = fallbacks[FALLBACKS[operator]]
    warnings.warn(f"{operator} runs on {server} on {device} ({why})", stacklevel=4)
