"""The CUDA kernels of deform_conv2d as host code (host_shim.h) against the reference.

The same sources that nvcc compiles run here on tiny shapes, blocks and threads in random order.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from cuda_ops import reference
from tests.cuda_ops.host_shim import SEEDS, host_shim  # noqa: F401
from tests.cuda_ops.shapes import SAME, SHAPES, Shape

NAMES = ("input", "offset", "weight", "bias", "mask")
ALL = (True, True, True, True, True)

# Beside those of the CPU tests: vectors of 16 bytes fit, or do not, in many ways.
MORE = {
    "vectors": replace(SAME, channels=64, outputs=24, groups=2, offset_groups=2, size=(5, 7)),
    "pieces_across_groups": Shape(channels=48, outputs=6, groups=2, offset_groups=3, size=(7, 6)),
    "odd": Shape(channels=35, outputs=10, groups=5, offset_groups=7),
    "more_than_a_slice": replace(SAME, channels=272, outputs=2, groups=1, offset_groups=1,
                                 size=(4, 3), batch=1),
    "depthwise_vectors": replace(SAME, channels=32, outputs=32, groups=32, offset_groups=2),
    "depthwise_two_maps": replace(SAME, channels=6, outputs=12, groups=6, offset_groups=3),
}  # fmt: skip
EVERY = SHAPES | MORE


def arguments(shape: Shape) -> tuple[Any, ...]:
    return (shape.stride, shape.padding, shape.dilation, shape.groups, shape.offset_groups)


def forward(ops: Any, shape: Shape, operands: dict[str, Tensor]) -> Tensor:
    result: Tensor = ops.deform_conv2d(*(operands.get(n) for n in NAMES), *arguments(shape))
    return result


def relative_error(ours: Tensor, expected: Tensor) -> float:
    assert ours.shape == expected.shape
    difference = (ours.double() - expected.double()).norm()
    return float(difference / expected.double().norm().clamp(min=1e-300))


def expected_forward(shape: Shape, operands: dict[str, Tensor]) -> Tensor:
    return shape.call(reference.deform_conv2d, {k: v.double() for k, v in operands.items()})


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
def test_forward(host_shim: Any, name: str, dtype: torch.dtype, tolerance: float) -> None:  # noqa: F811
    operands = EVERY[name].tensors(dtype)
    ours = forward(host_shim, EVERY[name], operands)
    assert ours.dtype == dtype and ours.is_contiguous()
    assert relative_error(ours, expected_forward(EVERY[name], operands)) < tolerance


@pytest.mark.parametrize("name", ["vectors", "odd", "depthwise_vectors", "c129_o3"])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.bfloat16, 1e-2), (torch.float16, 2e-3)])
def test_forward_in_half_precision(
    host_shim: Any,  # noqa: F811
    name: str,
    dtype: torch.dtype,
    tolerance: float,
) -> None:
    operands = EVERY[name].tensors(dtype) | {
        k: v for k, v in EVERY[name].tensors(torch.float32).items() if k in ("offset", "mask")
    }
    ours = forward(host_shim, EVERY[name], operands)
    assert ours.dtype == dtype
    assert relative_error(ours, expected_forward(EVERY[name], operands)) < tolerance


def output_gradient(shape: Shape, dtype: torch.dtype) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    size = (shape.batch, shape.outputs, *shape.out)
    return torch.randn(size, generator=generator, dtype=torch.float64).to(dtype)


def backward(
    ops: Any, shape: Shape, operands: dict[str, Tensor], needs: tuple[bool, ...] = ALL
) -> dict[str, Tensor]:
    needs = (*needs[:4], needs[4] and "mask" in operands)
    given = [operands.get(n) for n in ("input", "offset", "weight", "mask")]
    grad = output_gradient(shape, operands["input"].dtype)
    found = ops.deform_conv2d_backward(grad, *given, *arguments(shape), *needs)
    return {n: t for n, t, needed in zip(NAMES, found, needs, strict=True) if needed}


def expected_backward(shape: Shape, operands: dict[str, Tensor]) -> dict[str, Tensor]:
    leaves = {k: v.double().requires_grad_() for k, v in operands.items()}
    grad = output_gradient(shape, operands["input"].dtype).double()
    shape.call(reference.deform_conv2d, leaves).backward(grad)
    return {k: v.grad for k, v in leaves.items() if v.grad is not None}


def assert_gradients_agree(
    ours: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float
) -> None:
    assert ours
    for name, value in ours.items():
        assert relative_error(value, expected[name]) < tolerance, name


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
def test_backward(host_shim: Any, name: str, dtype: torch.dtype, tolerance: float) -> None:  # noqa: F811
    operands = EVERY[name].tensors(dtype)
    ours = backward(host_shim, EVERY[name], operands)
    assert ours.keys() == operands.keys()
    assert_gradients_agree(ours, expected_backward(EVERY[name], operands), tolerance)
