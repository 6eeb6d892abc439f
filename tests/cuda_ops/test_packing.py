"""A weight packed once for many calls in inference: the same bits, and no change goes unseen."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

import cuda_ops
from cuda_ops.packing import WeightPacking
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
    with WeightPacking().lend(operands["input"], operands["weight"], shape.groups) as memory:
        torch.library.opcheck(call, (*tensors, memory, *geometry))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize(
    "part", [..., (slice(None), 1), (slice(None), slice(1, None, 2)), (slice(0, 2),)], ids=str
)
def test_signs_that_turn_together_are_seen(
    dtype: torch.dtype, layout: torch.memory_format, part: object
) -> None:
    shape = SHAPES["c16_o20"]
    operands = shape.tensors(dtype)
    operands["weight"] = operands["weight"].contiguous(memory_format=layout)
    packing = WeightPacking()
    _packed(operands, shape, packing)
    operands["weight"][part].neg_()
    wanted = cuda_ops.deform_conv2d(**operands, **shape.geometry)
    assert torch.equal(_packed(operands, shape, packing), wanted)


def test_threads_that_share_a_packing_get_their_own_results() -> None:
    """Under two precisions one layer has two weights; neither may read what the other packs."""
    shape = replace(SHAPES["c64_o129"], channels=128, size=(12, 12))
    operands = shape.tensors(torch.float32)
    packing, threads = WeightPacking(), torch.get_num_threads()
    torch.set_num_threads(1)
    weights = [operands["weight"], operands["weight"].bfloat16().float()]
    wanted = [
        cuda_ops.deform_conv2d(**operands | {"weight": weight}, **shape.geometry)
        for weight in weights
    ]

    def call(number: int) -> bool:
        weight = weights[number % 2]
        found = _packed(operands | {"weight": weight}, shape, packing)
        return torch.equal(found, wanted[number % 2])

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(call, range(60)))
    torch.set_num_threads(threads)


def test_what_is_no_plain_tensor_leaves_the_packing_alone() -> None:
    shape, packing = SHAPES["asymmetric"], WeightPacking()
    operands = shape.tensors(torch.float32)
    with FakeTensorMode(allow_non_fake_inputs=True):
        assert _packed(operands, shape, packing).shape == (2, 4, *shape.out)
    wanted = cuda_ops.deform_conv2d(**operands, **shape.geometry)
    found = _packed(operands, shape, packing)
    assert type(found) is Tensor and torch.equal(found, wanted)
    batch = {k: v[None].expand(3, *v.shape) for k, v in operands.items()}
    mapped = torch.vmap(lambda given: _packed(given, shape, packing))(batch)
    assert torch.equal(mapped, wanted.expand(3, *wanted.shape))
