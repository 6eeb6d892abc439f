"""deform_conv2d against other truths: reference, torchvision, conv2d, by hand, properties."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

pytest.importorskip("hypothesis")
pytest.importorskip("torchvision")
import torchvision
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import cuda_ops
from cuda_ops import library, reference
from tests.cuda_ops.shapes import SAME, SHAPES, Shape

pytestmark = pytest.mark.skipif(
    os.environ.get("SEGDEFORM_OPS") == "torchvision", reason="the native library is set aside"
)


def gradients(
    op: Callable[..., Tensor], shape: Shape, operands: dict[str, Tensor]
) -> dict[str, Tensor]:
    """The output and the gradient of every operand, for a fixed random output gradient."""
    leaves = {
        k: v.detach().clone(memory_format=torch.preserve_format).requires_grad_()
        for k, v in operands.items()
    }
    output = shape.call(op, leaves)
    generator = torch.Generator().manual_seed(1)
    output.backward(torch.randn(output.shape, generator=generator, dtype=torch.float64).to(output))
    found = {k: v.grad for k, v in leaves.items() if v.grad is not None}
    return found | {"output": output.detach()}


def assert_agree(ours: dict[str, Tensor], theirs: dict[str, Tensor], tolerance: float) -> None:
    assert ours.keys() == theirs.keys()
    for name, expected in theirs.items():
        error = (ours[name].double() - expected.double()).abs().max()
        scale = expected.double().abs().max().clamp(min=1e-12)
        assert error / scale < tolerance, f"{name}: relative error {error / scale:.2e}"


@pytest.fixture
def two_thread_counts() -> Iterator[tuple[int, int]]:
    before = torch.get_num_threads()
    yield 1, 2
    torch.set_num_threads(before)


def test_native_library_serves_the_cpu() -> None:
    assert cuda_ops.backend("cpu") == "native", library.cpu_library.reason


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize(
    "dtype, tolerance", [(torch.float64, 1e-10), (torch.float32, 1e-5)], ids=["f64", "f32"]
)
@pytest.mark.parametrize("op", [torchvision.ops.deform_conv2d, reference.deform_conv2d],
                         ids=["torchvision", "reference"])  # fmt: skip
def test_agrees_forward_and_backward(
    name: str, dtype: torch.dtype, tolerance: float, op: Callable[..., Tensor]
) -> None:
    shape = SHAPES[name]
    operands = shape.tensors(dtype)
    ours = gradients(cuda_ops.deform_conv2d, shape, operands)
    assert_agree(ours, gradients(op, shape, operands), tolerance)


@pytest.mark.parametrize("name", ["asymmetric", "c64_o129", "c129_o3", "depthwise", "many_groups"])
def test_every_instruction_set_agrees(name: str, instruction_set: str) -> None:
    shape = SHAPES[name]
    for dtype, tolerance in ((torch.float64, 1e-10), (torch.float32, 1e-5)):
        operands = shape.tensors(dtype)
        ours = gradients(cuda_ops.deform_conv2d, shape, operands)
        assert_agree(ours, gradients(reference.deform_conv2d, shape, operands), tolerance)


def test_an_unknown_instruction_set_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SEGDEFORM_CPU", "mmx")
    with pytest.raises(RuntimeError, match="SEGDEFORM_CPU"):
        Shape().call(cuda_ops.deform_conv2d, Shape().tensors(torch.float32))


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_agrees_on_drawn_shapes(data: st.DataObject) -> None:
    pair = st.tuples(st.integers(1, 3), st.integers(1, 3))
    offset_groups, groups = data.draw(st.integers(1, 3)), data.draw(st.integers(1, 3))
    factor = data.draw(st.integers(1, 7))
    shape = Shape(
        batch=data.draw(st.integers(1, 3)),
        channels=6 * factor if (offset_groups, groups) != (1, 1) else factor,
        size=(data.draw(st.integers(5, 9)), data.draw(st.integers(5, 9))),
        outputs=groups * data.draw(st.integers(1, 9)),
        kernel=data.draw(pair),
        stride=data.draw(pair),
        padding=(data.draw(st.integers(0, 3)), data.draw(st.integers(0, 3))),
        dilation=(data.draw(st.integers(1, 2)), data.draw(st.integers(1, 2))),
        groups=groups,
        offset_groups=offset_groups,
        modulated=data.draw(st.booleans()),
    )
    operands = shape.tensors(torch.float64, seed=data.draw(st.integers(0, 9)))
    ours = gradients(cuda_ops.deform_conv2d, shape, operands)
    assert_agree(ours, gradients(reference.deform_conv2d, shape, operands), 1e-10)


def test_golden_case_by_hand() -> None:
    # One channel, one 1x2 kernel. Left tap samples (0.5, 0.25), right tap (1, 3) half outside.
    image = torch.tensor([[[[1.0, 2.0, 4.0], [3.0, 6.0, 8.0]]]])
    offset = torch.tensor([0.5, 0.25, 1.0, 1.5]).reshape(1, 4, 1, 1)
    weight = torch.tensor([10.0, 100.0]).reshape(1, 1, 1, 2)
    mask = torch.tensor([1.0, 0.5]).reshape(1, 2, 1, 1)
    output = cuda_ops.deform_conv2d(
        image, offset, weight, bias=torch.tensor([7.0]), dilation=(1, 1), stride=(2, 2), mask=mask
    )
    left = 0.5 * (0.75 * 1 + 0.25 * 2) + 0.5 * (0.75 * 3 + 0.25 * 6)
    right = 0.5 * 8.0  # x = 2.5: half of the last column, half of the ring of zeros
    assert output.flatten().tolist() == pytest.approx([10 * left + 100 * 0.5 * right + 7])


@pytest.mark.parametrize("name", ["asymmetric", "c64_o129", "depthwise_strided", "many_groups"])
def test_zero_offset_is_a_convolution(name: str) -> None:
    shape = replace(SHAPES[name], modulated=False)
    operands = shape.tensors(torch.float64)
    operands["offset"].zero_()
    expected = F.conv2d(operands["input"], operands["weight"], operands["bias"], shape.stride,
                        shape.padding, shape.dilation, shape.groups)  # fmt: skip
    torch.testing.assert_close(shape.call(cuda_ops.deform_conv2d, operands), expected)


def test_integer_offset_is_a_shifted_convolution() -> None:
    shape = replace(SAME, modulated=False, offset_groups=1)
    operands = shape.tensors(torch.float64)
    operands["offset"][:, 0::2], operands["offset"][:, 1::2] = 2, -1  # dy, dx
    # Output (p, q) then sees rows p+1.. and columns q-2.. of the picture among zeros.
    among_zeros = F.pad(operands["input"], (2, 0, 0, 3))
    expected = F.conv2d(among_zeros, operands["weight"], operands["bias"])[:, :, 1:]
    torch.testing.assert_close(shape.call(cuda_ops.deform_conv2d, operands), expected)


def test_is_linear_in_the_mask() -> None:
    shape = replace(Shape(), batch=1)
    a, b = shape.tensors(torch.float64), shape.tensors(torch.float64, seed=1)
    a["bias"].zero_()
    parts = [shape.call(cuda_ops.deform_conv2d, a | {"mask": t["mask"]}) for t in (a, b)]
    both = shape.call(cuda_ops.deform_conv2d, a | {"mask": 2 * a["mask"] - 3 * b["mask"]})
    torch.testing.assert_close(both, 2 * parts[0] - 3 * parts[1])


def test_mask_of_ones_is_v1() -> None:
    v1 = Shape(modulated=False)
    operands = v1.tensors(torch.float64)
    ones = torch.ones(2, 3 * 6, *v1.out, dtype=torch.float64)
    assert torch.equal(
        v1.call(cuda_ops.deform_conv2d, operands),
        v1.call(cuda_ops.deform_conv2d, operands | {"mask": ones}),
    )


def test_backward_is_the_adjoint() -> None:
    shape = SHAPES["c16_o20"]
    operands = shape.tensors(torch.float64)
    operands["bias"].zero_()
    result = gradients(cuda_ops.deform_conv2d, shape, operands)
    generator = torch.Generator().manual_seed(1)
    y = torch.randn(result["output"].shape, generator=generator, dtype=torch.float64)
    product = (y * result["output"]).sum()
    for name in ("input", "weight"):
        torch.testing.assert_close((operands[name] * result[name]).sum(), product)


@pytest.mark.parametrize("name", ["asymmetric", "v1", "depthwise", "many_groups"])
def test_gradcheck(name: str) -> None:
    shape = replace(SHAPES[name], batch=1, size=(5, 4))
    if name == "depthwise":
        shape = replace(shape, channels=5, outputs=5, groups=5)
    if name == "many_groups":
        shape = replace(shape, channels=6, outputs=12, groups=3, offset_groups=2, size=(3, 4))
    operands = {k: v.requires_grad_() for k, v in shape.tensors(torch.float64).items()}

    def call(*values: Tensor) -> Tensor:
        return shape.call(cuda_ops.deform_conv2d, dict(zip(operands, values, strict=True)))

    assert torch.autograd.gradcheck(call, tuple(operands.values()))


def test_gradient_on_the_very_border_is_one_sided() -> None:
    # Zero offsets put the border taps at exactly -1 and H: value 0, derivative towards the image.
    shape = replace(SAME, modulated=True, offset_groups=2)
    operands = shape.tensors(torch.float64)
    operands["offset"].zero_()
    ours = gradients(cuda_ops.deform_conv2d, shape, operands)
    assert_agree(ours, gradients(torchvision.ops.deform_conv2d, shape, operands), 1e-12)
    assert ours["offset"][:, 0, 0].abs().max() > 0


def test_only_wanted_gradients_are_computed() -> None:
    shape = Shape()
    operands = shape.tensors(torch.float64)
    every = gradients(cuda_ops.deform_conv2d, shape, operands)
    for name in operands:
        leaves = {k: v.clone().requires_grad_(k == name) for k, v in operands.items()}
        output = shape.call(cuda_ops.deform_conv2d, leaves)
        generator = torch.Generator().manual_seed(1)
        output.backward(torch.randn(output.shape, generator=generator, dtype=torch.float64))
        torch.testing.assert_close(leaves[name].grad, every[name])
        assert all(v.grad is None for k, v in leaves.items() if k != name)


@pytest.mark.parametrize("name", ["c64_o129", "depthwise", "batch_33", "many_groups"])
def test_same_bits_for_any_thread_count_and_run(
    name: str, two_thread_counts: tuple[int, int]
) -> None:
    shape = replace(SHAPES[name], size=(31, 30))
    operands = shape.tensors(torch.float32)
    runs = []
    for threads in (*two_thread_counts, *two_thread_counts):
        torch.set_num_threads(threads)
        runs.append(gradients(cuda_ops.deform_conv2d, shape, operands))
    for other in runs[1:]:
        for key, value in runs[0].items():
            assert torch.equal(value, other[key]), key


def layouts(t: Tensor) -> dict[str, Tensor]:
    """The same values in other memory: channels-last, sliced, unaligned, permuted, expanded."""
    sliced = torch.zeros(*t.shape[:-1], 2 * t.shape[-1], dtype=t.dtype)
    sliced[..., ::2] = t
    storage = torch.zeros(t.numel() + 1, dtype=t.dtype)
    storage[1:] = t.flatten()
    found = {
        "sliced": sliced[..., ::2],
        "unaligned": storage[1:].reshape(t.shape),
        "permuted": t.movedim(0, -1).contiguous().movedim(-1, 0),
    }
    if t.dim() == 4:
        found["channels_last"] = t.contiguous(memory_format=torch.channels_last)
    return found


@pytest.mark.parametrize("name", ["asymmetric", "depthwise"])
def test_layout_changes_nothing(name: str) -> None:
    shape = SHAPES[name]
    operands = shape.tensors(torch.float64)
    expected = gradients(cuda_ops.deform_conv2d, shape, operands)
    for operand, value in operands.items():
        for kind, other in layouts(value).items():
            assert torch.equal(other, value)
            result = gradients(cuda_ops.deform_conv2d, shape, operands | {operand: other})
            for key, tensor in expected.items():
                torch.testing.assert_close(result[key], tensor, msg=f"{operand} {kind}: {key}")
    expanded = operands | {"input": operands["input"][:1].expand(2, -1, -1, -1)}
    copied = {k: v.clone() for k, v in expanded.items()}
    torch.testing.assert_close(
        shape.call(cuda_ops.deform_conv2d, expanded), shape.call(cuda_ops.deform_conv2d, copied)
    )


def test_output_follows_the_memory_format_of_the_input() -> None:
    operands = SAME.tensors(torch.float32)
    plain = SAME.call(cuda_ops.deform_conv2d, operands)
    last = operands | {"input": operands["input"].contiguous(memory_format=torch.channels_last)}
    assert plain.is_contiguous()
    assert SAME.call(cuda_ops.deform_conv2d, last).is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("dtype, tolerance", [(torch.bfloat16, 2e-2), (torch.float16, 3e-3)])
@pytest.mark.parametrize("offset_dtype", ["same", "float32"])
def test_low_precision_computes_in_float32(
    dtype: torch.dtype, tolerance: float, offset_dtype: str
) -> None:
    shape = SHAPES["c16_o20"]
    operands = shape.tensors(dtype)
    if offset_dtype == "float32":
        operands |= {k: shape.tensors(torch.float32)[k] for k in ("offset", "mask")}
    ours = gradients(cuda_ops.deform_conv2d, shape, operands)
    exact = gradients(reference.deform_conv2d, shape, {k: v.double() for k, v in operands.items()})
    for name, value in operands.items():
        assert ours[name].dtype == value.dtype
    assert ours["output"].dtype == dtype
    assert_agree(ours, exact, tolerance)
    # The output is the float32 result rounded once.
    float32 = shape.call(cuda_ops.deform_conv2d, {k: v.float() for k, v in operands.items()})
    assert torch.equal(ours["output"], float32.to(dtype))


def test_autocast_keeps_pixels_in_float32() -> None:
    shape = replace(SHAPES["c16_o20"], size=(9, 300))
    operands = shape.tensors(torch.float32)
    operands["offset"] += 200.3  # bfloat16 would round this to a whole pixel
    with torch.autocast("cpu", torch.bfloat16):
        ours = gradients(cuda_ops.deform_conv2d, shape, operands)
    assert ours["output"].dtype == torch.bfloat16
    assert ours["offset"].dtype == ours["input"].dtype == torch.float32
    assert_agree(ours, gradients(reference.deform_conv2d, shape, operands), 3e-2)


def test_empty_batch() -> None:
    shape = replace(Shape(), batch=0)
    result = gradients(cuda_ops.deform_conv2d, shape, shape.tensors(torch.float32))
    assert result["output"].shape == (0, shape.outputs, *shape.out)
    assert result["weight"].abs().max() == 0


def test_nan_coordinate_is_seen_and_contained() -> None:
    shape = replace(SAME, channels=4, outputs=3, offset_groups=2, size=(5, 6), batch=1)
    operands = shape.tensors(torch.float64)
    tap, group = 4, 1
    operands["offset"][0, group * 18 + 2 * tap + 1, 2, 3] = float("nan")
    ours = gradients(cuda_ops.deform_conv2d, shape, operands)
    assert ours["output"].isnan().sum() == 3 and ours["output"][0, :, 2, 3].isnan().all()
    at = ours["offset"].isnan().nonzero().tolist()
    assert at == [[0, group * 18 + 2 * tap, 2, 3], [0, group * 18 + 2 * tap + 1, 2, 3]]
    assert ours["mask"].isnan().nonzero().tolist() == [[0, group * 9 + tap, 2, 3]]
    lost = ours["weight"].isnan()
    assert lost[:, 2:, 1, 1].all() and lost.sum() == 3 * 2
    assert ours["input"].isfinite().all()
    expected = gradients(reference.deform_conv2d, shape, operands)
    for name, value in ours.items():
        torch.testing.assert_close(value, expected[name], equal_nan=True, msg=name)


@pytest.mark.parametrize("value", [float("inf"), -float("inf"), 1e30, -1e30])
def test_a_far_coordinate_counts_as_masked_out(value: float) -> None:
    shape = replace(SAME, batch=1, offset_groups=1)
    operands = shape.tensors(torch.float32)
    masked = {k: v.clone() for k, v in operands.items()}
    operands["offset"][0, 6, 1, 2] = value
    masked["mask"][0, 3, 1, 2] = 0
    ours = gradients(cuda_ops.deform_conv2d, shape, operands)
    expected = gradients(cuda_ops.deform_conv2d, shape, masked)
    for name in ("output", "input", "weight", "bias"):
        torch.testing.assert_close(ours[name], expected[name])
    assert ours["offset"][0, 6:8, 1, 2].abs().max() == 0


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("depthwise", [False, True])
def test_a_mask_that_is_no_number_is_seen_where_the_sample_is_zero(
    instruction_set: str, depthwise: bool, value: float
) -> None:
    """Outside the picture, at exactly -1 and inside: 0 * NaN is NaN, by the definition too."""
    shape = replace(SAME, channels=20, outputs=3, offset_groups=2, size=(5, 6), batch=1)
    if depthwise:
        shape = replace(shape, groups=20, outputs=20)
    operands = shape.tensors(torch.float64)
    operands["offset"][0, 18 + 8, 2, 3] = 50.0  # the second group's tap 4 lies outside
    operands["mask"][0, 9 + 4, 2, 3] = value
    operands["offset"][0, 0:2, 0, 2] = 0.0  # the first group's tap 0 lies at y = -1
    operands["mask"][0, 0, 0, 2] = value
    ours = gradients(cuda_ops.deform_conv2d, shape, operands)
    for row, column, channels in ((1, 1, slice(10, 20)), (0, 0, slice(0, 10))):
        taps = ours["weight"][:, :, row, column].reshape(-1)
        lost = taps[channels] if depthwise else ours["weight"][:, channels, row, column]
        assert lost.isnan().all()
    if value != value:  # an infinite mask times a corner of weight 0 is not defined by rule
        expected = gradients(reference.deform_conv2d, shape, operands)
        for name in ("output", "weight", "bias", "mask"):
            torch.testing.assert_close(ours[name], expected[name], equal_nan=True, msg=name)


def far_too_large_to_copy(dtype: torch.dtype) -> tuple[Tensor, ...]:
    """Operands of a convolution with one output pixel, whose picture no memory could hold twice."""
    channels, side = 2**20, 2**14
    image = torch.ones((), dtype=dtype).expand(1, channels, side, side)
    weight = torch.ones((), dtype=dtype).expand(3, channels, 1, 1)
    return image, torch.zeros(1, 2, 1, 1), weight


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_the_gradient_of_the_bias_alone_looks_at_nothing_else(dtype: torch.dtype) -> None:
    image, offset, weight = far_too_large_to_copy(dtype)
    bias = torch.zeros(3, dtype=dtype, requires_grad=True)
    geometry = ((2**14, 2**14), (0, 0), (1, 1), 1, 1)
    grad = torch.tensor([1.0, -2.0, 5.0], dtype=dtype).reshape(1, 3, 1, 1)
    found = torch.ops.segdeform.deform_conv2d_backward(
        grad, image, offset, weight, None, *geometry, False, False, False, True, False
    )
    assert torch.equal(found[3], grad.flatten()) and found[3].dtype == bias.dtype
    assert [g.shape for g in (*found[:3], found[4])] == [(0,)] * 4


HOSTILE = """
import itertools, torch
from cuda_ops import deform_conv2d
values = [float("nan"), float("inf"), -float("inf"), 1e30, -1e30, 3e9, -2147483648.0, 1e-45, -1.0]
for v2, groups, value in itertools.product((False, True), (1, 8), values):
    for name in ("input", "offset", "weight", "mask"):
        t = dict(input=torch.randn(2, 8, 7, 6), offset=torch.randn(2, 36, 7, 6),
                 weight=torch.randn(8, 8 // groups, 3, 3), mask=torch.rand(2, 18, 7, 6))
        if not v2: t["mask"] = None
        if t[name] is None: continue
        flat = t[name].view(-1)
        flat[torch.randperm(flat.numel())[: flat.numel() // 3]] = value
        leaves = {k: v.requires_grad_() for k, v in t.items() if v is not None}
        deform_conv2d(**leaves, padding=1).sum().backward()
print("survived")
"""


def test_no_value_crashes(instruction_set: str) -> None:
    done = subprocess.run([sys.executable, "-c", HOSTILE], capture_output=True, text=True)
    assert done.stdout.strip() == "survived", done.stderr


@pytest.mark.parametrize(
    "change, message",
    [
        ({"offset": torch.zeros(2, 35, 5, 7)}, "multiple of 2"),
        ({"offset": torch.zeros(2, 36, 4, 7)}, r"offset must have shape \(2, 36, 5, 7\)"),
        ({"mask": torch.zeros(2, 17, 5, 7)}, r"mask must have shape \(2, 18, 5, 7\)"),
        ({"bias": torch.zeros(5)}, "bias must have shape"),
        ({"weight": torch.zeros(4, 4, 3, 2)}, "does not divide C = 6"),
        ({"input": torch.zeros(6, 9, 8)}, "input must have 4 dimensions"),
        ({"offset": torch.zeros(2, 48, 5, 7)}, "4 groups do not divide C = 6"),
    ],
)
def test_wrong_shapes_are_named(change: dict[str, Tensor], message: str) -> None:
    shape = replace(Shape(), stride=(1, 1), dilation=(1, 1), size=(5, 8), padding=(1, 0))
    with pytest.raises(ValueError, match=message):
        shape.call(cuda_ops.deform_conv2d, shape.tensors(torch.float32) | change)


def test_wrong_dtypes_are_named() -> None:
    operands = Shape().tensors(torch.float32)
    with pytest.raises(TypeError, match="float64"):
        Shape().call(cuda_ops.deform_conv2d, operands | {"weight": operands["weight"].double()})


def test_second_derivative_is_refused() -> None:
    operands = {k: v.requires_grad_() for k, v in Shape().tensors(torch.float64).items()}
    output = Shape().call(cuda_ops.deform_conv2d, operands)
    (first,) = torch.autograd.grad(output.square().sum(), operands["input"], create_graph=True)
    with pytest.raises(RuntimeError, match="no second derivative"):
        first.sum().backward()


def test_forward_mode_is_refused_not_taken_for_zero() -> None:
    shape = SHAPES["asymmetric"]
    operands = shape.tensors(torch.float64)

    def of_input(value: Tensor) -> Tensor:
        return shape.call(cuda_ops.deform_conv2d, operands | {"input": value})

    image = operands["input"]
    with pytest.raises(RuntimeError, match="no forward-mode derivative"):
        torch.func.jvp(of_input, (image,), (torch.ones_like(image),))


@pytest.mark.parametrize("name", ["asymmetric", "v1", "depthwise"])
def test_opcheck(name: str) -> None:
    shape = SHAPES[name]
    for memory_format in (torch.contiguous_format, torch.channels_last):
        t = {k: v.requires_grad_() for k, v in shape.tensors(torch.float64).items()}
        image = t["input"].detach().contiguous(memory_format=memory_format).requires_grad_()
        geometry = (shape.stride, shape.padding, shape.dilation, shape.groups, shape.offset_groups)
        args = (image, t["offset"], t["weight"], t["bias"], t.get("mask"), *geometry)
        torch.library.opcheck(torch.ops.segdeform.deform_conv2d.default, args)
        grad = torch.randn_like(torch.ops.segdeform.deform_conv2d(*args))
        args = (grad, image, t["offset"], t["weight"], t.get("mask"), *geometry)
        args = tuple(a.detach() if isinstance(a, Tensor) else a for a in args)
        needs = (True, True, True, True, "mask" in t)
        torch.library.opcheck(torch.ops.segdeform.deform_conv2d_backward.default, (*args, *needs))


def test_compiles_without_a_graph_break() -> None:
    shape = SHAPES["c16_o20"]
    operands = shape.tensors(torch.float32)
    eager = gradients(cuda_ops.deform_conv2d, shape, operands)
    compiled = torch.compile(cuda_ops.deform_conv2d, fullgraph=True, backend="aot_eager")
    assert_agree(gradients(compiled, shape, operands), eager, 1e-6)
