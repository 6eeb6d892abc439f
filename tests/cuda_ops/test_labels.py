"""Labels from coarse scores against enlarging, cutting and argmax by torch."""

from __future__ import annotations

import os
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from cuda_ops import labels
from cuda_ops.labels import enlarged_labels

# maps (N, K, h, w), stride, what is cut off below and on the right
CASES = [
    ((2, 21, 17, 23), 4, (3, 1)),
    ((1, 2, 5, 40), 16, (0, 15)),
    ((3, 1, 4, 3), 8, (7, 0)),
    ((1, 255, 3, 19), 2, (1, 1)),
    ((1, 256, 3, 19), 2, (1, 1)),
    ((2, 1003, 2, 9), 4, (2, 3)),
    ((2, 7, 1, 1), 4, (0, 2)),
    ((1, 5, 9, 33), 1, (0, 0)),
    ((1, 3, 6, 5), 3, (2, 1)),
    ((0, 3, 6, 5), 4, (2, 1)),
]


def case(shape: Any, stride: int, cut: Any, seed: int = 0) -> tuple[Tensor, tuple[int, int]]:
    maps = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    return maps, (shape[2] * stride - cut[0], shape[3] * stride - cut[1])


def wide_scores(maps: Tensor, stride: int, size: tuple[int, int]) -> Tensor:
    whole = (maps.shape[2] * stride, maps.shape[3] * stride)
    scores = F.interpolate(maps.double(), whole, mode="bilinear", align_corners=False)
    return scores[..., : size[0], : size[1]]


def compute(how: str, maps: Tensor, stride: int, size: tuple[int, int]) -> Tensor:
    if how == "torch":
        return labels._by_torch(maps.float(), stride, size)
    return enlarged_labels(maps, stride, size)


@pytest.mark.parametrize("how", ["native", "torch"])
@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize(("shape", "stride", "cut"), CASES)
def test_every_pixel_gets_the_highest_class(
    how: str, channels_last: bool, shape: Any, stride: int, cut: Any
) -> None:
    maps, size = case(shape, stride, cut)
    if channels_last:
        maps = maps.contiguous(memory_format=torch.channels_last)
    found = compute(how, maps, stride, size)
    assert found.dtype == (torch.uint8 if shape[1] <= 255 else torch.uint16)
    assert found.shape == (shape[0], *size)
    found = found.long()
    scores = wide_scores(maps, stride, size)
    chosen = scores.gather(1, found[:, None])[:, 0]
    # Within rounding: of two scores that float32 cannot tell apart either may be chosen.
    assert (scores.amax(1) - chosen).abs().max() < 1e-5 if found.numel() else True
    assert (found == scores.argmax(1)).float().mean() > 0.999 if found.numel() else True


@pytest.mark.parametrize("how", ["native", "torch"])
def test_of_equal_scores_the_lower_class_wins(how: str) -> None:
    maps = torch.zeros(1, 4, 3, 5)
    maps[:, 1:3, 1] = 1.0
    found = compute(how, maps, 4, (11, 18))
    expected = torch.zeros(1, 11, 18, dtype=torch.uint8)
    expected[:, 2:10] = 1  # rows that reach row 1 of the maps; class 2 is equal there
    assert torch.equal(found, expected)


def test_every_instruction_set_agrees(
    instruction_set: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    maps, size = case((1, 13, 11, 37), 4, (1, 2), seed=3)
    found = enlarged_labels(maps, 4, size)
    monkeypatch.delenv("SEGDEFORM_CPU")
    expected = enlarged_labels(maps, 4, size)
    assert (found != expected).sum() <= 2  # two scores within rounding


def test_threads_change_nothing() -> None:
    maps, size = case((2, 5, 40, 70), 4, (1, 3), seed=5)
    before = torch.get_num_threads()
    try:
        found = []
        for threads in (1, 3):
            torch.set_num_threads(threads)
            found.append(enlarged_labels(maps, 4, size))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(*found)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_other_dtypes_are_computed_in_float32(dtype: torch.dtype) -> None:
    maps, size = case((1, 6, 5, 7), 4, (2, 1), seed=1)
    maps = maps.to(torch.bfloat16).to(dtype)
    assert torch.equal(enlarged_labels(maps, 4, size), enlarged_labels(maps.float(), 4, size))


@pytest.mark.skipif(os.environ.get("SEGDEFORM_OPS") == "torchvision", reason="set aside")
def test_the_kernel_serves() -> None:
    assert labels._NATIVE


@pytest.mark.parametrize(
    ("shape", "stride", "size", "message"),
    [
        ((1, 3, 4), 4, (16, 16), "1 to 65535 classes"),
        ((1, 65_536, 1, 1), 4, (4, 4), "1 to 65535 classes"),
        ((1, 3, 4, 4), 4, (17, 16), "are 5x4, not 4x4"),
        ((1, 3, 4, 4), 4, (16, 12), "are 4x3, not 4x4"),
        ((1, 3, 4, 4), 0, (4, 4), "a stride of 0"),
        ((1, 3, 0, 4), 4, (0, 16), "a picture of 0x16"),
    ],
)
def test_maps_that_do_not_fit_are_refused(
    shape: Any, stride: int, size: tuple[int, int], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        enlarged_labels(torch.zeros(shape), stride, size)
    if len(shape) == 4:
        native = torch.ops.segdeform.enlarged_labels
        with pytest.raises(RuntimeError, match="enlarged_labels"):
            native(torch.zeros(shape), stride, *size)


@pytest.mark.skipif(not labels._NATIVE, reason="enlarging by so much needs the memory")
@pytest.mark.parametrize("stride", [100, 2**31 + 1, 2**62, 2**63 - 1])
@pytest.mark.parametrize("size", [(1, 1), (3, 40)])
def test_a_stride_far_wider_than_the_picture(stride: int, size: tuple[int, int]) -> None:
    maps = torch.tensor([0.5, 2.0, 1.0]).view(1, 3, 1, 1)
    assert torch.equal(enlarged_labels(maps, stride, size), torch.ones(1, *size).byte())
