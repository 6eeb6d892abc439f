"""Operands for the tests of RoI pooling, and what they compare."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import Tensor

from cuda_ops import reference

PLAIN, SENSITIVE = "deform_roi_pool", "ps_deform_roi_pool"


@dataclass(frozen=True)
class Case:
    """Nothing symmetric by default; RoIs inside, across the border, outside, tiny and reversed."""

    op: str = PLAIN
    batch: int = 3
    channels: int = 6  # out
    size: tuple[int, int] = (11, 14)
    output_size: tuple[int, int] = (3, 2)
    scale: float = 0.25
    sampling_ratio: int = 0
    shifted: bool = True
    group: int = 3
    pooled: int = 5
    part: int = 2
    classes: int = 2
    samples: int = 3

    @property
    def numbers(self) -> tuple[Any, ...]:
        if self.op == PLAIN:
            return (self.output_size, self.scale, self.sampling_ratio, 0.15)
        sizes = (self.channels, self.group, self.pooled, self.part, self.samples)
        return (self.scale, *sizes, 0.15)

    def operands(self, dtype: torch.dtype, seed: int = 0) -> dict[str, Tensor | None]:
        generator = torch.Generator().manual_seed(seed)

        def normal(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)

        boxes = [(5, 7, 40, 30), (-20, -9, 31, 18), (30, 20, 70, 65), (100, 90, 130, 140),
                 (10, 12, 10.5, 12.3), (30, 25, 11, 9), (0, 0, 55, 43)]  # fmt: skip
        corners = torch.tensor(boxes, dtype=torch.float64) + normal(len(boxes), 4).double().abs()
        index = torch.tensor([2, 0, 1, 0, 2, 1, 2], dtype=torch.float64)[:, None] % self.batch
        channels = self.channels
        shape = (len(boxes), 2, *self.output_size)
        if self.op == SENSITIVE:
            channels *= self.group**2
            shape = (len(boxes), 2 * self.classes, self.part, self.part)
        return {
            "input": normal(self.batch, channels, *self.size),
            "rois": torch.cat([index, corners], 1).to(dtype),
            "shifts": 2 * normal(*shape) if self.shifted else None,
        }

    def call(self, module: Any, operands: dict[str, Tensor | None]) -> Tensor:
        result: Tensor = getattr(module, self.op)(*operands.values(), *self.numbers)
        return result


SENSITIVE_CASE = Case(op=SENSITIVE)
CASES = {
    "adaptive": Case(),
    "fixed_samples": Case(sampling_ratio=2),
    "one_sample": Case(sampling_ratio=1),
    "no_offset": Case(shifted=False),
    "c1_one_bin": Case(channels=1, output_size=(1, 1)),
    "c3": Case(channels=3, output_size=(2, 5)),
    "c16": Case(channels=16),
    "c20": Case(channels=20),
    "c64": Case(channels=64),
    "c129": Case(channels=129),
    "one_pixel": Case(size=(1, 1), scale=0.02, sampling_ratio=3),
    "ps": SENSITIVE_CASE,
    "ps_no_trans": replace(SENSITIVE_CASE, shifted=False),
    "ps_class_agnostic": replace(SENSITIVE_CASE, classes=1, channels=20),
    "ps_a_class_a_channel": replace(SENSITIVE_CASE, classes=6, part=7, pooled=4),
    "ps_c129": replace(SENSITIVE_CASE, classes=3, channels=129, group=2, pooled=2, part=3),
    "ps_group_1": replace(SENSITIVE_CASE, group=1, part=5),
}  # fmt: skip
every_case = pytest.mark.parametrize("name", CASES)


def gradients(
    op: Callable[[dict[str, Tensor | None]], Tensor], operands: dict[str, Tensor | None]
) -> dict[str, Tensor]:
    """The output and the gradients of input and shifts, for a fixed random output gradient."""
    leaves = {k: v if v is None else v.detach().clone() for k, v in operands.items()}
    for name in ("input", "shifts"):
        if (leaf := leaves[name]) is not None:
            leaf.requires_grad_()
    output = op(leaves)
    generator = torch.Generator().manual_seed(1)
    output.backward(torch.randn(output.shape, generator=generator, dtype=torch.float64).to(output))
    found = {k: v.grad for k, v in leaves.items() if v is not None and v.grad is not None}
    return found | {"output": output.detach()}


def assert_agree(ours: dict[str, Tensor], theirs: dict[str, Tensor], tolerance: float) -> None:
    assert ours.keys() == theirs.keys()
    for name, expected in theirs.items():
        if expected.numel() == 0:
            assert ours[name].shape == expected.shape
            continue
        error = (ours[name].double() - expected.double()).abs().max()
        scale = expected.double().abs().max().clamp(min=1e-12)
        assert error / scale < tolerance, f"{name}: relative error {error / scale:.2e}"


# Relative errors that rounding explains.
DTYPES = {torch.float64: 1e-10, torch.float32: 1e-5, torch.bfloat16: 2e-2, torch.float16: 3e-3}
Operands = dict[str, Tensor | None]


def defined(case: Case, operands: Operands) -> dict[str, Tensor]:
    wide = {k: v if v is None else v.double().cpu() for k, v in operands.items()}
    return gradients(lambda leaves: case.call(reference, leaves), wide)
