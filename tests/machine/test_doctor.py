"""The doctor's parity check: it agrees on a right operator and finds a wrong one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torchvision import ops

from cuda_ops import library, parity, reference
from segdeform.machine import doctor

Operator = Callable[..., Tensor]
SMALL = [case for case in parity.CASES if not case.large]


def swaps_rows_and_columns(operator: Operator) -> Operator:
    def wrong(**arguments: Any) -> Tensor:
        shifts = next(name for name in ("offset", "trans") if name in arguments)
        value = arguments[shifts]
        pairs = value.reshape(len(value), -1, 2, *value.shape[2:])
        return operator(**arguments | {shifts: pairs.flip(2).reshape(value.shape)})

    return wrong


def is_a_little_off(operator: Operator) -> Operator:
    return lambda input, **rest: operator(input=input * (1 + 1e-4), **rest)


def loses_a_gradient(operator: Operator) -> Operator:
    return lambda input, **rest: operator(input=input * 0.5 + input.detach() * 0.5, **rest)


def gives_nan(operator: Operator) -> Operator:
    return lambda **arguments: operator(**arguments) * float("nan")


def does_not_launch(operator: Operator) -> Operator:
    def wrong(**arguments: Any) -> Tensor:
        raise RuntimeError("no kernel image is available\nfor execution on the device")

    return wrong


def test_torchvisions_operator_agrees_with_the_reference(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(parity.OPERATORS, "deform_conv2d", ops.deform_conv2d)
    convolutions = [case for case in SMALL if case.operator == "deform_conv2d"]
    states = [doctor.parity(case, torch.float32, "cpu").state for case in convolutions]
    assert states == ["ok"] * 4


@pytest.mark.parametrize("case", SMALL, ids=lambda case: case.name)
def test_the_kernels_agree_with_the_reference(case: parity.Case) -> None:
    check = doctor.parity(case, torch.float32, "cpu")
    assert check.state == "ok" and check.mend == ""
    assert check.detail.startswith(library.backend("cpu", case.operator))


def test_every_operator_has_a_case() -> None:
    assert {case.operator for case in parity.CASES} == set(library.FALLBACKS)


@pytest.mark.parametrize("case", SMALL, ids=lambda case: case.name)
@pytest.mark.parametrize(
    "wrong",
    [swaps_rows_and_columns, is_a_little_off, loses_a_gradient, gives_nan, does_not_launch],
)
def test_a_wrong_operator_is_found(
    monkeypatch: pytest.MonkeyPatch, wrong: Callable[[Operator], Operator], case: parity.Case
) -> None:
    right = getattr(reference, case.operator)
    monkeypatch.setitem(parity.OPERATORS, case.operator, wrong(right))
    check = doctor.parity(case, torch.float32, "cpu")
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
@pytest.mark.parametrize("case", SMALL, ids=lambda case: case.name)
def test_cuda_agrees_with_the_reference(case: parity.Case) -> None:
    assert doctor.parity(case, torch.float32, "cuda").state == "ok"
