"""The doctor's parity check: it agrees on a right operator and finds a wrong one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torchvision import ops

from cuda_ops import library
from segdeform import doctor

Operator = Callable[..., Tensor]
deform_conv2d: Operator = ops.deform_conv2d


def swaps_rows_and_columns(input: Tensor, offset: Tensor, weight: Tensor, **rest: Any) -> Tensor:
    n, channels, p, q = offset.shape
    swapped = offset.reshape(n, channels // 2, 2, p, q).flip(2).reshape(offset.shape)
    return deform_conv2d(input, swapped, weight, **rest)


def is_a_little_off(input: Tensor, offset: Tensor, weight: Tensor, **rest: Any) -> Tensor:
    return deform_conv2d(input, offset, weight * (1 + 1e-4), **rest)


def loses_a_gradient(input: Tensor, offset: Tensor, weight: Tensor, **rest: Any) -> Tensor:
    return deform_conv2d(input, offset * 0.5 + offset.detach() * 0.5, weight, **rest)


def gives_nan(input: Tensor, offset: Tensor, weight: Tensor, **rest: Any) -> Tensor:
    return deform_conv2d(input, offset, weight, **rest) * float("nan")


def does_not_launch(*tensors: Tensor, **rest: Any) -> Tensor:
    raise RuntimeError("no kernel image is available\nfor execution on the device")


@pytest.mark.parametrize("case", doctor.CASES, ids=lambda case: case.name)
def test_torchvisions_operator_agrees_with_the_reference(
    monkeypatch: pytest.MonkeyPatch, case: doctor.Case
) -> None:
    monkeypatch.setattr(doctor, "deform_conv2d", deform_conv2d)
    assert doctor.parity(case, "cpu").state == "ok"


@pytest.mark.parametrize("case", doctor.CASES, ids=lambda case: case.name)
@pytest.mark.parametrize(
    "wrong",
    [swaps_rows_and_columns, is_a_little_off, loses_a_gradient, gives_nan, does_not_launch],
)
def test_a_wrong_operator_is_found(
    monkeypatch: pytest.MonkeyPatch, wrong: Operator, case: doctor.Case
) -> None:
    monkeypatch.setattr(doctor, "deform_conv2d", wrong)
    check = doctor.parity(case, "cpu")
    assert check.state == "failed"
    assert "\n" not in check.detail
    assert check.mend == "export SEGDEFORM_OPS=torchvision"


def test_a_missing_library_is_a_note_with_the_command_that_builds_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    missing = library.LibraryStatus("_C.so", False, "not built", {})
    monkeypatch.setattr(library, "cpu_library", missing)
    check = next(check for check in doctor.examine() if check.name == "CPU kernels")
    assert check.state == "note"
    assert check.mend.endswith("-m cuda_ops.build")


def test_a_missing_package_fails_with_the_command_that_installs_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(doctor, "_PACKAGES", ("torch", "segdeform-does-not-need-this"))
    failed = [check for check in doctor.examine() if check.state == "failed"]
    assert len(failed) == 1
    assert failed[0].mend.endswith("-m pip install segdeform-does-not-need-this")


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("case", doctor.CASES, ids=lambda case: case.name)
def test_cuda_agrees_with_the_reference(case: doctor.Case) -> None:
    assert doctor.parity(case, "cuda").state == "ok"
