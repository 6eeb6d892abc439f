"""The confusion matrix in exact integers, and the scores that follow from it.

Adding int64 counts is exact and has no order, so any split of the pictures over processes gives the
same matrix and the same scores, bit for bit.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segdeform.data.dataset import MAX_NARROW, ignore_label
from segdeform.errors import DataError

Labels = NDArray[np.integer[Any]]
MAX_SCORED = 10_000  # classes; the matrix of as many takes 800 MB, of 65,535 it would take 34 GB
_CHUNK = 2**20  # pixels counted at a time, so that memory does not grow with the picture


def refuse_countless(classes: int) -> None:
    """Raises DataError for more classes than are scored."""
    if classes > MAX_SCORED:
        raise DataError(
            f"{classes} classes: up to {MAX_SCORED} can be trained on and scored, of which the "
            f"confusion matrix takes {8 * MAX_SCORED**2 // 10**6} MB; merge some by label_mapping"
        )


def confusion_matrix(
    truth: Labels,  # [H, W] class indices or what is ignored beside K classes
    prediction: Labels,  # [H, W] class indices
    classes: int,  # K
) -> NDArray[np.int64]:  # [K, K] pixels, rows truth, columns prediction
    """Counts pixels by true and predicted class; those whose truth is ignored are left out.

    Raises DataError where the shapes differ or a value is no class, naming value and position.
    """
    present, counts = class_pairs(truth, prediction, classes)
    matrix = np.zeros((classes, classes), np.int64)
    matrix[np.ix_(present, present)] = counts
    return matrix


def class_pairs(
    truth: Labels,  # [H, W] class indices or what is ignored beside K classes
    prediction: Labels,  # [H, W] class indices
    classes: int,  # K
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:  # [P] classes; [P, P] pixels
    """Counts as `confusion_matrix` does, which raises the same; of more than 255 classes only rows
    and columns of those that occur, so that a picture takes no K x K numbers."""
    if truth.shape != prediction.shape:
        raise DataError(
            f"the prediction is {_size(prediction)} pixels and the mask {_size(truth)}: "
            "they must be equal"
        )
    ignore = ignore_label(classes)
    _refuse_other_values("mask", truth, classes, allowed=ignore)
    _refuse_other_values("prediction", prediction, classes, allowed=None)
    truth, prediction = truth.reshape(-1), prediction.reshape(-1)
    present = np.arange(classes)
    if classes > MAX_NARROW:
        present = np.flatnonzero(_occurring(truth, ignore) | _occurring(prediction, ignore))
    count = len(present)
    column = np.zeros(ignore + 1, np.int64)
    column[present] = np.arange(count)
    row = column * count  # first cell of each class's row
    row[ignore] = count * count  # a row of its own below the matrix, dropped at the end
    cells = count * (count + 1)
    matrix = np.zeros(cells, np.int64)
    for start in range(0, truth.size, _CHUNK):
        part = slice(start, start + _CHUNK)
        matrix += np.bincount(row[truth[part]] + column[prediction[part]], minlength=cells)
    return present, matrix[: count * count].reshape(count, count)


def _occurring(labels: Labels, ignore: int) -> NDArray[np.bool_]:  # [ignore + 1]
    """Marks the classes that a label map holds."""
    marks = np.zeros(ignore + 1, np.bool_)
    marks[labels] = True
    marks[ignore] = False
    return marks


def _refuse_other_values(what: str, labels: Labels, classes: int, allowed: int | None) -> None:
    """Raises DataError for the first value that is neither a class index nor `allowed`."""
    if not labels.size or (labels.min() >= 0 and labels.max() < classes):
        return
    wrong = (labels < 0) | (labels >= classes)
    if allowed is not None:
        wrong &= labels != allowed
    if wrong.any():
        at = np.unravel_index(int(wrong.argmax()), labels.shape)
        position = ", ".join(str(int(i)) for i in at)
        raise DataError(
            f"the {what} holds {int(labels[at])} at ({position}); classes are 0 to {classes - 1}"
        )


def _size(labels: Labels) -> str:
    return "x".join(str(side) for side in labels.shape)


@dataclass(frozen=True)
class Scores:
    """Scores of one confusion matrix, as fractions; NaN where nothing was there to be scored."""

    iou: tuple[float, ...]  # TP / (TP + FP + FN); NaN: absent from truth and prediction
    f1: tuple[float, ...]  # 2 TP / (2 TP + FP + FN), also called Dice; NaN: likewise
    precision: tuple[float, ...]  # TP / (TP + FP); NaN: absent from the prediction
    class_accuracy: tuple[float, ...]  # TP / (TP + FN), also called recall; NaN: not in the truth
    miou: float  # mean of the IoUs that are not NaN
    accuracy: float  # correct pixels / all counted pixels
    mean_accuracy: float  # mean of the class accuracies that are not NaN
    fw_iou: float  # IoUs weighted by the classes' shares of the truth
    mean_f1: float  # mean of the F1s that are not NaN
    constant_miou: float  # mIoU of calling every pixel the class that is the commonest in truth


def scores(matrix: NDArray[np.int64]) -> Scores:
    """Computes the scores of a [K, K] confusion matrix (Long et al. 2015, section 5).

    A class that is absent from truth and prediction has no IoU and does not enter the mean; one
    that is predicted but never true has IoU 0 and does.
    """
    correct = [int(count) for count in matrix.diagonal()]
    truth = [int(count) for count in matrix.sum(axis=1)]
    predicted = [int(count) for count in matrix.sum(axis=0)]
    union = [t + p - c for t, p, c in zip(truth, predicted, correct, strict=True)]
    iou = tuple(_ratio(c, u) for c, u in zip(correct, union, strict=True))
    f1 = tuple(_ratio(2 * c, t + p) for c, t, p in zip(correct, truth, predicted, strict=True))
    class_accuracy = tuple(_ratio(c, t) for c, t in zip(correct, truth, strict=True))
    weighted = [t * i for t, i in zip(truth, iou, strict=True) if t]
    return Scores(
        iou=iou,
        f1=f1,
        precision=tuple(_ratio(c, p) for c, p in zip(correct, predicted, strict=True)),
        class_accuracy=class_accuracy,
        miou=mean(iou),
        accuracy=_ratio(sum(correct), sum(truth)),
        mean_accuracy=mean(class_accuracy),
        fw_iou=_ratio(math.fsum(weighted), sum(truth)),
        mean_f1=mean(f1),
        # The commonest class has its share as IoU, each other one of the truth has 0.
        constant_miou=_ratio(_ratio(max(truth), sum(truth)), sum(count > 0 for count in truth)),
    )


def _ratio(part: float, whole: int) -> float:
    return part / whole if whole else math.nan


def mean(values: Sequence[float]) -> float:
    """Returns the mean of the values that are not NaN; NaN where there is none."""
    present = [value for value in values if not math.isnan(value)]
    return math.fsum(present) / len(present) if present else math.nan
