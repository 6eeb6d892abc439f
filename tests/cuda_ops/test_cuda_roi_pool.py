"""RoI pooling on a GPU against the reference and the CPU's kernels, and as torch wants it there."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

import cuda_ops
from cuda_ops import library
from tests.cuda_ops.roi_cases import (
    CASES,
    DTYPES,
    PLAIN,
    Case,
    Operands,
    assert_agree,
    defined,
    every_case,
    gradients,
)

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]


def on_gpu(operands: Operands, last: bool = False) -> Operands:
    moved = {k: v if v is None else v.cuda() for k, v in operands.items()}
    if last and moved["input"] is not None:
        moved["input"] = moved["input"].contiguous(memory_format=torch.channels_last)
    return moved


def by_gpu(case: Case, operands: Operands) -> dict[str, Tensor]:
    return gradients(lambda leaves: case.call(cuda_ops, leaves), operands)


def to_cpu(found: dict[str, Tensor]) -> dict[str, Tensor]:
    return {k: v.cpu() for k, v in found.items()}


def test_native_kernels_serve_the_gpu() -> None:
    for operator in ("deform_roi_pool", "ps_deform_roi_pool"):
        assert cuda_ops.backend("cuda", operator) == "native", library.cuda_library.reason


@every_case
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("last", [False, True], ids=["contiguous", "channels_last"])
def test_agrees_with_reference_and_cpu(name: str, dtype: torch.dtype, last: bool) -> None:
    case = CASES[name]
    operands = case.operands(dtype)
    if dtype in (torch.bfloat16, torch.float16):  # coarse positions lie on borders, where they jump
        operands |= {k: case.operands(torch.float32)[k] for k in ("rois", "shifts")}
    found = to_cpu(by_gpu(case, on_gpu(operands, last)))
    assert_agree(found, defined(case, operands), DTYPES[dtype])
    assert_agree(found, by_gpu(case, operands), DTYPES[dtype])  # the CPU's kernels


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_positions_of_low_precision_are_taken(dtype: torch.dtype) -> None:
    operands = CASES["c20"].operands(dtype)
    found = to_cpu(by_gpu(CASES["c20"], on_gpu(operands)))
    assert found["shifts"].dtype == dtype
    assert_agree(found, defined(CASES["c20"], operands), DTYPES[dtype])


@pytest.mark.parametrize("name", ["adaptive", "ps"])
def test_gradcheck(name: str) -> None:
    case = replace(CASES[name], batch=1, channels=2, size=(5, 6))
    operands = on_gpu(case.operands(torch.float64))
    rois = torch.tensor([[0, 2.3, 1.7, 19.1, 13.2], [0, 9.6, 4.4, 31.8, 27.9]]).double().cuda()
    image, shifts = operands["input"], operands["shifts"]
    assert image is not None and shifts is not None

    def call(image: Tensor, shifts: Tensor) -> Tensor:
        return case.call(cuda_ops, {"input": image, "rois": rois, "shifts": shifts})

    leaves = (image.requires_grad_(), (shifts[:2] / 8).requires_grad_())
    assert torch.autograd.gradcheck(call, leaves, nondet_tol=0.0)


@pytest.mark.parametrize("name", ["adaptive", "no_offset", "ps"])
def test_opcheck(name: str) -> None:
    case = CASES[name]
    for last in (False, True):
        image, rois, shifts = on_gpu(case.operands(torch.float64), last).values()
        assert image is not None
        leaves = (
            image.requires_grad_(),
            rois,
            shifts if shifts is None else shifts.requires_grad_(),
        )
        op, backward = (getattr(torch.ops.segdeform, n) for n in (case.op, f"{case.op}_backward"))
        torch.library.opcheck(op.default, (*leaves, *case.numbers))
        grad = torch.randn_like(op(*leaves, *case.numbers))
        detached = tuple(t if t is None else t.detach() for t in (grad, *leaves))
        needs = (True, shifts is not None)
        torch.library.opcheck(backward.default, (*detached, *case.numbers, *needs))


@pytest.mark.parametrize("name", ["c129", "ps_c129"])
def test_gives_the_same_bits_in_every_run(name: str) -> None:
    case = replace(CASES[name], size=(40, 50), output_size=(7, 7), scale=1.0)
    operands = on_gpu(case.operands(torch.float32))
    torch.use_deterministic_algorithms(True)
    try:
        runs = [by_gpu(case, operands) for _ in range(3)]
    finally:
        torch.use_deterministic_algorithms(False)
    for other in runs[1:]:
        for key, value in runs[0].items():
            assert torch.equal(value, other[key]), key


def test_under_autocast_keeps_positions_in_float32() -> None:
    case = replace(CASES["c20"], size=(11, 540), scale=1.0)
    operands = case.operands(torch.float32)
    assert operands["rois"] is not None
    operands["rois"][:, 1:] *= 0.3
    operands["rois"][:, 1::2] += 500.3  # bfloat16 would round x by up to two pixels
    with torch.autocast("cuda", torch.bfloat16):
        found = by_gpu(case, on_gpu(operands))
    assert found["output"].dtype == torch.bfloat16 and found["shifts"].dtype == torch.float32
    assert_agree(to_cpu(found), defined(case, operands), 2e-2)


@pytest.mark.parametrize("name", ["adaptive", "ps"])
def test_graph_replays_with_new_values(name: str) -> None:
    case = CASES[name]
    operands = on_gpu(case.operands(torch.float32))

    def call() -> dict[str, Tensor]:
        return on_device(torch.ops.segdeform, case, operands)

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        call()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = call()
    for seed in (3, 4):
        fresh = case.operands(torch.float32, seed)
        for key, value in operands.items():
            new = fresh[key]
            if value is not None and new is not None:
                value.copy_(new)
        graph.replay()
        torch.cuda.synchronize()
        for key, value in call().items():
            assert torch.equal(found[key], value), key


def on_device(ops: Any, case: Case, operands: Operands) -> dict[str, Tensor]:
    """Forward and backward with an output gradient of ones: no copy from the host in it."""
    output = getattr(ops, case.op)(*operands.values(), *case.numbers)
    backward = getattr(ops, f"{case.op}_backward")
    pair = backward(torch.ones_like(output), *operands.values(), *case.numbers, True, True)
    return {"output": output, "input": pair[0], "shifts": pair[1]}


def test_works_on_the_current_stream() -> None:
    case = replace(CASES["c64"], size=(60, 70))
    wanted = on_gpu(case.operands(torch.float32))
    expected = on_device(torch.ops.segdeform, case, wanted)
    late = {k: v if v is None else torch.zeros_like(v) for k, v in wanted.items()}
    torch.cuda.synchronize()
    with torch.cuda.stream(torch.cuda.Stream()):
        torch.cuda._sleep(50_000_000)  # the operands arrive long after the launches
        for key, value in late.items():
            source = wanted[key]
            if value is not None and source is not None:
                value.copy_(source)
        found = on_device(torch.ops.segdeform, case, late)
    torch.cuda.synchronize()
    for key, value in expected.items():
        assert torch.equal(found[key], value), key


def test_shows_lost_bins_and_contains_them() -> None:
    for name in ("adaptive", "ps", "ps_a_class_a_channel"):
        case = CASES[name]
        operands = case.operands(torch.float32)
        rois, shifts = operands["rois"], operands["shifts"]
        assert rois is not None and shifts is not None
        rois[1, 3], rois[2, 0], rois[3, 2] = float("inf"), 9.0, float("nan")
        shifts[0, 0, 0, 1], shifts[4, 1, 1, 0], shifts[5, 0] = float("nan"), float("inf"), 1e30
        found = by_gpu(case, on_gpu(operands))
        assert found["output"][1:4].isnan().all() and found["input"].isfinite().all()
        for key, expected in defined(case, operands).items():
            torch.testing.assert_close(
                found[key].cpu().double(), expected, equal_nan=True, rtol=1e-4, atol=1e-4, msg=key
            )


def test_indexes_beyond_two_to_the_31() -> None:
    channels, size, box = 64, (5800, 5800), [0.0, 5700.0, 5700.0, 5790.0, 5790.0]
    if torch.cuda.mem_get_info()[0] < 16 * 2**30:
        pytest.skip("too little memory on this GPU")
    image = torch.zeros(1, channels, *size, dtype=torch.bfloat16, device="cuda")
    image = image.to(memory_format=torch.channels_last)
    assert image.numel() > 2**31
    corner = torch.randn(1, channels, 200, 200, dtype=torch.bfloat16)
    image[:, :, -200:, -200:] = corner.cuda()
    rois = torch.tensor([box])
    near = rois - torch.tensor([0.0, 5600.0, 5600.0, 5600.0, 5600.0])
    expected = cuda_ops.deform_roi_pool(corner.float(), near, None, 7)
    leaf = image.requires_grad_()
    found = cuda_ops.deform_roi_pool(leaf, rois.cuda(), None, 7)
    torch.testing.assert_close(found.float().cpu(), expected, rtol=1e-2, atol=1e-2)
    found.sum().backward()
    assert leaf.grad is not None
    total = leaf.grad[:, :, -200:, -200:].float().sum().item()
    assert total == pytest.approx(channels * 49, rel=1e-2)
    assert leaf.grad[:, :, :-200].abs().max() == 0


def hostile_values() -> list[float]:
    return [float("nan"), float("inf"), -float("inf"), 1e30, -1e30, 3e38, -2147483648.0, 1e-45]


@pytest.mark.parametrize("name", ["adaptive", "fixed_samples", "ps"])
@pytest.mark.parametrize("operand", ["input", "rois", "shifts"])
def test_no_value_crashes_or_hangs(name: str, operand: str) -> None:
    generator = torch.Generator().manual_seed(0)
    for value in hostile_values():
        operands = CASES[name].operands(torch.float32)
        target = operands[operand]
        assert target is not None
        target[torch.rand(target.shape, generator=generator) < 0.3] = value
        by_gpu(CASES[name], on_gpu(operands))
        torch.cuda.synchronize()  # where a bad address would show


def test_second_derivative_is_refused() -> None:
    operands = on_gpu(Case().operands(torch.float64))
    image = operands["input"]
    assert image is not None
    output = Case().call(cuda_ops, operands | {"input": image.requires_grad_()})
    (first,) = torch.autograd.grad(output.square().sum(), image, create_graph=True)
    with pytest.raises(RuntimeError, match=f"{PLAIN} has no second derivative"):
        first.sum().backward()


def test_a_detectors_pooler_gives_what_it_gives_on_the_cpu() -> None:
    pytest.importorskip("torchvision")
    torch.manual_seed(0)
    pooler = cuda_ops.MultiScaleDeformRoIPool(["a", "b"], 3, 5, canonical_scale=40).double()
    torch.nn.init.normal_(pooler.offset_fc[-1].weight, std=0.1)
    levels = {"a": torch.randn(2, 5, 24, 32), "b": torch.randn(2, 5, 12, 16)}
    features = {name: level.double() for name, level in levels.items()}
    corners = [(3, 5, 22, 31), (10.5, 8, 100, 90), (50, 40, 58, 47)]
    boxes = [torch.tensor(corners).double(), torch.tensor(corners[1:]).double()]
    shapes = [(96, 128), (90, 120)]
    expected = pooler(features, boxes, shapes)
    moved = {name: level.cuda() for name, level in features.items()}
    found = pooler.cuda()(moved, [box.cuda() for box in boxes], shapes)
    torch.testing.assert_close(found.cpu(), expected)
