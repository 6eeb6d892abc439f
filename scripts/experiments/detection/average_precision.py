"""Average precision of boxes by COCO's own code.

Its rules: per class, the 100 best detections of each picture, best score first, each take the truth
of largest overlap not yet taken whose IoU reaches the threshold; precision is made monotone and
averaged at recalls 0, 0.01, ..., 1; AP is the mean over classes and the thresholds 0.50, 0.55, ...,
0.95. Ignored truth is COCO's crowd: it takes any number of detections, by the share of the
detection inside it, which then count neither as right nor as wrong.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from io import StringIO
from typing import Any

import numpy as np
import numpy.typing as npt
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

Float = npt.NDArray[np.float64]

THRESHOLDS = np.linspace(0.5, 0.95, 10)
_RECALLS = np.linspace(0, 1, 101)
_LAST_BIT = 1e-10  # 7 objects in 10 reach a recall of 0.7, whatever the last bit of either says
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
    there, seen = [], []
    for picture, (real, guess) in enumerate(zip(truth, found, strict=True)):
        there += _annotations(picture, real.boxes, real.labels, "iscrowd", real.ignored)
        seen += _annotations(picture, guess.boxes, guess.labels, "score", guess.scores)
    with redirect_stdout(StringIO()):  # it tells of its progress
        pictures, labels = range(len(truth)), range(1, classes + 1)
        scoring = COCOeval(*(_data_set(part, pictures, labels) for part in (there, seen)), "bbox")
        settings = scoring.params
        settings.iouThrs, settings.recThrs = THRESHOLDS - _LAST_BIT, _RECALLS - _LAST_BIT
        settings.maxDets, settings.areaRng, settings.areaRngLbl = [_MOST], [[0, np.inf]], ["all"]
        scoring.evaluate()
        scoring.accumulate()
    precision = scoring.eval["precision"][:, :, :, 0, 0]  # [10, 101, K], -1: no truth
    table = np.where(precision[:, 0] < 0, np.nan, precision.mean(axis=1)).T
    if np.isnan(table).all():
        raise ValueError("no picture shows an object: there is no precision")
    return Precision(table)


def _annotations(
    picture: int, boxes: npt.ArrayLike, labels: npt.ArrayLike, key: str, values: npt.ArrayLike
) -> list[dict[str, Any]]:
    """Returns the boxes of one picture as COCO writes them, with one more value each."""
    corners = np.asarray(boxes, np.float64).reshape(-1, 4)
    places = np.hstack([corners[:, :2], corners[:, 2:] - corners[:, :2]])  # x, y, width, height
    rows = zip(places, np.asarray(labels), np.asarray(values), strict=True)
    return [
        {"image_id": picture, "bbox": place.tolist(), "area": float(place[2] * place[3])}
        | {"category_id": int(label), "iscrowd": 0, key: value.item()}
        for place, label, value in rows
    ]


def _data_set(annotations: list[dict[str, Any]], pictures: range, labels: range) -> COCO:
    data_set = COCO()
    data_set.dataset = {
        "images": [{"id": picture} for picture in pictures],
        "categories": [{"id": label} for label in labels],
        # From 1: 0 stands for "no match" in COCO's code.
        "annotations": [entry | {"id": k} for k, entry in enumerate(annotations, 1)],
    }
    data_set.createIndex()
    return data_set
