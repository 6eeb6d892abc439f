"""Which pixels a shape covers, and which of several shapes is on top: the one rule of all formats.

- A ring covers the pixels whose centres it encloses, by the even-odd rule: a bridge that leads to a
  hole and back cancels itself. A centre that lies exactly on an edge belongs to the shape on the
  right or below, so that of two shapes with a common edge exactly one has it. No border is added:
  areas stay what was drawn, and neighbours meet without overlap.
- Several rings of one shape are a union. What lies out of the picture is cut off.
- Labels called ignore, void, unlabelled or the like are not scored (255; 65535 where there are more
  than 255 classes), unless the classes that were asked for name them.
- Bitmaps (run lengths, PNGs) are taken as they are, never resampled.
- Crowds are not scored where nothing else is drawn. Then come the shapes in the order of the
  format, later ones on top; where a format has no order, those that cover fewer pixels are on top,
  and of equal ones the later.

pycocotools samples the same centres, from outlines rounded to a fifth of a pixel: pixels on which
the two differ have their centre within 0.3 pixels of the outline. The fills of PIL (LabelMe's own
export) and OpenCV add the border and round corners: PIL goes up to 1.3 pixels farther out.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from segdeform.data.dataset import Labels, ignore_label, label_type
from segdeform.errors import UnsafeInputError
from segdeform.preparing.polygons.annotation import Bits, Points, Runs, Shape

_CHUNK = 1 << 21  # crossings of edges and rows that are looked at together
_MOST_CROSSINGS = 1 << 28  # of one ring; real ones have thousands


@dataclass(frozen=True)
class Patch:
    """The pixels that a shape covers: a part of the picture, and which of its pixels."""

    top: int
    left: int
    bits: Bits  # [h, w]

    def window(self) -> tuple[slice, slice]:
        """Returns the rows and columns of the picture that the patch lies on."""
        height, width = self.bits.shape
        return slice(self.top, self.top + height), slice(self.left, self.left + width)


def draw(
    shapes: Sequence[Shape],
    size: tuple[int, int],  # (H, W)
    classes: Mapping[str, int],  # label -> class or what is ignored
    unlabelled: int,
    smaller_on_top: bool,
    number: int,  # of classes in all
) -> tuple[Labels, Counter[str]]:
    """Returns labels [H, W], and how many shapes left no pixel, by the reason.

    Raises UnsafeInputError for an outline with more edges than any picture has.
    """
    labels = np.full(size, unlabelled, label_type(number))
    ignore = ignore_label(number)
    lost: Counter[str] = Counter()
    kept = [shape for shape in shapes if not shape.crowd]
    if smaller_on_top and len(kept) > 1:
        areas = [0 if (patch := cover(shape, size)) is None else patch.bits.sum() for shape in kept]
        # Python's sort keeps the order of equal ones, so the later stays on top.
        kept = [kept[index] for index in sorted(range(len(kept)), key=lambda i: -areas[i])]
    for shape in (*(shape for shape in shapes if shape.crowd), *kept):
        patch = cover(shape, size)
        if patch is None:
            lost[_reason(shape, size)] += 1
        else:
            labels[patch.window()][patch.bits] = ignore if shape.crowd else classes[shape.label]
    return labels, lost


def cover(shape: Shape, size: tuple[int, int]) -> Patch | None:
    """Returns the pixels of a picture of (H, W) that a shape covers, None where there are none."""
    if shape.runs is not None:
        found = [_bitmap(shape.runs, size)]
    else:
        found = [_enclosed(ring, size) for ring in shape.rings if len(ring) >= 3]
    patches = [patch for patch in found if patch is not None and patch.bits.any()]
    return _union(patches) if len(patches) > 1 else next(iter(patches), None)


def _reason(shape: Shape, size: tuple[int, int]) -> str:
    if shape.runs is not None:
        return "empty bitmaps"
    rings = [ring for ring in shape.rings if len(ring) >= 3]
    if not rings:
        return "with fewer than 3 points"
    low, high = np.min([r.min(axis=0) for r in rings], 0), np.max([r.max(axis=0) for r in rings], 0)
    if (high <= 0).any() or low[0] >= size[1] or low[1] >= size[0]:
        return "outside of their picture"
    return "without area, or too thin to cover the centre of a pixel"


def _union(patches: Sequence[Patch]) -> Patch:
    top, left = min(patch.top for patch in patches), min(patch.left for patch in patches)
    bottom = max(patch.top + patch.bits.shape[0] for patch in patches)
    right = max(patch.left + patch.bits.shape[1] for patch in patches)
    whole = Patch(top, left, np.zeros((bottom - top, right - left), np.bool_))
    for patch in patches:
        rows, columns = Patch(patch.top - top, patch.left - left, patch.bits).window()
        whole.bits[rows, columns] |= patch.bits
    return whole


def _bitmap(runs: Runs, size: tuple[int, int]) -> Patch | None:
    on = np.repeat(np.arange(len(runs.lengths)) % 2 == 1, runs.lengths)
    if runs.by_columns:
        bits = on.reshape(runs.width, runs.height).T
    else:
        bits = on.reshape(runs.height, runs.width)
    top, left = max(-runs.top, 0), max(-runs.left, 0)
    bits = bits[top : max(size[0] - runs.top, 0), left : max(size[1] - runs.left, 0)]
    return Patch(max(runs.top, 0), max(runs.left, 0), bits) if bits.size else None


def _enclosed(ring: Points, size: tuple[int, int]) -> Patch | None:
    """Returns the pixels whose centres a ring [N, 2] encloses by the even-odd rule."""
    low, high = np.ceil(ring.min(axis=0) - 0.5), np.ceil(ring.max(axis=0) - 0.5)
    left, right = (int(min(max(value, 0), size[1])) for value in (low[0], high[0]))
    top, bottom = (int(min(max(value, 0), size[0])) for value in (low[1], high[1]))
    if left >= right or top >= bottom:
        return None
    height, width = bottom - top, right - left
    # Every crossing of an edge and a row of centres toggles what lies to the right of it.
    toggles = np.zeros(height * (width + 1), np.uint8)
    for rows, across in _crossings(ring, top, bottom):
        columns = np.clip(np.ceil(across - 0.5), left, right).astype(np.int64) - left
        # Bytes that wrap at 256 stay odd or even.
        np.add.at(toggles, (rows - top) * (width + 1) + columns, 1)
    inside = np.cumsum(toggles.reshape(height, width + 1)[:, :width], axis=1, dtype=np.uint8) & 1
    return Patch(top, left, inside.astype(np.bool_))


def _crossings(ring: Points, top: int, bottom: int) -> Iterator[tuple[np.ndarray, Points]]:
    """Yields rows from top to bottom, [M], and where, [M], an edge crosses their centres."""
    following = np.roll(ring, -1, axis=0)
    downwards = (ring[:, 1] <= following[:, 1])[:, None]
    # From the upper end always: neighbours with a common edge then cross it at the same bits.
    upper, lower = np.where(downwards, ring, following), np.where(downwards, following, ring)
    first = np.clip(np.ceil(upper[:, 1] - 0.5), top, bottom).astype(np.int64)
    count = np.clip(np.ceil(lower[:, 1] - 0.5), top, bottom).astype(np.int64) - first
    crossing = np.flatnonzero(count)
    ends = np.cumsum(count[crossing])
    if len(ends) and ends[-1] > _MOST_CROSSINGS:
        raise UnsafeInputError(f"an outline that crosses {ends[-1]:,} rows of pixels")
    start = 0
    while start < len(crossing):
        done = int(ends[start - 1]) if start else 0
        stop = max(int(np.searchsorted(ends, done + _CHUNK)), start + 1)
        edges = crossing[start:stop]
        many = count[edges]
        rows = np.repeat(first[edges] - (ends[start:stop] - many - done), many)
        rows += np.arange(len(rows))
        (x, y), (end_x, end_y) = upper[edges].T, lower[edges].T
        slope = (end_x - x) / (end_y - y)
        yield rows, np.repeat(x, many) + (rows + 0.5 - np.repeat(y, many)) * np.repeat(slope, many)
        start = stop
