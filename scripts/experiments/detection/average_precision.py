"""Average precision of boxes by COCO's rules, without its tools.

Rules (cocoeval): per class, the 100 best detections of each picture, best score first, each take
the truth of largest overlap not yet taken whose IoU reaches the threshold; precision is made
monotone and averaged at recalls 0, 0.01, ..., 1; AP is the mean over classes and the thresholds
0.50, 0.55, ..., 0.95. Ignored truth is COCO's crowd: it takes any number of detections, by the
share of the detection inside it, which then count neither as right nor as wrong.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Float = npt.NDArray[np.float64]

THRESHOLDS = np.linspace(0.5, 0.95, 10)
_RECALLS = np.linspace(0, 1, 101)
_MOST = 100  # detections a picture and class


@dataclass(frozen=True)
class Truth:
    """The objects of one picture."""

    boxes: npt.ArrayLike  # [n, 4]: x1, y1, x2, y2
    labels: npt.ArrayLike  # [n]
    ignored: npt.ArrayLike  # [n], bool


@dataclass(frozen=True)
class Found:
    """The detections in one picture."""

    boxes: npt.ArrayLike  # [m, 4]
    labels: npt.ArrayLike  # [m]
    scores: npt.ArrayLike  # [m]


@dataclass(frozen=True)
class Precision:
    """Average precisions; NaN for classes without truth."""

    by_class: Float  # [K, 10], for each of THRESHOLDS

    @property
    def ap(self) -> float:
        """Mean over classes and thresholds."""
        return float(np.nanmean(self.by_class))

    @property
    def ap50(self) -> float:
        """Mean over classes at IoU 0.5."""
        return float(np.nanmean(self.by_class[:, 0]))

    @property
    def ap75(self) -> float:
        """Mean over classes at IoU 0.75."""
        return float(np.nanmean(self.by_class[:, 5]))


def average_precision(truth: Sequence[Truth], found: Sequence[Found], classes: int) -> Precision:
    """Scores the detections of the same pictures in the same order, for labels 1 to `classes`.

    Raises ValueError when there is no truth at all or the numbers of pictures differ.
    """
    table = np.stack([_class_precision(truth, found, label) for label in range(1, classes + 1)])
    if np.isnan(table).all():
        raise ValueError("no picture shows an object: there is no precision")
    return Precision(table)


def _class_precision(truth: Sequence[Truth], found: Sequence[Found], label: int) -> Float:
    """Returns [10], NaN if no picture shows the class."""
    scores, right, counted, objects = [], [], [], 0
    for there, seen in zip(truth, found, strict=True):
        own = np.asarray(there.labels) == label
        boxes = np.asarray(there.boxes, np.float64).reshape(-1, 4)[own]
        ignored = np.asarray(there.ignored, bool)[own]
        chosen = np.flatnonzero(np.asarray(seen.labels) == label)
        score = np.asarray(seen.scores, np.float64)
        chosen = chosen[np.argsort(-score[chosen], kind="stable")][:_MOST]
        detections = np.asarray(seen.boxes, np.float64).reshape(-1, 4)[chosen]
        hit, excused = match(detections, boxes, ignored)
        scores.append(score[chosen])
        right.append(hit)
        counted.append(~excused)
        objects += np.count_nonzero(~ignored)
    if not objects:
        return np.full(len(THRESHOLDS), np.nan)
    order = np.argsort(-np.concatenate(scores), kind="stable")
    hits, valid = np.concatenate(right, 1)[:, order], np.concatenate(counted, 1)[:, order]
    return np.array([_area(h[v], objects) for h, v in zip(hits, valid, strict=True)])


def match(
    detections: Float,  # [m, 4], best first
    boxes: Float,  # [n, 4]
    ignored: npt.NDArray[np.bool_],  # [n]
) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.bool_]]:
    """Tells for each threshold which detections are right and which are excused, [10, m] each."""
    hit = np.zeros((len(THRESHOLDS), len(detections)), bool)
    excused = np.zeros_like(hit)
    iou, share = overlaps(detections, boxes)
    for row, threshold in enumerate(THRESHOLDS):
        free = ~ignored
        for number in range(len(detections)):
            candidates = np.flatnonzero(free & (iou[number] >= threshold - 1e-10))
            if len(candidates):
                best = candidates[np.argmax(iou[number, candidates])]
                free[best], hit[row, number] = False, True
            else:
                excused[row, number] = bool((share[number, ignored] >= threshold).any())
    return hit, excused


def overlaps(a: Float, b: Float) -> tuple[Float, Float]:
    """Returns intersection over union, and the share of `a` inside `b`: [m, n] each."""
    corner = np.minimum(a[:, None, 2:], b[None, :, 2:]) - np.maximum(a[:, None, :2], b[None, :, :2])
    common = corner.clip(0).prod(2)
    area_a, area_b = ((box[:, 2:] - box[:, :2]).clip(0).prod(1) for box in (a, b))
    union = area_a[:, None] + area_b[None] - common
    return (
        common / np.maximum(union, np.finfo(float).tiny),
        common / np.maximum(area_a[:, None], np.finfo(float).tiny),
    )


def _area(hits: npt.NDArray[np.bool_], objects: int) -> float:
    """Averages the monotone precision at 101 recalls; `hits` best detection first."""
    right = np.cumsum(hits)
    precision = right / np.arange(1, len(hits) + 1)
    precision = np.maximum.accumulate(precision[::-1])[::-1]
    # A recall of 7 objects in 10 must reach 0.7, whatever the last bit of either says.
    places = np.searchsorted(right / objects, _RECALLS - 1e-12, side="left")
    return float(np.append(precision, np.zeros(1))[places].mean())
