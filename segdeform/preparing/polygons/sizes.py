"""Compares the sizes that annotations tell with those of the pictures, before anything is drawn.

Labels are drawn on the upright picture, in its own size. Where a file tells the size before an EXIF
turn, as many tools do that read it without looking at EXIF, its shapes are taken as drawn on the
upright picture too, as such tools show it; unless they do not fit into that.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from segdeform.data.image_io import opened, orientation, upright_size
from segdeform.errors import DataError, UnsafeInputError
from segdeform.preparing.polygons.annotation import AnnotatedPicture, Runs
from segdeform.preparing.side_by_side import each

_SLACK = 1.5  # pixels that a corner may lie out of a picture without telling anything


def checked_sizes(
    order: Sequence[Path], jobs: dict[Path, AnnotatedPicture], workers: int
) -> tuple[dict[Path, tuple[int, int]], list[Path]]:
    """Returns the upright (H, W) of each picture, and those whose file tells it before turning.

    Pictures that cannot be read are not among them: whoever reads them whole says why.
    Raises DataError where an annotation is of another size than its picture.
    """
    sizes, turned, wrong = {}, [], []
    for path, found in zip(order, each(_size, order, workers), strict=True):
        if found is None:
            continue
        size, stored = found
        sizes[path] = size
        told = jobs[path].size
        if told is None or told == size:
            fault = _bitmap_fault(jobs[path], size)
        elif told == stored and not _lies_on_stored(jobs[path], size):
            turned.append(path)
            fault = _bitmap_fault(jobs[path], size)
        elif told == stored:
            fault = (
                f"was drawn on the picture as it is stored, {_text(stored)}, and {path} is shown "
                f"turned by its EXIF orientation, {_text(size)}; save it upright and draw again"
            )
        else:
            fault = f"is of {_text(told)} pixels (HxW), and its picture {path} has {_text(size)}"
        if fault:
            wrong.append(f"{jobs[path].source}: {jobs[path].item} {fault}")
    if wrong:
        more = f"; so are {len(wrong) - 1} others" if len(wrong) > 1 else ""
        raise DataError(f"{wrong[0]}{more}")
    return sizes, turned


def _size(path: Path) -> tuple[tuple[int, int], tuple[int, int]] | None:
    """Returns (H, W) of a picture as it is shown, and as its pixels are stored."""
    try:
        with opened(path) as image:
            height, width = upright_size(image)
            turned = orientation(image) >= 5
    except (DataError, UnsafeInputError):
        return None
    return (height, width), (width, height) if turned else (height, width)


def _lies_on_stored(picture: AnnotatedPicture, size: tuple[int, int]) -> bool:
    """Tells by corners out of the upright picture, or by bitmaps, that it was not drawn on that."""
    if any(shape.runs is not None for shape in picture.shapes):
        return True
    rings = [ring for shape in picture.shapes for ring in shape.rings if len(ring)]
    highest = np.max([ring.max(axis=0) for ring in rings], axis=0) if rings else (0, 0)
    return bool(highest[0] > size[1] + _SLACK or highest[1] > size[0] + _SLACK)


def _bitmap_fault(picture: AnnotatedPicture, size: tuple[int, int]) -> str:
    """Says which bitmap is larger than its picture, or not as large where it should be; else ""."""
    for shape in picture.shapes:
        if shape.runs is not None and not _fits(shape.runs, size):
            found = (shape.runs.height, shape.runs.width)
            return f"has {shape.item}, a bitmap of {_text(found)} for a picture of {_text(size)}"
    return ""


def _fits(runs: Runs, size: tuple[int, int]) -> bool:
    found = (runs.height, runs.width)
    return found == size if runs.whole else found[0] <= size[0] and found[1] <= size[1]


def _text(size: tuple[int, int]) -> str:
    return f"{size[0]}x{size[1]}"
