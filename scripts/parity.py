"""Compares the native kernels of a device with the definition computed in float64.

    python scripts/parity.py [--device cuda] [--small] [--json FILE]

Every operator runs forward and backward in every dtype on shapes in which nothing is symmetric;
the table shows the largest error of output and gradients, relative to the largest value. --small
leaves out what takes long under a memory checker. Needs torch and cuda_ops alone. Exit code 8: an
error is too large, or a kernel is missing.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import cuda_ops
from cuda_ops import library, reference

# Relative error that rounding explains; the low dtypes round operands' gradients and output once.
TOLERANCES = {
    torch.float64: 1e-10,
    torch.float32: 2e-5,
    torch.bfloat16: 2e-2,
    torch.float16: 3e-3,
}
PIXEL_OPERANDS = ("offset", "mask", "rois", "trans")  # stay float32 beside a lower input


@dataclass(frozen=True)
class Case:
    """One call of an operator: the shapes of its operands and its other arguments."""

    name: str
    operator: str
    shapes: dict[str, tuple[int, ...]]
    numbers: dict[str, Any]
    large: bool = False

    def operands(self) -> dict[str, Tensor]:
        """Draws float64 operands; regions lie inside, across the border and outside."""
        generator = torch.Generator().manual_seed(0)
        found = {
            name: torch.randn(shape, generator=generator, dtype=torch.float64)
            for name, shape in self.shapes.items()
        }
        if "mask" in found:
            found["mask"] = found["mask"].sigmoid()
        if "rois" in found:
            corners = torch.rand(found["rois"].shape, generator=generator, dtype=torch.float64)
            corners = 60 * corners - 8
            corners[:, 3:] = corners[:, 1:3] + corners[:, 3:].abs()
            corners[:, 0] = torch.arange(len(corners)) % self.shapes["input"][0]
            found["rois"] = corners
        return found


def conv(
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
    shapes = {
        "input": (batch, channels, *size),
        "offset": (batch, 2 * offset_groups * taps, *out),
        "weight": (outputs, channels // groups, 3, 2),
        "bias": (outputs,),
    }
    if mask:
        shapes["mask"] = (batch, offset_groups * taps, *out)
    geometry = {"stride": (2, 1), "padding": (1, 0), "dilation": (2, 1)}
    return Case(name, "deform_conv2d", shapes, geometry, large)


def pool(name: str, channels: int, sampling_ratio: int = 0) -> Case:
    """Plain RoI pooling of 9 regions into 3x2 bins."""
    shapes = {"input": (3, channels, 11, 14), "rois": (9, 5), "offset": (9, 2, 3, 2)}
    numbers = {"output_size": (3, 2), "spatial_scale": 0.25, "sampling_ratio": sampling_ratio}
    return Case(name, "deform_roi_pool", shapes, numbers)


def sensitive_pool(name: str, channels: int, classes: int) -> Case:
    """Position-sensitive pooling of 9 regions, 3x3 cells, 5x5 bins, 2x2 parts."""
    shapes = {"input": (3, 9 * channels, 11, 14), "rois": (9, 5), "trans": (9, 2 * classes, 2, 2)}
    numbers = {"spatial_scale": 0.25, "output_channels": channels, "group_size": 3,
               "pooled_size": 5, "part_size": 2, "sample_per_part": 3}  # fmt: skip
    return Case(name, "ps_deform_roi_pool", shapes, numbers)


CASES = (
    conv("groups that do not nest", 12, 8, (9, 8), groups=2, offset_groups=3),
    conv("v1, odd channels", 5, 3, (9, 8), mask=False),
    conv("one tile of a matrix product", 64, 64, (11, 12)),
    conv("depthwise", 24, 24, (9, 8), groups=24),
    conv("many tiles, ragged", 136, 200, (37, 35), offset_groups=2, large=True),
    conv("wide", 512, 512, (33, 33), large=True),
    pool("adaptive samples", 20),
    pool("two samples", 129, sampling_ratio=2),
    sensitive_pool("two classes", 6, 2),
    sensitive_pool("class-agnostic", 64, 1),
)


def run(case: Case, operator: Callable[..., Tensor], operands: dict[str, Tensor]) -> dict[str, Any]:
    """Returns the output and the gradients of all operands but regions, for a fixed gradient."""
    leaves = {k: v.detach().clone().requires_grad_(k != "rois") for k, v in operands.items()}
    output = operator(**leaves, **case.numbers)
    generator = torch.Generator().manual_seed(1)
    grad = torch.randn(output.shape, generator=generator, dtype=torch.float64)
    output.backward(grad.to(output))
    found = {f"grad {k}": v.grad for k, v in leaves.items() if v.grad is not None}
    return {"output": output.detach()} | found


def worst_error(found: dict[str, Tensor], expected: dict[str, Tensor]) -> tuple[float, str]:
    """Returns the largest error relative to the largest value, and where; NaN is the largest."""
    worst, where = 0.0, ""
    for name, truth in expected.items():
        error = (found[name].double().cpu() - truth).abs().max() / truth.abs().max()
        value = error.item() if error.isfinite() else math.inf
        if value >= worst:
            worst, where = value, name
    return worst, where


def compare(case: Case, dtype: torch.dtype, device: str) -> dict[str, Any]:
    """Returns a row: what was compared, with what result."""
    wide = case.operands()
    low = {k: v.to(torch.promote_types(dtype, torch.float32) if k in PIXEL_OPERANDS else dtype)
           for k, v in wide.items()}  # fmt: skip
    row = {
        "operator": case.operator,
        "case": case.name,
        "dtype": str(dtype).removeprefix("torch."),
        "backend": cuda_ops.backend(device, case.operator),
        "tolerance": TOLERANCES[dtype],
    }
    expected = run(case, getattr(reference, case.operator), {k: v.double() for k, v in low.items()})
    try:
        on_device = {k: v.to(device) for k, v in low.items()}
        if case.large:
            on_device["input"] = on_device["input"].contiguous(memory_format=torch.channels_last)
        found = run(case, getattr(cuda_ops, case.operator), on_device)
        error, where = worst_error(found, expected)
    except RuntimeError as failure:  # a launch that failed, memory that ended
        error, where = math.inf, str(failure).strip().splitlines()[0]
    native = library.has_kernel(case.operator, device)
    return row | {"error": error, "where": where, "passed": error < TOLERANCES[dtype] and native}


def main() -> int:
    """Prints a line a comparison; returns 8 if one failed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda", choices=["cpu", "cuda"])
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    rows = []
    for case in CASES:
        for dtype in TOLERANCES:
            if options.small and case.large:
                continue
            row = compare(case, dtype, options.device)
            rows.append(row)
            verdict = "ok    " if row["passed"] else "FAILED"
            print(f"{verdict} {row['operator']}, {row['case']}, {row['dtype']} ({row['backend']}): "
                  f"{row['error']:.1e} in {row['where']}", flush=True)  # fmt: skip
            if options.json:  # now, for it may be cut short
                options.json.write_text(json.dumps(rows, indent=1) + "\n")
    failed = sum(not row["passed"] for row in rows)
    print(f"{len(rows) - failed} of {len(rows)} comparisons passed")
    return 8 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
