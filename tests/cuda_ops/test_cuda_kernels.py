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
from tests.cuda_ops.shapes import EVERY, SAME, Shape
from tests.cuda_ops.test_deform_conv2d import far_too_large_to_copy

NAMES = ("input", "offset", "weight", "bias", "mask")
ALL = (True, True, True, True, True)


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
    leaves = {k: v.double().clone().requires_grad_() for k, v in operands.items()}
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


@pytest.mark.parametrize("name", ["vectors", "odd", "depthwise_vectors", "c129_o3"])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.bfloat16, 2e-2), (torch.float16, 3e-3)])
def test_backward_in_half_precision(
    host_shim: Any,  # noqa: F811
    name: str,
    dtype: torch.dtype,
    tolerance: float,
) -> None:
    operands = EVERY[name].tensors(dtype) | {
        k: v for k, v in EVERY[name].tensors(torch.float32).items() if k in ("offset", "mask")
    }
    ours = backward(host_shim, EVERY[name], operands)
    assert {k: v.dtype for k, v in ours.items()} == {k: v.dtype for k, v in operands.items()}
    assert_gradients_agree(ours, expected_backward(EVERY[name], operands), tolerance)


# Bytes that force chunks of pixels, of images, of whole groups, of parts of a group, of one vector.
@pytest.mark.parametrize("limit", [1, 2000, 20_000, 60_000, 200_000])
@pytest.mark.parametrize("name", ["asymmetric", "vectors", "odd", "c129_o3", "depthwise_strided"])
def test_a_small_workspace_changes_nothing(
    host_shim: Any,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    limit: int,
) -> None:
    shape = EVERY[name]
    if name == "c129_o3":
        shape = replace(shape, size=(3, 3), channels=33)
    operands = shape.tensors(torch.float64)
    monkeypatch.setenv("SEGDEFORM_CUDA_WORKSPACE", str(limit))
    ours = forward(host_shim, shape, operands)
    assert relative_error(ours, expected_forward(shape, operands)) < 1e-12
    found = backward(host_shim, shape, operands)
    assert_gradients_agree(found, expected_backward(shape, operands), 1e-12)
    without_input = backward(host_shim, shape, operands, (False, True, True, True, True))
    assert_gradients_agree(without_input, expected_backward(shape, operands), 1e-12)


@pytest.mark.parametrize("name", ["asymmetric", "vectors", "depthwise"])
def test_each_gradient_alone(host_shim: Any, name: str) -> None:  # noqa: F811
    operands = EVERY[name].tensors(torch.float64)
    expected = expected_backward(EVERY[name], operands)
    for i, wanted in enumerate(NAMES):
        needs = tuple(j == i for j in range(5))
        ours = backward(host_shim, EVERY[name], operands, needs)
        assert ours.keys() == {wanted}
        assert_gradients_agree(ours, expected, 1e-12)


@pytest.mark.parametrize("name", ["vectors", "odd", "depthwise_vectors"])
def test_same_bits_in_any_order_of_threads_and_blocks(
    host_shim: Any,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
    name: str,
) -> None:
    operands = EVERY[name].tensors(torch.float32)
    runs = []
    for seed in SEEDS:
        monkeypatch.setenv("SEGDEFORM_SHIM_SEED", seed)
        found = backward(host_shim, EVERY[name], operands)
        runs.append(found | {"output": forward(host_shim, EVERY[name], operands)})
    for other in runs[1:]:
        for key, value in runs[0].items():
            assert torch.equal(value, other[key]), key


def layouts(t: Tensor) -> dict[str, Tensor]:
    storage = torch.zeros(t.numel() + 1, dtype=t.dtype)
    storage[1:] = t.flatten()
    found = {
        "unaligned": storage[1:].reshape(t.shape),
        "permuted": t.movedim(0, -1).contiguous().movedim(-1, 0),
    }
    if t.dim() == 4:
        found["channels_last"] = t.contiguous(memory_format=torch.channels_last)
        last = torch.zeros(t.numel() + 1, dtype=t.dtype)
        last[1:] = t.permute(0, 2, 3, 1).flatten()
        n, c, h, w = t.shape
        found["unaligned_channels_last"] = last[1:].reshape(n, h, w, c).permute(0, 3, 1, 2)
    return found


@pytest.mark.parametrize("name", ["vectors", "depthwise_vectors", "depthwise_pointwise"])
def test_layout_changes_nothing(host_shim: Any, name: str) -> None:  # noqa: F811
    shape = replace(EVERY[name], batch=1)
    operands = shape.tensors(torch.float32)
    expected = expected_backward(shape, operands)
    output = expected_forward(shape, operands)
    for operand, value in operands.items():
        for kind, other in layouts(value).items():
            changed = operands | {operand: other}
            ours = forward(host_shim, shape, changed)
            assert relative_error(ours, output) < 1e-5, (operand, kind)
            last = operand == "input" and "channels_last" in kind
            assert ours.is_contiguous(
                memory_format=torch.channels_last if last else torch.contiguous_format
            )
            assert_gradients_agree(backward(host_shim, shape, changed), expected, 1e-5)


def test_empty_batch(host_shim: Any) -> None:  # noqa: F811
    for name in ("asymmetric", "depthwise"):
        shape = replace(EVERY[name], batch=0)
        operands = shape.tensors(torch.float32)
        assert forward(host_shim, shape, operands).shape == (0, shape.outputs, *shape.out)
        ours = backward(host_shim, shape, operands)
        assert {k: v.shape for k, v in ours.items()} == {k: v.shape for k, v in operands.items()}
        assert ours["weight"].abs().max() == 0 and ours["bias"].abs().max() == 0


@pytest.mark.parametrize("depthwise", [False, True])
@pytest.mark.parametrize("axis", [0, 1])
def test_nan_coordinate_is_seen_and_contained(host_shim: Any, depthwise: bool, axis: int) -> None:  # noqa: F811
    shape = replace(SAME, channels=4, outputs=3, offset_groups=2, size=(5, 6), batch=1)
    if depthwise:
        shape = replace(shape, groups=4, outputs=4)
    operands = shape.tensors(torch.float64)
    tap, group = 4, 1
    operands["offset"][0, group * 18 + 2 * tap + axis, 2, 3] = float("nan")
    ours = backward(host_shim, shape, operands)
    output = forward(host_shim, shape, operands)
    reached = [2, 3] if depthwise else [0, 1, 2]
    assert sorted({i for _, i, p, q in output.isnan().nonzero().tolist()}) == reached
    assert {(p, q) for _, _, p, q in output.isnan().nonzero().tolist()} == {(2, 3)}
    at = ours["offset"].isnan().nonzero().tolist()
    assert at == [[0, group * 18 + 2 * tap, 2, 3], [0, group * 18 + 2 * tap + 1, 2, 3]]
    assert ours["mask"].isnan().nonzero().tolist() == [[0, group * 9 + tap, 2, 3]]
    assert ours["input"].isfinite().all()
    expected = expected_backward(shape, operands) | {"output": expected_forward(shape, operands)}
    for name, value in (ours | {"output": output}).items():
        torch.testing.assert_close(value, expected[name], equal_nan=True, msg=name)


@pytest.mark.parametrize("value", [float("inf"), -float("inf"), 1e30, -1e30])
def test_a_far_coordinate_counts_as_masked_out(host_shim: Any, value: float) -> None:  # noqa: F811
    shape = replace(SAME, batch=1, offset_groups=1)
    operands = shape.tensors(torch.float32)
    masked = {k: v.clone() for k, v in operands.items()}
    operands["offset"][0, 6, 1, 2] = value
    masked["mask"][0, 3, 1, 2] = 0
    ours, expected = (backward(host_shim, shape, t) for t in (operands, masked))
    for name in ("input", "weight", "bias"):
        torch.testing.assert_close(ours[name], expected[name])
    assert torch.equal(forward(host_shim, shape, operands), forward(host_shim, shape, masked))
    assert ours["offset"][0, 6:8, 1, 2].abs().max() == 0


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_gradient_on_the_very_border_is_one_sided(host_shim: Any, dtype: torch.dtype) -> None:  # noqa: F811
    # Zero offsets put the border taps at exactly -1 and H: value 0, derivative towards the image.
    shape = replace(SAME, modulated=True, offset_groups=2)
    operands = shape.tensors(dtype)
    operands["offset"].zero_()
    ours = backward(host_shim, shape, operands)
    assert_gradients_agree(ours, expected_backward(shape, operands), 1e-5)
    assert ours["offset"][:, 0, 0].abs().max() > 0


def test_an_infinite_pixel_reaches_no_sample_that_is_zero_by_rule(host_shim: Any) -> None:  # noqa: F811
    # At exactly -1 the corners in the image have weight 0, and 0 * inf would be NaN.
    shape = replace(SAME, batch=1, offset_groups=1, channels=2, outputs=2)
    operands = shape.tensors(torch.float64)
    operands["offset"].zero_()
    operands["offset"][0, 0::2, 0] = -0.0
    operands["input"][0, :, 0, 0] = float("inf")
    ours = [forward(ops, shape, operands) for ops in (host_shim, torch.ops.segdeform)]
    torch.testing.assert_close(*ours, equal_nan=True)
    needs = (False, False, True, False, False)
    ours = [backward(o, shape, operands, needs)["weight"] for o in (host_shim, torch.ops.segdeform)]
    torch.testing.assert_close(*ours, equal_nan=True)


def test_hostile_values_address_nothing(host_shim: Any) -> None:  # noqa: F811
    shape = replace(SAME, channels=8, outputs=8, offset_groups=2, size=(4, 3))
    values = [float("nan"), float("inf"), -float("inf"), 1e30, 3e9, -2147483648.0, 1e-45, -1.0]
    generator = torch.Generator().manual_seed(0)
    for value in values:
        for name in ("input", "offset", "mask"):
            operands = shape.tensors(torch.float64)
            flat = operands[name].view(-1)
            chosen = torch.randperm(flat.numel(), generator=generator)[: flat.numel() // 3]
            flat[chosen] = value
            ours = forward(host_shim, shape, operands)
            theirs = forward(torch.ops.segdeform, shape, operands)
            torch.testing.assert_close(ours, theirs, equal_nan=True, rtol=1e-9, atol=1e-9)
            backward(host_shim, shape, operands)


@pytest.mark.parametrize("depthwise", [False, True])
def test_a_mask_that_is_no_number_is_seen_where_the_sample_is_zero(
    host_shim: Any,  # noqa: F811
    depthwise: bool,
) -> None:
    shape = replace(SAME, channels=4, outputs=3, offset_groups=2, size=(5, 6), batch=1)
    if depthwise:
        shape = replace(shape, groups=4, outputs=4)
    operands = shape.tensors(torch.float64)
    operands["offset"][0, 18 + 8, 2, 3] = 50.0  # the second group's tap 4 lies outside
    operands["mask"][0, 9 + 4, 2, 3] = float("nan")
    operands["offset"][0, 0:2, 0, 2] = 0.0  # the first group's tap 0 lies at y = -1
    operands["mask"][0, 0, 0, 2] = float("nan")
    ours = backward(host_shim, shape, operands) | {"output": forward(host_shim, shape, operands)}
    expected = expected_backward(shape, operands) | {"output": expected_forward(shape, operands)}
    assert expected["weight"].isnan().sum() == (4 if depthwise else 12)
    for name in ("output", "weight", "bias", "mask"):
        torch.testing.assert_close(ours[name], expected[name], equal_nan=True, msg=name)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("groups", [1, 2, 12])
def test_half_precision_is_rounded_once_with_the_bias(
    host_shim: Any,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
    dtype: torch.dtype,
    groups: int,
) -> None:
    """Products that are no numbers of the dtype, and biases that make some of their sums such."""
    step = 2 / torch.finfo(dtype).eps  # from here on the dtype knows even numbers alone
    shape = replace(SAME, kernel=(1, 1), padding=(0, 0), channels=12, outputs=24, groups=groups,
                    offset_groups=1, modulated=False, size=(6, 9))  # fmt: skip
    if groups == 12:
        shape = replace(shape, outputs=12)
    operands = {k: torch.zeros_like(v) for k, v in shape.tensors(torch.float32).items()}
    pixels = torch.arange(shape.size[0] * shape.size[1]).reshape(shape.size) % 2
    operands["input"][:, :: 12 // groups] = 1.0
    operands["input"][:, 1 :: 12 // groups] = pixels.float()
    operands["weight"][:, 0] = step
    operands["weight"][:, 1:2] = 1.0  # a product of step, or of step + 1 which the dtype lacks
    operands["bias"] = torch.arange(shape.outputs).float() % 3 - 1
    exact = expected_forward(shape, operands)
    assert groups == 12 or not torch.equal(exact, exact.to(dtype).double())
    low = {k: v if k == "offset" else v.to(dtype) for k, v in operands.items()}
    assert all(torch.equal(low[k].double(), v.double()) for k, v in operands.items())
    for limit in ("100000000", "1500"):  # in one chunk, and in several
        monkeypatch.setenv("SEGDEFORM_CUDA_WORKSPACE", limit)
        assert torch.equal(forward(host_shim, shape, low), exact.to(dtype))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_gradient_of_the_bias_alone_looks_at_nothing_else(
    host_shim: Any,  # noqa: F811
    dtype: torch.dtype,
) -> None:
    image, offset, weight = far_too_large_to_copy(dtype)
    geometry = ((2**14, 2**14), (0, 0), (1, 1), 1, 1)
    grad = torch.tensor([1.0, -2.0, 5.0], dtype=dtype).reshape(1, 3, 1, 1)
    found = host_shim.deform_conv2d_backward(
        grad, image, offset, weight, None, *geometry, False, False, False, True, False
    )
    assert torch.equal(found[3], grad.flatten()) and found[3].dtype == dtype


@pytest.mark.parametrize("text", ["64MB", "64 MiB", " 64", "1e8", "", "-5", "0", "9" * 30])
def test_a_workspace_that_is_no_number_of_bytes_is_refused(
    host_shim: Any,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
    text: str,
) -> None:
    monkeypatch.setenv("SEGDEFORM_CUDA_WORKSPACE", text)
    shape = EVERY["asymmetric"]
    with pytest.raises(RuntimeError, match=f"WORKSPACE is '{text}'; it takes a number of bytes"):
        forward(host_shim, shape, shape.tensors(torch.float32))


def test_wrong_dtypes_are_refused(host_shim: Any) -> None:  # noqa: F811
    operands = Shape().tensors(torch.float32)
    with pytest.raises(RuntimeError, match="share a dtype"):
        forward(host_shim, Shape(), operands | {"weight": operands["weight"].double()})
    with pytest.raises(RuntimeError, match="floating dtypes"):
        forward(host_shim, Shape(), {k: v.long() for k, v in operands.items()})
