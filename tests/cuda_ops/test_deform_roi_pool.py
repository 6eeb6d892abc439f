"""RoI pooling against other truths: roi_align, slow loops over the definition, the reference."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

import cuda_ops
from cuda_ops import library, reference
from cuda_ops.layers import DeformRoIPool
from tests.cuda_ops.roi_cases import (
    CASES,
    PLAIN,
    SENSITIVE,
    SENSITIVE_CASE,
    Case,
    assert_agree,
    every_case,
    gradients,
)

native = pytest.mark.skipif(
    not library.has_kernel("deform_roi_pool", "cpu"), reason="the native library is set aside"
)


def ours(case: Case, operands: dict[str, Tensor | None]) -> dict[str, Tensor]:
    return gradients(lambda leaves: case.call(cuda_ops, leaves), operands)


def defined(case: Case, operands: dict[str, Tensor | None]) -> dict[str, Tensor]:
    return gradients(lambda leaves: case.call(reference, leaves), operands)


# ---- the definition once more, one number at a time ----


def between_pixels(plane: list[list[float]], y: float, x: float) -> float:
    """Bilinear interpolation at a point between the centres of the border pixels."""
    top, left = math.floor(y), math.floor(x)
    bottom, right = min(top + 1, len(plane) - 1), min(left + 1, len(plane[0]) - 1)
    ly, lx = y - top, x - left
    upper = plane[top][left] * (1 - lx) + plane[top][right] * lx
    lower = plane[bottom][left] * (1 - lx) + plane[bottom][right] * lx
    return upper * (1 - ly) + lower * ly


def clamp(value: float, size: int) -> float:
    return min(max(value, 0.0), size - 1.0)


def slow_deform_roi_pool(
    input: Tensor,
    rois: Tensor,
    offset: Tensor | None,
    output_size: tuple[int, int],
    scale: float,
    sampling_ratio: int,
    gamma: float,
) -> Tensor:
    (height, width), (ph, pw) = input.shape[2:], output_size
    output = torch.zeros(len(rois), input.shape[1], ph, pw, dtype=torch.float64)
    for r, (image, x1, y1, x2, y2) in enumerate(rois.tolist()):
        roi_w, roi_h = (x2 - x1) * scale, (y2 - y1) * scale
        rows = sampling_ratio or max(math.ceil(roi_h / ph), 0)
        columns = sampling_ratio or max(math.ceil(roi_w / pw), 0)
        for c, i, j in torch.cartesian_prod(*map(torch.arange, output.shape[1:])).tolist():
            plane = input[int(image), c].tolist()
            top, left = y1 * scale - 0.5 + i * roi_h / ph, x1 * scale - 0.5 + j * roi_w / pw
            if offset is not None:
                left += gamma * roi_w * offset[r, 0, i, j].item()
                top += gamma * roi_h * offset[r, 1, i, j].item()
            total = 0.0
            for a in range(rows):
                for b in range(columns):
                    y = top + (a + 0.5) * roi_h / ph / rows
                    x = left + (b + 0.5) * roi_w / pw / columns
                    if -1 <= y <= height and -1 <= x <= width:
                        total += between_pixels(plane, clamp(y, height), clamp(x, width))
            output[r, c, i, j] = total / max(rows * columns, 1)
    return output


def slow_ps_deform_roi_pool(
    input: Tensor,
    rois: Tensor,
    trans: Tensor | None,
    scale: float,
    output_channels: int,
    group_size: int,
    pooled_size: int,
    part_size: int,
    sample_per_part: int,
    trans_std: float,
) -> Tensor:
    height, width = input.shape[2:]
    output = torch.zeros(len(rois), output_channels, pooled_size, pooled_size, dtype=torch.float64)
    for r, (image, *corners) in enumerate(rois.tolist()):
        x1, y1, x2, y2 = (math.floor(v + 0.5) for v in corners)
        start_x, start_y = x1 * scale - 0.5, y1 * scale - 0.5
        roi_w = max((x2 + 1) * scale - 0.5 - start_x, 0.1)
        roi_h = max((y2 + 1) * scale - 0.5 - start_y, 0.1)
        bin_w, bin_h = roi_w / pooled_size, roi_h / pooled_size
        for c, i, j in torch.cartesian_prod(*map(torch.arange, output.shape[1:])).tolist():
            top, left = start_y + i * bin_h, start_x + j * bin_w
            if trans is not None:
                channels_each_class = output_channels // (trans.shape[1] // 2)
                k = c // channels_each_class
                part = (i * part_size // pooled_size, j * part_size // pooled_size)
                left += trans[r, 2 * k, *part].item() * trans_std * roi_w
                top += trans[r, 2 * k + 1, *part].item() * trans_std * roi_h
            gh, gw = i * group_size // pooled_size, j * group_size // pooled_size
            plane = input[int(image), (c * group_size + gh) * group_size + gw].tolist()
            values = []
            for a in range(sample_per_part):
                for b in range(sample_per_part):
                    y, x = top + a * bin_h / sample_per_part, left + b * bin_w / sample_per_part
                    if -0.5 <= y <= height - 0.5 and -0.5 <= x <= width - 0.5:
                        values.append(between_pixels(plane, clamp(y, height), clamp(x, width)))
            output[r, c, i, j] = sum(values) / len(values) if values else 0.0
    return output


SLOW = {PLAIN: slow_deform_roi_pool, SENSITIVE: slow_ps_deform_roi_pool}


@pytest.mark.parametrize(
    "name", ["adaptive", "fixed_samples", "no_offset", "one_pixel", "ps", "ps_no_trans",
             "ps_a_class_a_channel", "ps_group_1"]
)  # fmt: skip
@pytest.mark.parametrize("module", [cuda_ops, reference], ids=["ours", "reference"])
def test_agrees_with_slow_loops_over_the_definition(name: str, module: Any) -> None:
    case = CASES[name]
    operands = case.operands(torch.float64)
    expected = SLOW[case.op](*operands.values(), *case.numbers)
    assert expected.abs().max() > 0.1
    torch.testing.assert_close(case.call(module, operands), expected, rtol=0, atol=1e-12)


def test_golden_case_by_hand() -> None:
    # One RoI of 4x2 pixels from (0.5, 0.5), one bin, one sample: its centre (2, 1) in pixels.
    image = torch.tensor([[[[0.0, 1, 2, 3], [10, 11, 12, 13], [20, 21, 22, 23]]]])
    rois = torch.tensor([[0, 0.5, 0.5, 4.5, 2.5]])
    offset = torch.tensor([1.0, -2.0]).reshape(1, 2, 1, 1)  # 0.1 * 4 right, 0.2 * 2 up
    pooled = cuda_ops.deform_roi_pool(image, rois, offset, 1, sampling_ratio=1)
    assert pooled.item() == pytest.approx(2.4 + 10 * 0.6)
    assert cuda_ops.deform_roi_pool(image, rois, None, 1, sampling_ratio=1).item() == 12


@pytest.mark.parametrize("sampling_ratio", [0, 1, 3])
@pytest.mark.parametrize("channels", [1, 20, 129])
def test_without_offset_is_roi_align(sampling_ratio: int, channels: int) -> None:
    torchvision = pytest.importorskip("torchvision")
    case = Case(channels=channels, output_size=(7, 4), shifted=False, sampling_ratio=sampling_ratio)
    operands = case.operands(torch.float64)
    assert operands["rois"] is not None
    operands["rois"] = operands["rois"][[0, 1, 2, 3, 4, 6]]  # torchvision takes no reversed RoI

    def align(t: dict[str, Tensor | None]) -> Tensor:
        result: Tensor = torchvision.ops.roi_align(
            t["input"], t["rois"], case.output_size, case.scale, sampling_ratio, aligned=True
        )
        return result

    assert_agree(ours(case, operands), gradients(align, operands), 1e-12)
    zeros = torch.zeros(6, 2, *case.output_size, dtype=torch.float64)
    assert torch.equal(
        case.call(cuda_ops, operands), case.call(cuda_ops, operands | {"shifts": zeros})
    )


@every_case
@pytest.mark.parametrize(
    "dtype, tolerance", [(torch.float64, 1e-10), (torch.float32, 1e-5)], ids=["f64", "f32"]
)
def test_agrees_with_the_reference(name: str, dtype: torch.dtype, tolerance: float) -> None:
    operands = CASES[name].operands(dtype)
    assert_agree(ours(CASES[name], operands), defined(CASES[name], operands), tolerance)


@native
@pytest.mark.parametrize("name", ["c20", "c129", "ps_c129"])
def test_every_instruction_set_agrees(name: str, instruction_set: str) -> None:
    for dtype, tolerance in ((torch.float64, 1e-10), (torch.float32, 1e-5)):
        operands = CASES[name].operands(dtype)
        assert_agree(ours(CASES[name], operands), defined(CASES[name], operands), tolerance)


@pytest.mark.parametrize("name", ["adaptive", "fixed_samples", "ps", "ps_a_class_a_channel"])
def test_gradcheck(name: str) -> None:
    case = replace(CASES[name], batch=1, channels=CASES[name].classes, size=(5, 6))
    operands = case.operands(torch.float64)
    assert operands["rois"] is not None and operands["shifts"] is not None
    rois = torch.tensor([[0, 2.3, 1.7, 19.1, 13.2], [0, 9.6, 4.4, 31.8, 27.9]]).double()
    image, shifts = operands["input"], operands["shifts"][:2] / 8
    if case.op == SENSITIVE and case.classes == 6:
        case = replace(case, channels=6)
        image = case.operands(torch.float64)["input"]
    assert image is not None

    def call(image: Tensor, shifts: Tensor) -> Tensor:
        return case.call(cuda_ops, {"input": image, "rois": rois, "shifts": shifts})

    assert torch.autograd.gradcheck(call, (image.requires_grad_(), shifts.requires_grad_()))


def test_backward_is_the_adjoint() -> None:
    for case in (CASES["c20"], SENSITIVE_CASE):
        operands = case.operands(torch.float64)
        found = ours(case, operands)
        generator = torch.Generator().manual_seed(1)
        y = torch.randn(found["output"].shape, generator=generator, dtype=torch.float64)
        assert operands["input"] is not None
        torch.testing.assert_close(
            (operands["input"] * found["input"]).sum(), (y * found["output"]).sum()
        )


def test_offset_moves_bins_right_and_down() -> None:
    ramp = torch.arange(20.0, dtype=torch.float64).expand(1, 1, 20, 20)  # value = x
    rois = torch.tensor([[0, 4.0, 6.0, 12.0, 10.0]], dtype=torch.float64)
    offset = torch.zeros(1, 2, 2, 2, dtype=torch.float64)
    plain = cuda_ops.deform_roi_pool(ramp, rois, offset, 2)
    offset[0, 0, 1, 0] = 2.5  # 0.1 * 2.5 * width 8 = 2 pixels
    torch.testing.assert_close(
        cuda_ops.deform_roi_pool(ramp, rois, offset, 2) - plain,
        torch.tensor([[[[0.0, 0.0], [2.0, 0.0]]]], dtype=torch.float64),
    )
    offset[0, 1] = offset[0, 0] * 2  # 0.1 * 5 * height 4 = 2 pixels
    columns = ramp.transpose(2, 3)  # value = y
    moved = cuda_ops.deform_roi_pool(columns, rois, offset, 2)
    still = cuda_ops.deform_roi_pool(columns, rois, None, 2)
    assert (moved - still).flatten().tolist() == pytest.approx([0, 0, 2, 0])


@every_case
def test_only_wanted_gradients_are_computed(name: str) -> None:
    case = CASES[name]
    operands = case.operands(torch.float64)
    every = ours(case, operands)
    for wanted in every.keys() - {"output"}:
        leaves = {
            k: v if v is None else v.clone().requires_grad_(k == wanted)
            for k, v in operands.items()
        }
        output = case.call(cuda_ops, leaves)
        generator = torch.Generator().manual_seed(1)
        output.backward(torch.randn(output.shape, generator=generator, dtype=torch.float64))
        leaf = leaves[wanted]
        assert leaf is not None and leaf.grad is not None
        assert torch.equal(leaf.grad, every[wanted])
        assert all(v is None or v.grad is None for k, v in leaves.items() if k != wanted)


@native
def test_no_wanted_gradient_is_no_work() -> None:
    operands = Case().operands(torch.float64)
    grad = Case().call(cuda_ops, operands)
    empty = torch.ops.segdeform.deform_roi_pool_backward(
        grad, *operands.values(), *Case().numbers, False, False
    )
    assert [tuple(t.shape) for t in empty] == [(0,), (0,)]


@pytest.fixture
def two_thread_counts() -> Iterator[tuple[int, int]]:
    before = torch.get_num_threads()
    yield 1, 2
    torch.set_num_threads(before)


@native
@pytest.mark.parametrize("name", ["c64", "c129", "ps_c129", "ps_a_class_a_channel"])
def test_same_bits_for_any_thread_count_and_run(
    name: str, two_thread_counts: tuple[int, int]
) -> None:
    case = replace(CASES[name], size=(33, 30), output_size=(7, 7), scale=0.5)
    operands = case.operands(torch.float32)
    runs = []
    for threads in (*two_thread_counts, *two_thread_counts):
        torch.set_num_threads(threads)
        runs.append(ours(case, operands))
    for other in runs[1:]:
        for key, value in runs[0].items():
            assert torch.equal(value, other[key]), key


def layouts(t: Tensor) -> dict[str, Tensor]:
    """The same values in other memory: sliced, unaligned, permuted, channels-last."""
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


@pytest.mark.parametrize("name", ["adaptive", "ps"])
def test_layout_changes_nothing(name: str) -> None:
    case = CASES[name]
    operands = case.operands(torch.float64)
    expected = case.call(cuda_ops, operands)
    grad = torch.randn_like(expected)
    for operand, value in operands.items():
        assert value is not None
        for kind, other in layouts(value).items():
            leaf = other.detach().requires_grad_(operand != "rois")
            output = case.call(cuda_ops, operands | {operand: leaf})
            torch.testing.assert_close(output, expected, msg=f"{operand} {kind}")
            if leaf.requires_grad:
                output.backward(grad)
                plain = value.clone().requires_grad_()
                case.call(cuda_ops, operands | {operand: plain}).backward(grad)
                torch.testing.assert_close(leaf.grad, plain.grad, msg=f"{operand} {kind}")
    image = operands["input"]
    assert image is not None
    expanded = operands | {"input": image[:1].expand(3, -1, -1, -1)}
    copied = {k: v if v is None else v.clone() for k, v in expanded.items()}
    assert_agree(ours(case, expanded), ours(case, copied), 1e-14)


@pytest.mark.parametrize("name", ["adaptive", "ps"])
def test_output_follows_the_memory_format_of_the_input(name: str) -> None:
    case = CASES[name]
    operands = case.operands(torch.float32)
    image = operands["input"]
    assert image is not None and case.call(cuda_ops, operands).is_contiguous()
    last = image.contiguous(memory_format=torch.channels_last).requires_grad_()
    output = case.call(cuda_ops, operands | {"input": last})
    assert output.is_contiguous(memory_format=torch.channels_last)
    output.sum().backward()
    assert last.grad is not None
    assert last.grad.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("dtype, tolerance", [(torch.bfloat16, 2e-2), (torch.float16, 3e-3)])
@pytest.mark.parametrize("positions", ["same", "float32"])
@pytest.mark.parametrize("name", ["c20", "ps"])
def test_low_precision_computes_in_float32(
    name: str, dtype: torch.dtype, tolerance: float, positions: str
) -> None:
    case = CASES[name]
    operands = case.operands(dtype)
    if positions == "float32":
        operands |= {k: case.operands(torch.float32)[k] for k in ("rois", "shifts")}
    found = ours(case, operands)
    wide = {k: v if v is None else v.float() for k, v in operands.items()}
    assert_agree(found, defined(case, wide), tolerance)
    for key, value in (("output", operands["input"]), *operands.items()):
        assert value is not None and (key == "rois" or found[key].dtype == value.dtype)
    # The output is the float32 result rounded once.
    assert torch.equal(found["output"], case.call(cuda_ops, wide).to(dtype))


@pytest.mark.parametrize("name", ["c20", "ps"])
def test_autocast_keeps_positions_in_float32(name: str) -> None:
    case = replace(CASES[name], size=(11, 540), scale=1.0)
    operands = case.operands(torch.float32)
    rois = operands["rois"]
    assert rois is not None
    rois[:, 1:] *= 0.3
    rois[:, 1::2] += 500.3  # bfloat16 would round x by up to two pixels
    with torch.autocast("cpu", torch.bfloat16):
        found = ours(case, operands)
    assert found["output"].dtype == torch.bfloat16
    assert found["input"].dtype == found["shifts"].dtype == torch.float32
    assert_agree(found, defined(case, operands), 2e-2)
    rounded = operands | {"rois": rois.bfloat16().float()}
    with pytest.raises(AssertionError, match="relative error"):
        assert_agree(found, defined(case, rounded), 0.2)


@every_case
def test_no_rois(name: str) -> None:
    operands = {
        k: v if v is None or k == "input" else v[:0]
        for k, v in CASES[name].operands(torch.float64).items()
    }
    found = ours(CASES[name], operands)
    assert found["output"].shape[0] == 0 and found["input"].abs().max() == 0
    if (image := operands["input"]) is not None:
        found = ours(CASES[name], operands | {"input": image[:0]})
        assert found["input"].shape[0] == 0


# ---- values that nobody hopes for ----


@pytest.mark.parametrize("name", ["adaptive", "fixed_samples", "ps"])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("column", [1, 2, 3, 4])
def test_a_roi_that_is_not_finite_is_seen_and_contained(
    name: str, value: float, column: int
) -> None:
    case = CASES[name]
    operands = case.operands(torch.float64)
    whole = ours(case, operands)
    assert operands["rois"] is not None
    operands["rois"][1, column] = value
    found = ours(case, operands)
    rest = torch.arange(7) != 1
    assert found["output"][1].isnan().all() and found["shifts"][1].isnan().all()
    for key in ("output", "shifts"):
        assert torch.equal(found[key][rest], whole[key][rest])
    without = {k: v if v is None or k == "input" else v[rest] for k, v in operands.items()}
    generator = torch.Generator().manual_seed(1)
    grad = torch.randn(found["output"].shape, generator=generator, dtype=torch.float64)[rest]
    image = without["input"]
    assert image is not None
    leaf = image.clone().requires_grad_()
    case.call(cuda_ops, without | {"input": leaf}).backward(grad)
    assert leaf.grad is not None and torch.equal(found["input"], leaf.grad)
    for key, expected in defined(case, operands).items():
        torch.testing.assert_close(found[key], expected, equal_nan=True, msg=key)


def test_parts_without_bins_get_no_gradient_whatever_the_roi_is() -> None:
    case = CASES["ps_a_class_a_channel"]
    operands = case.operands(torch.float64)
    rois = operands["rois"]
    assert rois is not None and case.part > case.pooled
    rois[1, 3], rois[3, 2] = float("inf"), float("nan")
    found, expected = ours(case, operands)["shifts"], defined(case, operands)["shifts"]
    assert torch.equal(found.isnan(), expected.isnan()) and not expected[1].isnan().all()
    torch.testing.assert_close(found, expected, equal_nan=True)


@pytest.mark.parametrize("axis", [0, 1])
def test_a_nan_offset_is_seen_and_contained(axis: int) -> None:
    operands = Case().operands(torch.float64)
    assert operands["shifts"] is not None
    operands["shifts"][2, axis, 1, 0] = float("nan")
    found = ours(Case(), operands)
    expected = torch.zeros(7, 3, 2, dtype=torch.bool)
    expected[2, 1, 0] = True
    assert torch.equal(found["output"].isnan(), expected[:, None].expand(-1, 6, -1, -1))
    assert torch.equal(found["shifts"].isnan(), expected[:, None].expand(-1, 2, -1, -1))
    assert found["input"].isfinite().all()
    for key, value in defined(Case(), operands).items():
        torch.testing.assert_close(found[key], value, equal_nan=True, msg=key)


@pytest.mark.parametrize("name", ["adaptive", "ps"])
@pytest.mark.parametrize("value", [float("inf"), -float("inf"), 1e30, -1e30])
def test_a_far_offset_moves_its_bin_out_of_the_image(name: str, value: float) -> None:
    operands = CASES[name].operands(torch.float32)
    assert operands["shifts"] is not None
    operands["shifts"][0, :, 1, 0] = value
    found = ours(CASES[name], operands)
    last_row = found["output"].shape[2] - 1
    assert found["output"][0, :, last_row if name == "ps" else 1, 0].abs().max() == 0
    assert found["shifts"][0, :, 1, 0].abs().max() == 0
    assert all(t.isfinite().all() for t in found.values())


def test_samples_of_a_huge_roi_are_bounded() -> None:
    image = torch.ones(1, 1, 8, 8)
    huge = torch.tensor([[0, -1e30, -1e30, 1e30, 1e30], [0, -8000.0, -8000.0, 8008.0, 8008.0]])
    pooled = cuda_ops.deform_roi_pool(image, huge, None, 1)
    positions = [-8000.5 + (i + 0.5) * 16008 / 4096 for i in range(4096)]
    inside = sum(-1 <= v <= 8 for v in positions)
    assert inside > 0 and pooled.flatten().tolist() == pytest.approx([0, (inside / 4096) ** 2])


@native
def test_an_infinite_pixel_without_weight_is_skipped() -> None:
    image = torch.arange(16.0).reshape(1, 1, 4, 4)
    image[0, 0, 2] = float("inf")
    rois = torch.tensor([[0, 0.5, 0.5, 2.5, 2.5]])  # the sample is pixel (1, 1) itself
    assert cuda_ops.deform_roi_pool(image, rois, None, 1, sampling_ratio=1).item() == 5


HOSTILE = """
import itertools, torch
from cuda_ops import deform_roi_pool, ps_deform_roi_pool
values = [float("nan"), float("inf"), -float("inf"), 1e30, -1e30, 3e38, 3e9, -2147483648.0, 1e-45]
torch.manual_seed(0)
for value, name, dtype in itertools.product(values, range(3), (torch.float32, torch.float64)):
    for op, channels, shape, numbers in (
        (deform_roi_pool, 5, (9, 2, 3, 2), ((3, 2), 0.5, 0)),
        (deform_roi_pool, 16, (9, 2, 3, 2), ((3, 2), 1.0, 2)),
        (ps_deform_roi_pool, 36, (9, 4, 2, 2), (0.5, 4, 3, 3, 2, 4)),
    ):
        rois = torch.rand(9, 5, dtype=dtype) * 9
        rois[:, 0] = torch.arange(9) % 2
        t = [torch.randn(2, channels, 7, 6, dtype=dtype), rois, torch.randn(shape, dtype=dtype)]
        flat = t[name].view(-1) if name != 1 else t[1][:, 1:]
        if name == 1:
            t[1][:, 1:][torch.rand(9, 4) < 0.3] = value
        else:
            flat[torch.randperm(flat.numel())[: flat.numel() // 3]] = value
        t[0].requires_grad_(), t[2].requires_grad_()
        op(*t, *numbers).sum().backward()
        if name == 1:  # unchecked, as a compiled program calls it
            t[1][::2, 0] = value
            native = getattr(torch.ops.segdeform, op.__name__, None)
            if native is not None and op is deform_roi_pool:
                out = native(*t, list(numbers[0]), *numbers[1:], 0.1)
                out.sum().backward()
                bad = not 0 <= value < 2
                assert bool(out[0].isnan().all()) == bad or not bad, value
print("survived")
"""


@native
@pytest.mark.parametrize("instructions", ["portable", ""])
def test_no_value_crashes_or_hangs(instructions: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if instructions:
        monkeypatch.setenv("SEGDEFORM_CPU", instructions)
    done = subprocess.run(
        [sys.executable, "-c", HOSTILE], capture_output=True, text=True, timeout=120
    )
    assert done.stdout.strip() == "survived", done.stderr


@pytest.mark.parametrize("index", [-1.0, 3.0, 1e30, 0.5])
@pytest.mark.parametrize("name", ["adaptive", "ps"])
def test_a_roi_of_no_image_is_named(name: str, index: float) -> None:
    operands = CASES[name].operands(torch.float64)
    assert operands["rois"] is not None
    operands["rois"][4, 0] = index
    message = rf"rois\[4, 0\] must be the index of one of 3 images, not {index:g}".replace(
        "+", r"\+"
    )
    with pytest.raises(ValueError, match=message):
        CASES[name].call(cuda_ops, operands)


@native
@pytest.mark.parametrize("index", [-1.0, 3.0, 1e30, float("nan"), -float("inf")])
def test_an_unchecked_roi_of_no_image_gives_nan(index: float) -> None:
    operands = Case().operands(torch.float64)
    assert operands["rois"] is not None
    operands["rois"][4, 0] = index
    output = torch.ops.segdeform.deform_roi_pool(*operands.values(), *Case().numbers)
    assert output[4].isnan().all() and output.isnan().sum() == output[4].numel()
    torch.testing.assert_close(output, Case().call(reference, operands), equal_nan=True)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"rois": torch.zeros(7, 4)}, r"rois must have shape \[R, 5\], not \(7, 4\)"),
        ({"input": torch.zeros(6, 11, 14)}, r"input must be \[N, C, H, W\]"),
        ({"input": torch.zeros(3, 6, 0, 14)}, "not empty"),
        ({"input": torch.zeros(0, 6, 11, 14)}, "empty batch: 7 RoIs, N = 0"),
        ({"shifts": torch.zeros(7, 2, 2, 3)}, r"offset must have shape \(7, 2, 3, 2\), not"),
        ({"shifts": torch.zeros(6, 2, 3, 2)}, r"offset must have shape \(7, 2, 3, 2\), not"),
    ],
)
def test_wrong_shapes_are_named(change: dict[str, Tensor], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Case().call(cuda_ops, Case().operands(torch.float32) | change)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"output_size": (0, 2)}, "output_size must be one or two integers >= 1"),
        ({"sampling_ratio": -1}, "sampling_ratio must be an integer from 0 to 4096, not -1"),
        ({"sampling_ratio": 4097}, "from 0 to 4096, not 4097"),
        ({"spatial_scale": float("nan")}, "spatial_scale must be a finite number, not nan"),
        ({"gamma": float("inf")}, "gamma must be a finite number"),
    ],
)
def test_wrong_numbers_are_named(change: dict[str, Any], message: str) -> None:
    operands = Case().operands(torch.float32)
    arguments = {"output_size": (3, 2), "spatial_scale": 0.25} | change
    with pytest.raises(ValueError, match=message):
        cuda_ops.deform_roi_pool(operands["input"], operands["rois"], None, **arguments)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"channels": 7}, r"output_channels \* group_size\*\*2 = 63 channels, not 54"),
        ({"part": 3}, r"trans must have shape \(7, 2\*K, 3, 3\), not \(7, 4, 2, 2\)"),
        ({"samples": 0}, "sample_per_part must be an integer from 1 to 4096, not 0"),
        ({"group": 0}, "group_size must be an integer >= 1, not 0"),
        ({"pooled": -1}, "pooled_size must be an integer >= 1, not -1"),
    ],
)
def test_wrong_position_sensitive_arguments_are_named(change: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(SENSITIVE_CASE, **change).call(cuda_ops, SENSITIVE_CASE.operands(torch.float32))


def test_classes_must_divide_the_channels() -> None:
    operands = SENSITIVE_CASE.operands(torch.float32) | {"shifts": torch.zeros(7, 8, 2, 2)}
    with pytest.raises(ValueError, match="K must divide output_channels = 6; it has 8"):
        SENSITIVE_CASE.call(cuda_ops, operands)


def test_wrong_dtypes_are_named() -> None:
    operands = Case().operands(torch.float32)
    assert operands["rois"] is not None
    with pytest.raises(TypeError, match="rois must have a floating dtype"):
        Case().call(cuda_ops, operands | {"rois": operands["rois"].long()})


@native
@pytest.mark.parametrize("name", ["adaptive", "ps"])
def test_second_derivative_is_refused(name: str) -> None:
    operands = CASES[name].operands(torch.float64)
    image = operands["input"]
    assert image is not None
    output = CASES[name].call(cuda_ops, operands | {"input": image.requires_grad_()})
    (first,) = torch.autograd.grad(output.square().sum(), image, create_graph=True)
    with pytest.raises(RuntimeError, match=f"{CASES[name].op} has no second derivative"):
        first.sum().backward()


@native
@pytest.mark.parametrize("name", ["adaptive", "no_offset", "ps", "ps_no_trans"])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_opcheck(name: str, memory_format: torch.memory_format) -> None:
    case = CASES[name]
    operands = case.operands(torch.float64)
    image, rois, shifts = operands.values()
    assert image is not None
    image = image.contiguous(memory_format=memory_format)
    leaves = (image.requires_grad_(), rois, shifts if shifts is None else shifts.requires_grad_())
    op, backward = (getattr(torch.ops.segdeform, n) for n in (case.op, f"{case.op}_backward"))
    torch.library.opcheck(op.default, (*leaves, *case.numbers))
    grad = torch.randn_like(op(*leaves, *case.numbers))
    detached = tuple(t if t is None else t.detach() for t in (grad, *leaves))
    for needs in ((True, shifts is not None), (False, False)):
        torch.library.opcheck(backward.default, (*detached, *case.numbers, *needs))


@native
@pytest.mark.parametrize("name", ["c20", "ps"])
def test_compiles_without_a_graph_break(name: str) -> None:
    case = CASES[name]
    operands = case.operands(torch.float32)
    compiled = torch.compile(getattr(cuda_ops, case.op), fullgraph=True, backend="aot_eager")
    found = gradients(lambda t: compiled(*t.values(), *case.numbers), operands)
    assert_agree(found, ours(case, operands), 1e-6)


# ---- the layer ----


def layer_and_features() -> tuple[DeformRoIPool, Tensor, Tensor]:
    torch.manual_seed(0)
    layer = DeformRoIPool((3, 2), 0.25, channels=6, hidden=16)
    operands = Case().operands(torch.float32)
    assert operands["input"] is not None and operands["rois"] is not None
    return layer, operands["input"], operands["rois"]


def test_a_fresh_layer_is_plain_pooling() -> None:
    torchvision = pytest.importorskip("torchvision")
    layer, features, rois = layer_and_features()
    assert layer.offsets(features, rois).abs().max() == 0
    boxes = rois[[0, 1, 2, 3, 4, 6]]
    plain = torchvision.ops.roi_align(features, boxes, (3, 2), 0.25, aligned=True)
    torch.testing.assert_close(layer(features, rois)[[0, 1, 2, 3, 4, 6]], plain)
    assert layer(features, rois[:0]).shape == (0, 6, 3, 2)


def test_a_training_step_moves_the_offsets() -> None:
    layer, features, rois = layer_and_features()
    target = layer(features, rois).detach() + torch.randn(7, 6, 3, 2)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.05)
    losses = []
    for _ in range(20):
        loss = (layer(features, rois) - target).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert layer.offsets(features, rois).abs().max() > 0.01
    assert losses[-1] < losses[0]


def test_layer_moves_its_bins_as_it_says() -> None:
    layer, features, rois = layer_and_features()
    torch.nn.init.normal_(layer.offset_fc[-1].weight)
    offsets = layer.offsets(features, rois)
    assert offsets.abs().max() > 0.1
    expected = cuda_ops.deform_roi_pool(features, rois, offsets, (3, 2), 0.25)
    assert torch.equal(layer(features, rois), expected)


def test_wrong_channels_of_the_layer_are_named() -> None:
    layer, features, rois = layer_and_features()
    with pytest.raises(ValueError, match="input must have 6 channels, not 5"):
        layer(features[:, :5], rois)
    with pytest.raises(ValueError, match="hidden must be an integer >= 1, not 0"):
        DeformRoIPool(7, 0.25, 6, hidden=0)


# ---- where no native kernel serves ----

FALLBACK = """
import warnings, torch
warnings.simplefilter("always")
with warnings.catch_warnings(record=True) as caught:
    import cuda_ops
    from cuda_ops import library, reference
    library._kernels = frozenset()  # as on a device without kernels
    torch.manual_seed(0)
    x = torch.randn(2, 36, 9, 8).contiguous(memory_format=torch.channels_last).requires_grad_()
    rois = torch.tensor([[1, 2.0, 3.0, 20.0, 30.0], [0, 1.0, 5.0, 30.0, 15.0]])
    offset = torch.randn(2, 2, 3, 2, requires_grad=True)
    for _ in range(2):
        y = cuda_ops.deform_roi_pool(x, rois, offset, (3, 2), 0.25)
        z = cuda_ops.ps_deform_roi_pool(x, rois, None, 0.25, 4, 3, 3, 2, 4)
    with torch.autocast("cpu", torch.bfloat16):
        low = cuda_ops.deform_roi_pool(x, rois, offset, (3, 2), 0.25)
    assert low.dtype == torch.bfloat16 and x.is_contiguous(memory_format=torch.channels_last)
torch.testing.assert_close(y, reference.deform_roi_pool(x, rois, offset, (3, 2), 0.25))
assert y.is_contiguous(memory_format=torch.channels_last)
(y.sum() + z.sum() + low.sum()).backward()
assert x.grad.abs().max() > 0 and offset.grad.abs().max() > 0
messages = [str(c.message) for c in caught if "roi_pool" in str(c.message)]
print(cuda_ops.backend("cpu", "deform_roi_pool"), messages)
"""


def test_the_reference_serves_where_there_is_no_kernel() -> None:
    done = subprocess.run(
        [sys.executable, "-c", FALLBACK],
        capture_output=True,
        text=True,
        env=os.environ | {"SEGDEFORM_OPS": ""},
    )
    assert done.stdout.startswith("reference ["), done.stderr
    assert done.stdout.count("slow plain torch") == 2  # one warning an operator
    with pytest.raises(ValueError, match="operator must be one of"):
        cuda_ops.backend("cpu", "roi_align")
