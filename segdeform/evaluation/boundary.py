"""Boundary IoU: how well outlines are met, where IoU is ruled by the insides of large objects."""

from __future__ import annotations

import math
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from segdeform.data.dataset import Labels, ignore_label, label_type

BOUNDARY_WIDTH = 0.02  # of the picture's diagonal; the paper's choice for COCO


def boundary_counts(
    truth: Labels,  # [H, W] class indices or what is ignored beside K classes
    prediction: Labels,  # [H, W] class indices
    classes: int,  # K
    width: float = BOUNDARY_WIDTH,  # of the diagonal
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:  # [K] pixels in both bands, in either
    """Counts the pixels that boundary IoU compares, for each class.

    A class's band holds its own pixels within d = max(1, round(width * diagonal)) of a pixel of
    another label or of the outside, as in Cheng et al. 2021, "Boundary IoU", equation 2. Distance
    is the larger of rows and columns, as in the authors' code. Pixels whose truth is ignored belong
    to no class in truth and prediction alike, so a right prediction has a boundary IoU of 1.
    """
    distance = max(1, round(width * math.hypot(*truth.shape)))
    ignore, kind = ignore_label(classes), label_type(classes)
    # OpenCV compares 8 or 16 bits alone, whatever wider type the labels came in.
    truth = truth.astype(kind, copy=False)
    prediction = np.where(truth == ignore, kind.type(ignore), prediction.astype(kind, copy=False))
    true_band = _near_another_label(truth, distance)
    predicted_band = _near_another_label(prediction, distance)
    common = _count(truth[true_band & predicted_band & (truth == prediction)], classes)
    either = _count(truth[true_band], classes) + _count(prediction[predicted_band], classes)
    return common, either - common


def _near_another_label(labels: Labels, distance: int) -> NDArray[np.bool_]:
    """Marks pixels with another label, or the outside, at most `distance` rows and columns away.

    One filter for all classes: labels differ in a window where its minimum and maximum do.
    """
    low: NDArray[Any] = labels
    high: NDArray[Any] = labels
    for size in ((1, 2 * distance + 1), (2 * distance + 1, 1)):  # twice 1-D, the same in less time
        window = np.ones(size, np.uint8)
        low, high = cv2.erode(low, window), cv2.dilate(high, window)
    band = np.asarray(low != high)
    band[:distance] = band[-distance:] = band[:, :distance] = band[:, -distance:] = True
    return band


def _count(labels: Labels, classes: int) -> NDArray[np.int64]:
    counts = np.bincount(labels, minlength=ignore_label(classes) + 1)
    return counts[:classes].astype(np.int64)
