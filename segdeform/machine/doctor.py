"""Checks of an installation: versions, devices, native kernels and their agreement with the
reference, forward and backward, in seconds."""

from __future__ import annotations

import os
import platform
import shlex
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata
from typing import Literal

import torch

from cuda_ops import library, reference
from cuda_ops.parity import CASES, Case, compare, relative_difference, tolerance
from segdeform.machine.cpu import available_cores
from segdeform.version import __version__

_PACKAGES = ("torch", "torchvision", "albumentations", "numpy")


@dataclass(frozen=True)
class Check:
    """One finding; a note is worth knowing, but everything works."""

    name: str
    state: Literal["ok", "note", "failed"]
    detail: str
    mend: str = ""  # the command that mends it


def examine() -> Iterator[Check]:
    """Yields the findings one by one, the quick ones first."""
    yield Check("segdeform", "ok", f"{__version__}, Python {platform.python_version()}")
    yield from map(_package, _PACKAGES)
    yield _threads()
    yield _cuda()
    yield _library("CPU kernels", library.cpu_library)
    if torch.cuda.is_available():
        yield _library("CUDA kernels", library.cuda_library)
        if library.cuda_library.loaded:
            yield _launch()
    for device in ("cpu", "cuda") if torch.cuda.is_available() else ("cpu",):
        for case in CASES:
            if not case.large:
                yield parity(case, torch.float32, device)
        yield parity(CASES[0], torch.float64, device)
        yield parity(CASES[0], torch.bfloat16, device)


def _package(name: str) -> Check:
    try:
        return Check(name, "ok", metadata.version(name))
    except metadata.PackageNotFoundError:
        return Check(name, "failed", "not installed", f"{_python()} -m pip install {name}")


def _threads() -> Check:
    threads, cores = torch.get_num_threads(), available_cores()
    detail = f"torch uses {threads} threads, this process may use {cores} cores"
    limited = os.environ.get("OMP_NUM_THREADS")
    return Check("threads", "ok", f"{detail}, OMP_NUM_THREADS={limited}" if limited else detail)


def _cuda() -> Check:
    built = torch.version.cuda
    if torch.cuda.is_available():
        names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
        return Check("CUDA", "ok", f"torch has CUDA {built}, devices: {', '.join(names)}")
    if not shutil.which("nvidia-smi"):
        return Check("CUDA", "ok", "no NVIDIA driver here; the CPU does the work")
    why = f"its CUDA {built} needs a newer driver" if built else "it was built without CUDA"
    return Check(
        "CUDA",
        "note",
        f"there is an NVIDIA driver, but torch sees no device: perhaps {why}",
        "nvidia-smi, then https://pytorch.org/get-started/locally",
    )


def _library(name: str, library_status: library.LibraryStatus) -> Check:
    """Says whether a native library serves; torchvision's operator is slower, but correct."""
    if library_status.loaded:
        built = library_status.build.get("torch", "an unknown torch")
        return Check(name, "ok", f"native: {library_status.file}, built with torch {built}")
    chosen = "SEGDEFORM_OPS" in library_status.reason
    mend = "unset SEGDEFORM_OPS" if chosen else f"{_python()} -P -m cuda_ops.build"
    detail = f"torchvision's operator serves: {library_status.file}: {library_status.reason}"
    return Check(name, "note", detail, mend)


def _launch() -> Check:
    """Has the CUDA library sample an image, which proves that its kernels run on this GPU."""
    random = torch.Generator().manual_seed(0)
    image = torch.randn(7, 9, generator=random)
    points = torch.rand(200, 2, generator=random) * torch.tensor([11.0, 13.0]) - 2
    y, x = points.T.reshape(2, 1, 1, 1, 1, -1)
    truth = reference.bilinear_sample(image[None, None], y, x).flatten()
    try:
        ours = torch.ops.segdeform.sample_points(image.cuda(), points.cuda())
    except RuntimeError as error:  # no machine code for this GPU, say
        mend = f"{_python()} -P -m cuda_ops.build"
        return Check("CUDA launch", "failed", str(error).splitlines()[0], mend)
    good = relative_difference(ours, truth.double()) <= tolerance(torch.float32, "cpu")
    return Check("CUDA launch", "ok" if good else "failed", "the sampling rule holds on the GPU")


def parity(case: Case, dtype: torch.dtype, device: str) -> Check:
    """Says whether an operator, its output and all gradients, agrees with the reference."""
    shown = "" if dtype == torch.float32 else f", {str(dtype).removeprefix('torch.')}"
    name = f"{case.name}{shown} on {device}"
    outcome = compare(case, dtype, device)
    # A wrong kernel is gone round by torchvision's operator, or by the reference.
    mend = "" if outcome.good else "export SEGDEFORM_OPS=torchvision"
    if outcome.error is not None:
        return Check(name, "failed", outcome.error, mend)
    return Check(
        name,
        "ok" if outcome.good else "failed",
        f"{outcome.backend}, off by {outcome.difference:.0e} ({outcome.worst})",
        mend,
    )


def _python() -> str:
    return shlex.quote(sys.executable)
