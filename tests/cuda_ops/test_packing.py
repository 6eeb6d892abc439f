"""A weight packed once for many calls in inference: the same bits, and no change goes unseen."""

from __future__ import annotations

import os

import pytest
import torch
from torch import Tensor

import cuda_ops
from cuda_ops.deform_conv2d import WeightPacking
from tests.cuda_ops.shapes import SHAPES, Shape

pytestmark = pytest.mark.skipif(
    os.environ.get("SEGDEFORM_OPS") == "torchvision", reason="the native library is set aside"
)


def _packed(operands: dict[str, Tensor], shape: Shape, packing: WeightPacking) -> Tensor:
    with torch.no_grad():
        return cuda_ops.deform_conv2d(**operands, **shape.geometry, packing=packing)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", ["asymmetric", "c64_o129", "c129_o3", "depthwise", "many_groups"])
def test_a_kept_packing_changes_no_bit(name: str, dtype: torch.dtype, instruction_set: str) -> None:
    shape = SHAPES[name]
    operands = shape.tensors(dtype)
    with torch.no_grad():
        wanted = cuda_ops.deform_conv2d(**operands, **shape.geometry)
    packing = WeightPacking()
    for layout in (torch.contiguous_format, torch.channels_last, torch.contiguous_format):
        operands["weight"] = operands["weight"].contiguous(memory_format=layout)
        for _ in range(2):
            assert torch.equal(_packed(operands, shape, packing), wanted)


@pytest.mark.parametrize("kind", ["element", "data", "numpy", "other tensor", "sign of zero"])
def test_no_change_of_the_weight_escapes_a_kept_packing(kind: str) -> None:
    shape = SHAPES["c64_o129"]
    operands = shape.tensors(torch.float32)
    weight = operands["weight"]
    weight.view(-1)[-1] = 0.0
    packing = WeightPacking()
    before = _packed(operands, shape, packing)
    match kind:
        case "element":
            weight[-1, -1, -1, -1] += 1
        case "data":  # bumps no version counter
            weight.data.view(-1)[17] *= 2
        case "numpy":
            weight.numpy()[0, 0, 0, 0] += 1
        case "other tensor":
            operands["weight"] = weight.flip(0).contiguous()
        case "sign of zero":
            weight.view(-1)[-1] = -0.0
    wanted = cuda_ops.deform_conv2d(**operands, **shape.geometry)
    assert torch.equal(_packed(operands, shape, packing), wanted)
    assert kind == "sign of zero" or not torch.equal(before, wanted)


def test_a_packing_is_left_aside_where_gradients_are_wanted() -> None:
    shape = SHAPES["asymmetric"]
    operands = shape.tensors(torch.float64)
    operands["input"].requires_grad_()
    output = cuda_ops.deform_conv2d(**operands, **shape.geometry, packing=WeightPacking())
    (grad,) = torch.autograd.grad(output.sum(), operands["input"])
    assert grad.abs().sum() > 0


def test_a_packing_serves_inside_and_outside_of_inference_mode() -> None:
    shape, packing = SHAPES["asymmetric"], WeightPacking()
    operands = shape.tensors(torch.float32)
    wanted = _packed(operands, shape, WeightPacking())
    with torch.inference_mode():
        assert torch.equal(_packed(operands, shape, packing), wanted)
    operands["weight"] *= 2
    wanted = cuda_ops.deform_conv2d(**operands, **shape.geometry)
    assert torch.equal(_packed(operands, shape, packing), wanted)


def test_a_packing_too_small_is_refused() -> None:
    shape = SHAPES["asymmetric"]
    operands = shape.tensors(torch.float32)
    call = torch.ops.segdeform.deform_conv2d_packed
    geometry = [shape.stride, shape.padding, shape.dilation, shape.groups, shape.offset_groups]
    tensors = [operands[k] for k in ("input", "offset", "weight", "bias", "mask")]
    with pytest.raises(RuntimeError, match="packing has 8 elements"):
        call(*tensors, torch.zeros(8), *geometry)
    memory = WeightPacking().memory(operands["input"], operands["weight"], shape.groups)
    torch.library.opcheck(call, (*tensors, memory, *geometry))
