"""The deformable convolution made of standard operators, against its definition."""

from __future__ import annotations

import pytest
import torch

from cuda_ops import reference
from segdeform.export.operator import by_grid_sample
from tests.cuda_ops.shapes import SHAPES


@pytest.mark.parametrize("name", SHAPES)
def test_standard_operators_compute_the_definition(name: str) -> None:
    shape = SHAPES[name]
    operands = shape.tensors(torch.float64)
    truth = reference.deform_conv2d(**operands, **shape.geometry)
    found = by_grid_sample(
        operands["input"],
        operands["offset"],
        operands["weight"],
        operands.get("bias"),
        shape.stride,
        shape.padding,
        shape.dilation,
        operands.get("mask"),
    )
    torch.testing.assert_close(found, truth, rtol=1e-9, atol=1e-9)
