"""A picture tinted in the classes' colours."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Picture = NDArray[np.uint8]  # [H, W, 3] RGB
Labels = NDArray[np.uint8] | NDArray[np.uint16]  # [H, W] class numbers
Color = tuple[int, int, int]

_FILL, _BORDER = 128, 240  # opacity of a class's area and of its border, of 256
_ROWS = 256  # rows blended at a time, so that little memory is needed beside the picture


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
    colors = np.array(palette, np.uint16)  # [K, 3]
    visible = np.any(colors != 0, axis=1)  # [K]
    height, width = labels.shape
    line = max(1, round(min(height, width) / 500))  # half the border's width
    for top in range(0, height, _ROWS):
        rows = slice(top, min(top + _ROWS, height))
        part = labels[rows]
        opacity = np.where(_borders(labels, rows, line), _BORDER, _FILL) * visible[part]
        opacity = opacity.astype(np.uint16)[:, :, None]  # [h, w, 1]
        mixed = image[rows] * (256 - opacity) + colors[part] * opacity  # at most 255 * 256
        result[rows] = mixed >> 8
    return result


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
