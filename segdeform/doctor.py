"""Checks of an installation: versions, devices, native kernels and their agreement with the
reference, forward and backward, in seconds."""

from __future__ import annotations

import os
import platform
import shlex
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import metadata
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from cuda_ops import deform_conv2d, library, reference
from segdeform import __version__

_PACKAGES = ("torch", "torchvision", "albumentations", "numpy")
_TOLERANCES = {torch.float32: 1e-5, torch.float64: 1e-10}  # largest difference / largest value


@dataclass(frozen=True)
class Check:
    """One finding; a note is worth knowing, but everything works."""

    name: str
    state: Literal["ok", "note", "failed"]
    detail: str
    mend: str = ""  # the command that mends it


class Case(NamedTuple):
    """A deformable convolution with nothing symmetric in it."""

    name: str
    dtype: torch.dtype
    channels: int
    groups: int
    offset_groups: int
    modulated: bool


CASES = (
    Case("v1", torch.float32, 12, 2, 3, False),
    Case("v2", torch.float32, 12, 1, 1, True),
    Case("v2 depthwise", torch.float32, 12, 12, 1, True),
    Case("v2, float64", torch.float64, 12, 2, 3, True),
)


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
            yield parity(case, device)


def _package(name: str) -> Check:
    try:
        return Check(name, "ok", metadata.version(name))
    except metadata.PackageNotFoundError:
        return Check(name, "failed", "not installed", f"{_python()} -m pip install {name}")


def _threads() -> Check:
    cores = os.cpu_count() or 1
    detail = f"torch uses {torch.get_num_threads()} threads, the machine has {cores} cores"
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
    good = _difference(ours, truth.double()) <= _TOLERANCES[torch.float32]
    return Check("CUDA launch", "ok" if good else "failed", "the sampling rule holds on the GPU")


def parity(case: Case, device: str) -> Check:
    """Compares deform_conv2d, its output and all gradients, with the reference in float64."""
    started = time.perf_counter()
    name = f"{case.name} on {device}"
    arguments = _arguments(case)
    # A wrong kernel is gone round by torchvision's operator.
    mend = "export SEGDEFORM_OPS=torchvision"
    try:
        ours = _output_and_gradients(deform_conv2d, arguments, device, case.dtype)
    except RuntimeError as error:  # a kernel that does not launch is what this looks for
        return Check(name, "failed", str(error).splitlines()[0], mend)
    truth = _output_and_gradients(reference.deform_conv2d, arguments, "cpu", torch.float64)
    differences = {key: _difference(ours[key], truth[key]) for key in truth}
    worst = max(differences, key=differences.__getitem__)
    good = differences[worst] <= _TOLERANCES[case.dtype]
    return Check(
        name,
        "ok" if good else "failed",
        f"{library.backend(device)}, largest relative difference {differences[worst]:.1e} "
        f"({worst}), {time.perf_counter() - started:.2f} s",
        "" if good else mend,
    )


def _arguments(case: Case) -> dict[str, Tensor]:
    """Draws the inputs for a kernel of 3x2 on pictures of 9x13, the same ones each time."""
    random = torch.Generator().manual_seed(0)
    taps, size = 6, (4, 14)  # of the output
    offset = torch.randint(-3, 3, (2, 2 * case.offset_groups * taps, *size), generator=random)
    # Away from whole pixels, where the derivative jumps.
    fraction = torch.rand(offset.shape, generator=random) * 0.8 + 0.1
    arguments = {
        "input": torch.randn(2, case.channels, 9, 13, generator=random),
        "offset": offset + fraction,
        "weight": torch.randn(24, case.channels // case.groups, 3, 2, generator=random),
        "bias": torch.randn(24, generator=random),
    }
    if case.modulated:
        arguments["mask"] = torch.rand(2, case.offset_groups * taps, *size, generator=random)
    return arguments


def _output_and_gradients(
    function: Callable[..., Tensor], arguments: dict[str, Tensor], device: str, dtype: torch.dtype
) -> dict[str, Tensor]:
    leaves = {key: value.to(device, dtype).requires_grad_() for key, value in arguments.items()}
    output = function(**leaves, stride=(2, 1), padding=(1, 1), dilation=(2, 1))
    towards = torch.linspace(-1, 1, output.numel(), dtype=torch.float64).reshape(output.shape)
    gradients = torch.autograd.grad(output, tuple(leaves.values()), towards.to(output))
    named = zip((f"gradient of {key}" for key in leaves), gradients, strict=True)
    return {"output": output.detach(), **dict(named)}


def _difference(ours: Tensor, truth: Tensor) -> float:
    """Returns the largest difference / the largest value; infinite where a NaN is."""
    difference = float((ours.double().cpu() - truth).abs().max() / truth.abs().max())
    return difference if difference == difference else float("inf")


def _python() -> str:
    return shlex.quote(sys.executable)
