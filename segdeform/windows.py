"""Windows over a picture: where they lie, and how what is computed in them is blended."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

_LEAST_CORE = 128  # pixels, below which a window is nearly all context


class Window(NamedTuple):
    """A rectangle of the picture, pixels."""

    top: int
    left: int
    height: int
    width: int


class Source(NamedTuple):
    """A picture in work."""

    read: Callable[[Window], Tensor]  # -> [1, C, h, w] float32, 0..1, on the device
    size: tuple[int, int]  # (H, W)
    channels: int
    device: torch.device


class Band:
    """A band of columns of a tiled picture: windows are blended in, finished rows leave at the top.

    Windows are added row by row, the rows of a picture from the top down.
    """

    def __init__(
        self,
        left: int,
        right: int,  # column after the last
        weight: Tensor,  # [tile_height, tile_width] of a window's pixels
    ) -> None:
        self.left, self.right = left, right
        self.weight = weight
        self.total: Tensor | None = None  # [K, tile_height, columns] weighted scores
        self.share: Tensor | None = None  # [tile_height, columns] sums of the weights

    def meets(self, x: int) -> bool:
        """Tells whether a window with its left side at column x reaches into the band."""
        return x < self.right and x + self.weight.shape[1] > self.left

    def add(
        self,
        x: int,
        scores: Tensor,  # [K, tile_height, tile_width]
    ) -> None:
        """Blends in a window whose left side is at column x of the picture."""
        if self.total is None or self.share is None:
            self.weight = self.weight.to(scores.device)
            rows, columns = self.weight.shape[0], self.right - self.left
            self.total = scores.new_zeros(scores.shape[0], rows, columns)
            self.share = scores.new_zeros(rows, columns)
        begin, end = max(x, self.left), min(x + self.weight.shape[1], self.right)
        mine, its = slice(begin - self.left, end - self.left), slice(begin - x, end - x)
        self.total[:, :, mine].addcmul_(scores[:, :, its], self.weight[:, its])
        self.share[:, mine] += self.weight[:, its]

    def finish(self, count: int) -> Tensor:  # [K, count, columns]
        """Takes out the scores of the upper `count` rows; those below move up."""
        assert self.total is not None and self.share is not None  # a window reaches every row
        done = self.total[:, :count] / self.share[:count]
        for rows in (self.total, self.share[None]):
            kept = rows[:, count:].clone()
            rows.zero_()
            rows[:, : kept.shape[1]] = kept
        return done


def starts(size: int, tile: int, overlap: float) -> list[int]:
    """Places windows of `tile` pixels along a side; the last one ends where the side ends."""
    if size <= tile:
        return [0]
    stride = max(1, round(tile * (1 - overlap)))
    return [min(i * stride, size - tile) for i in range(math.ceil((size - tile) / stride) + 1)]


def bands(lefts: list[int], width: int, columns: int) -> list[tuple[int, int]]:
    """Cuts the width at windows' left sides into bands of about `columns` pixels at most.

    Windows across a cut are computed for both bands, the price of memory that does not grow with
    the number of classes times the width.
    """
    if len(lefts) == 1 or columns >= width:
        return [(0, width)]
    cuts = lefts[:: max(1, columns // lefts[1])]
    return list(zip(cuts, [*cuts[1:], width], strict=True))


def gaussian(size: int) -> Tensor:  # [size], 1 in the middle, exp(-2) = 0.14 at the ends
    """Weighs the pixels of a window by their distance from its middle, sigma a quarter of it."""
    middle = (size - 1) / 2
    distance = (torch.arange(size, dtype=torch.float32) - middle) / (size / 4)
    return torch.exp(-0.5 * distance.square())


def grown(
    window: Window,
    around: int,
    size: tuple[int, int],  # (H, W) of the picture
) -> Window:
    """Adds `around` pixels on every side that is not the picture's."""
    top, left = max(0, window.top - around), max(0, window.left - around)
    bottom = min(size[0], window.top + window.height + around)
    right = min(size[1], window.left + window.width + around)
    return Window(top, left, bottom - top, right - left)


def cores(
    region: Window,  # begins at multiples of `step`
    around: int,  # pixels of context, a multiple of `step`
    most: int,  # pixels of a window with its context
    step: int,
    size: tuple[int, int],  # (H, W) of the picture
) -> list[Window]:
    """Cuts a region of a picture into about equal windows that begin at multiples of `step`.

    None has more than `most` pixels once it is `grown` by its context, unless it is of
    `_LEAST_CORE` pixels a side; of all such cuts it is the one with the fewest pixels in sum.
    """
    rows = _cuts(region.top, region.height, around, step, size[0])
    columns = _cuts(region.left, region.width, around, step, size[1])
    best, fewest = (rows[-1], columns[-1]), math.inf
    for row in rows:
        fitting = (column for column in columns if row.largest * column.largest <= most)
        column = min(fitting, key=lambda column: column.total, default=None)
        if column is not None and row.total * column.total < fewest:
            best, fewest = (row, column), row.total * column.total
    row, column = best
    return [
        Window(top, left, height, width)
        for top, height in row.parts
        for left, width in column.parts
    ]


class _Cut(NamedTuple):
    """One way to cut a side."""

    parts: list[tuple[int, int]]  # start, length
    largest: int  # length with context
    total: int  # sum of the lengths with context


def _cuts(start: int, length: int, around: int, step: int, end: int) -> list[_Cut]:
    """Lists ways to cut a side, from one part to many."""
    found, count = [], 1
    while True:
        part = max(-(-length // count), min(length, _LEAST_CORE))
        part = -(-part // step) * step
        starts = range(start, start + length, part)
        parts = [(at, min(part, start + length - at)) for at in starts]
        wide = [min(end, at + part + around) - max(0, at - around) for at, part in parts]
        found.append(_Cut(parts, max(wide), sum(wide)))
        if part <= max(_LEAST_CORE, step) or part <= step:
            return found
        count = max(len(parts), count) + max(1, count // 16)
