"""What was counted on each picture: the integers from which every score and interval follows.

Only classes that occur in a picture have a row, so that thousands of pictures stay a few megabytes.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from enum import IntEnum
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from segdeform.data.dataset import Labels, ignore_label
from segdeform.evaluation.boundary import boundary_counts
from segdeform.evaluation.confusion import class_pairs, refuse_countless

if TYPE_CHECKING:
    from segdeform.machine.processes import Processes

Rows = NDArray[np.int64]  # [R, 7]: one row for each class that occurs in a picture
Floats = NDArray[np.float64]


class Column(IntEnum):
    """What the columns of `Rows` hold; all but the first two are pixels."""

    PICTURE = 0  # index in the split
    CLASS = 1
    CORRECT = 2  # true and predicted
    TRUTH = 3
    PREDICTED = 4
    BOUNDARY_COMMON = 5  # in the class's band of truth and of prediction
    BOUNDARY_EITHER = 6


_FACTS = 4  # index, height, width, void pixels; a digest follows
_DIGEST = 4  # SHA-256 as four integers


@dataclass(frozen=True)
class Counts:
    """All that was counted on a split."""

    matrix: NDArray[np.int64]  # [K, K] pixels, rows truth, columns prediction
    rows: Rows  # by picture, then by class
    sizes: NDArray[np.int64]  # [N, 2] pixels, height, width
    void: NDArray[np.int64]  # [N] pixels that were not scored
    truth_sha256: str  # of the labels that were compared with, in order


class Tally:
    """Counts pictures one after the other, of one process of perhaps several.

    Raises DataError for more classes than are scored.
    """

    def __init__(self, classes: int, boundary_width: float) -> None:
        refuse_countless(classes)
        self._boundary_width = boundary_width
        self._matrix = np.zeros((classes, classes), np.int64)
        self._rows: list[Rows] = [np.zeros((0, len(Column)), np.int64)]
        self._facts: list[NDArray[np.int64]] = [np.zeros((0, _FACTS + _DIGEST), np.int64)]

    def add(
        self,
        picture: int,
        truth: Labels,  # [H, W] class indices or what is ignored
        prediction: Labels,  # [H, W] class indices
    ) -> None:
        """Counts one picture; raises DataError as `confusion_matrix` does."""
        classes = len(self._matrix)
        index, matrix = class_pairs(truth, prediction, classes)
        common, either = boundary_counts(truth, prediction, classes, self._boundary_width)
        self._matrix[np.ix_(index, index)] += matrix
        columns = (matrix.diagonal(), matrix.sum(axis=1), matrix.sum(axis=0))
        bands = (common[index], either[index])
        rows = np.column_stack([np.full(len(index), picture), index, *columns, *bands])
        present = (rows[:, Column.TRUTH] > 0) | (rows[:, Column.PREDICTED] > 0)
        self._rows.append(rows[present])
        void = int((truth == ignore_label(classes)).sum())
        facts = np.array([[picture, *truth.shape, void]], np.int64)
        digest = hashlib.sha256(repr(truth.shape).encode() + truth.tobytes()).digest()
        self._facts.append(np.hstack([facts, np.frombuffer(digest, ">i8")[None].astype(np.int64)]))

    def gather(self, peers: Processes) -> Counts:
        """Returns the counts of all processes, the same for any number of them.

        Raises PeerLostError where one is lost.
        """
        classes = len(self._matrix)
        parts = peers.gather(self._matrix.reshape(1, -1))
        # Of a single process the sum would be one more copy of what may be large.
        matrix = (parts[0] if len(parts) == 1 else parts.sum(axis=0)).reshape(classes, classes)
        rows = peers.gather(np.concatenate(self._rows))
        facts = peers.gather(np.concatenate(self._facts))
        rows = rows[np.argsort(rows[:, Column.PICTURE], kind="stable")]
        facts = facts[np.argsort(facts[:, 0], kind="stable")]
        digests = facts[:, _FACTS:].astype(">i8").tobytes()
        return Counts(matrix, rows, facts[:, 1:3], facts[:, 3], hashlib.sha256(digests).hexdigest())


def union(rows: Rows) -> NDArray[np.int64]:  # [R] pixels
    """Returns the pixels that are of a row's class in truth or prediction."""
    return rows[:, Column.TRUTH] + rows[:, Column.PREDICTED] - rows[:, Column.CORRECT]


def class_sums(rows: Rows, values: NDArray[Any], classes: int) -> Floats:  # [K]
    """Sums a value of each row, [R], over the pictures; exact below 2^53 pixels."""
    sums = np.bincount(rows[:, Column.CLASS], weights=values, minlength=classes)
    return sums.astype(np.float64, copy=False)


@dataclass(frozen=True)
class PictureScores:
    """Scores of each picture alone, NaN where nothing was to be scored; arrays of [N]."""

    miou: Floats  # over the classes that occur in the picture
    accuracy: Floats
    boundary_iou: Floats  # mean over the same classes


def picture_scores(rows: Rows, pictures: int) -> PictureScores:
    """Scores each picture by its own counts."""
    index = rows[:, Column.PICTURE]

    def total(values: NDArray[Any]) -> Floats:
        return np.bincount(index, weights=values, minlength=pictures).astype(np.float64, copy=False)

    present = total(np.ones(len(rows)))
    boundary = rows[:, Column.BOUNDARY_COMMON] / rows[:, Column.BOUNDARY_EITHER]
    return PictureScores(
        miou=ratio(total(rows[:, Column.CORRECT] / union(rows)), present),
        accuracy=ratio(total(rows[:, Column.CORRECT]), total(rows[:, Column.TRUTH])),
        boundary_iou=ratio(total(boundary), present),
    )


def ratio(part: Floats, whole: Floats) -> Floats:
    """Divides; NaN where the whole is 0."""
    result: Floats = np.full(np.shape(part), np.nan)
    return np.divide(part, whole, out=result, where=whole > 0)
