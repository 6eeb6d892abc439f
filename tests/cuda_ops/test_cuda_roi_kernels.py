"""RoI pooling's CUDA kernels as host code (host_shim.h) against the reference.

The same sources that nvcc compiles run here on tiny shapes, blocks and threads in random order.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.cuda_ops.host_shim import SEEDS, host_shim  # noqa: F401
from tests.cuda_ops.roi_cases import (
    CASES,
    DTYPES,
    SENSITIVE_CASE,
    Case,
    Operands,
    assert_agree,
    defined,
    every_case,
)


def by_operators(ops: Any, case: Case, operands: Operands) -> dict[str, Tensor]:
    """What `gradients` returns, from the raw operators forward and backward."""
    output = getattr(ops, case.op)(*operands.values(), *case.numbers)
    generator = torch.Generator().manual_seed(1)
    grad = torch.randn(output.shape, generator=generator, dtype=torch.float64).to(output)
    shifted = operands["shifts"] is not None
    backward = getattr(ops, f"{case.op}_backward")
    pair = backward(grad, *operands.values(), *case.numbers, True, shifted)
    found = {"input": pair[0], "output": output}
    return found | {"shifts": pair[1]} if shifted else found


SMALL = Case(batch=2, size=(6, 7))
SMALL_PS = replace(SENSITIVE_CASE, batch=2, size=(5, 6), group=2, pooled=3, samples=2, channels=4)
HOST_CASES = {
    "adaptive": Case(),
    "one_sample": replace(SMALL, sampling_ratio=1),
    "no_offset": replace(SMALL, shifted=False),
    "one_pixel": CASES["one_pixel"],
    "c129": replace(SMALL, channels=129, output_size=(1, 2)),
    "c512": replace(SMALL, channels=512, output_size=(1, 1), batch=1),
    "dense": Case(size=(9, 40), output_size=(1, 2), scale=1.0, channels=2),  # over 32 pixels long
    "sparse": Case(size=(60, 50), output_size=(2, 1), scale=2.0, sampling_ratio=3, channels=2),
    "many_samples": Case(size=(4, 5), output_size=(1, 1), sampling_ratio=70, channels=1, scale=0.1),
    "ps": SMALL_PS,
    "ps_no_trans": replace(SMALL_PS, shifted=False),
    "ps_class_agnostic": replace(SMALL_PS, classes=1, part=3),
    "ps_a_class_a_channel": replace(SMALL_PS, classes=4, part=4, pooled=2),
    "ps_many_samples": replace(SMALL_PS, samples=40, pooled=2, channels=2),
}


@pytest.mark.parametrize("name", HOST_CASES)
def test_host_code_agrees_with_the_reference(name: str, host_shim: Any) -> None:  # noqa: F811
    case = HOST_CASES[name]
    operands = case.operands(torch.float64)
    assert_agree(by_operators(host_shim, case, operands), defined(case, operands), 1e-10)


@pytest.mark.slow
@every_case
def test_host_code_agrees_on_all_shapes(name: str, host_shim: Any) -> None:  # noqa: F811
    operands = CASES[name].operands(torch.float64)
    found = by_operators(host_shim, CASES[name], operands)
    assert_agree(found, defined(CASES[name], operands), 1e-10)


@pytest.mark.parametrize("channels", [8, 12])  # 12: bf16 vectors do not fit
@pytest.mark.parametrize("base", [SMALL, SMALL_PS], ids=["plain", "ps"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("last", [False, True], ids=["contiguous", "channels_last"])
def test_host_code_agrees_in_every_dtype_and_format(
    base: Case,
    channels: int,
    dtype: torch.dtype,
    last: bool,
    host_shim: Any,  # noqa: F811
) -> None:
    case = replace(base, channels=channels, classes=1)
    operands = case.operands(dtype)
    assert operands["input"] is not None
    if last:
        operands["input"] = operands["input"].contiguous(memory_format=torch.channels_last)
    found = by_operators(host_shim, case, operands)
    assert found["output"].dtype == found["input"].dtype == dtype
    for key in ("output", "input"):
        assert last == (not found[key].is_contiguous())
    assert_agree(found, defined(case, operands), DTYPES[dtype])


@pytest.mark.parametrize("name", ["adaptive", "ps"])
def test_host_code_gives_the_same_bits_in_any_order(
    name: str,
    host_shim: Any,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    runs = []
    for seed in SEEDS:
        monkeypatch.setenv("SEGDEFORM_SHIM_SEED", seed)
        case = replace(HOST_CASES[name], batch=2, size=(7, 8))
        runs.append(by_operators(host_shim, case, case.operands(torch.float32)))
    for other in runs[1:]:
        for key, value in runs[0].items():
            assert torch.equal(value, other[key]), key


@pytest.mark.parametrize("name", ["adaptive", "ps", "ps_a_class_a_channel"])
def test_host_code_shows_lost_bins_and_contains_them(name: str, host_shim: Any) -> None:  # noqa: F811
    case = replace(HOST_CASES[name], batch=2, size=(6, 7))
    operands = case.operands(torch.float64)
    rois, shifts = operands["rois"], operands["shifts"]
    assert rois is not None and shifts is not None
    rois[1, 3], rois[2, 0], rois[3, 2] = float("inf"), 9.0, float("nan")
    shifts[0, 0, 0, 1], shifts[4, 1, 1, 0], shifts[5, 0] = float("nan"), float("inf"), 1e30
    found = by_operators(host_shim, case, operands)
    assert found["output"][1:4].isnan().all() and found["input"].isfinite().all()
    for key, expected in defined(case, operands).items():
        torch.testing.assert_close(found[key], expected, equal_nan=True, msg=key)


def test_host_code_passes_no_gradient_where_nothing_was_sampled(host_shim: Any) -> None:  # noqa: F811
    case = replace(SMALL, shifted=False, size=(9, 20))
    operands = case.operands(torch.float64)
    grad = torch.full((7, 6, 3, 2), float("nan"), dtype=torch.float64)
    backward = host_shim.deform_roi_pool_backward
    poisoned, _ = backward(grad, *operands.values(), *case.numbers, True, False)
    ones, _ = backward(torch.ones_like(grad), *operands.values(), *case.numbers, True, False)
    assert torch.equal(poisoned.isnan(), ones != 0) and (ones == 0).any()


def test_host_code_takes_no_rois_and_no_images(host_shim: Any) -> None:  # noqa: F811
    for case in (Case(), SENSITIVE_CASE):
        full = case.operands(torch.float32)
        operands = {k: v if v is None or k == "input" else v[:0] for k, v in full.items()}
        found = by_operators(host_shim, case, operands)
        assert found["output"].shape[0] == 0 and found["input"].abs().max() == 0
        assert full["input"] is not None
        found = by_operators(host_shim, case, operands | {"input": full["input"][:0]})
        assert found["input"].shape[0] == 0


def test_host_code_computes_only_what_is_wanted(host_shim: Any) -> None:  # noqa: F811
    operands = Case().operands(torch.float32)
    grad = torch.ones(7, 6, 3, 2)
    nothing = host_shim.deform_roi_pool_backward(
        grad, *operands.values(), *Case().numbers, False, False
    )
    assert [tuple(t.shape) for t in nothing] == [(0,), (0,)]
