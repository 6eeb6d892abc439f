"""A picture tinted in the classes' colours."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from segdeform.data.channels import shown_colours
from segdeform.data.rasters import Raster

Picture = NDArray[np.uint8]  # [H, W, 3] RGB
Labels = NDArray[np.uint8 | np.uint16]  # [H, W] class numbers
Color = tuple[int, int, int]

_BORDER = 240  # opacity of a class's border, of 256; that of its area is a half
_MOST_PIXELS = 2**26  # of a picture whose overlay is drawn at its size
_STRIP = 2**22  # pixels of a larger one read at a time
_ROWS = 64  # rows blended at a time, so that little memory is needed beside the picture


def overlay(
    image: Picture,  # [H, W, 3]
    labels: Labels,  # [H, W]
    palette: Sequence[Color],  # K colours
    out: Picture | None = None,  # [H, W, 3], may be `image` itself to save memory
) -> Picture:  # [H, W, 3]
    """Tints every class in its colour, with a stronger line where two classes meet.

    Black classes are left as they are in the picture: black is the colour of "nothing to show".
    """
    result = np.empty_like(image) if out is None else out
    colors = np.array(palette, np.uint8)  # [K, 3]
    hidden = np.where(np.any(colors != 0, axis=1, keepdims=True), 0, 255)  # [K, 1]
    hidden = np.repeat(hidden.astype(np.uint8), 3, axis=1)
    height, width = labels.shape
    line = max(1, round(min(height, width) / 500))  # half the border's width
    for top in range(0, height, _ROWS):
        rows = slice(top, min(top + _ROWS, height))
        part, pixels = labels[rows], image[rows]
        tint = np.take(colors, part, axis=0)  # [h, w, 3]
        if hidden.any():  # there the colour is 0, and becomes the picture's own
            tint |= pixels & np.take(hidden, part, axis=0)
        mixed = (pixels & tint) + ((pixels ^ tint) >> 1)  # their mean, in 8 bits
        border = np.flatnonzero(
            _borders(labels, rows, line)
        )  # by a mask it takes ten times as long
        ours, theirs = (
            np.take(each.reshape(-1, 3), border, axis=0).astype(np.uint16)
            for each in (tint, pixels)
        )
        mixed.reshape(-1, 3)[border] = (ours * _BORDER + theirs * (256 - _BORDER)) >> 8
        result[rows] = mixed
    return result


def reduction(size: tuple[int, int]) -> int:
    """Returns how many times smaller than the picture, (H, W), its overlay is drawn; mostly 1."""
    return max(1, math.ceil(math.sqrt(size[0] * size[1] / _MOST_PIXELS)))


def reduced_size(size: tuple[int, int]) -> tuple[int, int]:
    """Returns the (H, W) of the overlay of a picture."""
    times = reduction(size)
    return math.ceil(size[0] / times), math.ceil(size[1] / times)


def reduced_overlay(image: Raster, labels: Labels, palette: Sequence[Color]) -> Picture:
    """Draws the overlay of a picture of any size, `reduced_size` of it, read in strips of rows.

    A pixel of it is the mean of the picture's, with the label in the middle of them.
    """
    height, width = labels.shape
    times = reduction((height, width))
    if times == 1:
        return overlay(shown_colours(image[:, :]), labels, palette)
    small = np.empty((*reduced_size((height, width)), 3), np.uint8)
    rows = times * max(1, _STRIP // (width * times))
    for top in range(0, height, rows):
        part = Image.fromarray(np.ascontiguousarray(shown_colours(image[top : top + rows, :])))
        done = np.asarray(part.reduce(times))
        small[top // times : top // times + len(done)] = done
    middle = [
        np.minimum(np.arange(0, side, times) + times // 2, side - 1) for side in (height, width)
    ]
    return overlay(small, labels[middle[0]][:, middle[1]], palette, out=small)


def _borders(labels: Labels, rows: slice, reach: int) -> NDArray[np.bool_]:
    """Marks pixels of some rows with another class `reach` pixels left, right, above or below."""
    above = min(reach, rows.start)
    part = labels[rows.start - above : rows.stop + reach]
    border = np.zeros(part.shape, bool)
    across = part[:, reach:] != part[:, :-reach]
    border[:, reach:] |= across
    border[:, :-reach] |= across
    down = part[reach:] != part[:-reach]
    border[reach:] |= down
    border[:-reach] |= down
    return border[above : above + rows.stop - rows.start]
