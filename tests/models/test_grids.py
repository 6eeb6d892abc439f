"""Means over cells and their way back against torch's pooling and resizing, whole and in parts."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from segdeform.models.grids import Whole, cell_sizes, cell_sums, spread, whole_of

GRIDS = (1, 2, 5)
SIZES = [(7, 13), (1, 4), (3, 1), (10, 25)]  # smaller than a grid, no multiple, a multiple


def pooled(x: Tensor) -> Tensor:  # [N, C, cells]
    return torch.cat([F.adaptive_avg_pool2d(x, grid).flatten(2) for grid in GRIDS], 2)


@pytest.mark.parametrize("size", SIZES)
def test_cells_are_those_of_adaptive_pooling(size: tuple[int, int]) -> None:
    x = torch.randn(2, 3, *size, dtype=torch.float64)
    whole = whole_of(x, GRIDS)
    assert (whole.size, whole.top, whole.left) == (size, 0, 0)
    torch.testing.assert_close(whole.means, pooled(x))


@pytest.mark.parametrize("size", SIZES)
def test_sums_of_parts_are_those_of_the_whole(size: tuple[int, int]) -> None:
    x = torch.randn(2, 3, *size)
    total = torch.zeros(1, dtype=torch.float64)
    for top in range(0, size[0], 3):
        for left in range(0, size[1], 4):
            part = x[..., top : top + 3, left : left + 4]
            total = total + cell_sums(part, GRIDS, size, top, left)
    means = total / torch.tensor(cell_sizes(GRIDS, size))
    torch.testing.assert_close(means, pooled(x.double()))
    assert cell_sums(x, (), size, 0, 0).shape == (2, 3, 0)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("grid", GRIDS)
def test_a_grid_is_enlarged_as_torch_resizes_and_cut(grid: int, size: tuple[int, int]) -> None:
    cells = torch.randn(2, 3, grid, grid)
    expected = F.interpolate(cells, size, mode="bilinear", align_corners=False)
    for top, left, height, width in ((0, 0, *size), (size[0] // 3, size[1] // 2, 1, 1)):
        place = Whole(size, cells.flatten(2), top, left)
        found = spread(cells.flatten(2), place, (height, width))
        part = expected[..., top : top + height, left : left + width]
        torch.testing.assert_close(found, part, atol=1e-5, rtol=0)
