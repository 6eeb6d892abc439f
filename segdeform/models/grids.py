"""Means of a map over the cells of coarse grids, and the way from such a grid back to the map.

A grid of g x g lies over a map of h x w values as in adaptive pooling: cell i of a side has the
values from floor(i * h / g) up to ceil((i + 1) * h / g), so that cells overlap where g does not
divide h. Both ways are products with small matrices instead of torch's pooling and resizing: so
they can be had of a part of a map, whose place in the whole is known, have gradients that torch
adds up in the same order each time, and once exported serve every size.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor


class Whole(NamedTuple):
    """The picture of which features are a part, for heads that look at all of it."""

    size: tuple[int, int]  # (h, w) of its last features
    means: Tensor  # [N, C, cells] of these, over the cells of each grid, row by row
    top: int = 0  # where the part begins in these
    left: int = 0


def whole_of(
    x: Tensor,  # [N, C, h, w]
    grids: Sequence[int],
) -> Whole:
    """Takes a map as the whole."""
    height, width = x.shape[-2:]
    means = [
        (_averaging(height, grid, x) @ (x @ _averaging(width, grid, x).T)).flatten(2)
        for grid in grids
    ]
    return Whole((height, width), torch.cat(means, 2))


def spread(
    cells: Tensor,  # [N, C, g * g] values of a grid over the whole, row by row
    whole: Whole,
    size: tuple[int, int],  # (h, w) of the part
) -> Tensor:  # [N, C, h, w]
    """Enlarges a grid to the size of the whole, bilinearly, and cuts out the part."""
    grid = round(cells.shape[2] ** 0.5)
    begins = (whole.top, whole.left)
    rows, columns = (
        _spreading(side, grid, begin, count, cells)
        for side, begin, count in zip(whole.size, begins, size, strict=True)
    )
    return rows @ (cells.reshape(*cells.shape[:2], grid, grid) @ columns.T)


def cell_sums(
    part: Tensor,  # [N, C, h, w]
    grids: Sequence[int],
    size: tuple[int, int],  # (H, W) of the whole
    top: int,  # where the part begins in it
    left: int,
) -> Tensor:  # [N, C, cells] float64
    """Adds up what a part of a map has in the cells of grids over the whole."""
    sums = [part.new_zeros(*part.shape[:2], 0, dtype=torch.float64)]
    for grid in grids:
        for upper, lower in _cells(size[0], grid):
            rows = part[:, :, max(0, upper - top) : max(0, lower - top)]
            for first, last in _cells(size[1], grid):
                cell = rows[..., max(0, first - left) : max(0, last - left)]
                sums.append(cell.sum((2, 3), dtype=torch.float64)[..., None])
    return torch.cat(sums, 2)


def cell_sizes(grids: Sequence[int], size: tuple[int, int]) -> list[int]:  # [cells]
    """Counts the values in the cells of grids over a map of (H, W)."""
    return [
        (lower - upper) * (last - first)
        for grid in grids
        for upper, lower in _cells(size[0], grid)
        for first, last in _cells(size[1], grid)
    ]


def _cells(side: int, grid: int) -> list[tuple[int, int]]:
    """Cuts a side: (first value, the one after the last) of each cell."""
    return [(i * side // grid, -(-(i + 1) * side // grid)) for i in range(grid)]


def _averaging(side: int, grid: int, like: Tensor) -> Tensor:  # [grid, side]
    at = torch.arange(side, device=like.device)
    cell = torch.arange(grid, device=like.device)[:, None]
    first, after = cell * side // grid, ((cell + 1) * side + grid - 1) // grid
    return (((at >= first) & (at < after)) / (after - first)).to(like.dtype)


def _spreading(side: int, grid: int, begin: int, count: int, like: Tensor) -> Tensor:
    """Makes the rows [count, grid], from `begin` on, of a grid enlarged to `side` values."""
    at = torch.arange(begin, begin + count, device=like.device, dtype=torch.float32)
    place = ((at + 0.5) * grid / side - 0.5).clamp(0, grid - 1)
    cell = torch.arange(grid, device=like.device, dtype=torch.float32)
    return (1 - (place[:, None] - cell).abs()).clamp(min=0).to(like.dtype)
