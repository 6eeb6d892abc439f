"""Label maps as COCO's run lengths: one annotation a class, as pycocotools reads it.

Runs go down the columns, from the left one on, and alternate: first pixels that are not of the
class, then such that are. They are written as text (`Encoder`), see cocoapi's maskApi.c for the
format. Labels are read a strip of columns at a time, so that little is held beside the text.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segdeform.errors import UsageError
from segdeform.results.overlay import Labels

_STRIP = 2**20  # pixels read at a time
_MOST_PIXELS = 2**32 - 1  # of a picture: readers hold a run's length in 32 bits
Int64 = NDArray[np.int64]


class Encoder:
    """Writes the runs of one class as they are found, from the first pixel to the last."""

    def __init__(self, height: int) -> None:
        self.area = 0
        self._height = height
        self._text: list[bytes] = []
        self._last: Int64 = np.zeros(0, np.int64)  # the last two lengths, of which differences are
        self._count = 0  # lengths written
        self._end = 0  # pixel after the last one that is written
        self._open: tuple[int, int] | None = None  # a run that may go on in the next strip
        self._box = [np.iinfo(np.int64).max, np.iinfo(np.int64).max, -1, -1]  # x, y, x, y

    def add(self, starts: Int64, ends: Int64) -> None:
        """Adds runs of pixels [start, end) in order, counted down the columns."""
        if self._open is not None:
            begin, end = self._open
            if end == starts[0]:
                starts = np.concatenate(([begin], starts[1:]))
            else:
                starts = np.concatenate(([begin], starts))
                ends = np.concatenate(([end], ends))
        self._open = int(starts[-1]), int(ends[-1])
        self._write(starts[:-1], ends[:-1])

    def finish(self, pixels: int) -> dict[str, Any]:
        """Returns the class's counts, area and box [x, y, width, height] of `pixels` in all."""
        if self._open is not None:
            self._write(*(np.array([value]) for value in self._open))
        if self._end < pixels or not pixels:
            self._append(np.array([pixels - self._end]))
        left, top, right, bottom = self._box
        box = [left, top, right - left + 1, bottom - top + 1] if self.area else [0, 0, 0, 0]
        return {"counts": b"".join(self._text).decode(), "area": self.area, "bbox": box}

    def _write(self, starts: Int64, ends: Int64) -> None:
        if not len(starts):
            return
        lengths = np.empty(2 * len(starts), np.int64)
        lengths[0] = starts[0] - self._end
        lengths[2::2] = starts[1:] - ends[:-1]
        lengths[1::2] = ends - starts
        self._append(lengths)
        self._end = int(ends[-1])
        self.area += int(lengths[1::2].sum())
        self._widen(starts, ends - 1)

    def _widen(self, first: Int64, last: Int64) -> None:
        columns, rows = np.divmod(np.stack([first, last]), self._height)  # [2, n] each
        if (columns[0] != columns[1]).any():  # from one column into the next: all rows
            rows = np.array([[0], [self._height - 1]])
        low, high = (columns.min(), rows.min()), (columns.max(), rows.max())
        self._box = [
            *(min(a, int(b)) for a, b in zip(self._box[:2], low, strict=True)),
            *(max(a, int(b)) for a, b in zip(self._box[2:], high, strict=True)),
        ]

    def _append(self, lengths: Int64) -> None:
        both = np.concatenate([self._last, lengths])
        values = both.copy()
        values[2:] -= both[:-2]
        values = values[len(self._last) :]
        if self._count < 3:  # the first three stand for themselves
            values[: 3 - self._count] = lengths[: 3 - self._count]
        self._text.append(_letters(values))
        self._last, self._count = both[-2:], self._count + len(lengths)


def _letters(values: Int64) -> bytes:
    """Writes numbers in digits of 5 bits, the lowest first, a letter each from "0" on.

    32 is added where more follow; the highest bit of the last digit is the sign.
    """
    digits = []  # of [n] each
    more = np.ones(len(values), bool)
    kept = []
    while more.any():
        kept.append(more)
        digit = values & 31
        values = values >> 5
        more = more & (values != np.where(digit & 16, -1, 0))
        digits.append((digit + 32 * more + 48).astype(np.uint8))
    return np.stack(digits, 1)[np.stack(kept, 1)].tobytes() if digits else b""


def class_runs(
    labels: Labels,  # [H, W]
    count: int,  # of classes
) -> dict[int, dict[str, Any]]:
    """Encodes every class that occurs: {class: {"counts", "area", "bbox"}}, `bbox` in pixels.

    Raises UsageError for a picture of more pixels than the format can count.
    """
    height, width = labels.shape
    if height * width > _MOST_PIXELS:
        raise UsageError(
            f"{height}x{width} pixels are more than COCO's run lengths can count (2^32 - 1): "
            "leave rle out of --outputs"
        )
    encoders: dict[int, Encoder] = {}
    columns = max(1, _STRIP // max(1, height))
    for left in range(0, width, columns):
        flat = np.ascontiguousarray(labels[:, left : left + columns].T).ravel()
        starts = np.flatnonzero(np.concatenate(([True], flat[1:] != flat[:-1])))
        ends = np.append(starts[1:], len(flat))
        classes = flat[starts]
        order = np.argsort(classes, kind="stable")
        shares = np.cumsum(np.bincount(classes, minlength=count))
        for index in np.unique(classes).tolist():
            mine = order[shares[index - 1] if index else 0 : shares[index]]
            encoder = encoders.setdefault(index, Encoder(height))
            encoder.add(starts[mine] + left * height, ends[mine] + left * height)
    return {index: encoders[index].finish(height * width) for index in sorted(encoders)}


def coco_dataset(
    labels: Labels,  # [H, W]
    classes: Sequence[str],
    file_name: str,
) -> dict[str, Any]:
    """Returns a picture's labels as a COCO data set of one image: an annotation a class.

    A category's id is the class number, as masks have it. Raises as `class_runs` does.
    """
    height, width = labels.shape
    annotations: list[dict[str, Any]] = []
    for index, runs in class_runs(labels, len(classes)).items():
        segmentation = {"size": [height, width], "counts": runs.pop("counts")}
        annotations.append(
            {
                "id": len(annotations) + 1,
                "image_id": 1,
                "category_id": index,
                "segmentation": segmentation,
                **runs,
                "iscrowd": 0,
            }
        )
    return {
        "images": [{"id": 1, "file_name": file_name, "width": width, "height": height}],
        "categories": [{"id": index, "name": name} for index, name in enumerate(classes)],
        "annotations": annotations,
    }
