"""Do the native kernels of a device agree with the definition? Cases of every operator.

Every case runs forward and backward on shapes in which nothing is symmetric; the definition
(`cuda_ops.reference`) is computed in float64. Needs torch alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from cuda_ops import library, reference
from cuda_ops.deform_conv2d import deform_conv2d
from cuda_ops.deform_roi_pool import deform_roi_pool, ps_deform_roi_pool

# Largest difference / largest value that rounding explains; the low dtypes round operands'
# gradients and output once.
TOLERANCES = {
    torch.float64: 1e-10,
    torch.float32: 1e-5,
    torch.bfloat16: 2e-2,
    torch.float16: 3e-3,
}
_TF32 = 2e-3  # what float32 is allowed where torch multiplies it in tf32
_STAY_WIDE = ("offset", "mask", "rois", "trans")  # in float32 beside a lower input

# The public functions; their definitions in cuda_ops.reference have the same names and arguments.
OPERATORS: dict[str, Callable[..., Tensor]] = {
    "deform_conv2d": deform_conv2d,
    "deform_roi_pool": deform_roi_pool,
    "ps_deform_roi_pool": ps_deform_roi_pool,
}


@dataclass(frozen=True)
class Case:
    """One call of an operator: the shapes of its operands and its other arguments."""

    name: str
    operator: str
    shapes: Mapping[str, tuple[int, ...]]
    options: Mapping[str, Any]
    large: bool = False

    def operands(self) -> dict[str, Tensor]:
        """Draws float64 operands; regions lie inside, across the border and outside."""
        random = torch.Generator().manual_seed(0)
        found = {
            name: torch.randn(shape, generator=random, dtype=torch.float64)
            for name, shape in self.shapes.items()
        }
        if "mask" in found:
            found["mask"] = found["mask"].sigmoid()
        if "rois" in found:
            rois = 60 * torch.rand(found["rois"].shape, generator=random, dtype=torch.float64) - 8
            rois[:, 3:] = rois[:, 1:3] + rois[:, 3:].abs()
            rois[:, 0] = torch.arange(len(rois)) % self.shapes["input"][0]
            found["rois"] = rois
        return found


class Outcome(NamedTuple):
    """How far a case is from the definition; `error` is what a kernel said that did not run."""

    backend: library.Backend
    difference: float  # largest one / largest value; infinite where a NaN is
    worst: str  # "output" or "gradient of ..."
    good: bool  # whether rounding explains the difference
    error: str | None = None


def compare(case: Case, dtype: torch.dtype, device: str) -> Outcome:
    """Runs a case in a dtype on a device, its output and all its gradients, and the definition."""
    backend = library.backend(device, case.operator)
    operands = {
        name: value.to(torch.promote_types(dtype, torch.float32) if name in _STAY_WIDE else dtype)
        for name, value in case.operands().items()
    }
    wide = {name: value.double() for name, value in operands.items()}
    truth = _output_and_gradients(getattr(reference, case.operator), wide, case.options)
    try:
        moved = {name: value.to(device) for name, value in operands.items()}
        if case.large:  # the layout that needs no copy
            moved["input"] = moved["input"].contiguous(memory_format=torch.channels_last)
        ours = _output_and_gradients(OPERATORS[case.operator], moved, case.options)
        differences = {key: relative_difference(ours[key], truth[key]) for key in truth}
    except RuntimeError as failure:  # a launch that failed, memory that ended
        said = str(failure).strip().splitlines()[0]
        return Outcome(backend, float("inf"), "", False, said)
    worst = max(differences, key=differences.__getitem__)
    good = differences[worst] <= tolerance(dtype, device)
    return Outcome(backend, differences[worst], worst, good)


def tolerance(dtype: torch.dtype, device: str) -> float:
    """Returns the largest relative difference that rounding explains, by torch's settings."""
    on_cuda = torch.device(device).type == "cuda"
    tf32 = dtype == torch.float32 and on_cuda and torch.backends.cuda.matmul.allow_tf32
    return _TF32 if tf32 else TOLERANCES[dtype]


def relative_difference(ours: Tensor, truth: Tensor) -> float:
    """Returns the largest difference / the largest value; infinite where a NaN is."""
    value = float((ours.double().cpu() - truth).abs().max() / truth.abs().max())
    return value if value == value else float("inf")


def _output_and_gradients(
    function: Callable[..., Tensor], operands: Mapping[str, Tensor], options: Mapping[str, Any]
) -> dict[str, Tensor]:
    leaves = {k: v.detach().clone().requires_grad_(k != "rois") for k, v in operands.items()}
    output = function(**leaves, **options)
    random = torch.Generator().manual_seed(1)
    towards = torch.randn(output.shape, generator=random, dtype=torch.float64)
    output.backward(towards.to(output))  # type: ignore[no-untyped-call]
    named = {f"gradient of {k}": v.grad for k, v in leaves.items() if v.grad is not None}
    return {"output": output.detach(), **named}


def _convolution(
    name: str,
    channels: int,
    outputs: int,
    size: tuple[int, int],
    groups: int = 1,
    offset_groups: int = 1,
    mask: bool = True,
    large: bool = False,
) -> Case:
    """A 3x2 convolution with strides (2, 1), paddings (1, 0) and dilations (2, 1)."""
    batch, taps = 3, 6
    out = ((size[0] - 3) // 2 + 1, size[1] - 1)
    shapes: dict[str, tuple[int, ...]] = {
        "input": (batch, channels, *size),
        "offset": (batch, 2 * offset_groups * taps, *out),
        "weight": (outputs, channels // groups, 3, 2),
        "bias": (outputs,),
    }
    if mask:
        shapes["mask"] = (batch, offset_groups * taps, *out)
    options = {"stride": (2, 1), "padding": (1, 0), "dilation": (2, 1)}
    return Case(name, "deform_conv2d", shapes, options, large)


def _pooling(name: str, channels: int, sampling_ratio: int) -> Case:
    """RoI pooling of 9 regions into 3x2 bins."""
    shapes = {"input": (3, channels, 11, 14), "rois": (9, 5), "offset": (9, 2, 3, 2)}
    options = {"output_size": (3, 2), "spatial_scale": 0.25, "sampling_ratio": sampling_ratio}
    return Case(name, "deform_roi_pool", shapes, options)


def _sensitive_pooling(name: str, channels: int, classes: int) -> Case:
    """Position-sensitive pooling of 9 regions, 3x3 cells, 5x5 bins, 2x2 parts."""
    shapes = {"input": (3, 9 * channels, 11, 14), "rois": (9, 5), "trans": (9, 2 * classes, 2, 2)}
    options = {"spatial_scale": 0.25, "output_channels": channels, "group_size": 3}
    options |= {"pooled_size": 5, "part_size": 2, "sample_per_part": 3}
    return Case(name, "ps_deform_roi_pool", shapes, options)


CASES = (
    _convolution("v2, uneven groups", 12, 8, (9, 8), groups=2, offset_groups=3),
    _convolution("v1, odd channels", 5, 3, (9, 8), mask=False),
    _convolution("v2, one tile", 64, 64, (11, 12)),
    _convolution("v2, depthwise", 24, 24, (9, 8), groups=24),
    _convolution("v2, many tiles, ragged", 136, 200, (37, 35), offset_groups=2, large=True),
    _convolution("v2, wide", 512, 512, (33, 33), large=True),
    _pooling("RoI pool, adaptive samples", 20, sampling_ratio=0),
    _pooling("RoI pool, two samples", 129, sampling_ratio=2),
    _sensitive_pooling("ps RoI pool, two classes", 6, 2),
    _sensitive_pooling("ps RoI pool, class-agnostic", 64, 1),
)
